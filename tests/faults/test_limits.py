"""When an item counts as over its time, and which one: the watch over time limits, without a clock or a worker."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from joblib_stateful._executor import _timeouts
from joblib_stateful._process._timers import Alarm
from joblib_stateful._worker._messages import Phase, Run
from joblib_stateful._worker._progress_page import Progress
from joblib_stateful.testing import MemoryEngine

if TYPE_CHECKING:
    from collections.abc import Callable

    from joblib_stateful.engines import EngineWorker

pytestmark = pytest.mark.unit


SEQ = 7
LIMIT = 1.0


class Watch:
    """A watch over one message; time passes only when it is told to, and is at 0 when the message is sent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, progress: Progress) -> None:
        self.now, self.expired = 0.0, list[tuple[int, int, int | None]]()
        self._alarm: Alarm | None = None
        monkeypatch.setattr(time, "monotonic_ns", lambda: round(self.now * 1e9))
        monkeypatch.setattr(_timeouts, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(_timeouts, "_timers", self)
        engine = MemoryEngine()
        engine.make_runtime(1).open(0, {})
        worker = engine.worker(0)
        worker.progress = progress
        watch = _timeouts.LimitWatch(1, threading.Condition(), lambda _, seq: seq == SEQ, self._expire, self._condemn)
        parcel = worker._worker.transport.pack_all(range(1000))[0]
        watched = watch.begin(worker, Run(SEQ, "item", None, None, parcel, "go_on"), LIMIT)
        assert watched is not None
        watch.watch(0, watched)

    def _condemn(self, worker: EngineWorker, what: str) -> None:
        raise AssertionError(f"{worker} is damaged: {what}")

    def _expire(self, slot: int, seq: int, place: int | None) -> None:
        self.expired.append((slot, seq, place))

    def call_at(self, when: float, function: Callable[[], None]) -> Alarm:
        self._alarm = Alarm(when, 0, function)
        return self._alarm

    def wait_until(self, when: float) -> None:
        """Let time pass, and alarms go off."""
        while self._alarm is not None and self._alarm.when <= when:
            self.now, function, self._alarm = self._alarm.when, self._alarm.function, None
            assert function is not None
            function()
        self.now = when


def test_an_item_has_its_limit_from_its_own_start(monkeypatch: pytest.MonkeyPatch) -> None:
    progress = Progress()
    watch = Watch(monkeypatch, progress)
    progress.enter(SEQ, Phase.RUNNING)
    for place in range(5):
        progress.start_item(place)
        watch.wait_until(watch.now + 0.9 * LIMIT)
    assert watch.expired == []
    watch.wait_until(watch.now + 0.2 * LIMIT)
    assert watch.expired == [(0, SEQ, 4)]


def test_before_a_message_is_begun_there_is_more_time_and_no_item_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    progress = Progress()
    progress.enter(SEQ - 1, Phase.RUNNING)
    progress.start_item(3)
    progress.leave()
    watch = Watch(monkeypatch, progress)
    watch.wait_until(_timeouts._STARTUP_SECONDS)
    assert watch.expired == []
    watch.wait_until(_timeouts._STARTUP_SECONDS + 1.1 * LIMIT)
    assert watch.expired == [(0, SEQ, None)]


def test_a_message_that_is_answered_is_not_over_its_time_however_long_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    progress = Progress()
    watch = Watch(monkeypatch, progress)
    progress.enter(SEQ, Phase.RUNNING)
    for place in range(200):
        progress.start_item(place)
        watch.wait_until(watch.now + 0.9 * LIMIT)
    progress.reply(200)
    progress.leave()
    watch.wait_until(1_000.0)  # the answer is large, or slow to load
    assert watch.expired == []


class MovesOn(Progress):
    """Its worker goes on to the next item as soon as the start of the present one was read."""

    @property
    def since(self) -> float:
        since = super().since
        self.start_item((self.place or 0) + 1)
        return since


def test_an_item_that_begins_while_it_is_looked_is_not_taken_for_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    progress = MovesOn()
    watch = Watch(monkeypatch, progress)
    progress.enter(SEQ, Phase.RUNNING)
    progress.start_item(0)
    watch.wait_until(1.5 * LIMIT)
    assert progress.place == 1
    assert watch.expired == []
