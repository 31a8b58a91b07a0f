import os
import sys
import warnings

from joblib_stateful import stateful_map

warnings.simplefilter("ignore")  # forking with threads is what is tested


class Worker:
    def __call__(self, item):
        return os.getpid()


def pids():
    return set(stateful_map(Worker, range(8), n_jobs=2, batch_size=1))


if __name__ == "__main__":
    before = pids()
    child = os.fork()
    if child == 0:
        mine = pids()
        assert mine and not mine & {*before, os.getpid()}, (mine, before)
        sys.exit(3)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 3
    assert pids() & before, "the parent's workers are gone"
    print("fine")
