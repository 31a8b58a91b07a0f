"""What a call returns that is no result as it is: generators and coroutines, of which nothing has run, and failures.

A worker whose call is a generator function gives a list per item. All others are errors of their items, on every engine
alike: between processes they can't travel, and within one they would arrive un-run.
"""

from __future__ import annotations

import contextlib
from functools import partial
from types import AsyncGeneratorType, CodeType, CoroutineType, FunctionType, GeneratorType, MethodType
from typing import TYPE_CHECKING, Any

from ._failure import Failure

if TYPE_CHECKING:
    from collections.abc import Callable

# The bits of a code object's flags. `inspect`, which knows them by name, is not imported in workers for that.
_GENERATOR, _ASYNC = 0x20, 0x80 | 0x200

_NAMES: dict[type, str] = {
    GeneratorType: "a generator",
    CoroutineType: "a coroutine",
    AsyncGeneratorType: "an async generator",
}
#: The exact types of what an async function gives.
AWAITED = frozenset({CoroutineType, AsyncGeneratorType})
#: The exact types of what has not run.
LAZY = frozenset(_NAMES)
#: And of what else is no result as it is.
UNUSUAL = LAZY | {Failure}


class OverTimeError(Exception):
    """Raised for a call that was cancelled because it was over its time."""


def is_generator_function(target: Any) -> bool:
    """Tell whether calling something makes a generator, also behind decorators that say what they wrap."""
    return bool(_flags_of(target) & _GENERATOR)


def is_async(target: Any) -> bool:
    """Tell whether something is an async function, or an object whose call is one."""
    return bool(_flags_of(target, through_wrappers=False) & _ASYNC)


def may_be_async(target: Any) -> bool:
    """Tell whether calling something may make a coroutine on purpose: a decorator that says what it wraps may await it itself."""
    return bool(_flags_of(target) & _ASYNC)


def is_async_class(build: Any) -> bool:
    """Tell whether something is a class the calls of whose objects are to be awaited."""
    call = next((base.__dict__["__call__"] for base in _mro_of(build) if "__call__" in base.__dict__), None)
    return is_async(getattr(call, "__func__", call))


def calls_object(function: Any) -> bool:
    """Tell whether a function is `call_worker`, which calls the worker's object."""
    return isinstance(function, FunctionType) and function.__code__ in callers_of_object


#: The code of such functions.
callers_of_object: set[CodeType] = set()


def _mro_of(build: Any) -> tuple[type, ...]:
    return build.__mro__ if isinstance(build, type) else ()


def _flags_of(target: Any, *, through_wrappers: bool = True) -> int:
    for _ in range(100):  # as deep as nobody decorates; a proxy may wrap itself
        if isinstance(target, partial):
            target = target.func
        elif isinstance(target, MethodType):
            target = target.__func__
        elif isinstance(target, FunctionType):
            wrapped = target.__dict__.get("__wrapped__")
            if wrapped is None or not through_wrappers:
                return target.__code__.co_flags
            target = wrapped
        else:
            call = next(
                (base.__dict__["__call__"] for base in type(target).__mro__ if "__call__" in base.__dict__), None
            )
            if isinstance(call, (staticmethod, classmethod)):
                call = call.__func__
            if not isinstance(call, (FunctionType, partial)):
                return 0
            target = call
    return 0


def run(value: Any, target: Any) -> list[Any]:
    """Return what a generator yields; raise a failure, or a TypeError for what is not the generator of a worker that is one.

    Parameters
    ----------
    value
        One of the types in `UNUSUAL`.
    target
        What was called with the item; None where that is not the worker's own call.
    """
    if type(value) is Failure:
        raise value.exception
    if is_own_generator(value, target):
        return list(value)
    raise _refusal(value)


def is_own_generator(value: Any, target: Any) -> bool:
    """Tell whether something is the generator of a worker whose call is a generator function."""
    return type(value) is GeneratorType and is_generator_function(target)


def _refusal(value: Any) -> TypeError:
    kind = type(value)
    if kind is not AsyncGeneratorType:
        with contextlib.suppress(BaseException):  # nothing of it has run, so that nothing can be in its way
            value.close()  # or Python would complain that it was never awaited
    what = _NAMES[kind]
    if kind is GeneratorType:
        advice = (
            "Return list(...) of it; the worker's own call may be a generator function, and gives a list then "
            "(stateful_map only)."
        )
    else:
        advice = (
            "It is awaited only where what is called is an async function itself, or an object whose __call__ is one. Make it "
            "that (async def), in which you return await ..., or return asyncio.run(...)."
        )
    return TypeError(
        f"The call returned {what}, {getattr(value, '__qualname__', '?')}, of which nothing has run. {advice}"
    )


def call_all(batch: Callable[[], list[Any]]) -> list[Any]:
    """Return the results of a batch of joblib's, none of which may be un-run."""
    results = batch()
    if type(results) is list:
        for value in results:
            if type(value) is Failure:
                raise value.exception
            if type(value) in LAZY:
                raise _refusal(value)
    return results
