"""Arrays: which of those that look into a file travel as its name, and that results can be written to."""

from __future__ import annotations

import os
import pickle
import sys
from functools import partial
from typing import Any, Literal

from ._arrays import reduce_array, writable
from ._reducing import PROTOCOL
from ._transport import THRESHOLD, digest

_Named = Literal["none", "read-only", "all"]


def array_pickler(
    file: Any,
    buffer_callback: Any,
    kind: Any,
    *,
    named: _Named,
    is_result: bool = False,
    with_contents: bool = False,
) -> Any:
    """Return a pickler of some kind for any values; that numpy need not be there is why its class is made here.

    Parameters
    ----------
    file : object with a method ``write``
        Where it writes to.
    buffer_callback : callable
        Takes buffers that shall be out of line; for the others it asks whether one `stays_in_line`.
    named : {"none", "read-only", "all"}
        Which arrays in files travel by the name of their file.
    is_result : bool, default False
        Arrays that can't be written to for the sake of the memory that they look into, which the worker was given, can be
        when they arrive.
    with_contents : bool, default False
        For comparing only: what is in a file counts, too, and not only its name.
    """
    numpy = sys.modules.get("numpy")
    if numpy is None or not hasattr(numpy, "memmap"):  # or it is being imported just now
        return kind(file, PROTOCOL, buffer_callback)
    key = kind, named, is_result, with_contents
    if key not in _classes:
        reduce = _reduce_with_contents if with_contents else partial(_reduce, named, is_result)
        reducers = {**kind.reducers, numpy.memmap: reduce, numpy.ndarray: reduce}
        _classes[key] = type("ArrayPickler", (kind,), {"reducers": reducers})
    return _classes[key](file, PROTOCOL, buffer_callback)


_classes: dict[tuple[Any, _Named, bool, bool], Any] = {}


def _reduce(named: _Named, is_result: bool, array: Any) -> Any:  # noqa: FBT001 - as a partial, without keywords
    if array.base is None:  # as most arrays
        return reduce_array(array, THRESHOLD)
    backing = None if named == "none" else _file_map_of(array)
    if (
        backing is None
        or (backing.mode != "r" and named != "all")
        or not array.size
        or any(stride < 0 for stride in array.strides)
    ):
        return _reduce_by_value(array, is_result=is_result)
    start: int = backing.__array_interface__["data"][0]
    offset = backing.offset + array.__array_interface__["data"][0] - start
    mode = "r+" if backing.mode == "w+" else backing.mode
    where = os.fspath(backing.filename), mode, offset
    return _open, (where, array.dtype, array.shape, array.strides)


def _reduce_by_value(array: Any, *, is_result: bool) -> Any:
    numpy = sys.modules["numpy"]
    if type(array) is numpy.memmap:  # without its file it would be a strange one
        array = numpy.asarray(array)
    reduced = reduce_array(array, THRESHOLD)
    if is_result and not array.flags.writeable and _is_memory_read_only(array):
        function, (buffer, *rest), *state = reduced
        # Else it is copied, and can be written to.
        if isinstance(buffer, pickle.PickleBuffer) and buffer.raw().readonly:
            raw = writable(numpy.frombuffer(buffer.raw(), dtype=numpy.uint8))
            return function, (pickle.PickleBuffer(raw), *rest), *state
    return reduced


def _is_memory_read_only(array: Any) -> bool:
    """Tell whether an array is read-only only because the memory is that it looks into, and not because somebody froze it."""
    numpy = sys.modules["numpy"]
    while isinstance(array, numpy.ndarray) and not array.flags.writeable:
        array = array.base
    if array is None or isinstance(array, numpy.ndarray):
        return False
    try:
        with memoryview(array) as memory:
            return memory.readonly
    except TypeError:
        return False


def _reduce_with_contents(array: Any) -> Any:
    function, *rest = _reduce("all", False, array)
    if function is not _open:
        return function, *rest
    numpy = sys.modules["numpy"]
    return _open, (*rest[0], digest(numpy.ascontiguousarray(array).reshape(-1).view(numpy.uint8)))


def _file_map_of(array: Any) -> Any:
    """Return the `numpy.memmap` that an array looks into, if others can open the same file."""
    numpy = sys.modules["numpy"]
    found = None
    while isinstance(array, numpy.ndarray):
        if isinstance(array, numpy.memmap):
            found = array
        array = array.base
    # A copy-on-write map may differ from its file, which may be gone, too.
    if found is None or found.filename is None or found.mode == "c" or found.dtype.hasobject:
        return None
    from pathlib import Path  # few ever come here, and each worker would import it

    return found if Path(found.filename).exists() else None


def _open(where: tuple[str, Any, int], dtype: Any, shape: Any, strides: Any) -> Any:
    import numpy as np

    filename, mode, offset = where
    size = sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True)) + dtype.itemsize
    raw = np.memmap(filename, dtype=np.uint8, mode=mode, offset=offset, shape=(size,))
    array: Any = np.ndarray.__new__(np.memmap, shape, dtype, buffer=raw, strides=strides)
    array.__array_finalize__(raw)  # from which it learns of its file
    array.offset = offset
    return array
