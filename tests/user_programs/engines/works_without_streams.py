import os
import sys

from joblib_stateful import stateful_map


def look(item):
    import queue

    return item, queue.Queue.__name__, os.environ.get("PYTHONSAFEPATH")


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    sys.warnoptions[:] = []  # though the flag has put one there
    out, sys.stdin, sys.stdout, sys.stderr = sys.stdout, None, None, None
    print(*stateful_map(look, range(2), n_jobs=2), file=out)
