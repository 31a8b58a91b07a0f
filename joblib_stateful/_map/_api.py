"""`stateful_map`: its arguments."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, overload

from .._executor import _arguments
from .._worker._lazy import is_async
from ._progress import check_progress
from ._trace import check_trace

if TYPE_CHECKING:
    import os

    from .. import engines
    from .._executor._executor import StatefulExecutor
    from .._executor._thread_limits import InnerThreads
    from .._public import TaskResult
    from .._worker._failure import Failure
    from ._iterator import StatefulMap
    from ._plan import OnError
    from ._progress import ProgressLike
    from ._types import Builder, MapOptions, PassAs, PassOneAs

T = TypeVar("T")


@overload
def stateful_map(
    worker: StatefulExecutor,
    iterable: Iterable[Any],
    *,
    pass_as: PassAs = ...,
    on_error: Literal["immediate", "wait_others"] = ...,
    **options: Unpack[MapOptions],
) -> StatefulMap[Any]: ...
@overload
def stateful_map(
    worker: StatefulExecutor,
    iterable: Iterable[Any],
    *,
    pass_as: PassAs = ...,
    on_error: Literal["deferred"],
    **options: Unpack[MapOptions],
) -> StatefulMap[TaskResult[Any]]: ...
@overload
def stateful_map(
    worker: Builder[Coroutine[Any, Any, Iterable[T | Failure]]],
    iterable: Iterable[Any],
    *,
    pass_as: Literal["batch"],
    on_error: Literal["immediate", "wait_others"] = ...,
    **options: Unpack[MapOptions],
) -> StatefulMap[T]: ...
@overload
def stateful_map(
    worker: Builder[Coroutine[Any, Any, Iterable[T | Failure]]],
    iterable: Iterable[Any],
    *,
    pass_as: Literal["batch"],
    on_error: Literal["deferred"],
    **options: Unpack[MapOptions],
) -> StatefulMap[TaskResult[T]]: ...
@overload
def stateful_map(
    worker: Builder[Coroutine[Any, Any, T]],
    iterable: Iterable[Any],
    *,
    pass_as: PassOneAs = ...,
    on_error: Literal["immediate", "wait_others"] = ...,
    **options: Unpack[MapOptions],
) -> StatefulMap[T]: ...
@overload
def stateful_map(
    worker: Builder[Coroutine[Any, Any, T]],
    iterable: Iterable[Any],
    *,
    pass_as: PassOneAs = ...,
    on_error: Literal["deferred"],
    **options: Unpack[MapOptions],
) -> StatefulMap[TaskResult[T]]: ...
@overload
def stateful_map(
    worker: Callable[..., Coroutine[Any, Any, Iterable[T | Failure]]],
    iterable: Iterable[Any],
    *,
    pass_as: Literal["batch"],
    on_error: Literal["immediate", "wait_others"] = ...,
    **options: Unpack[MapOptions],
) -> StatefulMap[T]: ...
@overload
def stateful_map(
    worker: Callable[..., Coroutine[Any, Any, Iterable[T | Failure]]],
    iterable: Iterable[Any],
    *,
    pass_as: Literal["batch"],
    on_error: Literal["deferred"],
    **options: Unpack[MapOptions],
) -> StatefulMap[TaskResult[T]]: ...
@overload
def stateful_map(
    worker: Callable[..., Coroutine[Any, Any, T]],
    iterable: Iterable[Any],
    *,
    pass_as: PassOneAs = ...,
    on_error: Literal["immediate", "wait_others"] = ...,
    **options: Unpack[MapOptions],
) -> StatefulMap[T]: ...
@overload
def stateful_map(
    worker: Callable[..., Coroutine[Any, Any, T]],
    iterable: Iterable[Any],
    *,
    pass_as: PassOneAs = ...,
    on_error: Literal["deferred"],
    **options: Unpack[MapOptions],
) -> StatefulMap[TaskResult[T]]: ...
@overload
def stateful_map(
    worker: Builder[Iterable[T | Failure]],
    iterable: Iterable[Any],
    *,
    pass_as: Literal["batch"],
    on_error: Literal["immediate", "wait_others"] = ...,
    **options: Unpack[MapOptions],
) -> StatefulMap[T]: ...
@overload
def stateful_map(
    worker: Builder[Iterable[T | Failure]],
    iterable: Iterable[Any],
    *,
    pass_as: Literal["batch"],
    on_error: Literal["deferred"],
    **options: Unpack[MapOptions],
) -> StatefulMap[TaskResult[T]]: ...
@overload
def stateful_map(
    worker: Builder[T],
    iterable: Iterable[Any],
    *,
    pass_as: PassOneAs = ...,
    on_error: Literal["immediate", "wait_others"] = ...,
    **options: Unpack[MapOptions],
) -> StatefulMap[T]: ...
@overload
def stateful_map(
    worker: Builder[T],
    iterable: Iterable[Any],
    *,
    pass_as: PassOneAs = ...,
    on_error: Literal["deferred"],
    **options: Unpack[MapOptions],
) -> StatefulMap[TaskResult[T]]: ...
@overload
def stateful_map(
    worker: Callable[..., Iterable[T | Failure]],
    iterable: Iterable[Any],
    *,
    pass_as: Literal["batch"],
    on_error: Literal["immediate", "wait_others"] = ...,
    **options: Unpack[MapOptions],
) -> StatefulMap[T]: ...
@overload
def stateful_map(
    worker: Callable[..., Iterable[T | Failure]],
    iterable: Iterable[Any],
    *,
    pass_as: Literal["batch"],
    on_error: Literal["deferred"],
    **options: Unpack[MapOptions],
) -> StatefulMap[TaskResult[T]]: ...
@overload
def stateful_map(
    worker: Callable[..., T],
    iterable: Iterable[Any],
    *,
    pass_as: PassOneAs = ...,
    on_error: Literal["immediate", "wait_others"] = ...,
    **options: Unpack[MapOptions],
) -> StatefulMap[T]: ...
@overload
def stateful_map(
    worker: Callable[..., T],
    iterable: Iterable[Any],
    *,
    pass_as: PassOneAs = ...,
    on_error: Literal["deferred"],
    **options: Unpack[MapOptions],
) -> StatefulMap[TaskResult[T]]: ...
@_arguments.names_options("stateful_map")
def stateful_map(
    worker: Any,
    iterable: Iterable[Any],
    *,
    n_jobs: int | None = None,
    shared_kwargs: Mapping[str, Any] | None = None,
    worker_kwargs: Sequence[Mapping[str, Any]] | None = None,
    worker_env: Sequence[Mapping[str, str]] | None = None,
    pass_as: PassAs = "item",  # noqa: S107 - no password
    ordered: bool = True,
    on_error: OnError = "immediate",
    batch_size: int | Literal["auto"] = "auto",
    buffer: int | Literal["auto"] = "auto",
    max_concurrency: int = 1,
    isolate: bool = True,
    route: Callable[[Any], int] | None = None,
    item_timeout: float | None = None,
    init_timeout: float | None = None,
    retries: int = _arguments.RETRIES,
    max_restarts: int = _arguments.MAX_RESTARTS,
    max_worker_memory: int | str | None = None,
    inner_max_num_threads: InnerThreads = None,
    progress: ProgressLike = False,
    total: int | None = None,
    trace: str | os.PathLike[str] | None = None,
    engine: str | engines.Engine = "loky",
) -> StatefulMap[Any]:
    """Map items through workers that each have built an object of their own, once.

    Parameters
    ----------
    worker : class, factory(function), callable, or StatefulExecutor
        A class, or a `functools.partial` of one: built once per worker from its kwargs, then called with each
        item. `factory` (function): likewise, with what the function returns. Any other callable is stateless and
        called as it is. A `StatefulExecutor` is used as it is and stays the caller's; its limits hold where none
        are given here (``retries=0`` is given, a time limit of None is not).
    iterable : iterable
        The items; pulled only in the thread that calls ``next()``, never further ahead than ``buffer``.
    n_jobs : int, optional
        Number of workers. None: one per dict in ``worker_kwargs`` or ``worker_env``, else as the active
        `joblib.parallel_config` says, else one per CPU. Negative as in joblib.
    shared_kwargs : dict, optional
        Constructor kwargs that every worker gets.
    worker_kwargs : list of dict, optional
        One dict per worker, laid over ``shared_kwargs``.
    worker_env : list of dict, optional
        Environment variables of each worker's process, set before any module is imported there.
    pass_as : {"item", "args", "kwargs", "batch"}, default "item"
        Call ``worker(item)``, ``worker(*item)``, ``worker(**item)``, or ``worker([item, ...])`` with several items at
        once, which returns one result for each: a sequence, or the rows of an array, tensor or frame. The rest is as
        with single items: length, order, progress, errors. A worker that can tell which items it could not do puts
        `Failure` (exception) in the place of their results.
    ordered : bool, default True
        Yield results in the order of the input, or as they finish.
    on_error : {"immediate", "wait_others", "deferred"}, default "immediate"
        Raise a worker's exception as soon as it is known; or when the items that run have ended and their
        results are yielded; or never, and yield a `TaskResult` for each item.
    batch_size : int or "auto", default "auto"
        Items sent in one message. "auto" follows the measured item times; long items travel alone. Under
        ``pass_as="batch"`` most items of one call; "auto" lets calls grow as long as that gives more items per second,
        and makes them smaller if one runs out of memory.
    buffer : int or "auto", default "auto"
        Most items pulled from the input and not yet done with, the one in the consumer's hand included. "auto"
        follows the batch size, and what items and results weigh (64 MiB in all, but one item per worker).
    max_concurrency : int, default 1
        Items under way at once in one worker. Calls of an async worker (``async def __call__``, or an async function) are
        awaited in an event loop that each worker has; others are run in so many threads of its process, and must be
        thread-safe. They travel one by one. With engine ``"inline"`` there is one at a time.
    isolate : bool, default True
        Under ``pass_as="batch"`` a call that raises is repeated in halves, until those items are alone that make it
        raise: only they fail. False: all items of the call do, and none is run twice.
    route : callable, optional
        ``route(item)`` returns the number of the worker, counted from 0, that must run the item: the one that holds its
        shard, say. Called in the consumer's thread. Items of one worker start in the order of the input. An item without
        such a number fails; if a worker's object can't be built, its items do, and under ``on_error="deferred"`` the others
        are done. None: any worker runs any item.
    item_timeout : float, optional
        Seconds one item may run; beyond it its worker is killed and the item fails with
        `errors.ItemTimeoutError`. One that is awaited is cancelled first, and its worker lives on if it takes that. A call with several items may run that many times as long. None: no limit.
    init_timeout : float, optional
        Seconds that building an object may take; can't be kept by engine ``"inline"``. None: no limit.
    retries : int, default 0
        How often an item is tried again, on another worker where there is one, after its worker crashed or timed
        out. An exception that the worker raises is never retried.
    max_restarts : int, default 3
        How often in a row a worker may die without finishing anything.
    max_worker_memory : int or str, optional
        Bytes, or a text such as ``"8GB"`` or ``"500MiB"``: a worker whose process holds more after an item is closed, and its
        object built anew. Never in mid-item. Engines ``"loky"`` and ``"ray"``. None: no limit.
    inner_max_num_threads : int or "leave", optional
        Threads of libraries in each worker's process, where the engine starts one (``"loky"``, ``"ray"``).
        None: CPUs over workers. ``"leave"``: what they take by themselves.
    progress : bool, dict, tqdm class or bar, or callable, default False
        True shows a `tqdm.auto` bar, a dict gives it arguments; a callable gets the number of items that newly
        finished. Called in the consumer's thread only.
    total : int, optional
        The length of an input that has none.
    trace : path, optional
        A file to write: in the Trace Event Format, which https://ui.perfetto.dev and ``chrome://tracing`` show, what every
        worker, the input and the loop over the results did, and when. `StatefulMap.report` says it in a few words.
    engine : {"loky", "threads", "inline", "dask", "ray"} or Engine, default "loky"
        Workers are processes, threads, or the calling thread.

    Returns
    -------
    StatefulMap
        An iterator over the results. Nothing starts before its first ``next()``.

    Raises
    ------
    TypeError, ValueError
        An argument is wrong; nothing was started. While iterating: whatever the worker or the input raises,
        and the exceptions of `joblib_stateful.errors`.

    Notes
    -----
    The input is fed by hand through joblib's generator mode. When items travel in
    batches and a worker dies, the item that was running pays, and the others of its batch run again one by one;
    ``batch_size=1`` makes it strictly at most once. Under ``pass_as="batch"`` all items of the call pay, and are tried
    again in halves if there are ``retries``.

    Examples
    --------
    >>> from joblib_stateful import stateful_map
    >>> class Adder:
    ...     def __init__(self, to):
    ...         self.to = to  # load a model, open a connection
    ...     def __call__(self, item):
    ...         return self.to + item
    >>> list(stateful_map(Adder, range(3), n_jobs=2, shared_kwargs={"to": 10}))
    [10, 11, 12]
    """
    _arguments.check_iterable(iterable)
    pass_as = _arguments.check_choice("pass_as", pass_as, ("item", "args", "kwargs", "batch"))
    if not isinstance(isolate, bool):
        raise TypeError(f"isolate must be True or False, not {isolate!r}.")
    if not isolate and pass_as != "batch":  # noqa: S105 - no password
        raise ValueError(
            'isolate=False is about calls with many items, and has no effect without pass_as="batch". Leave it out, or write that.'
        )
    on_error = _arguments.check_choice("on_error", on_error, ("immediate", "wait_others", "deferred"))
    if route is not None and not callable(route):
        raise TypeError(f"route must be a function from an item to the number of a worker, not {route!r}.")
    if is_async(route):
        raise TypeError(
            "route is async, and is called in this thread, which runs no event loop: write a plain function."
        )
    check_progress(progress)
    for name, value in (("batch_size", batch_size), ("buffer", buffer)):
        if value != "auto":
            _arguments.check_integer(name, value, 1, ' Or write "auto".')
    path = check_trace(trace)
    if total is not None:
        _arguments.check_integer("total", total, 0, " It is the number of items that the input will have.")
    from ._iterator import StatefulMap
    from ._plan import make_plan

    plan = make_plan(
        worker,
        iterable,
        n_jobs=n_jobs,
        shared_kwargs=shared_kwargs,
        worker_kwargs=worker_kwargs,
        worker_env=worker_env,
        pass_as=pass_as,
        ordered=ordered,
        on_error=on_error,
        batch_size=batch_size,
        buffer=buffer,
        isolate=isolate,
        route=route,
        trace=path,
        limits={
            "item_timeout": item_timeout,
            "init_timeout": init_timeout,
            "retries": retries,
            "max_restarts": max_restarts,
            "max_worker_memory": max_worker_memory,
        },
        max_concurrency=max_concurrency,
        inner_max_num_threads=inner_max_num_threads,
        progress=progress,
        total=total,
        engine=engine,
    )
    return StatefulMap(plan)
