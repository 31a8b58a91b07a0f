"""From the arguments of `stateful_map` to what a run needs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn

from .. import engines
from .._executor import _arguments, _reuse
from .._executor._executor import StatefulExecutor
from .._executor._nesting import check_call
from .._executor._replies import add_note
from .._executor._spec import make_spec, pack_function
from ._batching import ALONE_SECONDS, REMOTE_ALONE_SECONDS, Batching

if TYPE_CHECKING:
    from pathlib import Path

    from .._executor._pool import WorkerPool
    from .._executor._thread_limits import InnerThreads
    from .._scheduling._requests import Limits, Target
    from .._transport._transport import Transport
    from .._worker._messages import AfterError, Mode
    from .._worker._surroundings import Surroundings
    from ._progress import ProgressLike

OnError = Literal["immediate", "wait_others", "deferred"]

AFTER_ERROR: dict[OnError, AfterError] = {
    "immediate": "drop",
    "wait_others": "finish_running",
    "deferred": "go_on",
}


# The defaults of `stateful_map`, told by identity: next to an executor, ``retries=0`` means 0.
_NOT_GIVEN = {
    "item_timeout": None,
    "init_timeout": None,
    "retries": _arguments.RETRIES,
    "max_restarts": _arguments.MAX_RESTARTS,
    "max_worker_memory": None,
}


# What is raised by code that expects a list of items, and is given one of them.
_OF_SCALARS = (TypeError, AttributeError, IndexError, ValueError)


class Plan(NamedTuple):
    """What a map was asked to do; nothing of it has started."""

    open: Callable[[], tuple[WorkerPool, Callable[[], None]]]  # the pool, and how to give it back
    target: Target | None  # the function to be called with each item, if not the worker's object
    iterable: Iterable[Any]
    length: int | None
    pass_as: Mode
    ordered: bool
    on_error: OnError
    limits: Limits
    batching: Batching
    progress: ProgressLike
    transport: Transport
    synchronous: bool
    n_jobs: int  # slots that it uses
    n_places: int  # messages that they can be at
    surroundings: Callable[[], Surroundings | None]
    isolate: bool = True
    route: Callable[[Any], int] | None = None
    trace: Path | None = None
    indexed: bool = False  # yield a TaskResult for each item under every policy

    def ended(self) -> Plan:
        """Return the plan of a map that is over, which keeps neither its workers nor its input alive."""
        return self._replace(open=_open_nothing, iterable=(), target=None)


def make_plan(
    worker: Any,
    iterable: Iterable[Any],
    *,
    n_jobs: int | None,
    shared_kwargs: Mapping[str, Any] | None,
    worker_kwargs: Sequence[Mapping[str, Any]] | None,
    worker_env: Sequence[Mapping[str, str]] | None,
    pass_as: Mode,
    ordered: bool,
    on_error: OnError,
    batch_size: int | Literal["auto"],
    buffer: int | Literal["auto"],
    isolate: bool,
    route: Callable[[Any], int] | None,
    trace: Path | None,
    limits: dict[str, Any],
    max_concurrency: int,
    inner_max_num_threads: InnerThreads,
    progress: ProgressLike,
    total: int | None,
    engine: str | engines.Engine,
) -> Plan:
    """Return what a map shall do, with the engine, the limits and the slots that it shall have."""
    target = None
    opening: Callable[[], tuple[WorkerPool, Callable[[], None]]]
    if isinstance(worker, StatefulExecutor):
        _refuse_next_to_executor(
            n_jobs=n_jobs,
            shared_kwargs=shared_kwargs,
            worker_kwargs=worker_kwargs,
            worker_env=worker_env,
            max_concurrency=None if max_concurrency == 1 else max_concurrency,
            inner_max_num_threads=inner_max_num_threads,
            engine=None if engine == "loky" else engine,
        )
        runtime, slots, opening = _open_owned(worker)
        chosen = runtime.engine
        checked = _arguments.check_limits(chosen, **_inherit(limits, worker.limits))
    else:
        _arguments.check_worker(worker)
        chosen = engines.get(engine)
        checked = _arguments.check_limits(chosen, **limits)
        spec = make_spec(worker, shared_kwargs, worker_kwargs)
        slots = _arguments.resolve_n_jobs(
            n_jobs, spec.worker_kwargs, chosen, _configured_n_jobs(), worker_env=worker_env
        )
        envs = _arguments.check_env(worker_env, slots, chosen)
        runtime = chosen.make_concurrent_runtime(slots, _arguments.check_concurrency(chosen, max_concurrency))
        check_call(worker, runtime)
        if spec.build is None:
            target = pack_function(worker, runtime.transport)
        lease = _reuse.prepare(spec, slots, runtime, envs, inner_max_num_threads)

        def opening() -> tuple[WorkerPool, Callable[[], None]]:
            taken = lease()
            return taken.pool, taken.release

    if route is not None and slots == 1:
        raise ValueError(
            "route says which of several workers runs an item, and this map has one. Leave route out, or give n_jobs=2 or "
            "more, or worker_kwargs with a dict for each."
        )
    n_places = slots * runtime.max_concurrency
    if batch_size == "auto" and runtime.max_concurrency > 1 and pass_as != "batch":  # noqa: S105 - no password
        batch_size = 1  # each result as it is ready, and none behind another one
    return Plan(
        open=opening,
        target=target,
        iterable=iterable,
        length=_length_of(iterable, total),
        pass_as=pass_as,
        ordered=bool(ordered),
        on_error=on_error,
        limits=checked,
        batching=(
            # One worker alone gets its items in their order, and so do those with a route; and what "wait_others" has not run
            # lies behind all that it has.
            _sizes_of_calls(
                n_places, batch_size, buffer, may_choose=slots > 1 and route is None and on_error != "wait_others"
            )
            if pass_as == "batch"  # noqa: S105 - no password
            else Batching(
                n_places,
                _arguments.check_batch_size(chosen, checked, batch_size),
                buffer,
                alone_seconds=REMOTE_ALONE_SECONDS if chosen.is_remote else ALONE_SECONDS,
            )
        ),
        progress=progress,
        transport=runtime.transport,
        synchronous=chosen.is_synchronous,
        n_jobs=slots,
        n_places=n_places,
        surroundings=runtime.surroundings,
        isolate=isolate,
        route=route,
        trace=trace,
    )


def _open_nothing() -> NoReturn:
    raise AssertionError("a map that is over needs no workers")


def explain_batch_size(plan: Plan, errors: Mapping[int, BaseException]) -> None:
    """Note on the first item's error what ``batch_size`` is, if whoever has set it may have thought of another thing."""
    size, error = plan.batching.fixed, errors.get(0)
    if size is not None and size > 1 and not plan.batching.is_of_calls and isinstance(error, _OF_SCALARS):
        add_note(
            error,
            f"batch_size={size} says how many items travel in one message; the worker is called with one at a time. To have "
            'it called with a list of them, and return a list of results, write pass_as="batch"',
        )


def _configured_n_jobs() -> int | None:
    """Return what the active `joblib.parallel_config` says; without joblib there is none."""
    if "joblib" not in sys.modules:
        return None
    from joblib.parallel import get_active_backend

    n_jobs: int | None = get_active_backend()[1]
    return n_jobs


def _length_of(iterable: Any, total: int | None) -> int | None:
    try:
        return len(iterable)
    except Exception:  # noqa: BLE001 - it has none, or none that it can tell: some data sets raise, some are too long
        return total


def _refuse_next_to_executor(**own: Any) -> None:
    given = [name for name, value in own.items() if value is not None]
    if given:
        raise TypeError(
            f"{', '.join(given)} can't be given next to a StatefulExecutor, which has its own. Give them when you "
            "make the executor, or pass the worker class instead of the executor.",
        )


def _sizes_of_calls(
    n_places: int, batch_size: int | Literal["auto"], buffer: int | Literal["auto"], *, may_choose: bool
) -> Batching:
    from ._call_sizes import CallSizes  # here, for its statistics take 5 ms to import

    return CallSizes(n_places, batch_size, buffer, is_of_alike=may_choose and batch_size == "auto")


def _open_owned(
    executor: StatefulExecutor,
) -> tuple[engines.Runtime, int, Callable[[], tuple[WorkerPool, Callable[[], None]]]]:
    """Return what a map needs of an executor that the caller owns."""
    pool = executor.pool
    executor.check_worker()
    executor.code.look()
    if pool.packed.spec.build is None:
        raise TypeError(
            "This StatefulExecutor was made without a worker, so that there is no object to call with the items. "
            "Write StatefulExecutor(YourClass, ...), or pass the function itself to stateful_map.",
        )

    def give_back(_: StatefulExecutor = executor) -> None:
        """Hold the executor until the map is done with it."""

    def opening() -> tuple[WorkerPool, Callable[[], None]]:
        executor.warn_of_changes(8)  # who has asked for the first result
        return pool, give_back

    return pool.runtime, pool.n_jobs, opening


def _inherit(limits: Mapping[str, Any], own: Limits) -> dict[str, Any]:
    """Return the limits given, and for those that are not given the executor's."""
    return {name: getattr(own, name) if value is _NOT_GIVEN[name] else value for name, value in limits.items()}
