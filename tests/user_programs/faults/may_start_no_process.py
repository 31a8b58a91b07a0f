import _posixsubprocess
import errno

import joblib

from joblib_stateful import errors, stateful_map


def refuse(*args):  # as the system does at the limit of processes, which does not hold for root
    raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")


_posixsubprocess.fork_exec = refuse
if __name__ == "__main__":
    with joblib.parallel_config(backend="stateful", n_jobs=1):
        print(joblib.Parallel()(joblib.delayed(abs)(number) for number in [-1, 2]))
    try:
        list(stateful_map(abs, [1], n_jobs=2))
    except errors.WorkerInitError as error:
        print("its process could not be started" in str(error), "temporarily unavailable" in str(error))
