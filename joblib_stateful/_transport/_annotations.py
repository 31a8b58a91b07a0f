"""What annotations that are still text stand for: code in a worker may resolve them, as it could in the program.

They are text under ``from __future__ import annotations``, and where quotes are around them. `typing.get_type_hints`, and with it
whoever fills dataclasses from JSON, looks for their names among the globals of a function, and in the module of a class.
"""

from __future__ import annotations

import ast
import functools
import sys
import types
import typing
from typing import TYPE_CHECKING, Any

from cloudpickle import cloudpickle

from ._main import main_globals

if TYPE_CHECKING:
    from collections.abc import Mapping

_ALIASES = (types.GenericAlias, types.UnionType)


def named_by_function(found: Any) -> dict[str, Any]:
    """Return what the annotations of a function name among its globals.

    But nothing for which a worker would have to import more than Python's own modules: it may never need that.
    """
    named = _named_by(found.__annotations__, found.__globals__)
    return {name: value for name, value in named.items() if not _is_elsewhere(value)}


def named_by_class(found: Any) -> dict[str, Any]:
    """Return what the annotations of a class of ``__main__`` name there; its objects will hold such things."""
    if found.__module__ != "__main__":
        return {}
    annotations = found.__dict__.get("__annotations__")  # noqa: RUF063 - that runs users' code from Python 3.14 on
    return _named_by(annotations, main_globals() or {})


def _named_by(annotations: Any, globals_: Mapping[str, Any]) -> dict[str, Any]:
    if not annotations or type(annotations) is not dict:  # a class may have anything there
        return {}
    texts = [text for text in annotations.values() if type(text) is str]
    names = dict.fromkeys(name for text in texts for name in _names_in(text))
    return {name: globals_[name] for name in names if name in globals_ and _is_type(globals_[name])}


@functools.lru_cache(maxsize=4096)
def _names_in(text: str) -> tuple[str, ...]:
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # it may be anything
        return ()
    names: dict[str, None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            names[node.id] = None
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value != text:
            names.update(dict.fromkeys(_names_in(node.value)))
    return tuple(names)


def _is_type(value: Any) -> bool:
    """Tell whether a global is what annotations are made of, and no data that happens to have such a name."""
    kind = type(value)
    return issubclass(kind, (type, types.ModuleType, *_ALIASES)) or kind.__module__ == typing.__name__


def _is_elsewhere(value: Any) -> bool:
    """Tell whether a module or class would have to be imported that is not Python's own."""
    is_module = isinstance(value, types.ModuleType)
    if not is_module and (not isinstance(value, type) or not cloudpickle._should_pickle_by_reference(value)):
        return False
    home = value.__name__ if is_module else value.__module__
    return home.partition(".")[0] not in sys.stdlib_module_names
