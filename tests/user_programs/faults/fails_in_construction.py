import itertools
import sys
import threading

from _worker_that_takes_notes import SLOTS, Worker, builds, wait_for
from joblib_stateful import StatefulExecutor, errors, stateful_map


class Fails(Worker):
    def __init__(self, slot, model="m"):
        super().__init__(slot)
        if slot == 0 and len(builds()[0]) == 1:
            wait_for("built", 2)
            if sys.argv[1] == "raises":
                raise OSError(12, "no memory on this GPU")
            threading.Event().wait()

    def __call__(self, item):
        return item


if __name__ == "__main__":
    with StatefulExecutor(
        Fails,
        worker_env=SLOTS["worker_env"],
        worker_kwargs=SLOTS["worker_kwargs"],
        shared_kwargs={"model": "m"},
        init_timeout=60 if sys.argv[1] == "raises" else 3,
    ) as executor:
        try:
            for _ in stateful_map(executor, itertools.count(), batch_size=1, on_error=sys.argv[2]):
                pass
        except errors.WorkerInitError as error:
            assert (error.slot, error.pid, set(error.kwargs_keys)) == (0, builds()[0][0], {"slot", "model"})
            if sys.argv[1] == "raises":
                assert error.__cause__.errno == 12 and "no memory on this GPU" in str(error), error
            else:
                assert "init_timeout=3" in str(error), error
        wait_for("built", 2)  # the other may still have been starting
        assert {slot: len(pids) for slot, pids in builds().items()} == {0: 1, 1: 1}
        executor.warm_up()  # the next one may try again
        assert list(stateful_map(executor, range(10))) == list(range(10))
    assert {slot: len(pids) for slot, pids in builds().items()} == {0: 2, 1: 1}
    print("ok")
