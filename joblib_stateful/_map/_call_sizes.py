"""How many items a worker is called with at once under ``pass_as="batch"``, from what was measured so far."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from ._batching import BUFFER_BATCHES, BUFFER_BYTES, BUFFER_ITEMS, Batching
from ._size_search import SizeSearch

if TYPE_CHECKING:
    from .._scheduling._requests import Outcome

_MOST_ITEMS = 8192
# So many calls are filled together with texts, those alike in one. With MiniLM, which pads them, that gives 1.4 times as many
# texts a second as the best calls of texts in their order, with half as many 1.15 to 1.35 (`python benchmarks/calls.py --together`).
_TOGETHER = 16
# To choose them and to put them in order again takes some 3 µs each.
_LEAST_SECONDS = 2e-4


class CallSizes(Batching):
    """Sizes of calls and of the buffer of one map; see `Batching`.

    With "auto" calls grow as long as that gives more items per second, and shrink where one has run out of memory.

    Parameters
    ----------
    n_jobs : int
        Number of slots.
    batch_size, buffer : int or "auto"
        As given to `stateful_map`.
    is_of_alike : bool, default False
        Items of a call are alike if they are texts, instead of in the order of the input.
    """

    is_of_calls = True
    #: Items that a call should have.
    call: int

    def __init__(
        self,
        n_jobs: int,
        batch_size: int | Literal["auto"],
        buffer: int | Literal["auto"],
        *,
        is_of_alike: bool = False,
    ) -> None:
        self._search = SizeSearch(n_jobs, _MOST_ITEMS)
        self.is_of_alike = is_of_alike
        self._share = 0  # of each worker in what is left of the input, once that is no more than a call for each
        super().__init__(n_jobs, batch_size, buffer)

    def note_outcome(self, outcome: Outcome, n_together: int = 1) -> None:
        """Learn how long a call took, and what its results weigh; one of several that were filled together is like no other."""
        size, seconds = len(outcome.positions), outcome.seconds
        is_whole = outcome.n_calls == 1 and outcome.n_run == size and seconds > 0
        says_something = n_together == 1 or self._search.is_too_long(seconds)
        if outcome.n_fit:
            self._search.limit_to(outcome.n_fit)
        elif self._fixed_batch == "auto" and is_whole and says_something:
            self._search.note(size, seconds, self.call)
        super().note_outcome(outcome)

    def note_together(self, n_items: int, n_calls: int, seconds: float) -> None:
        """Learn how long calls took on the average that were filled together."""
        size = round(n_items / n_calls)
        if self._fixed_batch == "auto" and seconds > 0:
            self._search.note(size, seconds * size / n_items, self.call)
        self._look_again()

    def _find_batch(self) -> int:
        self.call = self._find_call()
        return self.call * self._find_together()

    def _find_together(self) -> int:
        """Return how many calls are filled together."""
        takes_long = (self._item_seconds or 0.0) >= _LEAST_SECONDS
        if not (self.is_of_alike and self.are_texts and takes_long) or self._search.is_growing or self.call == 1:
            return 1
        most: float = _TOGETHER
        if self._fixed_buffer != "auto":
            most = min(most, self._fixed_buffer // (2 * self.call))
        if weight := (self._item_bytes or 0.0) + self._result_bytes:
            most = min(most, BUFFER_BYTES / (2 * self.call * weight))
        return max(1, int(most))

    def n_in_call(self, n_items: int) -> int:
        """Return how many of the items that are pulled together share a call."""
        return min(n_items, self.call)

    def _find_usual_buffer(self) -> int:
        own = BUFFER_BATCHES * self._n_jobs * self.call + (2 * self.batch if self.batch > self.call else 0)
        return max(BUFFER_ITEMS * self._n_jobs, own)

    def _find_call(self) -> int:
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
        return max(1, min(self.call, self.buffer // (2 * self._n_jobs)))

    def next_batch(self, room: int, remaining: int | None) -> int:
        """Items to pull now, given the room in the buffer and, if known, what the input still has."""
        size = self.batch
        if remaining is not None and self._fixed_batch == "auto":
            for_all = self.call * self._n_jobs
            # Once and for all: half of what is left each time would end in calls with two items and one.
            if not self._share and remaining <= for_all:
                self._share = math.ceil(remaining / self._n_jobs)
            size = min(self.call, self._share) if self._share else min(size, max(self.call, remaining - for_all))
        size = min(size, room)
        return max(1, size if size < self.call else size - size % self.call)
