"""Doing something as soon as a module is there, without importing it for that."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # Not at run time: the base classes in the former are half of what importing this package would cost.
    import importlib.abc
    import importlib.machinery
    from collections.abc import Callable, Sequence
    from types import ModuleType


def when_imported(name: str, call: Callable[[ModuleType], None]) -> None:
    """Have something called with a module, now if it has been imported, else when it is, by whoever imports it."""
    module = sys.modules.get(name)
    if module is None:
        sys.meta_path.insert(0, _Watcher(name, call))
    else:
        call(module)


class _Watcher:
    """Is asked for every import until that of its module, and then steps aside."""

    def __init__(self, name: str, call: Callable[[ModuleType], None]) -> None:
        self._name, self._call = name, call

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        """Find the module as it would be found without us, and have its loader tell."""
        if fullname != self._name:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _TellingLoader(spec.loader, self)  # type: ignore[assignment]  # without its base class
                return spec
        return None

    def is_there(self, module: ModuleType) -> None:
        """Step aside, and have done what was to be done."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        self._call(module)


class _TellingLoader:
    """Loads a module with its own loader, then tells the watcher."""

    def __init__(self, loader: importlib.abc.Loader, watcher: _Watcher) -> None:
        self._loader, self._watcher = loader, watcher

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """Leave it to the module's loader."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module's own code, then tell."""
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._watcher.is_there(module)
