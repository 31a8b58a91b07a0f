import os
import signal
import threading

from _worker_that_takes_notes import SLOTS, Worker, builds, lines, note, once_each, wait_for
from joblib_stateful import stateful_map


class Slow(Worker):
    def __init__(self, slot):
        super().__init__(slot)
        if slot == 0 and len(builds()[0]) < 4:
            note("building", os.getpid())
            threading.Event().wait()

    def __call__(self, item):
        wait_for("built", 5)  # leave something for the other slot, however late it comes
        return item


def kill():
    for n in range(3):
        wait_for("building", n + 1)
        os.kill(int(lines("building")[n]), signal.SIGKILL)


if __name__ == "__main__":
    killer = threading.Thread(target=kill)
    killer.start()
    results = list(stateful_map(Slow, range(30), max_restarts=3, on_error="deferred", **SLOTS))
    killer.join()
    assert once_each(results, 30) == {}
    assert {slot: len(pids) for slot, pids in builds().items()} == {0: 4, 1: 1}
    print("ok")
