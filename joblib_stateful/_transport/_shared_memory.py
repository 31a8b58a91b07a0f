"""The transport between processes of one machine: small values in line, large buffers through shared memory.

The parent lays each large buffer into a `Segment` once, however many values refer to it, and workers map that. A
buffer is known again by where it lies in memory, and then its bytes are compared, so that one which a generator
fills again and again never arrives stale. Workers lay large results into their `Arena`.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any, NamedTuple

from ._frames import LongPickle
from ._segments import Range
from ._setting_aside import ComparingPacker, ResultPacker, SharedFrame, SharingPacker
from ._stores import Blobs, Files, InFile, Store, ToCopy
from ._transport import Packing, Pickled, Sharing, digest
from ._unchanged import Unchanged, memory_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Iterable, Iterator

    from ._arrivals import Arrived
    from ._contents import Contents
    from ._defining import Definer
    from ._frames import Packer
    from ._held import Held
    from ._segments import Arena, Pieces, Segment


class Lost(NamedTuple):
    """What stands for a frame whose buffers could not be had."""

    error: Exception


class SharedMemory(Pickled):
    """cloudpickle in both directions, large buffers through shared memory.

    Parameters
    ----------
    sharing : Sharing, optional
        How buffers travel where a call does not say it, and results.
    """

    #: Large pickles travel beside their message, too.
    _shares_pickles = True

    def __init__(self, sharing: Sharing | None = None) -> None:
        self._sharing = sharing or Sharing()
        self._store = Store()
        # In a worker: where large results go, and what has come with the message.
        self.arena: Arena | None = None
        self.arrived: Arrived | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return SharedMemory, (self._sharing,)

    def sharing_with(self, held: Held) -> Sharing:
        """Return how buffers travel where a call does not say it, and what is used again is held."""
        return self._sharing._replace(held=held)

    def pack_shared(self, value: Any, definer: Definer | None = None) -> Any:
        """Pack one value that several workers get, and that stays: files that it names are meant to be shared."""
        return self._packer(self._sharing._replace(named="all"), definer).pack_alone(value)

    def identify(self, value: Any) -> Hashable:
        """Return what is equal for values that hold the same.

        A large buffer stands for itself by its segment, which is found by content, for digesting it takes several times
        as long as comparing. Whoever keeps the key keeps the segment.
        """
        packer = ComparingPacker(self._store.like, self._sharing)
        head = packer.pack(value)
        return digest(head), *packer.aside

    def packing(
        self,
        catch: type[BaseException] = Exception,
        sharing: Sharing | None = None,
        definer: Definer | None = None,
    ) -> Packing:
        """Return what packs several values."""
        if self.arena is not None:
            self.arena.rewind()
        return super().packing(catch, sharing, definer)

    def unpack(self, packed: Any) -> Any:
        """Unpack one value."""
        if isinstance(packed, SharedFrame):
            head, buffers = self.buffers_of(packed)
            return pickle.loads(head.behind() if isinstance(head, LongPickle) else head, buffers=buffers)
        if isinstance(packed, Lost):
            raise packed.error
        return super().unpack(packed)

    def buffers_of(self, frame: Any) -> tuple[Any, Any]:
        """Return the pickle of a frame, and the buffers that go with it; no pickle if it is lost."""
        if isinstance(frame, SharedFrame):
            memory = self._memory_of(frame)
            if not frame.is_long:
                return frame.head, memory
            *buffers, rest = memory
            return LongPickle(frame.head, rest), buffers
        return (None, None) if isinstance(frame, Lost) else (frame, None)

    def _memory_of(self, frame: SharedFrame) -> Iterable[Any]:
        return frame.buffers if self.arrived is None else self.arrived.memory_of(frame.buffers)

    def _packer(self, sharing: Sharing | None, definer: Definer | None = None) -> Packer:
        put_pickle = self._set_aside_pickle if self._shares_pickles else None
        return self._sharing_packer(put_pickle, sharing or self._sharing, definer)

    def _packer_of_definitions(self, definer: Definer) -> Packer:
        # Those of a worker may be kept longer than what lies in its arena; those of the parent are told apart by their pickles.
        if definer.is_back:
            return super()._packer_of_definitions(definer)
        return self._sharing_packer(None, self._sharing, definer)

    def _sharing_packer(
        self, put_pickle: Callable[[Pieces, Sharing], Any] | None, sharing: Sharing, definer: Definer | None
    ) -> Packer:
        # A worker's warnings would be seen by nobody who looks for them.
        return SharingPacker(self._set_aside, put_pickle, sharing, definer, in_worker=self.arena is not None)

    def _set_aside(self, contents: Contents, sharing: Sharing) -> Any:
        if self.arena is None:
            return self._store.segment_of(contents, sharing)
        unchanged = None if self.arrived is None else self.arrived.unchanged(contents)
        return unchanged or self.arena.write((contents.in_memory(),))

    def _set_aside_pickle(self, pieces: Pieces, sharing: Sharing) -> Any:
        return self._store.make_private(pieces, sharing) if self.arena is None else self.arena.write(pieces)


class Stored(SharedMemory):
    """cloudpickle in both directions; large buffers on their way out by the store of a cluster.

    A worker's parent takes each `Blob` out of a message and puts it into the store once; its far end takes it from there.

    Parameters
    ----------
    sharing : Sharing, optional
        How buffers travel where a call does not say it.
    is_far : bool, default False
        This is the far end, whose results go in line.
    """

    _shares_pickles = False

    def __init__(self, sharing: Sharing | None = None, *, is_far: bool = False) -> None:
        super().__init__(sharing)
        self._store = Blobs()
        self._is_far = is_far

    def __reduce__(self) -> tuple[Any, ...]:
        return _far_end, (self._sharing,)

    def _memory_of(self, frame: SharedFrame) -> Iterable[Any]:
        return frame.with_buffers(_memory_of_one).buffers

    def _packer(self, sharing: Sharing | None, definer: Definer | None = None) -> Packer:
        return ResultPacker(definer=definer) if self._is_far else super()._packer(sharing, definer)


def _memory_of_one(buffer: Any) -> Any:
    return buffer.memory() if isinstance(buffer, (ToCopy, InFile)) else buffer


class InLine(Stored):
    """The same between processes of one machine that can't hand on open files.

    Large buffers come with their message, but for those that all workers are to write to, which lie in files with names.
    """

    def __init__(self, sharing: Sharing | None = None) -> None:
        super().__init__(sharing)
        self._store = Files()


def _far_end(sharing: Sharing) -> Stored:
    return Stored(sharing, is_far=True)


def segments_of(frames: Iterable[Any]) -> Iterator[Any]:
    """Return what the buffers of some frames lie in; on either side, in the same order."""
    for frame in frames:
        if isinstance(frame, SharedFrame):
            # Some may have come in line after all.
            yield from (buffer for buffer in frame.buffers if not isinstance(buffer, (bytes, bytearray)))


def copied_out(frame: Any, arena: Arena, lent: Collection[Segment] | None = None) -> Any:
    """Return a worker's frame with copies of what it laid into its arena.

    With the segments that went with the message, also with the memory of what it gives back as it came.
    """
    if not isinstance(frame, SharedFrame):
        return frame

    def memory(where: Any) -> Any:
        if isinstance(where, Range):
            return arena.read(where)
        return memory_of(where, lent) if isinstance(where, Unchanged) and lent is not None else where

    try:
        return frame.with_buffers(memory)
    except (OSError, MemoryError, BufferError) as error:  # the item's error, when it is unpacked
        return Lost(error)
