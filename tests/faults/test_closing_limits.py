"""A close() that hangs, or a worker that never takes its last message, holds nothing up for ever."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from joblib import Parallel, delayed, parallel_config

import joblib_stateful
from contract import on
from joblib_stateful import StatefulExecutor, call_worker, stateful_map
from joblib_stateful._executor import _timeouts
from programs import program_text

if TYPE_CHECKING:
    from conftest import RunProgram

pytestmark = pytest.mark.cluster

_PATIENCE = 60.0
LOCAL = ("loky", "threads")
ALL = (*LOCAL, "dask", "ray")


class Hanging:
    """Its close() never returns, in its first life; it starts a process that must not outlive it."""

    def __init__(self, folder: Path, how: str = "close", *, always: bool = True) -> None:
        self.folder, self.how = folder, how
        (folder / f"built-{os.getpid()}-{time.monotonic_ns()}").touch()
        self.hangs = always or len(list(folder.glob("built-*"))) == 1

    def __call__(self, item: Any) -> Any:
        return item, os.getpid()

    def close(self) -> None:
        if self.hangs and self.how == "close":
            (self.folder / f"hangs-{os.getpid()}").touch()
            while not _is_released(self.folder):
                time.sleep(0.01)
        else:
            (self.folder / f"closed-{os.getpid()}").touch()


def _is_released(folder: Path) -> bool:
    return (folder / "released").exists()


class Other(Hanging):
    """Another worker, which displaces it."""


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(_timeouts, "CLOSE_SECONDS", 1.0)
    yield
    (tmp_path / "released").touch()


def in_time(function: Callable[[], Any]) -> None:
    """Call what must return; by a thread, so that the test ends if it doesn't."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    assert not thread.is_alive()


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "joblib_stateful"]


def is_gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def check_told(caplog: pytest.LogCaptureFixture, engine: Any, pid: int, what: str = "close()") -> None:
    (told,) = warnings_in(caplog)
    assert "in slot 0" in told
    assert f"(pid {pid})" in told
    assert what in told
    assert ("given up" if engine == "threads" else "killed with all that it had started") in told
    deadline = time.monotonic() + 20  # Dask kills in the background
    while engine != "threads" and not is_gone(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@on(*ALL)
def test_shutdown_does_not_wait_for_a_close_that_hangs(
    engine: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    executor = StatefulExecutor(Hanging, 1, shared_kwargs={"folder": tmp_path}, engine=engine)
    _, pid = executor.submit(call_worker, 1).result()
    in_time(executor.shutdown)
    check_told(caplog, engine, pid)


@on(*LOCAL)
def test_the_end_of_a_with_block_does_not_wait_for_a_close_that_hangs(
    engine: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def use() -> None:
        with StatefulExecutor(Hanging, 1, shared_kwargs={"folder": tmp_path}, engine=engine) as executor:
            found.extend(stateful_map(executor, range(3)))

    found: list[Any] = []
    in_time(use)
    assert [item for item, _ in found] == [0, 1, 2]
    check_told(caplog, engine, found[0][1])


@on(*ALL)
def test_recycling_goes_on_after_a_close_that_hangs(
    engine: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kwargs = {"folder": tmp_path, "always": False}
    with StatefulExecutor(Hanging, 1, shared_kwargs=kwargs, engine=engine, max_tasks_per_worker=2) as executor:
        found = [executor.submit(call_worker, item).result(_PATIENCE) for item in range(4)]
    assert [item for item, _ in found] == [0, 1, 2, 3]
    check_told(caplog, engine, found[0][1])


@on(*LOCAL)
def test_idle_workers_whose_close_hangs_are_let_go(
    engine: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kwargs = {"folder": tmp_path, "always": False}
    with StatefulExecutor(Hanging, 1, shared_kwargs=kwargs, engine=engine, idle_timeout=0.01) as executor:
        _, pid = executor.submit(call_worker, 1).result(_PATIENCE)
        wait_for(lambda: list(tmp_path.glob("hangs-*")))
        assert executor.submit(call_worker, 2).result(_PATIENCE)[0] == 2
    check_told(caplog, engine, pid)


@on(*LOCAL)
def test_another_worker_gets_the_place_of_one_whose_close_hangs(
    engine: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ((_, pid),) = stateful_map(Hanging, [1], n_jobs=1, shared_kwargs={"folder": tmp_path}, engine=engine)
    found: list[Any] = []
    kwargs = {"folder": tmp_path, "how": ""}
    in_time(lambda: found.extend(stateful_map(Other, [2], n_jobs=1, shared_kwargs=kwargs, engine=engine)))
    assert [item for item, _ in found] == [2]
    check_told(caplog, engine, pid)


@on(*LOCAL)
def test_shared_executors_whose_closes_hang_are_released(
    engine: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with parallel_config(backend="stateful", worker=Hanging, shared_kwargs={"folder": tmp_path}, engine=engine):
        found = Parallel(n_jobs=2)(delayed(call_worker)(item) for item in range(4))
    assert [item for item, _ in found] == [0, 1, 2, 3]
    in_time(joblib_stateful.shutdown)
    told = warnings_in(caplog)
    assert 1 <= len(told) <= 2
    assert all("close()" in text for text in told)


# --- workers that are stopped ---------------------------------------------------------------------------


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def test_a_stopped_worker_is_killed_at_shutdown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    executor = StatefulExecutor(Hanging, 1, shared_kwargs={"folder": tmp_path, "how": ""})
    _, pid = executor.submit(call_worker, 1).result()
    with stopped(pid):
        in_time(executor.shutdown)
    check_told(caplog, "loky", pid, "kill -STOP")


def test_a_worker_that_is_stopped_in_its_close_is_killed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    executor = StatefulExecutor(Hanging, 1, shared_kwargs={"folder": tmp_path})
    _, pid = executor.submit(call_worker, 1).result()
    executor.shutdown(wait=False)
    wait_for(lambda: list(tmp_path.glob("hangs-*")))
    with stopped(pid):
        in_time(executor.shutdown)
    check_told(caplog, "loky", pid)


def test_a_worker_stopped_while_it_is_sent_much_can_be_killed(tmp_path: Path) -> None:
    executor = StatefulExecutor(Hanging, 1, shared_kwargs={"folder": tmp_path, "how": ""}, item_timeout=600.0)
    _, pid = executor.submit(call_worker, 1).result()
    with stopped(pid):
        future = executor.submit(call_worker, bytes(10_000_000))
        in_time(lambda: executor.shutdown(kill_workers=True))
    assert future.exception(_PATIENCE) is not None
    assert is_gone(pid)


def test_what_a_worker_whose_close_hangs_has_started_goes_with_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Parent(Hanging):
        def __init__(self, folder: Path) -> None:
            import subprocess

            super().__init__(folder)
            self.child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])

        def __call__(self, item: Any) -> Any:
            return self.child.pid, os.getpid()

    executor = StatefulExecutor(Parent, 1, shared_kwargs={"folder": tmp_path})
    child, pid = executor.submit(call_worker, 1).result()
    in_time(executor.shutdown)
    check_told(caplog, "loky", pid)
    wait_for(lambda: is_gone(child))


def test_a_close_within_its_time_is_not_disturbed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "joblib_stateful")
    with StatefulExecutor(Hanging, 2, shared_kwargs={"folder": tmp_path, "how": ""}) as executor:
        executor.warm_up()
    assert warnings_in(caplog) == []
    assert len(list(tmp_path.glob("closed-*"))) == 2


@pytest.mark.parametrize("way", ["map", "submit"])
@pytest.mark.parametrize("name", LOCAL)
def test_the_end_of_a_program_tells_of_a_close_that_hangs(name: str, way: str, run_program: RunProgram) -> None:
    done = run_program(program_text("faults/never_finishes_a_close"), name, way, limit=_PATIENCE)
    assert done.code == 0, done.err
    assert done.out.strip() == ("[0, 1, 2]" if way == "map" else "7")
    assert "The worker in slot 0" in done.err
    assert "close() of its object still ran" in done.err


def wait_for(predicate: Callable[[], Any]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not predicate():
        assert time.monotonic() < deadline
        time.sleep(0.005)
