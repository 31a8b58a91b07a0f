"""How open files, and with them large buffers, go from a parent to its worker and back."""

from __future__ import annotations

import os
import socket
from multiprocessing.connection import Pipe
from typing import TYPE_CHECKING, Any, ClassVar, Self

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from types import TracebackType

# The kernel takes 253 in one message.
_MOST = 250


class Handover:
    """One end of a socket between a parent and a worker.

    Files go beside the messages, which loky carries: those of the segments that a message refers to, in its order, and
    with a reply that needs it the worker's arena.
    """

    is_possible: ClassVar[bool] = hasattr(socket, "send_fds") and os.name == "posix"

    def __init__(self, end: Connection) -> None:
        self._end = end  # a Connection, for that is what loky can hand to a process that it starts

    @classmethod
    def pair(cls) -> tuple[Self, Self]:
        """Return both ends."""
        ours, theirs = Pipe(duplex=True)
        return cls(ours), cls(theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close this end."""
        self._end.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return Handover, (self._end,)

    def send(self, fds: list[int]) -> None:
        """Send open files; the other end gets copies."""
        with self._socket() as sock:
            for at in range(0, len(fds), _MOST):
                socket.send_fds(sock, [b"."], fds[at : at + _MOST])

    def receive(self, count: int) -> list[int | None]:
        """Receive that many open files; None for those that this process has no room for."""
        fds: list[int | None] = []
        with self._socket() as sock:
            for at in range(0, count, _MOST):
                expected = min(_MOST, count - at)
                data, received, _, _ = socket.recv_fds(sock, 1, expected)
                if not data:
                    raise EOFError
                fds += [*received, *[None] * (expected - len(received))]
        return fds

    def _socket(self) -> socket.socket:
        return socket.socket(fileno=os.dup(self._end.fileno()))
