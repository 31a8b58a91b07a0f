"""The scheduler put to work: one lock around it, its decisions carried out on the workers of a runtime, their answers noted.

Events come from callers (through `WorkerPool`), from workers (their replies, in any thread) and from the clock (time limits).
Each is noted under the lock; what the scheduler decides is done outside of it.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from .._process import _locks, _safely, _timers
from .._process._interrupts import uninterrupted
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
from .._scheduling._requests import Record, Report
from .._scheduling._scheduler import Scheduler
from .._scheduling._slots import State
from .._worker._messages import Build, BuildFailed, Built, Death, Failure, Finish, Phase, Ran, Reply, Run
from .._worker._surroundings import Environment
from ..errors import why_condemned
from . import _exit, _room
from ._links import Link
from ._replies import NonsenseError, init_error_of, packing_error_of, read_answer, report_without
from ._timeouts import CloseWatch, IdleWatch, LimitWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .._measuring._measures import Measures
    from .._scheduling._jobs import Call, Job
    from .._scheduling._requests import Group
    from .._scheduling._slots import Slot
    from .._transport._transport import Parcel
    from .._worker._surroundings import Surroundings
    from ..engines import EngineWorker, Runtime
    from ._spec import PackedSpec
    from ._thread_limits import ThreadLimits

_log = _safely.Log()

_P = ParamSpec("_P")
_T = TypeVar("_T")

# What users' code has made calls from, while an answer was taken, has so long to come back before it is taken for waiting.
_PATIENCE_SECONDS = 0.05


class Driver:
    """What the scheduler decides, done; what comes of it, told to the scheduler.

    Whoever has something to say to the scheduler does so by `note`, or under `lock`.

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
    measures : Measures, optional
        Is told what each message has taken.
    """

    #: Whoever ends the workers when the interpreter ends: is kept for as long as work is under way here.
    owner: _exit.Ending

    def __init__(
        self,
        packed: PackedSpec,
        n_jobs: int,
        runtime: Runtime,
        threads: ThreadLimits,
        *,
        max_tasks: int | None = None,
        idle_timeout: float | None = None,
        depth: int = 0,
        measures: Measures | None = None,
    ) -> None:
        engine = runtime.engine
        self.packed, self.n_jobs, self.runtime, self.engine = packed, n_jobs, runtime, engine
        self._threads, self._depth, self._measures = threads, depth, measures
        self.lock = _locks.make_lock()  # guards the scheduler and the workers
        # Entered only to wait: its methods are Python's own, and a Ctrl-C between them and the lock leaves that held.
        self.changed = _Change(self.lock)
        self.scheduler = Scheduler(
            n_jobs, max_tasks=max_tasks, in_turn=engine.is_synchronous, capacity=runtime.max_concurrency
        )
        self._name_kwargs()
        self.links: list[Link | None] = [None] * n_jobs
        # Threads that bring an answer, and so run users' code: each with the worker whose answer it is.
        self._answering: dict[int, _Answering] = {}
        #: Of the latest call.
        self.surroundings: Surroundings | None = None
        #: What the workers were started with; None where they share this process's, or are elsewhere.
        self.environment = Environment() if engine.has_processes and not engine.is_remote else None
        self._limits = LimitWatch(
            n_jobs,
            self.changed,
            self._is_under_way,
            self._expire,
            self._condemn,
            is_one_at_a_time=runtime.max_concurrency == 1,
        )
        self._idle = IdleWatch(idle_timeout, self.scheduler, self.release)
        self.closes = CloseWatch(can_kill=engine.has_processes)

    def __repr__(self) -> str:
        return f"<Driver engine={self.engine.name!r} {self.scheduler!r}>"

    def grow(self, other: Driver) -> Decisions:
        """Have as many slots as another one that was made for the same; to be called with the lock."""
        more = other.n_jobs - self.n_jobs
        if more <= 0:  # another thread was faster
            return []
        self.packed, self._threads, self.n_jobs = other.packed, other._threads, other.n_jobs
        self.links += [None] * more
        self._limits.grow(self.n_jobs)
        decisions = self.scheduler.grow(self.n_jobs)
        self._name_kwargs()
        return decisions

    def _name_kwargs(self) -> None:
        for slot in self.scheduler.slots:
            slot.kwargs_keys = tuple(self.packed.spec.kwargs(slot.index))

    def disown(self) -> None:
        """In a fork: let go of the parent's workers, without a word to them, and take no calls."""
        self.lock = _locks.make_lock()  # the parent's may be held for ever
        self.changed = _Change(self.lock)
        self.scheduler = Scheduler(self.n_jobs)
        self.scheduler.closing = True
        if self._measures is not None:
            self._measures.disown()
        for link in self.links:
            if link is not None:
                link.worker.disown()

    def link(self, slot: int) -> Link:
        """Return the link to a slot's worker, which was started."""
        link = self.links[slot]
        assert link is not None  # noqa: S101 - decisions about a worker follow its start
        return link

    def is_starting(self, slot: Slot) -> bool:
        """Tell whether a slot's worker process has not come to its object yet, which it was started for."""
        link = self.links[slot.index]
        if link is None or slot.state is not State.BUILDING or not self.engine.has_processes or self.engine.is_remote:
            return False
        page = link.worker.progress_of(slot.seq)
        return page.seq != slot.seq or page.phase is Phase.IDLE

    @property
    def is_answering(self) -> bool:
        """True in a thread that brings a worker's answer."""
        return threading.get_ident() in self._answering

    def has_called(self) -> None:
        """Note that this thread has made a call; if it brings an answer, it may wait for what it has called for."""
        if self._answering and (answering := self._answering.get(threading.get_ident())) is not None:
            answering.look_after()

    # --- events and decisions -------------------------------------------------------------------------

    def note(self, event: Callable[[], Decisions]) -> None:
        """Tell the scheduler something, and do what it decides."""
        if _locks.is_held():
            _locks.call_elsewhere(partial(self.note, event))
        else:
            self.note_now(event)

    def note_now(self, event: Callable[[], Decisions]) -> None:
        """Do that in a thread which is known to hold none of our locks."""
        with uninterrupted():
            self._perform(self._tell(event))

    def _tell(self, event: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        with self.lock:
            decided = event(*args, **kwargs)
            self.changed.tell()
        return decided

    def _perform(self, decisions: Decisions) -> None:
        if not decisions:
            return
        if len(decisions) > 1 and not self.engine.is_synchronous:
            # Workers first: whom the others wake would only get in their way (one item a message takes 3 to 7 % less CPU time).
            others = [decision for decision in decisions if type(decision) is not Deliver]
            decisions = [*others, *(decision for decision in decisions if type(decision) is Deliver)]
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
            self.deliver(decision)
        elif isinstance(decision, StartWorker):
            return self._start(decision)
        elif isinstance(decision, StopJob):
            page = self.link(decision.slot).worker.progress_of(decision.seq)
            page.ask_to_stop(decision.seq)
            if decision.is_unwanted:
                page.ask_to_cancel(decision.seq)
        elif isinstance(decision, ShareJob):
            self.link(decision.slot).worker.progress_of(decision.seq).ask_to_share(decision.seq)
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

    def _start(self, start: StartWorker) -> Decisions:
        if self.environment is not None:
            if all(slot.state is State.EMPTY for slot in self.scheduler.slots if slot.index != start.slot):
                self.environment.forget()
            self.environment.note()
        threads = self._threads
        try:
            self.runtime.get_ready()
            _room.make_way(self.runtime)
            worker = self.runtime.open(start.slot, threads.env(start.slot))
            message = Build(
                start.seq,
                start.slot,
                start.n_jobs,
                self.packed.for_slot(start.slot),
                depth=self._depth,
                n_threads=threads.n_threads,
            )
        except Exception as error:  # noqa: BLE001 - out of file descriptors or memory, or an engine's own trouble
            return self._answer(start.slot, start.seq, Death(reason=f"{type(error).__name__}: {error}"))
        with self.lock:
            slot = self.scheduler.slots[start.slot]
            wanted = slot.seq == start.seq and not slot.is_killed
            if wanted:
                is_one_at_a_time = self.runtime.max_concurrency == 1
                link = self.links[start.slot] = Link(slot.life, worker, is_one_at_a_time=is_one_at_a_time)
                worker.on_idle_death = partial(_died_idle, weakref.ref(self), start.slot, slot.life)
        if not wanted:  # killed between the decision and now
            return self._answer(start.slot, start.seq, Death(reason="it was killed before it started"))
        message = link.build(message, self.packed.needs, self.surroundings)
        watched = self._limits.begin(worker, message, start.limits.init_timeout)
        link.sent[start.seq] = sent_at = time.perf_counter()
        if self._measures is not None:
            self._measures.begin(sent_at)
        taken = self._hand_over(start.slot, link, message)
        decisions = self._go_on(start.slot, link, message, taken)
        _exit.register()
        if watched is not None:
            self._limits.watch(start.slot, watched)
        return decisions

    def _send(self, send: SendJob) -> Decisions:
        call, job, link = send.job.call, send.job, self.link(send.slot)
        request = call.request  # before the parcel, which goes before it
        parcel = call.parcel
        if parcel is None:  # settled between the decision and now: dropped by its owner
            return self._answer(send.slot, send.seq, self._nothing_run(send.seq), link)
        if len(job.positions) != request.size or parcel.n_values != request.size:
            try:
                parcel = self._part_of(call, parcel, job.positions)
            except Exception as error:  # noqa: BLE001 - want of memory: these items' errors
                return self._unsendable(send, error)
        link.sent[send.seq] = time.perf_counter()
        with link.order:
            message = link.run(send.seq, request, parcel, self.scheduler.work.width(call.group))
            watched = self._limits.begin(link.worker, message, request.limits.item_timeout)
            taken = self._hand_over(send.slot, link, message)
        decisions = self._go_on(send.slot, link, message, taken)
        if watched is not None:
            self._limits.watch(send.slot, watched)
        return decisions

    def _unsendable(self, send: SendJob, error: Exception) -> Decisions:
        request, positions = send.job.call.request, send.job.positions
        faults: dict[int, BaseException] = {
            place: packing_error_of(error, request.index(position)) for place, position in enumerate(positions)
        }
        report = Report(len(positions), [None] * len(positions), faults)
        return self._tell(self.scheduler.finished, send.slot, send.seq, report)

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

    def _hand_over(self, slot: int, link: Link, message: Build | Run) -> Reply | Death | BaseException | None:
        """Give a worker a message; return the reply, if that is there already, or what the engine has raised."""
        try:
            return link.worker.send(message, partial(self._received, slot, message.seq, link))
        except BaseException as error:
            if not self.engine.is_synchronous:
                return error
            # A Ctrl-C, and the object is none the worse for it.
            link.peer.start_anew()
            reply: Ran | Death
            if isinstance(message, Run):
                reply = self._nothing_run(message.seq)
                # Or the rest of a batch that was cut short would run.
                self.note(partial(self.scheduler.drop_running, slot))
            else:
                reply = Death(reason="its construction was interrupted")
            self._perform(self._answer(slot, message.seq, reply, link))
            raise

    def _go_on(
        self, slot: int, link: Link, message: Build | Run, taken: Reply | Death | BaseException | None
    ) -> Decisions:
        """Return what follows from what handing a message over has returned."""
        if isinstance(taken, BaseException):  # a fault of the engine, whose worker can't be relied on any more
            link.worker.kill()
            taken = Death(link.worker.pid, reason=f"{type(taken).__name__}: {taken}")
        return [] if taken is None else self._answer(slot, message.seq, taken, link)

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
        if link is not None:
            self._record(slot, seq, reply, link)
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

    def _record(self, slot: int, seq: int, reply: Reply | Death, link: Link) -> None:
        """Tell whoever wants to know what a message has taken."""
        sent = link.sent.pop(seq, None)
        found = self.scheduler.slots[slot]
        job = found.jobs.get(seq)
        group = found.group if job is None else job.call.group
        watch = None if group is None else group.watch
        if sent is None or (watch is None and self._measures is None) or not (job or found.seq == seq):
            return
        record = _record_of(found, seq, job, reply, link=link, sent=sent)
        if watch is not None:
            watch(record)
        if self._measures is not None:
            self._measures.note(record)

    def under_way(self, group: Group | None = None) -> list[Record]:
        """Return what workers are at for a group, or for any, and since when, as far as that is seen at present."""
        if self.scheduler.is_empty:  # or they were the parent's
            return []
        now = time.perf_counter()
        return [
            Record("building" if slot.state is State.BUILDING else "running", slot.index, link.worker.pid, sent, now)
            for slot, link in zip(self.scheduler.slots, self.links.copy(), strict=False)
            if link is not None and link.life == slot.life and slot.state in {State.BUILDING, State.BUSY}
            for seq, sent in link.sent.copy().items()
            if group is None or slot.group_of(seq) is group
        ]

    def _answer_of_run(self, slot: int, seq: int, reply: Ran, link: Link) -> Decisions:
        scheduler, transport = self.scheduler, self.runtime.transport
        link.note(reply)
        if reply.n_held:
            _log.info(
                "The worker in slot %d (pid %s) holds %s bytes, more than max_worker_memory: its object is built anew.",
                slot,
                link.worker.pid,
                f"{reply.n_held:,}",
            )
        if reply.definitions:  # in the order of answers, for later ones may refer to them
            link.receive(reply.definitions, transport)
        if self.engine.is_synchronous or not (reply.failures or transport.runs_any_code(reply.values)):
            job = scheduler.slots[slot].jobs.get(seq)
            try:
                report = read_answer(job, reply, self.runtime, slot, link)
            except NonsenseError as error:
                return self._end_damaged(slot, seq, link.worker, str(error))
            decisions = self._tell(self.scheduler.finished, slot, seq, report)
        else:
            # Users' code runs while these values are loaded. It may take its time, and wait for other calls: their
            # worker is free for them, and no lock is held.
            job, decisions = self._tell(
                self.scheduler.answered,
                slot,
                seq,
                reply.n_run,
                reply.seconds,
                failed=bool(reply.failures),
                is_full=reply.n_held > 0,
            )
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
            decisions = self._tell(self.scheduler.reported, job, report)
        except BaseException as error:  # noqa: BLE001 - nobody else can tell it to whom it concerns
            decisions = self._tell(self.scheduler.fail, job.call, error)
        return decisions

    def _answer_of_build(self, slot: int, seq: int, reply: Reply | Death, link: Link | None) -> Decisions:
        scheduler = self.scheduler
        if isinstance(reply, Built):
            return self._tell(scheduler.built, slot, seq, reply.seconds)
        if link is not None and isinstance(reply, BuildFailed):
            # Users' code runs while this is loaded: before the lock is taken.
            error = init_error_of(slot, self.packed.spec.kwargs(slot), reply, self.runtime.transport, link.peer)
            return self._tell(scheduler.build_failed, slot, seq, error)
        assert isinstance(reply, Death)  # noqa: S101 - the only other answer to a Build or Run
        return self._tell(scheduler.died, slot, seq, reply)

    def _end_damaged(self, slot: int, seq: int, worker: EngineWorker, what: str) -> Decisions:
        worker.condemn(what)
        death = Death(worker.pid, started=True, reason=why_condemned(what))
        return self._tell(self.scheduler.died, slot, seq, death)

    def _give_up(self, slot: int, seq: int, error: BaseException) -> Decisions:
        """Fail the call that a reply was for which could not be noted, and go on with another worker."""
        _log.error("The answer of the worker in slot %d could not be taken; its call fails:", slot, exc_info=error)
        with self.lock:
            found = self.scheduler.slots[slot]
            job = found.jobs.get(seq)
            decisions = [] if job is None else self.scheduler.fail(job.call, error)
            link = self.links[slot] if found.is_at(seq) else None
            self.changed.notify_all()
        if link is not None:
            link.worker.kill()
            reason = f"its answer could not be taken: {_safely.full_name_of(type(error))}"
            decisions += self._tell(self.scheduler.died, slot, seq, Death(link.worker.pid, started=True, reason=reason))
        return decisions

    def _close_worker(self, close: CloseWorker) -> None:
        link = self.links[close.slot]
        if link is not None and link.life == close.life:
            closed = partial(self._closed, close)
            if not self.engine.is_synchronous:  # there the caller itself closes the object
                self.closes.watch(close.slot, link.worker, close.seq, partial(closed, None))
            link.worker.close(Finish(close.seq), closed)

    def died_idle(self, slot: int, life: int, death: Death) -> None:
        """Note that a worker is gone that had nothing to do; for the worker."""
        found = self.scheduler.slots[slot]
        if self._measures is not None and found.life == life and found.state is State.IDLE and not found.killing:
            now = time.perf_counter()
            self._measures.note(Record("died", slot, death.pid, now, now, detail="died", life=life))
        self.note(lambda: self.scheduler.died_idle(slot, life, death))
        self._forget_alarms()

    def _closed(self, close: CloseWorker, failure: Failure | None) -> None:
        self.closes.over(close.slot)
        if failure is not None:
            _log.warning("close() of the worker in slot %d raised:\n%s", close.slot, failure.traceback)
        self.note(lambda: self.scheduler.ended(close.slot, close.seq))
        self._forget_alarms()

    def _kill(self, kill: KillWorker) -> Decisions:
        link = self.links[kill.slot]
        if link is not None and link.life == kill.life:
            link.worker.kill()
        decisions = self._tell(self.scheduler.killed, kill.slot, kill.life)
        self._forget_alarms()
        return decisions

    def deliver(self, decision: Deliver) -> None:
        """Give somebody what they wait for."""
        try:
            decision.deliver(decision.outcome)
        except BaseException:
            if self.engine.is_synchronous:  # the caller's own Ctrl-C
                raise
            # A callback's: what else is decided must be carried out.
            _log.exception("What was to be done with a result has failed:")

    def release(self) -> None:
        """Close the workers that are idle; they come back when they are needed."""
        self.note(self.scheduler.release)

    # --- time -----------------------------------------------------------------------------------------

    def _is_under_way(self, index: int, seq: int) -> bool:
        slot = self.scheduler.slots[index]
        return slot.is_at(seq) and slot.state is not State.CLOSING

    def _condemn(self, worker: EngineWorker, what: str) -> None:
        worker.condemn(what)

    def _expire(self, slot: int, seq: int, place: int | None) -> None:
        self.note(lambda: self.scheduler.expire(slot, seq, place))

    def _forget_alarms(self) -> None:
        """Let nothing wait for a pool whose workers are all gone."""
        with self.lock:
            if not self.scheduler.is_empty:
                return
            alarms = [*self._limits.take_alarms(), self._idle.take_alarm()]
        for alarm in alarms:
            if alarm is not None:
                alarm.cancel()


class _Change(threading.Condition):
    """Notified of each event; hardly ever does anybody wait for one."""

    def tell(self) -> None:
        """Notify all who wait, with the lock."""
        if self._waiters:  # type: ignore[attr-defined]  # a tenth of what `notify_all` takes to find none
            self.notify_all()


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


def _record_of(slot: Slot, seq: int, job: Job | None, reply: Reply | Death, *, link: Link, sent: float) -> Record:
    """Return what a message has taken that was answered now."""
    now, pid, life = time.perf_counter(), link.worker.pid, link.life
    if isinstance(reply, Built):
        return Record("built", slot.index, reply.pid, sent, now, reply.seconds, life=life)
    first, last, n_items = None, None, 0
    if job is not None:
        index_of, n_items = job.call.request.index, len(job.positions)
        first = index_of(job.positions[0])
        last = first if n_items == 1 else index_of(job.positions[-1])
    if isinstance(reply, Ran):
        n_run, n_bytes = reply.n_run, reply.values.nbytes
        return Record("ran", slot.index, pid, sent, now, reply.seconds, first, n_items, n_run, n_bytes, "", life, last)
    late = slot.killing is not None and seq in slot.killing.late
    what = "over its time" if late else "died" if isinstance(reply, Death) else "build failed"
    detail = f"{what}: {reply.reason}" if isinstance(reply, Death) and reply.reason else what
    return Record(what, slot.index, pid, sent, now, first=first, n_items=n_items, detail=detail, life=life, last=last)


# Not a method, which would keep the driver for as long as its worker lives.
def _died_idle(driver: weakref.ref[Driver], slot: int, life: int, death: Death) -> None:
    found = driver()
    if found is not None:
        found.died_idle(slot, life, death)
