import sys

from joblib_stateful import stateful_map
from joblib_stateful.engines.loky._worker import LokyWorker

start = LokyWorker._start


def noted(self):
    print("started", "joblib" in sys.modules)
    return start(self)


if __name__ == "__main__":
    LokyWorker._start = noted
    print(list(stateful_map(abs, [-1], n_jobs=2)))
