"""From what users pass as ``worker`` to a `WorkerSpec` that can be sent, compared and refused early."""

from __future__ import annotations

import functools
import inspect
import operator
import types
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, ParamSpec, TypeVar

from .. import errors
from .._scheduling._requests import Target, WorkerSpec
from .._transport._code import source_of
from .._transport._defining import DefinitionError, needs_of
from .._transport._setting_aside import SharedFrame
from .._transport._transport import ByReference, digest
from .._words import a, short
from .._worker._lazy import may_be_async

if TYPE_CHECKING:
    from .._transport._definitions import Definition
    from .._transport._transport import Transport

P = ParamSpec("P")
W = TypeVar("W")
W_co = TypeVar("W_co", covariant=True)


class Factory(Generic[W_co]):
    """A function that builds the worker's object; made by `factory`."""

    def __init__(self, function: Callable[..., W_co]) -> None:
        self.function = function

    def __repr__(self) -> str:
        return f"factory({name_of(self.function)})"


def factory(function: Callable[..., W]) -> Factory[W]:
    """Mark a function as one that builds the worker's object.

    Parameters
    ----------
    function : callable
        Called once in each worker with its kwargs; what it returns is the worker's object.

    Returns
    -------
    Factory
        To be passed as ``worker``.

    Raises
    ------
    TypeError
        ``function`` is not callable.

    Examples
    --------
    >>> from joblib_stateful import factory, stateful_map
    >>> def open_multiplier(by):
    ...     return by.__mul__
    >>> list(stateful_map(factory(open_multiplier), [1, 2], n_jobs=1, shared_kwargs={"by": 10}, engine="inline"))
    [10, 20]
    """
    if not callable(function):
        raise TypeError(f"factory() takes a function that builds the worker's object, not {function!r}.")
    return Factory(function)


def make_spec(
    worker: Any,
    shared_kwargs: Mapping[str, Any] | None,
    worker_kwargs: Sequence[Mapping[str, Any]] | None,
) -> WorkerSpec:
    """Return the spec of a worker class, a partial of one, or a `Factory`; nothing to build for other callables."""
    shared = _check_kwargs("shared_kwargs", shared_kwargs)
    own = _check_worker_kwargs(worker_kwargs)
    build, args, preset = _unfold(worker)
    if build is None:
        if worker is not None and not callable(worker):
            raise TypeError(
                f"worker must be a class, factory(function), a callable or a StatefulExecutor, not {worker!r}.",
            )
        if shared or any(own or ()):
            named = ", ".join(sorted({*shared, *(key for kwargs in own or () for key in kwargs)}))
            if worker is None:
                given = "shared_kwargs" if shared else "worker_kwargs"
                raise TypeError(
                    f"{given} ({named}) are what each worker's object is built from, and no worker was given that says "
                    f"what to build. Write worker=YourClass beside {given}, or leave {given} out.",
                )
            raise TypeError(
                f"{name_of(worker)} is a stateless function: it is called with each item, and nothing is built from "
                f"kwargs ({named}). If it is to be called once per worker with these kwargs and to return the "
                f"worker's object, write factory({name_of(worker)}); to fix its arguments, use functools.partial.",
            )
        return WorkerSpec(None, (), {}, own)
    spec = WorkerSpec(build, args, {**preset, **shared}, own)
    for slot in range(1 if own is None else len(own)):
        _check_signature(spec, slot)
    return spec


def _unfold(worker: Any) -> tuple[Callable[..., Any] | None, tuple[Any, ...], dict[str, Any]]:
    """Return what builds the object, with arguments fixed by a partial; None for a stateless callable."""
    inner: Any = worker.function if isinstance(worker, Factory) else worker
    args: tuple[Any, ...] = ()
    preset: dict[str, Any] = {}
    if isinstance(inner, functools.partial):
        inner, args, preset = inner.func, inner.args, inner.keywords
    if isinstance(worker, Factory):
        return inner, args, preset
    if not inspect.isclass(inner):
        return None, (), {}
    if not any("__call__" in base.__dict__ for base in inner.__mro__):
        raise TypeError(
            f"Objects of class {inner.__qualname__} can't be called: stateful_map builds one per worker and calls "
            f"it with each item. Give the class a __call__ method; or, if {inner.__qualname__}(item) itself is to "
            f"be called with each item, pass `lambda item: {inner.__qualname__}(item)`.",
        )
    return inner, args, preset


def _check_kwargs(what: str, kwargs: Any) -> dict[str, Any]:
    if kwargs is None:
        return {}
    if not isinstance(kwargs, Mapping) or not all(isinstance(key, str) for key in kwargs):
        raise TypeError(f"{what} must be a dict with argument names as keys, not {short(kwargs)}.")
    return dict(kwargs)


def _check_worker_kwargs(worker_kwargs: Any) -> tuple[dict[str, Any], ...] | None:
    if worker_kwargs is None:
        return None
    if isinstance(worker_kwargs, (Mapping, str)) or not isinstance(worker_kwargs, Sequence):
        raise TypeError(
            f"worker_kwargs must be a list with one dict per worker, not {a(type(worker_kwargs).__name__)}. "
            "Kwargs that are the same for all workers go to shared_kwargs.",
        )
    if not worker_kwargs:
        raise ValueError("worker_kwargs is empty; give one dict per worker, or leave it out.")
    return tuple(_check_kwargs(f"worker_kwargs[{i}]", kwargs) for i, kwargs in enumerate(worker_kwargs))


def _check_signature(spec: WorkerSpec, slot: int) -> None:
    assert spec.build is not None  # noqa: S101 - called for specs that build something
    try:
        signature = inspect.signature(spec.build)
    except Exception:  # noqa: BLE001 - some C callables don't tell theirs, some annotations can't be evaluated
        return
    kwargs = spec.kwargs(slot)
    try:
        signature.bind(*spec.args, **kwargs)
    except TypeError as error:
        where = "" if spec.worker_kwargs is None else f" (with worker_kwargs[{slot}])"
        raise TypeError(
            f"{name_of(spec.build)} can't be called with the kwargs given{where}: {error}. Given: "
            f"{', '.join(sorted(kwargs)) or 'none'}; its signature is {name_of(spec.build)}{signature}.",
        ) from None


def name_of(function: Any) -> str:
    """Return what a function or class is called."""
    return getattr(function, "__qualname__", None) or repr(function)


class PackedSpec:
    """A spec in the form in which it goes to workers; packed once."""

    def __init__(self, spec: WorkerSpec, transport: Transport) -> None:
        self.spec = spec
        self._own: list[Any] | None = None
        self._common = None
        #: What it refers to.
        self.needs: tuple[Definition, ...] = ()
        if spec.build is None:
            return
        definer = transport.definer()
        try:
            self._common = transport.pack_shared((spec.build, spec.args, dict(spec.shared_kwargs)), definer)
            if spec.worker_kwargs is not None:
                self._own = [transport.pack_shared(dict(kwargs), definer) for kwargs in spec.worker_kwargs]
            self.needs = needs_of(definer)
        except Exception as error:
            raise TypeError(_unpicklable(spec, transport, error)) from error

    def for_slot(self, slot: int) -> tuple[Any, Any] | None:
        """Return what the `Build` message of a slot carries."""
        if self.spec.build is None:
            return None
        return self._common, None if self._own is None else self._own[slot]


def _unpicklable(spec: WorkerSpec, transport: Transport, error: Exception) -> str:
    parts = [(f"the worker {name_of(spec.build)}", spec.build), ("an argument fixed by partial", spec.args)]
    parts += [(f"kwarg {key!r}", value) for key, value in spec.shared_kwargs.items()]
    for slot, own in enumerate(spec.worker_kwargs or ()):
        parts += [(f"worker_kwargs[{slot}][{key!r}]", value) for key, value in own.items()]
    if isinstance(error, DefinitionError):  # which names it
        parts = []
    culprit = "the worker or its kwargs"
    for what, value in parts:
        try:
            transport.pack(value)
        except Exception as inner:  # noqa: BLE001 - whatever it is, this is the part to name
            culprit, error = what, inner
            break
    reason = f"{type(error).__name__}: {error}".rstrip(".")
    advice = "Pass what it is made from instead (a path, a host name) and build it in the constructor, which runs inside each worker."
    if "through inheritance" in reason:
        advice = errors.how_to_send(reason)
    return f"{culprit} can't be pickled to be sent to the workers: {reason}. {advice}"


class SpecKey(NamedTuple):
    """What tells specs apart: what is the same in all slots, and the kwargs that each has of its own."""

    common: Hashable
    own: tuple[Hashable, ...] | None

    def of_first(self, n_slots: int) -> SpecKey:
        """Return the key for the first so many slots."""
        return self if self.own is None else self._replace(own=self.own[:n_slots])

    def of_slot(self, slot: int) -> Hashable:
        """Return what one slot has of its own."""
        return None if self.own is None else self.own[slot]


def spec_key(spec: WorkerSpec, transport: Transport) -> SpecKey:
    """Return what tells specs apart: a class or function, and what travels of it; kwargs by what they hold."""
    own = None if spec.worker_kwargs is None else tuple(_kwargs_key(kwargs, transport) for kwargs in spec.worker_kwargs)
    args = tuple(_value_key(value, transport) for value in spec.args)
    return SpecKey((_identity(spec.build, transport), args, _kwargs_key(spec.shared_kwargs, transport)), own)


def _identity(build: Any, transport: Transport) -> Hashable:
    # Each access to a bound method, such as Model.from_pretrained, makes a new object.
    if isinstance(build, types.MethodType):
        return _identity(build.__self__, transport), _identity(build.__func__, transport)
    is_code = inspect.isclass(build) or inspect.isfunction(build)
    if build is None or (is_code and isinstance(transport, ByReference)):  # see `Source` in `_code`
        return id(build)
    # It goes to the workers with all that it uses, if it is of a script or a notebook, and with what it holds.
    return id(build), _value_key(build, transport)


def version_of(spec: WorkerSpec, transport: Transport) -> Hashable:
    """Return what changes when the code of a worker is edited that travels by value."""
    if isinstance(transport, ByReference):
        return None if spec.build is None else source_of(spec.build).code
    return _identity(spec.build, transport)


def holds_the_same(held: WorkerSpec, asked: WorkerSpec, key: SpecKey, transport: Transport) -> bool:
    """Tell whether objects that were built from one spec may be used for another one; both had the same key.

    Where values are passed by reference, they can have changed what they were built from.
    """
    if not isinstance(transport, ByReference) or all(map(operator.is_, _values(held), _values(asked))):
        return True
    return spec_key(held, transport) == key


def _values(spec: WorkerSpec) -> Iterator[Any]:
    yield from spec.args
    for kwargs in (spec.shared_kwargs, *(spec.worker_kwargs or ())):
        for _, value in sorted(kwargs.items()):
            yield value


def _kwargs_key(kwargs: Mapping[str, Any], transport: Transport) -> Hashable:
    # Value by value, so that equal values give equal bytes whether or not they are the same object.
    return frozenset((key, _value_key(value, transport)) for key, value in kwargs.items())


def _value_key(value: Any, transport: Transport) -> Hashable:
    try:
        return transport.identify(value)
    except Exception:  # noqa: BLE001 - what can't be pickled (engines within this process) is told by identity
        return f"id {id(value)}"


def pack_function(function: Callable[..., Any], transport: Transport) -> Target:
    """Return a function packed, for calls that bring their own."""
    definer = transport.definer()
    try:
        packed = transport.pack_shared(function, definer)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".rstrip(".")
        advice = (
            "If it needs something that can't travel (a lock, a connection), write a class that makes it in its constructor, "
            "which runs inside each worker, and pass that class."
        )
        if "through inheritance" in reason:
            advice = errors.how_to_send(reason)
        raise TypeError(
            f"{name_of(function)} can't be pickled to be sent to the workers: {reason}. {advice}",
        ) from error
    needs = needs_of(definer)
    told = packed
    if isinstance(packed, SharedFrame):
        told = packed.head + repr([place.number for place in packed.buffers]).encode()
    elif not isinstance(packed, bytes):
        return Target(f"id {id(function)}", packed, needs, may_be_async(function))
    versions = repr([(need.key, need.version) for need in needs])
    return Target(digest(told + versions.encode()).hex(), packed, needs, may_be_async(function))
