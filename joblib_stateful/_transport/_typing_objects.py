"""How objects of `typing` travel that pickle writes by name, for which a script's would have to be imported.

A `NewType` in an annotation is enough for a function of a script not to arrive elsewhere by cloudpickle 3.1. `TypeVar` is
its own.
"""

from __future__ import annotations

import typing
from typing import TYPE_CHECKING, Any

from cloudpickle import cloudpickle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# What they are made with, each from some version of Python on.
_OPTIONS = ("bound", "covariant", "contravariant", "infer_variance", "default")


def is_imported(found: Any) -> bool:
    """Tell whether something with a name, but neither a class nor a plain function, can be imported by others."""
    name = cloudpickle._lookup_module_and_qualname(found)
    return name is not None and not cloudpickle._is_registered_pickle_by_value(name[0])


def _reduce_new_type(found: Any) -> Any:
    if is_imported(found):
        return found.__reduce__()
    number = cloudpickle._get_or_create_tracker_id(found)
    return _make_new_type, (found.__name__, found.__supertype__, found.__module__, found.__qualname__, number)


def _make_new_type(name: str, of: Any, module: str, qualname: str, number: str) -> Any:
    made: Any = _new_type(name, of)
    made.__module__, made.__qualname__ = module, qualname
    return cloudpickle._lookup_class_or_track(number, made)


def _reduce_parameter(found: Any) -> Any:
    """Reduce a `ParamSpec` or `TypeVarTuple`."""
    if is_imported(found):
        return found.__reduce__()
    options = {word: getattr(found, f"__{word}__") for word in _OPTIONS if hasattr(found, f"__{word}__")}
    number = cloudpickle._get_or_create_tracker_id(found)
    return _make_parameter, (type(found), found.__name__, options, found.__module__, number)


def _make_parameter(kind: Any, name: str, options: dict[str, Any], module: str, number: str) -> Any:
    made = kind(name, **options)
    made.__module__ = module
    return cloudpickle._lookup_class_or_track(number, made)


def _reduce_alias(found: Any) -> Any:
    """Reduce a ``type X = ...`` of Python 3.12."""
    if is_imported(found):
        return found.__reduce__()
    return _make_alias, (type(found), found.__name__, found.__value__, found.__type_params__)


def _make_alias(kind: Any, name: str, value: Any, parameters: tuple[Any, ...]) -> Any:
    return kind(name, value, type_params=parameters)


# For mypy it is a declaration, of what must be known.
_new_type: Any = typing.NewType


def _reducers() -> Iterator[tuple[Any, Callable[[Any], Any]]]:
    yield typing.NewType, _reduce_new_type
    yield typing.ParamSpec, _reduce_parameter
    yield typing.TypeVarTuple, _reduce_parameter
    if hasattr(typing, "TypeAliasType"):
        yield typing.TypeAliasType, _reduce_alias


#: How objects of these types are reduced.
REDUCERS = dict(_reducers())
