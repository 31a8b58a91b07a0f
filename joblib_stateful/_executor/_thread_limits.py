"""How many threads libraries may use in a worker, and the environment variables that tell them.

BLAS and OpenMP hear the variables that joblib sets. Other libraries keep pools of their own, each with as many threads as the
machine has CPUs: in two workers twice as many. Those that hear a variable are in `OTHERS`.

Nothing is called in a worker for those that hear none. PyTorch takes `set_num_interop_threads` once, and would refuse the
user's own call after ours; in Arrow's pool for files threads wait and don't compute; and DuckDB's, CatBoost's and others'
belong to a connection, model or index, which is made with a number: `WorkerInfo.n_threads` says which.

Left out are variables that cost more than they save: `ZARR_THREADING__MAX_WORKERS`, whose threads wait for files as well (64 chunks
of a store that takes 20 ms each: 5.5 times as long), and `TOKIO_WORKER_THREADS`, which leaves DataFusion's queries in as many parts
(0.93 times the items per second of CPU time).
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from . import _arguments

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..engines import Engine

#: The user's number; None: CPUs over workers; "leave": libraries decide.
InnerThreads: TypeAlias = int | Literal["leave"] | None

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


class Variable(NamedTuple):
    """A variable that a library hears which joblib doesn't set.

    Attributes
    ----------
    name : str
        The variable.
    library : str
        What hears it, with the version that was measured.
    evidence : str
        What it does in each of two workers on two CPUs, beside joblib's variables.
    """

    name: str
    library: str
    evidence: str


# Figures: `benchmarks/inner_threads.py`, threads that compute without and with the variable.
OTHERS = (
    Variable("POLARS_MAX_THREADS", "polars 2.1.0", "polars.thread_pool_size() 2, now 1"),
    Variable("RAYON_NUM_THREADS", "tokenizers 0.23.3", "Tokenizer.encode_batch computes in 2 threads, now in 1"),
    Variable("OPENCV_FOR_THREADS_NUM", "opencv-python 5.0.0", "cv2.GaussianBlur computes in 2 threads, now in 1"),
    Variable("BLOSC_NTHREADS", "blosc2 4.14.1", "blosc2.compress2 uses 2 threads, now 1; blosc2.nthreads doesn't tell"),
    Variable("ORT_INTRA_OP_NUM_THREADS", "onnxruntime 1.32.0", "a matrix product computes in 2 threads, now in 1"),
    Variable("NPROC", "jax 0.10.2", "a jitted matrix product computes in 3 to 4 threads, now in 1"),
    Variable("LOKY_MAX_CPU_COUNT", "joblib 1.6.0, lightgbm 4.7.0", "n_jobs=-1 means 2, now 1"),
)


class ThreadLimits:
    """What the workers of a pool are told of threads.

    Parameters
    ----------
    engine : Engine
        What the workers are.
    n_jobs : int
        How many there are.
    asked : int, "leave" or None
        ``inner_max_num_threads``.
    envs : sequence of mapping
        The variables that the user has given each slot.
    """

    def __init__(self, engine: Engine, n_jobs: int, asked: InnerThreads, envs: Sequence[Mapping[str, str]]) -> None:
        self._n_jobs, self._asked, self._envs = n_jobs, asked, envs
        self._is_elsewhere = engine.is_remote
        # Elsewhere this machine's CPUs are no measure, and a cluster sets limits of its own.
        self._sets_any = engine.takes_env and (not engine.is_remote if asked is None else asked != "leave")
        names = (*THREAD_VARIABLES, TBB_VARIABLE, *(variable.name for variable in OTHERS))
        self._own = {name: os.environ[name] for name in names if name in os.environ}  # as they are at the call

    def __repr__(self) -> str:
        return f"<ThreadLimits {self._asked} n_jobs={self._n_jobs}>"

    # Not before it is needed: counting CPUs imports loky, and while that is done something else can get ready.
    @functools.cached_property
    def n_threads(self) -> int | None:
        """How many threads each worker is meant to use; None: what its machine has."""
        if self._asked is not None and self._asked != "leave":
            return int(self._asked)
        return None if self._is_elsewhere else max(_arguments.cpu_count() // self._n_jobs, 1)

    @functools.cached_property
    def _variables(self) -> dict[str, str]:
        if not self._sets_any:
            return {}
        names = list(THREAD_VARIABLES)
        # One worker may have all CPUs, and what a library takes by itself may be more than their number.
        if self._n_jobs > 1 or self._asked is not None:
            names += [variable.name for variable in OTHERS]
        own = {} if self._asked is not None else self._own
        found = {name: own.get(name, str(self.n_threads)) for name in names}
        if TBB_VARIABLE not in self._own:
            found[TBB_VARIABLE] = "1"
        return found

    def env(self, slot: int) -> dict[str, str]:
        """Return the environment variables of a slot: the user's own, and the limits."""
        return {**self._variables, **self._envs[slot]}
