"""Arrays that look into a file travel as the name of that file."""

from __future__ import annotations

import os
import sys
from collections import ChainMap
from typing import TYPE_CHECKING, Any

import cloudpickle

from ._transport import PROTOCOL, digest

if TYPE_CHECKING:
    import io


def array_pickler(file: io.BytesIO, buffer_callback: Any, kind: Any, *, with_contents: bool = False) -> Any:
    """Return a pickler of some kind for any values; that numpy need not be there is why its class is made here.

    ``with_contents`` is for comparing only: what is in a file counts, too, and not only its name.
    """
    numpy = sys.modules.get("numpy")
    if numpy is None or not hasattr(numpy, "memmap"):  # or it is being imported just now
        return kind(file, PROTOCOL, buffer_callback)
    if (kind, with_contents) not in _classes:
        reduce = _reduce_with_contents if with_contents else _reduce
        table = ChainMap({numpy.memmap: reduce, numpy.ndarray: reduce}, *cloudpickle.Pickler.dispatch_table.maps)
        _classes[kind, with_contents] = type("ArrayPickler", (kind,), {"dispatch_table": table})
    return _classes[kind, with_contents](file, PROTOCOL, buffer_callback)


_classes: dict[tuple[Any, bool], Any] = {}


def _reduce(array: Any) -> Any:
    backing = _file_map_of(array)
    if backing is None or not array.size or any(stride < 0 for stride in array.strides):
        return array.__reduce_ex__(PROTOCOL)
    start: int = backing.__array_interface__["data"][0]
    offset = backing.offset + array.__array_interface__["data"][0] - start
    mode = "r+" if backing.mode == "w+" else backing.mode
    where = os.fspath(backing.filename), mode, offset
    return _open, (where, array.dtype, array.shape, array.strides)


def _reduce_with_contents(array: Any) -> Any:
    function, *rest = _reduce(array)
    if function is not _open:
        return function, *rest
    numpy = sys.modules["numpy"]
    return _open, (*rest[0], digest(numpy.ascontiguousarray(array).reshape(-1).view(numpy.uint8)))


def _file_map_of(array: Any) -> Any:
    """Return the `numpy.memmap` that an array looks into, if others can open the same file."""
    if array.base is None:  # as most arrays
        return None
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
