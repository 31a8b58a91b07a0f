"""The parent's end of the way that log records take: one thread for all workers hands them to the loggers.

A handler that is slow, or raises, keeps no answer from coming: what is behind it waits here, so much of each worker, and then
in the workers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from . import _log_channel
from ._log_channel import HEADER, MOST_BYTES, MOST_RECORDS, RECORD

if TYPE_CHECKING:
    import socket
    from collections.abc import Hashable

_log = logging.getLogger("joblib_stateful")
# So long records are handled between two looks at what has come.
_STRETCH_SECONDS = 0.01
# So many messages of one worker are taken at once, so that one that floods lets the others come.
_AT_ONCE = 256


class Channel:
    """What comes from one worker."""

    def __init__(self, slot: int, owner: Hashable) -> None:
        self.slot, self.owner = slot, owner
        self.end, theirs = _log_channel.pair()
        self.end.setblocking(False)
        self._theirs: socket.socket | None = theirs
        self.worker_end = _log_channel.WorkerEnd(theirs.fileno())
        self.is_over = False  # nothing more can come but what is here
        self.is_taken = False  # some of it is on its way to the loggers
        self.done = threading.Event()
        self.queue: deque[tuple[int, bytes]] = deque()
        self._nbytes = self._dropped = 0
        self._parts: dict[int, list[bytes]] = {}

    def is_started(self) -> None:
        """Note that the process has its end."""
        if self._theirs is not None:
            self._theirs.close()
            self._theirs = None

    def close(self) -> None:
        """Let go of it."""
        self.is_started()
        self.end.close()
        self.done.set()

    @property
    def is_pending(self) -> bool:
        """True if something has come that no logger has had yet."""
        if self.done.is_set():
            return False
        poll = select.poll()
        try:
            poll.register(self.end.fileno(), select.POLLIN)
            # In this order: whoever takes something says so first.
            return bool(not self.is_over and poll.poll(0)) or self.is_taken or bool(self.queue)
        except (OSError, ValueError):  # it is closed just now
            return False

    def take(self) -> bool:
        """Take what has come; False if nothing has."""
        for at in range(_AT_ONCE):
            try:
                message = self.end.recv(_log_channel.PART + HEADER.size)
            except BlockingIOError:
                return at > 0
            except OSError:
                message = b""
            if len(message) < HEADER.size:
                self.is_over = True  # all that held the other end have ended, or something else writes to it
                return at > 0
            sender, kind, n_more = HEADER.unpack_from(message)
            if kind == RECORD:
                parts = self._parts.setdefault(sender, [])
                parts.append(message[HEADER.size :])
                if not n_more:
                    self._add(b"".join(self._parts.pop(sender)))
            else:
                self.queue.append((n_more, b""))
        return True

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
        except Exception:  # noqa: BLE001 - a handler's or a filter's own code
            _handler.handleError(record)


_handler = logging.NullHandler()


class LogReader:
    """The thread, as long as there are workers, and what it listens to."""

    def __init__(self) -> None:
        self._lock = threading.Condition(threading.Lock())  # guards the rest
        self._channels: list[Channel] = []
        self._thread: threading.Thread | None = None
        self._bell: tuple[int, int] | None = None

    def open(self, slot: int, owner: Hashable) -> Channel | None:
        """Return a way for the records of a worker that is to be started; None if there is none."""
        if not _log_channel.can_carry:
            return None
        try:
            channel = Channel(slot, owner)
        except OSError:  # no room for two more open files: its records are handled in the worker then
            return None
        with self._lock:
            self._channels.append(channel)
            try:
                if self._thread is None:
                    self._bell = os.pipe()
                    for end in self._bell:
                        os.set_blocking(end, False)
                    self._thread = threading.Thread(target=self._serve, name="joblib_stateful-logs", daemon=True)
                    self._thread.start()
            except (OSError, RuntimeError):  # no room for a thread, or the interpreter is ending
                self._channels.remove(channel)
                self._stop()
                channel.close()
                return None
            self._ring()
        return channel

    def finish(self, channel: Channel) -> None:
        """Note that a worker is gone: what has come from it is all."""
        with self._lock:
            if not channel.done.is_set():
                channel.is_started()
                channel.is_over = True
                self._ring()

    def flush(self, owner: Hashable, seconds: float) -> bool:
        """Wait until the loggers have had what has come from the workers of an owner (None: all), but no longer."""
        if self._thread is None or threading.current_thread() is self._thread:
            return True
        deadline = time.monotonic() + seconds
        with self._lock:
            while any(each.is_pending for each in self._channels if owner is None or each.owner == owner):
                left = deadline - time.monotonic()
                if left <= 0 or not self._lock.wait(left):
                    return False
        return True

    def is_mine(self) -> bool:
        """Tell whether the calling thread is the one that hands records to the loggers."""
        return threading.current_thread() is self._thread

    def _ring(self) -> None:
        if self._bell is not None:
            with contextlib.suppress(OSError):  # it has been rung often enough
                os.write(self._bell[1], b"!")

    def _stop(self) -> None:
        if self._bell is not None:
            for end in self._bell:
                os.close(end)
        self._bell = self._thread = None

    def _serve(self) -> None:
        while True:
            with self._lock:
                channels, bell = list(self._channels), self._bell
                if not channels or bell is None:
                    self._stop()
                    return
            self._take(channels, bell[0], wait=not any(each.queue for each in channels))
            until = time.monotonic() + _STRETCH_SECONDS
            while (full := [each for each in channels if each.queue]) and time.monotonic() < until:
                for channel in full:
                    try:
                        channel.handle_one()
                    except Exception:  # noqa: BLE001 - what came is nonsense, or users' objects raise when they are loaded
                        _log.exception("A log record of the worker in slot %d could not be taken:", channel.slot)
            with self._lock:
                for channel in channels:
                    if channel.queue:
                        continue
                    channel.is_taken = False
                    if channel.is_over:
                        self._channels.remove(channel)
                        channel.close()
                self._lock.notify_all()

    def _take(self, channels: list[Channel], bell: int, *, wait: bool) -> None:
        poll = select.poll()
        poll.register(bell, select.POLLIN)
        of = {each.end.fileno(): each for each in channels}
        for number in of:
            poll.register(number, select.POLLIN)
        is_any_over = any(each.is_over for each in channels)
        for number, _ in poll.poll(None if wait and not is_any_over else 0):
            if number == bell:
                with contextlib.suppress(BlockingIOError):
                    os.read(bell, 1 << 10)
        for channel in channels:
            # Looked at before it is taken: what a worker has sent before its end is there then.
            was_over = channel.is_over
            channel.is_taken = True
            while channel.take() and was_over and len(channel.queue) < MOST_RECORDS:
                pass

    def forget(self) -> None:
        """In a fork: all of it is the parent's."""
        channels, bell = self._channels, self._bell
        self.__init__()  # type: ignore[misc]  # the same state as a new one
        for channel in channels:
            channel.close()
        for end in bell or ():
            with contextlib.suppress(OSError):
                os.close(end)


reader = LogReader()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=reader.forget)
