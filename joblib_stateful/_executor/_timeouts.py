"""What is done when time has passed: items, constructions and ends over their limits, workers that are idle."""

from __future__ import annotations

import math
import time
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from .._process import _timers
from .._process._safely import Log
from .._scheduling._slots import Late
from .._worker._messages import Phase, Run

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from .._scheduling._scheduler import Scheduler
    from .._worker._messages import Build
    from ..engines import EngineWorker

# A process that was started has this long to import things and begin building, on top of init_timeout; and a worker as
# long to load a function before its first item begins, on top of item_timeout.
_STARTUP_SECONDS = 60.0
# A worker that is told to end has so long for that: for its object's close(), which may have data to save. After it what
# waits goes on: the end of an executor, or another worker's turn on the same GPU.
CLOSE_SECONDS = 30.0

_log = Log()


class Watched(NamedTuple):
    """A message under way that has a time limit."""

    worker: EngineWorker
    seq: int
    size: int  # items in it
    limit: float
    began: float  # when it was about to be sent
    least: int  # the number of the message that the worker said it was at then
    idle_since: float | None = None  # when it was first seen to have answered, though no answer has come


class LimitWatch:
    """The time limits of the messages under way; one alarm per slot serves all of its items.

    The alarm is not moved with each item: when it goes off, it looks at what runs by then, and comes back when
    that may be over its time.

    Parameters
    ----------
    n_slots : int
        Number of slots.
    lock : threading.Condition
        Guards what ``is_under_way`` looks at, and this.
    is_under_way : callable
        Tells whether a slot still works at a message, by slot and number.
    expire : callable
        Called without the lock, with slot, number and the place of the item, if what runs is over its time.
    condemn : callable
        Called without the lock, with a worker and what is wrong, if what that says of itself can't be.
    is_one_at_a_time : bool
        Workers take one message after the other, with growing numbers.
    """

    def __init__(
        self,
        n_slots: int,
        lock: threading.Condition,
        is_under_way: Callable[[int, int], bool],
        expire: Callable[[int, int, int | None], None],
        condemn: Callable[[EngineWorker, str], None],
        *,
        is_one_at_a_time: bool = True,
    ) -> None:
        self._is_one_at_a_time = is_one_at_a_time
        self._lock, self._is_under_way, self._expire, self._condemn = lock, is_under_way, expire, condemn
        self._alarms: list[_timers.Alarm | None] = [None] * n_slots
        # By number. Some may be over; they are forgotten when the alarm goes off, or there are twice as many as then.
        self._watched: list[dict[int, Watched]] = [{} for _ in range(n_slots)]
        self._n_expected = [0] * n_slots

    def grow(self, n_slots: int) -> None:
        """Get ready for more slots; to be called with the lock."""
        more = n_slots - len(self._alarms)
        self._alarms += [None] * more
        self._watched += [{} for _ in range(more)]
        self._n_expected += [0] * more

    def begin(self, worker: EngineWorker, message: Build | Run, limit: float | None) -> Watched | None:
        """Return what is to be watched once a message is sent that is about to be; None if it has no limit."""
        if limit is None:
            return None
        size = message.parcel.n_values if isinstance(message, Run) else 0
        least = worker.progress.seq
        if not 0 <= least < message.seq:  # it says what it likes; the next message has it written anew
            least = 0
        return Watched(worker, message.seq, size, limit, time.monotonic(), least if self._is_one_at_a_time else 0)

    def watch(self, slot: int, watched: Watched) -> None:
        """Watch a message that was just sent."""
        with self._lock:
            if self._is_under_way(slot, watched.seq):
                if len(self._watched[slot]) > 2 * self._n_expected[slot]:
                    self._forget_those_over(slot)
                self._watched[slot][watched.seq] = watched
                self._wake_at(slot, time.monotonic() + watched.limit)

    def take_alarms(self) -> list[_timers.Alarm | None]:
        """Forget everything and return the alarms, to be cancelled; to be called with the lock."""
        alarms = self._alarms
        self._alarms, self._watched = [None] * len(alarms), [{} for _ in alarms]
        return alarms

    def _forget_those_over(self, slot: int) -> None:
        watched = self._watched[slot]
        for seq in [seq for seq in watched if not self._is_under_way(slot, seq)]:
            del watched[seq]
        self._n_expected[slot] = len(watched)

    def _wake_at(self, slot: int, due: float) -> None:
        alarm = self._alarms[slot]
        if alarm is not None and alarm.when > due:
            alarm.cancel()
            alarm = None
        if alarm is None:
            self._alarms[slot] = _timers.call_at(due, partial(self._look, slot))

    def _look(self, slot: int) -> None:
        with self._lock:
            self._alarms[slot] = None
            self._forget_those_over(slot)
            under_way = list(self._watched[slot].values())
            found = [(watched, self._look_at(slot, watched)) for watched in under_way]
            due = min((seen for _, seen in found if isinstance(seen, float)), default=math.inf)
            if due < math.inf:
                self._wake_at(slot, due)
        for watched, seen in found:
            if isinstance(seen, str):
                self._condemn(watched.worker, seen)
            elif isinstance(seen, Late):
                self._expire(slot, watched.seq, seen.place)

    def _look_at(self, slot: int, watched: Watched) -> float | str | Late:
        """Return when to look at a message again; or what can't be of what its worker says; or that it is over its time."""
        now = time.monotonic()
        worker, limit, progress = watched.worker, watched.limit, watched.worker.progress_of(watched.seq)
        # Where several are under way, its place may have been another message's before.
        if self._is_one_at_a_time or progress.seq == watched.seq:
            fault = progress.fault(watched.seq, watched.size, watched.least, watched.began)
            if fault:
                return fault
        doing, since = (progress.phase, progress.place), progress.since
        idle_since = None
        if progress.seq != watched.seq:  # not begun
            due = watched.began + _STARTUP_SECONDS + limit
        elif doing[0] is Phase.IDLE or doing != (progress.phase, progress.place):
            # It is answered, though nobody here has read that yet; or something else has begun just now, to which
            # what was read may not belong.
            due = now + limit
            if worker.owes_answer(watched.seq):
                idle_since = watched.idle_since or now
        else:
            due = since + limit * max(1, progress.n_together) + progress.grace
        if idle_since is not None and now - idle_since > _STARTUP_SECONDS + limit:
            return "it says that a message is answered, but has sent no answer"
        if due <= now:
            return Late(doing[1])
        self._watched[slot][watched.seq] = watched._replace(idle_since=idle_since)
        return min(due, now + limit)


class IdleWatch:
    """Has idle workers closed after some seconds without work.

    Parameters
    ----------
    seconds : float or None
        After how long; None: never.
    scheduler : Scheduler
        Tells whether there is work.
    release : callable
        Closes the workers.
    """

    def __init__(self, seconds: float | None, scheduler: Scheduler, release: Callable[[], None]) -> None:
        self._seconds, self._scheduler, self._release = seconds, scheduler, release
        self._alarm: _timers.Alarm | None = None

    def restart(self) -> None:
        """Begin to count, if there is nothing to do now."""
        if self._seconds is None or not self._is_at_rest:
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = _timers.call_after(self._seconds, self._look)

    def take_alarm(self) -> _timers.Alarm | None:
        """Count no more, and return the alarm, to be cancelled."""
        alarm, self._alarm = self._alarm, None
        return alarm

    def _look(self) -> None:
        if self._is_at_rest:
            self._release()

    @property
    def _is_at_rest(self) -> bool:
        # Objects that were just built for `warm_up` stay until the others stand.
        return self._scheduler.is_idle and not self._scheduler.is_warming


class CloseWatch:
    """Has workers killed that were told to end and don't.

    Parameters
    ----------
    can_kill : bool
        They are processes; threads can only be given up.
    """

    def __init__(self, *, can_kill: bool) -> None:
        self._can_kill = can_kill
        self._alarms: dict[int, _timers.Alarm] = {}

    def watch(self, slot: int, worker: EngineWorker, seq: int, closed: Callable[[], None]) -> None:
        """Give a worker its time from now on; ``closed`` is called once it was killed."""
        self._wake(slot, worker, seq, closed, is_ending=False)

    def over(self, slot: int) -> None:
        """Note that a slot's worker has ended."""
        alarm = self._alarms.pop(slot, None)
        if alarm is not None:
            alarm.cancel()

    def tell(self, slot: int, worker: EngineWorker, seconds: float) -> None:
        """Warn that a worker is killed that was told to end."""
        progress = worker.progress
        if progress.phase is Phase.CLOSING:
            why = (
                "close() of its object still ran. Likely cause: it waits for something that does not come, such as a thread, "
                "a lock or a server; give that wait a limit of its own"
            )
        else:
            why = (
                "it did not take the message that told it to. Likely cause: its process was stopped (kill -STOP, a debugger, "
                "a suspended job), or compiled code of the user's holds it up"
            )
        end = "killed with all that it had started" if self._can_kill else "given up: a thread can't be killed"
        _log.warning(
            "The worker in slot %d (pid %s) had %g s to end, and was then %s, because %s.",
            slot,
            worker.pid,
            seconds,
            end,
            why,
        )

    def _wake(self, slot: int, worker: EngineWorker, seq: int, closed: Callable[[], None], *, is_ending: bool) -> None:
        look = partial(self._look, slot, worker, seq, closed, is_ending)
        self._alarms[slot] = _timers.call_after(CLOSE_SECONDS, look)

    def _look(self, slot: int, worker: EngineWorker, seq: int, closed: Callable[[], None], was_ending: bool) -> None:  # noqa: FBT001 - by `partial`
        if self._alarms.pop(slot, None) is None:  # it has just ended
            return
        progress = worker.progress
        if progress.seq == seq and progress.phase is Phase.IDLE and not was_ending:
            # It has answered, and the engine sees to it that its process ends.
            self._wake(slot, worker, seq, closed, is_ending=True)
            return
        self.tell(slot, worker, CLOSE_SECONDS)
        worker.kill()
        closed()
