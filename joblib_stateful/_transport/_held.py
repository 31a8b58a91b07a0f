"""What keeps segments from being written again and again: arrays that are sent many times."""

from __future__ import annotations

import contextlib
import itertools
import math
import weakref
from typing import Any

from .._process._system import most_open

# So many files at most are kept open, and a small part of those that may be open: as of segments that are gone.
_MOST_FILES = 64
_FILES_SHARE = 16
_numbers = itertools.count()


class Held:
    """Segments that were used more than once, for they will be used again: each as long as the array is there that it was made from.

    What workers write to is kept in any case: nobody else has it.

    Parameters
    ----------
    most_bytes : float
        How much of them, but for the latest one, whatever that weighs.
    """

    def __init__(self, most_bytes: float = math.inf) -> None:
        self._most_bytes = most_bytes
        self.number = next(_numbers)
        self.segments: dict[Any, tuple[Any, weakref.ref[Any]]] = {}  # with the array; the latest one last

    def put(self, key: Any, segment: Any, owner: Any) -> None:
        """Keep a segment; of several parts of one array, no more than that weighs."""
        owner, held = whole(owner), self.segments
        held.pop(key, None)  # it is the latest one now
        with contextlib.suppress(TypeError):  # it can't be referred to weakly
            held[key] = segment, weakref.ref(owner, lambda _: held.pop(key, None))
        nbytes = getattr(owner, "nbytes", 0)
        room = max(nbytes() if callable(nbytes) else nbytes, segment.size)
        room_of_all = max(self._most_bytes, _weight_of(segment))
        files = min(_MOST_FILES, most_open() // _FILES_SHARE)
        # Not by `items`, which makes objects: that may collect garbage, and an array that is gone is taken out meanwhile.
        for other in reversed(list(held)):
            kept, whose = held.get(other, (None, None))
            if kept is None or is_shared(kept.mode):
                continue
            is_a_part = whose is not None and whose() is owner
            room -= kept.size * is_a_part
            room_of_all -= _weight_of(kept)
            files -= 1
            if (is_a_part and room < 0) or room_of_all < 0 or files < 0:
                held.pop(other, None)

    def drop(self, key: Any) -> None:
        """Don't keep what was there before another segment."""
        self.segments.pop(key, None)

    def clear(self) -> None:
        """Keep none of them."""
        self.segments.clear()


def _weight_of(segment: Any) -> int:
    weight: int = getattr(segment, "capacity", segment.size)
    return weight


def is_shared(mode: str) -> bool:
    """Tell whether what one worker writes to a buffer is seen by the others."""
    return mode in ("r+", "w+")


def whole(owner: Any) -> Any:
    """Return the array that a view is a part of, or the storage that one of torch's tensors looks into."""
    while True:
        base = getattr(owner, "base", None)
        if base is None or not hasattr(base, "__array_interface__"):
            break
        owner = base
    storage_of = getattr(base, "untyped_storage", None)
    return owner if storage_of is None else storage_of()
