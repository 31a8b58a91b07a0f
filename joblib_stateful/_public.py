"""The records that users are given: of an item, and of a worker.

Imported where one is made: making a dataclass takes more than a millisecond, and most programs and workers need none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TaskResult(Generic[T]):
    """What became of one item; `stateful_map` yields these under ``on_error="deferred"``.

    Attributes
    ----------
    index : int
        Position of the item in the input, counted from 0.
    value : object
        What the worker returned; None if it raised.
    exception : BaseException or None
        What it raised. A worker that *returns* an exception has returned a value.

    Examples
    --------
    >>> TaskResult(0, "a", None).unwrap()
    'a'
    """

    index: int
    value: T | None = None
    exception: BaseException | None = None

    @property
    def ok(self) -> bool:
        """True if the worker returned, False if the item failed."""
        return self.exception is None

    def unwrap(self) -> T:
        """Return the value, or raise the exception."""
        if self.exception is not None:
            __tracebackhide__ = True
            raise self._as_it_came(self.exception)
        return self.value  # type: ignore[return-value]  # None is a value a worker may return

    def _as_it_came(self, error: BaseException) -> BaseException:
        """Return an exception without what an earlier `unwrap` has added to its traceback."""
        frames = error.__traceback__
        while frames is not None:
            code, variables, frames = frames.tb_frame.f_code, frames.tb_frame.f_locals, frames.tb_next
            if code is TaskResult.unwrap.__code__ and variables.get("self") is self:
                return BaseException.with_traceback(error, frames)
        return error


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """What is known of one slot and its worker.

    Attributes
    ----------
    index : int
        The slot, counted from 0.
    n_jobs : int
        Number of slots: in a worker, those of the call that it works for; else those of the executor. ``index`` is
        less than that.
    kwargs : mapping
        What the worker's object is built from: shared kwargs with the slot's own laid over them.
    state : str
        ``"empty"`` (no worker yet), ``"building"``, ``"idle"``, ``"busy"`` or ``"closing"``.
    pid : int or None
        Its process, while it has one.
    n_done : int
        Items it finished, in all its lives.
    n_restarts : int
        How often its process died and was given up.
    n_builds : int
        How often its object was built.
    init_seconds : float or None
        What the latest construction took.
    busy_seconds : float
        Seconds spent in calls, in all its lives.
    n_threads : int or None
        How many threads it is meant to use, to be passed on to libraries that take a number:
        ``inner_max_num_threads``, or else the CPUs over the workers; on a cluster the CPUs of the worker's machine. None
        for what has not been told yet, and where it can't be known.
    """

    index: int
    n_jobs: int
    kwargs: Mapping[str, Any]
    state: str = "busy"
    pid: int | None = None
    n_done: int = 0
    n_restarts: int = 0
    n_builds: int = 0
    init_seconds: float | None = None
    busy_seconds: float = 0.0
    n_threads: int | None = None
