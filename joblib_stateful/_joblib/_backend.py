"""The joblib backend ``"stateful"``: joblib's contract on top of a shared executor, and nothing else.

A `StatefulBackend` that a user makes, by `parallel_config` or by hand, only holds a configuration. Each `joblib.Parallel` call
gets a `ParallelCall`, because joblib does not tell a backend for which of several calls under the same configuration it is
started, aborted or ended.
"""

from __future__ import annotations

import copy
import warnings
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, Self

# Not documented, but how joblib's own backends hand a call over to another one.
from joblib._parallel_backends import FallbackToBackend, SequentialBackend
from joblib.parallel import ParallelBackendBase, get_active_backend

from .. import engines, errors
from .._executor import _arguments, _reuse
from .._executor._executor import as_builder
from .._executor._nesting import check_call
from .._executor._spec import make_spec
from .._map._progress import check_progress
from .._scheduling._requests import NO_LIMITS
from .._words import count, unknown_option
from .._worker._worker import current
from ._parallel_call import ParallelCall, sharing_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from joblib import Parallel

    from .._executor._thread_limits import InnerThreads
    from .._map._progress import ProgressLike
    from .._scheduling._requests import Limits
    from .._worker._worker import Worker

# What joblib itself passes to `configure` besides what the user gave.
_JOBLIBS_OWN = ("prefer", "require", "verbose", "context", "max_nbytes", "temp_folder", "mmap_mode")


class StatefulBackend(ParallelBackendBase):  # type: ignore[misc]  # joblib is untyped
    """The joblib backend ``"stateful"``: tasks run in workers that each have an object of their own.

    Parameters
    ----------
    worker : class, functools.partial of a class, or factory(function), optional
        What builds each worker's object, which `get_worker` returns in the tasks. None: a stateless pool.
    shared_kwargs : dict, optional
        Constructor kwargs that every worker gets.
    worker_kwargs : list of dict, optional
        One dict per worker, laid over ``shared_kwargs``; their number is ``n_jobs`` where that is not given. Where there
        are neither, ``n_jobs`` is -1 with a ``worker``, and else 1.
    worker_env : list of dict, optional
        Environment variables of each worker's process.
    engine : {"loky", "threads", "inline", "dask", "ray"} or Engine, default "loky"
        What a worker is.
    item_timeout, init_timeout, retries, max_restarts
        See `stateful_map`; an item is one task of joblib, which may be a batch of calls.
    progress : bool, dict, tqdm class or bar, or callable, default False
        See `stateful_map`; one bar per outermost `Parallel` call.
    inner_max_num_threads : int or "leave", optional
        Threads of libraries in each worker's process, where the engine starts one. None: CPUs over workers. ``"leave"``:
        what they take by themselves.
    nesting_level : int, optional
        Set by joblib.

    Raises
    ------
    TypeError, ValueError
        An argument is wrong; nothing was started.

    Notes
    -----
    With one worker joblib runs the calls in the main program:
    ``worker_env``, the limits and ``progress`` are not used, and a warning says so.

    An exception or an abandoned generator drops what is queued and lets what runs finish, so that workers keep
    their objects. After joblib's own ``timeout``, or Ctrl-C, the workers that still run the call are killed.

    Examples
    --------
    >>> from joblib import Parallel, delayed, parallel_config
    >>> from joblib_stateful import get_worker
    >>> def where(item):
    ...     return get_worker()["device"], item
    >>> with parallel_config(backend="stateful", worker=dict, worker_kwargs=[{"device": "cpu:0"}]):
    ...     Parallel()(delayed(where)(item) for item in "ab")
    [('cpu:0', 'a'), ('cpu:0', 'b')]
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True
    uses_threads = False
    supports_sharedmem = False

    def __init__(
        self,
        *,
        worker: Any = None,
        shared_kwargs: Mapping[str, Any] | None = None,
        worker_kwargs: Sequence[Mapping[str, Any]] | None = None,
        worker_env: Sequence[Mapping[str, str]] | None = None,
        engine: str | engines.Engine = "loky",
        item_timeout: float | None = None,
        init_timeout: float | None = None,
        retries: int = 0,
        max_restarts: int = 3,
        progress: ProgressLike = False,
        inner_max_num_threads: InnerThreads = None,
        nesting_level: int | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        if unknown:
            if "n_jobs" in unknown:
                raise TypeError(
                    "n_jobs is joblib's: write parallel_config(backend=StatefulBackend(...), n_jobs=...), or leave it out "
                    "and give one dict per worker in worker_kwargs."
                )
            message = unknown_option('The backend "stateful"', unknown, (*_OPTIONS, "n_jobs"))
            raise TypeError(f"{message[:-1]}, besides what joblib takes for every backend.")
        self._options: dict[str, Any] = {
            "worker": worker,
            "shared_kwargs": shared_kwargs,
            "worker_kwargs": worker_kwargs,
            "worker_env": worker_env,
            "engine": engine,
            "item_timeout": item_timeout,
            "init_timeout": init_timeout,
            "retries": retries,
            "max_restarts": max_restarts,
            "progress": progress,
            "inner_max_num_threads": inner_max_num_threads,
        }
        check_progress(progress)
        self._engine = engines.get(engine)
        self._limits = _arguments.check_limits(self._engine, item_timeout, init_timeout, retries, max_restarts)
        _arguments.check_inner_threads(self._engine, inner_max_num_threads)
        self._spec = make_spec(as_builder(worker), shared_kwargs, worker_kwargs)
        if worker is not None and self._spec.build is None:
            raise TypeError(
                "worker must be what builds the workers' objects (a class or factory(function)), not the stateless "
                f"function {worker!r}: write factory(...) around it if it returns the object; functions that are to be "
                "called with each item are what joblib's delayed() is for.",
            )
        if worker_env is not None:
            _arguments.check_env(worker_env, None, self._engine)
        self._default = self._find_default()
        self._was_asked = False  # for that number
        self._ran_inline = False
        self._inline_lease: _reuse.Lease | None = None
        self._warned = False

    # --- configuration --------------------------------------------------------------------------------

    @property
    def default_n_jobs(self) -> int:
        """The ``n_jobs`` of a Parallel call that is given none.

        joblib asks for it when such a call is made, and at no other time.
        """
        self._was_asked = True
        return self._default

    def _find_default(self) -> int:
        own = self._lists
        if own is not None and (self._spec.worker_kwargs is not None or self._spec.build is not None):
            return len(own[1])
        # Who asks for workers, or for a cluster, must not silently get none.
        return 1 if self._spec.build is None and not self._engine.is_remote else -1

    @property
    def _lists(self) -> tuple[str, Sequence[Any]] | None:
        """What has an entry for each slot, with its name."""
        for name in ("worker_kwargs", "worker_env"):
            if self._options[name]:
                return name, self._options[name]
        return None

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return the number of slots that a Parallel call with this ``n_jobs`` gets."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            n_jobs = self._default
        if n_jobs == 1 or not self._has_workers():
            return 1
        own = self._lists
        if own is not None and n_jobs > len(own[1]):
            name, n_all = own[0], len(own[1])
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"n_jobs={n_jobs}, but there are {name} for {count(n_all, 'worker')}: no more are used.",
                    stacklevel=3,
                )
            return n_all
        if n_jobs < 0:
            n_all = _arguments.n_places(self._engine) if own is None else len(own[1])
            return max(n_all + 1 + n_jobs, 1)
        return n_jobs

    def _has_workers(self) -> bool:
        """Tell whether workers can be had here; where not, joblib's own backends run the calls inline, too."""
        try:
            self._engine.check()
        except errors.EngineError as error:
            if self._engine.is_remote:  # who asked for a cluster has not asked for this process
                raise
            warnings.warn(f"The calls run one after the other, in this process: {error}", RuntimeWarning, stacklevel=4)
            return False
        return True

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Parallel | None = None,
        **backend_kwargs: Any,
    ) -> NoReturn:
        """Have joblib use what runs one Parallel call with this configuration, or run the calls inline."""
        own = {name: value for name, value in backend_kwargs.items() if name not in _JOBLIBS_OWN}
        # joblib sets inner_max_num_threads after it has made a backend.
        options = {**self._options, "inner_max_num_threads": self.inner_max_num_threads, **own}
        config = StatefulBackend(nesting_level=self.nesting_level, **options)
        slots = self._slots_for(n_jobs, config, own)
        if slots == 1:
            # Once; not for calls nested in another one, nor for those within a worker, which are in its care.
            if not self._ran_inline and not self.nesting_level and current() is None:
                config._warn_of_unused()
            self._ran_inline = True
            self._renew_inline()
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        raise FallbackToBackend(ParallelCall(config, parallel, slots, sharing_of(**backend_kwargs)))

    def _warn_of_unused(self) -> None:
        """Warn of options that need a worker, where joblib runs the calls in this process."""
        options = self._options
        unused = [name for name in ("worker_env", "inner_max_num_threads") if options[name] is not None]
        if options["inner_max_num_threads"] == "leave":  # as it is done here
            unused.remove("inner_max_num_threads")
        unused += [name for name, value in NO_LIMITS._asdict().items() if getattr(self._limits, name) != value]
        if options["progress"] is not None and options["progress"] is not False:
            unused.append("progress")
        if unused:
            warnings.warn(
                f"{', '.join(unused)} {'is' if len(unused) == 1 else 'are'} not used: with one worker, as with neither a "
                "worker nor n_jobs, joblib runs the calls in this process. Use n_jobs=2 or more; environment variables can "
                "also be set before the program starts.",
                stacklevel=3,
            )

    def _slots_for(self, n_jobs: int, bound: StatefulBackend, own: Mapping[str, Any]) -> int:
        """Return how many slots one call gets; two different numbers in one and the same call are refused."""
        active, configured = get_active_backend()
        if not own.keys().isdisjoint(_COUNTED):  # Parallel(n_jobs=..., backend="stateful", worker_kwargs=...)
            if self._was_asked and n_jobs == self._default:  # it was not given
                n_jobs = bound._default
            elif n_jobs != configured:
                bound._check_count(n_jobs)
            return bound.effective_n_jobs(n_jobs)
        if (
            active is self and configured is not None
        ):  # parallel_config(n_jobs=..., backend="stateful", worker_kwargs=...)
            self._check_count(configured)
        return self.effective_n_jobs(n_jobs)

    def _check_count(self, n_jobs: int) -> None:
        """Refuse a number of workers that contradicts what was given for each of them."""
        own = self._lists
        if n_jobs <= 0 or own is None or not self._has_workers():
            return
        if own[0] == "worker_kwargs":
            _arguments.resolve_n_jobs(n_jobs, own[1], self._engine)
        if self._options["worker_env"] is not None:
            _arguments.check_env(self._options["worker_env"], n_jobs, self._engine)

    def prepare(self, slots: int) -> Callable[[], _reuse.Lease]:
        """Return what takes a lease of an executor with so many slots; nothing is started yet."""
        spec = self._spec
        runtime = self._engine.make_runtime(slots)
        check_call(self._options["worker"], runtime)
        if spec.worker_kwargs is not None and slots < len(spec.worker_kwargs):
            spec = make_spec(
                as_builder(self._options["worker"]), self._options["shared_kwargs"], list(spec.worker_kwargs[:slots])
            )
        env = self._options["worker_env"]
        if env is not None and len(env) > slots and (spec is not self._spec or spec.worker_kwargs is None):
            env = env[:slots]
        envs = _arguments.check_env(env, slots, self._engine)
        return _reuse.prepare(spec, slots, runtime, envs, self.inner_max_num_threads)

    @property
    def limits(self) -> Limits:
        """How long and how often."""
        return self._limits

    @property
    def progress(self) -> ProgressLike:
        """What is to be shown."""
        found: ProgressLike = self._options["progress"]
        return found

    @property
    def has_worker(self) -> bool:
        """True if it was given what builds the workers' objects."""
        return self._spec.build is not None

    def inline_worker(self) -> Worker | None:
        """Return the worker for calls that joblib runs in this process; None if it has run none."""
        if not self._ran_inline or self._spec.build is None:
            return None
        if self._inline_lease is None or self._inline_lease.pool.is_closed:
            self._inline_lease = self._lease_inline()
            # The object stays as long as this configuration does.
            weakref.finalize(self, _reuse.release_from_finaliser, self._inline_lease).atexit = False
        return self._inline_lease.pool.local_worker()

    def _renew_inline(self) -> None:
        """Give the worker of such calls back if what it was built from was edited since."""
        lease = self._inline_lease
        if lease is None or lease.pool.is_closed:
            return
        present = self._prepare_inline()()
        if present.pool is not lease.pool:
            self._inline_lease = None
            lease.release()
        present.release()

    def _prepare_inline(self) -> Callable[[], _reuse.Lease]:
        spec = self._spec
        if spec.worker_kwargs is not None:
            own = [spec.worker_kwargs[0]]
            spec = make_spec(as_builder(self._options["worker"]), self._options["shared_kwargs"], own)
        return _reuse.prepare(spec, 1, engines.get("inline").make_runtime(1), [{}])

    def _lease_inline(self) -> _reuse.Lease:
        lease = self._prepare_inline()()
        try:
            lease.pool.warm_up(self._limits, 1)
        except BaseException:
            lease.release()
            raise
        return lease

    def submit(self, func: Any, callback: Any = None) -> NoReturn:  # noqa: ARG002 - joblib's signature
        """Refuse what comes from no Parallel call."""
        raise errors.ShutdownError(
            "This backend runs only what a Parallel call gives it: use it by parallel_config(backend=...) or "
            "Parallel(backend=...), or submit to a StatefulExecutor."
        )

    def __reduce__(self) -> Any:
        """Copy or pickle the configuration."""
        options = {**self._options, "inner_max_num_threads": self.inner_max_num_threads}
        return partial(StatefulBackend, nesting_level=self.nesting_level, **options), ()

    def __deepcopy__(self, _: Any) -> Self:
        return copy.copy(self)  # what it holds is never changed, and engines are what they are


# Options that say how many workers there are where ``n_jobs`` doesn't.
_COUNTED = ("worker", "worker_kwargs", "worker_env", "engine")
_OPTIONS = (
    "worker",
    "shared_kwargs",
    "worker_kwargs",
    "worker_env",
    "engine",
    "item_timeout",
    "init_timeout",
    "retries",
    "max_restarts",
    "progress",
    "inner_max_num_threads",
)
