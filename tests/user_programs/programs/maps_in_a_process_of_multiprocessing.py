import multiprocessing
import sys
import threading

from joblib_stateful import stateful_map


class Worker:
    def __call__(self, item):
        if item == 2:
            threading.Event().wait()
        return item


def ask():
    results = stateful_map(Worker, range(3), n_jobs=2, batch_size=1)
    print(next(results), next(results), flush=True)
    if sys.argv[2] == "idle":
        results.close()
        print(*stateful_map(Worker, [3, 4], n_jobs=2), flush=True)


if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    process = multiprocessing.Process(target=ask)
    process.start()
    process.join(20)
    print("exit code", process.exitcode)
    process.kill()
