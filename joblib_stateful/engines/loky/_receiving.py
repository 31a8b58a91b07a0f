"""From what a worker process has sent to its answer, with what came beside it copied out."""

from __future__ import annotations

import contextlib
import math
import os
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from ..._transport._segments import Arena, Range
from ..._worker._messages import Ran
from .._buffers import places_in, without_arena
from ._line import NoRoomError, decode

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from ..._transport._segments import Segment
    from ..._transport._unchanged import Unchanged
    from ..._worker._messages import Reply
    from ._line import Received

    Answer: TypeAlias = tuple[Reply, Collection[int] | None]


class Asked(Protocol):
    """A worker with a message under way."""

    def check(self, reply: Any, kept: Any) -> None:
        """Raise ValueError for what is no answer to that."""

    def answer_without(self, nbytes: int) -> Reply:
        """Return what stands for an answer for which there was no room."""

    def lent_with(self, seq: int) -> Sequence[Segment]:
        """Return the segments that went with a message under way."""


def answer_in(worker: Asked, received: Received | Exception, look_after: Callable[[], None]) -> Answer:
    """Return a worker's answer, and the numbers of the segments that it still looks into; None if that isn't known.

    Calls ``look_after`` before something that may take longer.

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
    if isinstance(reply, Ran) and (places := list(places_in(reply))):
        look_after()
        reply = _copied_out(reply, places, arenas[0] if arenas else Arena(), worker.lent_with(reply.seq))
    return reply, kept


def _copied_out(reply: Ran, places: Sequence[Range | Unchanged], arena: Arena, lent: Sequence[Segment]) -> Ran:
    """Return a reply with copies of what the worker laid into its arena, which it uses for the next one.

    Where there was no room for the arena's open file, reading says so, for each item that needs it.
    """
    if fault := _fault_in(places, None if arena.fd < 0 else arena.fd):
        raise ValueError(fault)
    reply = without_arena(reply, arena, lent)
    with contextlib.suppress(OSError):
        arena.trim()
    return reply


def _fault_in(places: Sequence[Range | Unchanged], fd: int | None) -> str:
    """Say why what a reply refers to can't lie in a worker's arena, nor in a segment; "" if it can."""
    most = math.inf if fd is None else os.fstat(fd).st_size  # without it nothing is read
    for where in places:
        is_place = all(type(number) is int and number >= 0 for number in where)
        if not is_place or (isinstance(where, Range) and where.offset + where.size > most):
            return f"a buffer lies at {where!r:.80} of {most}"
    return ""
