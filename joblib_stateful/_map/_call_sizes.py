"""How many items a worker is called with at once under ``pass_as="batch"``, from what was measured so far."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from ._batching import BUFFER_BYTES, Batching
from ._size_search import SizeSearch

if TYPE_CHECKING:
    from .._scheduling._requests import Outcome

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
        self._search = SizeSearch(n_jobs, _MOST_ITEMS)
        self._share = 0  # of each worker in what is left of the input, once that is no more than a call for each
        super().__init__(n_jobs, batch_size, buffer)

    def note_outcome(self, outcome: Outcome) -> None:
        """Learn how long a call took, and what its results weigh."""
        size, seconds = len(outcome.positions), outcome.seconds
        if outcome.n_fit:
            self._search.limit_to(outcome.n_fit)
        elif self._fixed_batch == "auto" and outcome.n_calls == 1 and outcome.n_run == size and seconds > 0:
            self._search.note(size, seconds, self.batch)
        super().note_outcome(outcome)

    def _find_batch(self) -> int:
        if self._fixed_batch != "auto":
            return min(self._fixed_batch, self._search.limit)
        size: float = self._search.size
        weight = (self._item_bytes or 0.0) + self._result_bytes
        if weight:
            size = min(size, self.max_bytes / weight)
        if self._fixed_buffer != "auto":
            size = min(size, self._fixed_buffer // (2 * self._n_jobs))
        return max(1, int(size))

    def _find_growing(self) -> bool:
        return self._fixed_batch == "auto" and self._search.is_growing

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
