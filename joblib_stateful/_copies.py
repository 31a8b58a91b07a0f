"""What owns workers, or a run of them, can't be copied or pickled: a copy, once dropped, would end the original."""

from __future__ import annotations

from typing import Any, NoReturn


class NotCopied:
    """Base of what refuses `copy.copy`, `copy.deepcopy` and `pickle.dumps`, all of which come by one method."""

    __slots__ = ()
    _instead = ""

    def __reduce_ex__(self, _: Any) -> NoReturn:
        """Refuse."""
        refuse(self, self._instead)


def refuse(what: object, instead: str) -> NoReturn:
    """Raise the error that says so."""
    raise TypeError(f"A {type(what).__name__} can't be copied or pickled: {instead}")
