"""Code that travels by value keeps the name of its file; where nobody else could read that, its lines go with it.

cloudpickle 3.1.3 writes ``<dynamic-code>`` in the place of the name, so that tracebacks and warnings of a class of a script
or a notebook would not say where they come from. What a cell or a line of a REPL holds is in no file at all: `linecache`
knows it in the parent, and then in the worker too, where tracebacks and `inspect.getsource` look for it.
"""

from __future__ import annotations

import copyreg
import dataclasses
import functools
import io
import itertools
import linecache
import os
import uuid
import weakref
from types import CodeType
from typing import TYPE_CHECKING, Any, ClassVar

import cloudpickle

from . import _by_name, _typing_objects
from ._code import reduce_count, resolve_what_travels
from ._exceptions import reduce_exception
from ._typing_objects import is_imported

if TYPE_CHECKING:
    from collections.abc import Callable

# Where the name stands among the arguments of `CodeType`, and what cloudpickle writes there.
_AT = 10
_ANONYMOUS = "<dynamic-code>"


def _reduce(code: CodeType) -> tuple[Any, ...]:
    make, args = cloudpickle.Pickler.dispatch_table[CodeType](code)
    name = code.co_filename
    if name == _ANONYMOUS or args[_AT] not in (_ANONYMOUS, name):
        return make, args
    # One object for each name, and no one else's: then equal code has equal bytes.
    args = (*args[:_AT], _names.setdefault(name, "".join(name)), *args[_AT + 1 :])
    text = None if _is_file(name) else _source_of(code)
    return (make, args) if text is None else (make_code, (text, *args))


_names: dict[str, str] = {}
_files: dict[str, bool] = {}


def _is_file(name: str) -> bool:
    if name not in _files:
        _files[name] = not name.startswith("<") and os.path.isfile(name)  # noqa: PTH113 - no pathlib in workers
    return _files[name]


def _source_of(code: CodeType) -> str | None:
    """Return the lines of a function that is in no file, if `linecache` has them."""
    try:
        lines = linecache.getlines(code.co_filename)
        last = max((end for _, end, _, _ in code.co_positions() if end is not None), default=0)
        return "".join(lines[max(0, code.co_firstlineno - 1) : last]) or None
    except Exception:  # noqa: BLE001 - loaders and notebooks have put their own functions into it
        return None


def make_code(text: str, *args: Any) -> CodeType:
    """Return code, once its lines are where tracebacks look for them."""
    code = CodeType(*args)
    name, first = code.co_filename, max(0, code.co_firstlineno - 1)
    known = linecache.cache.get(name)
    if known is None or name in _brought:  # and not in the parent, to which it has come back
        new = text.splitlines(keepends=True)
        lines = _brought.setdefault(name, [])
        lines += ["\n"] * (first + len(new) - len(lines))
        lines[first : first + len(new)] = new
        # Without a time it is never compared with a file.
        linecache.cache[name] = sum(map(len, lines)), None, lines, name
    return code


_brought: dict[str, list[str]] = {}


#: The type of functions under `functools.lru_cache`.
CACHED: Any = functools._lru_cache_wrapper


def reduce_cached(found: Any, version: Any = None) -> Any:
    """Reduce a function under `functools.lru_cache`, which pickle takes for one that can always be imported.

    Another version doesn't go on with the cache of an earlier one.
    """
    if is_imported(found):
        return found.__reduce__()
    own = {name: value for name, value in found.__dict__.items() if name not in _OF_EACH_CACHE}
    # Nor does another one with the same code, as a cell makes that is run again.
    serial = _serials.setdefault(found, uuid.uuid4().hex)
    return _make_cached, (found.__wrapped__, found.cache_parameters(), serial, version), own or None


_OF_EACH_CACHE = frozenset({*functools.WRAPPER_ASSIGNMENTS, "__wrapped__", "cache_parameters"})


_serials: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


def _make_cached(function: Any, parameters: dict[str, Any], *_: object) -> Any:
    return functools.lru_cache(**parameters)(function)


def _reduce_cached_property(found: Any) -> Any:
    """Reduce what has a lock in Python 3.11."""
    return _make_cached_property, (found.func, found.attrname)


def _make_cached_property(function: Any, name: str | None) -> Any:
    made = functools.cached_property(function)
    made.attrname = name
    return made


def _reduce_weak(found: Any) -> Any:
    """Reduce a weak container: `functools.singledispatch` has one, and scripts keep caches in them."""
    return type(found), (list(found.items()) if hasattr(found, "items") else list(found),)


def missing() -> Any:
    """Return `dataclasses.MISSING`, also for a copy of it, which other picklers leave on a class that came back by them."""
    return dataclasses.MISSING


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # it is not typed
    """cloudpickle's own, by which code keeps its place."""

    # With cloudpickle's own chain of tables, in which the class of each object of the user's is missed, an object costs 2 µs
    # more on each side (`benchmarks/classes.py`).
    dispatch_table = copyreg.dispatch_table
    #: What is in that chain, and more: how objects of a type are reduced.
    reducers: ClassVar[dict[Any, Callable[[Any], Any]]] = {
        **cloudpickle.Pickler.dispatch_table.maps[0],
        **_typing_objects.REDUCERS,
        **_by_name.REDUCERS,
        CodeType: _reduce,
        CACHED: reduce_cached,
        itertools.count: reduce_count,
        functools.cached_property: _reduce_cached_property,
        weakref.WeakKeyDictionary: _reduce_weak,
        weakref.WeakValueDictionary: _reduce_weak,
        # A field without a default has this very object.
        type(dataclasses.MISSING): lambda _: (missing, ()),
    }

    #: Something was reduced since this was set back: see `forget`.
    has_reduced = False

    def reducer_override(self, found: Any) -> Any:
        """Return how an object is reduced; called for all but those of built-in types."""
        self.has_reduced = True
        reduce = self.reducer_of(type(found))
        if reduce is not None:
            return reduce(found)
        resolve_what_travels(found)
        return super().reducer_override(found)

    def reducer_of(self, kind: Any) -> Callable[[Any], Any] | None:
        """Return how objects of a type are reduced, if not as they say themselves."""
        found = self.reducers.get(kind)
        return reduce_exception if found is None and issubclass(kind, BaseException) else found


def dumps(value: Any, protocol: int) -> bytes:
    """Return the bytes of a value."""
    with io.BytesIO() as file:
        Pickler(file, protocol=protocol).dump(value)
        return file.getvalue()
