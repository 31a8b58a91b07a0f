"""The end of a worker's line is its end, and no damage, whoever hears of it."""

from __future__ import annotations

import weakref
from typing import Any

import pytest

from joblib_stateful._interrupts import Wakeup
from joblib_stateful.engines import _listening
from joblib_stateful.engines._line import Line


class Heard:
    """What a listening consumer asks of a worker, and is told."""

    is_called = False

    def __init__(self) -> None:
        self.faults: list[BaseException] = []

    def note_fault(self, error: BaseException) -> None:
        self.faults.append(error)


@pytest.mark.parametrize("error", [EOFError, ConnectionResetError])
def test_a_consumer_that_hears_of_an_end_notes_no_fault(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    listening, worker = _listening.Listening(), Heard()
    listening.wait_for(Wakeup(), lambda: True)  # which makes its poll
    near, far = Line.pair()
    reference: Any = weakref.ref(worker)  # it is asked for no more than it has
    listening._aside[near.fileno()] = near, reference
    listening._poll.register(near.fileno())

    def receive(_: Any) -> None:
        raise error  # a class: an instance would keep the line by its traceback

    monkeypatch.setattr(_listening, "_receive_if_there", receive)
    listening._take(near.fileno())
    assert worker.faults == []
    assert near.fileno() not in listening._aside, "its thread must hear of the end"
    for end in (near, far):
        end.close()
