"""Where a map may be called from: threads, event loops, forks, and workers of others; or it says why it can't."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky import get_reusable_executor

from joblib_stateful import StatefulExecutor, call_worker, stateful_map
from needs import needs
from programs import program_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import RunProgram


class Adder:
    def __init__(self, to: int = 10) -> None:
        self.to = to

    def __call__(self, item: int) -> tuple[int, int]:
        return self.to + item, os.getpid()


def add_all(engine: str = "loky", n_jobs: int = 2) -> tuple[list[int], set[int], int]:
    """Return results, the processes they come from, and the one that asked."""
    found = list(stateful_map(Adder, range(6), n_jobs=n_jobs, engine=engine, batch_size=1))
    return [value for value, _ in found], {pid for _, pid in found}, os.getpid()


def check(found: Any, *, in_own_processes: bool = True) -> None:
    values, pids, caller = found
    assert values == list(range(10, 16))
    assert (caller not in pids) is in_own_processes


# --- threads and event loops --------------------------------------------------------------------------


def test_map_from_a_thread() -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(add_all()))
    thread.start()
    thread.join(60)
    check(found[0])


def test_map_from_asyncio_to_thread() -> None:
    async def main() -> list[Any]:
        beat = 0

        async def tick() -> None:
            nonlocal beat
            while True:
                beat += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        results = stateful_map(Adder, range(6), n_jobs=2, batch_size=1)
        first = [await asyncio.to_thread(next, results) for _ in range(3)]  # perhaps each from another thread
        rest = await asyncio.to_thread(list, results)
        assert beat > 1, "the event loop stood still"
        ticking.cancel()
        return [value for value, _ in first + rest]

    assert asyncio.run(main()) == list(range(10, 16))


def test_an_executor_serves_an_event_loop() -> None:
    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        with StatefulExecutor(Adder, 2) as executor:
            return await asyncio.gather(*(loop.run_in_executor(executor, call_worker, n) for n in range(6)))

    assert [value for value, _ in asyncio.run(main())] == list(range(10, 16))


# --- workers ------------------------------------------------------------------------------------------


@pytest.fixture
def _joblibs_own_workers() -> Iterator[None]:
    yield
    get_reusable_executor().shutdown(wait=True)


@pytest.mark.usefixtures("_joblibs_own_workers")
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_map_from_a_worker_of_joblibs_loky(n_jobs: int) -> None:
    calls = (delayed(add_all)(n_jobs=n_jobs) for _ in range(2))
    for found in Parallel(n_jobs=2, backend="loky")(calls):
        check(found)


def test_map_from_a_thread_of_joblib() -> None:
    for found in Parallel(n_jobs=2, backend="threading")(delayed(add_all)() for _ in range(4)):
        check(found)


def test_map_from_a_worker_of_its_own() -> None:
    with StatefulExecutor(Adder, 2) as executor:
        for future in [executor.submit(add_all) for _ in range(4)]:
            check(future.result(60))


def test_map_from_a_worker_of_the_backend() -> None:
    with parallel_config(backend="stateful", n_jobs=2):
        for found in Parallel()(delayed(add_all)() for _ in range(4)):
            check(found)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_map_from_a_daemon_process(run_program: RunProgram, method: str) -> None:
    done = run_program(program_text("programs/maps_in_daemons"), method)
    assert (done.code, done.out.split("\n")[:2]) == (0, ["[True, True, True]", "exit code 0"]), done.err


def test_map_from_a_worker_of_joblibs_multiprocessing(run_program: RunProgram) -> None:
    """These are daemonic."""
    done = run_program(program_text("programs/maps_in_daemons"), "joblib")
    assert (done.code, done.out.strip()) == (0, str([[True] * 3] * 2)), done.err


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("leaves", ["idle", "busy"])
def test_map_from_a_process_of_multiprocessing(run_program: RunProgram, method: str, leaves: str) -> None:
    """Which waits for its children before the interpreter's own hooks run."""
    done = run_program(program_text("programs/maps_in_a_process_of_multiprocessing"), method, leaves)
    expected = "0 1\n3 4\nexit code 0\n" if leaves == "idle" else "0 1\nexit code 0\n"
    assert (done.code, done.out) == (0, expected), done.err


# --- forks --------------------------------------------------------------------------------------------


@needs("fork")
def test_a_fork_has_workers_of_its_own(run_program: RunProgram) -> None:
    done = run_program(program_text("programs/has_workers_in_a_fork"))
    assert (done.code, done.out.strip(), done.err) == (0, "fine", "")


@pytest.mark.parametrize("imported", ["joblib", "sys"])
@needs("fork")
def test_a_map_under_way_says_in_a_fork_whose_it_is_and_can_be_left(imported: str, run_program: RunProgram) -> None:
    done = run_program(program_text("programs/forks_with_a_map_under_way"), imported)
    assert (done.code, done.out.strip(), done.err) == (0, "7 True", "")


@pytest.mark.parametrize("engine", ["loky", "threads"])
@needs("fork")
def test_a_map_that_has_not_begun_can_be_begun_in_a_fork(engine: str, run_program: RunProgram) -> None:
    done = run_program(program_text("programs/forks_before_its_map_begins"), engine)
    assert (done.code, done.out.strip(), done.err) == (0, "7 [0, 1, 2, 3]", "")


# --- calls that wait for each other -------------------------------------------------------------------


def work(item: tuple[str, Path]) -> str:
    """Wait for a file, or make it, or do nothing of note."""
    what, path = item
    if what == "make":
        path.touch()
    while what == "wait" and not path.exists():
        time.sleep(0.001)
    return what


@pytest.fixture(params=[["wait", "make"], ["make", "wait"]], ids=" ".join)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> list[Any]:
    return [(what, tmp_path / "made") for what in request.param]


@pytest.mark.parametrize("engine", ["loky", "threads"])
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize(("n_before", "batch_size"), [(0, "auto"), (0, 1), (100, 1)])
def test_an_item_may_wait_for_what_the_next_one_makes(
    *, engine: str, ordered: bool, n_before: int, batch_size: Any, pair: list[Any]
) -> None:
    items = [("pass", None)] * n_before + pair
    results = stateful_map(work, items, n_jobs=2, ordered=ordered, batch_size=batch_size, engine=engine)
    assert sorted(results) == sorted(what for what, _ in items)


@pytest.mark.parametrize("engine", ["loky", "threads"])
def test_a_call_may_wait_for_what_a_later_one_makes(engine: str, pair: list[Any]) -> None:
    calls = [("pass", None)] * 20 + pair[:1] + [("pass", None)] * 20 + pair[1:]
    with StatefulExecutor(n_jobs=2, engine=engine) as executor:
        futures = [executor.submit(work, call) for call in calls]
        assert [future.result(60) for future in futures] == [what for what, _ in calls]


def test_a_task_of_joblib_may_wait_for_what_the_next_one_makes(pair: list[Any]) -> None:
    with parallel_config(backend="stateful", n_jobs=2):
        assert Parallel()(delayed(work)(item) for item in pair) == [what for what, _ in pair]


def test_a_worker_that_has_used_joblib_ends_without_waiting_for_its_pool(run_program: RunProgram) -> None:
    done = run_program(program_text("programs/uses_joblib_in_workers"), limit=25)
    assert (done.code, done.err) == (0, "")
