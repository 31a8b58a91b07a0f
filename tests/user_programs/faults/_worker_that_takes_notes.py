import os
import time
from pathlib import Path

from joblib_stateful import get_worker_info


class Worker:
    def __init__(self, slot, **kwargs):
        info = get_worker_info()
        assert (info.index, os.environ["SLOT"]) == (slot, str(slot))
        for former in builds()[slot]:  # the slot's former processes are gone, and not even zombies
            try:
                os.kill(former, 0)
            except ProcessLookupError:
                continue
            raise AssertionError("the former process is still there")
        note("built", slot, os.getpid())
        self.slot = slot


def note(name, *words):
    with open(name, "a") as file:
        print(*words, file=file)


def lines(name):
    return Path(name).read_text().splitlines() if Path(name).exists() else []


def wait_for(name, count):
    deadline = time.monotonic() + 30
    while len(lines(name)) < count:
        assert time.monotonic() < deadline, name
        time.sleep(0.002)


def builds():
    built = {0: [], 1: []}
    for line in lines("built"):
        slot, pid = map(int, line.split())
        built[slot].append(pid)
    return built


def once_each(results, n):
    assert sorted(result.index for result in results) == list(range(n)), results
    return {result.index: result.exception for result in results if not result.ok}


SLOTS = {
    "worker_kwargs": [{"slot": 0}, {"slot": 1}],
    "worker_env": [{"SLOT": "0"}, {"SLOT": "1"}],
    "batch_size": 1,
}
