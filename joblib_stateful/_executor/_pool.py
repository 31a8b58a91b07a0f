"""The worker pool: what callers ask of it. How that comes about is its driver's."""

from __future__ import annotations

import sys
import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from .. import errors
from .._process import _locks, _timers
from .._process._interrupts import seconds_late, wait_for
from .._scheduling._decisions import Deliver
from .._scheduling._requests import Group, Outcome
from .._scheduling._slots import State
from .._worker._worker import CANCEL_SECONDS, current
from . import _exit

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._public import WorkerInfo
    from .._scheduling._decisions import Decisions
    from .._scheduling._jobs import Call
    from .._scheduling._requests import Limits, Record, Request
    from .._scheduling._scheduler import Scheduler
    from .._worker._progress_page import Progress
    from .._worker._surroundings import Environment, Surroundings
    from .._worker._worker import Worker
    from ..engines import Engine, Runtime
    from ._driver import Driver
    from ._spec import PackedSpec


class WorkerPool:
    """Slots, their workers, and the calls given to them.

    Parameters
    ----------
    driver : Driver
        What puts the scheduler's decisions to work.
    idle_timeout : float or None
        Seconds without work after which idle workers are closed.
    """

    def __init__(self, driver: Driver, *, idle_timeout: float | None = None) -> None:
        self.idle_timeout = idle_timeout
        self.is_disowned = False
        self._driver = driver
        driver.owner = self
        _exit.watch(self)

    @property
    def packed(self) -> PackedSpec:
        """What is built in the workers."""
        return self._driver.packed

    @property
    def n_jobs(self) -> int:
        """Number of slots."""
        return self._driver.n_jobs

    @property
    def engine(self) -> Engine:
        """What the workers are."""
        return self._driver.engine

    @property
    def runtime(self) -> Runtime:
        """What opens them."""
        return self._driver.runtime

    @property
    def environment(self) -> Environment | None:
        """What the workers were started with; None where they share this process's, or are elsewhere."""
        return self._driver.environment

    @property
    def _scheduler(self) -> Scheduler:
        return self._driver.scheduler

    def grow(self, other: WorkerPool) -> None:
        """Add slots, until there are as many as in another pool that was made for the same and has not started.

        Workers that run keep the environment that they have.
        """
        if other.n_jobs > self.n_jobs:
            self._driver.note(partial(self._driver.grow, other._driver))

    def disown(self) -> None:
        """In a fork: let go of the parent's workers, without a word to them, and take no calls."""
        self.is_disowned = True
        self._driver.disown()

    def __repr__(self) -> str:
        built = self.packed.spec.build
        name = "without objects" if built is None else f"of {getattr(built, '__qualname__', built)}"
        return f"<WorkerPool {name} engine={self.engine.name!r} {self._scheduler!r}>"

    # --- for callers ----------------------------------------------------------------------------------

    def accept(self, request: Request) -> None:
        """Take a request, whose ``deliver`` is called with what becomes of its items."""
        if self.is_disowned:
            raise errors.ShutdownError(
                "This executor was made before os.fork(), and its workers are the parent's. Make a new one here.",
            )
        if request.surroundings is not None:
            self._driver.surroundings = request.surroundings
        if not _locks.is_held():
            self._driver.note_now(partial(self._scheduler.submit, request))
        elif self._scheduler.closing:
            self._scheduler.submit(request)  # which raises, and looks at nothing else
        else:
            _locks.call_elsewhere(partial(self._accept_now, request))
            return
        self._driver.has_called()

    def _accept_now(self, request: Request) -> None:
        try:
            self._driver.note(lambda: self._scheduler.submit(request))
        except RuntimeError as error:  # it was shut down since
            self._driver.deliver(
                Deliver(request.deliver, Outcome(range(request.size), [], is_dropped=True, fatal=error))
            )

    def begin(self, group: Group, limits: Limits, surroundings: Surroundings | None, n_slots: int) -> None:
        """Have up to so many slots build their objects for a group, whose requests will come in a moment."""
        if self.engine.is_synchronous or self.is_disowned:
            return
        if surroundings is not None:
            self._driver.surroundings = surroundings
        self._driver.note(lambda: self._scheduler.begin(group, limits, n_slots))

    def drop(self, group: Group) -> None:
        """Forget the calls of a group; items that run now finish in the background."""
        self._driver.note(lambda: self._scheduler.drop(group))

    def stop_after_running(self, group: Group) -> None:
        """Let items of a group that run now finish, and drop the rest of it."""
        self._driver.note(lambda: self._scheduler.stop_after_running(group))

    def stop(self, deliver: Callable[[Outcome], object]) -> None:
        """End a call at once, told by what it delivers to, and the worker that runs it, if it is not over.

        One that is awaited is cancelled, and its worker is ended only if it doesn't take that.
        """
        found: list[Call] = []

        def end() -> Decisions:
            found[:] = [call for call in self._scheduler.work.calls_of() if call.request.deliver is deliver]
            return [decision for call in found for decision in self._end_of(call)]

        self._driver.note(end)
        if any(self._can_cancel(call) for call in found):
            _timers.call_after(CANCEL_SECONDS, partial(self._stop_all, found))

    def _can_cancel(self, call: Call) -> bool:
        return call.request.is_async and not self.engine.is_remote

    def _end_of(self, call: Call) -> Decisions:
        return self._scheduler.cancel(call) if self._can_cancel(call) else self._scheduler.stop(call)

    def _stop_all(self, calls: list[Call]) -> None:
        self._driver.note(lambda: [decision for call in calls for decision in self._scheduler.stop(call)])

    def is_within_worker(self) -> bool:
        """Tell whether the calling code runs in one of the workers, in this process."""
        worker = current()
        workers = [link.worker.here for link in self._driver.links if link]
        return worker is not None and any(here is not None and here.life is worker.life for here in workers)

    def share(self, group: Group) -> None:
        """Have idle slots get a share of what runs of a group: nothing else can come for them at present."""
        group.sharing = True  # seen by whoever frees a slot from now on
        if self._scheduler.slots.free:
            self._driver.note(lambda: self._scheduler.share(group))

    def n_behind(self, group: Group) -> int:
        """Return how many items of a group are finished in messages that are not answered yet, as far as that is seen."""
        with self._driver.lock:
            pages = self._pages_of(group)
        return sum(max(0, min(page.n_finished, size)) for seq, size, page in pages if page.seq == seq)

    def _pages_of(self, group: Group) -> list[tuple[int, int, Progress]]:
        """Return the numbers and sizes of messages under way for a group, and what is seen of each."""
        return [
            (seq, len(job.positions), link.worker.progress_of(seq))
            for slot, link in zip(self._scheduler.slots, self._driver.links, strict=True)
            for seq, job in slot.jobs.items()
            if link and job.call.group is group
        ]

    @property
    def has_objects(self) -> bool:
        """True if a worker stands, so that nothing has to be built first."""
        with self._driver.lock:
            states = [slot.state for slot in self._scheduler.slots]
        return State.IDLE in states or State.BUSY in states

    def building(self, group: Group) -> str:
        """Say what is being built for a group, if nothing can come before that is done; for a bar."""
        with self._driver.lock:
            width = self._scheduler.work.width(group)
            states = [slot.state for slot in self._scheduler.slots.first(width)]
        n_building = states.count(State.BUILDING)
        if not n_building or State.BUSY in states:
            return ""
        what = "starting" if self.packed.spec.build is None else "building"
        return f"{what} {n_building} of {width}"

    def interrupt(self, group: Group, grace: float) -> None:
        """Drop the calls of a group, and kill its workers that are still busy ``grace`` seconds after the Ctrl-C.

        Those that are only being started, and have come to no code of the user's, are killed at once.
        """
        done, started = False, time.monotonic() - seconds_late()
        try:
            self.drop(group)
            self._driver.note(lambda: self._scheduler.kill(group, only=self._driver.is_starting))
            with self._driver.changed:
                rest = max(0.0, started + grace - time.monotonic())
                done = wait_for(self._driver.changed, lambda: not self._scheduler.is_running(group), rest)
        finally:  # also if Ctrl-C is pressed again: that ends the grace
            _exit.note_interrupt(time.monotonic() - started)
            if not done:
                self._driver.note(lambda: self._scheduler.kill(group))

    def warm_up(self, limits: Limits, n_slots: int = sys.maxsize) -> None:
        """Build all objects that don't stand, or those of the first so many slots, and return when they do."""
        if _locks.is_held():
            raise RuntimeError("warm_up() in a finaliser would wait for what the thread is at in which that runs.")
        # With an `on_error`, so that an error ends all of it, and is found in `group.error`.
        group = Group(on_error=lambda _: None, n_slots=n_slots)
        self._driver.surroundings = self.runtime.surroundings()
        again = False
        # Again, if a slot that somebody else had begun to build came to nothing, or one has died as soon as it was built.
        while not self._scheduler.is_warm(group) and not self._scheduler.closing:
            self._driver.note(partial(self._scheduler.warm, group, limits, again=again))
            with self._driver.changed:
                wait_for(self._driver.changed, lambda: group.error or not self._scheduler.is_warming)
            if group.error is not None:
                raise group.error
            again = True

    def local_worker(self) -> Worker:
        """Return the worker of slot 0 itself; only of a synchronous engine, once its object stands."""
        worker = self._driver.link(0).worker.local
        assert worker is not None  # noqa: S101 - the caller knows the engine
        return worker

    def infos(self) -> list[WorkerInfo]:
        """Return what is known of each slot."""
        from .._public import WorkerInfo  # not under the lock, where finalisers could run that want it, too

        if _locks.is_held():
            return [self._info(index, WorkerInfo) for index in range(self.n_jobs)]
        with self._driver.lock:
            return [self._info(index, WorkerInfo) for index in range(self.n_jobs)]

    @property
    def is_awaited(self) -> bool:
        """True if somebody waits for a call that was submitted by itself."""
        with self._driver.lock:
            groups = self._scheduler.work.groups()
        return any(group.on_error is None for group in groups)

    def under_way(self, group: Group | None = None) -> list[Record]:
        """Return what workers are at for a group, or for any, and since when."""
        return self._driver.under_way(group)

    def counts(self) -> str:
        """Say how many slots are in which state, and how many calls wait; for people."""
        with self._driver.lock:
            states = Counter(slot.state.value for slot in self._scheduler.slots if slot.state is not State.EMPTY)
            n_queued = len(self._scheduler.work.jobs)
        words = [f"{states[state.value]} {state.value}" for state in State if states[state.value]]
        return ", ".join(words + [f"{n_queued} queued"] * bool(n_queued))

    @property
    def has_workers(self) -> bool:
        """True unless all slots are empty."""
        return not self._scheduler.is_empty

    @property
    def has_started(self) -> bool:
        """True once a worker was opened."""
        return any(self._driver.links)

    @property
    def is_closed(self) -> bool:
        """True once no further calls are taken."""
        return self._scheduler.closing

    def close(self, *, wait: bool = True) -> None:
        """Take no more calls, finish those taken, then close the workers."""
        self._driver.note(self._scheduler.close)
        if wait:
            self.wait_until_empty()

    def wait_until_empty(self, timeout: float | None = None) -> bool:
        """Wait until no worker is left; False if that took longer than ``timeout`` seconds, or can't be waited for."""
        if _locks.is_held():  # in a finaliser, and then others may wait for this thread
            return False
        if self._driver.is_answering:
            raise RuntimeError(
                "shutdown(wait=True) in a callback of one of the executor's own futures would wait for itself: the "
                "workers end when the callback has returned. Use shutdown(wait=False) there."
            )
        with self._driver.changed:
            return wait_for(
                self._driver.changed,
                lambda: self._scheduler.is_empty and self._scheduler.is_idle,
                timeout,
            )

    def finish(self) -> None:
        """Take no more calls, and return when those taken are done with; workers may still be ending."""
        self.close(wait=False)
        with self._driver.changed:
            wait_for(self._driver.changed, lambda: self._scheduler.is_idle)

    def kill_unended(self, seconds: float) -> None:
        """Kill what was given so many seconds to end, with a warning for each worker."""
        with self._driver.lock:
            closing = [slot.state is State.CLOSING for slot in self._scheduler.slots]
            links = list(self._driver.links)
        unended = [(index, link.worker) for index, link in enumerate(links) if link and closing[index]]
        for index, worker in unended:
            self._driver.closes.tell(index, worker, seconds)
        self.kill()

    def cancel_queued(self) -> None:
        """Drop what has not started."""
        self._driver.note(self._scheduler.drop_not_started)

    def abort(self) -> None:
        """Take no more calls, drop those taken, and kill the workers before any of them is closed."""

        def end() -> Decisions:
            dropped = self._scheduler.drop()  # first, or it would close those that are idle
            self._scheduler.closing = True
            return [*dropped, *self._scheduler.kill(idle_too=True)]

        self._driver.note(end)

    def kill(self, *, only_busy: bool = False) -> None:
        """Drop everything and kill workers; with ``only_busy``, not those that are idle or being closed."""
        self._driver.note(self._scheduler.drop)
        self._driver.note(lambda: self._scheduler.kill(idle_too=not only_busy))

    def release(self) -> None:
        """Close the workers that are idle; they come back when they are needed."""
        self._driver.release()

    # --- looking --------------------------------------------------------------------------------------

    def _info(self, index: int, make: type[WorkerInfo]) -> WorkerInfo:
        slot, link = self._scheduler.slots[index], self._driver.links[index]
        pid = None if link is None or slot.state is State.EMPTY or slot.is_killed else link.worker.pid
        return make(
            index=index,
            n_jobs=self.n_jobs,
            kwargs=self.packed.spec.kwargs(index),
            state=slot.state.value,
            pid=pid,
            n_done=slot.n_done,
            n_restarts=slot.n_restarts,
            n_builds=slot.n_builds,
            init_seconds=slot.init_seconds,
            busy_seconds=slot.busy_seconds,
            n_threads=None if link is None or slot.state is State.EMPTY else link.n_threads,
        )
