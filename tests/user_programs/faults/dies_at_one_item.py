import ctypes
import os
import signal
import sys
import time

from _worker_that_takes_notes import SLOTS, Worker, builds, lines, note, once_each, wait_for
from joblib_stateful import errors, stateful_map

ways = {
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": lambda: ctypes.string_at(0),
    "os._exit": lambda: os._exit(7),
}


class Dies(Worker):
    def __call__(self, item):
        if item == 0:
            wait_for("built", 2)
        if item == 13:
            note("died", self.slot, os.getpid(), time.time())
            ways[sys.argv[1]]()
        if item > 20:
            wait_for("died", 1)
            if self.slot != int(lines("died")[0].split()[0]):
                wait_for("built", 3)  # leave something for the slot that died
        return item


if __name__ == "__main__":
    results = []
    for result in stateful_map(Dies, range(30), ordered=sys.argv[2] == "ordered", on_error="deferred", **SLOTS):
        results.append(result)
        if result.index == 13:
            noticed = time.time()
    (error,) = once_each(results, 30).values()
    slot, pid, died = lines("died")[0].split()
    assert type(error) is errors.WorkerCrashedError
    assert (error.index, error.slot, error.pid) == (13, int(slot), int(pid)), error
    assert error.exitcode == {"SIGKILL": -9, "segfault": -11, "os._exit": 7}[sys.argv[1]], error
    assert noticed - float(died) < 1 or sys.argv[2] == "ordered"
    assert all(result.value == result.index for result in results if result.ok)
    assert len(lines("died")) == 1
    assert {slot: len(pids) for slot, pids in builds().items()} == {error.slot: 2, 1 - error.slot: 1}
    print("ok")
