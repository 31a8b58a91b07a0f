import os

from _worker_that_takes_notes import SLOTS, Worker, builds, once_each
from joblib_stateful import errors, stateful_map


class Dies(Worker):
    def __call__(self, item):
        os._exit(5)


if __name__ == "__main__":
    results = list(stateful_map(Dies, range(12), retries=1, max_restarts=0, on_error="deferred", **SLOTS))
    failed = once_each(results, 12)
    assert all(type(error) is errors.WorkerCrashedError for error in failed.values())
    assert [error.index for _, error in sorted(failed.items())] == list(range(12))
    pids = [pid for pids in builds().values() for pid in pids]
    assert len(pids) == 24 and {error.pid for error in failed.values()} < set(pids)
    print("ok")
