"""Files in memory that stay mapped: to write through pages that are there takes half to two thirds of the time of `pwrite`.

Only what has been in a file before is copied so, and only if it can't be taken away: a page that can't be had, because memory
is full or another process has cut the file short, would be a SIGBUS instead of an OSError.
"""

from __future__ import annotations

import mmap
import sys
from typing import Any

from .._process import _system

# What is smaller is written by system calls: before Python 3.13 a map takes a file descriptor, and would save no more than
# 30 of 90 µs (`benchmarks/buffers.py --kept`).
LEAST_BYTES = 1 << 20

#: For `mmap`: else each map costs a file descriptor as long as it lives.
KEEP_NO_FD: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}


class Map(mmap.mmap):
    """A map of a segment; it can be referred to weakly."""

    #: The segment's.
    number: int
    #: What is written to it is this map's own.
    is_private: bool
    #: Where it lies, once that has been asked.
    start: int | None = None


def map_of(fd: int, size: int, *, is_sealed: bool) -> mmap.mmap | None:
    """Map so much of a file that is there, with all its pages; None if it is not worth that, or can't be.

    With ``is_sealed`` nobody can cut it short from now on.
    """
    if size < LEAST_BYTES or not _system.HAS_SEALS:
        return None
    flags, prot = mmap.MAP_SHARED | mmap.MAP_POPULATE, mmap.PROT_READ | mmap.PROT_WRITE
    try:
        if is_sealed:
            _system.seal(fd)
        return mmap.mmap(fd, size, flags=flags, prot=prot, **KEEP_NO_FD)
    except (OSError, ValueError):  # it lies in a folder; or too many maps or open files
        return None


def copy(target: memoryview, source: memoryview) -> None:
    """Copy bytes; if they are many, other threads run meanwhile, where numpy is there."""
    numpy = sys.modules.get("numpy")
    if source.nbytes < LEAST_BYTES or numpy is None:
        target[:] = source
    else:
        numpy.copyto(numpy.frombuffer(target, numpy.uint8), numpy.frombuffer(source, numpy.uint8))
