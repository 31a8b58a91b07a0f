"""Engines: what a slot's worker runs on. Each is imported when it is asked for.

``"loky"`` a process of its own (default); ``"threads"`` a thread; ``"inline"`` the calling thread; ``"dask"`` a worker
process of a Dask cluster; ``"ray"`` a Ray actor.
An `Engine` is what users name; the `Runtime` that each executor has it make opens the workers.
To add one, write a subclass of each and one of `RemoteWorker`, and pass an `Engine` as ``engine=``; a complete one
is in ``examples/process_engine.py``. Where none of its threads shall wait for answers, write one of `EngineWorker` instead. What a
worker is sent is a `Build`, `Run` or `Finish`; it answers with a `Built`, `BuildFailed`, `Ran` or `Finished`, or with
`Refused` if there was no memory to take the message in; a `Death` stands for an answer that can't come. `Progress` says what it is
doing meanwhile.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from .. import errors
from ._base import Engine, EngineWorker, Runtime

if TYPE_CHECKING:
    from .._transport._transport import Pickled
    from .._worker._messages import (
        Build,
        BuildFailed,
        Built,
        Death,
        Failure,
        Finish,
        Finished,
        Message,
        Ran,
        Refused,
        Reply,
        Run,
    )
    from .._worker._progress_page import Progress
    from ._ray import RayEngine as RayEngine
    from ._remote import Host, RemoteWorker
    from .dask._engine import DaskEngine as DaskEngine

# `DaskEngine` and `RayEngine` are here, too, but not for ``import *``: what they need may not be installed.
__all__ = [
    "NAMES",
    "Build",
    "BuildFailed",
    "Built",
    "Death",
    "Engine",
    "EngineWorker",
    "Failure",
    "Finish",
    "Finished",
    "Host",
    "Message",
    "Pickled",
    "Progress",
    "Ran",
    "Refused",
    "RemoteWorker",
    "Reply",
    "Run",
    "Runtime",
    "get",
]

_MODULES = {"loky": "loky._engine", "threads": "_threads", "inline": "_inline", "dask": "dask._engine", "ray": "_ray"}
# What has to be installed for some of them.
_NEEDED = {"dask": "distributed", "ray": "ray"}
# Imported when they are asked for; workers import this package, too. (Engine or module.)
_HOMES = {
    "DaskEngine": "dask",
    "RayEngine": "ray",
    "Host": "._remote",
    "RemoteWorker": "._remote",
    "Pickled": ".._transport._transport",
    "Progress": ".._worker._worker",
    **dict.fromkeys(
        (
            "Build",
            "BuildFailed",
            "Built",
            "Death",
            "Failure",
            "Finish",
            "Finished",
            "Message",
            "Ran",
            "Refused",
            "Reply",
            "Run",
        ),
        ".._worker._messages",
    ),
}
#: The engines that can be asked for by name.
NAMES = tuple(_MODULES)
_loaded: dict[str, Engine] = {}


def get(engine: str | Engine) -> Engine:
    """Return an engine by its name, or the engine itself.

    Parameters
    ----------
    engine : str or Engine
        One of `NAMES`, or an object that says what workers are.

    Returns
    -------
    Engine

    Raises
    ------
    ValueError
        There is no engine of that name.
    TypeError
        It is neither a name nor an engine.
    EngineError
        What it needs is not installed.

    Examples
    --------
    >>> get("threads")
    <engine 'threads'>
    """
    if isinstance(engine, Engine):
        return engine
    known = ", ".join(map(repr, NAMES))
    if not isinstance(engine, str):
        raise TypeError(f"engine must be one of {known} or an Engine object, not {engine!r}.")
    if engine not in _MODULES:
        raise ValueError(f"There is no engine {engine!r}; write one of {known}, or pass an Engine object.")
    if engine not in _loaded:
        _loaded.setdefault(engine, _module_of(engine).engine_class())  # two threads may come here at once
    return _loaded[engine]


def _module_of(engine: str) -> Any:
    try:
        return importlib.import_module(f".{_MODULES[engine]}", __name__)
    except ImportError as error:
        package = _NEEDED.get(engine, "")
        if not package or (error.name or "").partition(".")[0] != package:
            raise
        raise errors.EngineError(
            f"engine={engine!r} needs the package {package}, which is not installed here. Install it into this "
            f"environment: {sys.executable} -m pip install {package}",
        ) from error


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        home = _HOMES[name]
        return getattr(_module_of(home) if home in _MODULES else importlib.import_module(home, __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})  # without those that may not be installed
