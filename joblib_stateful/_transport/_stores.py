"""Where the parent lays large buffers, and finds them again: segments, a cluster's store, files with names."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import warnings
import weakref
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from .._process import _locks
from .._process._system import after_fork, most_open
from ._contents import is_same
from ._held import is_shared, whole
from ._segments import Segment, empty, numbers
from ._transport import digest

if TYPE_CHECKING:
    from collections.abc import Hashable

    from ._contents import Contents
    from ._segments import Pieces
    from ._transport import Sharing


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
        import tempfile  # takes each worker 3 ms, and most programs need it not at all

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


class Store:
    """The segments that are alive, found again by the memory that they were made from."""

    def __init__(self) -> None:
        # What segments that workers write to were made from: the array, and what it held then.
        self._made_from: weakref.WeakKeyDictionary[Any, tuple[weakref.ref[Any], bytes]] = weakref.WeakKeyDictionary()
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
        is_to_be_shared = is_shared(sharing.mode)
        # What the tasks of one call write to is not another one's.
        whose = sharing.held.number if is_to_be_shared and sharing.held is not None else None
        key = (*place, sharing.mode, sharing.folder, whose)
        with self._lock:
            found = self._segments.get(key)
            is_new = found is None or not self._is_of(contents, found)
            if is_new:
                # Before it is copied: if somebody changes it meanwhile, it is another one the next time.
                held_first = digest(contents.in_memory()) if is_to_be_shared else b""
                found = self._segments[key] = self._make(contents.in_memory(), sharing)
                self._alive.add(found)
                if is_to_be_shared:
                    with contextlib.suppress(TypeError):  # it can't be referred to weakly
                        self._made_from[found] = weakref.ref(whole(contents.owner)), held_first
            if sharing.held is None:
                return found
            # What workers write to is to be there for the next one, too.
            if not is_new or is_to_be_shared:
                sharing.held.put(key, found, contents.owner)
            else:
                sharing.held.drop(key)
        return found

    def _is_of(self, contents: Contents, segment: Any) -> bool:
        """Tell whether a segment holds what a buffer does; or did so, if workers have written to it since."""
        owner, held_first = self._made_from.get(segment, (None, b""))
        if owner is None:
            return is_same(contents, segment)
        # Not only the same place and contents: an array that is made where another one was is not that one.
        return owner() is whole(contents.owner) and digest(contents.in_memory()) == held_first

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
            if self._is_of(contents, found):
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


class Blobs(Store):
    """The same for blobs, which hold nothing but memory."""

    def _make(self, buffer: memoryview, sharing: Sharing) -> Any:
        return Blob(buffer, sharing.mode)


class Files(Blobs):
    """The same, where those that all workers write to lie in files."""

    def _make(self, buffer: memoryview, sharing: Sharing) -> Any:
        if not is_shared(sharing.mode):
            return super()._make(buffer, sharing)
        try:
            return NamedFile(buffer, sharing.mode, sharing.folder)
        except OSError as error:
            if sharing.folder is None:
                raise
            found = NamedFile(buffer, sharing.mode)
            warn_once(error, f"they lie in {os.path.dirname(found.path)} instead")  # noqa: PTH120 - see `_map_file`
            return found


_stores: weakref.WeakSet[Store] = weakref.WeakSet()


def _start_anew() -> None:
    for store in _stores:
        store.start_anew()


after_fork(_start_anew)


def _make_segment(pieces: Pieces, sharing: Sharing) -> Segment:
    """Return a segment in the folder that was asked for or in memory, or else wherever there is room."""
    try:
        return Segment(pieces, sharing.mode, sharing.folder)
    except OSError as error:
        import tempfile  # see above

        elsewhere = tempfile.gettempdir() if sharing.folder is None else None
        segment = Segment(pieces, sharing.mode, elsewhere)
        warn_once(error, f"they lie in {elsewhere or 'memory'} instead")
        return segment


_warned: list[bool] = []


def warn_once(error: OSError, instead: str) -> None:
    if not _warned:
        _warned.append(True)
        warnings.warn(
            f"Large arrays can't be shared with the workers as they should ({error}); {instead}. Free some memory, raise "
            "the limit of open files (ulimit -n), or name a folder with room: parallel_config(temp_folder=...).",
            RuntimeWarning,
            stacklevel=2,
        )
