"""The line between a parent and its worker: messages, and open files beside them."""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import socket
import struct
import weakref
from array import array
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias

from ..._process._system import CLOEXEC, HAS_POLL, IS_WINDOWS, NO_SIGNAL, NO_WAIT, SENDS_FILES, raise_no_signal
from ..._transport._reducing import PROTOCOL
from ..._transport._transport import Parcel
from ..._worker._messages import Ran, Run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..._worker._messages import Message, Refused, Reply

    # A message, and its open files; None for those that this process has no room for.
    Received: TypeAlias = tuple[bytes | bytearray, list[int | None]]

# Before each message: a sign that it is one, how many bytes it has, how many open files, and what both must give: nobody
# shall wait for bytes that won't come, because the memory of a worker was damaged.
_HEADER = struct.Struct("<4sQII")
_SIGN = b"jlst"
# So much is taken by the system while the other end reads nothing. BSD would begin with 8 KiB.
_BUFFER_BYTES = 1 << 18
# So much of a message is received together with its header.
_AT_ONCE = 1 << 12
_INT = array("i").itemsize
# What there is no room for is received by so much at a time, and dropped.
_DROP_BYTES = 1 << 16
# So much of a message is received by one look whether all of it is there: that of a few milliseconds.
_MOST_BYTES = 1 << 22
# Copied behind its header, so that one call of the system sends both.
_SHORT = 1 << 16


def encode(message: Message | Reply | Refused, beside: Any = ()) -> bytes:
    """Return the bytes of a message and the levels for logging, or of an answer and the segments that are still looked into."""
    # Those that are sent all the time go as plain tuples: records take 3 µs more to pickle, and 2 to load.
    coded: tuple[int, Any] = 0, message
    if isinstance(message, Run):
        seq, mode, target_id, target, parcel, *rest = message
        coded = _RUN, (seq, mode, target_id, target, tuple(parcel), *rest)
    elif isinstance(message, Ran):
        seq, n_run, parcel, *others = message
        coded = _RAN, (seq, n_run, tuple(parcel), *others)
    return pickle.dumps((*coded, beside), PROTOCOL)


def decode(data: bytes | bytearray) -> tuple[Any, Any]:
    """Return what was encoded."""
    kind, fields, beside = pickle.loads(data)
    if kind == _RUN:
        seq, mode, target_id, target, parcel, *rest = fields
        return Run(seq, mode, target_id, target, Parcel(*parcel), *rest), beside
    if kind == _RAN:
        seq, n_run, parcel, *rest = fields
        return Ran(seq, n_run, Parcel(*parcel), *rest), beside
    return fields, beside


_RUN, _RAN = 1, 2


def _check(size: int, n_files: int) -> int:
    return (size ^ (size >> 32) ^ (n_files << 16) ^ 0x5BD1E995) & 0xFFFFFFFF


class NoRoomError(MemoryError):
    """Raised for a message for which there was not enough memory; it is received, and dropped."""

    def __init__(self, size: int) -> None:
        self.size = size
        super().__init__(f"no memory for a message of {size:,} bytes")


class Line:
    """One end of a socket between a parent and a worker.

    Nothing more is sent before the last message is answered; or it is shared by several messages, and nothing is read ahead.

    Large buffers don't come this way but lie in shared memory, whose open files do: those of the segments that a
    message refers to, in its order, and with a reply that needs it the worker's arena.

    It is closed when nobody holds it any more, and not before: another thread may be about to use its number.
    """

    carries_files: ClassVar[bool] = SENDS_FILES
    #: How many open files go with one message; the kernel takes 253.
    most_files: ClassVar[int] = 250 if SENDS_FILES else 0

    def __init__(self, end: socket.socket, *, is_shared: bool = False) -> None:
        end.settimeout(None)  # whatever `socket.setdefaulttimeout` says
        raise_no_signal(end)
        self._end = end
        # What has come of a message that is not complete: its beginning, its open files, and from its header on all of
        # it, if that was more, up to `_at`.
        self._start = b""
        self._rest: bytearray | None = None
        self._at = 0
        self._n_dropped = 0  # bytes of it for which there was no room
        self._fds: list[int | None] = []
        # A message that began and never ends, for its sender was killed, leaves none of them open.
        weakref.finalize(self, _let_go, end, self._fds).atexit = False
        # Of several messages under way, what is read behind one would belong to the next.
        self._is_shared, self._at_once = is_shared, _HEADER.size if is_shared else _AT_ONCE
        self._space = socket.CMSG_SPACE(self.most_files * _INT) if self.carries_files else 0
        #: Bytes that can be sent without waiting if the other end has read all that was sent before.
        self.at_once = min(_SHORT, end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 4)

    @classmethod
    def pair(cls, *, is_shared: bool = False) -> tuple[Self, Self]:
        """Return both ends; a shared one is for several messages under way."""
        ends = socket.socketpair()
        for end in ends:
            for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                with contextlib.suppress(OSError):  # more than the system allows, and not cut down to that
                    end.setsockopt(socket.SOL_SOCKET, buffer, _BUFFER_BYTES)
        return cls(ends[0], is_shared=is_shared), cls(ends[1], is_shared=is_shared)

    def __reduce__(self) -> tuple[Any, ...]:
        """Hand this end to the process that is being started; nothing else can pickle it."""
        if IS_WINDOWS:
            from multiprocessing.resource_sharer import DupSocket  # type: ignore[attr-defined,unused-ignore]  # there

            return _attach, (DupSocket(self._end), self._is_shared)
        from multiprocessing.reduction import DupFd

        return _attach, (DupFd(self._end.fileno()), self._is_shared)

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send a message, and copies of at most `most_files` open files.

        Raises OSError if nobody is at the other end any more; also, with ETOOMANYREFS and before anything is sent, if
        the system takes no more files at the moment.
        """
        size, n_files = len(data), len(fds)
        header = _HEADER.pack(_SIGN, size, n_files, _check(size, n_files))
        if fds:
            self._end.sendmsg([header], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))], NO_SIGNAL)
        elif size <= _SHORT:
            self._end.sendall(header + data, NO_SIGNAL)
            return
        else:
            self._end.sendall(header, NO_SIGNAL)
        self._end.sendall(data, NO_SIGNAL)

    def receive(self) -> Received:
        """Return the next message.

        Raises EOFError if the other end is closed, ValueError if somebody else has written to it, or if a message
        comes behind another one that was not answered, and NoRoomError for one that there is no memory for.
        """
        self._receive(waits=True)
        return self._received()

    def receive_if_there(self) -> Received | None:
        """Return the next message, or None if not all of it is there; what is there is kept for the next call.

        One call takes a part of it only if that is large: there may be more, though it returns None.
        """
        try:
            self._receive(waits=False)
        except BlockingIOError:
            return None
        return self._received()

    def skip(self) -> None:
        """Read the rest of a message for which there is no memory, and forget it."""
        if len(self._start) < _HEADER.size:
            return
        _, size, _, _ = _HEADER.unpack_from(self._start)
        got = len(self._start) - _HEADER.size if self._rest is None else self._at
        self._rest = None
        while got < size:
            got += len(self._receive_more(min(size - got, _SHORT), waits=True))
        for fd in self._received()[1]:
            if fd is not None:
                os.close(fd)

    def _receive(self, *, waits: bool) -> None:
        if not self._start:
            self._start, self._fds[:] = self._receive_start(waits=waits)
        while len(self._start) < _HEADER.size:
            self._start += self._receive_more(_HEADER.size - len(self._start), waits=waits)
        if self._rest is None:
            sign, size, n_files, check = _HEADER.unpack_from(self._start)
            is_header = sign == _SIGN and check == _check(size, n_files) and n_files <= self.most_files
            if not is_header or len(self._start) > _HEADER.size + size:
                raise ValueError(f"no message begins with {self._start[: _HEADER.size]!r}")
            self._fds += [None] * (n_files - len(self._fds))
            if len(self._start) == _HEADER.size + size:
                return
            self._at = len(self._start) - _HEADER.size
            try:
                self._rest = bytearray(size)
                self._rest[: self._at] = self._start[_HEADER.size :]
            except MemoryError:
                self._n_dropped, self._rest, self._at = size, bytearray(_DROP_BYTES), size - self._at
        if self._n_dropped:
            self._drop(waits=waits)
            return
        with memoryview(self._rest) as view:
            self._fill(view, waits=waits)

    def _fill(self, view: memoryview, *, waits: bool) -> None:
        most = len(view) if waits else min(len(view), self._at + _MOST_BYTES)
        while self._at < most:
            n_read = self._end.recv_into(view[self._at :], 0, self._flags(waits=waits))
            if not n_read:
                raise EOFError
            self._at += n_read
        if self._at < len(view):
            raise BlockingIOError

    def _drop(self, *, waits: bool) -> None:
        """Receive the rest of a message, of which `_at` bytes are missing, and keep nothing of it."""
        assert self._rest is not None  # noqa: S101 - it is what they are received into
        least = 0 if waits else self._at - _MOST_BYTES
        while self._at > max(least, 0):
            n_read = self._end.recv_into(self._rest, min(self._at, len(self._rest)), self._flags(waits=waits))
            if not n_read:
                raise EOFError
            self._at -= n_read
        if self._at:
            raise BlockingIOError

    def _received(self) -> Received:
        data = self._start[_HEADER.size :] if self._rest is None else self._rest
        fds, n_dropped = self._fds.copy(), self._n_dropped
        self._start, self._rest, self._n_dropped = b"", None, 0
        self._fds.clear()
        if n_dropped:
            for fd in fds:
                if fd is not None:
                    os.close(fd)
            raise NoRoomError(n_dropped)
        return data, fds

    def _flags(self, *, waits: bool) -> int:
        """Return how to receive something; raises BlockingIOError if that would wait, and must not."""
        if waits:
            return 0
        if not HAS_POLL and not select.select([self._end], [], [], 0)[0]:
            raise BlockingIOError
        return NO_WAIT

    def _receive_start(self, *, waits: bool) -> tuple[bytes, list[int | None]]:
        # Whole short messages at once: each call of the system lets other threads take their turn.
        if not self.carries_files:
            return self._receive_more(self._at_once, waits=waits), []
        data, beside, _, _ = self._end.recvmsg(self._at_once, self._space, self._flags(waits=waits) | CLOEXEC)
        fds: list[int | None] = []
        for _, _, numbers in beside:
            for fd in array("i", numbers[: len(numbers) - len(numbers) % _INT]):
                if not CLOEXEC:
                    os.set_inheritable(fd, False)
                fds.append(fd)
        if not data:
            raise EOFError
        return data, fds

    def _receive_more(self, most: int, *, waits: bool) -> bytes:
        data = self._end.recv(most, self._flags(waits=waits))
        if not data:
            raise EOFError
        return data

    def hang_up(self) -> None:
        """Have both ends hear that this is the end, also those who wait for a message now.

        What was sent before can still be read at the other end.
        """
        with contextlib.suppress(OSError):  # it has ended already
            self._end.shutdown(socket.SHUT_RDWR)

    def fileno(self) -> int:
        """Return the socket's number."""
        return self._end.fileno()

    def close(self) -> None:
        """Close this end; only while no other thread knows of it."""
        self._end.close()


def _let_go(end: socket.socket, fds: list[int | None]) -> None:
    end.close()
    for fd in fds:
        if fd is not None:
            os.close(fd)


def _attach(end: Any, is_shared: bool) -> Line:  # noqa: FBT001 - by `__reduce__`
    found = end.detach()
    return Line(found if isinstance(found, socket.socket) else socket.socket(fileno=found), is_shared=is_shared)
