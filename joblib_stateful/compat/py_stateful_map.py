"""The names of py_stateful_map on top of `stateful_map`: change the import line, and the program runs.

Differences to know about: each worker's object is built inside its process, when its first item comes, and not in
the main program; a constructor that raises is thus an `errors.WorkerInitError` from the first ``next()``. A pool can
be mapped more than once, its workers and their objects living until the ``with`` block is left. A worker that dies
is an error of its item instead of a hang. ``len()`` of results whose input has no length is a `TypeError`.
"""

from __future__ import annotations

import numbers
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from .. import errors
from .._executor._executor import StatefulExecutor
from .._executor._spec import Factory, factory, make_spec
from .._map._api import stateful_map
from .._map._iterator import StatefulMap, with_indices
from .._words import a, count

if TYPE_CHECKING:
    from types import TracebackType

    from .._map._plan import OnError
    from .._map._types import PassAs
    from .._public import TaskResult

__all__ = ["ArgumentPassing", "ExceptionBehavior", "ResultIterator", "StateFullWorkerPool", "WorkerResultWrapper"]

T = TypeVar("T")


class ArgumentPassing:
    """How a worker is called with an item: ``worker(item)``, ``worker(*item)`` or ``worker(**item)``."""

    AS_SINGLE_ARG: Final = "single_arg"
    AS_ARGS: Final = "args"
    AS_KWARGS: Final = "kwargs"


class ExceptionBehavior:
    """What an exception of a worker does: is raised at once, after what runs has ended, or is a result's field."""

    IMMEDIATE: Final = "immediate"
    IMMEDIATE_WAIT_OTHERS: Final = "immediate_wait_others"
    DEFERRED: Final = "deferred"


_PASS_AS: Mapping[str, PassAs] = {
    ArgumentPassing.AS_SINGLE_ARG: "item",
    ArgumentPassing.AS_ARGS: "args",
    ArgumentPassing.AS_KWARGS: "kwargs",
}
_ON_ERROR: Mapping[str, OnError] = {
    ExceptionBehavior.IMMEDIATE: "immediate",
    ExceptionBehavior.IMMEDIATE_WAIT_OTHERS: "wait_others",
    ExceptionBehavior.DEFERRED: "deferred",
}


@dataclass(eq=False)
class WorkerResultWrapper:
    """What became of one item.

    Attributes
    ----------
    obj_id : int
        Position of the item in the input, counted from 0.
    ret_val : object
        What the worker returned; None if it raised.
    exception_obj : BaseException or None
        What it raised; always None unless the pool's ``exception_behavior`` is ``"deferred"``.
    """

    obj_id: int
    ret_val: Any
    exception_obj: BaseException | None


class ResultIterator:
    """Iterates over the results of one `StateFullWorkerPool.map`; has the length of the input."""

    def __init__(self, results: StatefulMap[TaskResult[Any]]) -> None:
        self._results = results

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> WorkerResultWrapper:
        result = next(self._results)
        return WorkerResultWrapper(result.index, result.value, result.exception)

    def __len__(self) -> int:
        return len(self._results)


class StateFullWorkerPool:
    """A context manager whose `map` sends items through workers that each have an object of their own.

    Parameters
    ----------
    num_workers : int
        Number of workers; less than 1 means 1.
    worker_class_or_func : class or callable
        A class is built once per worker and then called with each item; a function is called as it is.
    shared_kwarg_dict : dict, optional
        Constructor kwargs that every worker gets.
    worker_kwarg_dict_arr : list of dict, optional
        One dict per worker, laid over the shared ones.
    chunk_size : int, default 100
        Most items pulled from the input and not yet done with, in the order of the input.
    chunk_prefill_ratio : int, default 2
        As many times ``chunk_size`` when the results are unordered; less than 1 means 1.
    use_threads : bool, default False
        Workers are threads instead of processes.
    argument_passing : {"single_arg", "args", "kwargs"}
        See `ArgumentPassing`.
    exception_behavior : {"immediate", "immediate_wait_others", "deferred"}
        See `ExceptionBehavior`.
    join_timeout : float, optional
        Seconds that the workers have, when the ``with`` block is left, to close their objects and end; then
        they are killed. None: no limit. A worker that still runs an item by then is killed in any case.

    Raises
    ------
    TypeError, ValueError
        An argument is wrong; nothing was started.

    Notes
    -----
    How many items travel in one message is chosen by `stateful_map`; ``chunk_size`` only bounds what is on its way.

    Examples
    --------
    >>> class Adder:
    ...     def __init__(self, to):
    ...         self.to = to
    ...     def __call__(self, item):
    ...         return self.to + item
    >>> with StateFullWorkerPool(2, Adder, {"to": 10}, use_threads=True) as pool:
    ...     [(result.obj_id, result.ret_val) for result in pool.map([1, 2], is_unordered=False)]
    [(0, 11), (1, 12)]
    """

    def __init__(  # noqa: PLR0917 - the predecessor's signature
        self,
        num_workers: int,
        worker_class_or_func: Callable[..., Any] | Factory[Any],
        shared_kwarg_dict: Mapping[str, Any] | None = None,
        worker_kwarg_dict_arr: Sequence[Mapping[str, Any]] | None = None,
        chunk_size: int = 100,
        chunk_prefill_ratio: int = 2,
        use_threads: bool = False,  # noqa: FBT001, FBT002 - the predecessor's signature
        argument_passing: str = ArgumentPassing.AS_SINGLE_ARG,
        exception_behavior: str = ExceptionBehavior.IMMEDIATE,
        join_timeout: float | None = None,
    ) -> None:
        self.num_workers = max(_whole("num_workers", num_workers), 1)
        self.chunk_size = _whole("chunk_size", chunk_size)
        if self.chunk_size < 1:
            raise ValueError(f"chunk_size must be 1 or more, not {chunk_size!r}.")
        self.chunk_prefill_ratio = max(_whole("chunk_prefill_ratio", chunk_prefill_ratio), 1)
        self.use_threads = bool(use_threads)
        self.argument_passing, self.exception_behavior = argument_passing, exception_behavior
        self._pass_as = _choice("argument_passing", argument_passing, _PASS_AS)
        self._on_error = _choice("exception_behavior", exception_behavior, _ON_ERROR)
        self.join_timeout = _seconds("join_timeout", join_timeout)
        shared = _check_kwargs("shared_kwarg_dict", {} if shared_kwarg_dict is None else shared_kwarg_dict)
        own = None
        if worker_kwarg_dict_arr is not None:
            own = _check_worker_kwargs(worker_kwarg_dict_arr, self.num_workers)
        worker: Any = worker_class_or_func
        if not callable(worker) and not isinstance(worker, Factory):
            raise TypeError(f"worker_class_or_func must be a class or a function, not {worker!r}.")
        if make_spec(worker, shared, own).build is None:  # an executor has objects: here it is the function itself
            worker, shared, own = factory(_itself), {"function": worker}, None
        self._executor = StatefulExecutor(
            worker,
            self.num_workers,
            shared_kwargs=shared,
            worker_kwargs=own,
            engine="threads" if self.use_threads else "loky",
        )

    def map(self, input_iterable: Iterable[Any], is_unordered: bool) -> ResultIterator:  # noqa: FBT001 - the predecessor's signature
        """Map items through the workers.

        Parameters
        ----------
        input_iterable : iterable
            The items; pulled as results are taken.
        is_unordered : bool
            Yield results as they finish, instead of in the order of the input.

        Returns
        -------
        ResultIterator
            An iterator over a `WorkerResultWrapper` for each item. Nothing starts before its first ``next()``.

        Raises
        ------
        errors.ShutdownError
            The pool's ``with`` block was left.
        """
        if self._executor.pool.is_closed:
            raise errors.ShutdownError("This pool's with block was left; make a new StateFullWorkerPool.")
        results: StatefulMap[Any] = stateful_map(
            self._executor,
            input_iterable,
            pass_as=self._pass_as,
            ordered=not is_unordered,
            on_error=self._on_error,
            buffer=self.chunk_size * (self.chunk_prefill_ratio if is_unordered else 1),
        )
        return ResultIterator(with_indices(results))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """End the workers: nobody waits for what still runs, while idle ones may close their objects."""
        pool = self._executor.pool
        pool.kill(only_busy=True)
        pool.close(wait=False)
        if not pool.wait_until_empty(self.join_timeout):
            pool.kill()

    def __repr__(self) -> str:
        return f"<StateFullWorkerPool of {self._executor!r}>"


def _itself(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def _choice(name: str, value: Any, choices: Mapping[str, T]) -> T:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}.")
    return choices[value]


def _whole(name: str, value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{name} must be a whole number, not {value!r}.") from None


def _seconds(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float, numbers.Real)):
        raise TypeError(f"{name} must be a number of seconds or None for no limit, not {value!r}.")
    seconds = float(value)
    if not seconds >= 0:
        raise ValueError(f"{name} must be 0 seconds or more, not {value!r}; write None for no limit.")
    return seconds if seconds < threading.TIMEOUT_MAX else None


def _check_kwargs(name: str, kwargs: Any) -> dict[str, Any]:
    if not isinstance(kwargs, Mapping) or not all(isinstance(key, str) for key in kwargs):
        raise TypeError(f"{name} must be a dict with argument names as keys, not {kwargs!r}.")
    return dict(kwargs)


def _check_worker_kwargs(kwargs: Any, num_workers: int) -> list[dict[str, Any]]:
    if isinstance(kwargs, (Mapping, str)) or not isinstance(kwargs, Sequence):
        raise TypeError(
            f"worker_kwarg_dict_arr must be a list with one dict per worker, not {a(type(kwargs).__name__)}.",
        )
    if len(kwargs) != num_workers:
        raise ValueError(
            f"num_workers={num_workers}, but worker_kwarg_dict_arr has {count(len(kwargs), 'entry')}; give one dict per "
            "worker.",
        )
    return [_check_kwargs(f"worker_kwarg_dict_arr[{i}]", own) for i, own in enumerate(kwargs)]
