"""The thread that hears all worker processes of one executor: it receives their answers, and notices their ends.

It is a leader with followers to come. One thread reads, and has what it receives noted and handed on itself, for another
one would have to be woken for each answer. That may run users' code: a callback, or what loads a value. If that takes longer
than a moment, another thread reads on, and the first one ends when it comes back. A worker of which two answers take so long is
not heard until one of them is done with, or there would be no end of threads; unless the code has made a call meanwhile,
which it may be waiting for.
"""

from __future__ import annotations

import contextlib
import math
import selectors
import socket
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Protocol

from ..._process import _locks, _system, _timers
from ..._process._interrupts import put_off_wakeups, wake_those_put_off
from ..._process._safely import Log
from ._process_tree import kill_tree
from ._receiving import Asked, answer_in

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from ..._worker._messages import Death, Refused, Reply
    from ._line import Line, Received

_log = Log()

# What is done with one answer has so long before another thread reads on.
_PATIENCE_SECONDS = 0.05
# So large an answer, or one whose buffers are to be copied, may take as long to be loaded.
_LARGE_BYTES = 1 << 20
# So many answers are heard before those are woken who wait for them, if there are always some; fewer than a buffer holds.
_MOST_AT_ONCE = 16
# So often it is looked whether a worker says that it has sent what has not come.
_LOOK_SECONDS = 2.0
# A process whose line has ended ends by itself within a moment, or has closed it by mistake.
_END_SECONDS = 2.0
# How long nothing is read when reading itself has failed, for want of memory perhaps.
_REST_SECONDS = 0.05


class Heard(Asked, Protocol):
    """A worker that is heard by a reader; see `LokyWorker`, whose methods these are."""

    @property
    def sent(self) -> int:
        """Number of the message that it says it has answered, if that is the one under way; 0: none."""

    @property
    def is_damaged(self) -> bool:
        """True if what it says can't be."""

    @property
    def ends_by_itself(self) -> bool:
        """True if it was told to end."""

    def note(
        self, reply: Reply | Refused, kept: Collection[int] | None
    ) -> tuple[Reply, Callable[[Reply | Death], None], bool] | None:
        """Note an answer; return what is to be done with it, if something is."""

    def note_fault(self, error: BaseException) -> None:
        """Note why it can't be heard any more."""

    def overstays(self) -> None:
        """Learn that its process is still there when it should be gone, and is killed."""

    def gone(self) -> None:
        """Learn that its process is gone."""


class Source:
    """One worker's line and process, until the process is gone. It doesn't hold the worker, which nobody may need."""

    __slots__ = ("due", "is_open", "line", "overdue", "process", "slow", "turn", "worker")

    def __init__(self, worker: Heard, line: Line, process: Any) -> None:
        self.worker = weakref.ref(worker)
        self.line, self.process = line, process
        self.is_open = True  # something may come by the line
        self.turn: _Turn | None = None  # of the thread that is at work with its latest answer
        self.slow: set[_Turn] = set()  # of those that are at work with earlier ones
        self.overdue = 0  # the message of which the worker said at the latest look that it is answered
        self.due = math.inf  # when its process is to be gone

    @property
    def is_busy(self) -> bool:
        """True while an answer is being handed on: then a further one may wait."""
        return self.turn is not None or bool(self.slow)


class _Turn:
    """A thread's time as the one that reads."""

    __slots__ = ("began", "is_noted", "n_heard", "source", "thread")

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None
        self.source: Source | None = None  # whose answer it is at work with
        self.began = 0.0  # when it began with that
        self.is_noted = False  # the worker's message counts as answered
        self.n_heard = 0  # since those were woken who wait for it


class Reader:
    """Who hears the workers of one executor; a thread as long as there is something to hear."""

    def __init__(self) -> None:
        # Guards the rest. Nothing is done under it that may take long, or run code of users'.
        self._lock = _locks.make_lock()
        self._sources: set[Source] = set()
        self._turn: _Turn | None = None  # of the thread that reads
        self._selector: selectors.BaseSelector | None = None  # there as long as that is
        self._bell: tuple[socket.socket, socket.socket] | None = None  # ends its wait
        self._is_looked_after = False  # it will be looked at whether it takes too long over an answer
        self._next_look = self._due = math.inf  # at workers in general, and at processes that are to be gone
        _all.add(self)

    def watch(self, worker: Heard, line: Line, process: Any) -> Source:
        """Hear a worker from now on; it is told of its answers, and of its end.

        Raises RuntimeError if there is no room for a thread, and OSError if there is none for open files.
        """
        source = Source(worker, line, process)
        with self._lock:
            try:
                if self._selector is None:
                    self._open()
                self._sources.add(source)
                self._sync(source)
                if self._turn is None:
                    self._lead()
                else:
                    self._ring()
            except BaseException:
                self._forget(source)
                if self._turn is None:
                    self._close()
                raise
        return source

    def hear_elsewhere(self, source: Source) -> None:
        """Have another thread read if the one that does is at work with an answer of this worker, and hear that one, too.

        Raises RuntimeError if there is no room for a thread.
        """
        with self._lock:
            turn = source.turn
            if turn is None or not turn.is_noted:
                return
            if turn is self._turn:
                self._lead()
            if source in self._sources:
                self._leave(source, turn)

    def make_heard(self, source: Source) -> None:
        """Have a worker heard, which is about to be told to end, whatever is done with earlier answers of it."""
        turn = source.turn
        if turn is not None and turn.thread is threading.current_thread():
            self.look_after()
        else:
            with contextlib.suppress(RuntimeError):  # no room for one more thread: the one that reads may come back
                self.hear_elsewhere(source)

    def expect_the_end(self, source: Source, seconds: float) -> None:
        """Have a worker's process killed if it is still there after some seconds."""
        with self._lock:
            source.due = time.monotonic() + seconds
            self._due = min(self._due, source.due)
            self._ring()

    def wait_until_over(self, seconds: float) -> None:
        """Wait until the ends of all processes have been noticed, when they are about to end."""
        deadline = time.monotonic() + seconds
        while (rest := deadline - time.monotonic()) > 0:
            thread = self._thread()
            if thread is None or thread is threading.current_thread():
                return
            thread.join(rest)

    def _thread(self) -> threading.Thread | None:
        with self._lock:  # once it is started
            return None if self._turn is None else self._turn.thread

    def forget(self) -> None:
        """In a fork: all of it is the parent's."""
        # Kept, so that nothing is collected that would tidy up after the parent.
        _not_ours.append((self._sources, self._selector))
        bell = self._bell
        self.__init__()  # type: ignore[misc]  # the same state as a new one
        for end in bell or ():
            end.close()

    # --- what it listens to; all of it with the lock -----------------------------------------------------

    def _open(self) -> None:
        self._bell = socket.socketpair()
        for end in self._bell:
            end.setblocking(False)
        # These need no open file of their own, which would be shared with forks.
        self._selector = selectors.PollSelector() if _system.HAS_POLL else selectors.SelectSelector()
        self._selector.register(self._bell[0], selectors.EVENT_READ)
        self._next_look = time.monotonic() + _LOOK_SECONDS

    def _close(self) -> None:
        bell, self._bell, self._selector = self._bell, None, None
        for end in bell or ():
            end.close()

    def _lead(self) -> None:
        """Have a new thread read."""
        before, turn = self._turn, _Turn()
        turn.thread = threading.Thread(target=self._serve, args=(turn,), name="joblib_stateful-reader", daemon=True)
        self._turn = turn
        try:
            turn.thread.start()
        except BaseException:
            self._turn = before
            raise

    def _sync(self, source: Source) -> None:
        """Listen to what is to be heard of a worker now."""
        is_left = source.turn is not None and source.turn is not self._turn
        is_there = source in self._sources
        self._listen(source.line.fileno(), source, wanted=is_there and source.is_open and not is_left)
        if not _system.IS_WINDOWS:  # there it is nothing that is waited for together with sockets
            # Its end is told when what it has answered before is noted.
            is_noted = source.turn is None or source.turn.is_noted
            self._listen(source.process.sentinel, source, wanted=is_there and (not is_left or is_noted))

    def _pass_on(self, source: Source, turn: _Turn) -> None:
        """Hear a worker by another thread than the one that is at work with an answer of it, if that can be."""
        if turn.is_noted and not source.slow:
            self._leave(source, turn)
        else:
            self._sync(source)
            self._ring()

    def _leave(self, source: Source, turn: _Turn) -> None:
        """Hear a worker though a thread is at work with an answer of it."""
        source.slow.add(turn)
        source.turn = None
        self._sync(source)
        self._ring()

    def _listen(self, fd: int, source: Source, *, wanted: bool) -> None:
        assert self._selector is not None  # noqa: S101 - it is there as long as there are sources
        is_there = fd in self._selector.get_map()
        if wanted and not is_there:
            self._selector.register(fd, selectors.EVENT_READ, source)
        elif is_there and not wanted:
            self._selector.unregister(fd)

    def _forget(self, source: Source) -> None:
        if source in self._sources:
            self._sources.discard(source)
            self._sync(source)

    def _ring(self) -> None:
        """Have the thread that reads look what there is to be heard, if it is waiting."""
        if self._bell is not None and self._turn is not None and self._turn.source is None:
            with contextlib.suppress(BlockingIOError):  # it has been rung often enough
                self._bell[1].send(b"!")

    # --- the thread that reads ---------------------------------------------------------------------------

    def _serve(self, turn: _Turn) -> None:
        try:
            while True:
                try:
                    if not self._read(turn):
                        return
                except Exception:  # noqa: BLE001 - want of memory: the other answers must come all the same
                    _log.exception("What the workers answer could not be read, and is tried again:")
                    wake_those_put_off()
                    time.sleep(_REST_SECONDS)
        finally:
            wake_those_put_off()

    def _read(self, turn: _Turn) -> bool:
        """Wait until something is to be heard, and hear it; False if this thread reads no more.

        A function of its own, so that nothing is held while it waits.
        """
        with self._lock:
            if self._turn is not turn:
                return False
            if not self._sources or self._selector is None:
                self._turn = None
                self._close()
                return False
            selector, seconds = self._selector, min(self._next_look, self._due) - time.monotonic()
        for key, _ in self._select(turn, selector, max(0.0, seconds)):
            source: Source | None = key.data
            if source is None:
                self._answer_bell()
            elif not (self._hear if key.fd == source.line.fileno() else self._hear_the_end)(turn, source):
                return False
        now = time.monotonic()
        if now >= self._due:
            self._end_overdue(now)
        if now >= self._next_look:  # when all has been received that was there at the look before
            self._look(now)
        return True

    def _select(self, turn: _Turn, selector: selectors.BaseSelector, seconds: float) -> list[tuple[Any, int]]:
        """Wait until something is to be heard; who waits for what was heard is woken when there is nothing more for now.

        A consumer that is woken competes with this thread for the GIL at each step that lets go of it, of which there are three
        for an answer. Woken for each, it made one item a message take 150 µs of the program's CPU time instead of 110.
        """
        found: list[tuple[Any, int]] = []
        if 0 < turn.n_heard < _MOST_AT_ONCE:
            found = selector.select(0.0)
        if not found:
            turn.n_heard = 0
            wake_those_put_off()
            found = selector.select(seconds)
        turn.n_heard += len(found)
        put_off_wakeups()
        return found

    def _answer_bell(self) -> None:
        if self._bell is not None:
            with contextlib.suppress(BlockingIOError):
                self._bell[0].recv(1 << 10)

    def _hear(self, turn: _Turn, source: Source) -> bool:
        """Receive what has come of an answer; False if this thread reads no more."""
        worker = source.worker()
        if not source.is_open or worker is None:  # a worker that nobody needs, whose process ends
            self._end_line(source)
            return True
        received = _receive(source.line)
        if received is None:
            return True
        if isinstance(received, (EOFError, OSError)):
            self._end_line(source)
            return True
        return self._take(turn, source, worker, received)

    def _hear_the_end(self, turn: _Turn, source: Source) -> bool:
        """Receive what a process has sent before its end, and then tell of that; False if this thread reads no more."""
        worker = source.worker()
        if source.is_open and worker is not None:
            received = _receive(source.line)
            if received is not None and not isinstance(received, (EOFError, OSError)):
                return self._take(turn, source, worker, received)  # the end will still be there to be heard
        self._end(source)
        return True

    def _end(self, source: Source) -> None:
        with contextlib.suppress(Exception):  # somebody else has reaped it
            source.process.join(0)
        with self._lock:
            source.is_open = False
            self._forget(source)
        worker = source.worker()
        if worker is not None:
            worker.gone()

    def _end_line(self, source: Source) -> None:
        """Hear nothing more by a line; and see to it that a process that can't be heard any more ends."""
        source.line.hang_up()
        with self._lock:
            source.is_open = False
            self._sync(source)
        worker = source.worker()
        if _system.IS_WINDOWS:
            self._end(source)
        elif worker is None or worker.ends_by_itself:
            return
        elif worker.is_damaged:
            kill_tree(source.process)
        else:
            self.expect_the_end(source, _END_SECONDS)

    def _take(self, turn: _Turn, source: Source, worker: Heard, received: Received | Exception) -> bool:
        """Have an answer noted, and done what is to be done with it; False if another thread reads by then."""
        with self._lock:
            turn.source, turn.began, turn.is_noted = source, time.monotonic(), False
            source.turn = turn
        try:
            self._have_noted(turn, source, worker, received)
        finally:
            with self._lock:
                turn.source = None
                source.slow.discard(turn)
                is_mine = self._turn is turn
                if source.turn is turn:
                    source.turn = None
                    if not is_mine and source in self._sources:
                        self._sync(source)
                        self._ring()
        return is_mine

    def _have_noted(self, turn: _Turn, source: Source, worker: Heard, received: Received | Exception) -> None:
        if isinstance(received, tuple) and len(received[0]) > _LARGE_BYTES:
            self.look_after()
        try:
            reply, kept = answer_in(worker, received, self.look_after)
            noted = worker.note(reply, kept)
        except Exception as error:  # noqa: BLE001 - it may be anything
            worker.note_fault(error)
            self._end_line(source)
            return
        turn.is_noted = True
        if self._turn is not turn:
            with self._lock:
                if source in self._sources:
                    self._pass_on(source, turn)
        if noted is None:
            return
        reply, on_reply, may_wait = noted
        if may_wait:
            self.look_after()
        try:
            on_reply(reply)
        except BaseException:  # noqa: BLE001 - a callback's; the other messages must be answered all the same
            _log.exception("What was to be done with a worker's answer has failed:")

    # --- what takes too long -----------------------------------------------------------------------------

    def look_after(self) -> None:
        """Have another thread read if the calling one does, and is still at work with the same answer in a moment."""
        wake_those_put_off()
        # One alarm for all answers that come meanwhile: nothing is to be done for each.
        if self._is_looked_after:
            return
        turn = self._turn
        if turn is not None and turn.source is not None and turn.thread is threading.current_thread():
            self._is_looked_after = True
            _timers.call_after(_PATIENCE_SECONDS, self._look_at_turn)

    def _look_at_turn(self) -> None:
        with self._lock:
            self._is_looked_after = False
            turn = self._turn
            if turn is None or turn.source is None:
                return
            rest = turn.began + _PATIENCE_SECONDS - time.monotonic()
            if rest <= 0:
                source = turn.source
                try:
                    self._lead()
                except RuntimeError:  # no room for one more thread, just now
                    rest = _PATIENCE_SECONDS
                else:
                    if source in self._sources:
                        self._pass_on(source, turn)
                    return
            self._is_looked_after = True
        _timers.call_after(rest, self._look_at_turn)

    def _end_overdue(self, now: float) -> None:
        """End processes that should have ended, and stay."""
        with self._lock:
            overdue = self._take_overdue(now)
        for source in overdue:
            worker = source.worker()
            if worker is not None:
                worker.overstays()
            kill_tree(source.process)

    def _take_overdue(self, now: float) -> list[Source]:
        """Return whose processes should have ended by now; each once."""
        overdue = [source for source in self._sources if source.due <= now]
        for source in overdue:
            source.due = math.inf
        self._due = min((source.due for source in self._sources), default=math.inf)
        return overdue

    def _look(self, now: float) -> None:
        """End workers that say that they have sent what has not come."""
        self._next_look = now + _LOOK_SECONDS
        for source in list(self._sources):
            worker = source.worker()
            if worker is None or not source.is_open or source.is_busy:
                continue
            # Seen twice: the first time it may have been sent a moment ago.
            before, source.overdue = source.overdue, worker.sent
            if source.overdue and source.overdue == before:
                worker.note_fault(ValueError("the worker has sent an answer, and only a part of it has come"))
                self._end_line(source)


_all: weakref.WeakSet[Reader] = weakref.WeakSet()
# What a fork inherited.
_not_ours: list[Any] = []


def _forget_all() -> None:
    for reader in list(_all):
        reader.forget()


_system.after_fork(_forget_all)


def wait_for_deaths(seconds: float) -> None:
    """Wait until all that is to be told of the ends of processes has been told, when all have been ended."""
    deadline = time.monotonic() + seconds
    for reader in list(_all):
        reader.wait_until_over(max(0.0, deadline - time.monotonic()))


def _receive(line: Line) -> Received | Exception | None:
    """Return an answer, or what is wrong with it; None if not all of it is there."""
    try:
        return line.receive_if_there()
    except Exception as error:  # noqa: BLE001 - what has come may be anything
        return error.with_traceback(None)  # which would hold the line
