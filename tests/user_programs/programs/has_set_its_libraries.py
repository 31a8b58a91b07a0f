# What a library keeps for a whole program or thread: the same code would give other values without it.
import importlib
import sys

from joblib import Parallel, delayed, parallel_config

from joblib_stateful import StatefulExecutor, stateful_map

library, engine = importlib.import_module(sys.argv[1]), sys.argv[2]


def set_decimal(number):
    library.getcontext().prec = number


def ask_decimal(_=0):
    return str(library.Decimal(1) / 3)


def set_numpy(number):
    library.seterr(divide="raise" if number < 20 else "warn")


def ask_numpy(_=0):
    return library.geterr()


def set_torch(number):
    library.set_default_dtype(library.float64 if number < 20 else library.float32)


def ask_torch(_=0):
    return str(library.zeros(1).dtype)


def set_jax(number):
    library.config.update("jax_enable_x64", number < 20)


def ask_jax(_=0):
    return str(library.numpy.zeros(1).dtype)


def set_sklearn(number):
    library.set_config(transform_output="pandas" if number < 20 else "default")


def ask_sklearn(_=0):
    return library.get_config()


change, ask = globals()[f"set_{sys.argv[1]}"], globals()[f"ask_{sys.argv[1]}"]


def own(_):
    """Change it in the worker alone."""
    change(50)
    return ask()


if __name__ == "__main__":
    at_first = ask()
    with StatefulExecutor(n_jobs=1, engine=engine) as executor:
        assert executor.submit(ask).result() == at_first
        for number in (5, 50, 6):
            change(number)
            assert (ask() == at_first) == (number == 50 and sys.argv[1] != "decimal")
            assert executor.submit(ask).result() == ask()
            assert list(stateful_map(ask, range(3), n_jobs=2, engine=engine)) == [ask()] * 3
            with parallel_config(backend="stateful", n_jobs=1, engine=engine):
                assert Parallel()(delayed(ask)() for _ in range(2)) == [ask()] * 2
            found = stateful_map(ask, range(8), n_jobs=1, engine=engine, max_concurrency=4, batch_size=1)
            assert list(found) == [ask()] * 8
        changed = executor.submit(own, 0).result()
        assert executor.submit(ask).result() == changed, "what the worker's own code sets stays"
        change(7)
    print("as in the program")
