import itertools
import os
import sys

from _worker_that_takes_notes import SLOTS, Worker, builds, lines, note, once_each
from joblib_stateful import errors, stateful_map


class Dies(Worker):
    def __call__(self, item):
        if item == 4:
            note("died", self.slot, os.getpid())
            os._exit(5)
        return item


if __name__ == "__main__":
    retries = int(sys.argv[1])
    results = list(stateful_map(Dies, range(12), retries=retries, max_restarts=0, on_error="deferred", **SLOTS))
    (error,) = once_each(results, 12).values()
    attempts = [tuple(map(int, line.split())) for line in lines("died")]
    assert len(attempts) == 1 + retries
    assert type(error) is errors.WorkerCrashedError
    assert (error.index, error.slot, error.pid, error.exitcode) == (4, *attempts[-1], 5)
    slots = [slot for slot, _ in attempts]
    assert all(one != other for one, other in itertools.pairwise(slots))
    for slot, pids in builds().items():
        assert len(pids) <= 1 + slots.count(slot)
    print("ok")
