"""Which version of the code is this? What travels by value can be edited at any time, and modules be reloaded.

Objects that were built from one version are not used for another one. Two things tell versions apart: for what travels by
value a digest of what travels (`_spec.spec_key`), and for modules that workers import by themselves `reloads`. Where
nothing travels, because workers are threads of this process, `source_of` tells an edit from what the workers' own code has
changed on its class.
"""

from __future__ import annotations

import ast
import functools
import io
import itertools
import os
import pickle
import sys
import threading
import types
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import cloudpickle
from cloudpickle import cloudpickle as inside

from .._process import _safely
from . import _by_name, _typing_objects

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

# What `lazy import` leaves in a global until that is used for the first time.
_Lazy: Any = getattr(types, "LazyImportType", None)


def resolve_lazy(globals_: dict[str, Any], names: Iterable[str]) -> None:
    """Have globals be what they are once they are used: what is imported lazily (Python 3.15) is so only then."""
    if _Lazy is not None:
        for name in names:
            value: Any = globals_.get(name)
            if type(value) is _Lazy:
                globals_[name] = value.resolve()


def resolve_what_travels(found: Any) -> None:
    """Do so with what something uses that is about to be pickled, if it is a function that goes by value."""
    if _Lazy is not None and type(found) is types.FunctionType and not inside._should_pickle_by_reference(found):
        resolve_lazy(found.__globals__, _names(found.__code__))


class Reloads(NamedTuple):
    """How often a module was found to be another one than before, and which was the latest."""

    n: int = 0
    latest: str = ""


class _Modules:
    """The modules of this program as they were seen last, but for Python's own and those that were installed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: set[str] = set()
        # Each spec is kept, so that another one can't be taken for it.
        self._specs: dict[str, Any] = {}
        self._patched: dict[str, Any] = {}  # by IPython, with the time of the file
        self._reloads = Reloads()

    def look(self, *, at_new_ones: bool) -> Reloads:
        """Look for modules that are other ones than before, and at those that are there for the first time."""
        if not self._lock.acquire(blocking=False):  # another thread looks, or a finaliser strikes one that does
            return self._reloads
        try:
            return self._look(at_new_ones=at_new_ones)
        finally:
            self._lock.release()

    def _look(self, *, at_new_ones: bool) -> Reloads:
        # By identity: a module that is loaded again has an equal one.
        changed = [name for name, spec in self._specs.items() if (_spec_of(name) or spec) is not spec]
        for name in set(sys.modules) - self._seen if at_new_ones else ():
            self._seen.add(name)
            if _may_be_edited(_spec_of(name)):
                self._specs[name] = _spec_of(name)
        patched = _patched_by_ipython()
        changed += [name for name, when in patched.items() if self._patched.get(name, when) != when]
        self._patched.update(patched)
        if changed:
            self._specs.update({name: _spec_of(name) for name in changed if name in self._specs})
            self._reloads = Reloads(self._reloads.n + 1, changed[-1])
        return self._reloads

    def start_anew(self) -> None:
        """In a fork: the lock may be held for ever."""
        self._lock = threading.Lock()


def _spec_of(name: str) -> Any:
    try:
        # Not by getattr, which has a module that is loaded lazily be loaded.
        return object.__getattribute__(sys.modules[name], "__dict__").get("__spec__")
    except (AttributeError, KeyError):  # anything can be put there, None too; or it was just taken out
        return None


def _may_be_edited(spec: Any) -> bool:
    origin = getattr(spec, "origin", None)
    # The script itself travels by value, and IPython's %run exchanges it.
    if not isinstance(origin, str) or origin in {"built-in", "frozen"} or spec.name == "__main__":
        return False
    return not (origin.startswith(_STANDARD) or "site-packages" in origin or "dist-packages" in origin)


# Where the standard library lies.
_STANDARD = os.path.dirname(os.__file__) + os.sep  # noqa: PTH120 - importing pathlib takes 4 ms


def _patched_by_ipython() -> dict[str, Any]:
    """Return what ``%autoreload`` has looked at: it changes functions and constants in place where it can."""
    if "IPython.extensions.autoreload" not in sys.modules:
        return {}
    try:  # none of it is documented; a version that has it elsewhere reloads unseen by us
        shell = sys.modules["IPython"].get_ipython()
        return dict(shell.magics_manager.registry["AutoreloadMagics"]._reloader.modules_mtimes)
    except (AttributeError, KeyError, TypeError):
        return {}


_modules = _Modules()


def reloads(*, at_new_ones: bool = True) -> Reloads:
    """Return what is known of modules that were loaded again; equal as long as none is since the latest look.

    Looking for new ones takes 0.1 ms for 1,500 modules, the rest a tenth of that.
    """
    return _modules.look(at_new_ones=at_new_ones)


def start_anew() -> None:
    """In a fork: begin with locks that nobody holds."""
    _modules.start_anew()


def reduce_count(found: Any) -> Any:
    """Reduce an `itertools.count`, as a class has one to number its objects; from Python 3.14 on it can't be pickled by itself.

    Where it stands is only to be read from its text, and so only if that says all.
    """
    try:
        return itertools.count, ast.literal_eval(repr(found).removeprefix("count").replace(")", ",)"))
    except (ValueError, SyntaxError):
        return NotImplemented


# Python itself writes these on a class when it is used: pickling an object, or asking for annotations that there are none.
_ADDED_BY_USE = ("__slotnames__", "__annotations__", "__annotate_func__")
# And this one, from 3.14 on, with what the function above has given.
_MADE_BY_USE = "__annotations_cache__"


class ComparingPickler(cloudpickle.Pickler):  # type: ignore[misc]  # it is not typed
    """cloudpickle's own, for output that is only compared: what use has added to a class is no edit of it."""

    #: How objects of further types are reduced.
    reducers: ClassVar[dict[Any, Callable[[Any], Any]]] = {
        itertools.count: reduce_count,
        **_by_name.REDUCERS,
        **_typing_objects.REDUCERS,
    }

    #: Something was reduced since this was set back: see `forget`.
    has_reduced = False

    def reducer_override(self, obj: Any) -> Any:
        """Return how an object is pickled."""
        self.has_reduced = True
        reduce = self.reducers.get(type(obj))
        reduced = NotImplemented if reduce is None else reduce(obj)
        if reduced is not NotImplemented:
            return reduced
        resolve_what_travels(obj)
        reduced = super().reducer_override(obj)
        if isinstance(obj, type) and isinstance(reduced, tuple) and len(reduced) > 2:  # noqa: PLR2004 - it has a state
            members = reduced[2][0]
            members.pop(_MADE_BY_USE, None)
            for name in _ADDED_BY_USE:
                if not members.get(name):
                    members.pop(name, None)
        return reduced

    @classmethod
    def dumps(cls, value: Any) -> bytes:
        """Return the pickle of a value."""
        file = io.BytesIO()
        cls(file, pickle.HIGHEST_PROTOCOL).dump(value)
        return file.getvalue()


class Source(NamedTuple):
    """What objects were built from, where nothing travels."""

    code: tuple[types.CodeType, ...]
    data: tuple[Any, ...]


def source_of(build: Any) -> Source:
    """Return the code of a class or function, and of what its module defines and it uses; and the data that they use.

    Data are told by what they are, as far as they are plain values and containers of these, and else by which object it
    is: nothing large is looked through, or kept.
    """
    walk = _Walk(_module_of(build))
    walk.follow(build)
    return Source(tuple(walk.code), tuple(walk.data))


# Values of containers, all together, that are looked at: a configuration has fewer, and so many take a millisecond.
_MOST_VALUES = 10_000
_PLAIN = (int, float, complex, bool, str, bytes, type(None))
_CONTAINERS = (list, tuple, set, frozenset, dict)
_CODE = (
    type,
    types.FunctionType,
    types.MethodType,
    staticmethod,
    classmethod,
    property,
    functools.partial,
    functools.cached_property,
)


class _Walk:
    """From a class or function to all that it uses."""

    def __init__(self, module: str) -> None:
        self.code: list[types.CodeType] = []
        self.data: list[Any] = []
        self._modules = module, "__main__"
        self._seen: set[int] = set()
        self._todo: list[Any] = []

    def follow(self, value: Any) -> None:
        """Note a value and all that it uses."""
        self._todo.append(value)
        while self._todo:
            value = self._todo.pop()
            if not isinstance(value, _CODE):
                self._note(value)
            elif id(value) not in self._seen:
                self._seen.add(id(value))
                self._todo += _used_by(value)
                if isinstance(value, (type, types.FunctionType)) and _module_of(value) in self._modules:
                    self._look_into(value)  # else workers import it, and that is another matter

    def _look_into(self, value: Any) -> None:
        if isinstance(value, type):
            self._todo += value.__bases__
            self._todo += [used for name, used in list(vars(value).items()) if name not in _OF_EACH_CLASS]
            return
        self.code.append(value.__code__)
        names = list(_names(value.__code__))
        resolve_lazy(value.__globals__, names)
        self._todo += [value.__globals__[name] for name in names if name in value.__globals__]

    def _note(self, value: Any) -> None:
        kind = type(value)
        if kind in _PLAIN:
            self.data.append((kind, value))
        elif kind not in _CONTAINERS:
            self.data.append((kind, id(value)))
        elif id(value) not in self._seen:
            self._seen.add(id(value))
            self.data.append((kind, len(value)))
            parts = itertools.chain.from_iterable(value.items()) if kind is dict else iter(value)
            self._todo += itertools.islice(parts, max(0, _MOST_VALUES - len(self.data)))


# Python writes them, some of them anew each time.
_OF_EACH_CLASS = frozenset(
    {"__dict__", "__weakref__", "__doc__", "__module__", "_abc_impl", _MADE_BY_USE, *_ADDED_BY_USE}
)


def _used_by(value: Any) -> Iterator[Any]:
    """Return what is within something that is made of functions."""
    if isinstance(value, (staticmethod, classmethod)):
        yield value.__func__
    elif isinstance(value, types.MethodType):
        yield value.__func__
        yield value.__self__
    elif isinstance(value, property):
        yield from (value.fget, value.fset, value.fdel)
    elif isinstance(value, functools.partial):
        yield from (value.func, value.args, value.keywords)
    elif isinstance(value, functools.cached_property):
        yield value.func
    elif isinstance(value, types.FunctionType):
        yield from (value.__dict__.get("__wrapped__"), value.__defaults__, value.__kwdefaults__)
        for cell in value.__closure__ or ():
            try:
                yield cell.cell_contents
            except ValueError:  # it is empty
                continue


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _module_of(value: Any) -> str:
    # A class may define what becomes of who asks for its name.
    found = _safely.module_of(value) if isinstance(value, type) else getattr(value, "__module__", None)
    return found or ""
