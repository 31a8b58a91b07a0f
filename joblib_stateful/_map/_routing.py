"""The input of a map whose items must each run in a certain slot, ``route=``."""

from __future__ import annotations

import operator
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from .._scheduling._requests import Request
from .._worker._messages import NOTHING
from ._batches import Batch
from ._feeder import PULL_SECONDS, Feeder
from ._plan import AFTER_ERROR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .._transport._transport import Packing


class RoutedFeeder(Feeder):
    """Makes batches with a request for each slot that items of theirs must run in; see `Feeder`."""

    def next_batch(self, room: int, *, is_awaited: bool = True) -> Batch | None:  # noqa: ARG002 - one may wait in any case
        """Pull a batch for which there is room; None if the input has ended."""
        source, wanted = self._source(), self._n_wanted(room)
        batch = Batch(self.n_pulled, 0, self._inbox)
        try:
            parts, errors = self._pull_parts(source, batch, room, wanted)
        finally:
            self.n_pulled += batch.size
        for slot, (items, positions) in parts.items():
            indices = [batch.first + position for position in positions]
            batch.requests.append(self._request(items, partial(batch.deliver_some, positions), indices, slot))
        if errors:
            batch.requests.append(self._refused(batch, errors))
        return batch if batch.size else None

    def _pull_parts(
        self, source: Iterator[Any], batch: Batch, room: int, wanted: int
    ) -> tuple[dict[int, tuple[Packing, list[int]]], dict[int, Exception]]:
        """Pull until there is as much for one slot as a batch shall have, or the buffer is full, or that takes long.

        Return, by slot, the items with their positions in the batch, and by position why others have no slot.
        """
        parts: dict[int, tuple[Packing, list[int]]] = {}
        errors: dict[int, Exception] = {}
        until, self.is_slow = time.perf_counter() + PULL_SECONDS, False
        while batch.size < room and not self.is_slow:
            try:
                item = next(source)
            except StopIteration:
                self._input, self.is_over = None, True
                break
            except Exception as error:  # noqa: BLE001 - it is raised when the items before it are done with
                self.error, self._input, self.is_over = error, None, True
                break
            position, batch.size = batch.size, batch.size + 1
            self.is_slow = time.perf_counter() > until
            try:
                slot = self._slot_of(item)
            except StopIteration as error:
                errors[position] = RuntimeError("route raised StopIteration for this item, which is its cause.")
                errors[position].__cause__ = error
                continue
            except Exception as error:  # noqa: BLE001 - the item's own
                errors[position] = error
                continue
            items, positions = parts[slot] = parts.get(slot) or (self._packing(), [])
            items.add(item)
            positions.append(position)
            if items.count >= wanted or items.nbytes > self._plan.batching.max_bytes:
                break
        return parts, errors

    def _refused(self, batch: Batch, errors: dict[int, Exception]) -> Request:
        """Return a request of items that nobody can run, for what is wrong with them."""
        plan, positions = self._plan, list(errors)
        deliver = partial(batch.deliver_some, positions)
        return Request(
            len(positions),
            self._group,
            deliver,
            plan.limits,
            parcel=NOTHING,
            faults=dict(enumerate(errors.values())),
            indices=[batch.first + position for position in positions],
            after_error=AFTER_ERROR[plan.on_error],
        )

    def _slot_of(self, item: Any) -> int:
        """Return the slot that an item must run in; raise what is wrong with that."""
        route: Callable[[Any], Any] | None = self._plan.route
        assert route is not None  # noqa: S101 - whoever has none needs no such feeder
        slot, n_slots = route(item), self._plan.n_jobs
        known = f"the number of a worker, an integer from 0 to {n_slots - 1}"
        try:
            index = -1 if isinstance(slot, bool) else operator.index(slot)
        except TypeError:
            raise TypeError(f"route must return {known}, and returned {slot!r:.100}.") from None
        if isinstance(slot, bool):
            raise TypeError(
                f"route must return {known}, and returned {slot!r}. Write int(...) if that is what is meant."
            )
        if not 0 <= index < n_slots:
            raise IndexError(f"route must return {known}, and returned {index}. Write ... % {n_slots}, say.")
        return index
