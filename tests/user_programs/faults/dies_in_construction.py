import itertools
import os
import sys

from _worker_that_takes_notes import SLOTS, Worker, builds
from joblib_stateful import errors, stateful_map


class Dies(Worker):
    def __init__(self, slot):
        super().__init__(slot)
        if slot == 0:
            os._exit(5)

    def __call__(self, item):
        return item


if __name__ == "__main__":
    try:
        for _ in stateful_map(Dies, itertools.count(), max_restarts=2, on_error=sys.argv[1], **SLOTS):
            pass
    except errors.WorkerInitError as error:
        assert (error.slot, error.pid, error.kwargs_keys) == (0, builds()[0][-1], ("slot",)), error
        assert "died 3 times in a row" in str(error) and "exit code 5" in str(error), error
    assert len(builds()[0]) == 3 and len(builds()[1]) <= 1  # the other may still have been starting
    print("ok")
