import sys
import threading
import time

from joblib_stateful import StatefulExecutor, stateful_map


class Slow:
    def __init__(self):
        threading.Event().wait()

    def __call__(self, item):
        return item


class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "joblib":
            sys.meta_path.remove(self)
            raise KeyboardInterrupt


sys.meta_path.insert(0, Finder())
executor = StatefulExecutor(Slow, n_jobs=2)
try:
    list(stateful_map(executor, range(4)))
except KeyboardInterrupt:
    deadline = time.monotonic() + 10
    while any(worker.state != "empty" for worker in executor.workers()):
        assert time.monotonic() < deadline, executor.workers()
        time.sleep(0.01)
    print("ended")
