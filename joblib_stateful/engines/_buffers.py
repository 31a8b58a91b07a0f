"""The large buffers of a message, which travel beside it."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from .._transport._arrivals import COPIED_BYTES, Arrived
from .._transport._definitions import frames_of
from .._transport._segments import Range
from .._transport._setting_aside import SharedFrame
from .._transport._shared_memory import copied_out, segments_of
from .._transport._stores import NamedFile, ToCopy
from .._transport._unchanged import Unchanged
from .._worker._messages import Build, Finish, Run

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from .._transport._segments import Arena, Segment
    from .._worker._messages import Message, Ran


# Then frames have no large buffers. Asked for each message.
_are_bytes = frozenset({bytes}).issuperset


def segments_in(message: Message) -> Iterator[Any]:
    """Return what the large buffers of a message lie in; on either side, in the same order."""
    if (
        type(message) is Run
        and not (message.definitions or message.target)
        and _are_bytes(map(type, message.parcel.frames))
    ):
        return iter(())
    # Each once, however often it is referred to.
    return iter({segment.number: segment for segment in segments_of(_frames_of(message))}.values())


def with_buffers(message: Message, change: Callable[[Any], Any]) -> Message:
    """Return a message with what its large buffers lie in changed."""

    def changed(frame: Any) -> Any:
        return frame.with_buffers(change) if isinstance(frame, SharedFrame) else frame

    if isinstance(message, Run):
        message = message._replace(target=changed(message.target))
        if not message.parcel.joint:
            frames = tuple(map(changed, message.parcel.frames))
            message = message._replace(parcel=message.parcel._replace(frames=frames))
    elif isinstance(message, Build) and message.spec:
        message = message._replace(spec=tuple(map(changed, message.spec)))
    if not isinstance(message, Finish) and message.definitions:
        definitions = (
            (*found[:2], changed(found[2])) if isinstance(found, tuple) else found for found in message.definitions
        )
        message = message._replace(definitions=tuple(definitions))
    return message


class Handle(NamedTuple):
    """What the far end finds a blob by in a cluster's store."""

    key: Any
    mode: str

    def used(self, data: Any) -> Any:
        """Return what lies in the store, or what will be copied if workers may write to it."""
        return data if self.mode == "r" else ToCopy(data)


def in_line(message: Message, keep: Collection[int] = ()) -> Message:
    """Return a message that brings its large buffers itself, but for those in some segments, by number."""

    def bring(segment: Any) -> Any:
        if segment.number in keep or isinstance(segment, NamedFile):
            return segment
        with segment.view() as view:
            return bytes(view) if segment.mode == "r" else bytearray(view)

    return with_buffers(message, bring)


def arrived_with(message: Message, fds: Sequence[int | None]) -> Arrived:
    """Return the open files that came with a message."""
    numbers = [segment.number for segment in segments_in(message)]
    uses = Counter(number for frame in _frames_of(message) for number in {one.number for one in segments_of((frame,))})
    if isinstance(message, Run) and message.mode == "batch":
        # If the call raises, its items are unpacked again for each half of it.
        uses = Counter(dict.fromkeys(uses, sys.maxsize))
    # What the object is built from stays for its whole life, and is the same for all workers.
    copied = COPIED_BYTES if isinstance(message, Run) else 0
    return Arrived(dict(zip(numbers, fds, strict=True)), uses, copied)


def places_in(reply: Ran) -> Iterator[Range | Unchanged]:
    """Return where those large buffers of a worker's reply lie that have not come with it."""
    frames = reply.values.frames
    if not (reply.values.joint or _are_bytes(map(type, frames))):
        yield from (place for place in segments_of(frames) if isinstance(place, (Range, Unchanged)))


def without_arena(reply: Ran, arena: Arena, lent: Collection[Segment] | None = None) -> Ran:
    """Return a reply with copies of what the worker laid into its arena.

    With the segments that went with the message, also with the memory of what it gives back as it came.
    """
    frames = tuple(copied_out(frame, arena, lent) for frame in reply.values.frames)
    return reply._replace(values=reply.values._replace(frames=frames))


def _frames_of(message: Message) -> Iterator[Any]:
    if isinstance(message, Finish):
        return
    yield from frames_of(message.definitions)
    if isinstance(message, Run):
        if message.target is not None:
            yield message.target
        if not message.parcel.joint:
            yield from message.parcel.frames
    elif isinstance(message, Build):
        yield from message.spec or ()
