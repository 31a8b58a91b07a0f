"""Registering the backend as soon as joblib is there, without importing joblib for it.

Worker processes import this package for their own side of it, and most never need joblib, whose import (with
numpy's, where that is installed) would take longer than all the rest of their start.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # Not at run time: the base classes in the former are half of what importing this package would cost.
    import importlib.abc
    import importlib.machinery
    from collections.abc import Sequence
    from types import ModuleType

    from ._backend import StatefulBackend


def register() -> None:
    """Register the backend ``"stateful"`` now if joblib is imported, else when it is."""
    if "joblib" in sys.modules:
        _register_now()
    else:
        sys.meta_path.insert(0, _JoblibWatcher())


def _register_now() -> None:
    from joblib import register_parallel_backend

    register_parallel_backend("stateful", _make_backend)


def _make_backend(**options: Any) -> StatefulBackend:
    from ._backend import StatefulBackend

    return StatefulBackend(**options)


class _JoblibWatcher:
    """Is asked for every import until joblib's, and then steps aside."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        """Find joblib as it would be found without us, and load it with registration."""
        if fullname != "joblib":
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _RegisteringLoader(spec.loader, self)  # type: ignore[assignment]  # without its base class
                return spec
        return None


class _RegisteringLoader:
    """Loads joblib with its own loader, then registers the backend."""

    def __init__(self, loader: importlib.abc.Loader, watcher: _JoblibWatcher) -> None:
        self._loader, self._watcher = loader, watcher

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """Leave it to joblib's loader."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run joblib's own code, then register."""
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        sys.meta_path.remove(self._watcher)
        _register_now()
