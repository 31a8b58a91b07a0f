import os
import time
from pathlib import Path

from joblib import Parallel, delayed

from joblib_stateful import shutdown, stateful_map


def inner(item):
    return os.getpid(), Parallel(2)(delayed(abs)(-number) for number in range(4))


if __name__ == "__main__":
    pids = {str(pid) for pid, _ in stateful_map(inner, range(2), n_jobs=2, batch_size=1)}
    shutdown()  # which would kill what takes 30 s
    deadline = time.monotonic() + 5
    while left := [path.name for path in Path("/dev/shm").iterdir() if pids & set(path.name.split("_"))]:
        assert time.monotonic() < deadline, left
        time.sleep(0.01)
