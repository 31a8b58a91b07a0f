"""Where a worker looks whether it shall stop, and that the item that runs is always noted."""

from __future__ import annotations

import time

import pytest

from joblib_stateful._messages import Phase, Run
from joblib_stateful._transport import Pickled
from joblib_stateful._worker import _LOOK_EVERY, Progress, Worker


class Clock:
    """Moves only when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nanoseconds = 0
        monkeypatch.setattr(time, "monotonic_ns", lambda: self.nanoseconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def stretches(
    clock: Clock,
    progress: Progress,
    item_seconds: list[float],
    *,
    stop_in: int | None = None,
    timed: bool = False,
    budget: float | None = None,
) -> list[list[int]]:
    """Run items that take so long; have the parent ask for the end while one of them runs."""
    found = []
    for stretch in progress.stretches(7, len(item_seconds), timed=timed, budget=budget):
        found.append(list(stretch))
        for place in found[-1]:
            if place == stop_in:
                progress.ask_to_stop(7)
            clock.nanoseconds += round(item_seconds[place] * 1e9)
    return found


def test_short_items_share_a_look_and_all_have_their_turn(clock: Clock) -> None:
    found = stretches(clock, Progress(), [1e-6] * 100)
    assert [place for stretch in found for place in stretch] == list(range(100))
    assert [len(stretch) for stretch in found] == [1, *[_LOOK_EVERY] * 6, 3]


@pytest.mark.parametrize("seconds", [1e-4, 1.0])
def test_longer_items_are_stopped_after_the_one_that_runs(clock: Clock, seconds: float) -> None:
    assert stretches(clock, Progress(), [seconds] * 10, stop_in=4) == [[0], [1], [2], [3], [4]]


def test_the_first_item_is_never_stopped(clock: Clock) -> None:
    progress = Progress()
    progress.ask_to_stop(7)
    assert stretches(clock, progress, [1e-6] * 10) == [[0]]


def test_short_items_are_stopped_at_the_next_look(clock: Clock) -> None:
    found = stretches(clock, Progress(), [1e-6] * 100, stop_in=3)
    assert found == [[0], list(range(1, 1 + _LOOK_EVERY))]


def test_what_an_earlier_message_was_told_does_not_matter(clock: Clock) -> None:
    progress = Progress()
    progress.ask_to_stop(6)
    assert len(stretches(clock, progress, [1.0] * 10)) == 10


def test_items_that_become_long_are_looked_at_one_by_one_again(clock: Clock) -> None:
    found = stretches(clock, Progress(), [1e-6] * 30 + [1.0] * 30, stop_in=40)
    assert found[-1] == [40]


def test_too_much_time_ends_it(clock: Clock) -> None:
    assert stretches(clock, Progress(), [0.25] * 10, budget=0.6) == [[0], [1], [2]]
    assert stretches(clock, Progress(), [1.0], budget=0.6) == [[0]]


def test_items_with_a_time_limit_are_timed_one_by_one(clock: Clock) -> None:
    progress, found = Progress(), []
    clock.nanoseconds = 5 * 10**9
    for stretch in progress.stretches(7, 3, timed=True):
        found.append((list(stretch), progress.since))
        clock.nanoseconds += 1000
    assert found == [([0], 5.0), ([1], pytest.approx(5.000001)), ([2], pytest.approx(5.000002))]


@pytest.mark.parametrize("timed", [False, True])
def test_each_item_is_noted_before_it_runs(*, timed: bool) -> None:
    transport, noted = Pickled(), []
    worker = Worker(transport, Progress())

    def note(item: int) -> int:
        noted.append((worker.progress.place, worker.progress.n_finished, worker.progress.phase))
        return item

    worker.object = note
    parcel, _ = transport.pack_all(range(50))
    reply = worker.handle(Run(1, "item", None, None, parcel, "drop", timed=timed, budget=60.0))
    assert noted == [(place, place, Phase.RUNNING) for place in range(50)]
    assert transport.unpack_joint(reply.values) == list(range(50))  # type: ignore[union-attr]  # what a Run is answered by
    assert worker.progress.place is None


@pytest.mark.parametrize("after_error", ["go_on", "drop"])
def test_results_of_several_types_keep_their_places(after_error: str) -> None:
    # Values of plain types are only kept until one of another type has come, those of the same type with least effort.
    values = [1, 2, "a", 3.0, None, [4], 5, [6], "b", 7]
    transport = Pickled()
    worker = Worker(transport, Progress())
    worker.object = values.__getitem__
    parcel, _ = transport.pack_all([*range(10), 10, 0])
    reply = worker.handle(Run(1, "item", None, None, parcel, after_error, timed=False, budget=None))  # type: ignore[arg-type]  # one of its choices
    found = [transport.unpack(frame) for frame in reply.values.frames]  # type: ignore[union-attr]  # as above
    assert found == (values if after_error == "drop" else [*values, 1])
    assert reply.n_run == (11 if after_error == "drop" else 12)  # type: ignore[union-attr]  # as above
    assert list(reply.failures) == [10]  # type: ignore[union-attr]  # as above
