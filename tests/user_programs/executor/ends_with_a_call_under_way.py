import atexit
import time

from joblib_stateful import StatefulExecutor


def slow():
    time.sleep(0.5)
    print("finished", flush=True)


def submit_late():
    try:
        executor.submit(abs, 1)
    except RuntimeError as error:
        print(type(error).__name__, error, flush=True)


if __name__ == "__main__":
    atexit.register(submit_late)
    executor = StatefulExecutor(n_jobs=1)
    executor.submit(slow)
