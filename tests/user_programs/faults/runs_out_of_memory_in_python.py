import resource

from _worker_that_takes_notes import SLOTS, Worker, builds, once_each
from joblib_stateful import errors, stateful_map


class Hungry(Worker):
    def __call__(self, item):
        if item == 3:
            resource.setrlimit(resource.RLIMIT_AS, (2**31, resource.RLIM_INFINITY))
            try:
                bytearray(2**33)
            finally:
                resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        return item


if __name__ == "__main__":
    failed = once_each(list(stateful_map(Hungry, range(6), on_error="deferred", **SLOTS)), 6)
    assert [type(error) for error in failed.values()] == [MemoryError]
    assert max(map(len, builds().values())) == 1
    assert "out of memory" in str(errors.WorkerCrashedError(3, 0, 1, -9)).replace("-", " ")
    print("ok")
