import os
import sys
import warnings

from joblib_stateful import stateful_map

warnings.simplefilter("ignore")

if __name__ == "__main__":
    results = stateful_map(abs, range(4), n_jobs=2, engine=sys.argv[1])
    child = os.fork()
    found = list(results)
    if child == 0:
        sys.exit(7 if found == [0, 1, 2, 3] else 1)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), found)
