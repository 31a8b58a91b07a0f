"""The input of a map whose worker is called with several items: texts of about the same length share a call.

A model that pads the texts of a call takes as long for each of them as for the longest one.
"""

from __future__ import annotations

import math
import time
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from . import _feeder
from ._batches import Batch
from ._feeder import Feeder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .._transport._transport import Packing


class AlikeFeeder(Feeder):
    """Makes batches of several calls, as many as are to be filled together, as long as the items are texts; see `Feeder`."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._parts: list[Packing] = []  # the first items of a batch that is to be whole before it is sent

    def next_batch(self, room: int, *, is_awaited: bool = True) -> Batch | None:
        """Pull a batch for which there is room; None if the input has ended, or if it has only begun."""
        source, wanted = self._source(), self._n_wanted(room)
        parts, self._parts = self._parts, []
        is_begun = self._pull_parts(parts, source, wanted)
        if is_begun and not is_awaited:
            self._parts = parts
            return None
        count = sum(items.count for items in parts)
        return self._batch_of_parts([items for items in parts if items.count], count) if count else None

    @property
    def has_begun_batch(self) -> bool:
        """True if the next batch has begun, and its rest is to be pulled."""
        return bool(self._parts)

    def end(self) -> None:
        """Pull nothing more."""
        self._parts = []
        super().end()

    def _pull_parts(self, parts: list[Packing], source: Iterator[Any], wanted: int) -> bool:
        """Pull up to so many items in all, in parts of a call each; no more behind one that is not all texts.

        Return whether there is something else to do first, and more may be pulled then.
        """
        size, left = self._plan.batching.n_in_call(wanted), wanted - sum(items.count for items in parts)
        if not parts or parts[-1].count >= size:
            parts.append(self._packing())
        until = time.perf_counter() + _feeder.PULL_SECONDS
        while True:
            items, before = parts[-1], parts[-1].count
            # Calls may have become smaller meanwhile.
            self._pull(items, source, max(0, min(left, size - before)), until)
            left -= items.count - before
            if left <= 0 or self.is_over or _lengths_of(items.held) is None:
                return False
            if self.is_slow or (self._inbox.news and not self._is_at_rest):
                return True
            parts.append(self._packing())

    def _batch_of_parts(self, parts: list[Packing], count: int) -> Batch:
        self._plan.batching.are_texts = type((parts[0].held or (None,))[0]) is str
        if len(parts) == 1:
            return self._batch_of(parts[0])
        batch = Batch(self.n_pulled, count, self._inbox)
        for items, places in self._alike(parts):
            indices = [batch.first + place for place in places]
            batch.requests.append(self._request(items, partial(batch.deliver_some, places), indices))
        batch.n_calls = batch.n_open = len(batch.requests)
        self.n_pulled += count
        return batch

    def _alike(self, parts: list[Packing]) -> Iterator[tuple[Packing, Sequence[int]]]:
        """Yield what shares a call, with its places in the batch."""
        values = [value for items in parts for value in items.held or (None,)]
        lengths, start = _lengths_of(values), 0
        if lengths is None:  # the last one has another item
            for items in parts:
                yield items, range(start, start := start + items.count)
            return
        for places in alike(lengths, self._plan.batching.n_in_call(len(lengths))):
            items = self._packing()
            items.extend(values[place] for place in places)
            yield items, places


def _lengths_of(values: Sequence[Any] | None) -> list[int] | None:
    """Return how long texts are; None if some are none, or can't be seen."""
    if not values or any(type(value) is not str for value in values):
        return None
    return list(map(len, values))


def alike(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Return the places of items that go together, at most so many in each call; those of the first item first.

    The more items there are to choose from, the more alike are those of a call. In each they keep their order.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    n_calls = math.ceil(len(order) / size)
    ends = [len(order) * number // n_calls for number in range(n_calls + 1)]
    return sorted(sorted(order[start:end]) for start, end in pairwise(ends))
