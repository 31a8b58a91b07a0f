"""Registering the backend as soon as joblib is there, without importing joblib for it.

Worker processes import this package for their own side of it, and most never need joblib, whose import (with
numpy's, where that is installed) would take longer than all the rest of their start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._process._imports import when_imported

if TYPE_CHECKING:
    from ._backend import StatefulBackend


def register() -> None:
    """Register the backend ``"stateful"`` now if joblib is imported, else when it is."""
    when_imported("joblib", lambda joblib: joblib.register_parallel_backend("stateful", _make_backend))


def _make_backend(**options: Any) -> StatefulBackend:
    from ._backend import StatefulBackend

    return StatefulBackend(**options)
