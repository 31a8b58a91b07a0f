"""Maps that would start more and more workers, or wait for themselves, are refused at the call.

A worker imports the module of the function that it is sent. If that module maps something while it is imported, each worker
would do so again; and the parent's own import, in whose middle the map runs, can't end before the results are there.
"""

from __future__ import annotations

import functools
import sys
import types
from typing import TYPE_CHECKING, Any, TypeGuard

import cloudpickle

from .. import errors
from .._transport._transport import ByReference
from .._worker._signals import caller_of, is_in_users_call
from .._worker._worker import current

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..engines import Engine, Runtime

# Workers of the program's map, workers that those start, and workers that these start: with two each that is 14 processes.
# joblib itself goes no deeper than two, and then runs calls one after the other.
_MOST_DEEP = 2

_INSTEAD = (
    'Put the call into a function that is called once the module is imported, or under `if __name__ == "__main__":` in '
    "the program itself"
)


def depth_of(engine: Engine) -> int:
    """Return how deep the workers of a new executor would be: 0 for those that the main program starts.

    Raises
    ------
    errors.EngineError
        That is too deep.
    """
    inside = current()
    depth = 0 if inside is None else inside.depth + 1
    if engine.is_synchronous:  # it adds no worker
        return depth - 1
    if depth > _MOST_DEEP:
        raise errors.EngineError(
            f"This map or executor was started in a worker of a map that was itself started in a worker, {depth} deep: each "
            "level has as many workers for every one of those above it. Likely cause: a function that, directly or by way "
            'of others, maps itself. Run the inner calls one after the other, in a plain loop or with engine="inline", and '
            "give the workers to the outermost map.",
        )
    return depth


def check_call(function: Any, runtime: Runtime) -> None:
    """Raise `EngineError` if a function or class can't be sent to workers at this point of the program.

    Parameters
    ----------
    function
        What was passed as worker, or what is called in one.
    runtime
        What opens the workers where it shall run.
    """
    if runtime.engine.is_synchronous:
        return
    if current() is not None:
        _refuse_while_loading()
        _refuse_itself(function)
    if not isinstance(runtime.transport, ByReference):
        for named in _parts_of(function):
            _refuse_while_importing(named)


def _parts_of(function: Any) -> Iterator[Any]:
    """Return the functions and classes that a worker has to import for something to be called there."""
    for _ in range(100):  # a proxy may hold itself
        if isinstance(function, functools.partial):
            function = function.func
        elif isinstance(function, types.MethodType):
            yield _named(function.__self__)
            function = function.__func__
        elif type(function).__name__ == "Factory" and hasattr(function, "function"):
            function = function.function
        else:
            break
    yield _named(function)


def _named(value: Any) -> Any:
    return value if isinstance(value, (type, types.FunctionType)) else type(value)


def _refuse_while_importing(named: Any) -> None:
    name = getattr(named, "__module__", None)
    if not isinstance(name, str) or name == "__main__" or "<" in named.__qualname__:  # these go by value
        return
    found = _being_imported(name)
    if found is None or not _is_imported_here(found) or name in cloudpickle.list_registry_pickle_by_value():
        return
    raise errors.EngineError(
        f"{named.__qualname__} can't be sent to workers yet: its module {name} is still being imported, and "
        f"{'that' if found == name else f'its package {found}'} is what this call is part of. Each worker would import it, "
        f"and thereby make this call again. {_INSTEAD}.",
    )


def _being_imported(name: str) -> str | None:
    """Return which of a module and its packages is being imported."""
    while name:
        spec = getattr(sys.modules.get(name), "__spec__", None)
        if getattr(spec, "_initializing", False):
            return name
        name = name.rpartition(".")[0]
    return None


def _is_imported_here(name: str) -> bool:
    """Tell whether this thread is what imports a module; it need not wait for another one's import to end."""
    module = vars(sys.modules[name])
    return any(frame.f_globals is module for frame in _module_frames(sys._getframe()))


def _module_frames(frame: types.FrameType | None, end: types.FrameType | None = None) -> Iterator[types.FrameType]:
    """Return the frames of modules that are being run, up to a frame."""
    while frame is not None and frame is not end:
        if frame.f_code.co_name == "<module>":
            yield frame
        frame = frame.f_back


def _refuse_while_loading() -> None:
    here = sys._getframe()
    caller = caller_of(here)
    if caller is None or is_in_users_call(caller):
        return
    for frame in _module_frames(here, caller):
        raise errors.EngineError(
            f"The module {frame.f_globals.get('__name__')} starts workers while it is imported, and a worker has just "
            f"imported it to load what it was sent: that would never end. {_INSTEAD}.",
        )


def _refuse_itself(function: Any) -> None:
    caller = caller_of(sys._getframe())
    if caller is None:
        return
    message, worker = caller.f_locals.get("message"), caller.f_locals.get("self")
    running = worker.target_of(message) if worker is not None and hasattr(message, "target_id") else None
    if _is_plain(running) and _is_plain(function) and _identity(running) == _identity(function):
        raise errors.EngineError(
            f"{function.__qualname__} maps itself: it was called in a worker, and each of its workers would start workers of "
            "its own for it, and those again. Call it in a plain loop there, "
            f'[{function.__name__}(item) for item in items], or map it with engine="inline".',
        )


def _is_plain(function: Any) -> TypeGuard[types.FunctionType]:
    """Tell whether a function is all there is to a call: no closure or partial that may hold another one each time."""
    return isinstance(function, types.FunctionType) and not function.__closure__


def _identity(function: types.FunctionType) -> tuple[Any, ...]:
    code = function.__code__
    return function.__module__, function.__qualname__, code.co_firstlineno, code.co_code
