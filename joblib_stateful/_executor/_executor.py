"""`StatefulExecutor`: a `concurrent.futures.Executor` whose workers have an object each.

::

      caller's thread                              our threads                        worker processes
    ┌──────────────────┐ Request ┌──────────────────────────────────────┐ Build  ┌──────────────────┐
    │ submit()         │ ──────> │ WorkerPool         lock              │ ─────> │ Worker           │
    │ stateful_map()   │         │  ├ Scheduler   which slot, retry,    │  Run   │  builds object   │
    │ StatefulBackend  │         │  │             restart: decisions    │ ─────> │  runs items      │
    │                  │ <────── │  └ Link, EngineWorker per slot:      │ <───── │  reports         │
    └──────────────────┘ Outcome │                send, close, kill     │  Ran   └──────────────────┘
                                 └──────────────────────────────────────┘

`submit` packs a function and its arguments into a `Request` and hands it to the `WorkerPool`. The `Scheduler` decides which
slot takes it. The slot's `EngineWorker` carries `Build`, `Run` and `Finish` to the `Worker` on the other side and brings its
reply, or a `Death`, which the scheduler turns into outcomes. Each item has one; by that of its own a future is set.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from concurrent.futures import CancelledError, Executor, Future, wait
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from .. import _words, engines, errors
from .._copies import NotCopied
from .._measuring._measures import Measures, clock
from .._process import _safely
from .._scheduling._requests import Group, Limits, Request
from .._transport._noticing import Memory
from .._worker._lazy import calls_object, is_async_class, may_be_async
from . import _arguments, _exit
from ._futures import Resolver
from ._lazily import map_lazily
from ._making import make_pool
from ._nesting import check_call
from ._old_code import CodeWatch
from ._replies import add_note, packing_error_of
from ._spec import PackedSpec, factory, make_spec

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
    from types import TracebackType

    from .._measuring._report import Report
    from .._public import WorkerInfo
    from ._pool import WorkerPool
    from ._thread_limits import InnerThreads

P = ParamSpec("P")
T = TypeVar("T")


# After Ctrl-C, what runs for `run_on_all` has this long to end before its worker is killed (a notebook keeps the others).
_INTERRUPT_GRACE = 0.5
_KILLED = "The executor was shut down with kill_workers=True before this call had ended; submit it to another one."


class StatefulExecutor(NotCopied, Executor):
    """Runs functions in workers that each have built an object of their own.

    Parameters
    ----------
    worker : class, functools.partial of a class, or factory(function), optional
        What builds each worker's object. None: the workers have none.
    n_jobs : int, optional
        Number of slots, each with one worker. None: one per dict in ``worker_kwargs`` or ``worker_env``, else one per CPU.
        Negative as in joblib.
    shared_kwargs : dict, optional
        Constructor kwargs that every worker gets.
    worker_kwargs : list of dict, optional
        Kwargs of each slot, laid over ``shared_kwargs``.
    worker_env : list of dict, optional
        Environment variables of each slot's process, set before any module is imported there.
    engine : {"loky", "threads", "inline", "dask", "ray"} or Engine, default "loky"
        What a worker is: a process, a thread, or whoever calls.
    idle_timeout : float, optional
        Seconds without work after which objects are closed; they are built again when needed. None: never.
    item_timeout : float, optional
        Seconds that one call may run; beyond it, its worker is killed and the call fails with
        `errors.ItemTimeoutError`. None: no limit.
    init_timeout : float, optional
        Seconds that building an object may take; can't be kept by engine ``"inline"``. None: no limit.
    retries : int, default 0
        How often a call is tried again after its worker crashed or timed out.
    max_restarts : int, default 3
        How often in a row a slot's process may die without finishing anything.
    max_tasks_per_worker : int, optional
        Calls after which a worker is closed and its object built anew. None: never.
    max_worker_memory : int or str, optional
        Bytes, or a text such as ``"8GB"``: a worker whose process holds more after a call is closed and its object built
        anew. Engines ``"loky"`` and ``"ray"``. None: never.
    max_concurrency : int, default 1
        Calls under way at once in one worker. Those of async functions, and of an object whose call is async, are awaited in
        the worker's event loop; others run in so many threads of its process, and must be thread-safe. With engine
        ``"inline"`` there is one at a time.
    inner_max_num_threads : int or "leave", optional
        Threads that libraries may use in each worker's process, where the engine starts one (``"loky"``, ``"ray"``).
        None: the CPUs divided by ``n_jobs``. ``"leave"``: what they take by themselves.

    Raises
    ------
    TypeError, ValueError
        An argument is wrong; nothing was started.
    errors.EngineError
        The engine can't be used in this process.

    Notes
    -----
    A plain `concurrent.futures.Executor` otherwise. Each slot is a process of its own, started as loky starts its workers:
    whence crash isolation comes.

    Examples
    --------
    >>> from joblib_stateful import StatefulExecutor, call_worker
    >>> class Adder:
    ...     def __init__(self, to):
    ...         self.to = to
    ...     def __call__(self, item):
    ...         return self.to + item
    >>> with StatefulExecutor(Adder, shared_kwargs={"to": 40}, engine="inline") as executor:
    ...     executor.submit(call_worker, 2).result()
    42
    """

    _instead = (
        "its workers belong to this one, in this process. Pass it on as it is within the process; what is sent to workers, or "
        "to other processes, must not hold it: call it where it is, or have them make their own."
    )

    @_arguments.names_options("StatefulExecutor", "self")
    def __init__(
        self,
        worker: Any = None,
        n_jobs: int | None = None,
        *,
        shared_kwargs: Mapping[str, Any] | None = None,
        worker_kwargs: Sequence[Mapping[str, Any]] | None = None,
        worker_env: Sequence[Mapping[str, str]] | None = None,
        engine: str | engines.Engine = "loky",
        idle_timeout: float | None = None,
        item_timeout: float | None = None,
        init_timeout: float | None = None,
        retries: int = 0,
        max_restarts: int = 3,
        max_tasks_per_worker: int | None = None,
        max_worker_memory: int | str | None = None,
        max_concurrency: int = 1,
        inner_max_num_threads: InnerThreads = None,
    ) -> None:
        self._engine = engines.get(engine)
        self._limits = _arguments.check_limits(
            self._engine, item_timeout, init_timeout, retries, max_restarts, max_worker_memory=max_worker_memory
        )
        spec = make_spec(as_builder(worker), shared_kwargs, worker_kwargs)
        if worker is not None and spec.build is None:
            raise TypeError(
                f"StatefulExecutor takes what builds the workers' objects (a class or factory(function)), not the "
                f"stateless function {worker!r}: submit that instead; or write factory({worker!r}) if it is to be called "
                "once per worker and to return its object.",
            )
        n_slots = _arguments.resolve_n_jobs(n_jobs, spec.worker_kwargs, self._engine, worker_env=worker_env)
        if max_tasks_per_worker is not None:
            _arguments.check_integer("max_tasks_per_worker", max_tasks_per_worker, 1, " None means never.")
        runtime = self._engine.make_concurrent_runtime(
            n_slots, _arguments.check_concurrency(self._engine, max_concurrency)
        )
        self._measures = Measures()
        self._pool = make_pool(
            PackedSpec(spec, runtime.transport),
            n_slots,
            runtime,
            _arguments.check_env(worker_env, n_slots, self._engine),
            max_tasks=max_tasks_per_worker,
            idle_timeout=_arguments.check_seconds("idle_timeout", idle_timeout),
            inner_max_num_threads=inner_max_num_threads,
            measures=self._measures,
        )
        self._shut_at = 0.0
        self._group = Group()
        # For `stop`: what sets a future stands for its call.
        self._resolvers: weakref.WeakKeyDictionary[Future[Any], Resolver] = weakref.WeakKeyDictionary()
        #: For `stateful_map`.
        self.code = CodeWatch(self._pool)
        self._memory = Memory()
        # Dropped without shutdown(): what was submitted is finished, then the workers end.
        self._finalizer = weakref.finalize(self, _close, self._pool)
        self._finalizer.atexit = False
        _exit.register()  # so that it takes no more calls at exit, even if it never started a worker

    @property
    def pool(self) -> WorkerPool:
        """What runs the calls; for `stateful_map`."""
        return self._pool

    @property
    def limits(self) -> Limits:
        """Limits of the calls; for `stateful_map`."""
        return self._limits

    def check_worker(self) -> None:
        """Raise `EngineError` if workers can't build their objects yet, for their class's module is being imported.

        When there is something to do, and not when it is made: services make theirs once, in the module that has the class.
        """
        if not self._pool.has_started:
            check_call(self._pool.packed.spec.build, self._pool.runtime)

    def warn_of_changes(self, stacklevel: int = 3) -> None:
        """Warn, once, if the environment has changed since the workers were started."""
        if self._pool.environment is not None and self._pool.has_workers:
            self._pool.environment.warn_of_changes(stacklevel)

    @property
    def n_jobs(self) -> int:
        """Number of slots."""
        return self._pool.n_jobs

    @overload
    def submit(self, fn: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]: ...
    @overload
    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]: ...
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a function in a worker, where `get_worker` returns that worker's object.

        Parameters
        ----------
        fn : callable
            The function; `call_worker` calls the worker's object. An async function is awaited in the worker's event loop.
        *args, **kwargs
            Its arguments; pickled at once, so changing them later does not matter.

        Returns
        -------
        concurrent.futures.Future
            If the call fails, the exception is the worker's own, with its traceback as ``__cause__``; or one
            of `joblib_stateful.errors`.

        Raises
        ------
        TypeError
            ``fn`` is not callable.
        errors.ShutdownError
            The executor is shut down; a RuntimeError.
        """
        return self._submit("submit", fn, args, kwargs)

    @overload
    def submit_to(
        self, index: int, fn: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]: ...
    @overload
    def submit_to(self, index: int, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]: ...
    def submit_to(self, index: int, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a function in one particular worker; see `submit`.

        Parameters
        ----------
        index : int
            The worker's slot, counted from 0. Its calls start in the order in which they were submitted; those of
            `submit`, which any worker may run, come behind them.
        fn : callable
            The function; `call_worker` calls the worker's object.
        *args, **kwargs
            Its arguments.

        Returns
        -------
        concurrent.futures.Future
            See `submit`.

        Raises
        ------
        TypeError
            ``index`` is no integer, or ``fn`` not callable.
        IndexError
            There is no such slot.
        errors.ShutdownError
            The executor is shut down; a RuntimeError.

        Examples
        --------
        >>> from joblib_stateful import StatefulExecutor, call_worker
        >>> class Shard:
        ...     def __init__(self, words):
        ...         self.words = words
        ...     def __call__(self, start):
        ...         return [word for word in self.words if word.startswith(start)]
        >>> shards = [{"words": ["ant", "ape"]}, {"words": ["bee"]}]
        >>> with StatefulExecutor(Shard, worker_kwargs=shards, engine="threads") as executor:
        ...     executor.submit_to(1, call_worker, "b").result()
        ['bee']
        """
        return self._submit("submit_to", fn, args, kwargs, only=_arguments.check_slot(index, self.n_jobs))

    @overload
    def run_on_all(
        self, fn: Callable[..., Coroutine[Any, Any, T]], /, *args: Any, build: bool = True, **kwargs: Any
    ) -> list[T | None]: ...
    @overload
    def run_on_all(self, fn: Callable[..., T], /, *args: Any, build: bool = True, **kwargs: Any) -> list[T | None]: ...
    def run_on_all(self, fn: Callable[..., Any], /, *args: Any, build: bool = True, **kwargs: Any) -> list[Any]:
        """Run a function once in every worker, each as soon as what it is at has ended, and return when all have.

        To collect statistics, update weights, clear caches.

        Parameters
        ----------
        fn : callable
            The function; `get_worker` returns the worker's object in it.
        *args, **kwargs
            Its arguments.
        build : bool, default True
            Build the objects that don't stand yet first. False: leave those workers out.

        Returns
        -------
        list
            What it returned, by slot; None for workers that were left out.

        Raises
        ------
        Exception
            What it raised in the worker with the lowest slot of those where it has; the others are noted on it.
        errors.ShutdownError
            The executor is shut down; a RuntimeError.

        Examples
        --------
        >>> from joblib_stateful import StatefulExecutor, get_worker_info
        >>> with StatefulExecutor(n_jobs=3, engine="threads") as executor:
        ...     executor.run_on_all(lambda: get_worker_info().index)
        [0, 1, 2]
        """
        if not isinstance(build, bool):
            raise TypeError(f"build must be True or False, not {_words.short(build)}.")
        if self._pool.is_closed:
            raise errors.ShutdownError("This executor is shut down, or its workers are those of another process.")
        if self._pool.is_within_worker():
            raise RuntimeError(
                "run_on_all() in a call of one of the executor's own workers would wait for itself. Call it where the executor "
                "was made; in a worker, get_worker() is its object."
            )
        stand = [build or info.state in ("idle", "busy") for info in self.workers()]
        group = Group()
        futures = [
            self._submit("run_on_all", fn, args, kwargs, only=index, group=group) if is_wanted else None
            for index, is_wanted in enumerate(stand)
        ]
        try:
            _wait_for(futures)
        except BaseException:  # a Ctrl-C: nobody has its futures, and could stop what runs
            self._pool.interrupt(group, _INTERRUPT_GRACE)
            raise
        failed = {
            index: error
            for index, future in enumerate(futures)
            if future is not None and (error := _error_of(future)) is not None
        }
        if failed:
            raise _first_of(failed)
        return [None if future is None else future.result() for future in futures]

    def stop(self, future: Future[Any]) -> bool:
        """End a call of this executor, also one that runs, by killing its worker alone; the future is cancelled.

        The worker's object is built again when it is needed. `Future.cancel` stays what it is in `concurrent.futures`: it
        cancels what has not started.

        Parameters
        ----------
        future : concurrent.futures.Future
            What `submit` or `submit_to` has returned.

        Returns
        -------
        bool
            True if the call is cancelled, now or by an earlier call; False if it was done before, or belongs to another
            executor.

        Raises
        ------
        ValueError
            By its engine the workers can't be killed (``"threads"``, ``"inline"``) and the call runs.

        Examples
        --------
        >>> import time
        >>> from joblib_stateful import StatefulExecutor
        >>> with StatefulExecutor(n_jobs=1) as executor:
        ...     future = executor.submit(time.sleep, 3600)
        ...     executor.stop(future), future.cancelled()
        (True, True)
        """
        if not isinstance(future, Future):
            raise TypeError(
                f"stop() takes a future that submit() or submit_to() has returned, not {_words.short(future)}."
            )
        resolver = self._resolvers.get(future)
        if resolver is None:
            return False
        if future.cancel() or future.done():
            return future.cancelled()
        if not self._engine.has_processes:
            raise ValueError(
                f"By engine={self._engine.name!r} a call that runs can't be stopped, for its worker is no process that could "
                'be killed. Use engine="loky", or have the function itself look at something that tells it to end.'
            )
        self._pool.stop(resolver)
        return future.cancelled()

    def _submit(
        self,
        name: str,
        fn: Callable[..., T],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        only: int | None = None,
        group: Group | None = None,
    ) -> Future[T]:
        if not callable(fn):
            item = _words.short(fn)
            before = "" if name != "submit_to" else f"{only}, "
            raise TypeError(
                f"{name}() takes a function to be run in a worker, and {item} can't be called. To call the worker's object "
                f"with it, write executor.{name}({before}call_worker, {item})."
            )
        self.code.look_again()
        self.warn_of_changes(4)
        runtime = self._pool.runtime
        self.check_worker()
        check_call(fn, runtime)
        future: Future[T] = Future()
        resolver = self._resolvers[future] = Resolver(future, _KILLED)
        transport = runtime.transport
        parcel, faults = transport.pack_all([(fn, args, kwargs)], definer=transport.definer(memory=self._memory))
        request = Request(
            1,
            group or self._group,
            resolver,
            self._limits,
            parcel=parcel,
            faults={0: packing_error_of(faults[0], None)} if faults else None,
            surroundings=runtime.surroundings(),
            claim=future.set_running_or_notify_cancel,
            only=only,
            is_urgent=group is not None,
            is_async=may_be_async(fn) or (calls_object(fn) and is_async_class(self._pool.packed.spec.build)),
        )
        self._pool.accept(request)
        return future

    def workers(self) -> list[WorkerInfo]:
        """Return a `WorkerInfo` per slot."""
        return self._pool.infos()

    def report(self) -> Report:
        """Say where the workers' time went, since the first one was started: in their code, building, or transport.

        All that they did counts: calls, maps on this executor, objects that were built, workers that were lost. Also what
        they are at now.

        Returns
        -------
        Report
            It prints as a few lines with an advice, and is a timeline in a notebook. At any time, from any thread.

        Examples
        --------
        >>> from joblib_stateful import StatefulExecutor
        >>> with StatefulExecutor(n_jobs=2, engine="threads") as executor:
        ...     numbers = list(executor.map(abs, range(100)))
        >>> executor.report().n_items
        100
        """
        from ._report import report_of  # most programs never ask

        if self._pool.is_closed and not self._pool.has_workers:
            self._measures.stop_clock(self._shut_at)
        return report_of(self._measures, self._pool.under_way(), n_at_once=self._pool.runtime.max_concurrency)

    def warm_up(self) -> None:
        """Build every worker's object now, all at the same time, and return when they stand.

        Raises
        ------
        errors.WorkerInitError
            One of them could not be built.
        errors.WorkerCrashedError
            One of them keeps dying as soon as it is built.
        errors.ShutdownError
            The executor is shut down.
        """
        if self._pool.is_closed:
            raise errors.ShutdownError("This executor is shut down, so that nothing can be built; make a new one.")
        self.check_worker()
        self._pool.warm_up(self._limits)

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Run a function in the workers for each item of some iterables, as `concurrent.futures.Executor.map` does.

        `joblib_stateful.stateful_map` is made for many items: lazy, in batches, with a length and a progress bar.

        Parameters
        ----------
        fn : callable
            The function, called with one item of each iterable.
        *iterables
            The items; the shortest one ends the map.
        timeout : float, optional
            Seconds from now after which waiting for a result raises; None: no limit.
        chunksize : int, default 1
            For the sake of the standard library's signature; it has no effect.
        buffersize : int, optional
            How many calls may be under way whose results have not been taken; then the iterables are read lazily. None:
            all are read at once. The standard library's own has it from Python 3.14 on.

        Returns
        -------
        iterator
            The results, in order.

        Raises
        ------
        TypeError, ValueError
            ``buffersize`` is no integer, or less than 1.

        Examples
        --------
        >>> import itertools
        >>> from joblib_stateful import StatefulExecutor
        >>> with StatefulExecutor(n_jobs=2, engine="threads") as executor:
        ...     results = executor.map(abs, itertools.count(-3), buffersize=4)
        ...     [next(results), next(results)]
        [3, 2]
        """
        if buffersize is None:
            return super().map(fn, *iterables, timeout=timeout, chunksize=chunksize)
        return map_lazily(self, fn, iterables, timeout, buffersize)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False, kill_workers: bool = False) -> None:  # noqa: FBT001, FBT002 - the standard library's signature
        """Take no more calls and end the workers.

        Parameters
        ----------
        wait : bool, default True
            Return only when all submitted calls are done and all workers are gone.
        cancel_futures : bool, default False
            Cancel the calls that have not started.
        kill_workers : bool, default False
            Don't wait for calls that run: kill the workers. Their objects are not closed.
        """
        self._shut_at = self._shut_at or clock()
        if cancel_futures:
            self._pool.cancel_queued()
        if kill_workers:
            self._pool.abort()
        self._pool.close(wait=wait)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Shut down; after a Ctrl-C without waiting for what still runs."""
        self.shutdown(
            wait=True, kill_workers=exc_type is KeyboardInterrupt, cancel_futures=exc_type is KeyboardInterrupt
        )

    def _repr_html_(self) -> str:
        from ._html import table_of  # most programs never ask

        return table_of(repr(self), self.workers())

    def __repr__(self) -> str:
        built = self._pool.packed.spec.build
        name = "no object" if built is None else getattr(built, "__qualname__", repr(built))
        counts = "shut down" if self._pool.is_closed else self._pool.counts()
        return f"<StatefulExecutor {name} n_jobs={self.n_jobs} engine={self._engine.name!r}{counts and f': {counts}'}>"


def _wait_for(futures: Iterable[Future[Any] | None]) -> None:
    wait([future for future in futures if future is not None])


def _error_of(future: Future[Any]) -> BaseException | None:
    try:
        return future.exception()
    except CancelledError as error:
        return error


def _first_of(failed: dict[int, BaseException]) -> BaseException:
    """Return the error of the lowest slot, with the others noted on it."""
    (_, error), *others = failed.items()
    for slot, other in others:
        add_note(error, f"slot {slot} failed too: {_safely.name_of(type(other))}: {_safely.text_of(other)}")
    return error


def _close(pool: WorkerPool) -> None:
    _exit.call_from_finaliser(functools.partial(pool.close, wait=False))


def as_builder(worker: Any) -> Any:
    """Return a class so that its objects need not be callable: here functions use them, by `get_worker`."""
    made_from = worker.func if isinstance(worker, functools.partial) else worker
    return factory(worker) if inspect.isclass(made_from) else worker
