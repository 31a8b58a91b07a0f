"""The line between a parent and its worker: messages, and open files beside them."""

from __future__ import annotations

import os
import socket
import struct
from array import array
from typing import TYPE_CHECKING, Any, ClassVar, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

# Before each message: how many bytes and how many open files it has.
_HEADER = struct.Struct("<QI")
# The kernel takes 253 open files at once.
_MOST = 250
_FILES_SPACE = socket.CMSG_SPACE(_MOST * array("i").itemsize) if hasattr(socket, "CMSG_SPACE") else 0
# Copied behind its header, so that one call of the system sends both.
_SHORT = 1 << 16


class Line:
    """One end of a socket between a parent and a worker; both ends may send at any time.

    Large buffers don't come this way but lie in shared memory, whose open files do: those of the segments that a
    message refers to, in its order, and with a reply that needs it the worker's arena.
    """

    carries_files: ClassVar[bool] = hasattr(socket, "send_fds") and os.name == "posix"

    def __init__(self, end: socket.socket) -> None:
        end.settimeout(None)  # whatever `socket.setdefaulttimeout` says
        self._end = end

    @classmethod
    def pair(cls) -> tuple[Self, Self]:
        """Return both ends."""
        ours, theirs = socket.socketpair()
        return cls(ours), cls(theirs)

    def __reduce__(self) -> tuple[Any, ...]:
        """Hand this end to the process that is being started; nothing else can pickle it."""
        if os.name == "nt":
            from multiprocessing.resource_sharer import DupSocket  # type: ignore[attr-defined,unused-ignore]  # Windows only

            return _attach, (DupSocket(self._end),)
        from multiprocessing.reduction import DupFd

        return _attach, (DupFd(self._end.fileno()),)

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send a message, and copies of open files.

        Raises OSError if nobody is at the other end any more, or if the system takes no more files at the moment: then
        nothing was sent.
        """
        header = _HEADER.pack(len(data), len(fds))
        if fds:
            socket.send_fds(self._end, [header], list(fds[:_MOST]))
            for at in range(_MOST, len(fds), _MOST):
                socket.send_fds(self._end, [b"."], list(fds[at : at + _MOST]))
        elif len(data) <= _SHORT:
            self._end.sendall(header + data)
            return
        else:
            self._end.sendall(header)
        self._end.sendall(data)

    def receive(self) -> tuple[bytearray, list[int | None]]:
        """Return the next message and its open files; None for those that this process has no room for.

        Raises EOFError if the other end is closed.
        """
        header, fds = self._receive_some(_HEADER.size)
        while len(header) < _HEADER.size:
            header += self._receive_some(_HEADER.size - len(header))[0]
        size, n_files = _HEADER.unpack(header)
        expected = min(_MOST, n_files)
        files: list[int | None] = [*fds, *[None] * (expected - len(fds))]
        while len(files) < n_files:
            expected = min(_MOST, n_files - len(files))
            _, fds = self._receive_some(1)
            files += [*fds, *[None] * (expected - len(fds))]
        data = bytearray(size)
        with memoryview(data) as view:
            at = 0
            while at < size:
                n_read = self._end.recv_into(view[at:])
                if not n_read:
                    raise EOFError
                at += n_read
        return data, files

    def _receive_some(self, size: int) -> tuple[bytes, array[int]]:
        if not self.carries_files:
            data, fds = self._end.recv(size), array("i")
        else:
            data, beside, _, _ = self._end.recvmsg(size, _FILES_SPACE)
            fds = array("i")
            for _, _, numbers in beside:
                fds.frombytes(numbers[: len(numbers) - len(numbers) % fds.itemsize])
        if not data:
            raise EOFError
        return data, fds

    def hang_up(self) -> None:
        """Have both ends hear that this is the end, also those who wait for a message now."""
        try:
            self._end.shutdown(socket.SHUT_RDWR)
        except OSError:  # the other end, or this one, is closed already
            return

    def fileno(self) -> int:
        """Return the socket's number."""
        return self._end.fileno()

    def close(self) -> None:
        """Close this end."""
        self._end.close()


def _attach(end: Any) -> Line:
    found = end.detach()
    return Line(found if isinstance(found, socket.socket) else socket.socket(fileno=found))
