import os
import queue
import sys
import types

from joblib_stateful import shutdown, stateful_map


def look(_):
    import queue
    import types

    return queue.Queue, types.SimpleNamespace, os.environ.get("PYTHONSAFEPATH")


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    for _ in range(2):
        found = list(stateful_map(look, range(2), n_jobs=2))
        assert found == [(queue.Queue, types.SimpleNamespace, None)] * 2, found
        shutdown()
        sys.path.insert(0, os.getcwd())  # all of its own are loaded by now
