"""joblib's generator mode, by which all batches of a map go out and come back, fed by hand.

joblib by itself pulls the input in callback threads and keeps every result that was not taken yet, so its
memory grows with a slow consumer. Here its callbacks dispatch nothing: a batch is one task of joblib's, dispatched by the
consumer's thread when there is room for it. Its generator is asked only for what is there, so that its 10 ms poll is never
waited for. It costs 5 µs of CPU time per batch.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from typing import TYPE_CHECKING, Any


@contextlib.contextmanager
def _start_method_left_open() -> Iterator[None]:
    """Let joblib ask which start method multiprocessing has, which would settle it: the program may still want to set one."""
    is_settled = multiprocessing.get_start_method(allow_none=True) is not None
    try:
        yield
    finally:
        # Another one than the default has been set meanwhile, by another thread.
        if not is_settled and multiprocessing.get_start_method() == multiprocessing.get_all_start_methods()[0]:
            multiprocessing.set_start_method(None, force=True)


with _start_method_left_open():
    from joblib import Parallel
    from joblib.parallel import ParallelBackendBase

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from .._executor._pool import WorkerPool
    from ._batches import Batch


class _Backend(ParallelBackendBase):  # type: ignore[misc]  # joblib is untyped
    """Submits batches to the workers of a map."""

    supports_retrieve_callback = True

    def __init__(self, pool: WorkerPool) -> None:
        super().__init__(nesting_level=0)
        self._pool = pool
        #: The batch of the task that joblib is about to submit: calling that would set up joblib's context only to ask for it.
        self.batch: Batch

    def effective_n_jobs(self, n_jobs: int) -> int:
        """Say two for one: joblib runs a call inline when a backend reports one worker."""
        return max(2, n_jobs)

    def submit(self, func: Callable[[], Any], callback: Callable[[Batch], None]) -> Batch:  # noqa: ARG002 - joblib's interface
        """Have a batch run."""
        batch = self.batch
        del self.batch  # or the last one would live, with its results, until joblib's objects are collected as garbage
        batch.send(self._pool, callback)
        return batch

    def retrieve_result_callback(self, out: Batch) -> list[Batch]:
        """Return what joblib shall yield for the task."""
        return [out]


class _Fed(Parallel):  # type: ignore[misc]  # joblib is untyped
    """A Parallel call that gets its tasks one by one from outside."""

    def dispatch_next(self) -> None:
        """Do nothing, when joblib's completion callbacks ask for more input."""

    def dispatch(self, task: Any) -> None:
        """Have one task more submitted.

        Not documented API: what `dispatch_one_batch` does when it has sorted out how many of many tasks go together, by which
        a batch costs 12 µs.
        """
        with self._lock:
            self._dispatch((task,))

    # Not documented API, but the only way to leave early without a warning.
    def _warn_exit_early(self) -> None:
        pass


class BatchGenerator:
    """One call of `joblib.Parallel`, whose tasks are batches; used by one thread at a time.

    Parameters
    ----------
    pool : WorkerPool
        What runs them.
    ordered : bool
        Take them in the order in which they were sent, or as they begin to come back.
    """

    def __init__(self, pool: WorkerPool, *, ordered: bool) -> None:
        with _start_method_left_open():
            self._backend = _Backend(pool)
            self._parallel = _Fed(
                n_jobs=pool.n_jobs,
                backend=self._backend,
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
        self._batches: Generator[Batch, None, None] | None = None

    def send(self, batch: Batch) -> None:
        """Have a batch run."""
        self._backend.batch = batch
        if self._batches is None:
            self._batches = self._parallel(iter((_TASK,)))
        else:
            self._parallel.dispatch(_TASK)

    def take(self) -> Batch:
        """Return the next batch, of which something has come back."""
        assert self._batches is not None  # noqa: S101 - something was sent before
        return next(self._batches)

    def end(self) -> None:
        """End joblib's call at once, whatever state it is in, and in any thread."""
        batches, self._batches = self._batches, None
        if batches is None:
            return
        # Not by running to its end: garbage collection may have closed the generator within joblib's generator already, and
        # joblib then takes what is still to come for done. Not `close()`, of which joblib warns in another thread than the
        # one that has begun the call.
        with contextlib.suppress(_LeftError, StopIteration):
            batches.throw(_LeftError)

    def __del__(self) -> None:
        if getattr(self, "_batches", None) is not None:  # or it would be closed, at the end of the interpreter
            self.end()


class _LeftError(BaseException):
    """Ends joblib's generator, as nothing that it catches would."""


def _nothing() -> None:
    pass


# All of joblib's tasks: what each is about is the batch that it is submitted for.
_TASK: Any = (_nothing, (), {})
