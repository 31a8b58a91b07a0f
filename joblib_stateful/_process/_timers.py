"""One thread that calls functions at given times, for time limits and idle release.

It lives only while something is due, so that a program that sets no limit has no such thread.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import sys
import threading
import time
from typing import TYPE_CHECKING

from . import _locks
from ._interrupts import uninterrupted
from ._safely import Log
from ._system import after_fork

if TYPE_CHECKING:
    from collections.abc import Callable

_log = Log()

# No wait is longer, for a platform may count no further than `threading.TIMEOUT_MAX`: 49 days, on some.
_LONGEST_WAIT = 3600.0


class Alarm:
    """A function to call at a time; ``function`` is None once it was called or cancelled."""

    def __init__(self, when: float, order: int, function: Callable[[], None]) -> None:
        self.when, self.order = when, order
        self.function: Callable[[], None] | None = function

    def __lt__(self, other: Alarm) -> bool:
        return (self.when, self.order) < (other.when, other.order)

    def cancel(self) -> None:
        """Don't call it."""
        self.function = None
        _clock.wake()


class Clock:
    """A heap of alarms and the thread that waits for the first of them."""

    def __init__(self) -> None:
        self._lock = _locks.make_lock()  # guards the two below
        # Entered only to wait: its methods are Python's own, and a Ctrl-C between them and the lock leaves that held.
        self._condition = threading.Condition(self._lock)
        self._alarms: list[Alarm] = []
        self._thread: threading.Thread | None = None
        self._order = itertools.count()

    def call_at(self, when: float, function: Callable[[], None]) -> Alarm:
        """Call a function at a time of `time.monotonic`; it must be quick and not raise."""
        alarm = Alarm(when, next(self._order), function)
        with self._lock:
            heapq.heappush(self._alarms, alarm)
            self._look_again()
        return alarm

    def wake(self) -> None:
        """Look again: an alarm was cancelled, perhaps the last one."""
        with self._lock:
            self._look_again()

    def _look_again(self) -> None:
        if self._thread is not None:
            self._condition.notify()
        elif self._alarms and not sys.is_finalizing():  # then it would never run
            thread = threading.Thread(target=self._run, name="joblib_stateful-clock", daemon=True)
            # The interpreter is ending, and everything with it; or no thread can be had just now, but next time.
            with contextlib.suppress(RuntimeError), uninterrupted():
                thread.start()
                self._thread = thread

    def _run(self) -> None:
        while (function := self._next()) is not None:
            try:
                function()
            except BaseException:  # noqa: BLE001 - the other limits must go on
                _log.exception("A time limit could not be enforced; please report this.")
            function = None

    def _next(self) -> Callable[[], None] | None:
        """Wait for the next alarm and return its function; None, and the thread is done, if there is none."""
        with self._condition:
            while True:
                self._forget_cancelled()
                if not self._alarms:
                    self._thread = None
                    return None
                wait = self._alarms[0].when - time.monotonic()
                if wait > 0:
                    self._condition.wait(min(wait, _LONGEST_WAIT))
                    continue
                alarm = heapq.heappop(self._alarms)
                function, alarm.function = alarm.function, None
                return function

    def _forget_cancelled(self) -> None:
        while self._alarms and self._alarms[0].function is None:
            heapq.heappop(self._alarms)


_clock = Clock()


def call_at(when: float, function: Callable[[], None]) -> Alarm:
    """Call a function at a time of `time.monotonic`, in a thread of ours."""
    return _clock.call_at(when, function)


def call_after(seconds: float, function: Callable[[], None]) -> Alarm:
    """Call a function after some seconds, in a thread of ours."""
    return _clock.call_at(time.monotonic() + seconds, function)


def _start_anew() -> None:
    global _clock  # noqa: PLW0603 - the parent's lock may be held for ever in a fork
    _clock = Clock()


after_fork(_start_anew)
