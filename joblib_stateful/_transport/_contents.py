"""What large buffers hold: where it lies, by which it is found again, and piece by piece, as it is compared without a copy.

A buffer of pickle's is memory without gaps. That of an array with gaps is at first empty and stands for the array: what the
array shows is only copied to it where it is written anew, and not where the same was written before.
"""

from __future__ import annotations

import pickle
import sys
import weakref
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

from .._process._system import HAS_LIBC

if TYPE_CHECKING:
    from collections.abc import Iterator

# So much is compared at a time where that makes copies of it. With 256 KiB to 4 MiB `benchmarks/buffers.py --again` shows no
# difference beyond its noise.
_COMPARED_BYTES = 1 << 20


class Whole:
    """What memory without gaps holds.

    Parameters
    ----------
    buffer : memoryview
        The memory, in bytes.
    """

    def __init__(self, buffer: memoryview) -> None:
        self.nbytes, self.owner, self._buffer = buffer.nbytes, buffer.obj, buffer

    def place(self) -> tuple[Any, ...] | None:
        """Return where it lies; None if it is hardly anything that is used again."""
        return None if sys.modules.get("numpy") is None else (address_of(self._buffer), self.nbytes)

    def pieces(self) -> Iterator[memoryview]:
        """Yield all of it, one piece after the other."""
        yield self._buffer

    def in_memory(self) -> memoryview:
        """Return all of it."""
        return self._buffer


class Gapped:
    """What an array with gaps shows, in C order.

    Parameters
    ----------
    array : numpy.ndarray
        Of numpy's own class, without objects of Python's.
    """

    def __init__(self, array: Any) -> None:
        numpy = sys.modules["numpy"]
        self.nbytes, self.owner = array.nbytes, array
        # As plain bytes: those between a record's fields would not be copied, and so never be the same again.
        self._array = array.view(f"V{array.dtype.itemsize}")
        # Of its buffer, which takes neither time nor memory until it is written to.
        self._memory = numpy.empty(array.nbytes, dtype=numpy.uint8)

    def place(self) -> tuple[Any, ...]:
        """Return where it lies."""
        array = self._array
        return array.__array_interface__["data"][0], array.shape, array.strides, array.itemsize

    def pieces(self) -> Iterator[memoryview]:
        """Yield all of it, one piece after the other, each in the memory of the last one."""
        numpy, array = sys.modules["numpy"], self._array
        length = max(1, _COMPARED_BYTES // array.itemsize)
        flags = ["external_loop", "buffered"], [["readonly", "contig"]]
        for piece in numpy.nditer(array, *flags, order="C", buffersize=length):
            yield memoryview(numpy.ascontiguousarray(piece).view(numpy.uint8))

    def in_memory(self) -> memoryview:
        """Return all of it, once it has been copied to the memory of its buffer."""
        self._memory.view(self._array.dtype).reshape(self._array.shape)[...] = self._array
        return memoryview(self._memory)


Contents: TypeAlias = Whole | Gapped


def gapped_buffer(array: Any) -> pickle.PickleBuffer:
    """Return what stands for an array with gaps; only for picklers that ask for the `contents_of` each, or `stays_in_line`."""
    gapped = Gapped(array)
    buffer = pickle.PickleBuffer(gapped._memory)
    _gapped[buffer] = gapped
    return buffer


_gapped: weakref.WeakKeyDictionary[pickle.PickleBuffer, Gapped] = weakref.WeakKeyDictionary()


def contents_of(buffer: pickle.PickleBuffer) -> Contents:
    """Return what a buffer holds, or what it stands for."""
    return _gapped.get(buffer) or Whole(buffer.raw())


def stays_in_line(buffer: pickle.PickleBuffer) -> bool:
    """Say that a buffer goes into the pickle, once it holds what it stands for."""
    contents_of(buffer).in_memory()
    return True


def is_same(contents: Contents, segment: Any) -> bool:
    """Tell whether a segment of the same size holds the same."""
    with segment.view() as view:
        return _lies_in(view, contents)


def _lies_in(view: memoryview, contents: Contents) -> bool:
    end = 0
    for piece in contents.pieces():
        start, end = end, end + piece.nbytes
        if not _are_same(piece, view[start:end]):
            return False
    return True


def _are_same(one: memoryview, other: memoryview) -> bool:
    # 11 ms for 200 MB; comparing arrays would make a third one.
    if HAS_LIBC:
        return bool(_memcmp()(address_of(one), address_of(other), one.nbytes) == 0)
    starts = range(0, one.nbytes, _COMPARED_BYTES)
    return all(one[at : at + _COMPARED_BYTES].tobytes() == other[at : at + _COMPARED_BYTES].tobytes() for at in starts)


def address_of(buffer: memoryview) -> int:
    """Return where memory lies; only where numpy is there."""
    numpy = sys.modules["numpy"]
    address: int = numpy.frombuffer(buffer, dtype=numpy.uint8).__array_interface__["data"][0]
    return address


@cache
def _memcmp() -> Any:
    """Return C's function."""
    import ctypes  # which workers never need

    found = ctypes.CDLL(None).memcmp
    found.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    return found
