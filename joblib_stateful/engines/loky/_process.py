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
from typing import Any

from loky.backend.process import LokyProcess

from ..._process import _system
from . import _child
from ._starting import by_lokys_command


class WorkerProcess(LokyProcess):  # type: ignore[misc]  # loky is not typed
    """One process that serves messages; its sentinel is the process itself, not a pipe."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802 - multiprocessing's name
        if _system.STARTS_PROCESSES:
            from ._popen import Popen

            return Popen(process_obj)
        with by_lokys_command(process_obj):
            if _system.IS_WINDOWS:
                return LokyProcess._Popen(process_obj)
            from ._popen import PopenOfLoky

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
        return _child.process_with, (vars(self).copy(),)
