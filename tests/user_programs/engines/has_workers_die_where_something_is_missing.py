# A worker, one of its own processes that ends with it, and what else a program does.
import sys

if sys.argv[1] == "without psutil":
    sys.modules["psutil"] = None
import os
import subprocess
import threading

import joblib
import numpy as np

from joblib_stateful import StatefulExecutor, stateful_map


class Worker:
    def __init__(self):
        self.n_calls = 0

    def __call__(self, item):
        self.n_calls += 1
        if not isinstance(item, str):
            return item
        if item == "hang":
            self.child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
            threading.Event().wait()
        os.kill(os.getpid(), 9)


def run_all():
    found = stateful_map(Worker, [0, "hang", 2, "die", 4], n_jobs=2, item_timeout=1, batch_size=1, on_error="deferred")
    print([result.value if result.ok else type(result.exception).__name__ for result in found])
    arrays = (np.full(300_000, n, float) for n in range(4))
    print([float(array[-1]) for array in stateful_map(Worker, arrays, n_jobs=2)])
    with StatefulExecutor(Worker, 2) as executor, joblib.parallel_config(backend="stateful", n_jobs=2):
        print(executor.submit(abs, -1).result(), joblib.Parallel()(joblib.delayed(abs)(n) for n in [-2, 3]))


if __name__ == "__main__":
    if sys.argv[1] == "as nobody":
        import getpass
        import tempfile

        assert os.getuid() == 12345
        for look in (tempfile.gettempdir, lambda: getpass.getuser(), lambda: open("file", "w")):
            try:
                print(look())
            except (OSError, KeyError):
                pass
    run_all()
