"""What keeps segments from being written again and again: arrays that are sent many times."""

from __future__ import annotations

import contextlib
import math
import weakref
from typing import Any


class Held:
    """Segments that were used more than once, for they will be used again: each as long as the array is there that it was made from.

    Parameters
    ----------
    most_bytes : float
        How much of them, but for the latest one, whatever that weighs.
    """

    def __init__(self, most_bytes: float = math.inf) -> None:
        self._most_bytes = most_bytes
        self.segments: dict[Any, tuple[Any, weakref.ref[Any]]] = {}  # with the array; the latest one last

    def put(self, key: Any, segment: Any, owner: Any) -> None:
        """Keep a segment; of several parts of one array, no more than that weighs."""
        owner, held = whole(owner), self.segments
        held.pop(key, None)  # it is the latest one now
        with contextlib.suppress(TypeError):  # it can't be referred to weakly
            held[key] = segment, weakref.ref(owner, lambda _: held.pop(key, None))
        nbytes = getattr(owner, "nbytes", 0)
        room = max(nbytes() if callable(nbytes) else nbytes, segment.size)
        room_of_all = max(self._most_bytes, segment.size)
        for other, (kept, whose) in reversed(list(held.items())):
            room_of_all -= kept.size
            if whose() is owner:
                room -= kept.size
            if room < 0 or room_of_all < 0:
                held.pop(other, None)

    def drop(self, key: Any) -> None:
        """Don't keep what was there before another segment."""
        self.segments.pop(key, None)

    def clear(self) -> None:
        """Keep none of them."""
        self.segments.clear()


def whole(owner: Any) -> Any:
    """Return the array that a view is a part of, or the storage that one of torch's tensors looks into."""
    while True:
        base = getattr(owner, "base", None)
        if base is None or not hasattr(base, "__array_interface__"):
            break
        owner = base
    storage_of = getattr(base, "untyped_storage", None)
    return owner if storage_of is None else storage_of()
