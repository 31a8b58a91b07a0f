"""The transport between processes of one machine: small values in line, large buffers through shared memory.

The parent lays each large buffer into a `Segment` once, however many values refer to it, and workers map that. A
buffer is known again by where it lies in memory, and then its bytes are compared, so that one which a generator
fills again and again never arrives stale. Workers lay large results into their `Arena`.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import pickle
import sys
import tempfile
import warnings
import weakref
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from .._process import _locks
from .._process._system import after_fork, most_open
from ._arrays import SUBCLASSES
from ._code import ComparingPickler
from ._contents import contents_of, is_same, stays_in_line
from ._frames import ROOM, LongPickle, Packer
from ._memmaps import array_pickler
from ._reducing import is_private
from ._segments import Arena, Segment, empty, numbers
from ._transport import THRESHOLD, Packing, Pickled, Sharing, digest

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator

    from ._arrivals import Arrived
    from ._contents import Contents
    from ._defining import Definer
    from ._segments import Pieces


class SharedFrame(NamedTuple):
    """A packed value whose large buffers travel beside it.

    If ``is_long``, so does its pickle: it is the last of these buffers, and the head only how it begins.
    """

    head: bytes
    # Each a `Segment`, which arrives as `Received`; a `Range`, which becomes a copy; or a `Blob`, which does so, too.
    buffers: tuple[Any, ...]
    is_long: bool = False

    def with_buffers(self, change: Callable[[Any], Any]) -> SharedFrame:
        """Return it with what the buffers lie in changed: once, where several are the same."""
        changed = {key: change(buffer) for key, buffer in {id(buffer): buffer for buffer in self.buffers}.items()}
        return self._replace(buffers=tuple(changed[id(buffer)] for buffer in self.buffers))


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
        self._store = _Store()
        # In a worker: where large results go, and what has come with the message.
        self.arena: Arena | None = None
        self.arrived: Arrived | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return SharedMemory, (self._sharing,)

    def pack_shared(self, value: Any, definer: Definer | None = None) -> Any:
        """Pack one value that several workers get, and that stays: files that it names are meant to be shared."""
        return self._packer(self._sharing._replace(named="all"), definer).pack_alone(value)

    def identify(self, value: Any) -> Hashable:
        """Return what is equal for values that hold the same.

        A large buffer stands for itself by its segment, which is found by content, for digesting it takes several times
        as long as comparing. Whoever keeps the key keeps the segment.
        """
        packer = _Comparing(self._store.like, self._sharing)
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
        return _SharingPacker(self._set_aside, put_pickle, sharing, definer, in_worker=self.arena is not None)

    def _set_aside(self, contents: Contents, sharing: Sharing) -> Any:
        if self.arena is None:
            return self._store.segment_of(contents, sharing)
        return self.arena.write((contents.in_memory(),))

    def _set_aside_pickle(self, pieces: Pieces, sharing: Sharing) -> Any:
        return self._store.make_private(pieces, sharing) if self.arena is None else self.arena.write(pieces)


class Blob:
    """A buffer on its way to a cluster, until the last parcel that holds it is dropped.

    Parameters
    ----------
    buffer : memoryview
        What it holds, in bytes; copied at once.
    mode : {"c", "r", "r+", "w+"}
        What workers may do with it.
    """

    def __init__(self, buffer: memoryview, mode: str = "c") -> None:
        self.size, self.mode, self.number, self.data = buffer.nbytes, mode, next(numbers), bytes(buffer)
        # Where it lies in the cluster's own store: what that gave for it, by place.
        self.handles: dict[Any, Any] = {}
        #: As a segment's; nobody looks, for nothing of it is used again.
        self.lent: set[Hashable] = set()
        self.lock = _locks.Lock()  # guards the handles, so that each place gets it once

    def view(self) -> memoryview:
        """Return what it holds."""
        return memoryview(self.data)


class ToCopy:
    """A buffer in a cluster's store, of which each value gets a copy when it is unpacked, and not all of them at once."""

    def __init__(self, data: Any) -> None:
        self._data = data

    def memory(self) -> Any:
        """Return memory that can be written to."""
        with memoryview(self._data) as view:
            copy = empty(view.nbytes)
            memoryview(copy)[:] = view.cast("B")
        return copy


class NamedFile:
    """A buffer in a file with a name, which all workers write to, until the last parcel that holds it is dropped.

    Parameters
    ----------
    buffer : memoryview
        What it holds, in bytes; copied at once.
    mode : {"r+", "w+"}
        As in `numpy.memmap`.
    folder : str, optional
        Where it lies; by default in the one for temporary files.
    """

    def __init__(self, buffer: memoryview, mode: str, folder: str | None = None) -> None:
        self.size, self.mode, self.number = buffer.nbytes, mode, next(numbers)
        #: As a segment's; nobody looks, for nothing of it is used again.
        self.lent: set[Hashable] = set()
        fd, self.path = tempfile.mkstemp(prefix="joblib_stateful-", dir=folder)
        weakref.finalize(self, _remove, self.path, os.getpid())
        with open(fd, "wb") as file:  # noqa: PTH123 - it is open
            file.write(buffer)

    def view(self) -> memoryview:
        """Return what it holds now."""
        return memoryview(_map_file(self.path, mmap.ACCESS_READ))

    def __reduce__(self) -> tuple[Any, ...]:
        return InFile, (self.path,)


class InFile(NamedTuple):
    """A buffer in a file with a name, on the worker's side."""

    path: str

    def memory(self) -> Any:
        """Return memory whose changes all see."""
        return _map_file(self.path, mmap.ACCESS_WRITE)


def _map_file(path: str, access: int) -> mmap.mmap:
    with open(path, "r+b") as file:  # noqa: PTH123 - importing pathlib would take each worker 4 ms
        return mmap.mmap(file.fileno(), 0, access=access)


def _remove(path: str, pid: int) -> None:
    if pid == os.getpid():  # else it is the parent's of this fork
        with contextlib.suppress(OSError):  # somebody has tidied up
            os.unlink(path)  # noqa: PTH108 - see above


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
        self._store = _Blobs()
        self._is_far = is_far

    def __reduce__(self) -> tuple[Any, ...]:
        return _far_end, (self._sharing,)

    def _memory_of(self, frame: SharedFrame) -> Iterable[Any]:
        return frame.with_buffers(_memory_of_one).buffers

    def _packer(self, sharing: Sharing | None, definer: Definer | None = None) -> Packer:
        return _ResultPacker(definer=definer) if self._is_far else super()._packer(sharing, definer)


def _memory_of_one(buffer: Any) -> Any:
    return buffer.memory() if isinstance(buffer, (ToCopy, InFile)) else buffer


class InLine(Stored):
    """The same between processes of one machine that can't hand on open files.

    Large buffers come with their message, but for those that all workers are to write to, which lie in files with names.
    """

    def __init__(self, sharing: Sharing | None = None) -> None:
        super().__init__(sharing)
        self._store = _Files()


def _far_end(sharing: Sharing) -> Stored:
    return Stored(sharing, is_far=True)


def segments_of(frames: Iterable[Any]) -> Iterator[Any]:
    """Return what the buffers of some frames lie in; on either side, in the same order."""
    for frame in frames:
        if isinstance(frame, SharedFrame):
            # Some may have come in line after all.
            yield from (buffer for buffer in frame.buffers if not isinstance(buffer, (bytes, bytearray)))


def copied_out(frame: Any, arena: Arena) -> Any:
    """Return a worker's frame with copies of what it laid into its arena."""
    if not isinstance(frame, SharedFrame):
        return frame
    try:
        return frame.with_buffers(arena.read)
    except (OSError, MemoryError, BufferError) as error:  # the item's error, when it is unpacked
        return Lost(error)


class _ResultPacker(Packer):
    """A pickler for results that go in line, perhaps to another machine."""

    def __init__(self, definer: Definer | None = None) -> None:
        super().__init__(stays_in_line, definer)

    def _make_pickler(self, file: Any, buffer_callback: Any, kind: Any) -> Any:
        return array_pickler(file, buffer_callback, kind, named="none", is_result=True)


class _SettingAside(Packer):
    """A pickler that puts large buffers elsewhere, as long as there is room.

    They are put there at once: what is pickled next may change them, as objects do that share memory to get their state into.
    """

    def __init__(
        self, put: Callable[[Contents, Sharing], Any], sharing: Sharing, definer: Definer | None = None
    ) -> None:
        self.aside: list[Any] = []  # where they are
        self._put, self._sharing = put, sharing
        self._threshold = sys.maxsize if sharing.threshold is None else max(sharing.threshold, 1)
        # Smaller ones, of which there are many, stand for nothing else (`reduce_array`).
        self._least = min(self._threshold, THRESHOLD)
        super().__init__(self._take_buffer, definer)

    def _take_buffer(self, buffer: pickle.PickleBuffer) -> bool:
        """Put a buffer aside if it is large and there is room; return whether it stays in line."""
        if buffer.raw().nbytes < self._least:
            return True
        contents = contents_of(buffer)
        if contents.nbytes >= self._threshold and self._put_aside(contents, self._sharing_of(buffer)):
            return False
        contents.in_memory()  # where the pickler takes it from
        return True

    def _sharing_of(self, buffer: pickle.PickleBuffer) -> Sharing:
        sharing = self._sharing
        return sharing._replace(mode="c") if sharing.mode != "c" and is_private(buffer) else sharing

    def _put_aside(self, contents: Contents, sharing: Sharing) -> bool:
        try:
            self.aside.append(self._put(contents, sharing))
        except OSError as error:
            self._threshold = sys.maxsize
            self._tell(error)
            return False
        return True

    def _forget(self) -> None:
        self.aside.clear()

    def _tell(self, error: OSError) -> None:
        """Take note that there is no room."""


class _Comparing(_SettingAside):
    """A pickler whose output is only compared."""

    def _make_pickler(self, file: Any, buffer_callback: Any, kind: Any) -> Any:  # noqa: ARG002 - always the same
        return array_pickler(file, buffer_callback, ComparingPickler, named="all", with_contents=True)


class _SharingPacker(_SettingAside):
    """A pickler whose large buffers travel beside the frame."""

    def __init__(
        self,
        put: Callable[[Contents, Sharing], Any],
        put_pickle: Callable[[Pieces, Sharing], Any] | None,
        sharing: Sharing,
        definer: Definer | None,
        *,
        in_worker: bool,
    ) -> None:
        self._put_pickle, self._in_worker = put_pickle, in_worker
        if sharing.mode != "c":
            self._left_out = SUBCLASSES
        super().__init__(put, sharing, definer)

    def _make_pickler(self, file: Any, buffer_callback: Any, kind: Any) -> Any:
        return array_pickler(file, buffer_callback, kind, named=self._sharing.named, is_result=self._in_worker)

    def _frame(self, beginning: bytes, written: list[Any]) -> Any:
        rest = None if self._put_pickle is None else self._laid_aside(self._put_pickle, written)
        head: bytes = beginning if rest is not None else super()._frame(beginning, written)
        if not self.aside:
            return head
        places = tuple(self.aside)
        self.aside.clear()
        self.nbytes += sum(place.size for place in places)
        return SharedFrame(head, places, is_long=rest is not None)

    def _laid_aside(self, put_pickle: Callable[[Pieces, Sharing], Any], written: list[bytes]) -> Any:
        """Return where a pickle lies if it is large and there is room."""
        if sum(map(len, written)) < self._threshold:
            return None
        try:
            place = put_pickle((ROOM, *written), self._sharing)
        except OSError as error:
            self._threshold = sys.maxsize
            self._tell(error)
            return None
        self.aside.append(place)
        return place

    def _tell(self, error: OSError) -> None:
        if not self._in_worker:
            _warn_once(error, "they are copied through pipes instead, which is slower")


_warned: list[bool] = []


def _warn_once(error: OSError, instead: str) -> None:
    if not _warned:
        _warned.append(True)
        warnings.warn(
            f"Large arrays can't be shared with the workers as they should ({error}); {instead}. Free some memory, raise "
            "the limit of open files (ulimit -n), or name a folder with room: parallel_config(temp_folder=...).",
            RuntimeWarning,
            stacklevel=2,
        )


class _Store:
    """The segments that are alive, found again by the memory that they were made from."""

    def __init__(self) -> None:
        # Held while one is written, so that two threads with the same array make one; and while one is looked for, so
        # that two threads with equal arrays do.
        self._lock, self._finding = _locks.make_lock(), _locks.make_lock()
        self._segments: weakref.WeakValueDictionary[Any, Any] = weakref.WeakValueDictionary()
        self._alive: weakref.WeakSet[Any] = weakref.WeakSet()  # also those whose place has had other contents since
        _stores.add(self)

    def segment_of(self, contents: Contents, sharing: Sharing) -> Any:
        """Return a segment with the bytes of a buffer; raises OSError if there is no room for it."""
        place = contents.place()
        if place is None:
            return self._make(contents.in_memory(), sharing)
        key = (*place, sharing.mode, sharing.folder)
        with self._lock:
            found = self._segments.get(key)
            if found is None or not is_same(contents, found):
                found = self._segments[key] = self._make(contents.in_memory(), sharing)
                self._alive.add(found)
            elif sharing.held is not None:
                _hold(sharing.held, key, found, contents.owner)
        return found

    def like(self, contents: Contents, sharing: Sharing) -> Any:
        """Return the segment with the bytes of a buffer, wherever that lies in memory; or a digest of them."""
        if contents.place() is not None:
            with contextlib.suppress(OSError), self._finding:  # no room: packing says so
                return self._find(contents, sharing) or self.segment_of(contents, sharing)
        return digest(contents.in_memory())

    def make_private(self, pieces: Pieces, sharing: Sharing) -> Any:
        """Return a segment that is for one parcel, and each worker's own; raises OSError if there is no room for it."""
        self._check_room()
        made = _make_segment(pieces, sharing._replace(mode="c"))
        self._alive.add(made)
        return made

    def _find(self, contents: Contents, sharing: Sharing) -> Any:
        with self._lock:
            alive = list(self._alive)
        alive = [found for found in alive if found.size == contents.nbytes and found.mode == sharing.mode]
        # The oldest one, so that it is the same one as long as a key keeps it.
        for found in sorted(alive, key=attrgetter("number")):
            if is_same(contents, found):
                return found
        return None

    def _make(self, buffer: memoryview, sharing: Sharing) -> Any:
        self._check_room()
        return _make_segment((buffer,), sharing)

    def _check_room(self) -> None:
        # Most file descriptors are left to others: each segment that is alive holds one.
        if len(self._alive) >= most_open() // 4:
            raise OSError(errno.EMFILE, f"{len(self._alive)} arrays are under way already, one open file each")

    def start_anew(self) -> None:
        """In a fork: the locks may be held for ever, and the parent will write to what it shares with its workers."""
        self._lock, self._finding = _locks.make_lock(), _locks.make_lock()
        self._segments, self._alive = weakref.WeakValueDictionary(), weakref.WeakSet()


class _Blobs(_Store):
    """The same for blobs, which hold nothing but memory."""

    def _make(self, buffer: memoryview, sharing: Sharing) -> Any:
        return Blob(buffer, sharing.mode)


class _Files(_Blobs):
    """The same, where those that all workers write to lie in files."""

    def _make(self, buffer: memoryview, sharing: Sharing) -> Any:
        if sharing.mode not in ("r+", "w+"):
            return super()._make(buffer, sharing)
        try:
            return NamedFile(buffer, sharing.mode, sharing.folder)
        except OSError as error:
            if sharing.folder is None:
                raise
            found = NamedFile(buffer, sharing.mode)
            _warn_once(error, f"they lie in {tempfile.gettempdir()} instead")
            return found


_stores: weakref.WeakSet[_Store] = weakref.WeakSet()


def _start_anew() -> None:
    for store in _stores:
        store.start_anew()


after_fork(_start_anew)


def _hold(held: dict[Any, Any], key: Any, segment: Any, owner: Any) -> None:
    """Keep a segment as long as the array is there that it was made from; of several parts of that, no more than it weighs."""
    while getattr(owner, "base", None) is not None and hasattr(owner.base, "__array_interface__"):
        owner = owner.base
    held.pop(key, None)  # it is the latest one now
    with contextlib.suppress(TypeError):  # it can't be referred to weakly
        held[key] = segment, weakref.ref(owner, lambda _: held.pop(key, None))
    room = max(getattr(owner, "nbytes", 0), segment.size)
    for other, (kept, whose) in reversed(list(held.items())):
        if whose() is owner:
            room -= kept.size
            if room < 0:
                held.pop(other, None)


def _make_segment(pieces: Pieces, sharing: Sharing) -> Segment:
    """Return a segment in the folder that was asked for or in memory, or else wherever there is room."""
    try:
        return Segment(pieces, sharing.mode, sharing.folder)
    except OSError as error:
        elsewhere = tempfile.gettempdir() if sharing.folder is None else None
        segment = Segment(pieces, sharing.mode, elsewhere)
        _warn_once(error, f"they lie in {elsewhere or 'memory'} instead")
        return segment
