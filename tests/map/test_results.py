"""What comes back of batches, in the order in which it is to be given: no worker, no process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from joblib_stateful._map._batches import Batch, Inbox
from joblib_stateful._map._generator import BatchGenerator
from joblib_stateful._map._results import Results
from joblib_stateful._scheduling._requests import Group, Outcome, Request

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.unit


class Call:
    """Gives batches as joblib does: those of which something has come back, in the order of sending or of that."""

    def __init__(self, *, ordered: bool) -> None:
        self.ordered = ordered
        self.sent: list[Batch] = []
        self.begun: list[Batch] = []

    def send(self, batch: Any) -> None:
        self.sent.append(batch)
        batch.send(self, self.begun.append)

    def accept(self, request: Request) -> None:
        pass

    def take(self) -> Batch:
        batch = self.sent.pop(0) if self.ordered else self.begun.pop(0)
        assert batch in self.begun or not self.ordered, "joblib would wait for it"
        return batch


class Nowhere:
    """A pool of workers that nothing comes back from, until a test has it come."""

    n_jobs = 1

    def __init__(self) -> None:
        self.accepted: list[Request] = []

    def accept(self, request: Request) -> None:
        self.accepted.append(request)

    def come_back(self) -> None:
        request = self.accepted.pop(0)
        request.deliver(Outcome(range(request.size), [None] * request.size))


def test_joblibs_call_can_be_ended_when_garbage_collection_has_begun_with_what_is_within_it() -> None:
    """It closes the generators of a cycle in any order, before or after the map to which they belong."""
    pool = Nowhere()
    call = BatchGenerator(pool, ordered=True)  # type: ignore[arg-type]  # a stand-in for workers
    for first in range(2):
        batch = Batch(first, 1, Inbox())
        batch.requests = [Request(1, Group(), batch.deliver)]
        call.send(batch)
    pool.come_back()
    assert call.take().first == 0
    assert call._batches is not None
    call._batches.gi_yieldfrom.close()  # type: ignore[attr-defined]  # which a generator of Python's own has
    call.end()
    pool.come_back()  # too late, and of no harm


class Play:
    """Batches of so many items, and what there is to take of them."""

    def __init__(self, *sizes: int, ordered: bool = True) -> None:
        self.inbox, self.call = Inbox(), Call(ordered=ordered)
        self.results = Results(self.call, ordered=ordered)  # type: ignore[arg-type]  # a stand-in for joblib's call
        self.batches: list[Batch] = []
        first = 0
        for size in sizes:
            batch = Batch(first, size, self.inbox)
            batch.requests = [Request(size, Group(), batch.deliver)]
            self.results.send(batch)
            self.batches.append(batch)
            first += size

    def come(self, batch: int, *positions: int, is_last: bool = True, errors: Sequence[int] = ()) -> None:
        """Have some items of a batch come back, each as its index in the input."""
        sent = self.batches[batch]
        values = [None if position in errors else sent.first + position for position in positions]
        faults = {position: ValueError(position) for position in errors}
        sent.deliver(Outcome(positions, values, faults, is_last, n_run=len(positions), seconds=1.0))

    def dropped(self, batch: int, *positions: int) -> None:
        self.batches[batch].deliver(Outcome(positions, [], is_dropped=True))

    def look(self) -> None:
        while self.inbox.news:
            news = self.inbox.news.popleft()
            assert isinstance(news, tuple)
            self.results.note(*news)

    def taken(self) -> list[list[int | None]]:
        """Look at the news, and take all that can be taken: the values of each outcome."""
        self.look()
        found = []
        while self.results.is_ready:
            _, outcome = self.results.take()
            found.append(outcome.values)
        return found


def test_batches_come_in_the_order_of_the_input() -> None:
    play = Play(2, 2)
    play.come(1, 0, 1)
    assert play.taken() == []
    play.come(0, 0, 1)
    assert play.taken() == [[0, 1], [2, 3]]
    assert play.results.n_running == 0


def test_without_order_batches_come_as_they_are_done() -> None:
    play = Play(2, 2, ordered=False)
    play.come(1, 0, 1)
    assert play.taken() == [[2, 3]]
    assert play.results.n_running == 1
    play.come(0, 0, 1)
    assert play.taken() == [[0, 1]]


def test_what_is_there_of_a_batch_does_not_wait_for_the_rest_of_it() -> None:
    play = Play(5)
    play.come(0, 0, 1, is_last=False)
    assert play.taken() == [[0, 1]]
    play.come(0, 3, is_last=False)
    assert play.taken() == []
    play.come(0, 2, is_last=False)
    assert play.taken() == [[2, 3]]
    play.come(0, 4)
    assert play.taken() == [[4]]
    assert play.results.n_running == 0


def test_the_next_batch_waits_for_the_rest_of_one() -> None:
    play = Play(3, 1)
    play.come(1, 0)
    play.come(0, 2, is_last=False)
    play.come(0, 0, is_last=False)
    assert play.taken() == [[0]]
    play.come(0, 1)
    assert play.taken() == [[1, 2], [3]]


def test_without_order_each_part_of_a_batch_comes_at_once() -> None:
    play = Play(3, 2, ordered=False)
    play.come(0, 2, is_last=False)
    play.come(1, 0, 1)
    play.come(0, 0, 1)
    assert play.taken() == [[2], [3, 4], [0, 1]]
    assert play.results.n_running == 0


@pytest.mark.parametrize("ordered", [False, True])
def test_a_batch_runs_until_all_of_it_is_there_though_its_last_part_comes_first(*, ordered: bool) -> None:
    # Two threads bring the parts of a batch whose worker has died, and one of them may be held up.
    play = Play(2, ordered=ordered)
    play.come(0, 1)
    play.look()
    assert play.results.n_running == 1
    play.come(0, 0, is_last=False)
    assert sorted(value for values in play.taken() for value in values) == [0, 1]  # type: ignore[type-var]  # no None
    assert play.results.n_running == 0


def test_errors_keep_their_positions() -> None:
    play = Play(4)
    play.come(0, 2, 3, is_last=False, errors=[3])
    play.come(0, 0, 1, errors=[0])
    play.look()
    assert play.results.is_ready
    _, outcome = play.results.take()
    assert (list(outcome.positions), outcome.values, sorted(outcome.errors)) == (
        [0, 1, 2, 3],
        [None, 1, 2, None],
        [0, 3],
    )


def test_what_was_dropped_is_told_apart_from_what_came() -> None:
    play = Play(4)
    play.come(0, 0, 1, is_last=False)
    play.dropped(0, 2, 3)
    play.look()
    outcomes = [play.results.take()[1] for _ in range(2) if play.results.is_ready]
    assert [(list(outcome.positions), outcome.is_dropped) for outcome in outcomes] == [([0, 1], False), ([2, 3], True)]


def test_a_batch_counts_what_was_run_of_it() -> None:
    play = Play(4)
    play.come(0, 0, 1, is_last=False)
    play.dropped(0, 2, 3)
    play.look()
    assert (play.batches[0].n_run, play.batches[0].seconds) == (2, 1.0)


@pytest.mark.parametrize("ordered", [False, True])
def test_joblib_hears_once_of_each_batch(*, ordered: bool) -> None:
    play = Play(3, 1, ordered=ordered)
    play.come(0, 1, is_last=False)
    play.come(0, 0, is_last=False)
    play.come(0, 2)
    assert play.call.begun == play.batches[:1]


def test_what_can_not_be_sent_comes_back_with_the_reason() -> None:
    inbox, batch = Inbox(), Batch(0, 2, Inbox())
    batch = Batch(0, 2, inbox)
    batch.requests = [Request(2, Group(), batch.deliver)]

    class Closed:
        def accept(self, request: Request) -> None:
            raise RuntimeError("it is closed")

    batch.send(Closed(), lambda _: None)  # type: ignore[arg-type]  # all that is asked of it
    ((_, outcome),) = inbox.news  # type: ignore[misc]  # one pair
    assert (list(outcome.positions), str(outcome.fatal)) == ([0, 1], "it is closed")
