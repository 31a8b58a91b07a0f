import logging
import sys
import threading

logging.basicConfig(format="%(message)s")
from joblib_stateful import StatefulExecutor, call_worker, stateful_map
from joblib_stateful._executor import _exit

_exit._GRACE = 1.0


class Hanging:
    def __call__(self, item):
        return item

    def close(self):
        threading.Event().wait()


if __name__ == "__main__":
    engine = sys.argv[1]
    if sys.argv[2] == "map":
        print(list(stateful_map(Hanging, range(3), n_jobs=1, engine=engine)))
    else:
        executor = StatefulExecutor(Hanging, 1, engine=engine)
        executor.submit(call_worker, 7).add_done_callback(lambda future: print(future.result(), flush=True))
