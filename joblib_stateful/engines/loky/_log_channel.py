"""The worker's end of the way that log records take to the parent: beside its line, and never in the way of an answer.

Each record is a message of a socket that keeps messages apart, so that all workers can use the same one, and children that they
fork as well. What
finds no room there waits in the worker, the oldest is dropped when too much does, and the parent hears how many.
"""

from __future__ import annotations

import errno
import logging
import os
import pickle
import select
import socket
import struct
import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

from ..._process._safely import name_of, text_of
from ..._process._system import HAS_SEQPACKET, NO_SIGNAL, NO_WAIT, after_fork
from ..._worker._log_levels import Applied
from ..._worker._tracebacks import text_of_traceback

if TYPE_CHECKING:
    from ._line import Line

_FLAGS = NO_WAIT | NO_SIGNAL
#: Before each part of a record: whose it is, the process that sends it, what it is, and how many parts follow.
HEADER = struct.Struct("<IIBI")
RECORD, DROPPED = 0, 1
#: Bytes of a part.
PART = 1 << 15
_BUFFER_BYTES = 1 << 18
# So much may wait in a worker, and as much of each worker in the parent.
MOST_RECORDS, MOST_BYTES = 10_000, 1 << 24
# The parent's thread that takes them needs a moment where the main program holds the GIL.
_PATIENCE = 0.05
# What still waits at a worker's end.
_END_PATIENCE = 2.0


def pair() -> tuple[socket.socket, socket.socket]:
    """Return both ends: the parent's, and the worker's."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET if HAS_SEQPACKET else socket.SOCK_DGRAM)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
    return ends


class WorkerEnd:
    """The worker's end on its way into the process that is being started."""

    def __init__(self, fd: int, number: int) -> None:
        self.fd, self.number = fd, number

    def __reduce__(self) -> tuple[Any, ...]:
        """Hand it to the process that is being started; nothing else can pickle it."""
        from multiprocessing.reduction import DupFd

        return _attach, (DupFd(self.fd), self.number)


def _attach(end: Any, number: int) -> WorkerEnd:
    return WorkerEnd(end.detach(), number)


class ToParent(logging.Handler):
    """Sends what the parent wants; the handler of a worker's root logger."""

    def __init__(self, end: WorkerEnd) -> None:
        super().__init__()
        os.set_inheritable(end.fd, False)
        self._socket, self._number = socket.socket(fileno=end.fd), end.number
        self.levels = Applied()
        self.wanted = self.levels.wanted
        self._waiting: deque[list[bytes]] = deque()
        self._nbytes = self._dropped = 0
        self._is_late = False  # the parent took nothing when it was waited for last
        self._is_gone = False
        found = weakref.ref(self)
        after_fork(lambda: _forget(found))

    def handle(self, record: logging.LogRecord) -> Any:
        """Send a record, if somebody wants it."""
        return record.levelno >= self.wanted(record.name) and super().handle(record)

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record, or have it wait."""
        try:
            self._put(encode(record))
            self._send(0.0 if self._is_late else _PATIENCE)
        except Exception:  # noqa: BLE001 - what loggers do with errors of their handlers
            self.handleError(record)

    def _put(self, data: bytes) -> None:
        count = -(-len(data) // PART) or 1
        parts = [
            HEADER.pack(self._number, os.getpid(), RECORD, count - 1 - at) + data[at * PART : (at + 1) * PART]
            for at in range(count)
        ]
        self._waiting.append(parts)
        self._nbytes += len(data)
        while len(self._waiting) > MOST_RECORDS or (self._nbytes > MOST_BYTES and len(self._waiting) > 1):
            # Not one that is under way.
            at = 1 if HEADER.unpack_from(self._waiting[0][0])[3] != len(self._waiting[0]) - 1 else 0
            oldest = self._waiting[at]
            del self._waiting[at]
            self._nbytes -= sum(map(len, oldest))
            self._dropped += 1

    def _send(self, patience: float) -> bool:
        """Send what waits, oldest first; False if some of it still waits."""
        while self._waiting or self._dropped:
            if self._is_gone:
                self._waiting.clear()
                self._nbytes = self._dropped = 0
                return True
            try:
                if self._dropped:
                    self._socket.send(HEADER.pack(self._number, os.getpid(), DROPPED, self._dropped), _FLAGS)
                    self._dropped = 0
                if self._waiting:
                    self._send_parts(self._waiting[0])
                    del self._waiting[0]
                self._is_late = False
            except BlockingIOError:
                if patience <= 0 or not _is_ready(self._socket, patience):
                    self._is_late = True
                    return False
            except OSError as error:
                if error.errno == errno.ENOBUFS:  # how BSD says of datagrams that there is no room
                    self._is_late = True
                    return False
                self._is_gone = True  # the parent has let go of it
        self._nbytes = 0
        return True

    def _send_parts(self, parts: list[bytes]) -> None:
        while parts:
            self._socket.send(parts[0], _FLAGS)
            self._nbytes -= len(parts[0])
            del parts[0]

    @property
    def has_waiting(self) -> bool:
        """True if something waits for room."""
        return bool(self._waiting)

    def flush(self) -> None:
        """Send what waits, for the parent takes it; at the end of the process and of the object."""
        with self.lock or threading.RLock():
            self._send(_END_PATIENCE)

    def send_until(self, line: Line) -> None:
        """Send what waits, until a message comes, or all is sent."""
        poll = select.poll()
        poll.register(line.fileno(), select.POLLIN)
        poll.register(self._socket.fileno(), select.POLLOUT)
        while self._waiting and not self._is_gone:
            if any(fd == line.fileno() for fd, _ in poll.poll()):
                return
            with self.lock or threading.RLock():
                self._send(0.0)


def _is_ready(end: socket.socket, seconds: float) -> bool:
    poll = select.poll()
    poll.register(end.fileno(), select.POLLOUT)
    return bool(poll.poll(seconds * 1000))


def _forget(found: weakref.ref[ToParent]) -> None:
    """In a fork: what waits is the worker's to send."""
    handler = found()
    if handler is not None:
        handler._waiting.clear()
        handler._nbytes = handler._dropped = 0


# --- records as bytes -----------------------------------------------------------------------------------

_PLAIN: frozenset[type] = frozenset({int, float, complex, bool, str, bytes, type(None)})


def encode(record: logging.LogRecord) -> bytes:
    """Return the bytes of a record: what can't be pickled is formatted here."""
    fields, others = dict(vars(record)), {}
    if type(record.msg) is not str or not _are_plain(record.args):
        fields["msg"], fields["args"] = str(record.getMessage()), None
    if record.exc_info:
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None  # type: ignore[redundant-expr]  # users make records, too
        if error is not None and not record.exc_text:
            fields["exc_text"] = text_of_traceback(error).rstrip("\n")
    fields["exc_info"] = None
    for name, value in list(fields.items()):
        if type(value) not in _PLAIN and name != "args":
            del fields[name]
            try:
                others[name] = pickle.dumps(value)
            except Exception:  # noqa: BLE001 - users' own objects
                fields[name] = repr(value)
    return pickle.dumps((fields, others))


def _are_plain(args: Any) -> bool:
    if isinstance(args, tuple):
        return _PLAIN.issuperset(map(type, args))
    return args is None or (type(args) is dict and _PLAIN.issuperset(map(type, [*args, *args.values()])))


def decode(data: bytes) -> logging.LogRecord:
    """Return the record."""
    fields, others = pickle.loads(data)
    for name, packed in others.items():
        try:
            fields[name] = pickle.loads(packed)
        except BaseException as error:  # noqa: BLE001 - users' own objects
            fields[name] = f"(can't be unpickled here: {name_of(type(error))}: {text_of(error)})"
    return logging.makeLogRecord(fields)
