"""Stateful workers for joblib: one object per worker, each from its own kwargs, built once.

Importing this package registers the joblib backend ``"stateful"`` and starts nothing.
"""

from __future__ import annotations

from joblib import register_parallel_backend

from . import engines, errors
from ._backend import StatefulBackend
from ._executor import StatefulExecutor
from ._inside import call_worker, get_worker, get_worker_info
from ._map import StatefulMap, stateful_map
from ._records import TaskResult, WorkerInfo
from ._shared import shutdown
from ._spec import factory

__version__ = "0.1.0"

__all__ = [  # noqa: RUF022 - grouped by what they are for
    # map
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
    "shutdown",
]

register_parallel_backend("stateful", StatefulBackend)
