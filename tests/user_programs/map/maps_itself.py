import sys
from pathlib import Path

from joblib import Parallel, delayed, parallel_config

from joblib_stateful import StatefulExecutor, shutdown, stateful_map

log, engine = Path(sys.argv[1]), sys.argv[2]


def note():
    with log.open("a") as file:
        file.write("called ")


def direct(item):
    note()
    return list(stateful_map(direct, [item] * 2, n_jobs=2, engine=engine))


def one(item):
    note()
    return list(stateful_map(other, [item] * 2, n_jobs=2, engine=engine))


def other(item):
    return list(stateful_map(one, [item] * 2, n_jobs=2, engine=engine))


class Worker:
    def __call__(self, item):
        note()
        return list(stateful_map(Worker, [item] * 2, n_jobs=2, engine=engine))


def submitting(item):
    note()
    with StatefulExecutor(n_jobs=2, engine=engine) as executor:
        return list(executor.map(submitting, [item] * 2))


def parallel(item):
    note()
    with parallel_config(backend="stateful", n_jobs=2, engine=engine):
        return Parallel()(delayed(parallel)(item) for _ in range(2))


if __name__ == "__main__":
    ways = {
        "direct": lambda: direct(1),
        "one": lambda: one(1),
        "Worker": lambda: Worker()(1),
        "submitting": lambda: submitting(1),
        "parallel": lambda: parallel(1),
    }
    try:
        ways[sys.argv[3]]()
    except Exception as error:
        print(type(error).__name__, error)
    shutdown()
