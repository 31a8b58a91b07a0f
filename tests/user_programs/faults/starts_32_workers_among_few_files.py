import os
import resource
import sys

from joblib_stateful import StatefulExecutor, errors, stateful_map


class Worker:
    def __call__(self, item):
        return os.getpid()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]),) * 2)
    with StatefulExecutor(Worker, 32) as executor:
        try:
            executor.warm_up()
        except errors.WorkerInitError as error:
            print(error)
        else:
            print(len({info.pid for info in executor.workers()}), "workers")
    # Those that started have ended, and left room for fewer.
    print(len(list(stateful_map(Worker, range(20), n_jobs=2, batch_size=1))), "items")
