"""A worker's process: started as loky starts one, with an environment of its own before anything is imported there.

loky's pool of one process is not used. It would bring two threads, two queues and their semaphores in shared memory for each
worker, which have to be tidied up when that ends, and whoever starts a worker would wait for loky to be imported there.

A worker's death shows although children of its own live on: the process itself is watched, where the system can (Linux),
and not a pipe that what the worker's code forks or starts may have inherited. The worker keeps its pipes from its children,
too (`_inheritance`).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from multiprocessing.connection import wait
from typing import Any

from loky.backend.process import LokyProcess

from .. import _system
from . import _loky_child

_reaping = threading.Lock()
# A pipe shows that a process is about to end; that takes it a moment more.
_END_SECONDS = 1.0


class WorkerProcess(LokyProcess):  # type: ignore[misc]  # loky is not typed
    """One process that serves messages; its sentinel is the process itself, not a pipe."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802 - multiprocessing's name
        if _system.STARTS_PROCESSES:
            from ._loky_popen import Popen

            return Popen(process_obj)
        if _system.IS_WINDOWS:
            return LokyProcess._Popen(process_obj)
        from ._loky_popen import PopenOfLoky

        return PopenOfLoky(process_obj)

    def start(self) -> None:
        """Start it."""
        super().start()
        if _system.HAS_PIDFD:
            with contextlib.suppress(OSError):  # Linux before 5.3, or a sandbox that forbids it
                process = os.pidfd_open(self.pid)
                # In the pipe's place, so that whoever has its number waits for the process and closes it at the end.
                os.dup2(process, self.sentinel, inheritable=False)
                os.close(process)

    def __reduce__(self) -> tuple[Any, ...]:
        """Be a process there that needs no loky, which takes as long to import as all the rest."""
        return _loky_child.process_with, (vars(self).copy(),)


class ReapedOnce:
    """What a ``Popen`` of multiprocessing lacks: several threads may ask at once how its process has ended.

    One of them gets to know, and the others would be told that there is no such process, and take it for one that lives.
    """

    sentinel: int
    returncode: int | None

    def poll(self, flag: int = os.WNOHANG) -> int | None:  # noqa: ARG002 - nobody may wait while he holds the lock
        """Return the exit code if the process has ended."""
        with _reaping:
            found: int | None = super().poll(os.WNOHANG)  # type: ignore[misc]  # the class beside this one
            return found

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the end, at most so many seconds; return the exit code."""
        if self.returncode is None and not wait([self.sentinel], timeout):
            return None
        end = time.monotonic() + (_END_SECONDS if timeout is None else min(timeout, _END_SECONDS))
        while (code := self.poll()) is None and time.monotonic() < end:
            time.sleep(0.001)
        return code
