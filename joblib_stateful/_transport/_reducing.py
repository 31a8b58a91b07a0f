"""What all that says how values are pickled has in common."""

from __future__ import annotations

import pickle
import weakref
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    Reduce: TypeAlias = Callable[[Any], Any]

PROTOCOL = 5


class NeedsWholeError(Exception):
    """Parts of a tensor's storage were pickled, and then something that shares memory with them."""


def forget(pickler: Any) -> None:
    """Clear the memo of a pickler, and only then let go of what it alone has kept alive: what objects have reduced themselves to.

    The end of such an object may let another thread run, as that of torch's tensors does. If that collects garbage it comes to
    this memo, half of which would be gone (CPython 3.11 ends with SIGSEGV).
    """
    kept = pickler.memo.copy()
    pickler.clear_memo()
    pickler.has_reduced = False
    kept.clear()


def private(data: Any) -> pickle.PickleBuffer:
    """Return a buffer of which each worker gets a copy of its own, whatever `Sharing.mode` says of arrays."""
    buffer = pickle.PickleBuffer(data)
    _private.add(buffer)
    return buffer


def is_private(buffer: pickle.PickleBuffer) -> bool:
    """Tell whether a buffer is."""
    return buffer in _private


_private: weakref.WeakSet[pickle.PickleBuffer] = weakref.WeakSet()
