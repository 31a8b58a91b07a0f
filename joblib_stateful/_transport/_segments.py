"""Memory that two processes share and that has no name, so that nothing of it can be left behind.

Large buffers don't go through pipes. On their way out each lies in a `Segment`, whose open file is handed to the
worker, which maps or copies it (`_arrivals`); on their way back they lie in the worker's `Arena`, from which the parent copies them. The
kernel frees both when the last process lets go of them, however that ends.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import mmap
import os
import sys
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from .._process._system import HAS_MEMFD, HAS_PREADV, HAS_SEALS, after_fork, most_open
from ._kept_maps import LEAST_BYTES, copy, map_of

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    # What is laid down one behind the other.
    Pieces: TypeAlias = Sequence[bytes | memoryview]

# What an arena keeps for the next results: pages that have been written before cost less than fresh ones. With 8 to
# 128 MiB `benchmarks/buffers.py` shows no difference beyond its noise, with nothing at all a third less for 32 MiB arrays.
_KEPT_BYTES = 32 << 20
# What is kept of segments, but leave files to others. Arrays go out twice as fast as with nothing kept, and no faster
# with 256 MiB (`benchmarks/buffers.py`).
SPARE_BYTES = 64 << 20
_SPARE_FILES = 64
# ... and a small part of those that this process may have open.
_SPARE_SHARE = 16
# So much is read at a time where that makes a copy of it.
_READ_BYTES = 1 << 20

# Jax copies what doesn't begin at a multiple of this (`python benchmarks/libraries.py --types jax`).
_ALIGNMENT = 64

# A folder of Linux whose files lie in memory.
_IN_MEMORY = "/dev/shm"  # noqa: S108 - what is opened there has no name

#: Of segments and their like, in the order in which they are made.
numbers = itertools.count(1)


def open_unnamed(what: str, folder: str | None = None) -> int:
    """Open a file that no folder lists, in memory where the system can, or in a folder; ``what`` is for lsof."""
    try:
        return _open_once(what, folder)
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        spares.clear()
        return _open_once(what, folder)


def _open_once(what: str, folder: str | None) -> int:
    if folder is None and HAS_MEMFD:
        try:
            flags = os.MFD_CLOEXEC | (os.MFD_ALLOW_SEALING if HAS_SEALS else 0)
            return os.memfd_create(f"joblib_stateful {what}", flags)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EPERM, errno.EACCES):  # old kernels, sandboxes
                raise
    with _temporary_file(folder) as file:
        return os.dup(file.fileno())


def _temporary_file(folder: str | None) -> Any:
    import tempfile  # takes each worker 3 ms, and most programs need it not at all

    try:
        return tempfile.TemporaryFile(dir=folder)
    except FileNotFoundError:
        if folder is None:  # no folder for temporary files can be written to
            with contextlib.suppress(OSError):
                return tempfile.TemporaryFile(dir=_IN_MEMORY)
        raise


def size_of(pieces: Pieces) -> int:
    """Return how many bytes some pieces are."""
    return sum(piece.nbytes if isinstance(piece, memoryview) else len(piece) for piece in pieces)


def _write(fd: int, pieces: Pieces, offset: int = 0, kept: mmap.mmap | None = None) -> None:
    """Write some bytes to a file, or through a kept map of it."""
    for piece in pieces:
        rest = memoryview(piece)
        if kept is not None:
            copy(memoryview(kept)[offset : offset + len(rest)], rest)
            offset += len(rest)
            continue
        while rest:
            n_written = os.pwrite(fd, rest, offset)
            rest, offset = rest[n_written:], offset + n_written


def read(fd: int, size: int, offset: int = 0) -> Any:
    """Return a writable copy of some bytes of a file."""
    copy = empty(size)
    rest = memoryview(copy)
    while rest:
        n_read = _read_into(fd, rest, offset)
        if not n_read:
            raise BufferError("the shared memory that it lay in is gone")
        rest, offset = rest[n_read:], offset + n_read
    return copy


def _read_into(fd: int, rest: memoryview, offset: int) -> int:
    if HAS_PREADV:
        return os.preadv(fd, [rest], offset)
    data = os.pread(fd, min(len(rest), _READ_BYTES), offset)
    rest[: len(data)] = data
    return len(data)


def close_with(owner: object, fd: int) -> None:
    """Close a file descriptor when its owner is gone.

    Not by ``__del__``: while that runs, another thread can still get hold of the owner through a weak reference, and
    would be left with the number of a file that somebody else opens next.
    """
    weakref.finalize(owner, os.close, fd).atexit = False


class Spare(NamedTuple):
    """The file of a segment that is gone: it has room for so many bytes, all of which have been written."""

    fd: int
    capacity: int
    is_used_again: bool = False
    kept: mmap.mmap | None = None

    def again(self) -> Spare:
        """Return it for one more use: from the second one on with a map of all that, if it is worth one and can have it."""
        if not self.is_used_again:  # large ones are closed before there is another one
            return self._replace(is_used_again=True)
        return self if self.kept is not None else self._replace(kept=map_of(self.fd, self.capacity, is_sealed=True))


class _Spares:
    """Files of segments that are gone, for the next ones to be written to: fresh pages cost five times as much.

    Only while there are workers. Finalisers come here at any point of any thread, so there is no lock.
    """

    def __init__(self) -> None:
        self._files: list[Spare] = []
        self._users: set[int] = set()
        self._most = _SPARE_FILES

    def take(self, size: int) -> Spare | None:
        """Return one that is large enough, but holds no more than twice the memory, if there is one."""
        for spare in self._files[::-1]:
            if size <= spare.capacity <= 2 * size:
                try:
                    self._files.remove(spare)
                except ValueError:  # another thread was faster
                    continue
                return spare
        return None

    def give(self, spare: Spare) -> None:
        """Keep one, instead of the oldest if they get too many."""
        self._files.append(spare)
        if not self._users:
            self.clear()
        files = self._files[:]
        while files and (len(files) > self._most or sum(spare.capacity for spare in files) > SPARE_BYTES):
            self._close_oldest()
            files = self._files[:]

    def begin(self, user: int) -> None:
        """Keep some as long as this worker is there."""
        self._users.add(user)
        self._most = min(_SPARE_FILES, most_open() // _SPARE_SHARE)

    def end(self, user: int) -> None:
        """Keep none for this worker any more."""
        self._users.discard(user)
        if not self._users:
            self.clear()

    def clear(self) -> None:
        """Close all."""
        while self._close_oldest():
            pass

    def _close_oldest(self) -> bool:
        try:
            spare = self._files.pop(0)
        except IndexError:
            return False
        os.close(spare.fd)
        return True

    def start_anew(self) -> None:
        """In a fork: the parent will write to them."""
        self._users.clear()
        self.clear()

    def fds(self) -> set[int]:
        """Return which files these are."""
        return {spare.fd for spare in self._files[:]}


spares = _Spares()

after_fork(spares.start_anew)


def _retire(spare: Spare, lent: set[Hashable], pid: int) -> None:
    """Let go of a segment's file, when nobody in this process refers to the segment any more."""
    if lent or pid != os.getpid():  # somebody else may look into it
        os.close(spare.fd)
    else:
        spares.give(spare)


class Segment:
    """A buffer on its way to workers, until the last parcel that holds it is dropped.

    Parameters
    ----------
    pieces : sequence of memoryview or bytes
        What it holds, one behind the other; copied at once.
    mode : {"r", "r+", "w+", "c"}
        What workers may do with it.
    folder : str, optional
        Where it lies instead of in memory.

    Raises
    ------
    OSError
        There is no room, or no file descriptor left.
    """

    def __init__(self, pieces: Pieces, mode: str = "c", folder: str | None = None) -> None:
        self.size, self.mode, self.number = size_of(pieces), mode, next(numbers)
        #: Messages whose workers have not said that nothing of theirs looks into it any more.
        self.lent: set[Hashable] = set()
        self.capacity = self.size  # of its file
        self._kept: mmap.mmap | None = None
        if folder is None and mode in ("r", "c"):  # else workers write into the file itself
            spare = spares.take(self.size)
            spare = Spare(open_unnamed("segment"), self.size) if spare is None else spare.again()
            self.fd, self.capacity, self._kept = spare.fd, spare.capacity, spare.kept
            # As `close_with`, and for the same reason.
            retire = weakref.finalize(self, _retire, spare, self.lent, os.getpid())
            retire.atexit = False
        else:
            self.fd = open_unnamed("segment", folder)
            close_with(self, self.fd)
        self.lent.add("being written")  # so that a file with less in it than it says is not used again
        _write(self.fd, pieces, 0, self._kept)
        self.lent.clear()

    def view(self) -> memoryview:
        """Return what it holds now."""
        if (
            self in _looked_into
            and self._kept is None
            and len(_looked_into) <= _SPARE_FILES
            and self.mode in ("r", "c")
        ):
            # What is sent again is sent many times, and is compared each time.
            self._kept = map_of(self.fd, self.size, is_sealed=True)
        _looked_into.add(self)
        if self._kept is not None:
            return memoryview(self._kept)[: self.size].toreadonly()
        return memoryview(mmap.mmap(self.fd, self.size, prot=mmap.PROT_READ))

    def __reduce__(self) -> tuple[Any, ...]:
        return Received, (self.number, self.size, self.mode)


# Segments that something has been compared with.
_looked_into: weakref.WeakSet[Segment] = weakref.WeakSet()


class Received(NamedTuple):
    """A segment, on the worker's side."""

    number: int
    size: int
    mode: str


class Range(NamedTuple):
    """Where a buffer lies in an arena."""

    offset: int
    size: int


class Arena:
    """Where a worker lays the large buffers of a reply; the parent copies them before it sends anything more.

    Its pages are used again and again.

    Parameters
    ----------
    fd : int, optional
        The open file; by default a new one, opened when it is needed.
    """

    def __init__(self, fd: int = -1) -> None:
        self.fd = -1
        if fd >= 0:
            self._own(fd)
        self._end = 0
        self._kept: mmap.mmap | None = None

    def rewind(self) -> None:
        """Begin a reply."""
        self._end = 0

    def write(self, pieces: Pieces) -> Range:
        """Lay down some pieces, one behind the other; raises OSError if there is no room."""
        if self.fd < 0:
            self._own(open_unnamed("results"))
        where = Range(self._end, size_of(pieces))
        _write(self.fd, pieces, self._end, self._map_for(where))
        self._end += where.size
        return where

    def _map_for(self, where: Range) -> mmap.mmap | None:
        """Return a map of a range that was written to before, if it is worth one."""
        end = where.offset + where.size
        if where.size < LEAST_BYTES:
            return None
        n_there = os.fstat(self.fd).st_size  # the parent may have given some back
        if self._kept is not None and len(self._kept) > n_there:
            self._kept = None
        if end > n_there:
            return None
        if self._kept is None or len(self._kept) < end:
            self._kept = map_of(self.fd, n_there, is_sealed=False)
        return self._kept

    def read(self, where: Range) -> Any:
        """Return a writable copy of a buffer."""
        if self.fd < 0:
            raise OSError(errno.EMFILE, "no file descriptor was left to receive it by; raise the limit (ulimit -n)")
        return read(self.fd, where.size, where.offset)

    def _own(self, fd: int) -> None:
        self.fd = fd
        close_with(self, fd)

    def trim(self) -> None:
        """Give memory back that is too much to be kept."""
        if os.fstat(self.fd).st_size > _KEPT_BYTES:
            os.ftruncate(self.fd, 0)


def empty(size: int) -> Any:
    """Return memory to be written to."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return bytearray(size)
    # Its large blocks come in huge pages, and are not filled with zeros first.
    found = numpy.empty(size + _ALIGNMENT, dtype=numpy.uint8)
    first = -found.__array_interface__["data"][0] % _ALIGNMENT
    return found[first : first + size]
