"""The scheduler put to work: one lock around it, its decisions carried out on the workers of a runtime.

Events come from callers (`accept`, `drop`, ...), from workers (their replies, in any thread) and from the
clock (time limits). Each is noted under the lock; what the scheduler decides is done outside of it.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections import Counter, deque
from functools import partial
from typing import TYPE_CHECKING

from .. import errors
from .._process import _locks, _safely, _timers
from .._process._interrupts import uninterrupted, wait_for
from .._scheduling._decisions import (
    CloseWorker,
    Decision,
    Decisions,
    Deliver,
    FailGroup,
    KillWorker,
    SendJob,
    ShareJob,
    StartWorker,
    StopJob,
)
from .._scheduling._requests import Group, Limits, Outcome, Report
from .._scheduling._scheduler import Scheduler
from .._scheduling._slots import State
from .._worker._messages import Build, BuildFailed, Built, Death, Failure, Finish, Ran, Reply, Run
from .._worker._surroundings import Environment
from ..errors import why_condemned
from . import _exit, _room
from ._links import Link
from ._replies import NonsenseError, init_error_of, packing_error_of, read_answer, receive, report_without
from ._timeouts import CloseWatch, IdleWatch, LimitWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .._public import WorkerInfo
    from .._scheduling._jobs import Call, Job
    from .._scheduling._requests import Request
    from .._transport._transport import Parcel
    from .._worker._progress_page import Progress
    from .._worker._surroundings import Surroundings
    from .._worker._worker import Worker
    from ..engines import EngineWorker, Runtime
    from ._spec import PackedSpec

_log = _safely.Log()

# What users' code has made calls from, while an answer was taken, has so long to come back before it is taken for waiting.
_PATIENCE_SECONDS = 0.05


class WorkerPool:
    """Slots, their workers, and the calls given to them.

    Parameters
    ----------
    packed : PackedSpec
        What to build.
    n_jobs : int
        Number of slots.
    runtime : Runtime
        What opens workers.
    envs : callable
        Returns the environment variables of each slot; called when a worker is to be opened.
    max_tasks : int or None
        Items after which an object is built anew.
    idle_timeout : float or None
        Seconds without work after which idle workers are closed.
    depth : int
        How many workers are above these.
    """

    def __init__(
        self,
        packed: PackedSpec,
        n_jobs: int,
        runtime: Runtime,
        envs: Callable[[], Sequence[dict[str, str]]],
        *,
        max_tasks: int | None = None,
        idle_timeout: float | None = None,
        depth: int = 0,
    ) -> None:
        self._depth = depth
        engine = runtime.engine
        self.packed, self.n_jobs, self.idle_timeout = packed, n_jobs, idle_timeout
        self.engine, self.runtime = engine, runtime
        self._envs = envs
        self.is_disowned = False
        self._lock = _locks.make_lock()  # guards the scheduler and the workers
        # Entered only to wait: its methods are Python's own, and a Ctrl-C between them and the lock leaves that held.
        self._changed = threading.Condition(self._lock)
        self._scheduler = Scheduler(n_jobs, max_tasks=max_tasks, in_turn=engine.is_synchronous)
        self._name_kwargs()
        self._links: list[Link | None] = [None] * n_jobs
        # Threads that bring an answer, and so run users' code: each with the worker whose answer it is.
        self._answering: dict[int, _Answering] = {}
        self._surroundings: Surroundings | None = None  # of the latest call
        #: What the workers were started with; None where they share this process's, or are elsewhere.
        self.environment = Environment() if engine.has_processes and not engine.is_remote else None
        self._limits = LimitWatch(n_jobs, self._changed, self._is_under_way, self._expire, self._condemn)
        self._idle = IdleWatch(idle_timeout, self._scheduler, self.release)
        self._closes = CloseWatch(can_kill=engine.has_processes)
        _exit.watch(self)

    def grow(self, other: WorkerPool) -> None:
        """Add slots, until there are as many as in another pool that was made for the same and has not started.

        Workers that run keep the environment that they have.
        """
        if other.n_jobs > self.n_jobs:
            self._note(lambda: self._grow(other))

    def _grow(self, other: WorkerPool) -> Decisions:
        more = other.n_jobs - self.n_jobs
        if more <= 0:  # another thread was faster
            return []
        self.packed, self._envs, self.n_jobs = other.packed, other._envs, other.n_jobs
        self._links += [None] * more
        self._limits.grow(self.n_jobs)
        decisions = self._scheduler.grow(self.n_jobs)
        self._name_kwargs()
        return decisions

    def _name_kwargs(self) -> None:
        for slot in self._scheduler.slots:
            slot.kwargs_keys = tuple(self.packed.spec.kwargs(slot.index))

    def disown(self) -> None:
        """In a fork: let go of the parent's workers, without a word to them, and take no calls."""
        self._lock = _locks.make_lock()  # the parent's may be held for ever
        self._changed = threading.Condition(self._lock)
        self._scheduler = Scheduler(self.n_jobs)
        self._scheduler.closing = self.is_disowned = True
        for link in self._links:
            if link is not None:
                link.worker.disown()

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
            self._surroundings = request.surroundings
        if _locks.is_held() and not self._scheduler.closing:
            _locks.call_elsewhere(partial(self._accept_now, request))
            return
        self._note(lambda: self._scheduler.submit(request))
        if self._answering and (answering := self._answering.get(threading.get_ident())) is not None:
            answering.look_after()

    def _accept_now(self, request: Request) -> None:
        try:
            self._note(lambda: self._scheduler.submit(request))
        except RuntimeError as error:  # it was shut down since
            self._deliver(Deliver(request.deliver, Outcome(range(request.size), [], is_dropped=True, fatal=error)))

    def begin(self, group: Group, limits: Limits, surroundings: Surroundings | None, n_slots: int) -> None:
        """Have up to so many slots build their objects for a group, whose requests will come in a moment."""
        if self.engine.is_synchronous or self.is_disowned:
            return
        if surroundings is not None:
            self._surroundings = surroundings
        self._note(lambda: self._scheduler.begin(group, limits, n_slots))

    def drop(self, group: Group) -> None:
        """Forget the calls of a group; items that run now finish in the background."""
        self._note(lambda: self._scheduler.drop(group))

    def stop_after_running(self, group: Group) -> None:
        """Let items of a group that run now finish, and drop the rest of it."""
        self._note(lambda: self._scheduler.stop_after_running(group))

    def share(self, group: Group) -> None:
        """Have idle slots get a share of what runs of a group: nothing else can come for them at present."""
        self._note(lambda: self._scheduler.share(group))

    def n_behind(self, group: Group) -> int:
        """Return how many items of a group are finished in messages that are not answered yet, as far as that is seen."""
        with self._lock:
            pages = self._pages_of(group)
        return sum(max(0, min(page.n_finished, size)) for seq, size, page in pages if page.seq == seq)

    def _pages_of(self, group: Group) -> list[tuple[int, int, Progress]]:
        """Return the numbers and sizes of messages under way for a group, and what is seen of each."""
        return [
            (slot.seq, len(slot.job.positions), link.worker.progress)
            for slot, link in zip(self._scheduler.slots, self._links, strict=True)
            if link and slot.job and slot.owner is group
        ]

    @property
    def has_objects(self) -> bool:
        """True if a worker stands, so that nothing has to be built first."""
        with self._lock:
            states = [slot.state for slot in self._scheduler.slots]
        return State.IDLE in states or State.BUSY in states

    def building(self, group: Group) -> str:
        """Say what is being built for a group, if nothing can come before that is done; for a bar."""
        with self._lock:
            width = self._scheduler.work.width(group)
            states = [slot.state for slot in self._scheduler.slots.first(width)]
        n_building = states.count(State.BUILDING)
        if not n_building or State.BUSY in states:
            return ""
        what = "starting" if self.packed.spec.build is None else "building"
        return f"{what} {n_building} of {width}"

    def interrupt(self, group: Group, grace: float) -> None:
        """Drop the calls of a group, and kill its workers that are still busy after ``grace`` seconds."""
        done = False
        try:
            self.drop(group)
            with self._changed:
                done = wait_for(self._changed, lambda: not self._scheduler.is_running(group), grace)
        finally:  # also if Ctrl-C is pressed again: that ends the grace
            if not done:
                self._note(lambda: self._scheduler.kill(group))

    def warm_up(self, limits: Limits, n_slots: int = sys.maxsize) -> None:
        """Build all objects that don't stand, or those of the first so many slots, and return when they do."""
        if _locks.is_held():
            raise RuntimeError("warm_up() in a finaliser would wait for what the thread is at in which that runs.")
        group = Group(
            on_error=lambda _: None, n_slots=n_slots
        )  # so that an error ends all of it, and is found in `group.error`
        self._surroundings = self.runtime.surroundings()
        again = False
        # Again, if a slot that somebody else had begun to build came to nothing, or one has died as soon as it was built.
        while not self._scheduler.is_warm(group) and not self._scheduler.closing:
            self._note(partial(self._scheduler.warm, group, limits, again=again))
            with self._changed:
                wait_for(self._changed, lambda: group.error or not self._scheduler.is_warming)
            if group.error is not None:
                raise group.error
            again = True

    def local_worker(self) -> Worker:
        """Return the worker of slot 0 itself; only of a synchronous engine, once its object stands."""
        worker = self._link(0).worker.local
        assert worker is not None  # noqa: S101 - the caller knows the engine
        return worker

    def infos(self) -> list[WorkerInfo]:
        """Return what is known of each slot."""
        from .._public import WorkerInfo  # not under the lock, where finalisers could run that want it, too

        if _locks.is_held():
            return [self._info(index, WorkerInfo) for index in range(self.n_jobs)]
        with self._lock:
            return [self._info(index, WorkerInfo) for index in range(self.n_jobs)]

    @property
    def is_awaited(self) -> bool:
        """True if somebody waits for a call that was submitted by itself."""
        with self._lock:
            groups = self._scheduler.work.groups()
        return any(group.on_error is None for group in groups)

    def counts(self) -> str:
        """Say how many slots are in which state, and how many calls wait; for people."""
        with self._lock:
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
        return any(self._links)

    @property
    def is_closed(self) -> bool:
        """True once no further calls are taken."""
        return self._scheduler.closing

    def close(self, *, wait: bool = True) -> None:
        """Take no more calls, finish those taken, then close the workers."""
        self._note(self._scheduler.close)
        if wait:
            self.wait_until_empty()

    def wait_until_empty(self, timeout: float | None = None) -> bool:
        """Wait until no worker is left; False if that took longer than ``timeout`` seconds, or can't be waited for."""
        if _locks.is_held():  # in a finaliser, and then others may wait for this thread
            return False
        if threading.get_ident() in self._answering:
            raise RuntimeError(
                "shutdown(wait=True) in a callback of one of the executor's own futures would wait for itself: the "
                "workers end when the callback has returned. Use shutdown(wait=False) there."
            )
        with self._changed:
            return wait_for(self._changed, lambda: self._scheduler.is_empty and self._scheduler.is_idle, timeout)

    def finish(self) -> None:
        """Take no more calls, and return when those taken are done with; workers may still be ending."""
        self.close(wait=False)
        with self._changed:
            wait_for(self._changed, lambda: self._scheduler.is_idle)

    def kill_unended(self, seconds: float) -> None:
        """Kill what was given so many seconds to end, with a warning for each worker."""
        with self._lock:
            closing = [slot.state is State.CLOSING for slot in self._scheduler.slots]
            links = list(self._links)
        unended = [(index, link.worker) for index, link in enumerate(links) if link and closing[index]]
        for index, worker in unended:
            self._closes.tell(index, worker, seconds)
        self.kill()

    def cancel_queued(self) -> None:
        """Drop what has not started."""
        self._note(self._scheduler.drop_not_started)

    def abort(self) -> None:
        """Take no more calls, drop those taken, and kill the workers before any of them is closed."""

        def end() -> Decisions:
            dropped = self._scheduler.drop()  # first, or it would close those that are idle
            self._scheduler.closing = True
            return [*dropped, *self._scheduler.kill(idle_too=True)]

        self._note(end)

    def kill(self, *, only_busy: bool = False) -> None:
        """Drop everything and kill workers; with ``only_busy``, not those that are idle or being closed."""
        self._note(self._scheduler.drop)
        self._note(lambda: self._scheduler.kill(idle_too=not only_busy))

    def release(self) -> None:
        """Close the workers that are idle; they come back when they are needed."""
        self._note(self._scheduler.release)

    # --- events and decisions -------------------------------------------------------------------------

    def _note(self, event: Callable[[], Decisions]) -> None:
        if _locks.is_held():
            _locks.call_elsewhere(partial(self._note, event))
            return
        with uninterrupted():
            with self._lock:
                decisions = event()
                self._changed.notify_all()
            self._perform(decisions)

    def _perform(self, decisions: Decisions) -> None:
        if len(decisions) > 1 and not self.engine.is_synchronous:
            # Workers first: whom the others wake would only get in their way (one item a message takes 3 to 7 % less CPU time).
            decisions = sorted(decisions, key=_is_delivery)
        todo: deque[Decision] = deque(decisions)
        while todo:
            try:
                todo.extend(self._carry_out(todo.popleft()))
            except BaseException:  # a Ctrl-C in users' code, in the caller's own thread; slots must not stay marked
                self._perform(list(todo))
                raise

    def _carry_out(self, decision: Decision) -> Decisions:
        """Do what was decided; return what follows from it."""
        if isinstance(decision, SendJob):
            return self._send(decision)
        if isinstance(decision, Deliver):
            self._deliver(decision)
        elif isinstance(decision, StartWorker):
            return self._start(decision)
        elif isinstance(decision, StopJob):
            self._link(decision.slot).worker.progress.ask_to_stop(decision.seq)
        elif isinstance(decision, ShareJob):
            self._link(decision.slot).worker.progress.ask_to_share(decision.seq)
        elif isinstance(decision, CloseWorker):
            self._close_worker(decision)
        elif isinstance(decision, KillWorker):
            return self._kill(decision)
        else:
            self._fail_group(decision)
        return []

    def _fail_group(self, fail: FailGroup) -> None:
        if fail.group.on_error is not None:
            fail.group.on_error(fail.error)

    def _link(self, slot: int) -> Link:
        link = self._links[slot]
        assert link is not None  # noqa: S101 - decisions about a worker follow its start
        return link

    def _start(self, start: StartWorker) -> Decisions:
        if self.environment is not None:
            if all(slot.state is State.EMPTY for slot in self._scheduler.slots if slot.index != start.slot):
                self.environment.forget()
            self.environment.note()
        try:
            self.runtime.get_ready()
            _room.make_way(self.runtime)
            worker = self.runtime.open(start.slot, self._envs()[start.slot])
            message = Build(start.seq, start.slot, start.n_jobs, self.packed.for_slot(start.slot))
        except Exception as error:  # noqa: BLE001 - out of file descriptors or memory, or an engine's own trouble
            return self._answer(start.slot, start.seq, Death(reason=f"{type(error).__name__}: {error}"))
        with self._lock:
            slot = self._scheduler.slots[start.slot]
            wanted = slot.seq == start.seq and not slot.is_killed
            if wanted:
                link = self._links[start.slot] = Link(slot.life, worker)
                worker.on_idle_death = partial(_died_idle, weakref.ref(self), start.slot, slot.life)
        if not wanted:  # killed between the decision and now
            return self._answer(start.slot, start.seq, Death(reason="it was killed before it started"))
        message = link.build(message._replace(depth=self._depth), self.packed.needs, self._surroundings)
        watched = self._limits.begin(worker, message, start.limits.init_timeout)
        decisions = self._exchange(start.slot, link, message)
        _exit.register()
        if watched is not None:
            self._limits.watch(start.slot, watched)
        return decisions

    def _send(self, send: SendJob) -> Decisions:
        call, job, link = send.job.call, send.job, self._link(send.slot)
        request = call.request  # before the parcel, which goes before it
        parcel = call.parcel
        if parcel is None:  # settled between the decision and now: dropped by its owner
            return self._answer(send.slot, send.seq, self._nothing_run(send.seq), link)
        if len(job.positions) != request.size or parcel.n_values != request.size:
            try:
                parcel = self._part_of(call, parcel, job.positions)
            except Exception as error:  # noqa: BLE001 - want of memory: these items' errors
                return self._unsendable(send, error)
        message = link.run(send.seq, request, parcel, self._scheduler.work.width(call.group))
        watched = self._limits.begin(link.worker, message, request.limits.item_timeout)
        decisions = self._exchange(send.slot, link, message)
        if watched is not None:
            self._limits.watch(send.slot, watched)
        return decisions

    def _unsendable(self, send: SendJob, error: Exception) -> Decisions:
        request, positions = send.job.call.request, send.job.positions
        faults: dict[int, BaseException] = {
            place: packing_error_of(error, request.index(position)) for place, position in enumerate(positions)
        }
        with self._lock:
            decisions = self._scheduler.finished(
                send.slot, send.seq, Report(len(positions), [None] * len(positions), faults)
            )
            self._changed.notify_all()
        return decisions

    def _part_of(self, call: Call, parcel: Parcel, positions: Sequence[int]) -> Parcel:
        """Return the parcel of some of a call's items."""
        transport, places = self.runtime.transport, positions
        faults = call.request.faults
        if faults:
            # The parcel holds those items that could be packed.
            kept = (position for position in range(call.request.size) if position not in faults)
            place_of = {position: place for place, position in enumerate(kept)}
            places = [place_of[position] for position in positions]
        if parcel.joint and len(places) == 1:  # one by one, after a crash: it must not be unpacked for each
            whole, parcel = parcel, transport.spread(parcel)
            if call.parcel is whole:  # it is not settled meanwhile
                call.parcel = parcel
        return transport.select(parcel, places)

    def _exchange(self, slot: int, link: Link, message: Build | Run) -> Decisions:
        """Send a message; return what follows from the reply, if that is there already."""
        worker, on_reply = link.worker, partial(self._received, slot, message.seq, link)
        try:
            reply = worker.send(message, on_reply)
        except BaseException as error:
            if not self.engine.is_synchronous:  # a fault of the engine, whose worker can't be relied on any more
                worker.kill()
                death = Death(worker.pid, reason=f"{type(error).__name__}: {error}")
                return self._answer(slot, message.seq, death, link)
            # A Ctrl-C, and the object is none the worse for it.
            link.peer.start_anew()
            if isinstance(message, Run):
                reply = self._nothing_run(message.seq)
                self._note(
                    partial(self._scheduler.drop_running, slot)
                )  # or the rest of a batch that was cut short would run
            else:
                reply = Death(reason="its construction was interrupted")
            self._perform(self._answer(slot, message.seq, reply, link))
            raise
        return [] if reply is None else self._answer(slot, message.seq, reply, link)

    def _nothing_run(self, seq: int) -> Ran:
        return Ran(seq, 0, self.runtime.transport.pack_all(())[0], {}, 0.0)

    def _received(self, slot: int, seq: int, link: Link, reply: Reply | Death) -> None:
        thread = threading.get_ident()
        before, self._answering[thread] = self._answering.get(thread), _Answering(link.worker)
        try:
            self._perform(self._answer(slot, seq, reply, link))
        finally:
            answering = self._answering.pop(thread)
            answering.is_over = True
            if before is not None:
                self._answering[thread] = before

    def _answer(self, slot: int, seq: int, reply: Reply | Death, link: Link | None = None) -> Decisions:
        """Note a reply, so that whoever waits for it has an outcome, whatever goes wrong here; without a link it never began."""
        try:
            if link is not None and isinstance(reply, Ran):
                decisions = self._answer_of_run(slot, seq, reply, link)
            else:
                decisions = self._answer_of_build(slot, seq, reply, link)
        except BaseException as error:
            if self.engine.is_synchronous and _safely.is_a(error, KeyboardInterrupt):  # the caller's own
                raise
            return self._give_up(slot, seq, error)
        self._idle.restart()
        return decisions

    def _answer_of_run(self, slot: int, seq: int, reply: Ran, link: Link) -> Decisions:
        scheduler, transport = self._scheduler, self.runtime.transport
        link.note(reply)
        if reply.definitions:  # in the order of answers, for later ones may refer to them
            receive(link.peer, reply.definitions, transport)
        if self.engine.is_synchronous or not (
            reply.failures or (not reply.values.joint and any(map(transport.runs_code, reply.values.frames)))
        ):
            job = scheduler.slots[slot].job
            try:
                report = read_answer(job, reply, self.runtime, slot, link)
            except NonsenseError as error:
                return self._end_damaged(slot, seq, link.worker, str(error))
            with self._lock:
                decisions = scheduler.finished(slot, seq, report)
                self._changed.notify_all()
        else:
            # Users' code runs while these values are loaded. It may take its time, and wait for other calls: their
            # worker is free for them, and no lock is held.
            with self._lock:
                job, decisions = scheduler.answered(slot, seq, reply.n_run, reply.seconds, failed=bool(reply.failures))
                self._changed.notify_all()
            try:
                self._perform(decisions)
            except BaseException:  # noqa: BLE001 - what this answer says must be told all the same
                _log.exception("What was to be done behind a worker's answer has failed:")
            decisions = [] if job is None else self._what_came_of(job, reply, slot, link)
        return decisions

    def _what_came_of(self, job: Job, reply: Ran, slot: int, link: Link) -> Decisions:
        try:
            try:
                report = read_answer(job, reply, self.runtime, slot, link)
            except NonsenseError as error:
                report = report_without(job, reply, error, slot, link.worker.pid)
            with self._lock:
                decisions = self._scheduler.reported(job, report)
                self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001 - nobody else can tell it to whom it concerns
            with self._lock:
                decisions = self._scheduler.fail(job.call, error)
                self._changed.notify_all()
        return decisions

    def _answer_of_build(self, slot: int, seq: int, reply: Reply | Death, link: Link | None) -> Decisions:
        scheduler, decoded = self._scheduler, None
        if link is not None and isinstance(reply, BuildFailed):  # before the lock is taken, for that runs users' code
            decoded = init_error_of(slot, self.packed.spec.kwargs(slot), reply, self.runtime.transport, link.peer)
        with self._lock:
            if isinstance(reply, Built):
                decisions = scheduler.built(slot, seq, reply.seconds)
            elif decoded is not None:
                decisions = scheduler.build_failed(slot, seq, decoded)
            else:
                assert isinstance(reply, Death)  # noqa: S101 - the only other answer to a Build or Run
                decisions = scheduler.died(slot, seq, reply)
            self._changed.notify_all()
        return decisions

    def _end_damaged(self, slot: int, seq: int, worker: EngineWorker, what: str) -> Decisions:
        worker.condemn(what)
        with self._lock:
            decisions = self._scheduler.died(slot, seq, Death(worker.pid, started=True, reason=why_condemned(what)))
            self._changed.notify_all()
        return decisions

    def _give_up(self, slot: int, seq: int, error: BaseException) -> Decisions:
        """Fail the call that a reply was for which could not be noted, and go on with another worker."""
        _log.error("The answer of the worker in slot %d could not be taken; its call fails:", slot, exc_info=error)
        with self._lock:
            found = self._scheduler.slots[slot]
            job = found.job if found.seq == seq else None
            decisions = [] if job is None else self._scheduler.fail(job.call, error)
            link = self._links[slot] if found.seq == seq else None
            self._changed.notify_all()
        if link is not None:
            link.worker.kill()
            with self._lock:
                reason = f"its answer could not be taken: {_safely.full_name_of(type(error))}"
                decisions += self._scheduler.died(slot, seq, Death(link.worker.pid, started=True, reason=reason))
                self._changed.notify_all()
        return decisions

    def _close_worker(self, close: CloseWorker) -> None:
        link = self._links[close.slot]
        if link is not None and link.life == close.life:
            closed = partial(self._closed, close)
            if not self.engine.is_synchronous:  # there the caller itself closes the object
                self._closes.watch(close.slot, link.worker, close.seq, partial(closed, None))
            link.worker.close(Finish(close.seq), closed)

    def died_idle(self, slot: int, life: int, death: Death) -> None:
        """Note that a worker is gone that had nothing to do; for the worker."""
        self._note(lambda: self._scheduler.died_idle(slot, life, death))
        self._forget_alarms()

    def _closed(self, close: CloseWorker, failure: Failure | None) -> None:
        self._closes.over(close.slot)
        if failure is not None:
            _log.warning("close() of the worker in slot %d raised:\n%s", close.slot, failure.traceback)
        self._note(lambda: self._scheduler.ended(close.slot, close.seq))
        self._forget_alarms()

    def _kill(self, kill: KillWorker) -> Decisions:
        link = self._links[kill.slot]
        if link is not None and link.life == kill.life:
            link.worker.kill()
        with self._lock:
            decisions = self._scheduler.killed(kill.slot, kill.life)
            self._changed.notify_all()
        self._forget_alarms()
        return decisions

    def _deliver(self, decision: Deliver) -> None:
        try:
            decision.deliver(decision.outcome)
        except BaseException:
            if self.engine.is_synchronous:  # the caller's own Ctrl-C
                raise
            # A callback's: what else is decided must be carried out.
            _log.exception("What was to be done with a result has failed:")

    # --- time -----------------------------------------------------------------------------------------

    def _is_under_way(self, index: int, seq: int) -> bool:
        slot = self._scheduler.slots[index]
        return slot.seq == seq and slot.state in (State.BUILDING, State.BUSY)

    def _condemn(self, worker: EngineWorker, what: str) -> None:
        worker.condemn(what)

    def _expire(self, slot: int, seq: int, place: int | None) -> None:
        self._note(lambda: self._scheduler.expire(slot, seq, place))

    def _forget_alarms(self) -> None:
        """Let nothing wait for a pool whose workers are all gone."""
        with self._lock:
            if not self._scheduler.is_empty:
                return
            alarms = [*self._limits.take_alarms(), self._idle.take_alarm()]
        for alarm in alarms:
            if alarm is not None:
                alarm.cancel()

    # --- looking --------------------------------------------------------------------------------------

    def _info(self, index: int, make: type[WorkerInfo]) -> WorkerInfo:
        slot, link = self._scheduler.slots[index], self._links[index]
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
        )


class _Answering:
    """A thread that brings an answer of a worker, and runs users' code with it: callbacks, and what loads values."""

    def __init__(self, worker: EngineWorker) -> None:
        self._worker, self._is_watched, self.is_over = worker, False, False

    def look_after(self) -> None:
        """If it is still at it in a moment, it may wait for a call that it has made: have that worker heard by another."""
        if not self._is_watched:
            self._is_watched = True
            _timers.call_after(_PATIENCE_SECONDS, self._look)

    def _look(self) -> None:
        if not self.is_over:
            self._worker.answer_elsewhere()


def _is_delivery(decision: Decision) -> bool:
    return isinstance(decision, Deliver)


# Not a method, which would keep the pool for as long as its worker lives.
def _died_idle(pool: weakref.ref[WorkerPool], slot: int, life: int, death: Death) -> None:
    found = pool()
    if found is not None:
        found.died_idle(slot, life, death)
