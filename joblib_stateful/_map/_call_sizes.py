"""How many items a worker is called with at once under ``pass_as="batch"``, from what was measured so far."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from ._batching import BUFFER_BYTES, Batching

if TYPE_CHECKING:
    from .._scheduling._requests import Outcome

# A call may grow by so much if the latest step has made items per second so many times as many, else by `_STEP`. From one
# item to the best size of a sentence model (32 to 64) in two or three steps, and to that of a client which takes 50 ms
# whatever it is asked (thousands) in five. With 4 in place of 8, up to 6 % of the items per second are lost, with 2 up to
# 40 %; with 16 they are 1 to 3 % more on average, but 7 % are lost by a model whose 500 items get twice as fast in calls and
# whose times vary (`benchmarks/calls.py --constants`). Other values of the numbers below change less.
_LEAP, _WORTH_A_LEAP = 8, 1.5
_STEP, _WORTH_A_STEP = 2, 1.05
# The best of so many calls of a size counts: the first ones of a worker load things, and other programs take their time.
# Were that known not to be so, 1 would do better by 1 to 2 % on average.
_N_MEASURED = 2
# No call shall take longer: nothing of it is seen, and what is dropped goes on for as long.
_MOST_SECONDS = 2.0
_MOST_ITEMS = 8192
# At the end of the input calls shrink, but not below such a part of their size. For 500 items of a model on a GPU that is 10 %
# more items per second than if they shrink to one; with 4 it is 3 % more, but as much is lost where times vary.
_TAIL = 8


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
        self._is_doubted = False  # the latest step has not paid, and is tried once more
        self._limit = _MOST_ITEMS  # a larger call has run out of memory
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
        if self._is_settled or size != self.batch:
            return
        self._rates.append(rate)
        if len(self._rates) < _N_MEASURED:
            return
        rate = max(self._rates)
        self._rates.clear()
        gain = rate / self._best_rate if self._best_rate else math.inf
        if gain < _WORTH_A_STEP:
            if self._is_doubted:
                self._size, self._is_settled = (size if gain >= 1 else self._best_size), True
            else:
                # Other programs may have taken their time, and what is settled is settled for the whole map: once more, from
                # the size before.
                self._size, self._best_rate, self._is_doubted = self._best_size, 0.0, True
            return
        factor = _LEAP if gain > _WORTH_A_LEAP and not self._is_doubted else _STEP
        self._is_doubted = self._is_doubted and not self._best_rate
        self._best_rate, self._best_size = rate, size
        while factor > 1 and seconds * factor > _MOST_SECONDS:
            factor //= 2
        self._size = min(size * factor, self._limit)
        self._is_settled = self._size == size

    def _find_batch(self) -> int:
        if self._fixed_batch != "auto":
            return min(self._fixed_batch, self._limit)
        size: float = self._size
        if self._item_bytes:
            size = min(size, self.max_bytes / self._item_bytes)
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
        """What a call's items may weigh together, but for the last one: two calls per worker are on their way."""
        return BUFFER_BYTES / (2 * self._n_jobs) if self._fixed_batch == "auto" else math.inf

    def next_batch(self, room: int, remaining: int | None) -> int:
        """Items to pull now, given the room in the buffer and, if known, what the input still has."""
        size = self.batch
        if remaining is not None and self._fixed_batch == "auto":
            # So that none ends alone with a long one; but calls don't halve down to one item, which costs nearly as much.
            size = min(size, max(math.ceil(remaining / self._n_jobs), size // _TAIL))
        return max(1, min(size, room))
