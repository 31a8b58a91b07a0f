"""A worker pool is made: of what it builds, and of the threads that libraries may use in its workers."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING

from . import _arguments
from ._driver import Driver
from ._nesting import depth_of
from ._pool import WorkerPool

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .._measuring._measures import Measures
    from ..engines import Runtime
    from ._spec import PackedSpec

# joblib's names, which a test compares: asking joblib would mean to import it before the first worker is started.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
TBB_VARIABLE = "ENABLE_IPC"


def make_pool(
    packed: PackedSpec,
    n_jobs: int,
    runtime: Runtime,
    envs: Sequence[Mapping[str, str]],
    *,
    max_tasks: int | None = None,
    idle_timeout: float | None = None,
    inner_max_num_threads: int | None = None,
    measures: Measures | None = None,
) -> WorkerPool:
    """Return the pool of an executor; nothing is started yet."""
    engine = runtime.engine
    _arguments.check_inner_threads(engine, inner_max_num_threads)
    engine.check()
    depth = depth_of(engine)
    # Elsewhere this machine's CPUs are no measure, and a cluster sets limits of its own.
    limits_threads = engine.takes_env and (inner_max_num_threads is not None or not engine.is_remote)

    own = {name: os.environ[name] for name in (*THREAD_VARIABLES, TBB_VARIABLE) if name in os.environ}

    @functools.cache
    def with_limits() -> list[dict[str, str]]:
        # Not before it is needed: counting CPUs imports loky, and while that is done something else can get ready.
        threads = _thread_limits(n_jobs, inner_max_num_threads, own) if limits_threads else {}
        return [{**threads, **env} for env in envs]

    driver = Driver(
        packed,
        n_jobs,
        runtime,
        with_limits,
        max_tasks=max_tasks,
        idle_timeout=idle_timeout,
        depth=depth,
        measures=measures,
    )
    return WorkerPool(driver, idle_timeout=idle_timeout)


def _thread_limits(n_jobs: int, explicit: int | None, own: Mapping[str, str]) -> dict[str, str]:
    """Return joblib's rule for the threads of BLAS and OpenMP: CPUs over workers, unless the user set their own."""
    share = max(_arguments.cpu_count() // n_jobs, 1)
    env = {name: str(explicit) if explicit is not None else own.get(name, str(share)) for name in THREAD_VARIABLES}
    if TBB_VARIABLE not in own:
        env[TBB_VARIABLE] = "1"
    return env
