"""Results of a call with several items: one per item, in a sequence, or as the rows of one array, tensor or frame.

Such a container travels as it is, in one piece, and is cut on the other side, without a copy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

_ROWS = (
    "a list, say, or an array, tensor or frame with a row for each (for an item that has failed, put "
    "joblib_stateful.Failure(exception) in its place)"
)
# A frame has rows and columns, and so has a table.
_N_AXES_OF_FRAMES = 2


def results_in(value: Any, n_items: int) -> list[Any] | None:
    """Return the results that a sequence holds; None if they are the rows of what travels in one piece.

    Raises
    ------
    TypeError
        It is nothing that has a result for each item.
    ValueError
        It has more or fewer than there are items.
    """
    shape = _shape_of(value)
    if shape:
        _check_length(value, shape[0], n_items)
        # An array of objects is no buffer that could travel in one piece, and any of them may be a `Failure`.
        return list(value) if len(shape) == 1 and str(getattr(value, "dtype", "")) == "object" else None
    if shape is None and isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview)):
        _check_length(value, len(value), n_items)
        # By its length, which some sequences don't end at.
        return list(value) if type(value) in (list, tuple) else [value[at] for at in range(n_items)]
    if shape is None and _is_like_a_sequence(value):  # Arrow's arrays, and what others make
        _check_length(value, len(value), n_items)
        return [value[at] for at in range(n_items)]
    raise TypeError(
        f'pass_as="batch" calls worker([item, ...]) and takes from it one result per item: {_ROWS}. '
        f"Called with {_count(n_items, 'item')}, it returned {_a(value)}{'' if shape is None else ' without an axis'}."
    )


def cut(value: Any, n_rows: int) -> list[Any]:
    """Return the rows of an array or tensor, or those of a frame, each a frame of its own."""
    located = getattr(value, "iloc", None)
    if located is not None:  # pandas: a row by itself would change the types of what is in it
        if len(value.shape) == _N_AXES_OF_FRAMES:
            return [located[at : at + 1] for at in range(n_rows)]
        return [located[at] for at in range(n_rows)]
    slice_of = getattr(value, "slice", None)
    if callable(slice_of) and len(value.shape) == _N_AXES_OF_FRAMES:  # Polars, Arrow
        return [slice_of(at, 1) for at in range(n_rows)]
    return [value[at] for at in range(n_rows)]


def _shape_of(value: Any) -> tuple[Any, ...] | None:
    if isinstance(value, (list, tuple, memoryview)):
        return None
    shape = getattr(value, "shape", None)
    return shape if isinstance(shape, tuple) and hasattr(type(value), "__getitem__") else None


def _is_like_a_sequence(value: Any) -> bool:
    kind = type(value)
    return (
        hasattr(kind, "__len__")
        and hasattr(kind, "__getitem__")
        and not isinstance(value, (str, bytes, bytearray, memoryview, Mapping, AbstractSet))
        and not hasattr(kind, "keys")
    )


def _check_length(value: Any, n_results: int, n_items: int) -> None:
    if n_results != n_items:
        raise ValueError(
            f'pass_as="batch" called worker([item, ...]) with {_count(n_items, "item")}, and it returned {_a(value)} with '
            f"{_count(n_results, 'result')}. Return one result per item, in the same order: {_ROWS}."
        )


def _a(value: Any) -> str:
    from .._words import a  # most workers never need it

    return a(type(value).__name__)


def _count(number: int, noun: str) -> str:
    from .._words import count  # see above

    return count(number, noun)
