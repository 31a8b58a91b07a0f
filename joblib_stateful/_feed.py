"""Feeding joblib's generator mode by hand: only in the consumer's thread, one batch at a time.

joblib by itself pulls the input in callback threads and keeps every result that was not taken yet, so its
memory grows with a slow consumer. Here its callbacks dispatch nothing: each batch is handed over, as one joblib
task, when the consumer has room for it, and joblib's generator is asked only when the next result is there, so
that its 10 ms poll is never waited for.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from joblib import Parallel
from joblib.parallel import ParallelBackendBase

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from ._core import Core
    from ._records import Call


class _FeedBackend(ParallelBackendBase):  # type: ignore[misc]  # joblib is untyped
    """Hands batches from joblib to a core, and settled ones back."""

    supports_retrieve_callback = True

    def __init__(self, core: Core, on_back: Callable[[Call], None]) -> None:
        super().__init__(nesting_level=0)
        self._core, self._on_back = core, on_back

    def effective_n_jobs(self, n_jobs: int) -> int:
        """Say two for one: joblib runs a call inline when a backend reports one worker."""
        return max(2, n_jobs)

    def submit(self, func: Callable[[], list[Call]], callback: Callable[[Call], None] | None = None) -> Call:
        """Give a batch to the core. joblib's task, called here, gives back the batch that it wraps."""
        (call,) = func()

        def settled(call: Call) -> None:
            if callback is not None:
                callback(call)
            self._on_back(call)

        call.on_settled = settled
        try:
            self._core.accept(call)
        except RuntimeError as error:  # shut down in mid-map
            call.fatal = error
            settled(call)
        return call

    def retrieve_result_callback(self, out: Call) -> list[Call]:
        """Return what joblib shall yield for the task."""
        return [out]


class _FedParallel(Parallel):  # type: ignore[misc]  # joblib is untyped
    """A Parallel call that gets its tasks one by one from outside."""

    def dispatch_next(self) -> None:
        """Do nothing, when joblib's completion callbacks ask for more input."""

    def finish(self) -> None:
        """Let joblib notice that its input, which held only the first task, is exhausted."""
        super().dispatch_next()

    # Not documented API, but the only way to leave early without a warning.
    def _warn_exit_early(self) -> None:
        pass


class Feed:
    """Batches on their way through joblib.

    Parameters
    ----------
    core : Core
        What runs them.
    ordered : bool
        Take them back in the order in which they were sent, or as they are settled.
    note_back : callable
        Called with each batch as it is settled, in any thread, one at a time and before waiters are woken.
    """

    def __init__(self, core: Core, note_back: Callable[[Call], None], *, ordered: bool) -> None:
        self._core, self._ordered, self._note_back = core, ordered, note_back
        self.changed = threading.Condition()
        self.pending: dict[Call, None] = {}  # sent and not settled
        self._order: deque[Call] = deque()  # sent and not taken; kept only if that is the order of taking
        self._n_back = 0  # settled and not taken
        self._parallel: _FedParallel | None = None
        self._results: Generator[Call, None, None] | None = None

    def send(self, call: Call) -> None:
        """Hand a batch to joblib."""
        with self._core.protected():
            self._send(call)

    def _send(self, call: Call) -> None:
        with self.changed:
            self.pending[call] = None
            if self._ordered:
                self._order.append(call)
        task: Iterator[Any] = iter(((_itself, (call,), {}),))
        if self._parallel is None:
            self._parallel = _FedParallel(
                n_jobs=self._core.n_jobs,
                backend=_FeedBackend(self._core, self._back),
                return_as="generator" if self._ordered else "generator_unordered",
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
            self._results = self._parallel(task)
        else:
            self._parallel.dispatch_one_batch(task)

    def _back(self, call: Call) -> None:
        with self.changed:
            self._note_back(call)
            del self.pending[call]
            self._n_back += 1
            self.changed.notify_all()

    def sent(self) -> list[Call]:
        """Return the batches that were sent and are not settled."""
        with self.changed:
            return list(self.pending)

    @property
    def n_running(self) -> int:
        """Batches that were sent and are not settled."""
        return len(self.pending)

    @property
    def is_ready(self) -> bool:
        """True if the next batch to be taken is settled."""
        return self._order[0] not in self.pending if self._order else self._n_back > 0

    def take(self) -> Call:
        """Take the next batch; it is ready."""
        assert self._results is not None  # noqa: S101 - something was sent before it can be ready
        call = next(self._results)
        with self.changed:
            self._n_back -= 1
            if self._ordered:
                self._order.popleft()
        return call

    def end(self) -> None:
        """Let joblib's call end; everything that was sent is settled, or about to be."""
        if self._parallel is None or self._results is None:
            return
        self._parallel.finish()
        for _ in self._results:
            pass
        self._results = None

    def abort(self) -> None:
        """End joblib's call at once, whatever state an interrupt left it in; only in the consumer's thread."""
        if self._results is not None:
            self._results.close()
            self._results = None


def _itself(call: Call) -> Call:
    return call
