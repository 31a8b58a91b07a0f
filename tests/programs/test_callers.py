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


def test_from_a_thread() -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(add_all()))
    thread.start()
    thread.join(60)
    check(found[0])


def test_from_asyncio_to_thread() -> None:
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
def test_from_a_worker_of_joblibs_loky(n_jobs: int) -> None:
    calls = (delayed(add_all)(n_jobs=n_jobs) for _ in range(2))
    for found in Parallel(n_jobs=2, backend="loky")(calls):
        check(found)


def test_from_a_thread_of_joblib() -> None:
    for found in Parallel(n_jobs=2, backend="threading")(delayed(add_all)() for _ in range(4)):
        check(found)


def test_from_a_worker_of_its_own() -> None:
    with StatefulExecutor(Adder, 2) as executor:
        for future in [executor.submit(add_all) for _ in range(4)]:
            check(future.result(60))


def test_from_a_worker_of_the_backend() -> None:
    with parallel_config(backend="stateful", n_jobs=2):
        for found in Parallel()(delayed(add_all)() for _ in range(4)):
            check(found)


DAEMON = """
    import multiprocessing, os, sys, warnings
    from joblib import Parallel, delayed, parallel_config
    from joblib_stateful import StatefulExecutor, errors, get_worker, stateful_map

    class Worker:
        def __call__(self, item):
            return os.getpid()

    def try_all():
        assert multiprocessing.current_process().daemon
        refused = []
        for attempt in (
            lambda: list(stateful_map(Worker, range(4), n_jobs=2)),
            lambda: StatefulExecutor(Worker, 2),
        ):
            try:
                refused.append(attempt())
            except errors.EngineError as error:
                refused.append("daemonic" in str(error) and 'engine="threads"' in str(error))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with parallel_config(backend="stateful", n_jobs=2, worker=Worker):
                here = Parallel()(delayed(lambda item: get_worker()(item))(item) for item in range(4))
        refused.append(here == [os.getpid()] * 4 and "daemonic" in str(caught[0].message))
        for engine in ("threads", "inline"):
            assert list(stateful_map(Worker, range(4), n_jobs=2, engine=engine)) == [os.getpid()] * 4
        with parallel_config(backend="stateful", n_jobs=2, engine="threads"):
            assert Parallel()(delayed(os.getpid)() for _ in range(4)) == [os.getpid()] * 4
        return refused
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_from_a_daemon_process(run_program: RunProgram, method: str) -> None:
    done = run_program(
        DAEMON
        + f"""
    def report():
        print(try_all(), flush=True)

    if __name__ == "__main__":
        process = multiprocessing.get_context({method!r}).Process(target=report, daemon=True)
        process.start()
        process.join(50)
        print("exit code", process.exitcode)
        """
    )
    assert (done.code, done.out.split("\n")[:2]) == (0, ["[True, True, True]", "exit code 0"]), done.err


def test_from_a_worker_of_joblibs_multiprocessing(run_program: RunProgram) -> None:
    """These are daemonic."""
    done = run_program(
        DAEMON
        + """
    if __name__ == "__main__":
        print(Parallel(n_jobs=2, backend="multiprocessing")(delayed(try_all)() for _ in range(2)))
        """
    )
    assert (done.code, done.out.strip()) == (0, str([[True] * 3] * 2)), done.err


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("leaves", ["idle", "busy"])
def test_from_a_process_of_multiprocessing(run_program: RunProgram, method: str, leaves: str) -> None:
    """Which waits for its children before the interpreter's own hooks run."""
    done = run_program(
        f"""
        import multiprocessing, threading
        from joblib_stateful import stateful_map

        class Worker:
            def __call__(self, item):
                if item == 2:
                    threading.Event().wait()
                return item

        def ask():
            results = stateful_map(Worker, range(3), n_jobs=2, batch_size=1)
            print(next(results), next(results), flush=True)
            if {leaves!r} == "idle":
                results.close()
                print(*stateful_map(Worker, [3, 4], n_jobs=2), flush=True)

        if __name__ == "__main__":
            multiprocessing.set_start_method({method!r})
            process = multiprocessing.Process(target=ask)
            process.start()
            process.join(20)
            print("exit code", process.exitcode)
            process.kill()
        """
    )
    expected = "0 1\n3 4\nexit code 0\n" if leaves == "idle" else "0 1\nexit code 0\n"
    assert (done.code, done.out) == (0, expected), done.err


# --- forks --------------------------------------------------------------------------------------------


@needs("fork")
def test_a_fork_has_workers_of_its_own(run_program: RunProgram) -> None:
    done = run_program(
        """
        import os, sys, warnings
        from joblib_stateful import stateful_map
        warnings.simplefilter("ignore")  # forking with threads is what is tested

        class Worker:
            def __call__(self, item):
                return os.getpid()

        def pids():
            return set(stateful_map(Worker, range(8), n_jobs=2, batch_size=1))

        if __name__ == "__main__":
            before = pids()
            child = os.fork()
            if child == 0:
                mine = pids()
                assert mine and not mine & {*before, os.getpid()}, (mine, before)
                sys.exit(3)
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == 3
            assert pids() & before, "the parent's workers are gone"
            print("fine")
        """
    )
    assert (done.code, done.out.strip(), done.err) == (0, "fine", "")


@pytest.mark.parametrize("imported", ["joblib", "sys"])
@needs("fork")
def test_a_map_under_way_says_in_a_fork_whose_it_is_and_can_be_left(imported: str, run_program: RunProgram) -> None:
    done = run_program(
        """
        import importlib, os, sys, warnings
        importlib.import_module(sys.argv[1])
        from joblib_stateful import errors, stateful_map
        warnings.simplefilter("ignore")

        def plus_one(item):
            return item + 1

        if __name__ == "__main__":
            child, found, is_child = None, [], False
            try:
                with stateful_map(plus_one, range(200), n_jobs=2, batch_size=1, buffer=100) as results:
                    for result in results:
                        found.append(result)
                        if result == 50:
                            child = os.fork()
                            is_child = child == 0
            except errors.ShutdownError as error:
                assert is_child and "before os.fork()" in str(error)
                sys.exit(7)
            assert not is_child
            _, status = os.waitpid(child, 0)
            print(os.waitstatus_to_exitcode(status), found == list(range(1, 201)))
        """,
        imported,
    )
    assert (done.code, done.out.strip(), done.err) == (0, "7 True", "")


@pytest.mark.parametrize("engine", ["loky", "threads"])
@needs("fork")
def test_a_map_that_has_not_begun_can_be_begun_in_a_fork(engine: str, run_program: RunProgram) -> None:
    done = run_program(
        """
        import os, sys, warnings
        from joblib_stateful import stateful_map
        warnings.simplefilter("ignore")

        if __name__ == "__main__":
            results = stateful_map(abs, range(4), n_jobs=2, engine=sys.argv[1])
            child = os.fork()
            found = list(results)
            if child == 0:
                sys.exit(7 if found == [0, 1, 2, 3] else 1)
            _, status = os.waitpid(child, 0)
            print(os.waitstatus_to_exitcode(status), found)
        """,
        engine,
    )
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
    done = run_program(
        """
        import os, time
        from pathlib import Path
        from joblib import Parallel, delayed
        from joblib_stateful import shutdown, stateful_map

        def inner(item):
            return os.getpid(), Parallel(2)(delayed(abs)(-number) for number in range(4))

        if __name__ == "__main__":
            pids = {str(pid) for pid, _ in stateful_map(inner, range(2), n_jobs=2, batch_size=1)}
            shutdown()  # which would kill what takes 30 s
            deadline = time.monotonic() + 5
            while left := [path.name for path in Path("/dev/shm").iterdir() if pids & set(path.name.split("_"))]:
                assert time.monotonic() < deadline, left
                time.sleep(0.01)
        """,
        limit=25,
    )
    assert (done.code, done.err) == (0, "")
