"""Kills at the moments that are hard to hit by chance: each is reached with gates, never by sleeping."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import multiprocessing
import os
import signal
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from joblib_stateful import StatefulExecutor, call_worker, errors, get_worker_info, stateful_map
from joblib_stateful._process import _system
from joblib_stateful.engines.loky import _line, _process_tree, _worker
from joblib_stateful.engines.loky._ending import wait_for_ends
from needs import needs
from scenes import Log, Scene, new_scene


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return new_scene(tmp_path)


class Worker:
    """Notes each construction and each end, and runs what it is sent."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.slot = scene, get_worker_info().index
        scene.log("built").note(f"{self.slot} {os.getpid()}")

    def __call__(self, item: Any) -> Any:
        return item() if callable(item) else item

    def close(self) -> None:
        self.scene.log("closed").note(f"{self.slot} {os.getpid()}")


def builds(scene: Scene) -> dict[int, list[int]]:
    """Return the pids of the workers that were built in each slot, in turn."""
    found: dict[int, list[int]] = {}
    for line in scene.log("built").lines:
        slot, pid = map(int, line.split())
        found.setdefault(slot, []).append(pid)
    return found


def kill(pid: int | None) -> None:
    """Kill a worker, and wait until it is dead; its parent may not have noticed yet."""
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    with contextlib.suppress(psutil.NoSuchProcess):
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.001)


def kill_the_first_in(log: Log) -> threading.Thread:
    """Kill the worker that notes its pid first, as soon as it does, from a thread of its own."""

    def wait_and_kill() -> None:
        log.wait_for(1)
        kill(int(log.lines[0].split()[-1]))

    killer = threading.Thread(target=wait_and_kill)
    killer.start()
    return killer


# --- one moment each ------------------------------------------------------------------------------------


class BuiltOnOrder(Worker):
    """The first construction in slot 0 waits for a gate that never opens."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        if self.slot == 0 and len(builds(scene)[0]) == 1:
            scene.log("building").note(os.getpid())
            scene.gate("never").wait()

    def __call__(self, item: int) -> int:
        self.scene.log("built").wait_for(3)  # leave something for the other slot, however late it comes
        return item


@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "unordered"])
def test_a_kill_during_construction_is_made_up_for(scene: Scene, *, ordered: bool) -> None:
    killer = kill_the_first_in(scene.log("building"))
    results = list(
        stateful_map(BuiltOnOrder, range(50), n_jobs=2, shared_kwargs={"scene": scene}, ordered=ordered, batch_size=1)
    )
    killer.join()
    assert sorted(results) == list(range(50))
    assert {slot: len(pids) for slot, pids in builds(scene).items()} == {0: 2, 1: 1}


def test_a_kill_while_idle_is_made_up_for(scene: Scene) -> None:
    with StatefulExecutor(Worker, 2, shared_kwargs={"scene": scene}) as executor:
        executor.warm_up()
        before = [info.pid for info in executor.workers()]
        kill(before[0])
        results = list(stateful_map(executor, range(50), batch_size=1, on_error="deferred", max_restarts=1))
        assert [result.value for result in results] == list(range(50))
        after = [info.pid for info in executor.workers()]
    # Whether slot 0 was wanted again depends on how fast the other was.
    assert after[1] == before[1]
    assert builds(scene)[1] == before[1:]
    assert len(builds(scene)[0]) <= 2


def test_a_death_while_idle_shows_and_is_made_up_for_by_warming_up(scene: Scene) -> None:
    with StatefulExecutor(Worker, 2, shared_kwargs={"scene": scene}) as executor:
        executor.warm_up()
        before = executor.workers()
        kill(before[0].pid)
        deadline = time.monotonic() + 30
        while executor.workers()[0].state == "idle":
            assert time.monotonic() < deadline
            time.sleep(0.001)
        (info, _) = executor.workers()
        assert (info.state, info.pid, info.n_restarts) == ("empty", None, 1)
        executor.warm_up()
        after = executor.workers()
    assert [info.n_builds for info in after] == [2, 1]
    assert after[0].pid not in (None, before[0].pid)
    assert after[1].pid == before[1].pid


def test_a_worker_that_is_gone_is_not_killed_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its number may be another process's by then."""
    with StatefulExecutor(Worker, 1, shared_kwargs={"scene": scene}) as executor:
        executor.warm_up()
        (info,) = executor.workers()
        worker: Any = executor.pool._driver.link(0).worker
        process = worker._process
        kill(info.pid)
        process.join(30)
        hit: list[Any] = []
        monkeypatch.setattr(_process_tree, "_signal", lambda *whom: hit.append(whom))
        executor.shutdown(kill_workers=True)
        assert hit == []


class ClosedOnOrder(Worker):
    """The first to be closed waits for a gate that never opens."""

    def close(self) -> None:
        super().close()
        if len(self.scene.log("closed").lines) == 1:
            self.scene.gate("never").wait()


def test_a_kill_during_close_holds_up_nothing(scene: Scene) -> None:
    executor = StatefulExecutor(ClosedOnOrder, 2, shared_kwargs={"scene": scene})
    executor.warm_up()
    assert list(stateful_map(executor, range(10))) == list(range(10))
    end = threading.Thread(target=executor.shutdown)
    end.start()
    scene.log("closed").wait_for(2)  # the other one is not held up by this one
    kill(int(scene.log("closed").lines[0].split()[1]))
    end.join(30)
    assert not end.is_alive()
    assert len(scene.log("built").lines) == len(scene.log("closed").lines) == 2


def test_during_close_between_two_items(scene: Scene) -> None:
    """A worker is recycled while the map goes on; it is killed in its ``close()``."""
    kwargs = {"scene": scene}
    with StatefulExecutor(ClosedOnOrder, 2, shared_kwargs=kwargs, max_tasks_per_worker=5) as executor:
        results = iter(stateful_map(executor, range(22), batch_size=1, on_error="deferred", max_restarts=0))
        found = [next(results)]
        killer = kill_the_first_in(scene.log("closed"))
        found += results
        killer.join()
    assert [result.value for result in found] == list(range(22))
    assert all(len(pids) == len(set(pids)) for pids in builds(scene).values())


def send_half(scene: Scene, value: Any) -> Any:
    """Return a value of which only half will be written: then this worker waits for its end."""

    def half(self: _line.Line, data: Any, fds: Any = ()) -> None:
        header = _line._HEADER.pack(_line._SIGN, len(data), 0, _line._check(len(data), 0))
        self._end.sendall(header + data[: len(data) // 2])
        scene.log("half").note(os.getpid())
        scene.gate("never").wait()

    _line.Line.send = half  # type: ignore[method-assign]  # where all bytes go through
    return value


def results_of_a_half_written_one(scene: Scene, *, retries: int = 0, before: Callable[[], Any] = int) -> Any:
    """Return results and executor's pids of 20 items of which the one at 10 is lost half way."""

    def once() -> Any:
        if scene.log("half").lines:
            return "second"
        before()
        return send_half(scene, bytes(50_000_000))

    with StatefulExecutor(Worker, 2, shared_kwargs={"scene": scene}) as executor:
        executor.warm_up()
        pids = [info.pid for info in executor.workers()]
        killer = kill_the_first_in(scene.log("half"))
        items = [*range(10), once, *range(11, 20)]
        results = list(stateful_map(executor, items, batch_size=1, on_error="deferred", retries=retries))
        killer.join()
    victim = int(scene.log("half").lines[0])
    slot = pids.index(victim)
    assert [result.index for result in results] == list(range(20))
    assert [result.value for result in results if result.index != 10] == [*range(10), *range(11, 20)]
    assert builds(scene)[1 - slot] == [pids[1 - slot]]
    assert len(builds(scene)[slot]) <= 2
    return results[10], slot, victim


def test_a_kill_while_a_result_is_half_written_costs_its_item(scene: Scene) -> None:
    result, slot, victim = results_of_a_half_written_one(scene)
    error = result.exception
    assert isinstance(error, errors.WorkerCrashedError)
    assert (error.index, error.slot, error.pid, error.exitcode) == (10, slot, victim, -signal.SIGKILL)


def test_an_item_whose_result_was_half_written_at_a_kill_is_tried_again(scene: Scene) -> None:
    result, _, _ = results_of_a_half_written_one(scene, retries=1)
    assert result.value == "second"


class Blocks:
    """Waits for its end in the middle of being pickled."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def __reduce__(self) -> Any:
        self.scene.log("packing").note(os.getpid())
        self.scene.gate("never").wait()


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_kill_while_a_result_is_packed_costs_its_item(batch_size: int, scene: Scene) -> None:
    """Each result is packed when it is there, so that the item is known to which it belongs."""

    def work(item: int) -> Any:
        scene.log("ran").note(item)
        return Blocks(scene) if item == 1 else item

    def kill_it() -> None:
        scene.log("packing").wait_for(1)
        kill(int(scene.log("packing").lines[0]))

    killer = threading.Thread(target=kill_it)
    killer.start()
    results = list(stateful_map(work, range(4), n_jobs=1, batch_size=batch_size, on_error="deferred"))
    killer.join()
    error = results[1].exception
    assert [result.value for result in results] == [0, None, 2, 3]
    assert isinstance(error, errors.WorkerCrashedError)
    assert (error.index, error.pid) == (1, int(scene.log("packing").lines[-1]))
    assert scene.log("ran").lines.count("1") == 1


@pytest.mark.parametrize("max_restarts", [0, 1])
def test_a_kill_while_a_large_item_is_half_sent_costs_the_item_nothing(max_restarts: int, scene: Scene) -> None:
    """The worker never began it, so it costs the item nothing: it goes to the slot's next worker."""
    with StatefulExecutor(Worker, 1, shared_kwargs={"scene": scene}) as executor:
        executor.warm_up()
        (info,) = executor.workers()
        assert info.pid is not None
        os.kill(info.pid, signal.SIGSTOP)
        item = os.urandom(1000) * 100_000
        found: list[Any] = []

        def consume() -> None:
            try:
                found.extend(stateful_map(executor, [item], max_restarts=max_restarts, on_error="deferred"))
            except errors.WorkerCrashedError as error:
                found.append(error)

        consumer = threading.Thread(target=consume)
        consumer.start()
        wait_for_bytes_on_the_way_to(executor)
        kill(info.pid)
        consumer.join(60)
        assert not consumer.is_alive()
    if max_restarts:
        assert found[0].value == item
        assert len(builds(scene)[0]) == 2
    else:
        assert isinstance(found[0], errors.WorkerCrashedError)
        assert (found[0].index, found[0].slot, found[0].pid, found[0].exitcode) == (None, 0, info.pid, -9)


def wait_for_bytes_on_the_way_to(executor: StatefulExecutor) -> None:
    """Wait until the line to slot 0 holds something that its worker, which is stopped, has not read."""
    worker: Any = executor.pool._driver.link(0).worker
    deadline = time.monotonic() + 30
    while not int.from_bytes(fcntl.ioctl(worker._line, termios.TIOCOUTQ, bytes(4)), sys.byteorder):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_the_end_waits_for_a_worker_that_was_killed_while_it_closed(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_noticed, go_on = threading.Event(), threading.Event()
    autopsy = _worker.LokyWorker._autopsy

    def wait(worker: _worker.LokyWorker, exitcode: int | None, message: Any) -> Any:
        is_noticed.set()
        go_on.wait()
        return autopsy(worker, exitcode, message)

    monkeypatch.setattr(_worker.LokyWorker, "_autopsy", wait)
    executor = StatefulExecutor(ClosedOnOrder, 1, shared_kwargs={"scene": scene})
    executor.warm_up()
    worker: Any = executor.pool._driver.link(0).worker
    process = worker._process
    closing = threading.Thread(target=executor.shutdown)
    closing.start()
    kill_the_first_in(scene.log("closed")).join()
    assert is_noticed.wait(30)
    process.join(30)
    ending = threading.Thread(target=wait_for_ends, args=(30,))
    ending.start()
    ending.join(0.1)
    assert ending.is_alive()
    go_on.set()
    ending.join(30)
    closing.join(30)
    assert not closing.is_alive()
    assert worker._process is None


def test_many_threads_may_ask_how_a_process_has_ended() -> None:
    """One of them reaps it, and to the others the system says that there is no such process."""
    for _ in range(20):
        with StatefulExecutor(n_jobs=1) as executor:
            executor.warm_up()
            worker: Any = executor.pool._driver.link(0).worker
            with ThreadPoolExecutor(8) as threads:
                found = [threads.submit(joined, worker._process) for _ in range(8)]
                kill(worker.pid)
            assert [future.result() for future in found] == [-9] * 8


def joined(process: Any) -> int | None:
    process.join(30)
    code: int | None = process.exitcode
    return code


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


WAYS = [by_fork, by_multiprocessing, by_c_code, by_a_shell]
# Where the system has no such thing as watching a process, the worker keeps its pipes from its children; C code that forks
# is asked nothing.
HOOKED = (by_fork, by_multiprocessing)
CASES = [
    *(pytest.param(way, True, marks=needs("pidfd")) for way in WAYS),
    *(pytest.param(way, False, marks=needs("fork")) for way in HOOKED),
    (by_a_shell, False),
]


@pytest.mark.parametrize(("start", "watched"), CASES)
def test_a_death_is_noticed_although_a_child_lives_on(
    *,
    start: Callable[[Scene], None],
    watched: bool,
    scene: Scene,
    grandchild: Callable[[], psutil.Process],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not watched:
        monkeypatch.setattr(_system, "HAS_PIDFD", False)

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


@pytest.mark.parametrize(
    "start", [pytest.param(by_fork, marks=needs("fork")), by_a_shell], ids=["by_fork", "by_a_shell"]
)
def test_half_a_result_is_not_waited_for_although_a_child_lives_on(
    start: Callable[[Scene], None], scene: Scene, grandchild: Callable[[], psutil.Process]
) -> None:
    result, slot, victim = results_of_a_half_written_one(scene, before=lambda: start(scene))
    assert grandchild().is_running()
    assert isinstance(result.exception, errors.WorkerCrashedError)
    assert (result.exception.slot, result.exception.pid) == (slot, victim)


def test_nested_workers_go_with_theirs(scene: Scene) -> None:
    def hang(item: int) -> None:
        scene.log("nested").note(os.getpid())
        scene.gate("never").wait()

    def nest() -> None:
        list(stateful_map(hang, range(2), n_jobs=2, batch_size=1))

    with StatefulExecutor(Worker, 1, shared_kwargs={"scene": scene}) as executor:
        future = executor.submit(call_worker, nest)
        scene.log("nested").wait_for(2)
        nested = [psutil.Process(int(pid)) for pid in scene.log("nested").lines]
        kill(executor.workers()[0].pid)
        assert isinstance(future.exception(timeout=30), errors.WorkerCrashedError)
        _, alive = psutil.wait_procs(nested, timeout=3)
        assert not alive


# --- processes that do not end when they should -----------------------------------------------------------


def by_a_thread(_: Scene) -> None:
    threading.Thread(target=threading.Event().wait).start()


class Kept(Worker):
    """Starts something for which its process waits at its end."""

    def __init__(self, scene: Scene, start: Callable[[Scene], None], *, fails: bool = False) -> None:
        super().__init__(scene)
        start(scene)
        if fails:
            raise ConnectionError("no such table")


@pytest.mark.parametrize("start", [by_a_thread, by_multiprocessing])
@pytest.mark.parametrize("end", ["recycled", "idle", "failed"])
def test_a_process_that_does_not_end_by_itself_is_killed(
    end: str,
    start: Callable[[Scene], None],
    scene: Scene,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(_worker, "_END_SECONDS", 0.2)
    executor = StatefulExecutor(
        Kept,
        1,
        shared_kwargs={"scene": scene, "start": start, "fails": end == "failed"},
        max_tasks_per_worker=1 if end == "recycled" else None,
        idle_timeout=0.01 if end == "idle" else None,
    )
    try:
        for n in range(2):
            error = executor.submit(call_worker, n).exception(timeout=30)
            assert error is None or (end == "failed" and isinstance(error, errors.WorkerInitError))
            if end == "idle":
                scene.log("closed").wait_for(n + 1)
        ending = threading.Thread(target=executor.shutdown)
        ending.start()
        ending.join(30)
        assert not ending.is_alive()
    finally:
        executor.shutdown(kill_workers=True)
    pids = builds(scene)[0]
    assert len(pids) == 2
    assert not any(map(psutil.pid_exists, pids))
    deadline = time.monotonic() + 10  # for a signal takes its time
    while not all(map(is_gone, map(int, scene.log("child").lines))):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    told = [record.getMessage() for record in caplog.records if record.name == "joblib_stateful"]
    assert [f"(pid {pid})" in text and "daemon=True" in text for pid, text in zip(pids, told, strict=True)] == [
        True
    ] * 2


def is_gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)  # a grandchild, which somebody else reaps
    except psutil.NoSuchProcess:
        return True


def test_a_process_that_takes_long_to_end_holds_up_no_other(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_worker, "_END_SECONDS", 600.0)
    slow = StatefulExecutor(Kept, 1, shared_kwargs={"scene": scene, "start": by_a_thread})
    slow.warm_up()
    slow.shutdown(wait=False)
    scene.log("closed").wait_for(1)
    quick = StatefulExecutor(n_jobs=1)
    quick.warm_up()
    ending = threading.Thread(target=quick.shutdown)
    ending.start()
    ending.join(30)
    is_held_up = ending.is_alive()
    slow.shutdown(kill_workers=True)
    assert not is_held_up
