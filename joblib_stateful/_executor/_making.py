"""A worker pool is made: of what it builds, and of the threads that libraries may use in its workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import _arguments
from ._driver import Driver
from ._nesting import depth_of
from ._pool import WorkerPool
from ._thread_limits import ThreadLimits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .._measuring._measures import Measures
    from ..engines import Runtime
    from ._spec import PackedSpec
    from ._thread_limits import InnerThreads


def make_pool(
    packed: PackedSpec,
    n_jobs: int,
    runtime: Runtime,
    envs: Sequence[Mapping[str, str]],
    *,
    max_tasks: int | None = None,
    idle_timeout: float | None = None,
    inner_max_num_threads: InnerThreads = None,
    measures: Measures | None = None,
) -> WorkerPool:
    """Return the pool of an executor; nothing is started yet."""
    engine = runtime.engine
    _arguments.check_inner_threads(engine, inner_max_num_threads)
    engine.check()
    driver = Driver(
        packed,
        n_jobs,
        runtime,
        ThreadLimits(engine, n_jobs, inner_max_num_threads, envs),
        max_tasks=max_tasks,
        idle_timeout=idle_timeout,
        depth=depth_of(engine),
        measures=measures,
    )
    return WorkerPool(driver, idle_timeout=idle_timeout)
