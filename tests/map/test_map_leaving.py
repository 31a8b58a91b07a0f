"""Laziness, and leaving a map early in all the ways there are."""

from __future__ import annotations

import gc
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from joblib_stateful import StatefulExecutor, StatefulMap, factory, shutdown, stateful_map
from programs import program_text
from scenes import Scene, engines, new_scene, orders, parallel_engines

if TYPE_CHECKING:
    from conftest import BuildLog, RunProgram


class Notes:
    """Notes where it was built and what it has run."""

    def __init__(self, scene: Scene, built: BuildLog) -> None:
        built.note()
        self.scene = scene

    def __call__(self, item: Any) -> Any:
        self.scene.log("ran").note(item)
        if item == "wait":
            self.scene.gate().wait()
        if item == "pid":
            return os.getpid()
        return item


class Source:
    """Items from a generator that notes when and where it is pulled and closed."""

    def __init__(self, items: Any) -> None:
        self.items = items
        self.n_pulled = 0
        self.threads: set[int] = set()
        self.closed = threading.Event()

    def generate(self) -> Iterator[Any]:
        try:
            for item in self.items:
                self.n_pulled += 1
                self.threads.add(threading.get_ident())
                yield item
        finally:
            self.closed.set()


# --- laziness -------------------------------------------------------------------------------------------


@engines
def test_nothing_is_pulled_or_started_before_the_first_next(engine: str, built: BuildLog, tmp_path: Path) -> None:
    source = Source(range(10))
    asked = []

    class Lazy:
        def __iter__(self) -> Iterator[int]:
            asked.append(1)
            return source.generate()

    before = {*threading.enumerate()}
    kwargs = {"scene": new_scene(tmp_path), "built": built}
    results = stateful_map(Notes, Lazy(), n_jobs=2, shared_kwargs=kwargs, engine=engine)
    iter(results)
    repr(results)
    with results:
        assert (asked, source.n_pulled, len(built), {*threading.enumerate()} - before) == ([], 0, 0, set())
    assert list(results) == []
    assert (asked, source.n_pulled, len(built), {*threading.enumerate()} - before) == ([], 0, 0, set())


@engines
@orders
def test_the_input_is_pulled_only_by_who_calls_next(*, engine: str, ordered: bool) -> None:
    source = Source(range(500))
    results = stateful_map(abs, source.generate(), n_jobs=2, ordered=ordered, engine=engine)
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.extend(results))
    thread.start()
    thread.join()
    assert sorted(found) == list(range(500))
    assert source.threads == {thread.ident}


@engines
@orders
@pytest.mark.parametrize("batch_size", [1, "auto"])
def test_a_database_cursor_is_a_fine_input(*, engine: str, ordered: bool, batch_size: Any) -> None:
    database = sqlite3.connect(":memory:")  # which raises if another thread touches it
    database.execute("create table numbers (number)")
    database.executemany("insert into numbers values (?)", [(number,) for number in range(300)])
    cursor = database.execute("select number from numbers order by number")
    results = stateful_map(abs, cursor, n_jobs=2, pass_as="args", ordered=ordered, batch_size=batch_size, engine=engine)
    assert sorted(results) == list(range(300))
    database.close()


@engines
def test_a_slow_input_does_not_hold_results_up(engine: str) -> None:
    """The input gets no further before its first results are taken."""
    taken = threading.Event()

    def source() -> Iterator[int]:
        yield 1
        assert taken.wait(20)
        yield 2

    results = stateful_map(abs, source(), n_jobs=2, buffer=1, engine=engine)
    assert next(results) == 1
    taken.set()
    assert list(results) == [2]


@engines
def test_an_input_that_becomes_slow_does_not_hold_results_up(engine: str) -> None:
    """Whatever came before it: at most a few slow items are pulled before the next results are given."""
    n_slow = 0

    def source() -> Iterator[int]:
        nonlocal n_slow
        yield from range(50_000)
        for number in range(40):
            time.sleep(0.03)  # slow is what takes longer than 20 ms
            n_slow += 1
            yield number

    results = stateful_map(abs, source(), n_jobs=2, engine=engine)
    most = before = 0
    for _ in results:
        most, before = max(most, n_slow - before), n_slow
    assert n_slow == 40
    assert most < 20


# --- leaving --------------------------------------------------------------------------------------------


def leave_by_break(results: StatefulMap[Any]) -> None:
    for _ in results:
        break


def leave_by_close(results: StatefulMap[Any]) -> None:
    next(results)
    results.close()


def leave_by_with(results: StatefulMap[Any]) -> None:
    with results:
        next(results)


def leave_by_an_exception(results: StatefulMap[Any]) -> None:
    try:
        for _ in results:
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass


def leave_in_a_cycle(results: StatefulMap[Any]) -> None:
    next(results)
    cycle: list[Any] = [results]
    cycle.append(cycle)


def leave_by_close_elsewhere(results: StatefulMap[Any]) -> None:
    next(results)
    thread = threading.Thread(target=results.close)
    thread.start()
    thread.join()


def leave_by_iterating_elsewhere(results: StatefulMap[Any]) -> None:
    """Iterate in another thread, and drop the map in this one."""
    thread = threading.Thread(target=next, args=(results,))
    thread.start()
    thread.join()


WAYS = [
    leave_by_break,
    leave_by_close,
    leave_by_with,
    leave_by_an_exception,
    leave_in_a_cycle,
    leave_by_close_elsewhere,
    leave_by_iterating_elsewhere,
]
ways = pytest.mark.parametrize("leave", WAYS, ids=lambda way: way.__name__)


@engines
@ways
def test_leaving_early(engine: str, leave: Any, built: BuildLog, tmp_path: Path) -> None:
    scene = new_scene(tmp_path)
    options: dict[str, Any] = {"n_jobs": 1, "shared_kwargs": {"scene": scene, "built": built}, "engine": engine}
    (pid,) = stateful_map(Notes, ["pid"], **options)
    for batch_size in (1, 5):
        source = Source(["first", *["later"] * 1000])
        leave(stateful_map(Notes, source.generate(), batch_size=batch_size, buffer=10, **options))
        gc.collect()
        assert source.closed.wait(10)
        n_pulled = source.n_pulled
        # The worker and its object are alive, and free for the next map.
        assert list(stateful_map(Notes, ["pid"], **options)) == [pid]
        assert len(built) == 1
        assert source.n_pulled == n_pulled <= 10


@parallel_engines
@ways
def test_leaving_ends_workers_that_are_for_nobody_else(engine: str, leave: Any) -> None:
    # In a cycle, nothing else held the workers: their ends were noticed by nobody, and a file was closed twice.
    results = stateful_map(abs, range(10), n_jobs=2, buffer=10, engine=engine)
    assert next(results) == 0
    shutdown()
    assert results._pool is not None
    while results._pool.under_way():  # a worker that is asked something is held for its answer
        time.sleep(0.001)
    leave(results)
    del results
    gc.collect()  # that no process, thread or file is left is seen behind each test


@parallel_engines
@ways
def test_what_is_queued_is_not_run(engine: str, leave: Any, built: BuildLog, tmp_path: Path) -> None:
    scene = new_scene(tmp_path)
    options: dict[str, Any] = {"n_jobs": 1, "shared_kwargs": {"scene": scene, "built": built}, "engine": engine}
    source = Source(["first", "wait", *["queued"] * 100])
    leave(stateful_map(Notes, source.generate(), batch_size=1, buffer=20, **options))
    gc.collect()
    assert source.closed.wait(10)
    scene.gate().open()
    assert list(stateful_map(Notes, ["x"], **options)) == ["x"]
    assert scene.log("ran").lines[:1] == ["first"]
    assert scene.log("ran").lines[-1] == "x"
    assert "queued" not in scene.log("ran").lines
    assert len(built) == 1


@parallel_engines
def test_the_rest_of_a_batch_that_runs_is_not_run(engine: str, built: BuildLog, tmp_path: Path) -> None:
    scene = new_scene(tmp_path)
    options: dict[str, Any] = {"n_jobs": 1, "shared_kwargs": {"scene": scene, "built": built}, "engine": engine}
    results = stateful_map(Notes, [*["first"] * 3, "wait", *["queued"] * 2], batch_size=3, buffer=6, **options)
    assert next(results) == "first"
    scene.log("ran").wait_for(4)
    results.close()
    scene.gate().open()
    assert list(stateful_map(Notes, ["x"], **options)) == ["x"]
    assert scene.log("ran").lines == ["first", "first", "first", "wait", "x"]
    assert len(built) == 1


@parallel_engines
def test_close_from_another_thread_ends_a_consumer_that_waits(engine: str, built: BuildLog, tmp_path: Path) -> None:
    scene = new_scene(tmp_path)
    options: dict[str, Any] = {"n_jobs": 1, "shared_kwargs": {"scene": scene, "built": built}, "engine": engine}
    source = Source(["first", "wait", *["queued"] * 100])
    results = stateful_map(Notes, source.generate(), batch_size=1, buffer=20, **options)

    taken = threading.Event()

    def close() -> None:
        assert taken.wait(20)
        scene.log("ran").wait_for(2)
        results.close()

    thread = threading.Thread(target=close)
    thread.start()
    found = []
    for result in results:
        found.append(result)
        taken.set()
    assert found == ["first"]
    thread.join()
    assert source.closed.is_set()
    scene.gate().open()
    assert list(stateful_map(Notes, ["x"], **options)) == ["x"]
    assert "queued" not in scene.log("ran").lines
    assert len(built) == 1


@engines
def test_an_input_may_close_the_map_that_pulls_it(engine: str) -> None:
    def source() -> Iterator[int]:
        yield 1
        results.close()
        yield 2

    results = stateful_map(abs, source(), n_jobs=1, batch_size=1, buffer=1, engine=engine)
    assert list(results) == [1]
    assert list(results) == []


@engines
def test_an_input_that_asks_for_a_result_when_it_is_closed_is_told_that_it_must_not(engine: str) -> None:
    told: list[BaseException] = []

    def items() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            try:
                next(results)
            except ValueError as error:
                told.append(error)

    results = stateful_map(abs, items(), n_jobs=1, batch_size=4, buffer=16, engine=engine)
    assert [next(results), next(results)] == [0, 1]
    results.close()
    assert "being advanced already" in str(told[0])


@engines
@pytest.mark.parametrize("when", range(1, 8))
def test_nothing_is_pulled_behind_a_progress_that_closes_the_map(engine: str, when: int) -> None:
    source, n_shown, n_pulled = Source(range(2000)), 0, 0

    def close(_: int) -> None:
        nonlocal n_shown, n_pulled
        n_shown += 1
        if n_shown == when:
            results.close()
            n_pulled = source.n_pulled

    results = stateful_map(abs, source.generate(), n_jobs=1, batch_size=8, buffer=16, progress=close, engine=engine)
    assert len(list(results)) < 2000
    assert source.n_pulled == n_pulled


@engines
def test_closing_does_not_close_what_is_no_generator(engine: str, tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text("a\nb\nc\n")
    with path.open() as file:
        results = stateful_map(str.strip, file, n_jobs=1, batch_size=1, buffer=1, engine=engine)
        assert next(results) == "a"
        results.close()
        assert not file.closed
        assert file.readline() == "b\n"


@engines
def test_an_error_when_the_input_is_closed_is_told(engine: str) -> None:
    def source() -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            raise ZeroDivisionError

    results = stateful_map(abs, source(), n_jobs=1, batch_size=1, buffer=2, engine=engine)
    next(results)
    with pytest.raises(ZeroDivisionError):
        results.close()
    results.close()


@engines
def test_results_are_not_kept_alive(engine: str) -> None:
    import weakref

    class Thing:
        pass

    results = stateful_map(lambda item: Thing(), range(3), n_jobs=1, batch_size=3, engine=engine)
    one = next(results)
    gone = weakref.ref(one)
    del one
    next(results)
    gc.collect()
    assert gone() is None
    results.close()


@pytest.mark.parametrize("where", ["main thread", "another thread"])
@pytest.mark.parametrize("without", ["", "all"], ids=["as it is", "without what other systems lack"])
@pytest.mark.parametrize("engine", ["loky", "threads", "inline"])
def test_a_map_that_is_left_at_the_end_of_a_script_is_silent(
    run_program: RunProgram, engine: str, without: str, where: str
) -> None:
    done = run_program(
        program_text("map/leaves_a_map_at_its_end"), engine, where, limit=30, env={"JOBLIB_STATEFUL_WITHOUT": without}
    )
    assert (done.code, done.out, done.err) == (0, "0\n", "")


def test_an_interrupted_map_gives_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    look = StatefulMap._look

    def interrupted(results: StatefulMap[int]) -> None:
        look(results)
        raise KeyboardInterrupt

    results = stateful_map(abs, range(10), n_jobs=1, engine="inline", batch_size=10)
    assert next(results) == 0
    results._inbox.put()  # or the second one, which is there, would be given without a look
    with monkeypatch.context() as patch:
        patch.setattr(StatefulMap, "_look", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(results)
    assert list(results) == []


class Items(list[int]):
    """A list that can be watched."""


@engines
@pytest.mark.parametrize("leave", [list, StatefulMap.close], ids=["at the end", "early"])
def test_a_map_that_is_over_keeps_neither_its_executor_nor_its_input(engine: str, leave: Any) -> None:
    executor: Any = StatefulExecutor(factory(lambda: abs), n_jobs=1, engine=engine)
    items = Items([-1, -2])
    results = stateful_map(executor, items)
    assert next(results) == 1
    leave(results)
    alive = weakref.ref(executor), weakref.ref(items)
    del executor, items
    gc.collect()
    assert [found() for found in alive] == [None, None]
    assert (len(results), list(results)) == (2, [])


@parallel_engines
@orders
def test_what_nobody_took_goes_with_the_map(*, engine: str, ordered: bool) -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()

    class Result:
        def __init__(self, item: int) -> None:
            self.item = item

        def __setstate__(self, state: Any) -> None:  # it has come back
            self.__dict__ = state
            alive.add(self)

    def run(item: int) -> Any:
        result = Result(item)
        if engine == "threads":
            alive.add(result)
        return result

    results = stateful_map(run, range(40), n_jobs=2, engine=engine, ordered=ordered, batch_size=4, buffer=40)
    next(results)
    deadline = time.monotonic() + 20
    while len(alive) < 20:
        assert time.monotonic() < deadline
        next(results)
        time.sleep(0.01)
    gc.disable()  # it is not left to the collector
    try:
        results.close()
        results.close()
        while alive:  # what the workers are at comes later, and goes
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        gc.enable()


def test_an_interrupt_in_another_thread_than_the_one_that_began_the_map_is_silent(run_program: RunProgram) -> None:
    done = run_program(program_text("map/is_interrupted_in_another_thread"))
    assert (done.code, done.out, done.err) == (0, "<StatefulMap closed, 5 of 1000 done>\n", "")


def test_an_interrupt_while_joblib_is_imported_ends_what_is_being_built(run_program: RunProgram) -> None:
    done = run_program(program_text("map/is_interrupted_while_joblib_is_imported"))
    assert (done.code, done.out, done.err) == (0, "ended\n", "")
