"""The large buffers of a message, in the worker: each value gets memory of its own, which it may change.

The pages of a `Segment` are mapped privately: those that nobody writes to are shared by all workers, and what is written
to one is seen by nobody else, not even by a later value that refers to the same segment. All is mapped writable, also
what shall be read only: then numpy's flag says so, and compiled code that doesn't look at it can't end the process.
"""

from __future__ import annotations

import itertools
import mmap
import os
import weakref
from typing import TYPE_CHECKING, Any

from .._process._system import around_fork
from . import _unchanged
from ._kept_maps import KEEP_NO_FD, Map
from ._segments import Received, read

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from ._contents import Contents

# The buffers of one item are copied on arrival if they are no larger than this together: to read them takes as long as if
# they were mapped, and to write to all of them a sixth, for each page that is written to first costs an interrupt. Of
# 8 MiB reading takes 1.6 times as long if they are copied, and writing a third (`benchmarks/buffers.py --arrival`). Having
# the pages mapped in advance (MAP_POPULATE) takes as long as to write to them.
COPIED_BYTES = 4 << 20


# Those that are alive: as long as a value made of them is.
_maps: weakref.WeakValueDictionary[int, Map] = weakref.WeakValueDictionary()
_serials = itertools.count()


# Segments that were mapped when this process forked: whoever was born then may look into them as long as it likes.
_forked: set[int] = set()


def _alive() -> list[Map]:
    maps = [reference() for reference in list(_maps.data.values())]  # type: ignore[attr-defined]  # as it is, in one step
    return [found for found in maps if found is not None]


def _mapped() -> set[int]:
    return {found.number for found in _alive()}


def _note_fork() -> None:
    _forked.update(_mapped())


# Another thread may map one while the fork is made.
around_fork(_note_fork)


def still_mapped(numbers: Iterable[int]) -> list[int]:
    """Return which segments are mapped, here or in a fork of this process: their pages must stay as they are."""
    mapped = _mapped() | _forked
    return [number for number in numbers if number in mapped]


class Arrived:
    """The open files of a message's segments, each until the last value that refers to it is unpacked.

    Parameters
    ----------
    files : mapping
        By the number of their segments; None for those that this process has no room for.
    uses : mapping
        How many frames refer to them.
    copied_bytes : int
        What weighs no more is copied.
    """

    def __init__(self, files: Mapping[int, int | None], uses: Mapping[int, int], copied_bytes: int) -> None:
        self._files, self._uses, self._copied_bytes = dict(files), dict(uses), copied_bytes
        self._numbers = frozenset(files)

    def memory_of(self, buffers: Collection[Any]) -> list[Any]:
        """Return the memory of one frame's buffers: those that are the same to it in one and the same place."""
        segments = {buffer.number: buffer for buffer in buffers if isinstance(buffer, Received)}
        is_small = sum(segment.size for segment in segments.values()) <= self._copied_bytes
        memory = {number: self._take(segment, is_small=is_small) for number, segment in segments.items()}
        return [memory[buffer.number] if isinstance(buffer, Received) else buffer for buffer in buffers]

    def unchanged(self, contents: Contents) -> _unchanged.Unchanged | None:
        """Return where in one of these segments a buffer lies, if it is there as it came."""
        return _unchanged.find(contents, (one for one in _alive() if one.is_private and one.number in self._numbers))

    def close(self) -> None:
        """Close what is left, of values that were not unpacked."""
        for number in list(self._files):
            self._close(number)

    def _take(self, segment: Received, *, is_small: bool) -> Any:
        fd = self._files.get(segment.number)
        if fd is None:
            raise _lost()
        try:
            memory = read(fd, segment.size) if is_small and segment.mode == "c" else _map(fd, segment)
        finally:
            self._uses[segment.number] -= 1
            if not self._uses[segment.number]:
                self._close(segment.number)
        return memoryview(memory).toreadonly() if segment.mode == "r" else memory

    def _close(self, number: int) -> None:
        fd = self._files.pop(number)
        if fd is not None:
            os.close(fd)


def _map(fd: int, segment: Received) -> Any:
    is_private = segment.mode in ("r", "c")
    flags, prot = mmap.MAP_PRIVATE if is_private else mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE
    try:
        found = Map(fd, segment.size, flags=flags, prot=prot, **KEEP_NO_FD)
    except (OSError, ValueError) as error:
        if is_private:  # too many maps, or no file descriptor left: a copy needs neither
            return read(fd, segment.size)
        raise _lost() from error
    found.number, found.is_private = segment.number, is_private
    _maps[next(_serials)] = found
    return found


def _lost() -> BufferError:
    return BufferError(
        "its shared memory did not reach the worker, which may have run out of file descriptors (ulimit -n) "
        "or of memory maps",
    )
