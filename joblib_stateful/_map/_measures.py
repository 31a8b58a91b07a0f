"""What a map has spent its time with: a record for each message, and where the consumer's thread was."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from .._process import _locks

if TYPE_CHECKING:
    from .._scheduling._requests import Record
    from ._trace import TraceWriter

# So many messages, and stays of the consumer's thread, are kept one by one, for pictures; the sums are of all. A million
# tiny items are a few hundred messages, and 10,000 records weigh 3 MB.
MOST_KEPT = 10_000

clock = time.perf_counter


class SlotSums:
    """What the messages of one slot have taken, in seconds."""

    __slots__ = ("building", "n_builds", "n_deaths", "n_items", "transport", "work")

    def __init__(self) -> None:
        self.work = self.building = self.transport = 0.0
        self.n_items = self.n_builds = self.n_deaths = 0


class Measures:
    """Measurements of one map.

    Parameters
    ----------
    writer : TraceWriter, optional
        Is told of each, too.
    """

    def __init__(self, writer: TraceWriter | None = None) -> None:
        self._writer = writer
        self._lock = _locks.Lock()  # nothing is waited for under it, so that finalisers need not know of it
        self.began: float | None = None
        self.ended: float | None = None
        #: Seconds that the consumer's thread was in the map, and of these: in the input's code, and waiting for results.
        self.inside = self.input = self.waiting = 0.0
        self._since = self._left = 0.0  # when it came in, and went out
        self.slots: dict[int, SlotSums] = {}
        self.records: deque[Record] = deque(maxlen=MOST_KEPT)
        #: Where the consumer's thread was, when, and until when.
        self.stays: deque[tuple[str, float, float]] = deque(maxlen=MOST_KEPT)
        self.slowest: Record | None = None  # of those with one item

    # --- the workers' side, in any thread ------------------------------------------------------------

    def note(self, record: Record) -> None:
        """Note what a message has taken."""
        with self._lock:
            self.records.append(record)
            sums = self.slots.get(record.slot) or self.slots.setdefault(record.slot, SlotSums())
            if record.what == "built":
                sums.building += record.received - record.sent
                sums.n_builds += 1
            elif record.what == "ran":
                sums.work += record.seconds
                sums.transport += max(0.0, record.received - record.sent - record.seconds)
                sums.n_items += record.n_run
                if record.n_items == 1 and (self.slowest is None or record.seconds > self.slowest.seconds):
                    self.slowest = record
            else:
                sums.work += record.received - record.sent  # nothing came of it, but it was at it
                sums.n_deaths += 1
        if self._writer is not None:
            self._writer.write_record(record)

    # --- the consumer's thread -----------------------------------------------------------------------

    def enter(self) -> None:
        """Note that the consumer asks for a result that is not at hand."""
        now = clock()
        if self.began is None:
            self.began = now
        elif self._writer is not None:
            self._writer.write_stay("consumer", self._left, now)
        self._since = now

    def leave(self) -> None:
        """Note that it is given one."""
        now = self._left = clock()
        self.inside += now - self._since

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

    @property
    def seconds(self) -> float:
        """How long the map has taken so far."""
        return 0.0 if self.began is None else (self.ended or clock()) - self.began

    def __repr__(self) -> str:
        return f"<Measures {len(self.records)} messages in {self.seconds:.3g} s>"
