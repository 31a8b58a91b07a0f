"""When a worker looks at the clock and whether it shall stop, and that the item that runs is always noted."""

from __future__ import annotations

import time
from typing import Any

import pytest

from joblib_stateful._transport._transport import Pickled
from joblib_stateful._worker._messages import Phase, Ran, Run
from joblib_stateful._worker._progress_page import _CLOCK_EVERY, _CLOCK_SELDOM, Progress
from joblib_stateful._worker._worker import Worker

pytestmark = pytest.mark.unit


class Clock:
    """Moves only when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nanoseconds = 0
        monkeypatch.setattr(time, "monotonic_ns", lambda: self.nanoseconds)

    def sleep(self, seconds: float) -> None:
        self.nanoseconds += round(seconds * 1e9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def stretches(clock: Clock, item_seconds: list[float], budget: float | None = None, *, share: int = 0) -> list[int]:
    """Run items that take so long as message 7; return how many were run at a time."""
    found: list[int] = []
    progress = Progress()
    progress.ask_to_share(share)
    for stretch in progress.stretches(7, len(item_seconds), budget):
        assert stretch.start == sum(found)
        found.append(len(stretch))
        for place in stretch:
            clock.sleep(item_seconds[place])
    return found


def test_the_clock_is_looked_at_seldom_between_short_items(clock: Clock) -> None:
    assert stretches(clock, [1e-6] * 100) == [1, _CLOCK_EVERY, *[_CLOCK_SELDOM] * 5, 15]
    assert stretches(clock, [1e-3] * 10) == [1, _CLOCK_EVERY, _CLOCK_EVERY, 1]
    assert stretches(clock, [1.0] * 5) == [1] * 5
    assert stretches(clock, [0.0] * 6) == [1, _CLOCK_EVERY, 1]
    assert stretches(clock, [1.0]) == [1]


def test_items_that_become_long_are_looked_at_one_by_one_again(clock: Clock) -> None:
    assert stretches(clock, [1e-6] * 21 + [1.0] * 20) == [1, 4, 16, 16, 1, 1, 1, 1]


def test_too_much_time_ends_it(clock: Clock) -> None:
    assert stretches(clock, [0.25] * 10, 0.6) == [1] * 3
    assert stretches(clock, [1.0] * 2, 0.6) == [1]
    assert stretches(clock, [1e-3] * 100, 0.01) == [1, 4, 4, 4]


def test_a_share_is_given_as_long_as_there_is_much_left(clock: Clock) -> None:
    assert stretches(clock, [0.25] * 10, share=7) == [1]
    assert stretches(clock, [0.25] * 10, share=6) == [1] * 10  # of another message
    assert stretches(clock, [1e-3] * 25, share=7) == [1]
    assert stretches(clock, [1e-3] * 21, share=7) == [1, 4, 4, 4, 4, 4]
    assert stretches(clock, [1e-6] * 1_000, share=7)[:3] == [1, 4, 16]
    assert stretches(clock, [0.0] * 6, share=7) == [1, 4, 1]
    assert stretches(clock, [1.0], share=7) == [1]


def test_what_is_left_is_judged_by_all_that_was_run(clock: Clock) -> None:
    assert stretches(clock, [1e-6] * 21 + [0.15] * 16 + [1e-6] * 50, share=7) == [1, 4, 16, 16]
    assert stretches(clock, [0.03] + [1e-6] * 50, share=7) == [1]


class OneMessage:
    """A worker that runs a message of so many items, in which something is done at some place."""

    def __init__(self, do: dict[int, Any], *, timed: bool = False, after_error: Any = "drop", count: int = 10) -> None:
        self.transport = Pickled()
        self.worker = Worker(self.transport, Progress())
        self.worker.life.object, self._do = self._call, do
        self.noted: list[tuple[int | None, int, Phase, float]] = []
        parcel, _ = self.transport.pack_all(range(count))
        self._message = Run(7, "item", None, None, parcel, after_error, timed=timed, budget=None)

    def _call(self, item: int) -> Any:
        progress = self.worker.progress
        self.noted.append((progress.place, progress.n_finished, progress.phase, progress.since))
        what = self._do.get(item)
        return what() if callable(what) else item if what is None else what

    def __call__(self) -> Ran:
        reply = self.worker.handle(self._message)
        assert isinstance(reply, Ran)
        return reply


@pytest.mark.parametrize("seconds", [0.0, 1e-6, 1e-3, 1.0])
@pytest.mark.parametrize("place", [0, 1, 5, 17, 39])
def test_a_message_is_stopped_after_the_item_that_runs(clock: Clock, seconds: float, place: int) -> None:
    def do() -> None:
        clock.sleep(seconds)

    run = OneMessage(dict.fromkeys(range(40), do), count=40)
    run._do[place] = lambda: run.worker.progress.ask_to_stop(7)
    assert run().n_run == len(run.noted) == place + 1


def test_the_first_item_is_never_stopped_and_other_messages_are_none_of_its_business() -> None:
    run = OneMessage({})
    run.worker.progress.ask_to_stop(7)
    assert run().n_run == 1
    run.worker.progress.ask_to_stop(6)
    assert run().n_run == 10


@pytest.mark.parametrize("timed", [False, True])
def test_each_item_is_noted_before_it_runs(clock: Clock, *, timed: bool) -> None:
    clock.sleep(5)
    run = OneMessage({3: lambda: clock.sleep(1)}, timed=timed)
    run()
    since = [5.0] * 4 + [6.0 if timed else 5.0] * 6
    assert run.noted == [(place, place, Phase.RUNNING, since[place]) for place in range(10)]
    assert run.worker.progress.place is None


@pytest.mark.parametrize("after_error", ["go_on", "drop"])
def test_results_of_several_types_keep_their_places(after_error: str) -> None:
    # Values of plain types are only kept until one of another type has come, those of the same type with least effort.
    values = [1, 2, "a", 3.0, True, [4], 5, [6], "b", 7]

    def fail() -> None:
        raise ValueError

    run = OneMessage({**dict(enumerate(values)), 10: fail}, after_error=after_error, count=12)
    reply = run()
    found = [run.transport.unpack(frame) for frame in reply.values.frames]
    assert found == (values if after_error == "drop" else [*values, 11])
    assert reply.n_run == (11 if after_error == "drop" else 12)
    assert list(reply.failures) == [10]
