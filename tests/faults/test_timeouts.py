"""Over `item_timeout`: whatever a call does, it is ended, it alone pays, and what it started goes with it."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from joblib_stateful import StatefulExecutor, call_worker, errors, get_worker_info, stateful_map
from joblib_stateful._process._timers import Clock
from needs import needs
from scenes import Log, Scene, new_scene

# Long against a slow machine's hiccups, short against a test's patience.
LIMIT = 1.0


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return new_scene(tmp_path)


def sleep() -> None:
    time.sleep(600)


def keep_the_gil() -> None:
    sys.setswitchinterval(1e6)  # no other thread of this process gets a turn
    while True:
        pass


def compute_in_c() -> None:
    pow(3, 10**8)  # one call of minutes that holds the GIL


def match_for_ever() -> None:
    re.match(r"(a+)+$", "a" * 64 + "b")  # holds the GIL, and looks for signals only


def ignore_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
    while True:
        time.sleep(600)


def block_signals() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    threading.Event().wait()


def catch_everything() -> None:
    while True:
        try:
            time.sleep(600)
        except BaseException:
            continue


WAYS = {
    function.__name__: function
    for function in (
        sleep,
        keep_the_gil,
        compute_in_c,
        match_for_ever,
        ignore_signals,
        block_signals,
        catch_everything,
    )
}


class Works:
    """Hangs in the way that an item names; gives back other items."""

    def __init__(self, built: Log) -> None:
        built.note(f"{get_worker_info().index} {os.getpid()}")

    def __call__(self, item: Any) -> Any:
        if item in WAYS:
            WAYS[item]()
        return item


@pytest.mark.parametrize("batch_size", [1, 4])
def test_whatever_a_call_does_it_is_ended_and_alone_pays(batch_size: int, scene: Scene) -> None:
    items = [item for number, way in enumerate(WAYS) for item in (number, way)]
    results = list(
        stateful_map(
            Works,
            items,
            n_jobs=2,
            shared_kwargs={"built": scene.log()},
            item_timeout=LIMIT,
            batch_size=batch_size,
            on_error="deferred",
        )
    )
    assert [result.index for result in results] == list(range(len(items)))
    pids = {int(pid): int(slot) for slot, pid in map(str.split, scene.log().lines)}
    for item, result in zip(items, results, strict=True):
        if item not in WAYS:
            assert result.value == item
            continue
        error = result.exception
        assert type(error) is errors.ItemTimeoutError, item
        assert isinstance(error, TimeoutError)
        assert (error.index, error.timeout, pids[error.pid or 0]) == (result.index, LIMIT, error.slot), item
    # A worker each for those that were ended, and no more than one for each slot besides.
    assert len(WAYS) <= len(pids) <= len(WAYS) + 2


def test_the_other_workers_keep_their_objects(scene: Scene) -> None:
    with StatefulExecutor(Works, 2, shared_kwargs={"built": scene.log()}, item_timeout=LIMIT) as executor:
        executor.warm_up()
        before = {info.index: info.pid for info in executor.workers()}
        error = executor.submit(call_worker, "keep_the_gil").exception(60)
        assert isinstance(error, errors.ItemTimeoutError)
        other = 1 - error.slot
        assert executor.workers()[other].pid == before[other]
        assert [executor.submit(call_worker, item).result(60) for item in range(4)] == list(range(4))
        assert executor.workers()[other].n_builds == 1


# --- what is not charged --------------------------------------------------------------------------------


class SlowToBuild:
    def __init__(self, seconds: float) -> None:
        time.sleep(seconds)

    def __call__(self, item: float) -> float:
        time.sleep(item)
        return item


def test_what_waits_in_the_queue_does_not_time_out() -> None:
    # One worker, and more behind it than the limit allows one item; in the executor's queue, and in a map's batches.
    with StatefulExecutor(SlowToBuild, 1, shared_kwargs={"seconds": 0.0}, item_timeout=LIMIT) as executor:
        futures = [executor.submit(call_worker, 0.4 * LIMIT) for _ in range(4)]
        assert list(stateful_map(executor, [0.4 * LIMIT] * 4, batch_size=4)) == [0.4 * LIMIT] * 4
        assert [future.result(60) for future in futures] == [0.4 * LIMIT] * 4


def test_construction_is_not_charged_to_the_item_that_brings_it_about() -> None:
    # Built lazily for the first item, and again after the first one was ended.
    kwargs = {"seconds": 2 * LIMIT}
    results = list(
        stateful_map(
            SlowToBuild, [0.0, 60.0, 0.1], n_jobs=1, shared_kwargs=kwargs, item_timeout=LIMIT, on_error="deferred"
        )
    )
    assert [result.value for result in results] == [0.0, None, 0.1]
    assert isinstance(results[1].exception, errors.ItemTimeoutError)


class SlowToLoad:
    """Takes its time until a worker has it, as a function does whose module imports much."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __setstate__(self, state: dict[str, float]) -> None:
        self.__dict__ = state
        time.sleep(self.seconds)

    def __call__(self, item: float) -> float:
        time.sleep(item)
        return item


def test_loading_the_function_is_not_charged_to_the_first_item() -> None:
    # With the first message, and with the first one of the next worker.
    results = list(
        stateful_map(SlowToLoad(2 * LIMIT), [0.0, 60.0, 0.1], n_jobs=1, item_timeout=LIMIT, on_error="deferred")
    )
    assert [result.value for result in results] == [0.0, None, 0.1]
    assert isinstance(results[1].exception, errors.ItemTimeoutError)


# --- children -------------------------------------------------------------------------------------------


class Starts:
    """Starts what an item says, notes the process ids, and hangs."""

    def __init__(self, log: Log) -> None:
        self.log = log

    def __call__(self, item: str) -> None:
        if item == "subprocess":
            self.log.note(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid)
        elif item == "ignores SIGTERM":
            text = "import signal, sys, time; signal.signal(15, 1); print(1, flush=True); time.sleep(600)"
            child = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE)
            assert child.stdout is not None
            child.stdout.readline()
            self.log.note(child.pid)
        elif item == "grandchild":
            self.fork_twice()
        elif item == "own session":
            text = "import time; time.sleep(600)"
            self.log.note(subprocess.Popen([sys.executable, "-c", text], start_new_session=True).pid)
        elif item == "nested map":
            list(stateful_map(Starts, ["hang"] * 2, n_jobs=2, batch_size=1, shared_kwargs={"log": self.log}))
        elif item == "many":
            while True:  # until it is killed, perhaps between a fork and the note of it
                subprocess.Popen(["sleep", self.log.path.name.removeprefix("log-")])
        elif item == "hang":
            self.log.note(os.getpid())
        self.log.note("hangs")
        threading.Event().wait()

    def fork_twice(self) -> None:
        if os.fork() == 0:
            self.log.note(os.getpid())
            if os.fork() == 0:
                self.log.note(os.getpid())
            threading.Event().wait()
        self.log.wait_for(2)


N_STARTED = {"subprocess": 1, "ignores SIGTERM": 1, "grandchild": 2, "own session": 1, "nested map": 2}


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.NoSuchProcess:
        return []


def assert_gone(pids: list[int]) -> None:
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=10)
    left = [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    for process in left:
        process.kill()
    assert not left


@pytest.mark.parametrize(
    ("item", "with_psutil"),
    [
        *((item, True) for item in N_STARTED),
        *(pytest.param(item, False, marks=needs("proc")) for item in ("subprocess", "grandchild")),
    ],
)
def test_what_a_call_started_goes_with_it(
    item: str, *, with_psutil: bool, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not with_psutil:  # nor pgrep, as in slim images, where loky kills nothing
        monkeypatch.setattr("loky.backend.utils.psutil", None)
        monkeypatch.setenv("PATH", str(scene.folder))
    kwargs = {"log": scene.log()}
    limit = 8 * LIMIT if item == "nested map" else 2 * LIMIT  # what it starts must be there by then
    with StatefulExecutor(Starts, 1, shared_kwargs=kwargs, item_timeout=limit) as executor:
        assert isinstance(executor.submit(call_worker, item).exception(60), errors.ItemTimeoutError)
    pids = [int(line) for line in scene.log().lines if line != "hangs"]
    assert len(pids) == N_STARTED[item]
    assert_gone(pids)


def test_a_call_that_never_stops_starting_processes_is_ended_with_all_of_them(scene: Scene) -> None:
    seconds = str(600 + random.random())  # by which they are known
    with StatefulExecutor(Starts, 1, shared_kwargs={"log": scene.log(seconds)}, item_timeout=0.3) as executor:
        assert isinstance(executor.submit(call_worker, "many").exception(60), errors.ItemTimeoutError)
    assert_gone([process.pid for process in psutil.process_iter() if seconds in " ".join(cmdline(process))])


# --- the clock ------------------------------------------------------------------------------------------


@pytest.fixture
def clock() -> Iterator[Clock]:
    clock = Clock()
    yield clock
    for alarm in clock._alarms:
        alarm.function = None
    clock.wake()  # its thread ends


def ring(clock: Clock) -> bool:
    rang = threading.Event()
    clock.call_at(time.monotonic(), rang.set)
    return rang.wait(20)


def test_a_time_limit_beyond_what_a_platform_can_count_harms_no_other(clock: Clock) -> None:
    clock.call_at(time.monotonic() + 2 * threading.TIMEOUT_MAX, lambda: None)
    # Its thread may or may not wait for the far one in between.
    assert all(ring(clock) for _ in range(20))


def test_time_limits_are_kept_again_once_a_thread_can_be_had(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        missed = threading.Event()
        clock.call_at(time.monotonic(), missed.set)
    assert ring(clock)
    assert missed.wait(20)
