import atexit
import logging
import sys

from joblib_stateful import stateful_map

log = logging.getLogger("app")


class Worker:
    def __init__(self):
        atexit.register(log.info, "at exit")

    def __call__(self, item):
        log.info("item %d", item)

    def close(self):
        log.info("closed")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(slot)d %(name)s %(message)s", stream=sys.stdout)
    list(stateful_map(Worker, range(2), n_jobs=1))
