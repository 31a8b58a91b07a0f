import logging

from joblib_stateful import stateful_map

log = logging.getLogger("app")


def work(item):
    log.info("quiet %d", item)
    log.warning("loud %d", item)


if __name__ == "__main__":
    list(stateful_map(work, range(3), n_jobs=1))
