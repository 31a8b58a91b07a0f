import sys

from joblib_stateful import StatefulExecutor
from joblib_stateful._process import _locks


class Watcher:
    def find_spec(self, name, path=None, target=None):
        if name == "joblib_stateful._public":
            print("free:", not _locks.is_held())


sys.meta_path.insert(0, Watcher())
with StatefulExecutor(n_jobs=1, engine="inline") as executor:
    print(executor.workers()[0].state)
