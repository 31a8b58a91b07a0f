"""Faults where two promises meet: limits and slow results, lost answers and what travels once."""

from __future__ import annotations

import logging
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from joblib_stateful import StatefulExecutor, call_worker, shutdown, stateful_map
from joblib_stateful._executor import _pool, _replies
from joblib_stateful._executor._pool import WorkerPool
from needs import needs
from programs import program_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import RunProgram


def test_a_worker_that_waits_for_a_slow_parent_is_not_held_to_be_damaged(run_program: RunProgram) -> None:
    """It has answered as far as it can: the thread that should take it is busy with the answer before."""
    done = run_program(program_text("faults/loads_a_result_for_seconds"), limit=60)
    assert (done.code, done.out) == (0, "done\n"), done.err[-3000:]


def test_what_came_with_an_answer_for_which_there_was_no_memory_comes_again(run_program: RunProgram) -> None:
    """A class that the worker has made: it travels once, and was lost with the first of its objects."""
    done = run_program(program_text("faults/has_no_memory_for_an_answer"), limit=60)
    assert (done.code, done.out) == (0, "done\n"), done.err[-3000:]


class Named:
    """A worker that says what it was built from."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, _: int) -> str:
        return self.name


@pytest.mark.parametrize("engine", ["loky", "threads"])
def test_two_threads_that_want_more_slots_at_once(monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    """The second one comes while the first one is about to have the executor grow."""
    kwargs = [{"name": name} for name in "abcd"]
    list(stateful_map(Named, range(2), worker_kwargs=kwargs[:2], engine=engine))
    grow, is_there, go_on = WorkerPool.grow, threading.Event(), threading.Event()

    def wait_and_grow(pool: WorkerPool, other: WorkerPool) -> None:
        if not is_there.is_set():
            is_there.set()
            go_on.wait()
        grow(pool, other)

    monkeypatch.setattr(WorkerPool, "grow", wait_and_grow)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(lambda: list(stateful_map(Named, range(40), worker_kwargs=kwargs, engine=engine)))
        try:
            assert is_there.wait(20)
            found = list(stateful_map(Named, range(40), worker_kwargs=kwargs, engine=engine))
        finally:
            go_on.set()
        assert {*found, *first.result(60)} <= {*"abcd"}
    shutdown()


def test_two_of_one_name_that_are_used_in_turn_can_be_told_apart(caplog: pytest.LogCaptureFixture) -> None:
    for name in ("one", "other", "one"):
        list(stateful_map(Named, range(2), shared_kwargs={"name": name}, n_jobs=1, engine="threads"))
    assert "Named and another Named (from other kwargs" in caplog.text
    shutdown()


def fail() -> None:
    raise ValueError("as it was told to")


@pytest.mark.parametrize("engine", ["loky", "threads"])
def test_a_call_whose_outcome_can_not_even_be_described_has_one(monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise MemoryError("there is none for this either")

    with StatefulExecutor(n_jobs=1, engine=engine) as executor:
        with monkeypatch.context() as patch:
            patch.setattr(_replies, "report_of", no_memory)
            patch.setattr(_replies, "report_without", no_memory)
            patch.setattr(_pool, "report_without", no_memory)
            first, second = executor.submit(fail), executor.submit(fail)
            assert type(first.exception(timeout=20)) is MemoryError
            assert type(second.exception(timeout=20)) is MemoryError
        assert executor.submit(abs, -1).result(timeout=20) == 1


class EndsTheProgram(logging.Handler):
    """As some programs have it: after an error there is nothing more to do."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self.ends_at, self.seen = level, list[str]()

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(record.getMessage())
        if record.levelno >= self.ends_at:
            sys.exit(3)


@pytest.fixture
def handler(monkeypatch: pytest.MonkeyPatch) -> Iterator[EndsTheProgram]:
    monkeypatch.setattr(logging, "raiseExceptions", False)  # or what it raises is printed, as it should be
    root, handler = logging.getLogger(), EndsTheProgram(logging.WARNING)
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield handler
    root.removeHandler(handler)
    root.setLevel(before)


class Unloadable:
    def __reduce__(self) -> tuple[Any, ...]:
        return sys.exit, (4,)


class Talker:
    def __call__(self, item: int) -> int:
        extra = {"odd": Unloadable()} if item == 2 else {}
        logging.getLogger("talker").log(logging.WARNING if item == 1 else logging.INFO, "item %d", item, extra=extra)
        return item

    def close(self) -> None:
        raise ValueError("at the end")


@needs("records")
def test_records_go_on_behind_a_handler_that_wants_to_end_the_program(handler: EndsTheProgram) -> None:
    assert list(stateful_map(Talker, range(4), n_jobs=1)) == [*range(4)]
    assert [text for text in handler.seen if text.startswith("item")] == [f"item {item}" for item in range(4)]
    shutdown()


@pytest.mark.parametrize("engine", ["loky", "threads"])
def test_a_worker_whose_end_is_told_to_a_handler_that_raises_has_ended(handler: EndsTheProgram, engine: str) -> None:
    executor = StatefulExecutor(Talker, n_jobs=1, engine=engine)
    assert executor.submit(call_worker, 0).result(timeout=20) == 0
    end = threading.Thread(target=executor.shutdown, daemon=True)
    end.start()
    end.join(20)
    assert not end.is_alive()
    assert any("close() of the worker in slot 0 raised" in text for text in handler.seen)
