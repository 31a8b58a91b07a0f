"""Handlers of the program's that raise, or end it: neither records nor workers' ends stop at them."""

from __future__ import annotations

import logging
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from joblib_stateful import StatefulExecutor, call_worker, shutdown, stateful_map
from needs import needs

if TYPE_CHECKING:
    from collections.abc import Iterator


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
