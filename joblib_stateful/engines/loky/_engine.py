"""The engine ``"loky"``: one process per slot, started as loky starts its own.

Its executors are not used: a crash breaks one, so that it must not be shared, and any other user of the reusable one would
shut ours down.
"""

from __future__ import annotations

import multiprocessing
from typing import ClassVar

from ... import errors
from .._base import Engine
from ._runtime import LokyRuntime
from ._starting import interpreter_flags


class LokyEngine(Engine):
    """Workers that are processes on this machine."""

    name: ClassVar[str] = "loky"
    has_processes: ClassVar[bool] = True
    takes_env: ClassVar[bool] = True
    is_concurrent: ClassVar[bool] = True

    def make_runtime(self, n_slots: int) -> LokyRuntime:  # noqa: ARG002 - however many there are
        """Return a runtime."""
        return LokyRuntime(self)

    def check(self) -> None:
        """Refuse daemonic processes; warn of flags that can't be handed on."""
        interpreter_flags()
        if multiprocessing.current_process().daemon:
            raise errors.EngineError(
                'engine="loky" starts processes, which Python forbids in a daemonic process (such as a worker of '
                'multiprocessing.Pool). Use engine="threads" here, or start this process with daemon=False.',
            )


engine_class = LokyEngine
