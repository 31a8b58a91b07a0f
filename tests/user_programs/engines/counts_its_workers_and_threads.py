import os

import joblib

from joblib_stateful import StatefulExecutor, stateful_map


class Worker:
    def __call__(self, item):
        return os.environ["OMP_NUM_THREADS"]


if __name__ == "__main__":
    os.environ.pop("OMP_NUM_THREADS", None)
    with StatefulExecutor(Worker) as executor:
        print(len(executor.workers()), *stateful_map(executor, [1]))
    with joblib.parallel_config(backend="stateful", worker=Worker):
        print(joblib.effective_n_jobs())
