"""What children of a worker must not inherit: its line to the parent, and the pipes by which the parent notices its end."""

from __future__ import annotations

import contextlib
import os
import stat
from multiprocessing import resource_tracker

from ..._process import _system


def keep_from_children(line: int) -> None:
    """Have children of this worker not inherit its line and its pipes; called before any of the user's code.

    They would stay open for as long as such a child lives: the parent would take the worker for alive, and wait for the rest
    of an answer.
    """
    if _system.IS_WINDOWS:  # where nothing is inherited that is not handed down by name
        return
    pipes = [line, *_pipes()]
    for fd in pipes:
        os.set_inheritable(fd, False)  # they were made so that this process gets them
    _system.after_fork(lambda: _shut(pipes))


def _pipes() -> list[int]:
    """Return the pipes that this process was started with, but for that of the resource tracker."""
    try:
        fds = set(map(int, os.listdir("/dev/fd")))  # noqa: PTH208 - importing pathlib would take each worker 4 ms
    except OSError:  # no such folder on this system
        return []
    found = []
    tracker = resource_tracker._resource_tracker._fd  # type: ignore[attr-defined]  # no public name that starts none
    for fd in fds - {0, 1, 2, tracker}:
        with contextlib.suppress(OSError):  # the one that listed the folder
            if stat.S_ISFIFO(os.fstat(fd).st_mode):
                found.append(fd)
    return found


def _shut(pipes: list[int]) -> None:
    # Replaced, not closed: their owners would close them once more, when the numbers are others' files.
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in pipes:
        os.dup2(nothing, fd, inheritable=False)
    os.close(nothing)
