"""How Arrow's, polars' and jax's values are pickled: by their buffers, and without what a slice of them doesn't show."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

from ._reducing import PROTOCOL, private

if TYPE_CHECKING:
    from ._reducing import Reduce

# Less than this is not worth the look.
_LEAST_BYTES = 1 << 14


def table_of_arrow(arrow: Any) -> dict[type, Reduce]:
    """Return how values of the library are reduced."""
    # Tables, batches and columns come down to these.
    arrays = [kind for kind in vars(arrow.lib).values() if isinstance(kind, type) and issubclass(kind, arrow.Array)]
    return dict.fromkeys(arrays, _reduce_arrow)


def _reduce_arrow(array: Any) -> Any:
    # Much less is to be seen of it than what its buffers hold, all of which it would bring along.
    is_slice = array.get_total_buffer_size() > 2 * array.nbytes + _LEAST_BYTES
    if not is_slice or _has_extension(array.type):
        return array.__reduce_ex__(PROTOCOL)
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


def table_of_polars(polars: Any) -> dict[type, Reduce]:
    """Return how values of the library are reduced."""
    return {polars.DataFrame: _reduce_frame, polars.Series: _reduce_series}


def _reduce_frame(frame: Any) -> Any:
    if not _goes_by_arrow(frame, frame.schema):
        return frame.__reduce_ex__(PROTOCOL)
    table = frame.to_arrow(compat_level=sys.modules["polars"].CompatLevel.newest())
    return _make_frame, (table, _sorted_of(frame.flags))


def _reduce_series(series: Any) -> Any:
    if not _goes_by_arrow(series, {series.name: series.dtype}):
        return series.__reduce_ex__(PROTOCOL)
    # In a table, for a column by itself has no name.
    table = series.to_frame().to_arrow(compat_level=sys.modules["polars"].CompatLevel.newest())
    return _make_series, (table, _sorted_of({series.name: series.flags}))


def _sorted_of(flags: dict[str, dict[str, bool]]) -> dict[str, bool]:
    """Return which columns are known to be sorted, and whether from the largest on."""
    return {name: has["SORTED_DESC"] for name, has in flags.items() if has["SORTED_ASC"] or has["SORTED_DESC"]}


def _goes_by_arrow(value: Any, schema: Any) -> bool:
    """Tell whether all of a polars value is as it was after Arrow, which has the same buffers; small ones aren't worth it."""
    # A column without a name is given one by Arrow.
    is_large = value.estimated_size() >= _LEAST_BYTES
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


def table_of_jax(jax: Any) -> dict[type, Reduce]:  # noqa: ARG001 - its arrays' class has no public name
    """Return how values of the library are reduced."""
    return {sys.modules["jax._src.array"].ArrayImpl: _reduce_jax}


def _reduce_jax(array: Any) -> Any:
    # As it says itself, but by numpy's array, and not by what that would be pickled as.
    import numpy as np

    held = np.asarray(array)
    if held.nbytes < _LEAST_BYTES or not held.flags.c_contiguous:
        return _make_jax, (held, array.weak_type)
    # Nobody else's, for jax takes it as it is, and holds what it has for unchangeable.
    return _make_jax_of, (private(held.reshape(-1).view(np.uint8)), held.dtype, held.shape, array.weak_type)


def _make_jax_of(raw: Any, dtype: Any, shape: Any, is_weak: bool) -> Any:  # noqa: FBT001 - as pickle calls it
    import numpy as np

    return _make_jax(np.frombuffer(raw, dtype).reshape(shape), is_weak)


def _make_jax(value: Any, is_weak: bool) -> Any:  # noqa: FBT001 - as pickle calls it
    import jax

    # By `jnp.asarray` it would be copied, which takes longer than all the rest of its way.
    made: Any = jax.device_put(value, may_alias=True) if value.nbytes >= _LEAST_BYTES else jax.numpy.asarray(value)
    if made.dtype != value.dtype:  # jax would say nothing
        raise TypeError(
            f"an array of {value.dtype} would become one of {made.dtype}, for this process computes without x64. Switch it on in "
            'each: worker_env=[{"JAX_ENABLE_X64": "1"}, ...], or jax.config.update("jax_enable_x64", True) in the constructor.'
        )
    if is_weak:  # as jax does it
        made.aval = made.aval.update(weak_type=True)
    return made
