"""How numpy's arrays are pickled where numpy hands out no buffer of them by itself."""

from __future__ import annotations

import pickle
import sys
from typing import TYPE_CHECKING, Any

from ._contents import gapped_buffer
from ._reducing import PROTOCOL

if TYPE_CHECKING:
    from ._reducing import Reduce

#: Of which joblib shares no memory; all of these come down to numpy's own arrays.
SUBCLASSES: list[type] = []


def table(numpy: Any) -> dict[type, Reduce]:
    """Return how values of the library are reduced."""
    SUBCLASSES.extend((numpy.matrix, numpy.recarray, numpy.ma.MaskedArray))
    return {numpy.matrix: _reduce_subclass, numpy.recarray: _reduce_subclass, numpy.ma.MaskedArray: _reduce_masked}


def reduce_array(array: Any, least: int) -> Any:
    """Return what pickle is given for a plain array: as numpy says, or its bytes where it would copy them into the pickle.

    Numpy does so with dates, with types of others (bfloat16), and with what has gaps, of which it makes a copy in C order.
    Here there is one only where it is needed (`gapped_buffer`).

    Parameters
    ----------
    array : numpy.ndarray
        Of numpy's own class.
    least : int
        Smaller ones, in bytes, go in the pickle anyway.
    """
    numpy, dtype = sys.modules["numpy"], array.dtype
    flags = array.flags
    is_whole = flags.c_contiguous or flags.f_contiguous or (array.ndim > 1 and _has_no_gaps(array))
    # Of such types there is no buffer, or not everywhere.
    is_odd = dtype.kind in "mM" or dtype.isbuiltin == 2  # noqa: PLR2004 - numpy's number for types that others have made
    if array.nbytes < least or dtype.hasobject or (is_whole and not is_odd):
        return array.__reduce_ex__(PROTOCOL)
    if not (flags.c_contiguous or flags.f_contiguous):
        return _make_array, (gapped_buffer(array), dtype, array.shape, "C")
    order = "C" if flags.c_contiguous else "F"
    raw = array.reshape(-1, order=order).view(numpy.uint8)
    if not flags.writeable:  # a small one can be written to when it arrives, for numpy then copies
        raw = writable(raw)
    return _make_array, (pickle.PickleBuffer(raw), dtype, array.shape, order)


def _has_no_gaps(array: Any) -> bool:
    """Tell whether an array is one without gaps with its axes in another order; newer versions of numpy keep that."""
    axes = sorted(range(array.ndim), key=array.strides.__getitem__, reverse=True)
    return bool(array.transpose(axes).flags.c_contiguous)


def _make_array(raw: Any, dtype: Any, shape: Any, order: Any) -> Any:
    import numpy as np

    array: Any = np.frombuffer(raw, dtype=dtype)
    return array.reshape(shape, order=order)


class _Writable:
    """Looks like memory that can be written to, for a pickler that only reads it."""

    def __init__(self, held: Any) -> None:
        interface = held.__array_interface__
        self.base = held  # as an array says whose memory it looks into
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


def writable(raw: Any) -> Any:
    """Return an array like one of bytes, of which it is not known that it can't be written to."""
    return sys.modules["numpy"].asarray(_Writable(raw))


def _reduce_subclass(array: Any) -> Any:
    return _view_as, (array.view(sys.modules["numpy"].ndarray), type(array))


def _view_as(array: Any, kind: Any) -> Any:
    return array.view(kind)


def _reduce_masked(array: Any) -> Any:
    numpy = sys.modules["numpy"]
    if array._baseclass is not numpy.ndarray or array.dtype.hasobject:
        return array.__reduce_ex__(PROTOCOL)
    # As numpy, which makes a whole mask of none.
    return _make_masked, (array.data, numpy.ma.getmaskarray(array), array._fill_value)


def _make_masked(data: Any, mask: Any, fill_value: Any) -> Any:
    import numpy as np

    array: Any = np.ma.MaskedArray(data, mask)
    array._fill_value = fill_value
    return array
