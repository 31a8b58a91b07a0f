import logging
import os
import signal

import numpy as np
from joblib import Parallel, delayed, parallel_config

from joblib_stateful import StatefulExecutor, errors, stateful_map


class Adding:
    def __init__(self, weights):
        self.weights = weights

    def __call__(self, item):
        logging.getLogger("app").warning("item")
        item[0] += 1  # it is the worker's own
        self.weights[0] += 1
        return item + self.weights[1:2]


def own_pid(item):
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL) if hasattr(signal, "SIGKILL") else os._exit(1)
    return os.getpid()


def look(array):
    is_writable = array.flags.writeable
    if is_writable:
        array[0] += 1
    return is_writable


if __name__ == "__main__":
    seen = []

    class Counting(logging.Handler):
        def emit(self, record):
            seen.append(record.slot)

    logging.getLogger("app").addHandler(Counting())
    logging.getLogger("app").propagate = False
    weights, arrays = np.ones(400_000), [np.full(300_000, float(n)) for n in range(4)]
    results = list(stateful_map(Adding, arrays, n_jobs=2, shared_kwargs={"weights": weights}))
    assert [result[:2].tolist() for result in results] == [[n + 2.0, n + 1.0] for n in range(4)]
    assert all(result.flags.writeable for result in results) and weights[0] == 1
    assert [array[0] for array in arrays] == [0.0, 1.0, 2.0, 3.0]
    print("records", len(seen))

    with StatefulExecutor(n_jobs=2) as executor:
        before = [info.pid for info in executor.warm_up() or executor.workers()]
        found = list(stateful_map(own_pid, range(6), n_jobs=2, on_error="deferred", batch_size=1))
        assert [one.ok for one in found] == [True, True, True, False, True, True]
        assert isinstance(found[3].exception, errors.WorkerCrashedError)
        assert [info.pid for info in executor.workers()] == before

    data = np.zeros(300_000)
    for mode in ("r", "c", "r+"):
        with parallel_config(backend="stateful", n_jobs=2, mmap_mode=mode):
            found = Parallel()(delayed(look)(data) for _ in range(2))
        assert found == [mode != "r"] * 2, mode
    assert not data.any()
