"""Large buffers that a worker gives back as they came: they need not travel, for the parent has them still.

A worker's pages of a segment are its own copies once they have been written to (`_arrivals`), and the kernel knows which are. If
none is, the answer says only where in the segment the buffer lies. The parent maps that privately: what it writes is seen
neither by the worker nor in another result, and the file is not written to again before that is gone.
"""

from __future__ import annotations

import itertools
import mmap
import os
import sys
import weakref
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from .._process import _system
from ._contents import Whole, address_of
from ._kept_maps import KEEP_NO_FD, LEAST_BYTES, Map
from ._segments import open_unnamed, read

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._contents import Contents
    from ._segments import Segment

# So many results may be such maps at a time, for a process may have 65,530 of all kinds (Linux); and so many may hold open files,
# each its segment's and before Python 3.13 one of its own, but no more than a small part of those that may be open.
_MOST_MAPS = 4096
_MOST_FILES = 64
_FILES_SHARE = 16
# What the kernel says of a page: it is there; it is swapped out; it is one of a file's.
_KIND, _IS_OF_A_FILE = 7 << 61, (4 << 61) | (1 << 61)


class Unchanged(NamedTuple):
    """Where a buffer lies in a segment that came with the message."""

    number: int
    offset: int
    size: int


# --- in a worker --------------------------------------------------------------------------------------------


def find(contents: Contents, maps: Iterable[Map]) -> Unchanged | None:
    """Return where in one of some maps a buffer lies, if it is there as it came."""
    size = contents.nbytes
    is_worth_it = size >= LEAST_BYTES and _system.HAS_PAGEMAP and isinstance(contents, Whole)
    place = contents.place() if is_worth_it else None
    if place is None:
        return None
    for found in maps:
        try:
            offset, whole = place[0] - _start_of(found), len(found)
        except ValueError:  # users' code has closed it
            continue
        # Of less than half of a segment a copy takes less memory, for which that is kept.
        if 0 <= offset <= whole - size and 2 * size >= whole:
            is_unchanged = _can_tell() and _is_as_it_came(place[0], size)
            return Unchanged(found.number, offset, size) if is_unchanged else None
    return None


def _start_of(found: Map) -> int:
    if found.start is None:
        with memoryview(found) as view:
            found.start = address_of(view)
    return found.start


def _is_as_it_came(address: int, size: int) -> bool:
    """Tell whether none of some pages, all of a private map, has become a copy."""
    kinds = _kinds_of(address, size)
    return kinds is not None and bool(((kinds == 0) | (kinds == _IS_OF_A_FILE)).all())


def _kinds_of(address: int, size: int) -> Any:
    """Return what the kernel says of some pages; None if it says nothing."""
    numpy = sys.modules["numpy"]
    first, end = address // mmap.PAGESIZE, -(-(address + size) // mmap.PAGESIZE)
    entries = numpy.frombuffer(_system.pages(first, end), numpy.uint64)
    return entries & numpy.uint64(_KIND) if len(entries) == end - first else None


@cache
def _can_tell() -> bool:
    """Tell whether what the kernel says is about the pages of this process: an emulator may have others (qemu)."""
    try:
        fd = open_unnamed("pages")
        try:
            os.pwrite(fd, bytes(2 * mmap.PAGESIZE), 0)
            found = mmap.mmap(fd, 2 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE)
        finally:
            os.close(fd)
    except OSError:
        return False
    with memoryview(found) as view:
        view[mmap.PAGESIZE] = view[0] + 1
        kinds = _kinds_of(address_of(view), len(view))
    return kinds is not None and bool(kinds[0] == _IS_OF_A_FILE) and kinds[1] not in (0, _IS_OF_A_FILE)


# --- in the parent ------------------------------------------------------------------------------------------


_maps: weakref.WeakSet[Map] = weakref.WeakSet()
# Segments whose files can be written to again when a map of them is gone, by what that is called where the segment is lent to it.
_held: dict[str, Segment] = {}
_names = map("result {}".format, itertools.count())
_FOR_EVER = "a result"


def _let_go(name: str) -> None:
    segment = _held.pop(name)  # which may be gone after that, and is not to be lent to anyone then
    segment.lent.discard(name)


def _note_fork() -> None:
    for segment in list(_held.values()):  # who is born now may look into it as long as it likes
        segment.lent.add(_FOR_EVER)


# Another thread may map one while the fork is made.
_system.around_fork(_note_fork)


def memory_of(where: Unchanged, lent: Iterable[Segment]) -> Any:
    """Return writable memory with what a worker has given back, of one of the segments that went with the message.

    Raises OSError, MemoryError or BufferError if it can't be had.
    """
    segment = next((segment for segment in lent if segment.number == where.number), None)
    if segment is None or segment.mode not in ("r", "c") or not 0 < where.size <= segment.size - where.offset:
        raise BufferError("the worker says that it lies in shared memory where there is none")
    found = _map(segment, where)
    return read(segment.fd, where.size, where.offset) if found is None else found


def _map(segment: Segment, where: Unchanged) -> Any:
    """Map it privately; None if it can't be, or not without what others need more."""
    numpy = sys.modules.get("numpy")
    can_hold = len(_held) < min(_MOST_FILES, _system.most_open() // _FILES_SHARE)
    has_room = can_hold or (KEEP_NO_FD and len(_maps) < _MOST_MAPS)
    is_worth_it = 2 * where.size >= segment.capacity  # see above
    if numpy is None or not (_system.HAS_SEALS and has_room and is_worth_it):
        return None
    start = where.offset - where.offset % mmap.ALLOCATIONGRANULARITY
    flags, prot = mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE
    try:
        _system.seal(segment.fd)  # a page that is not there would be a SIGBUS
        end = where.offset + where.size
        found = Map(segment.fd, end - start, flags=flags, prot=prot, offset=start, **KEEP_NO_FD)
    except (OSError, ValueError):  # it lies in a folder; or too many maps or open files
        return None
    _maps.add(found)
    name = next(_names) if can_hold else _FOR_EVER
    segment.lent.add(name)
    if can_hold:
        _held[name] = segment
        weakref.finalize(found, _let_go, name).atexit = False
    return numpy.frombuffer(found, numpy.uint8)[where.offset - start :]  # as a copy is
