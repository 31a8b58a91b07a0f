"""When a worker dies: the item that ran pays, everybody else goes on with the object they have."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import threading
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from joblib_stateful import StatefulExecutor, TaskResult, call_worker, errors, get_worker_info, stateful_map
from programs import program_text

if TYPE_CHECKING:
    from conftest import BuildLog


def segfault() -> None:
    ctypes.string_at(0)


def abort() -> None:
    os.abort()


def leave() -> None:
    os._exit(7)


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def terminated() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


class Fragile:
    """Dies of some items."""

    def __init__(self, log: BuildLog | None = None, deadly: tuple[int, ...] = (), way: Any = killed) -> None:
        if log is not None:
            log.note(get_worker_info().index)
        self.deadly, self.way = deadly, way

    def __call__(self, item: int) -> int:
        if item in self.deadly:
            self.way()
        return item


def split(results: list[TaskResult[int]]) -> tuple[list[int], dict[int, BaseException]]:
    """Return the indices that went well, and the errors of the others; each index once, none missing."""
    assert [result.index for result in results] == list(range(len(results)))
    return [r.index for r in results if r.ok], {r.index: r.exception for r in results if r.exception is not None}


@pytest.mark.parametrize(
    ("way", "exitcode", "batch_size"),
    [
        *((killed, -9, batch_size) for batch_size in (1, 5, "auto")),
        (segfault, -11, 1),
        (abort, -6, 5),
        *((leave, 7, batch_size) for batch_size in (5, "auto")),
        (terminated, -15, "auto"),
    ],
)
def test_a_death_costs_one_item(way: Any, exitcode: int, batch_size: Any, built: BuildLog) -> None:
    kwargs = {"log": built, "deadly": (23,), "way": way}
    results = list(
        stateful_map(Fragile, range(60), n_jobs=2, shared_kwargs=kwargs, batch_size=batch_size, on_error="deferred")
    )
    good, bad = split(results)
    assert good == [item for item in range(60) if item != 23]
    error = bad[23]
    assert isinstance(error, errors.WorkerCrashedError)
    pids = {int(line.split()[0]): int(line.split()[1]) for line in built.lines}
    assert (error.index, error.exitcode) == (23, exitcode)
    assert pids[error.pid or 0] == error.slot
    # Only the slot that died was built again.
    n_built = Counter(pids.values())
    assert n_built[error.slot] in (1, 2)
    assert n_built[1 - error.slot] in (0, 1)
    if exitcode < 0:
        assert signal.Signals(-exitcode).name in str(error)


def test_a_death_is_raised_within_a_second(built: BuildLog) -> None:
    with StatefulExecutor(Fragile, 1, shared_kwargs={"deadly": (1,)}) as executor:
        executor.warm_up()
        started = time.monotonic()
        error = executor.submit(call_worker, 1).exception(timeout=30)
        assert isinstance(error, errors.WorkerCrashedError)
        assert time.monotonic() - started < 1
        assert executor.submit(call_worker, 2).result(timeout=30) == 2


def test_an_item_that_kills_every_worker_is_tried_as_often_as_was_asked(tmp_path: Path) -> None:
    attempts = tmp_path / "attempts"

    def note_and_die() -> None:
        with attempts.open("a") as file:
            file.write(f"{get_worker_info().index}\n")
        killed()

    results = list(
        stateful_map(
            Fragile,
            range(10),
            n_jobs=2,
            shared_kwargs={"deadly": (4,), "way": note_and_die},
            retries=6,
            max_restarts=1,  # killer items alone never exhaust it
            on_error="deferred",
        )
    )
    good, bad = split(results)
    assert good == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert isinstance(bad[4], errors.WorkerCrashedError)
    slots = attempts.read_text().split()
    assert len(slots) == 7
    # Each retry ran on another slot than the attempt before.
    assert all(one != other for one, other in pairwise(slots))


def test_retries_make_up_for_a_death_that_happens_once(tmp_path: Path) -> None:
    flag = tmp_path / "died"

    def die_once() -> None:
        if not flag.exists():
            flag.touch()
            killed()

    kwargs = {"deadly": (3,), "way": die_once}
    assert list(stateful_map(Fragile, range(8), n_jobs=2, shared_kwargs=kwargs, retries=1)) == list(range(8))


class DiesInConstruction:
    def __init__(self, flag: Path, times: int) -> None:
        with flag.open("a") as file:
            file.write("x")
        if flag.stat().st_size <= times:
            killed()

    def __call__(self, item: int) -> int:
        return item


def test_a_death_during_construction_is_made_up_for(tmp_path: Path) -> None:
    kwargs = {"flag": tmp_path / "flag", "times": 2}
    assert list(stateful_map(DiesInConstruction, [1, 2], n_jobs=1, shared_kwargs=kwargs)) == [1, 2]


def test_a_slot_that_always_dies_ends_the_map(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    results = stateful_map(
        DiesInConstruction,
        range(5),
        n_jobs=1,
        shared_kwargs={"flag": flag, "times": 1000},
        max_restarts=2,
        on_error="deferred",
    )
    with pytest.raises(errors.WorkerInitError, match=r"slot 0 .*flag, times.* died 3 times in a row.*max_restarts=2"):
        list(results)
    assert flag.stat().st_size == 3


def test_a_worker_killed_while_idle_costs_nothing(built: BuildLog) -> None:
    with StatefulExecutor(Fragile, 2, shared_kwargs={"log": built}) as executor:
        executor.warm_up()
        victim = executor.workers()[0].pid
        assert victim is not None
        process = psutil.Process(victim)
        process.kill()
        assert list(stateful_map(executor, range(20))) == list(range(20))
        assert len(built) <= 3


def test_a_slow_item_costs_its_worker_only(built: BuildLog) -> None:
    class Sleeper(Fragile):
        def __call__(self, item: int) -> int:
            if item == 5:
                threading.Event().wait()
            return item

    results = stateful_map(
        Sleeper, range(12), n_jobs=2, shared_kwargs={"log": built}, item_timeout=0.5, on_error="deferred"
    )
    good, bad = split(list(results))
    assert good == [item for item in range(12) if item != 5]
    error = bad[5]
    assert isinstance(error, errors.ItemTimeoutError)
    assert isinstance(error, TimeoutError)
    assert (error.index, error.timeout) == (5, 0.5)


def test_a_loop_that_holds_the_gil_is_timed_out() -> None:
    def spin(item: int) -> int:
        if item == 1:
            pow(3, 10**8)  # one C call of minutes
        return item

    results = list(stateful_map(spin, range(3), n_jobs=1, item_timeout=1.0, on_error="deferred", batch_size=1))
    assert [type(result.exception).__name__ for result in results] == ["NoneType", "ItemTimeoutError", "NoneType"]


def test_construction_that_hangs_is_ended() -> None:
    class Hangs:
        def __init__(self, gpu: int) -> None:
            threading.Event().wait()

        def __call__(self, item: int) -> int:
            return item

    with pytest.raises(errors.WorkerInitError, match=r"gpu.*init_timeout=0\.5"):
        list(stateful_map(Hangs, range(3), n_jobs=1, shared_kwargs={"gpu": 1}, init_timeout=0.5))


def test_children_of_a_killed_worker_go_too(tmp_path: Path) -> None:
    def start_child_and_hang(item: int) -> None:
        import subprocess
        import sys

        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (tmp_path / "child").write_text(str(child.pid))
        threading.Event().wait()

    results = list(stateful_map(start_child_and_hang, [0], n_jobs=1, item_timeout=1.0, on_error="deferred"))
    assert isinstance(results[0].exception, errors.ItemTimeoutError)
    child = int((tmp_path / "child").read_text())
    psutil.wait_procs([psutil.Process(child)] if psutil.pid_exists(child) else [], timeout=5)
    assert not psutil.pid_exists(child)


def test_an_object_that_grows_by_a_gigabyte_is_not_recycled(built: BuildLog) -> None:
    class Hoarder:
        def __init__(self, log: BuildLog) -> None:
            log.note()
            self.token = os.urandom(8)
            self.hoard: list[bytes] = []

        def __call__(self, item: int) -> tuple[bytes, int, int]:
            # loky looks once a second, after a call; first to remember how much it is, then for growth.
            time.sleep(1.1)
            if item == 1:
                self.hoard.append(b"x" * 2**30)  # written to, so that it really is in memory
            return self.token, os.getpid(), psutil.Process().memory_info().rss

    results = list(stateful_map(Hoarder, range(5), n_jobs=1, shared_kwargs={"log": built}, batch_size=1))
    assert len({(token, pid) for token, pid, _ in results}) == len(built) == 1
    sizes = [size for _, _, size in results]
    assert min(sizes[1:]) - sizes[0] > 2**30 - 2**24


def test_four_threads_map_at_once(built: BuildLog) -> None:
    results: dict[int, list[int]] = {}
    with StatefulExecutor(Fragile, 2, shared_kwargs={"log": built}) as executor:

        def work(start: int) -> None:
            results[start] = list(stateful_map(executor, range(start, start + 200)))

        threads = [threading.Thread(target=work, args=(1000 * n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert results == {1000 * n: list(range(1000 * n, 1000 * n + 200)) for n in range(4)}
    assert len(built) <= 2


def test_two_maps_on_one_executor_in_turn() -> None:
    with StatefulExecutor(Fragile, 2) as executor:
        one, other = stateful_map(executor, range(100)), stateful_map(executor, range(100, 200), ordered=False)
        pairs = list(zip(one, other, strict=True))
    assert [a for a, _ in pairs] == list(range(100))
    assert sorted(b for _, b in pairs) == list(range(100, 200))


def nested(item: int) -> int:
    return sum(stateful_map(abs, range(item), n_jobs=2))


def test_a_map_inside_a_worker() -> None:
    assert list(stateful_map(nested, [3, 4], n_jobs=2)) == [3, 6]


def test_a_daemonic_process_is_told_why_not(run_program: Any) -> None:
    done = run_program(program_text("faults/maps_in_a_daemonic_process"))
    assert done.code == 0, done.err
    assert "daemonic" in done.out
    assert 'engine="threads"' in done.out.replace("\\", "")
    assert "[1])" in done.out


class Various:
    """Takes various times, and gives small and large results."""

    def __call__(self, item: int) -> tuple[int, bytes]:
        time.sleep(item % 7 * 0.002)
        return item, bytes(3_000_000 if item % 50 == 0 else 1)


@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "unordered"])
@pytest.mark.parametrize("retries", [100, 0])
def test_kills_at_any_moment_lose_nothing(*, ordered: bool, retries: int) -> None:
    n_kills, n_items = 0, 700
    with StatefulExecutor(Various, 3) as executor:
        chance, stop = random.Random(retries + ordered), threading.Event()

        def kill_some() -> None:
            nonlocal n_kills
            while n_kills < 25 and not stop.wait(chance.random() * 0.2):
                pids = [info.pid for info in executor.workers() if info.pid]
                with contextlib.suppress(ProcessLookupError):
                    if pids:
                        os.kill(chance.choice(pids), signal.SIGKILL)
                        n_kills += 1

        killer = threading.Thread(target=kill_some)
        killer.start()
        try:
            options = {"ordered": ordered, "on_error": "deferred", "retries": retries, "max_restarts": 10_000}
            results: list[Any] = list(stateful_map(executor, range(n_items), **options))  # type: ignore[call-overload]  # the policy is in a dict
        finally:
            stop.set()
            killer.join()
    assert (sorted if not ordered else list)([result.index for result in results]) == list(range(n_items))
    lost = [result for result in results if not result.ok]
    assert all(result.value[0] == result.index for result in results if result.ok)
    assert all(isinstance(result.exception, errors.WorkerCrashedError) for result in lost)
    assert len(lost) <= (0 if retries else n_kills)


def test_a_death_leaves_nothing_behind_where_there_is_neither_psutil_nor_pgrep(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("loky.backend.utils.psutil", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    results = list(stateful_map(Fragile, range(4), n_jobs=1, shared_kwargs={"deadly": (1,)}, on_error="deferred"))
    assert [result.ok for result in results] == [True, False, True, True]
    assert not caplog.records  # loky's thread ended as it should, and let go of its files
