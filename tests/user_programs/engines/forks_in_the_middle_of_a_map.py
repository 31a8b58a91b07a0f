import os
import warnings

from joblib_stateful import stateful_map

warnings.simplefilter("ignore")

if __name__ == "__main__":
    children, found = [], []
    for result in stateful_map(abs, range(2000), n_jobs=2, batch_size=1):
        found.append(result)
        if result % 400 == 399:
            if not (pid := os.fork()):
                here = list(stateful_map(abs, range(200), n_jobs=1, batch_size=1))
                os._exit(0 if here == list(range(200)) else 1)
            children.append(pid)
    assert found == list(range(2000))
    print(*[os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
