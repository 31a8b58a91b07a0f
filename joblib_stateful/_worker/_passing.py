"""How a worker's object, or a function, is called with an item: as it is, or by what the item holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._messages import Mode


def passing(target: Callable[..., Any], mode: Mode) -> Callable[[Any], Any]:
    """Return what calls something with an item, by one of the ways of `stateful_map`'s ``pass_as``."""
    return _with_args(target) if mode == "args" else _with_kwargs(target) if mode == "kwargs" else target


def refusing(target: Any) -> Callable[[Any], Any]:
    """Return what tells of each item that an object can't be called."""

    def call(_: Any) -> Any:
        raise TypeError(
            f"stateful_map calls each worker's object with the items, but it is of type {type(target).__name__}, which "
            "can't be called. Give its class a __call__ method, or have factory's function return a callable.",
        )

    return call


def _a_type(value: Any) -> str:
    from .._words import a  # most workers never need it

    return a(type(value).__name__)


def _with_args(target: Callable[..., Any]) -> Callable[[Any], Any]:
    def call(item: Any) -> Any:
        is_sequence = isinstance(item, Sequence) or (hasattr(item, "__len__") and hasattr(item, "__getitem__"))
        if not is_sequence or isinstance(item, Mapping):
            raise TypeError(
                f'pass_as="args" calls worker(*item), but this item is {_a_type(item)}, not a sequence. '
                'Yield tuples from the input, or use pass_as="item".',
            )
        return target(*item)

    return call


def _with_kwargs(target: Callable[..., Any]) -> Callable[[Any], Any]:
    def call(item: Any) -> Any:
        if not isinstance(item, Mapping):
            raise TypeError(
                f'pass_as="kwargs" calls worker(**item), but this item is {_a_type(item)}, not a mapping. '
                'Yield dicts from the input, or use pass_as="item".',
            )
        return target(**item)

    return call
