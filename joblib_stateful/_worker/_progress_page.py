"""The page on which a worker writes what it is doing, and how often it looks at the clock meanwhile."""

from __future__ import annotations

import math
import time
from array import array
from typing import TYPE_CHECKING, Any

from ._messages import Phase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# So many items are run between two looks at the clock: one if the latest have taken longer than so many nanoseconds, else
# four, and sixteen if they are tiny (`benchmarks/items.py`).
_MEDIUM, _CLOCK_EVERY = 2_500_000, 4
_SHORT, _CLOCK_SELDOM = 20_000, 16
# What will take so many nanoseconds more is shared with workers that have nothing to do. Any number from 5 to 80 ms does
# as well; without sharing 0.12 more of both cores would be idle (W3 shifting of `python -m benchmarks`).
_WORTH_SHARING = 20_000_000


#: No worker is granted more seconds than these to end what is over its time.
MOST_GRACE = 60.0

_PHASES = frozenset(map(int, Phase))
# Nanoseconds. All processes' clock is the same one; so much may a system round.
_CLOCK_STEP = 10_000_000


class Progress:
    """What a worker is doing: a few numbers that it writes and the parent reads, without a lock.

    Between processes they lie in shared memory. Each number is one aligned integer, so none is ever seen torn (and is
    written twice as fast as a double); those that belong together are written in an order that makes a reader in
    between err on the safe side. Times are in nanoseconds.

    Parameters
    ----------
    numbers : sequence of int, optional
        Where they lie: `SIZE` of them. By default in memory of this process.

    Examples
    --------
    >>> progress = Progress()
    >>> progress.enter(7, Phase.RUNNING)
    >>> progress.start_item(2)
    >>> progress.seq, progress.phase.name, progress.place
    (7, 'RUNNING', 2)
    """

    SIZE = 11
    PLACE, SINCE, STOP, _SHARE, _SEQ, _PHASE, _FINISHED, _SENT, _TOGETHER, _GRACE, _CANCEL = range(SIZE)

    def __init__(self, numbers: Any = None) -> None:
        #: While items run, the worker itself writes at `PLACE` and `SINCE`, and looks at `STOP`.
        self.numbers: Any = array("q", bytes(8 * self.SIZE)) if numbers is None else numbers

    def __repr__(self) -> str:
        return f"<Progress message {self.seq} {self.phase.name.lower()} item {self.place}>"

    @classmethod
    def pages(cls, n_lanes: int, numbers: Any = None) -> list[Progress]:
        """Return one for each of the places for messages of a worker; see ``numbers`` above."""
        if numbers is None:
            return [cls() for _ in range(n_lanes)]
        return [cls(numbers[cls.SIZE * lane : cls.SIZE * (lane + 1)]) for lane in range(n_lanes)]

    def copy(self) -> Progress:
        """Return what it says now, in memory of its own."""
        return Progress(array("q", self.numbers))

    def enter(self, seq: int, phase: Phase) -> None:
        """Note the start of a message, or of another part of it."""
        numbers = self.numbers
        numbers[self.PLACE] = -1
        numbers[self._PHASE] = Phase.IDLE
        numbers[self._FINISHED] = 0
        numbers[self._TOGETHER] = 1
        numbers[self._GRACE] = 0
        numbers[self.SINCE] = time.monotonic_ns()
        numbers[self._SEQ] = seq
        numbers[self._PHASE] = phase

    def reply(self, n_run: int) -> None:
        """Note that the items are run and their results being packed."""
        self.numbers[self._FINISHED] = n_run
        self.numbers[self.PLACE] = -1
        self.numbers[self._PHASE] = Phase.REPLYING

    def leave(self) -> None:
        """Note that the message is answered; its number stays, so that a reply that is lost is not run again."""
        # In this order: no item runs while the phase says that none does.
        self.numbers[self.PLACE] = -1
        self.numbers[self._PHASE] = Phase.IDLE

    def note_sent(self, seq: int) -> None:
        """Note that the answer to a message is sent, all of it."""
        self.numbers[self._SENT] = seq

    def start_item(self, place: int) -> None:
        """Note which item starts now."""
        self.numbers[self.SINCE] = time.monotonic_ns()
        self.numbers[self.PLACE] = place

    def start_call(self, place: int, n_items: int) -> None:
        """Note that a call starts now with so many items at once."""
        self.numbers[self._TOGETHER] = n_items
        self.start_item(place)

    def grant(self, seconds: float) -> None:
        """Note that the worker itself ends items of this message that are over their time, and may take so long for that."""
        self.numbers[self._GRACE] = int(seconds * 1e9)

    def stretches(
        self, seq: int, count: int, budget: float | None = None, is_full: Callable[[], object] | None = None
    ) -> Iterator[range]:
        """Yield the places of a message's items, as many at a time as are run between two looks at the clock.

        They end early if more than ``budget`` seconds have passed, or if others shall have a share of what is left and it
        is worth it, or if ``is_full`` says so.
        """
        now, numbers, share = time.monotonic_ns, self.numbers, self._SHARE
        began = latest = now()
        deadline = math.inf if budget is None else latest + budget * 1e9
        place, size = 0, 1
        while True:
            end = min(place + size, count)
            yield range(place, end)
            at = now()
            if end == count or at > deadline or (is_full is not None and is_full()):
                return
            if numbers[share] == seq and (count - end) * (at - began) > _WORTH_SHARING * end:
                return
            each = (at - latest) // (end - place)
            most = 1 if each > _MEDIUM else _CLOCK_EVERY if each > _SHORT else _CLOCK_SELDOM
            place, size, latest = end, min(most, size * _CLOCK_EVERY), at

    def ask_to_stop(self, seq: int) -> None:
        """Ask the worker, from the parent, to stop this message after the current item."""
        self.numbers[self.STOP] = seq

    def ask_to_cancel(self, seq: int) -> None:
        """Tell the worker, from the parent, that nobody wants what comes of this message."""
        self.numbers[self._CANCEL] = seq

    @property
    def to_be_cancelled(self) -> int:
        """The latest message that nobody wants."""
        return int(self.numbers[self._CANCEL])

    def ask_to_share(self, seq: int) -> None:
        """Ask the worker, from the parent, to give back what is left of this message, if that will take a while."""
        self.numbers[self._SHARE] = seq

    def fault(self, seq: int, size: int, least: int = 0, began: float | None = None) -> str:
        """Say what can't be of what it says; "" if nothing is wrong.

        The worker's code may have written to it by mistake, as compiled code can. Believed, that would blame another item, or
        keep a time limit from ever being over.

        Parameters
        ----------
        seq : int
            The message under way.
        size : int
            How many items that has.
        least : int
            The message that was begun last before it was sent.
        began : float, optional
            The time of `time.monotonic` before which it can't have been begun.
        """
        numbers = self.numbers
        place, phase, latest = int(numbers[self.PLACE]), int(numbers[self._PHASE]), int(numbers[self._SEQ])
        if not least <= latest <= seq:
            return f"it says that it works at message {latest}, and was sent {seq}"
        if phase not in _PHASES:
            return f"it says that it is in phase {phase}, and there is none"
        return self._fault_in_message(place, phase, size, began) if latest == seq else ""

    def _fault_in_message(self, place: int, phase: int, size: int, began: float | None) -> str:
        numbers = self.numbers
        finished, since, together = (
            int(numbers[self._FINISHED]),
            int(numbers[self.SINCE]),
            int(numbers[self._TOGETHER]),
        )
        if not -1 <= place < max(size, 1) or not 0 <= finished <= size or not 1 <= together <= max(size, 1):
            return f"it says that item {place} runs, {together} at once, and {finished} are finished of a message of {size}"
        if place >= 0 and phase == Phase.IDLE and numbers[self.PLACE] >= 0:  # not only before, when it still ran
            return f"it says that item {place} runs, and that nothing does"
        if began is not None and not round(began * 1e9) - _CLOCK_STEP <= since <= time.monotonic_ns() + _CLOCK_STEP:
            return f"it says that what it does began at {since / 1e9:.9g} s, and that was sent at {began:.9g} s"
        return ""

    @property
    def seq(self) -> int:
        """The latest message that was begun."""
        return int(self.numbers[self._SEQ])

    @property
    def sent(self) -> int:
        """The latest message of which the answer is sent."""
        return int(self.numbers[self._SENT])

    @property
    def phase(self) -> Phase:
        """What is being done; `Phase.IDLE` if it says what can't be."""
        phase = int(self.numbers[self._PHASE])
        return Phase(phase) if phase in _PHASES else Phase.IDLE

    @property
    def place(self) -> int | None:
        """The item that runs, by its place in the message."""
        place = int(self.numbers[self.PLACE])
        return None if place < 0 else place

    @property
    def n_together(self) -> int:
        """How many items run at once, from `place` on: 1 unless the worker is called with several."""
        return int(self.numbers[self._TOGETHER])

    @property
    def grace(self) -> float:
        """Seconds more than its limit that an item may run, because the worker itself is about to end it."""
        return min(max(float(self.numbers[self._GRACE] / 1e9), 0.0), MOST_GRACE)

    @property
    def since(self) -> float:
        """When the current item, if that is timed, or else the current phase, began (`time.monotonic`)."""
        return float(self.numbers[self.SINCE] / 1e9)

    @property
    def n_finished(self) -> int:
        """How many items of the message are behind it."""
        place = self.place
        return int(self.numbers[self._FINISHED]) if place is None else place
