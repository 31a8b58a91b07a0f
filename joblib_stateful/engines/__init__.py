"""Engines: what a slot's worker runs on. Each is imported when it is asked for.

``"loky"`` a process of its own (default); ``"threads"`` a thread; ``"inline"`` the calling thread.
To add one, write a subclass of `Engine` and one of `EngineWorker`, and pass an instance as ``engine=``.
"""

from __future__ import annotations

import importlib

from ._base import Engine, EngineWorker

__all__ = ["NAMES", "Engine", "EngineWorker", "get", "loaded"]

_MODULES = {"loky": "_loky", "threads": "_threads", "inline": "_inline"}
#: The engines that can be asked for by name.
NAMES = tuple(_MODULES)
_loaded: dict[str, Engine] = {}


def get(engine: str | Engine) -> Engine:
    """Return an engine by its name, or the engine itself.

    Parameters
    ----------
    engine : str or Engine
        One of `NAMES`, or an object that opens workers.

    Returns
    -------
    Engine

    Raises
    ------
    ValueError
        There is no engine of that name.
    TypeError
        It is neither a name nor an engine.

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
        module = importlib.import_module(f".{_MODULES[engine]}", __name__)
        _loaded.setdefault(engine, module.engine_class())  # two threads may come here at once
    return _loaded[engine]


def loaded() -> list[Engine]:
    """Return the engines that were asked for by name.

    Returns
    -------
    list of Engine

    Examples
    --------
    >>> get("inline") in loaded()
    True
    """
    return list(_loaded.values())
