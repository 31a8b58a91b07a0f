"""How values are pickled of libraries that don't hand out their buffers by themselves, so that these travel as numpy's do.

Each table is only loaded when its library is there, in either process. What a table doesn't take (a tensor on a GPU, a frame
with objects of Python's in it) is pickled as it pickles itself. Users add to them.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import pickle
import sys
import types
from typing import TYPE_CHECKING, Any, NamedTuple

from cloudpickle import cloudpickle as inside

from ._reducing import private

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ._reducing import Reduce
    from ._tensors import Tensors


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


def _table_in(module: str, name: str) -> Callable[[Any], dict[type, Reduce]]:
    """Return what makes the table of a library, once that is given."""

    def table(library: Any) -> dict[type, Reduce]:
        found: dict[type, Reduce] = getattr(importlib.import_module(module, __package__), name)(library)
        return found

    return table


#: What makes a table out of a module, until that is there.
_waiting: list[tuple[str, Callable[[Any], dict[type, Reduce]]]] = [
    ("numpy", _table_in("._arrays", "table")),
    ("numpy.random", _table_in("._by_name", "table_of_numpy")),
    ("torch", _table_in("._tensors", "table")),
    ("pyarrow", _table_in("._columns", "table_of_arrow")),
    ("polars", _table_in("._columns", "table_of_polars")),
    ("jax", _table_in("._columns", "table_of_jax")),
]


def tensors_of(found: dict[type, Reduce], *, is_whole: bool) -> Tensors | None:
    """Return what pickles the tensors of one frame, if torch is among what was found."""
    torch = sys.modules.get("torch")
    if torch is None or getattr(torch, "UntypedStorage", None) not in found:
        return None
    from ._tensors import Tensors

    return Tensors(torch, is_whole=is_whole)


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
    module, name = str(getattr(found, "__module__", "")), str(getattr(found, "__qualname__", ""))
    # Of a package a class may name a part that is only imported when it is asked for (numpy.rec).
    home = module if module in sys.modules else module.partition(".")[0]
    there = sys.modules.get(home)
    is_by_value = there is None or home == "__main__" or inside._is_registered_pickle_by_value(there)
    if name and not is_by_value and _named(home, name) is found:
        return home, name
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
