"""How what travels by value becomes definitions, and what is left of it in a value.

A `Definer` belongs to one parcel. A pickler of its own hands it each class and function that can't be imported; it
answers with a reference and defines what is referred to, once per parcel, so that what has changed since the last one is
noticed. What a definition refers to is defined, too, and all of it goes with the parcel.

On the way to a worker functions of one module share one namespace there, whose globals are definitions of their own: a
cache in a global of the script is one cache, and a sentinel the same in all functions. What a worker sends back is
pickled as cloudpickle does it, but for the classes.
"""

from __future__ import annotations

import itertools
import types
import typing
import uuid
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from cloudpickle import cloudpickle

from ._by_name import KINDS
from ._code import resolve_lazy
from ._code_pickler import CACHED, Pickler, reduce_cached
from ._definitions import (
    Definition,
    Gone,
    entries,
    entry,
    find,
    namespace,
    own_namespaces,
    set_class_state,
    skeleton,
    top_function,
)
from ._main import PREFIX, main_globals, main_with
from ._noticing import print_of
from ._typing_objects import is_imported

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ._definitions import Key, Peer
    from ._noticing import Memory

    # What a name within something was packed to at last, and the number of that version.
    Marks = dict[str | None, tuple[Any, int]]

_FUNCTION = types.FunctionType
# For relative imports, and what users may ask for.
_OF_MODULE = ("__package__", "__name__", "__path__", "__file__")
# Python's own on each member of an enum.
_OF_EACH_MEMBER = frozenset({"_value_", "_name_", "__objclass__", "_sort_order_"})
# Namespaces that are known again; there is one per module, notebook or `exec`.
_MOST_NAMESPACES = 256
# Each of them costs each frame that comes later 0.1 µs, and one that refers to it gains 3 (`benchmarks/classes.py`).
MOST_PRESETS = 8
# Frames up to this size are compared as they are.
_SMALL = 4096


class DefinitionError(TypeError):
    """What travels by value can't be pickled."""


class _Namespace:
    """The globals of a module on this side."""

    def __init__(self, globals_: dict[str, Any]) -> None:
        self.key = PREFIX * (globals_ is main_globals()) + uuid.uuid4().hex
        self.globals, self.marks = globals_, _no_marks()
        base = {name: globals_[name] for name in _OF_MODULE if name in globals_}
        self.reference = _Reference(namespace, self.key, base)
        own_namespaces[self.key] = self


class _Reference:
    """What is left of something in a frame: a call."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self._reduced = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self._reduced


def _no_marks() -> Marks:
    return {}


_versions = itertools.count(1)
_namespaces: OrderedDict[int, _Namespace] = OrderedDict()
_classes: weakref.WeakKeyDictionary[Any, Marks] = weakref.WeakKeyDictionary()


def _namespace_of(globals_: dict[str, Any]) -> _Namespace:
    found = _namespaces.get(id(globals_))
    if found is None:  # it is held, so that its number is not given again
        found = _namespaces.setdefault(id(globals_), _Namespace(globals_))
        if len(_namespaces) > _MOST_NAMESPACES:
            _namespaces.popitem(last=False)
    return found


class Definer:
    """What the values of one parcel refer to.

    Parameters
    ----------
    make_packer : callable
        Returns a packer for definitions.
    peer : Peer or None
        In a worker, the parent: what came from there is not defined.
    memory : Memory or None
        What earlier parcels of the same sender needed.
    """

    def __init__(
        self, make_packer: Callable[[Definer], Any], peer: Peer | None = None, memory: Memory | None = None
    ) -> None:
        self._make_packer, self._peer, self._memory = make_packer, peer, memory
        #: Classes that values have referred to, as a pickler's memo: those that come later say only which of them.
        self.presets: dict[int, tuple[int, Any]] = {}
        self.names: list[str] = []
        self.needs: dict[Key, Definition] = {}
        self._touched: dict[str, _Namespace] = {}

    # Not set one by one for each message, most of which never use them.
    _packer: Any = None
    # Of the definition that is being made, and of those that it needs.
    _new: dict[Key, Definition] = {}  # noqa: RUF012 - replaced, never changed
    _queued: dict[Key, tuple[Any, Marks, str]] | None = None
    _key: Key = ""
    _label = ""
    _globals: dict[int, tuple[_Namespace, str]] | None = None

    @property
    def is_back(self) -> bool:
        """True in a worker."""
        return self._peer is not None

    def class_reference(self, found: Any) -> tuple[Any, ...]:
        """Return what stands for a class that travels by value."""
        key: str = cloudpickle._get_or_create_tracker_id(found)
        if self._peer is None or not self._peer.has(key, found):
            self._need(key, found, _classes.setdefault(found, {}), f"class {found.__qualname__}")
        if self._queued is None and len(self.names) < MOST_PRESETS and id(found) not in self.presets:
            self.presets[id(found)] = len(self.names), found
            self.names.append(key)
        return find, (key,)

    def whole_class(self, found: Any) -> tuple[Any, ...]:
        """Return the definition of a class, but for the data among its attributes, which have definitions of their own."""
        key: str = cloudpickle._get_or_create_tracker_id(found)
        make, args, (members, slots), *_ = cloudpickle._dynamic_class_reduce(found)
        marks, names = _classes.setdefault(found, {}), []
        # What the constructor of an enum has set on its members, which a worker makes from their values alone.
        set_on_members: dict[str, dict[str, Any]] = {}
        if make is cloudpickle._make_skeleton_enum:
            for member in found:
                own = {name: value for name, value in member.__dict__.items() if name not in _OF_EACH_MEMBER}
                if own:
                    set_on_members[member.name] = own
        else:
            names = [name for name, value in members.items() if _is_data(name, value)]
            if "__slots__" in members and typing.NamedTuple not in found.__dict__.get("__orig_bases__", ()):
                # cloudpickle 3.1 sets them when the class is there, whose objects have a dict then, and come back with it.
                args[3]["__slots__"] = members.pop("__slots__")
        empty = {name: type(members[name])() for name in names if type(members[name]) in (dict, list, set)}
        for name in names:
            self._need((key, name), members.pop(name), marks, f"attribute {name!r} of class {found.__qualname__}")
        if not self.is_back and (globals_ := main_with(found)) is not None:
            space, name = _namespace_of(globals_), found.__qualname__
            self._need((space.key, name), found, space.marks, f"global {name!r}")
        state = members, slots, key, tuple(names), empty, set_on_members
        return skeleton, (key, make, (*args[:-2], None, args[-1])), state, None, None, set_class_state

    def function(self, found: Any, *, is_root: bool) -> tuple[Any, ...]:
        """Return what stands for a function that travels by value: its name if it is a global itself, else all of it."""
        space = self._touch(found.__globals__)
        name = found.__name__
        is_global = found.__qualname__ == name and found.__globals__.get(name) is found
        if is_global and not is_root:
            self._need((space.key, name), found, space.marks, f"function {name}")
            return entry, (space.key, name)
        names = cloudpickle._extract_code_globals(found.__code__)
        resolve_lazy(found.__globals__, names)
        state, slots = cloudpickle._function_getstate(found)
        # Without those that the program has deleted a worker that was told of them would still find them.
        gone = dict.fromkeys((name for name in names if name in space.marks and name not in found.__globals__), Gone)
        used: Mapping[str, Any] = {**slots["__globals__"], **gone}
        for used_name, value in used.items():
            self._need(
                (space.key, used_name), value, space.marks, f"global {used_name!r}, which {found.__qualname__} uses"
            )
        slots["__globals__"] = _Reference(entries, space.key, tuple(used))
        code = found.__code__
        closure = None
        if found.__closure__ is not None:
            closure = tuple(cloudpickle._make_empty_cell() for _ in code.co_freevars)
        if is_global:
            make: Any = top_function
            args: tuple[Any, ...] = (space.reference, name, code, closure)
        else:
            make, args = cloudpickle._make_function, (code, space.reference, None, None, closure)
        return make, args, (state, slots), None, None, cloudpickle._function_setstate

    def cached_function(self, found: Any) -> Any:
        """Return what stands for a function under `functools.lru_cache`, which is to have one cache if it is a global."""
        function, name = found.__wrapped__, found.__name__
        if type(function) is not _FUNCTION or is_imported(found):
            return NotImplemented
        space = self._touch(function.__globals__)
        if space.globals.get(name) is not found or (space.key, name) == self._key:
            printed = print_of(found)
            return reduce_cached(found, printed and _digest(printed))
        self._need((space.key, name), found, space.marks, f"function {name}")
        return entry, (space.key, name)

    def global_reference(self, found: Any) -> Any:
        """Return what stands for an object that is also a global: it is to be the same one."""
        if type(found) is object:
            return self._sentinel(found)
        if not self._touched:
            return NotImplemented
        if self._globals is None:
            self._globals = {
                id(value): (space, name)
                for space in self._touched.values()
                for name, value in list(space.globals.items())
                if not isinstance(value, (types.ModuleType, _FUNCTION, type))
            }
        space, name = self._globals.get(id(found), (None, ""))
        if space is None or space.globals.get(name) is not found or (space.key, name) == self._key:
            return NotImplemented
        self._need((space.key, name), found, space.marks, f"global {name!r}")
        return entry, (space.key, name)

    def _sentinel(self, found: Any) -> Any:
        # It may come before, or without, a function that uses it.
        for space in list(_namespaces.values()):
            for name, value in list(space.globals.items()):
                if value is found and (space.key, name) != self._key:
                    self._need((space.key, name), found, space.marks, f"global {name!r}")
                    return entry, (space.key, name)
        return NotImplemented

    def returned_sentinel(self, found: Any) -> Any:
        """Return what stands for an object without anything of its own, which may be a global of the parent's."""
        key = None if self._peer is None else self._peer.key_of_global(found)
        return NotImplemented if key is None else (entry, key)

    def _touch(self, globals_: dict[str, Any]) -> _Namespace:
        space = _namespace_of(globals_)
        if space.key not in self._touched:
            self._touched[space.key] = space
            self._globals = None
        return space

    def _need(self, key: Key, value: Any, marks: Marks, label: str) -> None:
        if key in self.needs:
            return
        if self._queued is not None:
            if key not in self._new and key not in self._queued:
                self._queued[key] = value, marks, f"{label} (for {self._label})" if self._label else label
            return
        memory = self._memory
        if memory is None:
            self.needs.update(self._define_all(key, value, marks, label))
            return
        print_, needs = memory.recall(key, value)
        if needs is None:
            # All of it, also what is defined already for another one.
            before, self.needs = self.needs, {}
            try:
                needs = tuple(self._define_all(key, value, marks, label).values())
            finally:
                self.needs = before
            memory.keep(key, print_, needs)
        for need in needs:
            self.needs.setdefault(need.key, need)

    def _define_all(self, key: Key, value: Any, marks: Marks, label: str) -> dict[Key, Definition]:
        self._queued, self._new = {key: (value, marks, label)}, {}
        try:
            self._define_queued(self._queued)
            return self._new
        finally:
            self._queued, self._new, self._key, self._label = None, {}, "", ""

    def _define_queued(self, queued: dict[Key, tuple[Any, Marks, str]]) -> None:
        while queued:  # which grows meanwhile
            key, (value, marks, label) = next(iter(queued.items()))
            self._define(key, value, marks, label)
            del queued[key]

    def _define(self, key: Key, value: Any, marks: Marks, label: str) -> None:
        self._label = label.split(" (for ", maxsplit=1)[0]
        is_class = isinstance(key, str)
        packer = self._packer
        if packer is None:
            packer = self._packer = self._make_packer(self)
        self._key = key
        try:
            frame = packer.define(value, is_root=is_class or self._is_named(key, value))
        except Exception as error:
            self._packer = None  # its memo may be half done
            if isinstance(error, (DefinitionError, MemoryError)):
                raise
            member = self._blame(value) if is_class else ""
            raise DefinitionError(
                f"{label} travels by value, as what is defined in a script, a notebook or a function does, and can't be "
                f"pickled{member}: {type(error).__name__}: {error}"
            ) from error
        name, mark = None if isinstance(key, str) else key[1], _mark_of(frame)
        last = marks.get(name)
        if last is None or last[0] != mark:
            last = marks[name] = mark, next(_versions)
        self._new[key] = Definition(key, last[1], frame, value if is_class else None)

    def _is_named(self, key: Key, value: Any) -> bool:
        """Tell whether a function is the global that a key stands for."""
        return type(value) is _FUNCTION and key == (_namespace_of(value.__globals__).key, value.__qualname__)

    def _blame(self, found: Any) -> str:
        """Say which member of a class can't be pickled."""
        for name, value in cloudpickle._extract_class_dict(found).items():
            if isinstance(value, (types.GetSetDescriptorType, types.MemberDescriptorType)):
                continue
            try:
                self._make_packer(self).define(value, is_root=False)
            except Exception:  # noqa: BLE001 - whatever it is, this is the member to name
                return f", because of its attribute {name!r}"
        return ""


def _is_data(name: str, value: Any) -> bool:
    is_special = name.startswith(("__", "_abc_"))
    return not (is_special or isinstance(value, type) or hasattr(type(value), "__get__"))


def _mark_of(frame: Any) -> Any:
    """Return what is equal for equal frames."""
    if isinstance(frame, bytes):
        return frame if len(frame) <= _SMALL else _digest(frame)
    return _digest(frame.head), tuple(getattr(buffer, "number", buffer) for buffer in frame.buffers)


def _digest(data: bytes) -> bytes:
    import hashlib  # which few workers need, and which brings OpenSSL

    return hashlib.sha256(data).digest()


class ReferringPickler(Pickler):
    """A pickler that hands a definer what can't be imported."""

    definer: Definer
    #: What is being defined: it is not referred to, but told in full.
    root: Any = None
    #: What is pickled is no value of the user's.
    is_definition = False

    def __init__(self, file: Any, protocol: int, buffer_callback: Any) -> None:
        super().__init__(file, protocol, buffer_callback)
        # By number, with the object, so that its number is not given again.
        self._known: dict[int, tuple[Any, Any]] = {}
        # Types whose objects are pickled as they say themselves.
        self._ordinary: set[type] = set()

    def reducer_override(self, found: Any) -> Any:  # noqa: PLR0911 - each kind is a case of its own, and time counts
        """Return what stands for an object; called for all but those of built-in types."""
        self.has_reduced = True
        kind = type(found)
        if kind in self._ordinary:
            return NotImplemented
        known = self._known.get(id(found))
        if known is not None and found is not self.root:
            return known[1]
        if kind is _FUNCTION:
            return self._function(found)
        try:
            is_class = issubclass(kind, type)
        except TypeError:  # as cloudpickle says, some old extension's objects have no class
            return NotImplemented
        if is_class:
            return self._class(found)
        if isinstance(found, _FUNCTION):
            return super().reducer_override(found)
        if kind in KINDS and self.definer.is_back:
            return NotImplemented
        reduced = self._object(kind, found)
        reduce = self.reducer_of(kind) if reduced is NotImplemented else None
        return reduced if reduce is None else reduce(found)

    def _object(self, kind: Any, found: Any) -> Any:
        """Return what stands for an object that is also a global, or NotImplemented."""
        definer = self.definer
        if definer.is_back:
            if kind is object:
                return definer.returned_sentinel(found)
        elif kind is CACHED:
            return definer.cached_function(found)
        elif self.is_definition or kind is object:
            return definer.global_reference(found)
        if self.reducer_of(kind) is None:
            self._ordinary.add(kind)
        return NotImplemented

    def _class(self, found: Any) -> Any:
        if found in cloudpickle._BUILTIN_TYPE_NAMES or cloudpickle._should_pickle_by_reference(found):
            reduced = super().reducer_override(found)
        elif found is self.root:
            return self.definer.whole_class(found)
        else:
            reduced = self.definer.class_reference(found)
        self._known[id(found)] = found, reduced
        return reduced

    def _function(self, found: Any) -> Any:
        if cloudpickle._should_pickle_by_reference(found):
            self._known[id(found)] = found, NotImplemented
            return NotImplemented
        if self.definer.is_back:
            return self._dynamic_function_reduce(found)
        return self.definer.function(found, is_root=found is self.root)


def needs_of(definer: Definer | None) -> tuple[Definition, ...]:
    """Return what must go ahead of what was packed."""
    return () if definer is None else tuple(definer.needs.values())
