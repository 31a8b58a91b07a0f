import multiprocessing
import os
import time
import warnings

from joblib_stateful import StatefulExecutor, stateful_map

warnings.simplefilter("ignore")  # forking with threads is what is tested


class Worker:
    def __call__(self, item):
        return os.getpid()


def child():
    pass


if __name__ == "__main__":
    with StatefulExecutor(Worker, 2) as executor:
        executor.warm_up()
        before = sorted(info.pid for info in executor.workers())
        list(stateful_map(Worker, range(4), n_jobs=2))  # a shared one, idle
        hung = executor.submit(time.sleep, 2)
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join(20)
        assert hung.result() is None
        assert process.exitcode == 0, process.exitcode
        assert sorted(info.pid for info in executor.workers()) == before
    print("fine")
