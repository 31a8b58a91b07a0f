"""Nothing grows with the number of maps, executors or workers; an object may."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from joblib_stateful import StatefulExecutor, call_worker, stateful_map
from joblib_stateful._executor import _exit
from scenes import Log, new_scene

GROWTH = Path(__file__).parents[1] / "stress" / "growth.py"


def test_maps_and_executors_leave_nothing_behind() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(GROWTH), "--maps", "100", "--executors", "10"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing grew" in done.stdout


def n_hooks() -> int:
    hooks = getattr(threading, "_threading_atexits", [])
    return sum(getattr(hook, "func", None) is _exit._at_exit for hook in hooks)


@pytest.mark.parametrize("engine", ["loky", "threads"])
def test_the_hook_at_exit_is_there_once_however_many_workers_start(engine: str) -> None:
    for _ in range(3):
        with StatefulExecutor(n_jobs=2, engine=engine) as executor:
            executor.warm_up()
    assert n_hooks() == 1


def opened() -> set[str]:
    """Return what this process holds open, and its semaphores."""
    found = set()
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one that lists the folder
            found.add(f"{fd.name} {fd.readlink()}")
    return found | {path.name for path in Path("/dev/shm").glob(f"*-{os.getpid()}-*")}


@pytest.mark.parametrize("end", ["shutdown", "kill", "idle", "crash"])
def test_a_worker_that_has_ended_holds_nothing_open(end: str) -> None:
    before = opened()
    executor = StatefulExecutor(n_jobs=2, idle_timeout=0.2 if end == "idle" else None)
    executor.warm_up()
    if end == "crash":
        assert executor.submit(os._exit, 3).exception(60) is not None
    if end != "idle":
        executor.shutdown(kill_workers=end == "kill")
    deadline = time.monotonic() + 20
    while left := opened() - before:  # the executor is still there
        assert time.monotonic() < deadline, left
        gc.collect()
        time.sleep(0.01)  # loky's threads end in their own time
    executor.shutdown()


# --- recycling ------------------------------------------------------------------------------------------


class Bulky:
    """Notes its life, and returns more than a pipe holds."""

    def __init__(self, log: Log) -> None:
        self.log, self.pid = log, os.getpid()
        log.note(f"built {self.pid}")

    def __call__(self, item: int) -> tuple[int, int, bytes]:
        self.log.note(f"ran {self.pid}")
        return item, self.pid, bytes([item % 256]) * 300_000

    def close(self) -> None:
        self.log.note(f"closed {self.pid}")


@pytest.mark.parametrize(("batch_size", "ordered"), [(1, True), (10, True), (10, False), ("auto", False)], ids=str)
def test_recycling_between_items_loses_nothing(batch_size: int, *, ordered: bool, tmp_path: Path) -> None:
    log = new_scene(tmp_path).log()
    with StatefulExecutor(Bulky, 2, shared_kwargs={"log": log}, max_tasks_per_worker=4) as executor:
        options = {"ordered": ordered, "batch_size": batch_size}
        results = list(stateful_map(executor, range(20), **options))  # type: ignore[call-overload]  # in a dict
        infos = executor.workers()
        assert [info.n_restarts for info in infos] == [0, 0]  # it was closed, not found dead
        assert sum(info.n_done for info in infos) == 20
    assert (list if ordered else sorted)(item for item, _, _ in results) == list(range(20))
    assert all(ballast == bytes([item % 256]) * 300_000 for item, _, ballast in results)
    lives = {line.split()[1] for line in log.lines}
    assert len(lives) >= 5
    for pid in lives:
        own = [what for what, whose in map(str.split, log.lines) if whose == pid]
        assert own[0] == "built"
        assert own[-1] == "closed"
        assert set(own[1:-1]) <= {"ran"}  # the last one may have come too late for an item
        assert len(own) <= 2 + 4  # in the middle of a batch as well


def test_submitted_calls_outlive_the_recycling_of_their_worker(tmp_path: Path) -> None:
    log = new_scene(tmp_path).log()
    with StatefulExecutor(Bulky, 1, shared_kwargs={"log": log}, max_tasks_per_worker=1) as executor:
        futures = [executor.submit(call_worker, item) for item in range(5)]
        results = [future.result(60) for future in futures]
    assert [item for item, _, _ in results] == list(range(5))
    assert len({pid for _, pid, _ in results}) == 5
    assert [line.split()[0] for line in log.lines] == ["built", "ran", "closed"] * 5
