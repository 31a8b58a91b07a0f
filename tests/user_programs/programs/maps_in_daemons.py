import multiprocessing
import os
import sys
import warnings

from joblib import Parallel, delayed, parallel_config

from joblib_stateful import StatefulExecutor, errors, get_worker, stateful_map


class Worker:
    def __call__(self, item):
        return os.getpid()


def try_all():
    assert multiprocessing.current_process().daemon
    refused = []
    for attempt in (
        lambda: list(stateful_map(Worker, range(4), n_jobs=2)),
        lambda: StatefulExecutor(Worker, 2),
    ):
        try:
            refused.append(attempt())
        except errors.EngineError as error:
            refused.append("daemonic" in str(error) and 'engine="threads"' in str(error))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with parallel_config(backend="stateful", n_jobs=2, worker=Worker):
            here = Parallel()(delayed(lambda item: get_worker()(item))(item) for item in range(4))
    refused.append(here == [os.getpid()] * 4 and "daemonic" in str(caught[0].message))
    for engine in ("threads", "inline"):
        assert list(stateful_map(Worker, range(4), n_jobs=2, engine=engine)) == [os.getpid()] * 4
    with parallel_config(backend="stateful", n_jobs=2, engine="threads"):
        assert Parallel()(delayed(os.getpid)() for _ in range(4)) == [os.getpid()] * 4
    return refused


def report():
    print(try_all(), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "joblib":
        print(Parallel(n_jobs=2, backend="multiprocessing")(delayed(try_all)() for _ in range(2)))
    else:
        process = multiprocessing.get_context(sys.argv[1]).Process(target=report, daemon=True)
        process.start()
        process.join(50)
        print("exit code", process.exitcode)
