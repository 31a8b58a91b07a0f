import logging
import os
import sys
import warnings

from joblib_stateful import stateful_map

log = logging.getLogger("app")


def work(item):
    log.info("item %s", item)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    list(stateful_map(work, ["a"], n_jobs=1))
    warnings.simplefilter("ignore", DeprecationWarning)  # threads, of which a fork has only one
    if (pid := os.fork()) == 0:
        list(stateful_map(work, ["in the fork"], n_jobs=1))
    else:
        os.waitpid(pid, 0)
        list(stateful_map(work, ["b"], n_jobs=1))
    sys.stdout.flush()
