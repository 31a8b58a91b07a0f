"""Who takes the answers of an executor's workers: a thread for each of them, or a consumer while it waits.

A thread that takes an answer wakes the consumer, and then both want the GIL: with tiny items in messages of their own that
is more than half of what a message costs (`python -m benchmarks`, W1, one in a message). So a consumer that comes back
quickly, again and again, takes the answers itself, of those workers whose threads have stepped aside for it. As soon as it
stays away, or has to wait for long, they listen again: what it does between two results, however long, keeps no worker
waiting for more than a moment.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, TypeAlias

from .._interrupts import STRETCH_SECONDS, uninterrupted
from .._locks import make_lock
from .._messages import Ran
from .._segments import Arena
from .._system import HAS_POLL, after_fork
from ._answers import fault_in_ranges
from ._buffers import without_arena
from ._line import NoRoomError, decode

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from .._interrupts import Wakeup
    from .._messages import Reply
    from ._line import Line, Received
    from ._loky_worker import LokyWorker

    Answer: TypeAlias = tuple[Reply, Collection[int] | None]

# A consumer takes the answers itself when so many waits in a row were over so soon after the one before. (The worst that
# can come of it, a consumer that stays away then, costs what those waits would have gained.)
_QUICK_WAITS = 32
_QUICK_SECONDS = 0.001
# After so long without a look of the consumer the threads listen again.
_AWAY_SECONDS = 0.002


class Listening:
    """The threads that listen to the workers of one executor, and a consumer that does so in their place."""

    can_be_taken_over = HAS_POLL

    def __init__(self) -> None:
        self._lock = make_lock()
        self._back = threading.Condition(self._lock)  # threads that have stepped aside wait for their turn here
        self._aside: dict[int, tuple[Line, weakref.ref[LokyWorker]]] = {}  # what they listened to, by its number
        self._is_watched = False  # one of them looks whether the consumer is still there
        self._taker: int | None = None  # the consumer's thread
        # Held while answers are taken, by one that was sent away in the middle of it, too.
        self._turn = threading.Lock()
        self._taken: int | None = None  # the line from which it takes an answer now
        # Answers that the consumer has come upon and left to the threads, by the number of their line.
        self._left: dict[int, Answer] = {}
        self._is_polling = False
        self._n_polls = 0
        self._poll: Any = None
        self._bell: tuple[int, int] | None = None  # a pipe that ends the poll; made with the first wait
        self._n_quick, self._latest = 0, -math.inf
        _all.add(self)

    # --- for consumers --------------------------------------------------------------------------------

    def wait_for(self, wakeup: Wakeup, predicate: Callable[[], Any], timeout: float | None = None) -> None:
        """Wait until something is so; whoever makes it so wakes who waits, and then rings."""
        thread = threading.get_ident()
        if self._taker == thread and self._take_until(predicate, thread, timeout):
            return
        wakeup.wait_for(predicate, timeout)
        before, self._latest = self._latest, time.perf_counter()
        if self._bell is None:
            self._prepare()
        self._n_quick = self._n_quick + 1 if self._latest - before < _QUICK_SECONDS else 0
        if self._n_quick >= _QUICK_WAITS and self.can_be_taken_over:
            with self._lock:
                if self._taker is None and not self._turn.locked():
                    self._taker = thread

    def ring(self) -> None:
        """Have a consumer that takes answers look whether what it waits for is so; from any thread."""
        if self._is_polling and self._bell is not None:
            with contextlib.suppress(BlockingIOError):  # it has been rung often enough
                os.write(self._bell[1], b"!")

    @property
    def is_taken_over(self) -> bool:
        """True while a consumer takes answers."""
        return self._taker is not None

    def _prepare(self) -> None:
        with self._lock:
            if self._bell is not None or not self.can_be_taken_over:
                return
            try:
                self._bell = os.pipe()
            except OSError:  # there is no room for two more open files
                self.can_be_taken_over = False
                return
            for end in self._bell:
                os.set_blocking(end, False)
            weakref.finalize(self, _close, self._bell).atexit = False
            self._poll = select.poll()
            self._poll.register(self._bell[0], select.POLLIN)

    def _take_until(self, predicate: Callable[[], Any], thread: int, timeout: float | None) -> bool:
        """Take answers until something is so, or for so many seconds; False if the threads take them again."""
        if not self._turn.acquire(blocking=False):
            return False
        end = math.inf if timeout is None else time.monotonic() + timeout
        try:
            return self._take_all(predicate, thread, end)
        finally:
            self._turn.release()

    def _take_all(self, predicate: Callable[[], Any], thread: int, end: float) -> bool:
        while self._taker == thread:
            for number in self._ready(predicate, min(STRETCH_SECONDS, max(0.0, end - time.monotonic()))):
                if number == self._bell[0]:  # type: ignore[index]  # it was made before
                    _drain(number)
                else:
                    self._take(number)
            if predicate() or time.monotonic() >= end:
                return True
        return False

    def _ready(self, predicate: Callable[[], Any], seconds: float) -> list[int]:
        self._is_polling = True  # before the look, so that who changes something behind it will ring
        try:
            if predicate():
                return []
            self._n_polls += 1
            return [number for number, _ in self._poll.poll(seconds * 1000)]
        finally:
            self._is_polling = False

    def _take(self, number: int) -> None:
        with uninterrupted():
            with self._lock:
                line, worker = self._aside.get(number, (None, None))
                if line is None or worker is None:  # its thread listens again
                    return
                self._taken = number
            found, left = worker(), None
            try:
                try:
                    received = _receive_if_there(line)
                except (EOFError, OSError):  # it has ended, which is no fault of what it says
                    found = None
                    raise
                if received is not None and found is not None:
                    answer = answer_in(found, received)
                    if found.runs_code(answer[0]):  # not in the consumer's thread, which could not be interrupted
                        left = answer
                    else:
                        found.deliver(*answer)
            except Exception as error:  # noqa: BLE001 - it has ended, or what it sends is no answer
                if found is not None:
                    found.note_fault(error)
                line.hang_up()  # which its thread will notice
                self.take_back(line)
            with self._lock:
                self._taken = None
                if left is not None:
                    self._left[number] = left
                    self._send_away()
                if number not in self._aside:
                    self._back.notify_all()

    # --- for the threads ------------------------------------------------------------------------------

    def step_aside(self, line: Line, worker: weakref.ref[LokyWorker]) -> None:
        """Return when the calling thread shall listen again: at once, unless a consumer takes the answers."""
        if not self.is_taken_over:
            return
        with self._lock:
            found = worker()
            if self._taker is None or found is None or found.is_called:
                return
            del found
            number = line.fileno()
            self._aside[number] = line, worker
            self._poll.register(number, select.POLLIN)
            self.ring()
            self._stay_aside(number)
            self._back.notify_all()  # one of the others watches now

    def _stay_aside(self, number: int) -> None:
        while number in self._aside or self._taken == number:
            if self._is_watched:
                self._back.wait()
            else:
                self._watch()

    def left_over(self, line: Line) -> Answer | None:
        """Return an answer that a consumer has received by a line, and left to its thread."""
        with self._lock:
            return self._left.pop(line.fileno(), None) if self._left else None

    def let_listen(self, line: Line) -> None:
        """Have the thread of a line listen, also while a consumer is at work with an answer that came by it."""
        with self._lock:
            if self._taken == line.fileno():
                self._taken = None
            self._send_away()

    def _send_away(self) -> None:
        """Have a consumer take no more answers."""
        if self._taker is None:
            return
        self._taker, self._n_quick = None, 0
        for number in self._aside:
            self._poll.unregister(number)
        self._aside.clear()
        self._back.notify_all()
        self.ring()

    def take_back(self, line: Line) -> None:
        """Have no consumer take the next answer that comes by a line, but its thread."""
        with self._lock:
            if self._aside.pop(line.fileno(), None) is not None:
                self._poll.unregister(line.fileno())
                self._back.notify_all()

    def _watch(self) -> None:
        self._is_watched, before = True, self._n_polls
        is_news = self._back.wait(_AWAY_SECONDS)
        self._is_watched = False
        if not is_news and self._n_polls == before:
            self._send_away()

    def disown(self) -> None:
        """In a fork: all of it is the parent's."""
        self.__init__()  # type: ignore[misc]  # the same state as a new one


_all: weakref.WeakSet[Listening] = weakref.WeakSet()


def _disown_all() -> None:
    for listening in list(_all):
        listening.disown()


after_fork(_disown_all)


def listen(line: Line, worker: weakref.ref[LokyWorker], listening: Listening) -> None:
    """Take answers until the process is gone, or is let go, or another thread does so."""
    is_on = True
    while is_on:
        answer = listening.left_over(line)
        received: Received | Exception | None = None
        try:
            if answer is None:
                received = _receive(line, worker)
        except (EOFError, OSError):  # it has ended
            break
        except Exception as error:  # noqa: BLE001 - what has come is no message
            received = error
        found = worker()  # held only while there is something for it
        if found is None:
            return
        is_on = _take_up(found, answer, received)
        if not found.is_heard_by(threading.current_thread()):
            return
        del answer, received, found
        if is_on:
            listening.step_aside(line, worker)
    line.hang_up()
    found = worker()
    if found is not None and found.is_heard_by(threading.current_thread()):
        found.watch_the_end()


def _take_up(worker: LokyWorker, answer: Answer | None, received: Received | Exception | None) -> bool:
    """Have a worker's answer noted; False if it is none."""
    try:
        if answer is None and received is not None:
            answer = answer_in(worker, received)
        if answer is not None:
            worker.deliver(*answer)
    except Exception as error:  # noqa: BLE001 - it may be anything
        worker.note_fault(error)
        return False
    return True


def _receive(line: Line, worker: weakref.ref[LokyWorker]) -> Received | NoRoomError:
    """Return the next answer, or what says that there was no room for it.

    Raises ValueError if the worker has sent all of an answer, and it is not all here.
    """
    is_overdue = False
    while True:
        try:
            return line.receive()
        except NoRoomError as error:
            return error
        except BlockingIOError:
            found = worker()
            if found is None:
                raise EOFError from None
            # Seen twice: the first time it may have been sent a moment ago.
            was_overdue, is_overdue = is_overdue, found.has_sent_answer
            if was_overdue and is_overdue:
                raise ValueError("the worker has sent an answer, and only a part of it has come") from None
            del found


def _receive_if_there(line: Line) -> Received | NoRoomError | None:
    try:
        return line.receive_if_there()
    except NoRoomError as error:
        return error


def answer_in(worker: LokyWorker, received: Received | Exception) -> Answer:
    """Return a worker's answer, and the numbers of the segments that it still looks into; None if that isn't known.

    Raises ValueError, or what loading raises, for what is no answer.
    """
    if isinstance(received, NoRoomError):
        return worker.answer_without(received.size), None
    if isinstance(received, Exception):
        raise received
    data, fds = received
    try:
        reply, kept = decode(data)
    except MemoryError:
        return worker.answer_without(len(data)), None
    worker.check(reply, kept)
    if isinstance(reply, Ran) and fds:
        reply = _copied_out(reply, fds[0])
    return reply, kept


def _copied_out(reply: Ran, fd: int | None) -> Ran:
    """Return a reply with copies of what the worker laid into its arena, which it uses for the next one."""
    arena = Arena(-1 if fd is None else fd)  # without one, reading says so, for each item that needs it
    if fault := fault_in_ranges(reply, fd):
        raise ValueError(fault)
    reply = without_arena(reply, arena)
    with contextlib.suppress(OSError):
        arena.trim()
    return reply


def _drain(number: int) -> None:
    with contextlib.suppress(BlockingIOError):
        os.read(number, 1 << 10)


def _close(bell: tuple[int, int]) -> None:
    for end in bell:
        os.close(end)
