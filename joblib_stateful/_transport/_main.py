"""The program's ``__main__`` in a worker's process: what has come of it is found there by its name.

Pickle writes down no more of a class than its module and name, so that ``torch.save``, ``joblib.Memory`` and users' own
pickles look for classes of the script in ``sys.modules["__main__"]``; so does what resolves annotations, or shows source.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import ModuleType
from typing import Any

#: What the keys of ``__main__``'s namespaces begin with.
PREFIX = "__main__ "


class MainModule:
    """A module that takes the place of this process's ``__main__``; what it holds is for others to set.

    A notebook that uses ``%run`` has one for each time, and so has a worker.
    """

    def __init__(self) -> None:
        self._module = ModuleType("__main__")
        self.globals = vars(self._module)
        for name in ("__doc__", "__loader__", "__package__"):  # as in any other namespace, they come with its functions
            del self.globals[name]

    @property
    def is_current(self) -> bool:
        """True if it is the latest one."""
        return sys.modules.get("__main__") is self._module

    def be_current(self) -> None:
        """Have it be found, now that something of it has come."""
        sys.modules["__main__"] = self._module

    def complete(self) -> None:
        """Note what it is, once it is known in which package.

        Children that multiprocessing starts anew would else run the whole script: by this name they take it as run.
        """
        if self.globals.get("__spec__") is None:
            package = self.globals.get("__package__")
            name, file = f"{package}.__main__" if package else "__main__", self.globals.get("__file__")
            loader = None if file is None else SourceFileLoader(name, file)
            self.globals["__spec__"], self.globals["__loader__"] = ModuleSpec(name, loader), loader


def main_globals() -> dict[str, Any] | None:
    """Return those of ``__main__``, which somebody may have taken away."""
    return getattr(sys.modules.get("__main__"), "__dict__", None)


def main_with(found: Any) -> dict[str, Any] | None:
    """Return the globals of ``__main__`` if a class is one of them under its own name, else None."""
    if getattr(found, "__module__", None) != "__main__":
        return None
    globals_ = main_globals()
    return globals_ if globals_ is not None and globals_.get(found.__qualname__) is found else None
