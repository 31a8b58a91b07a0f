"""From what a worker process has sent to its answer, with what came beside it copied out."""

from __future__ import annotations

import contextlib
import math
import os
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from ..._transport._segments import Arena, Range
from ..._transport._setting_aside import SharedFrame
from ..._worker._messages import Ran
from .._buffers import without_arena
from ._line import NoRoomError, decode

if TYPE_CHECKING:
    from collections.abc import Collection

    from ..._worker._messages import Reply
    from ._line import Received

    Answer: TypeAlias = tuple[Reply, Collection[int] | None]


class Asked(Protocol):
    """A worker with a message under way."""

    def check(self, reply: Any, kept: Any) -> None:
        """Raise ValueError for what is no answer to that."""

    def answer_without(self, nbytes: int) -> Reply:
        """Return what stands for an answer for which there was no room."""


def answer_in(worker: Asked, received: Received | Exception) -> Answer:
    """Return a worker's answer, and the numbers of the segments that it still looks into; None if that isn't known.

    Raises ValueError, or what loading raises, for what is no answer.
    """
    if not isinstance(received, tuple):
        if isinstance(received, NoRoomError):
            return worker.answer_without(received.size), None
        raise received
    data, fds = received
    # The open file of the worker's arena, if it has come: from here on it is closed, whatever becomes of the answer.
    arenas = [Arena(-1 if fd is None else fd) for fd in fds] if fds else ()
    try:
        reply, kept = decode(data)
    except MemoryError:
        return worker.answer_without(len(data)), None
    worker.check(reply, kept)
    if arenas and isinstance(reply, Ran):
        reply = _copied_out(reply, arenas[0])
    return reply, kept


def _copied_out(reply: Ran, arena: Arena) -> Ran:
    """Return a reply with copies of what the worker laid into its arena, which it uses for the next one.

    Where there was no room for the arena's open file, reading says so, for each item that needs it.
    """
    if fault := fault_in_ranges(reply, None if arena.fd < 0 else arena.fd):
        raise ValueError(fault)
    reply = without_arena(reply, arena)
    with contextlib.suppress(OSError):
        arena.trim()
    return reply


def fault_in_ranges(reply: Ran, fd: int | None) -> str:
    """Say why what a reply refers to can't lie in a worker's arena; "" if it can."""
    ranges = [
        buffer
        for frame in reply.values.frames
        if isinstance(frame, SharedFrame)
        for buffer in frame.buffers
        if not isinstance(buffer, bytes)
    ]
    most = math.inf if fd is None else os.fstat(fd).st_size  # without it nothing is read
    for where in ranges:
        is_range = type(where) is Range and type(where.offset) is int and type(where.size) is int
        if not is_range or where.offset < 0 or where.size < 0 or where.offset + where.size > most:
            return f"a buffer lies at {where!r:.80} of {most}"
    return ""
