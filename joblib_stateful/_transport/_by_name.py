"""What there is one of in each process, and what is empty in each new thread: none of it is copied.

``from random import choice`` gives a method of that module's own generator. By its state all workers would draw the same numbers,
and each map would find another function than the last one; and nobody sees what is set in a copy of `os.environ`.
"""

from __future__ import annotations

import importlib
import os
import random
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_ONES = (
    ("os", "environ"),
    ("os", "environb"),
    ("random", "_inst"),
    ("secrets", "_sysrand"),
    ("numpy.random.mtrand", "_rand"),
)


def _reduce(found: Any) -> Any:
    for module, name in _ONES:
        if found is getattr(sys.modules.get(module), name, None):
            return _attribute_of, (module, name)
    return NotImplemented


def _attribute_of(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def _reduce_system_random(found: Any) -> Any:
    reduced = _reduce(found)
    return (random.SystemRandom, ()) if reduced is NotImplemented else reduced  # it has no state


#: How objects of these types are reduced.
REDUCERS: dict[Any, Callable[[Any], Any]] = {
    type(os.environ): _reduce,
    random.Random: _reduce,
    random.SystemRandom: _reduce_system_random,
    threading.local: lambda _: (threading.local, ()),
}
#: These types. What comes back of them is told by what it holds: the worker's environment is not the program's.
KINDS = {*REDUCERS}


def table_of_numpy(module: Any) -> dict[type, Callable[[Any], Any]]:
    """Return how numpy's are, once its random numbers are used."""
    KINDS.add(module.RandomState)
    return {module.RandomState: _reduce}
