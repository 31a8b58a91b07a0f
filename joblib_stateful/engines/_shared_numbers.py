"""A few numbers in memory that a parent shares with one process it starts."""

from __future__ import annotations

import itertools
import mmap
import os
from typing import Any

from .._segments import open_unnamed

_names = itertools.count()


class SharedNumbers:
    """Doubles in a page of memory that is handed down to a loky process as an open file, without a name.

    Nothing can be left behind: the memory goes with the processes that map it. On Windows, where files are
    not handed down so, the page has a name, and goes with the last process that has it open.
    """

    def __init__(self, count: int) -> None:
        self._size = 8 * count
        self._fd: int | None = None
        self._name = f"joblib_stateful-{os.getpid()}-{next(_names)}"
        if os.name == "nt":
            self._map = mmap.mmap(-1, self._size, tagname=self._name)  # type: ignore[call-arg,unused-ignore]  # Windows only
        else:
            self._fd = open_unnamed("progress")
            os.ftruncate(self._fd, self._size)
            self._map = mmap.mmap(self._fd, self._size)
        self.values = memoryview(self._map).cast("d")

    def __reduce__(self) -> tuple[Any, ...]:
        """Hand the page to the process that is being started; nothing else can pickle it."""
        if os.name == "nt":
            return _attach_named, (self._name, self._size)
        from multiprocessing.reduction import DupFd

        assert self._fd is not None  # noqa: S101 - sealed only once it was handed down
        return _attach, (DupFd(self._fd), self._size)

    def seal(self) -> None:
        """Give the file descriptor back; the page itself stays."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __del__(self) -> None:
        self.seal()


def _attach(fd: Any, size: int) -> memoryview[float]:
    number = fd.detach()
    try:
        return memoryview(mmap.mmap(number, size)).cast("d")
    finally:
        os.close(number)


def _attach_named(name: str, size: int) -> memoryview[float]:
    return memoryview(mmap.mmap(-1, size, tagname=name)).cast("d")  # type: ignore[call-arg,unused-ignore]  # Windows only
