"""The input of a map: pulled in the consumer's thread, packed into batches."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from .._executor._replies import packing_error_of
from .._scheduling._requests import Request
from .._transport._held import Held
from .._transport._noticing import Memory
from .._transport._segments import SPARE_BYTES
from ._batches import Batch
from ._plan import AFTER_ERROR

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .._scheduling._requests import Group, Outcome
    from .._transport._transport import Packing
    from .._worker._surroundings import Surroundings
    from ._batches import Inbox
    from ._plan import Plan

# A slow input must not hold results up: a batch is sent as it is when pulling it has taken so long.
PULL_SECONDS = 0.02
# Pulling from these runs nobody's code, so several items can be pulled before the first of them is packed.
_AT_REST: tuple[type, ...] = tuple(map(type, map(iter, ([], (), range(0), range(1 << 64)))))


class Feeder:
    """Makes batches of a map's input, as long as it has some.

    Parameters
    ----------
    plan : Plan
        What to do.
    group : Group
        What its batches are a part of.
    inbox : Inbox
        Where what becomes of them is left.
    """

    def __init__(self, plan: Plan, group: Group, inbox: Inbox) -> None:
        self._plan, self._group, self._inbox = plan, group, inbox
        self._input: Iterator[Any] | None = None
        self._is_at_rest = False  # its items are there already: it is never slow
        self._set_back: list[Any] = []  # items of such an input for which the latest batch had no room
        self._begun: Packing | None = None  # the first items of a batch that is to be whole before it is sent
        self._memory = Memory()
        # Else an array that goes with each item would be written anew when none of those is under way just now.
        self._held = Held(SPARE_BYTES)
        self.surroundings: Surroundings | None = None  # when the input was begun
        self.n_pulled = 0
        self.is_over = False
        self.is_slow = False  # the latest batch took long to pull
        self.error: Exception | None = None  # that the input has raised

    def next_batch(self, room: int, *, is_awaited: bool = True) -> Batch | None:
        """Pull a batch for which there is room; None if the input has ended, or if it has only begun.

        That is so where all of it makes one call, and no worker waits for it (``is_awaited``): a slow input goes on with it
        the next time.
        """
        source, wanted = self._source(), self._n_wanted(room)
        items, self._begun = self._begun or self._packing(), None
        self._pull(items, source, max(0, wanted - items.count))  # calls may have become smaller meanwhile
        count = items.count
        is_whole = count >= wanted or not self._plan.batching.is_of_calls
        if self.is_slow and not (is_whole or is_awaited or self.is_over):
            self._begun = items
            return None
        return self._batch_of(items) if count else None

    def _source(self) -> Iterator[Any]:
        if self._input is None:
            self.surroundings = self._plan.surroundings()  # before the input's own code
            self._input = iter(self._plan.iterable)
            self._is_at_rest = isinstance(self._input, _AT_REST)
        return self._input

    def _n_wanted(self, room: int) -> int:
        length = self._plan.length
        return self._plan.batching.next_batch(room, None if length is None else max(0, length - self.n_pulled))

    @property
    def has_begun_batch(self) -> bool:
        """True if the next batch has begun, and its rest is to be pulled."""
        return self._begun is not None

    def __repr__(self) -> str:
        return f"<Feeder {self.n_pulled} pulled{', over' * self.is_over}{', slow' * self.is_slow}>"

    def end(self) -> None:
        """Pull nothing more."""
        source, self._input, self.is_over = self._input, None, True
        self._set_back.clear()
        self._held.clear()
        self._begun, self._plan = None, self._plan.ended()
        if isinstance(source, Generator):
            source.close()

    def _packing(self) -> Packing:
        transport = self._plan.transport
        return transport.packing(
            sharing=transport.sharing_with(self._held), definer=transport.definer(memory=self._memory)
        )

    def _pull(self, items: Packing, source: Iterator[Any], wanted: int, until: float | None = None) -> None:
        """Pull and pack up to ``wanted`` items more; fewer if the input ends, breaks or is slow, until a time for all of it."""
        max_bytes = self._plan.batching.max_bytes
        try:
            if self._is_at_rest:
                has_more = self._fill(items, source, wanted, max_bytes)
            else:
                if until is None:
                    until = time.perf_counter() + PULL_SECONDS
                has_more = items.pull(source, wanted, until=until, max_bytes=max_bytes)
                self.is_slow = items.is_late
        except Exception as error:  # noqa: BLE001 - it is raised when the items before it are done with
            self.error, has_more = error, False
        if not has_more:
            self._input, self.is_over = None, True

    def _fill(self, items: Packing, source: Iterator[Any], wanted: int, max_bytes: float) -> bool:
        """Pack items that are there already; return whether there may be more."""
        values = self._set_back[:wanted]
        del self._set_back[:wanted]
        values += islice(source, wanted - len(values))
        n_packed = items.fill(values, max_bytes=max_bytes)
        self._set_back[:0] = values[n_packed:]
        return n_packed < len(values) or len(values) == wanted

    def _batch_of(self, items: Packing) -> Batch:
        first, count = self.n_pulled, items.count
        batch = Batch(first, count, self._inbox)
        batch.requests.append(self._request(items, batch.deliver, range(first, first + count)))
        self.n_pulled += count
        return batch

    def _faults_of(self, items: Packing, indices: Sequence[int]) -> dict[int, BaseException]:
        return {position: packing_error_of(error, indices[position]) for position, error in items.faults.items()}

    def _request(
        self,
        items: Packing,
        deliver: Callable[[Outcome], None],
        indices: Sequence[int],
        only: int | None = None,
    ) -> Request:
        plan, count = self._plan, items.count
        parcel = items.finish()
        if parcel.n_values:
            plan.batching.note_sent(parcel.nbytes, parcel.n_values)
        return Request(
            count,
            self._group,
            deliver,
            plan.limits,
            parcel=parcel,
            faults=self._faults_of(items, indices) if items.faults else None,
            indices=indices,
            mode=plan.pass_as,
            target=plan.target,
            surroundings=self.surroundings,
            after_error=AFTER_ERROR[plan.on_error],
            budget=None if only is not None else plan.batching.budget,  # nobody else could do what is left of it
            isolate=plan.isolate,
            only=only,
        )
