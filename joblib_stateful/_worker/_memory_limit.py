"""How much memory a worker's process may hold, before its object is built anew."""

from __future__ import annotations

from .._process import _safely, _system

_TOLD = (
    "max_worker_memory=%s bytes is less than the worker's process holds before its first item, %s bytes, so that building its "
    "object anew would be of no use and is not done. Raise it to a few times that."
)


class MemoryLimit:
    """What a worker's process may hold, and whether it holds more.

    Parameters
    ----------
    most : int
        How many bytes.
    before : int
        What it held when its object was built: if that is more, building it anew is of no use.
    """

    def __init__(self, most: int, before: int) -> None:
        self.most = most
        self._is_of_use = before < most
        if not self._is_of_use:
            _safely.Log().warning(_TOLD, f"{most:,}", f"{before:,}")

    def excess(self) -> int:
        """Return how many bytes the process holds, if that is more than it may; else 0."""
        held = _system.resident_bytes() if self._is_of_use else 0
        return held if held > self.most else 0

    def __repr__(self) -> str:
        return f"<MemoryLimit {self.most:,} bytes>"


def memory_limit(present: MemoryLimit | None, most: int | None, before: int) -> MemoryLimit | None:
    """Return the limit of a message, which mostly is that of the one before."""
    if most is None or (present is not None and present.most == most):
        return None if most is None else present
    return MemoryLimit(most, before)
