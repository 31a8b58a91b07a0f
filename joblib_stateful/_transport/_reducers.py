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
import weakref
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
        if module is None or getattr(getattr(module, "__spec__", None), "_initializing", False):
            continue
        with contextlib.suppress(ValueError):  # another thread was faster
            _waiting.remove(entry)
        # In a version that is made otherwise values go as they say themselves.
        with contextlib.suppress(Exception):
            found = table(module)
            _found.update({kind: found[kind] for kind in found.keys() - _registered.keys()})
    return _found


_found: dict[type, Reduce] = {}


def private(data: Any) -> pickle.PickleBuffer:
    """Return a buffer of which each worker gets a copy of its own, whatever `Sharing.mode` says of arrays."""
    buffer = pickle.PickleBuffer(data)
    _private.add(buffer)
    return buffer


def is_private(buffer: pickle.PickleBuffer) -> bool:
    """Tell whether a buffer is."""
    return buffer in _private


_private: weakref.WeakSet[pickle.PickleBuffer] = weakref.WeakSet()


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


def registered_reducers() -> dict[type, Reduce]:
    """Return the users' own, which go before ours."""
    return {kind: _found[kind] for kind in _registered.copy()}


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
        arguments and so on; or NotImplemented: then it goes as it says itself. It must be importable, too. An argument that
        is a `pickle.PickleBuffer` arrives as a `memoryview` of bytes that can be written to.

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
    if kind in _ASKED_NEVER or (kind.__module__ == "numpy" and kind.__name__ in ("ndarray", "memmap")):
        raise TypeError(
            f"How a {kind.__name__} travels can't be changed. Wrap it in a class of your own, and register that."
        )
    registration = Registration(_name_of(kind), _name_of(reduce))
    known = _registered.get(kind)
    if known is not None and known != registration:
        raise ValueError(
            f"{kind.__qualname__} has a reducer already: {'.'.join(known.reduce)}. There can be one; register it once, in the "
            "module that defines it."
        )
    _found[kind] = functools.partial(_reduce_registered, reduce)
    _registered[kind] = registration


_EXAMPLE = "register_reducer(MyClass, reduce_my_class)"
_ASKED_NEVER = frozenset(
    {bool, bytearray, bytes, dict, float, frozenset, int, list, set, str, tuple, type, type(None), type(len)}
    | {types.FunctionType, pickle.PickleBuffer}
)


def _name_of(found: Any) -> tuple[str, str]:
    """Return the module and the name that others can import something by."""
    module, name = getattr(found, "__module__", None), getattr(found, "__qualname__", None)
    home = sys.modules.get(module or "")
    is_by_value = home is None or module == "__main__" or inside._is_registered_pickle_by_value(home)
    if module and name and not is_by_value and _named(module, name) is found:
        return module, name
    raise ValueError(
        f"{name or found!r} can't be imported by others, so that worker processes would not know it: it is defined in a "
        "script, a notebook, a function, by lambda, or in a module that travels by value. Put it into a module, under its own "
        f"name, and register it there: {_EXAMPLE}"
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
    places = {place for place, arg in enumerate(args) if isinstance(arg, pickle.PickleBuffer)}
    args = tuple(private(arg) if place in places else arg for place, arg in enumerate(args))
    return _make_registered, (name, function, places, *args), *rest


def _make_registered(name: str, function: Callable[..., Any], places: set[int], *args: Any) -> Any:
    try:
        # What a buffer arrives as depends on its size.
        return function(*(memoryview(arg) if place in places else arg for place, arg in enumerate(args)))
    except Exception as error:
        raise pickle.UnpicklingError(
            f"what the reducer of {name} returned can't be made anew: {type(error).__name__}: {error}"
        ) from error


#: Of which joblib shares no memory; all of these come down to numpy's own arrays.
SUBCLASSES: list[type] = []


# --- numpy ----------------------------------------------------------------------------------------------


def _of_numpy(numpy: Any) -> dict[type, Reduce]:
    SUBCLASSES.extend((numpy.matrix, numpy.recarray, numpy.ma.MaskedArray))
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
    is_whole = flags.c_contiguous or flags.f_contiguous or (array.ndim > 1 and _has_no_gaps(array))
    # Of such types there is no buffer, or not everywhere.
    is_odd = dtype.kind in "mM" or dtype.isbuiltin == 2  # noqa: PLR2004 - numpy's number for types that others have made
    if array.nbytes < least or dtype.hasobject or (is_whole and not is_odd):
        return array.__reduce_ex__(_PROTOCOL)
    if not (flags.c_contiguous or flags.f_contiguous):
        array = numpy.ascontiguousarray(array)
    order = "C" if array.flags.c_contiguous else "F"
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
    return _make_masked, (array.data, numpy.ma.getmaskarray(array), array._fill_value)


def _make_masked(data: Any, mask: Any, fill_value: Any) -> Any:
    import numpy as np

    array: Any = np.ma.MaskedArray(data, mask)
    array._fill_value = fill_value
    return array


# --- torch ----------------------------------------------------------------------------------------------


def _of_torch(torch: Any) -> dict[type, Reduce]:
    import numpy as np  # noqa: F401 - by which a storage's memory is had; else all goes as it says itself

    # Tensors, parameters and modules come down to these; torch itself writes each tensor's storage to a file of its own.
    return {torch.storage.TypedStorage: _reduce_typed, _Part: _reduce_part}


def _reduce_typed(storage: Any) -> Any:
    untyped = storage._untyped_storage  # `untyped()` warns
    return (_make_typed, (untyped, storage.dtype)) if _is_plain(untyped) else storage.__reduce__()


def _make_typed(untyped: Any, dtype: Any) -> Any:
    import torch

    return torch.storage.TypedStorage(wrap_storage=untyped, dtype=dtype, _internal=True)


def _is_plain(storage: Any) -> bool:
    return bool(storage.device.type == "cpu")


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
    found = torch.frombuffer(bytearray(raw) if is_readonly else raw, dtype=torch.uint8)
    # A small one is torch's own, which can be resized.
    return (found.clone() if isinstance(raw, (bytes, bytearray)) else found).untyped_storage()


class NeedsWholeError(Exception):
    """Parts of a storage were pickled, and then something that shares memory with them."""


class _Part:
    """Consecutive bytes of a storage, as a tensor."""

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor


def _reduce_part(part: _Part) -> Any:
    return _make_storage, (private(part.tensor.numpy()),)


def tensors_of(found: dict[type, Reduce], *, is_whole: bool) -> Tensors | None:
    """Return what pickles tensors, if torch is among what was found."""
    return Tensors(sys.modules["torch"], is_whole=is_whole) if _Part in found else None


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
        return _make_storage, (private(_bytes_of(storage, 0, storage.nbytes()).numpy()),)

    def _reduce(self, tensor: Any) -> Any:
        """Return what pickle is given for a tensor."""
        found = None if self._is_whole else self._part_of(tensor)
        if found is None and (tensor.layout is not self._torch.strided or self._is_more(tensor)):
            return tensor.__reduce_ex__(_PROTOCOL)
        storage, offset = found or (tensor.untyped_storage(), tensor.storage_offset())
        where = offset, tensor.size(), tensor.stride()
        return _make_tensor, (storage, tensor.dtype, where, tensor.requires_grad)

    def _part_of(self, tensor: Any) -> tuple[Any, int] | None:
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
            if begins <= first and end <= ends and not (first - begins) % width:
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
        is_view = tensor.is_conj() or tensor.is_neg() or tensor.is_quantized
        return bool(is_view or tensor.device.type != "cpu" or tensor.__dict__ or tensor._backward_hooks)


def _make_tensor(storage: Any, dtype: Any, where: Any, requires_grad: bool) -> Any:  # noqa: FBT001 - as pickle calls it
    import torch

    tensor = torch.empty(0, dtype=dtype).set_(storage, *where)
    return tensor.requires_grad_() if requires_grad else tensor


# --- Arrow, polars, jax ---------------------------------------------------------------------------------


def _of_arrow(arrow: Any) -> dict[type, Reduce]:
    # Tables, batches and columns come down to these.
    arrays = [kind for kind in vars(arrow.lib).values() if isinstance(kind, type) and issubclass(kind, arrow.Array)]
    return dict.fromkeys(arrays, _reduce_arrow)


def _reduce_arrow(array: Any) -> Any:
    # Much less is to be seen of it than what its buffers hold, all of which it would bring along.
    is_slice = array.get_total_buffer_size() > 2 * array.nbytes + _WHOLE_BYTES
    if not is_slice or _has_extension(array.type):
        return array.__reduce_ex__(_PROTOCOL)
    if not len(array):
        return _make_empty, (array.type,)
    arrow = sys.modules["pyarrow"]
    from pyarrow import ipc

    # What is written is cut to what is shown.
    sink, batch = arrow.BufferOutputStream(), arrow.record_batch([array], [""])
    with ipc.new_stream(sink, batch.schema) as writer:
        writer.write(batch)
    return _make_arrow, (sink.getvalue(),)


def _has_extension(kind: Any) -> bool:
    """Tell whether a type is one of users', or has one in it: who reads it must have registered that."""
    arrow = sys.modules["pyarrow"]
    inner = [kind.field(place).type for place in range(kind.num_fields)]
    if isinstance(kind, arrow.DictionaryType):
        inner.append(kind.value_type)
    return isinstance(kind, arrow.BaseExtensionType) or any(map(_has_extension, inner))


def _make_empty(kind: Any) -> Any:
    import pyarrow as pa

    return pa.array([], kind)


def _make_arrow(raw: Any) -> Any:
    from pyarrow import ipc

    with ipc.open_stream(raw) as reader:
        return reader.read_next_batch().column(0)


def _of_polars(polars: Any) -> dict[type, Reduce]:
    return {polars.DataFrame: _reduce_frame, polars.Series: _reduce_series}


def _reduce_frame(frame: Any) -> Any:
    if not _goes_by_arrow(frame, frame.schema):
        return frame.__reduce_ex__(_PROTOCOL)
    table = frame.to_arrow(compat_level=sys.modules["polars"].CompatLevel.newest())
    return _make_frame, (table, _sorted_of(frame.flags))


def _reduce_series(series: Any) -> Any:
    if not _goes_by_arrow(series, {series.name: series.dtype}):
        return series.__reduce_ex__(_PROTOCOL)
    # In a table, for a column by itself has no name.
    table = series.to_frame().to_arrow(compat_level=sys.modules["polars"].CompatLevel.newest())
    return _make_series, (table, _sorted_of({series.name: series.flags}))


def _sorted_of(flags: dict[str, dict[str, bool]]) -> dict[str, bool]:
    """Return which columns are known to be sorted, and whether from the largest on."""
    return {name: has["SORTED_DESC"] for name, has in flags.items() if has["SORTED_ASC"] or has["SORTED_DESC"]}


def _goes_by_arrow(value: Any, schema: Any) -> bool:
    """Tell whether all of a polars value is as it was after Arrow, which has the same buffers; small ones aren't worth it."""
    # A column without a name is given one by Arrow.
    is_large = value.estimated_size() >= _WHOLE_BYTES
    return is_large and "" not in schema and all(map(_is_of_arrow, schema.values())) and _has_arrow()


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


def _make_frame(table: Any, descending: dict[str, bool]) -> Any:
    import polars as pl

    frame: Any = pl.from_arrow(table)
    if not descending:
        return frame
    columns = [
        column.set_sorted(descending=descending[column.name]) if column.name in descending else column
        for column in frame
    ]
    return pl.DataFrame(columns)  # `with_columns` would start what lazy frames run by


def _make_series(table: Any, descending: dict[str, bool]) -> Any:
    return _make_frame(table, descending).to_series()


def _of_jax(jax: Any) -> dict[type, Reduce]:  # noqa: ARG001 - its arrays' class has no public name
    return {sys.modules["jax._src.array"].ArrayImpl: _reduce_jax}


def _reduce_jax(array: Any) -> Any:
    # As it says itself, but by numpy's array, and not by what that would be pickled as.
    import numpy as np

    return (_make_jax, (np.asarray(array), array.weak_type))


def _make_jax(value: Any, is_weak: bool) -> Any:  # noqa: FBT001 - as pickle calls it
    import jax

    made: Any = jax.numpy.asarray(value)
    if made.dtype != value.dtype:  # jax would say nothing
        raise TypeError(
            f"an array of {value.dtype} would become one of {made.dtype}, for this process computes without x64. Switch it on in "
            'each: worker_env=[{"JAX_ENABLE_X64": "1"}, ...], or jax.config.update("jax_enable_x64", True) in the constructor.'
        )
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
