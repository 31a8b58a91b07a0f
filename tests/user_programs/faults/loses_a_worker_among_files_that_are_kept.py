import os
import resource

import numpy as np

from joblib_stateful import StatefulExecutor, errors


def crash():
    os._exit(3)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    with StatefulExecutor(n_jobs=2) as executor:
        for size in (270_000, 600_000, 1_300_000, 2_700_000):
            futures = [executor.submit(len, np.full(size, n, "u1")) for n in range(15)]
            assert [future.result() for future in futures] == [size] * 15
            del futures
        executor.warm_up()
        try:
            executor.submit(crash).result()
        except errors.WorkerCrashedError:
            executor.warm_up()
            print([info.state for info in executor.workers()])
