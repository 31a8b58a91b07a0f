"""The parent's end of the way that log records take: one thread for all workers hands them to the loggers.

A handler that is slow, or raises, keeps no answer from coming: what is behind it waits here, so much of each worker, and then
in the workers.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import select
import socket
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from ..._process import _locks
from ..._process._safely import Log
from ..._process._system import CARRIES_RECORDS, NO_WAIT, after_fork
from . import _log_channel
from ._log_channel import DROPPED, HEADER, MOST_BYTES, MOST_RECORDS

if TYPE_CHECKING:
    from collections.abc import Hashable

_log = Log()
# So long records are handled between two looks at what has come.
_STRETCH_SECONDS = 0.01
# So many messages are taken between two of these, and so many are more than the socket holds.
_AT_ONCE, _MOST_THERE = 256, 4096


class Channel:
    """What comes from one worker."""

    def __init__(self, slot: int, owner: Hashable, number: int, fd: int) -> None:
        self.slot, self.owner, self.number = slot, owner, number
        self.worker_end = _log_channel.WorkerEnd(fd, number)
        self.is_over = False  # nothing more can come but what is there
        self.done = threading.Event()
        self.queue: deque[tuple[int, bytes]] = deque()
        self._nbytes = self._dropped = 0
        self._parts: dict[int, list[bytes]] = {}

    def take(self, message: bytes) -> None:
        """Take a message of the worker's."""
        _, sender, kind, n_more = HEADER.unpack_from(message)
        if kind == DROPPED:
            self.queue.append((n_more, b""))
            return
        parts = self._parts.setdefault(sender, [])
        parts.append(message[HEADER.size :])
        if not n_more:
            self._add(b"".join(self._parts.pop(sender)))

    def _add(self, data: bytes) -> None:
        self._nbytes += len(data)
        self.queue.append((0, data))
        while len(self.queue) > MOST_RECORDS or (self._nbytes > MOST_BYTES and len(self.queue) > 1):
            n_dropped, oldest = self.queue.popleft()
            self._nbytes -= len(oldest)
            self._dropped += n_dropped or 1

    def handle_one(self) -> None:
        """Hand the oldest record to its logger."""
        n_dropped, data = self.queue.popleft()
        self._nbytes -= len(data)
        n_dropped += self._dropped
        self._dropped = 0
        if n_dropped:
            _log.warning(
                "%d log records of the worker in slot %d were dropped, the oldest first: it logs faster than the handlers "
                "here can take. Raise the level of its loggers, or use faster handlers.",
                n_dropped,
                self.slot,
                extra={"slot": self.slot},
            )
        if not data:
            return
        record = _log_channel.decode(data)
        record.slot = self.slot
        logger = logging.getLogger(record.name if record.name != "root" else None)
        try:
            logger.handle(record)
        except BaseException:  # noqa: BLE001 - a handler's or a filter's own code, which may want to end the program
            _handler.handleError(record)


_handler = logging.NullHandler()


class LogReader:
    """The thread, as long as there are workers, and the socket to which all of them write."""

    def __init__(self) -> None:
        self._lock = _locks.make_lock()  # guards the rest
        # Entered only to wait: its methods are Python's own, and a Ctrl-C between them and the lock leaves that held.
        self._changed = threading.Condition(self._lock)
        self._channels: dict[int, Channel] = {}
        self._thread: threading.Thread | None = None
        self._ends: tuple[socket.socket, socket.socket] | None = None  # ours, and the workers'
        self._is_taking = False  # some of what has come is on its way to the loggers

    def open(self, slot: int, owner: Hashable) -> Channel | None:
        """Return a way for the records of a worker that is to be started; None if there is none."""
        if not CARRIES_RECORDS:
            return None
        with self._lock:
            try:
                if self._ends is None:
                    self._ends = _log_channel.pair()
                channel = Channel(slot, owner, next(_numbers), self._ends[1].fileno())
                self._channels[channel.number] = channel
                if self._thread is None:
                    thread = threading.Thread(target=self._serve, name="joblib_stateful-logs", daemon=True)
                    thread.start()
                    self._thread = thread
            except (
                OSError,
                RuntimeError,
            ):  # no room for two more open files, or a thread, or the interpreter is ending:
                self._channels.clear()  # then workers handle their records themselves
                self._stop()
                return None
        return channel

    def finish(self, channel: Channel) -> None:
        """Note that a worker is gone: what has come from it is all. Without a lock, for finalisers come here, too."""
        if not channel.is_over:
            channel.is_over = True
            self._ring()

    def flush(self, owner: Hashable, seconds: float) -> bool:
        """Wait until the loggers have had what has come from the workers of an owner (None: all), but no longer."""
        if self._thread is None or self.is_mine():
            return True
        deadline = time.monotonic() + seconds
        with self._changed:
            return self._changed.wait_for(lambda: not self._is_pending(owner), max(0.0, deadline - time.monotonic()))

    def is_mine(self) -> bool:
        """Tell whether the calling thread is the one that hands records to the loggers."""
        return threading.current_thread() is self._thread

    def _is_pending(self, owner: Hashable) -> bool:
        channels = [each for each in self._channels.values() if owner is None or each.owner == owner]
        if self._ends is None or not channels:
            return False
        # In this order: whoever takes something says so first.
        return _has_come(self._ends[0], 0) or self._is_taking or any(each.queue for each in channels)

    def _ring(self) -> None:
        ends = self._ends
        if ends is not None:
            with contextlib.suppress(OSError):  # full, and so it is being read; or closed just now
                ends[1].send(b"!", NO_WAIT)

    def _stop(self) -> None:
        for end in self._ends or ():
            end.close()
        self._ends = self._thread = None

    def _serve(self) -> None:
        while True:
            with self._lock:
                if not self._channels or self._ends is None:
                    self._stop()
                    return
                channels, end = list(self._channels.values()), self._ends[0]
            # Also if one is over that was not there yet when we were last woken.
            if not any(each.queue or each.is_over for each in channels):
                _has_come(end, None)
            self._is_taking = True
            over = [each for each in channels if each.is_over]
            # What a worker has sent before its end is there, behind no more than the socket takes.
            self._take(end, _MOST_THERE if over else _AT_ONCE)
            _handle(channels)
            over = [each for each in over if not each.queue]
            with self._lock:
                for channel in over:
                    del self._channels[channel.number]
                    channel.done.set()
                self._is_taking = False
                self._changed.notify_all()

    def _take(self, end: socket.socket, most: int) -> None:
        for _ in range(most):
            try:
                message = end.recv(_log_channel.PART + HEADER.size, NO_WAIT)
            except OSError:  # that was all
                return
            if len(message) < HEADER.size:  # only to wake us
                continue
            channel = self._channels.get(HEADER.unpack_from(message)[0])
            if channel is not None:
                channel.take(message)

    def forget(self) -> None:
        """In a fork: all of it is the parent's."""
        ends = self._ends
        self.__init__()  # type: ignore[misc]  # the same state as a new one
        for end in ends or ():
            end.close()


def _has_come(end: socket.socket, seconds: float | None) -> bool:
    poll = select.poll()
    poll.register(end.fileno(), select.POLLIN)
    return bool(poll.poll(None if seconds is None else seconds * 1000))


def _handle(channels: list[Channel]) -> None:
    """Hand records to the loggers for a while, one of each worker in turn."""
    until = time.monotonic() + _STRETCH_SECONDS
    while (full := [each for each in channels if each.queue]) and time.monotonic() < until:
        for channel in full:
            try:
                channel.handle_one()
            except BaseException:  # noqa: BLE001 - what came is nonsense, or users' objects raise when they are loaded
                _log.exception("A log record of the worker in slot %d could not be taken:", channel.slot)


_numbers = itertools.count(1)
reader = LogReader()

after_fork(reader.forget)
