"""What comes back to a map, put in order by the consumer's thread."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .._scheduling._requests import Outcome
    from ._batches import Batch
    from ._generator import BatchGenerator


class Results:
    """Batches under way, and which of their outcomes are next; used by one thread at a time.

    Parameters
    ----------
    call : BatchGenerator
        By which they go out and come back.
    ordered : bool
        In the order of the input, or as they come.
    """

    def __init__(self, call: BatchGenerator, *, ordered: bool) -> None:
        self._call, self._ordered = call, ordered
        #: Messages that workers can be at, of batches of which the consumer has not been told that all is there.
        self.n_running = 0
        # Ordered: all that were not taken. Else: those of which something can be taken, once for each outcome, None for the
        # first one of each: which batch that is says joblib.
        self._next: deque[Batch | None] = deque()
        self._present: Batch | None = None  # the first of these, once joblib has given it

    def send(self, batch: Batch) -> None:
        """Have a batch run."""
        self.n_running += batch.n_open
        if self._ordered:
            self._next.append(batch)
        self._call.send(batch)

    def note(self, batch: Batch, outcome: Outcome) -> None:
        """Learn what was found in the inbox."""
        if not self._ordered:
            self._next.append(batch if batch.has_begun else None)
        batch.has_begun = True
        batch.n_run += outcome.n_run
        batch.seconds += outcome.seconds
        batch.result_bytes += outcome.result_bytes
        batch.n_known += len(outcome.positions)
        # At least one, until all is there.
        n_open = 0 if batch.is_known else max(1, batch.n_open - outcome.is_last)
        self.n_running -= batch.n_open - n_open
        batch.n_open = n_open

    @property
    def is_ready(self) -> bool:
        """True if there is something to take."""
        if not self._next or not self._ordered:
            return bool(self._next)
        batch = self._next[0]
        assert batch is not None  # noqa: S101 - see above
        return batch.has_begun and batch.is_next_there

    def take(self) -> tuple[int, Outcome]:
        """Take what is next: the index in the input of position 0, and what became of some items from there."""
        if not self._ordered:
            batch = self._next.popleft() or self._call.take()
            return batch.first, batch.outcomes.popleft()
        if self._present is None:
            self._present = self._call.take()
        batch = self._present
        outcome = batch.take()
        if batch.is_taken:
            self._next.popleft()
            self._present = None
        return batch.first, outcome

    def __repr__(self) -> str:
        return f"<Results {self.n_running} running, next: {list(self._next)[:3]}>"

    def end(self) -> None:
        """End joblib's call at once, whatever state it is in."""
        self._call.end()
