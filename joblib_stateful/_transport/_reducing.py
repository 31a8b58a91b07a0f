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


def private(data: Any) -> pickle.PickleBuffer:
    """Return a buffer of which each worker gets a copy of its own, whatever `Sharing.mode` says of arrays."""
    buffer = pickle.PickleBuffer(data)
    _private.add(buffer)
    return buffer


def is_private(buffer: pickle.PickleBuffer) -> bool:
    """Tell whether a buffer is."""
    return buffer in _private


_private: weakref.WeakSet[pickle.PickleBuffer] = weakref.WeakSet()
