import importlib
import os
import sys
import warnings

importlib.import_module(sys.argv[1])
from joblib_stateful import errors, stateful_map

warnings.simplefilter("ignore")


def plus_one(item):
    return item + 1


if __name__ == "__main__":
    child, found, is_child = None, [], False
    try:
        with stateful_map(plus_one, range(200), n_jobs=2, batch_size=1, buffer=100) as results:
            for result in results:
                found.append(result)
                if result == 50:
                    child = os.fork()
                    is_child = child == 0
    except errors.ShutdownError as error:
        assert is_child and "before os.fork()" in str(error)
        sys.exit(7)
    assert not is_child
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), found == list(range(1, 201)))
