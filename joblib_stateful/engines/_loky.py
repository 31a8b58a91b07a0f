"""The engine ``"loky"``, about to be loaded."""

from __future__ import annotations

import os
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._loky_engine import LokyEngine


def make_engine() -> LokyEngine:
    """Return a new engine; who asks for one is about to start workers."""
    if os.name == "posix":
        # The first worker would start it. It takes half as much CPU time as a worker until it is ready: so it does that while
        # loky is being imported, which is most of what is to be done before a worker can be started. (On two cores the
        # first result comes 30 ms sooner: `python -m benchmarks --workloads "W7*"`.)
        resource_tracker.ensure_running()
    from ._loky_engine import LokyEngine

    return LokyEngine()
