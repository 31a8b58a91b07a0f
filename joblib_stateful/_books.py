"""The books that joblib keeps of a map: its generator mode, told of each task from outside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from joblib import Parallel
from joblib.parallel import ParallelBackendBase

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from ._feed import Task

    _Callback: TypeAlias = Callable[[Task], None]


class _Backend(ParallelBackendBase):  # type: ignore[misc]  # joblib is untyped
    """Hands joblib's callbacks over: what they are to be told runs already."""

    supports_retrieve_callback = True

    def __init__(self, attach: Callable[[Task, _Callback], None]) -> None:
        super().__init__(nesting_level=0)
        self._attach = attach

    def effective_n_jobs(self, n_jobs: int) -> int:
        """Say two for one: joblib runs a call inline when a backend reports one worker."""
        return max(2, n_jobs)

    def submit(self, func: Callable[[], list[Task]], callback: _Callback) -> Task:
        """Note whom to tell. joblib's task, called here, gives back ours."""
        (task,) = func()
        self._attach(task, callback)
        return task

    def retrieve_result_callback(self, out: Task) -> list[Task]:
        """Return what joblib shall yield for the task."""
        return [out]


class _Fed(Parallel):  # type: ignore[misc]  # joblib is untyped
    """A Parallel call that gets its tasks one by one from outside."""

    def dispatch_next(self) -> None:
        """Do nothing, when joblib's completion callbacks ask for more input."""

    def finish(self) -> None:
        """Let joblib notice that its input, which held only the first task, is exhausted."""
        super().dispatch_next()

    # Not documented API, but the only way to leave early without a warning.
    def _warn_exit_early(self) -> None:
        pass


class Books:
    """One call of `joblib.Parallel`.

    Parameters
    ----------
    n_jobs : int
        Number of slots.
    ordered : bool
        Yield tasks in the order in which they were noted, or as they are done.
    attach : callable
        Called with each task and with what to call when it is done.
    """

    def __init__(self, n_jobs: int, attach: Callable[[Task, _Callback], None], *, ordered: bool) -> None:
        self._parallel = _Fed(
            n_jobs=n_jobs,
            backend=_Backend(attach),
            return_as="generator" if ordered else "generator_unordered",
            pre_dispatch=1,
            batch_size=1,
            # What a surrounding parallel_config says is meant for other calls.
            verbose=0,
            prefer=None,
            require=None,
            temp_folder=None,
            max_nbytes=None,
            mmap_mode=None,
        )
        self._results: Generator[Task, None, None] | None = None

    def note(self, task: Task) -> None:
        """Have joblib wait for a task."""
        tasks: Iterator[Any] = iter(((_itself, (task,), {}),))
        if self._results is None:
            self._results = self._parallel(tasks)
        else:
            self._parallel.dispatch_one_batch(tasks)

    def take(self) -> Task:
        """Return the next task; it is done."""
        assert self._results is not None  # noqa: S101 - something was noted before it can be settled
        return next(self._results)

    def end(self) -> None:
        """Let joblib's call end; everything that was noted is done, or about to be."""
        if self._results is None:
            return
        self._parallel.finish()
        for _ in self._results:
            pass

    def abort(self) -> None:
        """End joblib's call at once, whatever state an interrupt left it in; only in the consumer's thread."""
        if self._results is not None:
            self._results.close()


def _itself(task: Task) -> Task:
    return task
