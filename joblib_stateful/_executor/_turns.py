"""Which workers have been used in turn, so that neither shall make way for the other again."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Hashable

# Pairs of workers that are remembered; each is three small objects.
_MOST = 1000
# What a key is made of that says the same later. What else is in it, such as a segment of shared memory, must not be
# kept alive for the sake of these books, and is told by its kind and size.
_LASTING = (str, bytes, int, float, bool, type(None))


class Turns:
    """Remembers pairs of workers of which one has made way for the other. Each pair does so once."""

    def __init__(self) -> None:
        self._pairs: OrderedDict[frozenset[int], bool] = OrderedDict()  # True: somebody was told

    def note(self, one: int, other: int) -> None:
        """Note that one makes way for the other."""
        self._pairs[frozenset((one, other))] = False
        if len(self._pairs) > _MOST:
            self._pairs.popitem(last=False)

    def has(self, one: int, other: int) -> bool:
        """Tell whether one of the two has made way for the other before."""
        return frozenset((one, other)) in self._pairs

    def is_news(self, one: int, other: int) -> bool:
        """Tell, the first time that it is asked, that this is to be told."""
        pair = frozenset((one, other))
        was_told, self._pairs[pair] = self._pairs[pair], True
        return not was_told


def name_of(key: Hashable) -> int:
    """Return a number that is the same for an equal key, and keeps nothing of it alive."""
    return hash(_lasting(key))


def _lasting(key: Any) -> Hashable:
    if isinstance(key, _LASTING):
        return key
    if isinstance(key, tuple):
        return tuple(map(_lasting, key))
    if isinstance(key, frozenset):
        return frozenset(map(_lasting, key))
    return type(key).__name__, getattr(key, "size", id(key))
