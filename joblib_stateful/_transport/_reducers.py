"""How values are pickled of libraries that don't hand out their buffers by themselves, so that these travel as numpy's do.

What is in the tables is only made when its library is there, in either process. What a table doesn't take (a tensor on a GPU,
a frame with objects of Python's in it) is pickled as it pickles itself.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import pickle
import sys
import types
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from cloudpickle import cloudpickle as inside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Reduce: TypeAlias = Callable[[Any], Any]

_PROTOCOL = 5
# A tensor that shows less than half of a storage of so many bytes travels without the rest of it. Below, what it takes to
# look for that (6 µs for each tensor) is more than what it saves.
_WHOLE_BYTES = 1 << 14


def find_reducers() -> dict[type, Reduce]:
    """Return how values of those libraries are reduced that have been imported."""
    for entry in _waiting[:]:
        name, table = entry
        module = sys.modules.get(name)
        if module is None or getattr(module.__spec__, "_initializing", False):
            continue
        with contextlib.suppress(ValueError):  # another thread was faster
            _waiting.remove(entry)
        # In a version that is made otherwise values go as they say themselves.
        with contextlib.suppress(Exception):
            found = table(module)
            _found.update({kind: found[kind] for kind in found.keys() - _registered.keys()})
    return _found


_found: dict[type, Reduce] = {}


# --- users' own -----------------------------------------------------------------------------------------


class Registration(NamedTuple):
    """What a user has registered, by name: the same in each process."""

    kind: tuple[str, str]
    reduce: tuple[str, str]


#: All that was registered, in this process or in the program that this one works for.
_registered: dict[type, Registration] = {}


def registrations() -> tuple[Registration, ...]:
    """Return all that was registered."""
    return tuple(_registered.values())


def register_reducer(kind: type, reduce: Callable[[Any], Any]) -> None:
    """Say how values of a class are taken apart when they travel to a worker process and back.

    For classes of libraries that copy all that they hold into their pickle. What a reducer wraps as `pickle.PickleBuffer`
    travels as numpy's arrays do, through shared memory where it is large. Both are known by their names in the worker
    processes of ``engine="loky"``; elsewhere their module has to be imported there, so that it registers them again.

    Parameters
    ----------
    kind : type
        The class; not for its subclasses. It must be importable.
    reduce : callable
        Is given a value and returns what its ``__reduce__`` might: a tuple of a function that makes it anew, its
        arguments and so on; or NotImplemented: then it goes as it says itself. It must be importable, too.

    Raises
    ------
    TypeError
        What was given is no class, or can't be called; or pickle never asks how the class is reduced.
    ValueError
        One of them can't be imported by others, or the class has another reducer.

    Examples
    --------
    In the module of a class ``Cloud``, whose points are a large array of C's that has a buffer::

        def reduce_cloud(cloud):
            return make_cloud, (pickle.PickleBuffer(cloud.points),)

        register_reducer(Cloud, reduce_cloud)

    As a class says itself, and so without any use:

    >>> from fractions import Fraction
    >>> from joblib_stateful import register_reducer
    >>> register_reducer(Fraction, Fraction.__reduce__)
    """
    if not isinstance(kind, type):
        raise TypeError(f"{_EXAMPLE}: its first argument is a class, and not {kind!r:.100}.")
    if not callable(reduce):
        raise TypeError(f"{_EXAMPLE}: its second argument is a function of one value, and not {reduce!r:.100}.")
    if kind in _ASKED_NEVER:
        raise TypeError(
            f"How a {kind.__name__} is pickled can't be changed: pickle knows it by itself. Wrap it in a class of your own, and "
            "register that."
        )
    registration = Registration(_name_of(kind), _name_of(reduce))
    known = _registered.get(kind)
    if known is not None and known != registration:
        raise ValueError(
            f"{kind.__qualname__} has a reducer already: {'.'.join(known.reduce)}. There can be one; register it once, in the "
            "module that defines it."
        )
    _registered[kind] = registration
    _found[kind] = functools.partial(_reduce_registered, reduce)


_EXAMPLE = "register_reducer(MyClass, reduce_my_class)"
_ASKED_NEVER = frozenset(
    {bool, bytearray, bytes, dict, float, frozenset, int, list, set, str, tuple, type, type(None), type(len)}
    | {types.FunctionType, pickle.PickleBuffer}
)


def _name_of(found: Any) -> tuple[str, str]:
    """Return the module and the name that others can import something by."""
    module, name = getattr(found, "__module__", None), getattr(found, "__qualname__", None)
    is_by_value = module == "__main__" or (module and inside._is_registered_pickle_by_value(sys.modules[module]))
    if module and name and not is_by_value and _named(module, name) is found:
        return module, name
    raise ValueError(
        f"{name or found!r} can't be imported by others, so that worker processes would not know it: it is defined in a "
        "script, a notebook, a function, by lambda, or in a module that travels by value. Put it into a module, under its own name, and register it there: "
        f"{_EXAMPLE}"
    )


def _named(module: str, name: str) -> Any:
    try:
        return functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except (ImportError, AttributeError):
        return None


def take_over(registered: Iterable[Registration]) -> None:
    """Register what the program has, each when its class's module is there."""

    def table(registration: Registration, module: Any) -> dict[type, Reduce]:
        kind = functools.reduce(getattr, registration.kind[1].split("."), module)
        if kind not in _registered:
            register_reducer(kind, _named(*registration.reduce))
        return {}

    _waiting.extend((one.kind[0], functools.partial(table, one)) for one in registered)


def _reduce_registered(reduce: Reduce, value: Any) -> Any:
    name = type(value).__qualname__
    try:
        reduced = reduce(value)
    except Exception as error:
        raise pickle.PicklingError(f"the reducer of {name} raised {type(error).__name__}: {error}") from error
    if reduced is NotImplemented or isinstance(reduced, str):
        return reduced
    if not isinstance(reduced, tuple) or len(reduced) < 2 or not callable(reduced[0]) or type(reduced[1]) is not tuple:  # noqa: PLR2004 - as pickle has it
        raise pickle.PicklingError(
            f"the reducer of {name} returned {reduced!r:.100}, where pickle takes a function that makes the value anew and a "
            "tuple of its arguments"
        )
    function, args, *rest = reduced
    return _make_registered, (name, function, *args), *rest


def _make_registered(name: str, function: Callable[..., Any], *args: Any) -> Any:
    try:
        return function(*args)
    except Exception as error:
        raise pickle.UnpicklingError(
            f"what the reducer of {name} returned can't be made anew: {type(error).__name__}: {error}"
        ) from error


# --- numpy ----------------------------------------------------------------------------------------------


def _of_numpy(numpy: Any) -> dict[type, Reduce]:
    return {numpy.matrix: _reduce_subclass, numpy.recarray: _reduce_subclass, numpy.ma.MaskedArray: _reduce_masked}


def reduce_array(array: Any, least: int) -> Any:
    """Return what pickle is given for a plain array: as numpy says, or its bytes where it would copy them into the pickle.

    Numpy does so with dates, with types of others (bfloat16), and with what has gaps, of which it makes a copy in C order.

    Parameters
    ----------
    array : numpy.ndarray
        Of numpy's own class.
    least : int
        Smaller ones, in bytes, go in the pickle anyway.
    """
    numpy, dtype = sys.modules["numpy"], array.dtype
    flags = array.flags
    is_whole = flags.c_contiguous or flags.f_contiguous
    # Of such types there is no buffer, or not everywhere.
    is_odd = dtype.kind in "mM" or dtype.isbuiltin == 2  # noqa: PLR2004 - numpy's number for types that others have made
    if array.nbytes < least or dtype.hasobject or (is_whole and not is_odd):
        return array.__reduce_ex__(_PROTOCOL)
    if not is_whole:
        array = numpy.ascontiguousarray(array)
    order = "C" if array.flags.c_contiguous else "F"
    raw = array.reshape(-1, order=order).view(numpy.uint8)
    if not flags.writeable:  # a small one can be written to when it arrives, for numpy then copies
        raw = writable(raw)
    return _make_array, (pickle.PickleBuffer(raw), dtype, array.shape, order)


def _make_array(raw: Any, dtype: Any, shape: Any, order: Any) -> Any:
    import numpy as np

    array: Any = np.frombuffer(raw, dtype=dtype)
    return array.reshape(shape, order=order)


class _Writable:
    """Looks like memory that can be written to, for a pickler that only reads it."""

    def __init__(self, held: Any) -> None:
        self._held, interface = held, held.__array_interface__
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
        return array.__reduce_ex__(_PROTOCOL)
    # As numpy, which makes a whole mask of none.
    return _make_masked, (array.data, numpy.ma.getmaskarray(array), array._fill_value, array.flags.f_contiguous)


def _make_masked(data: Any, mask: Any, fill_value: Any, is_fortran: bool) -> Any:  # noqa: ARG001, FBT001 - the layout is the data's
    import numpy as np

    array: Any = np.ma.MaskedArray(data, mask)
    array._fill_value = fill_value
    return array


# --- torch ----------------------------------------------------------------------------------------------


def _of_torch(torch: Any) -> dict[type, Reduce]:
    # Tensors, parameters and modules come down to these; torch itself writes each tensor's storage to a file of its own.
    return {torch.storage.TypedStorage: _reduce_typed, _Part: _reduce_part}


def _reduce_typed(storage: Any) -> Any:
    untyped = storage._untyped_storage  # `untyped()` warns
    return (_make_typed, (untyped, storage.dtype)) if _is_plain(untyped) else storage.__reduce__()


def _make_typed(untyped: Any, dtype: Any) -> Any:
    import torch

    return torch.storage.TypedStorage(wrap_storage=untyped, dtype=dtype, _internal=True)


def _is_plain(storage: Any) -> bool:
    return storage.device.type == "cpu" and "numpy" in sys.modules  # by which its memory is had


def _bytes_of(storage: Any, first: int, size: int) -> Any:
    torch = sys.modules["torch"]
    return torch.empty(0, dtype=torch.uint8).set_(storage, first, (size,))


def _make_storage(raw: Any) -> Any:
    import torch

    with memoryview(raw) as memory:
        size, is_readonly = memory.nbytes, memory.readonly
    if not size:
        return torch.UntypedStorage(0)
    # Torch knows no memory that can only be read.
    return torch.frombuffer(bytearray(raw) if is_readonly else raw, dtype=torch.uint8).untyped_storage()


class NeedsWholeError(Exception):
    """Parts of a storage were pickled, and then something that shares memory with them."""


class _Part:
    """Consecutive bytes of a storage, as a tensor."""

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor


def _reduce_part(part: _Part) -> Any:
    return _make_storage, (pickle.PickleBuffer(part.tensor.numpy()),)


class Tensors:
    """The tensors of one frame: which of them share memory, and which parts of their storages travel.

    Tensors that share memory still do so when they arrive. Each row of a large tensor, as an item, brings only itself.

    Parameters
    ----------
    torch : module
        What they are of.
    is_whole : bool, default False
        No parts.
    """

    def __init__(self, torch: Any, *, is_whole: bool = False) -> None:
        self._torch, self._is_whole = torch, is_whole
        self.reducers: dict[type, Reduce] = {torch.Tensor: self._reduce, torch.UntypedStorage: self._reduce_storage}
        # By where a storage lies: None if all of it is there, else first byte, end and part, for each.
        self._sent: dict[int, list[tuple[int, int, _Part]] | None] = {}

    def begin(self) -> None:
        """Begin a frame."""
        self._sent.clear()

    def _reduce_storage(self, storage: Any) -> Any:
        if not _is_plain(storage):
            return storage.__reduce__()
        if self._sent.get(storage.data_ptr()):  # and this is another class's tensor
            raise NeedsWholeError
        self._sent[storage.data_ptr()] = None
        return _make_storage, (pickle.PickleBuffer(_bytes_of(storage, 0, storage.nbytes()).numpy()),)

    def _reduce(self, tensor: Any) -> Any:
        """Return what pickle is given for a tensor."""
        found = None if self._is_whole else self._part_of(tensor)
        if found is None:
            return tensor.__reduce_ex__(_PROTOCOL)
        part, offset = found
        where = offset, tensor.size(), tensor.stride()
        return _make_tensor, (part, tensor.dtype, where, tensor.requires_grad)

    def _part_of(self, tensor: Any) -> tuple[_Part, int] | None:
        """Return the part that a tensor looks into, and where in it; None if the whole storage travels."""
        torch = self._torch
        if tensor.layout is not torch.strided or tensor.device.type != "cpu":
            return None
        storage = tensor.untyped_storage()
        where, whole = storage.data_ptr(), storage.nbytes()
        if whole < _WHOLE_BYTES:
            return None
        width = tensor.element_size()
        first = tensor.storage_offset() * width
        reach = sum((size - 1) * stride for size, stride in zip(tensor.size(), tensor.stride(), strict=True)) + 1
        end = first + (reach * width if tensor.numel() else 0)
        sent = self._sent.setdefault(where, [])
        if sent is None:
            return None
        for begins, ends, part in sent:
            if begins <= first and end <= ends:
                return part, (first - begins) // width
        if any(first < ends and begins < end for begins, ends, _ in sent):
            raise NeedsWholeError
        if 2 * (end - first) > whole or self._is_more(tensor):
            if sent:
                raise NeedsWholeError
            return None
        part = _Part(_bytes_of(storage, first, end - first))
        sent.append((first, end, part))
        return part, 0

    def _is_more(self, tensor: Any) -> bool:
        """Tell whether there is more to a tensor than its elements."""
        return bool(
            tensor.is_conj() or tensor.is_neg() or tensor.is_quantized or tensor.__dict__ or tensor._backward_hooks
        )


def _make_tensor(storage: Any, dtype: Any, where: Any, requires_grad: bool) -> Any:  # noqa: FBT001 - as pickle calls it
    import torch

    tensor = torch.empty(0, dtype=dtype).set_(storage, *where)
    return tensor.requires_grad_() if requires_grad else tensor


# --- Arrow, polars, jax ---------------------------------------------------------------------------------


def _of_arrow(arrow: Any) -> dict[type, Reduce]:
    arrays = {kind for kind in vars(arrow.lib).values() if isinstance(kind, type) and issubclass(kind, arrow.Array)}
    return {
        arrow.Table: _reduce_table,
        arrow.RecordBatch: _reduce_table,
        **dict.fromkeys({*arrays, arrow.ChunkedArray}, _reduce_column),
    }


def _is_slice(value: Any) -> bool:
    """Tell whether an Arrow value shows much less than what its buffers hold, all of which it would bring along."""
    return bool(value.get_total_buffer_size() > 2 * value.nbytes + _WHOLE_BYTES)


def _reduce_table(table: Any) -> Any:
    if not _is_slice(table):
        return table.__reduce_ex__(_PROTOCOL)
    arrow = sys.modules["pyarrow"]
    from pyarrow import ipc

    # What is written is cut to what is shown.
    sink = arrow.BufferOutputStream()
    with ipc.new_stream(sink, table.schema) as writer:
        writer.write(table)
    return _make_table, (sink.getvalue(), isinstance(table, arrow.Table))


def _make_table(raw: Any, is_table: bool) -> Any:  # noqa: FBT001 - as pickle calls it
    from pyarrow import ipc

    with ipc.open_stream(raw) as reader:
        return reader.read_all() if is_table else reader.read_next_batch()


def _reduce_column(column: Any) -> Any:
    if isinstance(column.type, sys.modules["pyarrow"].ExtensionType) or not _is_slice(column):
        return column.__reduce_ex__(_PROTOCOL)
    arrow = sys.modules["pyarrow"]
    is_chunked = isinstance(column, arrow.ChunkedArray)
    table = arrow.table({"": column})
    return _make_column, (table, is_chunked)


def _make_column(table: Any, is_chunked: bool) -> Any:  # noqa: FBT001 - as pickle calls it
    import pyarrow as pa

    column = table.column(0)
    if is_chunked:
        return column
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def _of_polars(polars: Any) -> dict[type, Reduce]:
    return {polars.DataFrame: _reduce_frame, polars.Series: _reduce_series}


def _reduce_frame(frame: Any) -> Any:
    if not _goes_by_arrow(frame, frame.dtypes):
        return frame.__reduce_ex__(_PROTOCOL)
    return _make_polars, (frame.to_arrow(compat_level=sys.modules["polars"].CompatLevel.newest()),)


def _reduce_series(series: Any) -> Any:
    if not _goes_by_arrow(series, [series.dtype]):
        return series.__reduce_ex__(_PROTOCOL)
    column = series.to_arrow(compat_level=sys.modules["polars"].CompatLevel.newest())
    return _make_polars, (column, series.name)


def _goes_by_arrow(value: Any, dtypes: list[Any]) -> bool:
    """Tell whether all of a polars value is as it was after Arrow, which has the same buffers; small ones aren't worth it."""
    return value.estimated_size() >= _WHOLE_BYTES and all(map(_is_of_arrow, dtypes)) and _has_arrow()


@functools.cache
def _has_arrow() -> bool:
    import importlib.util  # which workers need only here

    return importlib.util.find_spec("pyarrow") is not None


def _is_of_arrow(dtype: Any) -> bool:
    polars = sys.modules["polars"]
    if isinstance(dtype, (polars.List, polars.Array)):
        return _is_of_arrow(dtype.inner)
    if isinstance(dtype, polars.Struct):
        return all(_is_of_arrow(field.dtype) for field in dtype.fields)
    # Not categories, decimals, or what Arrow has no word for.
    numbers = f"{dtype}" not in ("Int128", "UInt128", "Float16") and dtype.is_numeric() and not dtype.is_decimal()
    return numbers or dtype.is_temporal() or dtype in (polars.Boolean, polars.String, polars.Binary)


def _make_polars(value: Any, name: str | None = None) -> Any:
    import polars as pl

    made: Any = pl.from_arrow(value)
    return made if name is None else made.alias(name)


def _of_jax(jax: Any) -> dict[type, Reduce]:  # noqa: ARG001 - its arrays' class has no public name
    return {sys.modules["jax._src.array"].ArrayImpl: _reduce_jax}


def _reduce_jax(array: Any) -> Any:
    # As it says itself, but by numpy's array, and not by what that would be pickled as.
    import numpy as np

    return (_make_jax, (np.asarray(array), array.weak_type))


def _make_jax(value: Any, is_weak: bool) -> Any:  # noqa: FBT001 - as pickle calls it
    import jax

    made: Any = jax.numpy.asarray(value)
    if is_weak:  # as jax does it
        made.aval = made.aval.update(weak_type=True)
    return made


#: What makes a table out of a module, until that is there.
_waiting: list[tuple[str, Callable[[Any], dict[type, Reduce]]]] = [
    ("numpy", _of_numpy),
    ("torch", _of_torch),
    ("pyarrow", _of_arrow),
    ("polars", _of_polars),
    ("jax", _of_jax),
]
