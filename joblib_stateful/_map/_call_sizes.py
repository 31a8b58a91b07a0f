"""How many items a worker is called with at once under ``pass_as="batch"``, from what was measured so far."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from ._batching import BUFFER_BYTES, OVERTIME, Batching

if TYPE_CHECKING:
    from .._scheduling._requests import Outcome

# A call may grow by so much if the latest step has made items per second so many times as many, else by `_STEP`. From one
# item to the best size of a sentence model (32 to 64) in three steps, and to that of a client which takes 50 ms whatever it is
# asked (thousands) in six. With 2 up to 40 % of the items per second are lost; with 8 there are up to 6 % more, but calls may
# have four times as many items as serve anything, and so take more memory (`benchmarks/calls.py --constants`).
_LEAP, _WORTH_A_LEAP = 4, 1.5
_STEP, _WORTH_A_STEP = 2, 1.05
# The best of so many calls of a size counts, unless one of them is worth a leap: the first ones of a worker load things, and other
# programs take their time. With two for each size there are up to 9 % fewer items per second. Of a size that seems to give
# no more, so many: what is settled is settled for the whole map, and one that stayed at single items had a fifth of what it
# could have.
_N_MEASURED, _N_DOUBTED = 2, 4
# Where the best of `_N_DOUBTED` calls has so many times as many items per second as when the size was settled, or so many times
# fewer, items are no longer what they were, and the search begins anew. A map whose first items cost nothing had a fifth of
# what it could have, and has 70 to 97 %; 1.5 to 10 are level (`benchmarks/calls.py --constants`).
_CHANGED = 3.0
# No call shall take longer: nothing of it is seen, and what is dropped goes on for as long.
_MOST_SECONDS = 2.0
_MOST_ITEMS = 8192


class CallSizes(Batching):
    """Sizes of calls and of the buffer of one map; see `Batching`.

    With "auto" calls grow as long as that gives more items per second, and shrink where one has run out of memory.

    Parameters
    ----------
    n_jobs : int
        Number of slots.
    batch_size, buffer : int or "auto"
        As given to `stateful_map`.
    """

    is_of_calls = True

    def __init__(self, n_jobs: int, batch_size: int | Literal["auto"], buffer: int | Literal["auto"]) -> None:
        self._size = 1
        self._n_unmeasured = n_jobs  # first calls, one for each worker
        self._rates: list[float] = []  # items per second in calls of the present size
        self._best_rate, self._best_size = 0.0, 1
        self._is_settled = False
        self._limit = _MOST_ITEMS  # a larger call has run out of memory
        self._share = 0  # of each worker in what is left of the input, once that is no more than a call for each
        super().__init__(n_jobs, batch_size, buffer)

    def note_outcome(self, outcome: Outcome) -> None:
        """Learn how long a call took, and what its results weigh."""
        size, seconds = len(outcome.positions), outcome.seconds
        if outcome.n_fit:
            self._limit = min(self._limit, outcome.n_fit)
            self._size = min(self._size, outcome.n_fit)
            self._is_settled = True
        elif outcome.n_calls == 1 and outcome.n_run == size and seconds > 0:
            self._note_rate(size, size / seconds, seconds)
        super().note_outcome(outcome)

    def _note_rate(self, size: int, rate: float, seconds: float) -> None:
        if self._n_unmeasured:
            self._n_unmeasured -= 1
            return
        if size != self.batch:
            return
        self._rates.append(rate)
        if self._is_settled:
            self._watch(size, seconds)
            return
        rate, n_measured = max(self._rates), len(self._rates)
        gain = rate / self._best_rate if self._best_rate else math.inf
        needed = 1 if gain > _WORTH_A_LEAP else _N_MEASURED if gain >= _WORTH_A_STEP else _N_DOUBTED
        if n_measured < needed:
            return
        self._rates.clear()
        if gain < _WORTH_A_STEP:
            self._size, self._is_settled = (size if gain >= 1 else self._best_size), True
            return
        self._best_rate, self._best_size = rate, size
        factor = _LEAP if gain > _WORTH_A_LEAP else _STEP
        while factor > 1 and seconds * factor > _MOST_SECONDS:
            factor //= 2
        self._size = min(size * factor, self._limit)
        self._is_settled = self._size == size

    def _watch(self, size: int, seconds: float) -> None:
        """Begin anew if items are no longer what they were when the size was settled."""
        if seconds > OVERTIME * _MOST_SECONDS and size > 1:
            self._begin_anew(max(1, int(size * _MOST_SECONDS / seconds)))
        elif len(self._rates) == _N_DOUBTED:
            change = max(self._rates) / self._best_rate if self._best_rate else math.inf
            self._rates.clear()
            if not 1 / _CHANGED < change < _CHANGED:
                self._begin_anew(size)

    def _begin_anew(self, size: int) -> None:
        self._rates.clear()
        self._size, self._best_rate, self._is_settled = size, 0.0, False

    def _find_batch(self) -> int:
        if self._fixed_batch != "auto":
            return min(self._fixed_batch, self._limit)
        size: float = self._size
        weight = (self._item_bytes or 0.0) + self._result_bytes
        if weight:
            size = min(size, self.max_bytes / weight)
        if self._fixed_buffer != "auto":
            size = min(size, self._fixed_buffer // (2 * self._n_jobs))
        return max(1, int(size))

    def _find_growing(self) -> bool:
        return self._fixed_batch == "auto" and not self._is_settled

    @property
    def budget(self) -> float | None:
        """Seconds that a message may take before what is left of it is shared out: nothing is, of a call."""
        return None

    @property
    def max_bytes(self) -> float:
        """What a call's items and results may weigh together, but for the last one: two calls per worker are on their way."""
        return BUFFER_BYTES / (2 * self._n_jobs) if self._fixed_batch == "auto" else math.inf

    @property
    def enough(self) -> int:
        """Items for which there must be room before a worker that has nothing to do gets some, as long as the consumer has.

        A quick worker would be called with each item for which the consumer has just made room.
        """
        return max(1, min(self.batch, self.buffer // (2 * self._n_jobs)))

    def next_batch(self, room: int, remaining: int | None) -> int:
        """Items to pull now, given the room in the buffer and, if known, what the input still has."""
        size = self.batch
        if remaining is not None and self._fixed_batch == "auto":
            # Once and for all: half of what is left each time would end in calls with two items and one.
            if not self._share and remaining <= size * self._n_jobs:
                self._share = math.ceil(remaining / self._n_jobs)
            size = min(size, self._share or size)
        return max(1, min(size, room))
