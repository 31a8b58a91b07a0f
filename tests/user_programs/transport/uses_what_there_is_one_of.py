# Names that a script imports from modules, and that are methods or objects of which there is one in each process.
import os
import random
import secrets
import sys
import threading
from os import environ
from random import choice, seed
from secrets import choice as pick

from joblib_stateful import StatefulExecutor, stateful_map

by_system = random.SystemRandom()
local = threading.local()


def draw():
    return [choice(range(10**9)) for _ in range(5)]


def draw_by_seed():
    seed(3)
    return choice(range(10**9)), random.choice(range(10**9))


def draw_by_system():
    return pick("aa"), by_system.choice("b"), secrets.choice("c")


def set_variable():
    environ["OF_A_WORKER"] = "1"
    return os.environ["OF_A_WORKER"], os.getenv("OF_A_WORKER")


def tell():
    return environ


def count():
    local.count = getattr(local, "count", 0) + 1
    return local.count


class Sampler:
    def __init__(self):
        self.first = choice(range(10**9))

    def __call__(self, _):
        return self.first, os.getpid()


if __name__ == "__main__":
    local.count = 100
    with StatefulExecutor(n_jobs=2) as executor:
        first, second = executor.run_on_all(draw)
        assert first != second, "each worker draws numbers of its own"
        assert executor.run_on_all(draw_by_seed) == [draw_by_seed()] * 2
        assert executor.run_on_all(draw_by_system) == [("a", "b", "c")] * 2
        assert executor.run_on_all(set_variable) == [("1", "1")] * 2
        assert "OF_A_WORKER" not in os.environ
        assert [found["OF_A_WORKER"] for found in executor.run_on_all(tell)] == ["1"] * 2, (
            "a worker's is not the program's"
        )
        assert executor.run_on_all(count) == [1, 1], "as in each new thread"
        assert executor.run_on_all(count) == [2, 2]
    before = set(stateful_map(Sampler, range(1), n_jobs=1))
    draw()
    assert set(stateful_map(Sampler, range(1), n_jobs=1)) == before, "the object is not built twice"
    if "numpy" in sys.argv:
        from numpy.random import RandomState, get_state, randint

        def draw_by_numpy():
            return [int(randint(10**9)) for _ in range(5)]  # noqa: NPY002 - it is about these

        own = RandomState(3)

        def draw_own():
            return int(own.randint(10**9))

        with StatefulExecutor(n_jobs=2) as executor:
            first, second = executor.run_on_all(draw_by_numpy)
            assert first != second
            assert executor.run_on_all(draw_own) == [int(RandomState(3).randint(10**9))] * 2, "it is told by its state"
            assert executor.submit(get_state).result() is not None
    print("as in the program")
