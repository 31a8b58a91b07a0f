"""How open files, and with them large buffers, go from a parent to its worker and back."""

from __future__ import annotations

import os
import socket
from typing import Any, ClassVar, Self

# The kernel takes 253 in one message.
_MOST = 250


class Handover:
    """One end of a socket between a parent and a worker.

    Files go beside the messages, which loky carries: those of the segments that a message refers to, in its order, and
    with a reply that needs it the worker's arena.
    """

    is_possible: ClassVar[bool] = hasattr(socket, "send_fds") and os.name == "posix"

    def __init__(self, end: socket.socket) -> None:
        end.settimeout(None)  # whatever `socket.setdefaulttimeout` says
        self._end = end

    @classmethod
    def pair(cls) -> tuple[Self, Self]:
        """Return both ends."""
        ours, theirs = socket.socketpair()
        return cls(ours), cls(theirs)

    def close(self) -> None:
        """Close this end."""
        self._end.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Hand this end to the process that is being started; nothing else can pickle it."""
        from multiprocessing.reduction import DupFd

        return _attach, (DupFd(self._end.fileno()),)

    def send(self, fds: list[int]) -> None:
        """Send open files; the other end gets copies."""
        for at in range(0, len(fds), _MOST):
            socket.send_fds(self._end, [b"."], fds[at : at + _MOST])

    def receive(self, count: int) -> list[int | None]:
        """Receive that many open files; None for those that this process has no room for."""
        fds: list[int | None] = []
        for at in range(0, count, _MOST):
            expected = min(_MOST, count - at)
            data, received, _, _ = socket.recv_fds(self._end, 1, expected)
            if not data:
                raise EOFError
            fds += [*received, *[None] * (expected - len(received))]
        return fds


def _attach(fd: Any) -> Handover:
    return Handover(socket.socket(fileno=fd.detach()))
