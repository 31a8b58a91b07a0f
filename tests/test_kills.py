"""Kills at the moments that are hard to hit by chance: each is reached with gates, never by sleeping."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from joblib_stateful import StatefulExecutor, call_worker, errors, get_worker_info
from test_map_tools import Scene, new_scene


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return new_scene(tmp_path)


class Worker:
    """Notes each construction, and runs what it is sent."""

    def __init__(self, scene: Scene) -> None:
        scene.log("built").note(f"{get_worker_info().index} {os.getpid()}")

    def __call__(self, item: Any) -> Any:
        return item() if callable(item) else item


# --- children of a worker that outlive it ---------------------------------------------------------------


def by_fork(scene: Scene) -> None:
    if (child := os.fork()) == 0:
        signal.pause()
    scene.log("child").note(child)


def by_multiprocessing(scene: Scene) -> None:
    child = multiprocessing.get_context("fork").Process(target=signal.pause)
    child.start()
    scene.log("child").note(child.pid)


def by_c_code(scene: Scene) -> None:
    if (child := ctypes.PyDLL(None).fork()) == 0:
        signal.pause()
    scene.log("child").note(child)


def by_a_shell(scene: Scene) -> None:
    os.system(f"sleep 600 & echo $! >> {scene.log('child').path}")


def by_subprocess(scene: Scene) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], close_fds=False)
    scene.log("child").note(child.pid)


@pytest.fixture
def grandchild(scene: Scene) -> Iterator[Callable[[], psutil.Process]]:
    found: list[psutil.Process] = []

    def find() -> psutil.Process:
        scene.log("child").wait_for(1)
        found.append(psutil.Process(int(scene.log("child").lines[0])))
        return found[0]

    yield find
    for process in found:
        process.kill()
        psutil.wait_procs([process])


WAYS = [by_fork, by_multiprocessing, by_c_code, by_a_shell, by_subprocess]
every_way = pytest.mark.parametrize("start", WAYS, ids=[way.__name__ for way in WAYS])


@every_way
def test_a_death_is_noticed_although_a_child_lives_on(
    start: Callable[[Scene], None], scene: Scene, grandchild: Callable[[], psutil.Process]
) -> None:
    def start_child_and_hang() -> None:
        start(scene)
        scene.gate("never").wait()

    with StatefulExecutor(Worker, 1, shared_kwargs={"scene": scene}) as executor:
        future = executor.submit(call_worker, start_child_and_hang)
        child = grandchild()
        (info,) = executor.workers()
        assert info.pid is not None
        started = time.monotonic()
        os.kill(info.pid, signal.SIGKILL)
        error = future.exception(timeout=30)
        assert time.monotonic() - started < 1
        assert isinstance(error, errors.WorkerCrashedError)
        assert (error.pid, error.exitcode) == (info.pid, -signal.SIGKILL)
        assert child.is_running()
        assert executor.submit(call_worker, "on").result(timeout=30) == "on"
