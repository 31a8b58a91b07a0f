"""What values refer to by name: classes and globals that travel by value, once per worker and version.

A class of a script, a notebook or a REPL can't be imported by a worker, so that cloudpickle puts all of it into each
pickle, and each pickle that arrives sets it anew. Here a value holds only the class's key. Its definition goes ahead of
the value, in a frame of its own, and only to those who don't have it, or not in this version. `Peer` is what one side of
a line knows of the other; how definitions are made is in `_defining`.

Keys are a string for a class (cloudpickle's own, so that it is one and the same wherever it goes), and a pair for what
has a name within something: a global of a namespace, an attribute of a class.
"""

from __future__ import annotations

import itertools
import sys
import threading
import types
import uuid
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from cloudpickle import cloudpickle

from .._process._system import after_fork
from ._main import PREFIX, MainModule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

Key: TypeAlias = "str | tuple[str, str]"

# After so many definitions a peer is told to forget those that nothing there uses, which programs that make a class for
# each item would otherwise pile up. Telling it again costs a message 0.1 ms per class (`benchmarks/classes.py`).
_MOST_KNOWN = 1000
# Tells a peer to assume that this side has nothing.
_LOST = 0


class Definition(NamedTuple):
    """What a key stands for, as it is at one moment."""

    key: Key
    version: int  # a later one has a larger number
    frame: Any
    value: Any = None  # the class itself; it stays here

    def sent(self) -> tuple[Key, int, Any]:
        """Return what travels of it."""
        return self.key, self.version, self.frame

    def with_frame(self, frame: Any) -> Definition:
        """Return it with its frame changed."""
        return self._replace(frame=frame)


class Gone:
    """What comes for a global that the program had, and has no more."""


class Peer:
    """What one side of a line knows of the other, for one life of a worker.

    Parameters
    ----------
    is_parent : bool
        This side's own classes are never changed by what comes from the other.
    """

    def __init__(self, *, is_parent: bool) -> None:
        self.is_parent = is_parent
        self._is_near = False  # both sides are in one process, which has all of it already
        self._known: dict[Key, int] = {}  # versions that the other side has from here
        self._own: dict[str, Any] = {}  # classes of this side that the other side may name
        self._held: dict[str, Any] = {}  # classes from the other side that it surely knows
        self._alive: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()  # those and earlier ones
        self._given: weakref.WeakSet[Any] = (
            weakref.WeakSet()
        )  # this side's own that were described to it: left as they are
        #: Something that the other side has sent did not arrive, and it is to be told.
        self.has_lost = False
        self._versions: dict[Key, int] = {}
        self._namespaces: dict[str, dict[str, Any]] = {}
        self._main: MainModule | None = None  # of this side's process, before something comes of the program's
        self._mains: dict[str, MainModule] = {}  # by their namespaces
        self._has_process = False
        # Frames that have come, until they are loaded; those that could not be loaded are tried again when asked for.
        self._unloaded: dict[Key, tuple[int, Any]] = {}
        self._load: Callable[[Any], Any] = _nothing
        # Classes that are being loaded and can't be referred to yet, and attributes that may refer to them.
        self._making: set[str] = set()
        self._waiting: list[tuple[str, tuple[str, ...]]] = []

    def use_process(self) -> None:
        """Have what comes of the program's ``__main__`` be this process's own, which is for the other side alone."""
        self._has_process = True
        self._main = MainModule()
        self._main.be_current()

    # --- what goes to the other side --------------------------------------------------------------------

    def has(self, key: str, found: Any) -> bool:
        """Tell whether a class came from the other side, which need not be told what it is."""
        return self._is_near or self._held.get(key) is found

    def take(self, needs: Iterable[Definition], *, again: bool = False) -> tuple[Any, ...]:
        """Return what must be sent ahead of values with these needs; from now on the other side has it.

        With ``again`` also what was sent before, because that may arrive later.
        """
        known = self._known
        news = [need for need in needs if (again or known.get(need.key, 0) < need.version) and not self._has_made(need)]
        if not news and not self.has_lost:
            return ()
        start: tuple[Any, ...] = (_LOST,) if self.has_lost else ()
        self.has_lost = False
        if len(known) > _MOST_KNOWN:
            known.clear()
            self._own.clear()
            start, news = (*start, None), [need for need in needs if not self._has_made(need)]
        for key, version, _, value in news:
            known[key] = version
            if isinstance(key, str):
                self._own[key] = value
        return (_process[0], *start, *(need.sent() for need in news))

    def _has_made(self, need: Definition) -> bool:
        return isinstance(need.key, str) and self.has(need.key, need.value)

    def start_anew(self) -> None:
        """Assume that the other side has nothing: something that was sent may not have arrived."""
        self._known.clear()

    # --- what comes from the other side -----------------------------------------------------------------

    def receive(
        self,
        definitions: Iterable[Any],
        load: Callable[[Any], Any],
        lets_through: tuple[type[BaseException], ...] = (),
    ) -> None:
        """Take definitions; what is wrong with one is said to whoever asks for it."""
        self._load = load
        for definition in definitions:
            if isinstance(definition, str):
                self._is_near = definition == _process[0]
                if self._is_near:
                    return
                continue
            self._take_in(definition)
        previous, _here.peer = _here.peer, self
        try:
            for key in list(self._unloaded):
                if key not in self._unloaded or (isinstance(key, tuple) and key[0] in self._unloaded):
                    continue  # attributes come with their class
                try:
                    self._load_definition(key)
                except lets_through:
                    raise
                except BaseException:  # noqa: BLE001, S112 - users' code; it is raised again where it is needed
                    continue
        finally:
            _here.peer = previous

    def _take_in(self, definition: Any) -> None:
        if definition is None:
            self._forget()
        elif definition == _LOST:
            self.start_anew()
        else:
            key, version, frame = definition
            if not self._is_here(key, version):
                self._unloaded[key] = version, frame

    def find(self, key: str) -> Any:
        """Return a class; raises what kept it from being loaded."""
        if key in self._unloaded:
            self._load_definition(key)
        found = self._held.get(key)
        if found is None:
            found = self._own.get(key)
        if found is None:
            found = self.existing(key)
        if found is None:
            raise LookupError("a class that travels by value is not known here any more")
        return found

    def existing(self, key: str) -> Any:
        """Return a class that is here already, or None."""
        found = self._alive.get(key)
        if found is None and (self.is_parent or self._is_near):
            found = cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID.get(key)
        return found

    def register(self, key: str, made: Any) -> None:
        """Note a class that was made just now, and is still empty."""
        self._held[key] = self._alive[key] = made
        self._made(key)
        with cloudpickle._DYNAMIC_CLASS_TRACKER_LOCK:  # for whatever users pickle by themselves
            cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS[made] = key
            cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID.setdefault(key, made)

    def namespace(self, name: str, base: Mapping[str, Any]) -> dict[str, Any]:
        """Return the globals that functions from one module share."""
        if self._is_near:
            return own_namespaces[name].globals  # type: ignore[no-any-return]  # see there
        found = self._globals_of(name)
        for known, value in base.items():
            found.setdefault(known, value)  # one of its globals may have come, and made it, ahead of its functions
        if name in self._mains:
            self._mains[name].complete()
        return found

    def _globals_of(self, owner: str) -> dict[str, Any]:
        found = self._namespaces.get(owner)
        if found is None:
            found = {}
            if self._has_process and owner.startswith(PREFIX):
                # The first one is there before any code of the user's, which may have put something into it.
                main, self._main = self._main or MainModule(), None
                self._mains[owner], found = main, main.globals
            self._namespaces[owner] = found
        if owner in self._mains:
            self._mains[owner].be_current()
        return found

    def entry(self, owner: str, name: str) -> Any:
        """Return a global of a namespace."""
        if self._is_near:
            return own_namespaces[owner].globals[name]
        if self.is_parent:  # only what has nothing but its identity is named on the way back
            known = own_namespaces.get(owner)
            found = None if known is None else known.globals.get(name)
            return found if type(found) is object else object()
        if (owner, name) in self._unloaded:
            self._load_definition((owner, name))
        return self._namespaces[owner][name]

    def key_of_global(self, found: Any) -> tuple[str, str] | None:
        """Return which global from the other side an object is."""
        for owner, globals_ in self._namespaces.items():
            for name, value in list(globals_.items()):
                if value is found:
                    return owner, name
        return None

    def require(self, owner: str, names: Iterable[str]) -> None:
        """Have some globals of a namespace, or attributes of a class, loaded."""
        for name in names:
            if (owner, name) in self._unloaded:
                self._load_definition((owner, name))

    def require_attributes(self, owner: str, names: tuple[str, ...]) -> None:
        """Have attributes of a class loaded, as soon as all classes that are being loaded can be referred to.

        A registry on a base class holds its subclasses, and to make one of those takes the base class.
        """
        self._waiting.append((owner, names))
        self._made(owner)

    def _made(self, key: str) -> None:
        self._making.discard(key)
        while self._waiting and not self._making:
            self.require(*self._waiting.pop(0))

    def _is_here(self, key: Key, version: int) -> bool:
        is_class = isinstance(key, str)
        owner = key if isinstance(key, str) else key[0]
        if owner in self._own:
            return True
        found = self._alive.get(owner)
        if found is None and self.is_parent and (found := self.existing(owner)) is not None:
            self._alive[owner] = found
            self._given.add(found)
        if found is None:
            return not is_class and owner in self._namespaces and self._versions.get(key, 0) >= version
        is_here = found in self._given or self._versions.get(key, 0) >= version
        if is_here and is_class:
            self._held[owner] = found
        return is_here

    def _load_definition(self, key: Key) -> None:
        version, frame = self._unloaded.pop(key)
        before = self._versions.get(key, 0)
        self._versions[key] = version
        try:
            if isinstance(key, str):
                if self.existing(key) is None:
                    self._making.add(key)
                self._load(frame)
            else:
                self._assign(*key, self._load_entry(key[0], frame))
        except BaseException:
            self._versions[key] = before
            self._unloaded[key] = version, frame
            if isinstance(key, str):
                self._making.discard(key)
                self._waiting = [(owner, names) for owner, names in self._waiting if owner != key]
                if not before:
                    self._held.pop(key, None)  # it is half done
                    self._alive.pop(key, None)
            raise

    def _load_entry(self, owner: str, frame: Any) -> Any:
        try:
            return self._load(frame)
        except Exception:
            found = None if self.is_parent else self._held.get(owner)
            if found is None or "__new__" not in found.__dict__:
                raise
        # A singleton: its constructor looks for the attribute that it is.
        constructor = found.__dict__["__new__"]
        type.__delattr__(found, "__new__")
        try:
            return self._load(frame)
        finally:
            type.__setattr__(found, "__new__", constructor)

    def _assign(self, owner: str, name: str, value: Any) -> None:
        if value is Gone:
            self._namespaces.get(owner, {}).pop(name, None)
            return
        if owner in self._namespaces:
            self._globals_of(owner)[name] = value
            return
        found = self._held.get(owner)
        if found is None:
            found = self.existing(owner)
        if found is None:
            self._globals_of(owner)[name] = value
        else:
            setattr(found, name, value)

    def _forget(self) -> None:
        """Hold no longer what nothing else here uses."""
        self._held.clear()
        self._unloaded.clear()
        self._mains = {owner: main for owner, main in self._mains.items() if main.is_current}
        # One reference is the table's, one `getrefcount`'s own.
        for name in [name for name in self._namespaces if sys.getrefcount(self._namespaces[name]) <= 2]:  # noqa: PLR2004
            del self._namespaces[name]
        self._versions = {
            key: version
            for key, version in self._versions.items()
            if (owner := key if isinstance(key, str) else key[0]) in self._namespaces or owner in self._alive
        }


#: Those of this process, by their keys; each has its ``globals``.
own_namespaces: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
# What tells this process from others, by which it is seen that a peer is no other one.
_process = [uuid.uuid4().hex]


def _be_another_process() -> None:
    _process[0] = uuid.uuid4().hex


after_fork(_be_another_process)


def _nothing(_: Any) -> Any:
    raise LookupError("nothing has come yet")


# --- what frames call when they are loaded ---------------------------------------------------------------


class _Here(threading.local):
    peer: Peer | None = None


_here = _Here()


class active:  # noqa: N801 - used like a function
    """Have what is loaded within the block refer to what one peer has sent."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def __enter__(self) -> None:
        self._previous, _here.peer = _here.peer, self._peer

    def __exit__(self, *_: object) -> None:
        _here.peer = self._previous


def _peer() -> Peer:
    peer = _here.peer
    if peer is None:
        raise LookupError("this pickle refers to definitions that travel beside it")
    return peer


def find(key: str) -> Any:
    """Return a class by its key."""
    return _peer().find(key)


def entry(owner: str, name: str) -> Any:
    """Return a global by its namespace and name."""
    return _peer().entry(owner, name)


def namespace(name: str, base: Mapping[str, Any]) -> dict[str, Any]:
    """Return the globals of functions."""
    return _peer().namespace(name, base)


def entries(owner: str, names: tuple[str, ...]) -> dict[str, Any]:
    """Have globals loaded; return what is still to be set, which is nothing."""
    _peer().require(owner, names)
    return {}


def skeleton(key: str, make: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Return an empty class, or the one that there is already."""
    peer = _peer()
    made = peer.existing(key)
    if made is None:
        is_elsewhere = make is cloudpickle._make_skeleton_class and not peer.is_parent
        made = _make_quietly(*args[:4]) if is_elsewhere else make(*args)
        peer.register(key, made)
    return made


def _make_quietly(kind: Any, name: str, bases: tuple[Any, ...], members: dict[str, Any]) -> Any:
    """Return an empty class, as if nobody was told of it.

    What ``__init_subclass__`` and metaclasses that travel by value do about a new class has been done in the parent, with
    all that is in the class and with its keywords, and what came of it travels with them.
    """
    resolved = types.resolve_bases(bases)
    maker = next(known for known in kind.__mro__ if known not in cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS)
    hooks = [
        (base, base.__dict__["__init_subclass__"])
        for base in dict.fromkeys(itertools.chain.from_iterable(found.__mro__ for found in resolved))
        if "__init_subclass__" in base.__dict__ and base in cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS
    ]
    try:
        for base, _ in hooks:
            type.__delattr__(base, "__init_subclass__")
        if maker is kind:
            return types.new_class(name, bases, {"metaclass": kind}, lambda namespace: namespace.update(members))
        made = maker.__new__(kind, name, resolved, {**members})
        maker.__init__(made, name, resolved, {**members})
        return made
    finally:
        for base, hook in hooks:
            type.__setattr__(base, "__init_subclass__", hook)


def set_class_state(
    made: Any,
    state: tuple[dict[str, Any], Any, str, tuple[str, ...], dict[str, Any], dict[str, dict[str, Any]]],
) -> None:
    """Fill an empty class, or bring one up to date: what is no longer there goes."""
    members, slots, key, names, empty, set_on_members = state
    now = {*members, *names}
    for name in _members.get(made, now) - now:
        try:
            delattr(made, name)
        except AttributeError:  # the worker's own code has done it
            continue
    _members[made] = now
    cloudpickle._class_setstate(made, (members, slots))
    for name, attributes in set_on_members.items():
        made[name].__dict__.update(attributes)
    for name, container in empty.items():
        if name not in made.__dict__:  # objects within it may look into it when they are made
            setattr(made, name, container)
    _peer().require_attributes(key, names)


# The names of what came with each class.
_members: weakref.WeakKeyDictionary[Any, set[str]] = weakref.WeakKeyDictionary()


def top_function(globals_: dict[str, Any], name: str, code: Any, closure: Any) -> Any:
    """Return a function that is a global itself, which it is at once: what it refers to may refer to it."""
    made = globals_[name] = cloudpickle._make_function(code, globals_, None, None, closure)
    return made


def frames_of(definitions: tuple[Any, ...]) -> Iterator[Any]:
    """Return the frames of definitions as they are sent."""
    return (definition[2] for definition in definitions if isinstance(definition, tuple))
