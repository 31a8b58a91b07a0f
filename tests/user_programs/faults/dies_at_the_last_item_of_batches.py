import os

from _worker_that_takes_notes import SLOTS, Worker, lines, note, once_each
from joblib_stateful import stateful_map


class Dies(Worker):
    def __call__(self, item):
        if item % 3 == 2 and str(item) not in lines("died"):
            note("died", item)
            os._exit(5)
        return item


if __name__ == "__main__":
    results = list(
        stateful_map(Dies, range(30), max_restarts=0, retries=1, on_error="deferred", **{**SLOTS, "batch_size": 3})
    )
    assert once_each(results, 30) == {}
    print("ok")
