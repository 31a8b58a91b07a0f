import os
import sys
import warnings

import numpy as np

from joblib_stateful import StatefulExecutor, stateful_map


class Double:
    def __init__(self, weights):
        self.weights = weights

    def __call__(self, item):
        return item * 2 + self.weights[0], os.getpid()


SIZE = 3_000_000  # 24 MB


def run(executor):
    items = (np.full(SIZE, n, float) for n in range(4))
    found = list(stateful_map(executor, items, batch_size=1, buffer=3))
    for n, (result, _) in enumerate(found):
        assert result.shape == (SIZE,)
        assert (result == 2 * n + 1).all()
    return {pid for _, pid in found}


def main(between=lambda: None):
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with StatefulExecutor(Double, 2, shared_kwargs={"weights": np.ones(SIZE)}) as executor:
            executor.warm_up()
            run(executor)
            between()
            assert run(executor) <= {info.pid for info in executor.workers()}
            assert [info.n_restarts for info in executor.workers()] == [0, 0]
    ours = [str(warning.message) for warning in warned]
    assert len(ours) <= 1, ours
    print("fine")


def fill():
    with open("/dev/shm/full", "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass


if __name__ == "__main__":
    if sys.argv[1:] == ["and fills memory"]:
        assert os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize == 8 << 20
        main(between=fill)
    else:
        main()
