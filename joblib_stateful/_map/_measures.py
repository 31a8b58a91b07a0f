"""What a map has spent its time with: besides what its workers did, where the consumer's thread was."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from .._measuring._measures import MOST_KEPT, Measures, clock

if TYPE_CHECKING:
    from .._scheduling._requests import Record
    from ._trace import TraceWriter


class MapMeasures(Measures):
    """Measurements of one map.

    Parameters
    ----------
    writer : TraceWriter, optional
        Is told of each, too.
    """

    def __init__(self, writer: TraceWriter | None = None) -> None:
        super().__init__()
        self._writer = writer
        #: Seconds that the consumer's thread was in the map, and of these: in the input's code, and waiting for results.
        self.inside = self.input = self.waiting = 0.0
        self._since = self._left = 0.0  # when it came in, and went out
        #: Where the consumer's thread was, when, and until when.
        self.stays: deque[tuple[str, float, float]] = deque(maxlen=MOST_KEPT)

    def note(self, record: Record) -> None:
        """Note what a message has taken, in any thread."""
        super().note(record)
        if self._writer is not None:
            self._writer.write_record(record)

    # --- the consumer's thread -----------------------------------------------------------------------

    def enter(self) -> None:
        """Note that the consumer asks for a result that is not at hand."""
        now = clock()
        if self.began is None:
            self.begin(now)
        elif self._writer is not None:
            self._writer.write_stay("consumer", self._left, now)
        self._since = now

    def leave(self) -> None:
        """Note that it is given one."""
        now = self._left = clock()
        self.inside += now - self._since
        if self._writer is not None:
            self._writer.flush()

    def stay(self, where: str, since: float) -> None:
        """Note that the consumer's thread was in the input's code, or waited, until now."""
        now = clock()
        if where == "input":
            self.input += now - since
        else:
            self.waiting += now - since
        self.stays.append((where, since, now))
        if self._writer is not None:
            self._writer.write_stay(where, since, now)

    def count(self, n_pulled: int, n_given: int) -> None:
        """Note how full the buffer is."""
        if self._writer is not None:
            self._writer.write_counters(clock(), n_pulled - n_given)

    def end(self) -> None:
        """Note that the map is over."""
        if self.ended is None:
            self.ended = clock()
        if self._writer is not None:
            self._writer.close()
