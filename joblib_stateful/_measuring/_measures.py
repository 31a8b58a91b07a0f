"""What workers have spent their time with: a record for each message, and the sums of all."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from .._process import _locks
from .._process._interrupts import uninterrupted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .._scheduling._requests import Record

# So many messages, and stays of a map's consumer's thread, are kept one by one, for pictures; the sums are of all. A million
# tiny items are a few hundred messages, and 10,000 records weigh 3 MB.
MOST_KEPT = 10_000
# So many are added up at a time, by one thread, and sooner for whoever asks.
_AT_ONCE = 100

clock = time.perf_counter


class SlotReport(NamedTuple):
    """What one worker has done, in seconds."""

    slot: int
    work: float  # in its code
    building: float
    transport: float  # of items and results, and on their way
    n_items: int
    n_builds: int
    n_deaths: int


class _SlotSums:
    """What the messages of one slot have taken, in seconds."""

    __slots__ = ("building", "life_lost", "n_builds", "n_deaths", "n_items", "transport", "work")

    def __init__(self) -> None:
        self.work = self.building = self.transport = 0.0
        self.n_items = self.n_builds = self.n_deaths = 0
        self.life_lost: int | None = None  # the latest one

    def add(self, record: Record) -> None:
        lasted = record.received - record.sent
        if record.what == "ran":  # nearly all do
            seconds = record.seconds
            self.work += seconds
            if lasted > seconds:  # by two clocks
                self.transport += lasted - seconds
            self.n_items += record.n_run
        elif record.what == "built":
            self.building += lasted
            self.n_builds += 1
        else:
            if record.n_items:
                self.work += lasted  # nothing came of it, but it was at it
            else:
                self.building += lasted
            # It is told of each message that the worker was at.
            self.n_deaths += record.life != self.life_lost
            self.life_lost = record.life

    def add_under_way(self, record: Record) -> None:
        if record.what == "building":
            self.building += record.received - record.sent
        else:
            self.work += record.received - record.sent

    def copy(self) -> _SlotSums:
        copy = _SlotSums()
        for name in self.__slots__:
            setattr(copy, name, getattr(self, name))
        return copy

    def report(self, slot: int) -> SlotReport:
        return SlotReport(slot, self.work, self.building, self.transport, self.n_items, self.n_builds, self.n_deaths)


class Measures:
    """Measurements of some workers, told and asked in any thread."""

    def __init__(self) -> None:
        #: When the first of it began, and the last of it was over, or None.
        self.began: float | None = None
        self.ended: float | None = None
        self._new: deque[Record] = deque()
        # Held by who adds up. Whoever has something to tell doesn't wait for it: a finaliser may run under it.
        self._lock = _locks.Lock()
        self._slots: dict[int, _SlotSums] = {}
        self._records: deque[Record] = deque(maxlen=MOST_KEPT)

    def begin(self, at: float) -> None:
        """Note that something begins."""
        if self.began is None:
            self.began = at

    def stop_clock(self, at_least: float) -> None:
        """Note that it is over, since the latest message was answered, or some later time."""
        if self.ended is None:
            self.ended = max([at_least, self.began or 0.0, *(record.received for record in self.records)])

    def note(self, record: Record) -> None:
        """Note what a message has taken."""
        new = self._new
        new.append(record)
        if len(new) >= _AT_ONCE:
            self._add_up(wait=False)

    def _add_up(self, *, wait: bool) -> None:
        with uninterrupted():
            if self._lock.is_mine or not self._lock.acquire(blocking=wait):
                return  # by a finaliser meanwhile, or another thread is at it
            try:
                self._add_all()
            finally:
                self._lock.release()

    def _add_all(self) -> None:
        new, keep, slots = self._new, self._records.append, self._slots
        while new:
            record = new.popleft()
            keep(record)
            sums = slots.get(record.slot)
            if sums is None:
                sums = slots[record.slot] = _SlotSums()
            sums.add(record)

    @property
    def records(self) -> deque[Record]:
        """The latest ones."""
        # In a finaliser under another lock it is not waited for: who has this one may wait for that.
        self._add_up(wait=not _locks.is_held())
        return self._records.copy()

    def of_workers(self, under_way: Iterable[Record] = ()) -> list[SlotReport]:
        """Return what each worker has done, with that which it is at."""
        self._add_up(wait=not _locks.is_held())
        slots = self._slots.copy()
        for record in under_way:
            slots[record.slot] = slots[record.slot].copy() if record.slot in slots else _SlotSums()
            slots[record.slot].add_under_way(record)
        return [sums.report(slot) for slot, sums in sorted(slots.items())]

    @property
    def seconds(self) -> float:
        """How long it has taken so far."""
        return 0.0 if self.began is None else (self.ended or clock()) - self.began

    def disown(self) -> None:
        """In a fork: have nothing to do with what the parent's threads are at."""
        self._lock = _locks.Lock()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {len(self._records)} messages in {self.seconds:.3g} s>"
