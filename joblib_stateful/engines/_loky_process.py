"""A worker's process, whose death shows although children of its own live on.

loky learns of a death from pipes whose other ends the worker alone should hold. But what the worker's code
forks or starts may inherit them, and then they stay open for as long as that child lives: the death would go
unnoticed, and half a result would be waited for. Hence both sides see to it: the parent watches the process
itself where the system can (Linux), and the worker keeps its pipes from its children.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import Any, ClassVar

from loky.backend import resource_tracker
from loky.backend.context import LokyContext
from loky.backend.process import LokyProcess


class WatchedProcess(LokyProcess):  # type: ignore[misc]  # loky is not typed
    """Its sentinel is the process itself, not a pipe."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802 - multiprocessing's name
        if os.name == "nt":
            return LokyProcess._Popen(process_obj)
        from ._loky_popen import Popen

        return Popen(process_obj)

    def start(self) -> None:
        """Start it."""
        super().start()
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):  # Linux before 5.3, or a sandbox that forbids it
                process = os.pidfd_open(self.pid)
                # In the pipe's place, so that whoever has its number waits for the process and closes it at the end.
                os.dup2(process, self.sentinel, inheritable=False)
                os.close(process)


class Context(LokyContext):  # type: ignore[misc]  # loky is not typed
    """loky's context, with such processes."""

    Process: ClassVar[type[WatchedProcess]] = WatchedProcess


def keep_from_children(line: int) -> None:
    """Have children of this worker not inherit its line and its pipes; called before any of the user's code."""
    if os.name == "nt":  # where nothing is inherited that is not handed down by name
        return
    pipes = [line, *_pipes()]
    for fd in pipes:
        os.set_inheritable(fd, False)  # they were made so that this process gets them
    if pipes and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: _shut(pipes))


def _pipes() -> list[int]:
    """Return the pipes that this process was started with, but for those of the resource trackers."""
    from multiprocessing import resource_tracker as theirs

    try:
        fds = set(map(int, os.listdir("/dev/fd")))  # noqa: PTH208 - importing pathlib would take each worker 4 ms
    except OSError:  # no such folder on this system
        return []
    found = []
    for fd in fds - {0, 1, 2, theirs.getfd(), resource_tracker.getfd()}:
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
