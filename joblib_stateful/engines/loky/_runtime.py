"""What one executor opens its worker processes with: who hears them, and what they have in common."""

from __future__ import annotations

import sys
import time
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING

import cloudpickle

from ..._process import _system
from ..._transport._shared_memory import InLine, SharedMemory
from ..._worker._surroundings import Surroundings
from .._base import Runtime
from ._capacity import check_room
from ._ending import wait_for_ends
from ._line import Line
from ._reader import Reader, wait_for_deaths
from ._starting import start

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from ..._transport._transport import Transport
    from .._base import Engine
    from ._worker import LokyWorker

# Log records that have come when a map ends are handled first, unless their handlers take longer.
_FLUSH_SECONDS = 0.5


class LokyRuntime(Runtime):
    """Opens processes, which one thread hears.

    Parameters
    ----------
    engine : Engine
        The engine that has made it.
    """

    #: One for all, so that executors are told apart by the segments in which their kwargs lie.
    transport: Transport = SharedMemory() if Line.carries_files else InLine()

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._reader = Reader()
        # What multiprocessing spawns knows the main script by a name that no worker of ours could import it by.
        main = sys.modules.get("__mp_main__")
        if main is not None and main.__name__ == "__mp_main__":
            cloudpickle.register_pickle_by_value(main)

    def open(self, slot: int, env: Mapping[str, str]) -> LokyWorker:
        """Return a worker for a slot."""
        check_room()
        from ._worker import LokyWorker

        return LokyWorker(self.transport, env, self._reader, slot, self.max_concurrency)

    def get_ready(self) -> None:
        """Import loky."""
        if f"{__package__}._worker" in sys.modules:
            return
        if not _system.IS_WINDOWS:
            # The first worker would start it. It takes half as much CPU time as a worker until it is ready: so it does
            # that while loky is being imported, which is most of what is to be done before a worker can be started.
            # (On two cores the first result comes 20 ms sooner: `python -m benchmarks --workloads "W7*"`.)
            start(resource_tracker)
        from . import _worker  # noqa: F401

    def surroundings(self) -> Surroundings:
        """Return those of this process."""
        return Surroundings.now()

    def flush(self) -> None:
        """Wait until the loggers have had what has come from the workers, unless that takes long."""
        _flush(id(self._reader), _FLUSH_SECONDS)

    @classmethod
    def settle(cls, seconds: float) -> None:
        """Wait for what is left of workers that were closed or killed."""
        deadline = time.monotonic() + seconds
        wait_for_deaths(seconds)
        wait_for_ends(max(0.0, deadline - time.monotonic()))
        _flush(None, max(_FLUSH_SECONDS, deadline - time.monotonic()))


def _flush(owner: Hashable, seconds: float) -> None:
    logs = sys.modules.get(f"{__package__}._log_reader")  # which comes with the first worker
    if logs is not None:
        logs.reader.flush(owner, seconds)
