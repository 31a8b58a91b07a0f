"""A few numbers in memory that a parent shares with one process it starts."""

from __future__ import annotations

import itertools
import mmap
import os
import weakref
from typing import Any

from ..._process import _system
from ..._transport._segments import close_with, open_unnamed
from ._starting import standard_files

_names = itertools.count()


class SharedNumbers:
    """Integers in memory that is handed down to a loky process as an open file, without a name.

    Nothing can be left behind: the memory goes with the processes that map it. On Windows, where files are
    not handed down so, it has a name, and goes with the last process that has it open.
    """

    def __init__(self, count: int) -> None:
        self._size = 8 * count
        if _system.IS_WINDOWS:
            self._name = f"joblib_stateful-{os.getpid()}-{next(_names)}"
            whole = memoryview(mmap.mmap(-1, self._size, tagname=self._name))  # type: ignore[call-arg,unused-ignore]  # Windows only
        else:
            self._page, self._start = _place_for(self._size)
            whole = memoryview(self._page.map)[self._start : self._start + self._size]
        self.values = whole.cast("q")

    def __reduce__(self) -> tuple[Any, ...]:
        """Hand the numbers to the process that is being started; nothing else can pickle them."""
        if _system.IS_WINDOWS:
            return _attach_named, (self._name, self._size)
        from multiprocessing.reduction import DupFd

        return _attach, (DupFd(self._page.fd), self._page.size, self._start, self._size)


class _Page:
    """Memory for the numbers of many processes, for each map costs a file descriptor."""

    def __init__(self, size: int = mmap.PAGESIZE) -> None:
        self.pid, self.size = os.getpid(), size
        with standard_files():  # it is handed down by its number
            self.fd = open_unnamed("progress")
        close_with(self, self.fd)
        os.ftruncate(self.fd, size)
        self.map = mmap.mmap(self.fd, size)
        self.starts = itertools.count()


# The page in use, as long as anybody's numbers lie in it.
_pages: weakref.WeakValueDictionary[str, _Page] = weakref.WeakValueDictionary()


def _place_for(size: int) -> tuple[_Page, int]:
    """Return a page and where in it nobody's numbers have lain yet."""
    if size > mmap.PAGESIZE:  # of a worker that takes many messages at a time
        return _Page(size), 0
    page = _pages.get("current")
    if page is None or page.pid != os.getpid():  # in a fork it is the parent's
        page = _pages["current"] = _Page()
    start = next(page.starts) * size
    if start + size > mmap.PAGESIZE:
        page = _pages["current"] = _Page()
        start = next(page.starts) * size
    return page, start


def _attach(fd: Any, page_size: int, start: int, size: int) -> memoryview[int]:
    number = fd.detach()
    try:
        return memoryview(mmap.mmap(number, page_size))[start : start + size].cast("q")
    finally:
        os.close(number)


def _attach_named(name: str, size: int) -> memoryview[int]:
    return memoryview(mmap.mmap(-1, size, tagname=name)).cast("q")  # type: ignore[call-arg,unused-ignore]  # Windows only
