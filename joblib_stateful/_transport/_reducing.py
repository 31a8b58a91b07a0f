"""What all that says how values are pickled has in common."""

from __future__ import annotations

import pickle
import weakref
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Reduce: TypeAlias = Callable[[Any], Any]

PROTOCOL = 5


class NeedsWholeError(Exception):
    """Parts of a tensor's storage were pickled, and then something that shares memory with them."""


# Of a memo with more it takes longer to make a copy than to make another pickler, 5 µs (`benchmarks/memos.py`).
_MOST_COPIED = 100
# What pickle writes for each of them, and how much of its own it writes at once; what is longer is one object's bytes.
_MEMOIZE, _MOST_AT_ONCE = b"\x94", 1 << 17


def is_soon_copied(written: Iterable[Any]) -> bool:
    """Tell whether a pickler's memo is small, by what it has written."""
    n_put: int = sum(chunk.count(_MEMOIZE) for chunk in written if len(chunk) <= _MOST_AT_ONCE)
    return n_put <= _MOST_COPIED


def forget(pickler: Any) -> None:
    """Clear the memo of a pickler, and only then let go of what it alone has kept alive: what objects have reduced themselves to.

    The end of such an object may let another thread run, as that of torch's tensors does. If that collects garbage it comes to
    this memo, half of which would be gone (CPython 3.11 ends with SIGSEGV). No collection sees the memo of a pickler that is let go of.
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
