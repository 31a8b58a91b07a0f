"""Stateful workers for joblib: one object per worker, each from its own kwargs, built once.

Importing this package registers the joblib backend ``"stateful"`` and starts nothing. What it offers, and joblib,
are loaded when they are first asked for, so that importing costs little, in workers above all.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._joblib import _registration

if TYPE_CHECKING:
    from . import engines, errors
    from ._context import call_worker, get_worker, get_worker_info
    from ._devices import one_gpu_each
    from ._executor._executor import StatefulExecutor
    from ._executor._reuse import shutdown
    from ._executor._spec import factory
    from ._joblib._backend import StatefulBackend
    from ._map._api import stateful_map
    from ._map._iterator import StatefulMap
    from ._public import TaskResult, WorkerInfo
    from ._transport._reducers import register_reducer
    from ._worker._failure import Failure

__version__ = "0.1.0"

__all__ = [  # noqa: RUF022 - grouped by what they are for
    # map
    "Failure",
    "StatefulMap",
    "TaskResult",
    "stateful_map",
    # executor and joblib backend
    "StatefulBackend",
    "StatefulExecutor",
    # inside a worker
    "call_worker",
    "get_worker",
    "get_worker_info",
    # the rest
    "WorkerInfo",
    "engines",
    "errors",
    "factory",
    "one_gpu_each",
    "register_reducer",
    "shutdown",
]

_HOMES = {
    "Failure": "_worker._failure",
    "StatefulBackend": "_joblib._backend",
    "StatefulExecutor": "_executor._executor",
    "StatefulMap": "_map._iterator",
    "TaskResult": "_public",
    "WorkerInfo": "_public",
    "call_worker": "_context",
    "factory": "_executor._spec",
    "get_worker": "_context",
    "get_worker_info": "_context",
    "one_gpu_each": "_devices",
    "register_reducer": "_transport._reducers",
    "shutdown": "_executor._reuse",
    "stateful_map": "_map._api",
}


def __getattr__(name: str) -> Any:
    if name in ("engines", "errors"):
        return importlib.import_module(f".{name}", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_registration.register()
