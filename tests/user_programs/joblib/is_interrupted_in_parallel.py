import os
import signal
import sys
import time

from joblib import Parallel, delayed, parallel_config

from joblib_stateful import get_worker


class Model:
    def __init__(self):
        pass

    def __call__(self, item):
        os.write(1, b"started\n")
        time.sleep(60)


def run(item):
    return get_worker()(item)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    with parallel_config(backend="stateful", worker=Model, n_jobs=2):
        try:
            results = Parallel(return_as=sys.argv[1], batch_size=1)(delayed(run)(n) for n in range(4))
            list(results)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
            raise
