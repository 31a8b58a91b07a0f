"""One `joblib.Parallel` call on workers: joblib's contract for a backend at work."""

from __future__ import annotations

import multiprocessing
import os
import sys
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol

from joblib.disk import memstr_to_bytes
from joblib.parallel import AutoBatchingMixin, ParallelBackendBase

from .. import errors
from .._copies import refuse
from .._executor._futures import Resolver
from .._executor._nesting import check_call
from .._executor._replies import packing_error_of, stand_in
from .._map._progress import Progress, Ticker
from .._process import _locks, _safely
from .._scheduling._requests import Group, Limits, Request
from .._transport._held import Held
from .._transport._noticing import Memory
from .._transport._transport import Sharing
from .._worker._lazy import call_all

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from joblib import Parallel

    from .._executor import _reuse
    from .._executor._pool import WorkerPool
    from .._executor._thread_limits import InnerThreads
    from .._map._progress import ProgressLike
    from .._worker._surroundings import Surroundings

_log = _safely.Log()

# After Ctrl-C, what runs has this long to end before its worker is killed.
_INTERRUPT_GRACE = 0.5
_DROPPED = (
    "This task was dropped before it had run, because its Parallel call ended; or the main thread did, while another one "
    "ran the call: the main thread can join() that one."
)


class Configuration(Protocol):
    """What the call needs of a `StatefulBackend`, whose properties and methods these are."""

    nesting_level: int | None
    inner_max_num_threads: InnerThreads

    @property
    def limits(self) -> Limits:
        """How long and how often."""

    @property
    def progress(self) -> ProgressLike:
        """What is to be shown."""

    def configure(self, n_jobs: int = 1, parallel: Parallel | None = None, **backend_kwargs: Any) -> NoReturn:
        """Have joblib use what runs a Parallel call."""

    def prepare(self, slots: int) -> Callable[[], _reuse.Lease]:
        """Return what takes a lease of an executor with so many slots."""


class ParallelCall(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]  # joblib is untyped
    """Runs one `joblib.Parallel` call; also the next ones of the same `joblib.Parallel` object.

    Parameters
    ----------
    config : StatefulBackend
        How.
    parallel : joblib.Parallel
        Whose call it is.
    slots : int
        Number of slots.
    sharing : Sharing
        How arrays travel.
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True
    uses_threads = False
    supports_sharedmem = False

    def __init__(self, config: Configuration, parallel: Parallel | None, slots: int, sharing: Sharing) -> None:
        super().__init__(nesting_level=config.nesting_level, inner_max_num_threads=config.inner_max_num_threads)
        self._config, self._bound_to, self._slots, self._sharing = config, parallel, slots, sharing
        self._lease: _reuse.Lease | None = None
        self._group = Group()
        self._memory = Memory()
        self._raised: BaseException | None = None
        self._surroundings: Surroundings | None = None
        self._bar = Progress(False, None)
        self._bar_lock = _locks.Lock()  # joblib reports finished batches in several threads
        self._ticker: Ticker | None = None

    def effective_n_jobs(self, n_jobs: int | None) -> int:  # noqa: ARG002 - joblib's signature
        """Return the number of slots."""
        return self._slots

    def configure(self, n_jobs: int = 1, parallel: Parallel | None = None, **backend_kwargs: Any) -> int:
        """Get ready for a call, and return the number of slots."""
        if parallel is not self._bound_to:
            self._config.configure(n_jobs, parallel, **backend_kwargs)
        self.parallel = parallel
        if self._lease is None:
            self._lease = self._config.prepare(self._slots)()
        return self._slots

    def __reduce__(self) -> Any:
        """Refuse to be copied or pickled."""
        refuse(
            self, "it is at work for a Parallel call. Copy the backend that you gave to parallel_config or Parallel."
        )

    @property
    def _pool(self) -> WorkerPool:
        if self._lease is None:
            raise errors.ShutdownError("This Parallel call is over: nothing can be submitted to it any more.")
        return self._lease.pool

    def start_call(self) -> None:
        """Begin a Parallel call."""
        # Its calls fail with it; that is how joblib learns of it.
        self._group = Group(on_error=lambda _: None, n_slots=self._slots)
        self._raised = None
        self._forget_prepared()
        lease, environment = self._lease, None if self._lease is None else self._pool.environment
        self._surroundings = None if lease is None else lease.pool.runtime.surroundings()
        if lease is not None and environment is not None and environment.changes():
            # Within `with Parallel() as parallel`, since the call before.
            lease.release()
            self._lease = self._config.prepare(self._slots)()
        if self.nesting_level == 0:
            self._bar = Progress(self._config.progress, getattr(self.parallel, "n_tasks", None))
            self._bar.open()
            if self._bar.has_words:
                self._ticker = Ticker(self._show_building)

    def _forget_prepared(self) -> None:
        # Not documented API: joblib leaves what it has prepared for a call that then failed, and would run it in the next one
        # of the same object, whose results would have those among them.
        prepared = getattr(self.parallel, "_ready_batches", None)
        while prepared is not None and not prepared.empty():
            prepared.get_nowait()

    def submit(self, func: Callable[[], Any], callback: Callable[[Future[Any]], None] | None = None) -> Future[Any]:
        """Run a batch of joblib's in a worker."""
        for function, _, _ in getattr(func, "items", ())[:1]:  # of a batch of joblib's; the others are like it
            check_call(function, self._pool.runtime)
        future: Future[Any] = Future()
        transport = self._pool.runtime.transport
        definer = transport.definer(memory=self._memory)
        parcel, faults = transport.pack_all([(call_all, (func,), {})], sharing=self._sharing, definer=definer)
        # joblib counts the tasks of a batch before it submits it.
        first = getattr(self.parallel, "n_dispatched_tasks", 0) - getattr(callback, "batch_size", 0)
        index = max(first, 0)
        request = Request(
            1,
            self._group,
            # A future that runs: nobody can cancel it, and if it is dropped that is an error.
            Resolver(future, _DROPPED, _that_can_be_handled),
            self._config.limits,
            parcel=parcel,
            faults={0: packing_error_of(faults[0], index)} if faults else None,
            indices=(index,),
            surroundings=self._surroundings,
        )
        future.set_running_or_notify_cancel()
        if callback is not None:
            future.add_done_callback(callback)
        self._pool.accept(request)
        return future

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """Return what a batch returned, or raise what it raised."""
        error = out.exception()
        if error is not None:
            self._raised = error
            raise error
        return out.result()

    def batch_completed(self, batch_size: int, duration: float) -> None:
        """Learn how long a batch took, and show it."""
        super().batch_completed(batch_size, duration)
        self._show(lambda bar: bar.add(batch_size))

    def _show_building(self) -> None:
        lease = self._lease
        if lease is not None:
            self._show(lambda bar: bar.say(lease.pool.building(self._group)))

    def _show(self, change: Callable[[Progress], None]) -> None:
        try:
            with self._bar_lock:
                change(self._bar)
        except Exception:  # noqa: BLE001 - in a callback thread of joblib's, an error would keep it from going on
            self._bar = Progress(False, None)
            _log.exception("The progress of a Parallel call could not be shown; the call goes on without.")

    def abort_everything(self, ensure_ready: bool = True) -> None:  # noqa: FBT001, FBT002, ARG002 - joblib's signature; workers always stay ready
        """Drop what is queued; what runs may finish, unless it hangs or the user has had enough of it."""
        reason = sys.exception()
        if self._lease is None:
            return
        if reason is None or reason is self._raised:
            self._pool.drop(self._group)
        elif _safely.is_a(reason, KeyboardInterrupt):
            self._pool.interrupt(self._group, _INTERRUPT_GRACE)
        elif _safely.is_a(reason, multiprocessing.TimeoutError):  # joblib's own timeout
            self._pool.interrupt(self._group, 0.0)
        else:
            self._pool.drop(self._group)

    def stop_call(self) -> None:
        """End a Parallel call."""
        if self._ticker is not None:
            self._ticker.end()
        if self._lease is not None:
            self._pool.runtime.flush()
        with self._bar_lock:
            self._bar.close()

    def terminate(self) -> None:
        """Give the executor back; it keeps its objects for the next call."""
        self.reset_batch_stats()
        if self._sharing.held is not None:
            self._sharing.held.clear()
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.release()


# joblib prints the name of the class, and users know it by this one.
ParallelCall.__name__ = "StatefulBackend"


def _that_can_be_handled(error: BaseException) -> BaseException:
    """Return an exception, or what stands for it with which joblib comes to its end."""
    return error if _safely.can_be_handled(error) else stand_in(error)


def sharing_of(
    max_nbytes: int | str | None = "1M", mmap_mode: Any = "r", temp_folder: str | None = None, **_: Any
) -> Sharing:
    """Return how arrays travel under joblib's own arguments for that."""
    threshold = memstr_to_bytes(max_nbytes) if isinstance(max_nbytes, str) else max_nbytes
    folder = temp_folder or os.environ.get("JOBLIB_TEMP_FOLDER") or None
    return Sharing(None if mmap_mode is None else threshold, mmap_mode or "r", folder, held=Held(), named="all")
