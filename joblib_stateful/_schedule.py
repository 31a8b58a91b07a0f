"""Which slot runs what: state in, decisions out.

No I/O, no threads, no clock: each method takes one event, changes the state and returns the decisions that
follow from it, for somebody else to carry out in that order. A slot is marked busy in the very step that
assigns it. The rules, in one place:

- Work goes to slots that have their object, and only then to empty ones: no more objects than are needed.
- A group runs on its first so many slots only, and those are the same for all that want so many.
- A slot runs one job at a time. What waits, waits here, where it can still be dropped or go elsewhere.
- What a worker gives back of a message that took too long goes to all slots, in parts; it is also asked for that when
  others have nothing to do, and nothing can come for them.
- What a worker has no memory for all at once goes to it one by one.
- When a worker dies, the item that ran pays (a retry on another slot, or its error); the other items of its
  message run again one by one. What had not been started costs nothing.
- Deaths that are nobody's fault are counted per slot and in a row; beyond ``max_restarts`` they end the group.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from . import errors
from ._board import Board
from ._slots import (
    Decisions,
    FailGroup,
    Job,
    KillWorker,
    Settle,
    Slot,
    State,
    StopJob,
)
from ._words import count

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ._messages import Death
    from ._records import Call, Group, Limits, Report

# A part should take several times as long as its message costs parent and worker, a millisecond (`docs/performance.md`);
# 3 to 30 ms do as well with two slots (W3 of `python -m benchmarks`).
PART_SECONDS = 0.01


class Schedule(Board):
    """Takes events, one method each, and returns the decisions that follow."""

    # --- events from callers --------------------------------------------------------------------------

    def submit(self, call: Call) -> Decisions:
        """Accept a call."""
        if self.closing:
            raise errors.ShutdownError(
                "cannot schedule new futures after shutdown: shutdown() was called, the executor's with block was left, "
                "or the interpreter is ending. Make a new executor."
            )
        self._take_call(call)
        if call.group.error is not None:
            return self._fail(call, call.group.error)
        if call.group.stopping:
            return self.drop([call])
        if call.missing == 0:
            return self._settle(call)
        positions: Sequence[int] = range(call.size)
        if call.unsent:
            positions = [position for position in positions if position not in call.unsent]
            if call.after_error != "go_on":
                call.drop(positions)
                return self._after_errors(call)
        self.queue.append(Job(call, positions))
        return self._assign()

    def share(self, group: Group) -> Decisions:
        """Note that no more calls of a group can come at present: idle slots get a share of those that run."""
        group.sharing = True
        return self._share()

    def warm(self, group: Group, limits: Limits, *, again: bool = False) -> Decisions:
        """Have every slot that a group may use build its object now.

        With ``again``, which says that this was done and they don't stand yet, slots that keep dying are given up.
        """
        slots = self.slots[: self.width(group)]
        for slot in slots:
            if slot.state in (State.EMPTY, State.CLOSING):
                slot.warm, slot.group, slot.limits = True, group, limits
            elif slot.state is State.BUILDING:
                slot.warm = True
        decisions: Decisions = []
        for slot in slots:
            if (
                again
                and slot.warm
                and slot.group is group
                and slot.death is not None
                and slot.deaths > limits.max_restarts
            ):
                decisions += self._give_up(slot, slot.death, limits)
        return decisions + self._assign()

    def drop(self, calls: Iterable[Call]) -> Decisions:
        """Forget calls: what is queued is not run, what runs is stopped after its item, nobody is told of it."""
        decisions: Decisions = []
        for call in [call for call in calls if call in self.calls]:
            call.abandoned = True
            call.drop([p for p in range(call.size) if p not in call.errors and p not in call.dropped])
            decisions += self._stop_running(call)
            decisions += self._settle(call)
        self.queue = deque(job for job in self.queue if not job.call.abandoned)
        return decisions

    def curtail(self, calls: Iterable[Call]) -> Decisions:
        """Let what runs of these calls finish its current item, and drop the rest."""
        decisions: Decisions = []
        for call in [call for call in calls if call in self.calls]:
            self._drop_queued(call)
            decisions += self._stop_running(call)
            decisions += self._settle_if_done(call)
        return decisions

    def kill(self, group: Group | None = None, *, idle_too: bool = False) -> Decisions:
        """Kill the workers that run, or are built for, a group (None: any group); also those that are idle, or ending."""
        decisions: Decisions = []
        for slot in self.slots:
            is_at_rest = slot.state in (State.IDLE, State.CLOSING)
            is_spared = slot.state is State.EMPTY or (is_at_rest and not idle_too)
            if is_spared or group not in (None, slot.owner):
                continue
            if slot.state is State.IDLE:
                del self._idle[slot.index]
                slot.state = State.CLOSING
            slot.warm, slot.doomed = False, True
            decisions.append(KillWorker(slot.index, slot.life))
        return decisions

    def not_started(self) -> list[Call]:
        """Return the calls of which nothing was sent yet."""
        return [call for call in self.calls if not call.claimed]

    def close(self) -> Decisions:
        """Take no more calls; close each worker once nothing is left for it."""
        self.closing = True
        for slot in self.slots:
            slot.warm = False
        return self._assign()

    # --- events from workers --------------------------------------------------------------------------

    # Each carries the number of the message that it answers, so that late news of a former worker is ignored.

    def built(self, index: int, seq: int, seconds: float = 0.0) -> Decisions:
        """Note that a slot's object stands, and how long its construction took."""
        slot = self.slots[index]
        if slot.seq != seq or slot.state is not State.BUILDING:
            return []
        slot.n_builds += 1
        slot.init_seconds = seconds
        slot.tasks, slot.warm, slot.group = 0, False, None
        self._free_after_work(slot)
        return self._assign() + self._share()

    def build_failed(self, index: int, seq: int, error: errors.WorkerInitError) -> Decisions:
        """Note that a slot's constructor raised; its worker is of no use."""
        slot = self.slots[index]
        if slot.seq != seq or slot.state is not State.BUILDING:
            return []
        decisions = self._fail_group(slot, error)
        return [*self._close(slot), *decisions, *self._assign()]

    def finished(self, index: int, seq: int, report: Report) -> Decisions:
        """Note what became of a slot's job."""
        job = self._take_answered(index, seq)
        if job is None:
            return []
        decisions: Decisions = []
        if not job.call.settled:
            decisions = self._note(job, report)
        return decisions + self._go_on_after(index, report.n_run, report.seconds) + self._assign() + self._share()

    def answered(
        self, index: int, seq: int, n_run: int, seconds: float, *, failed: bool = False
    ) -> tuple[Job | None, Decisions]:
        """Note that a slot has done its job; `reported` tells what became of it, when that is known.

        In between, users' code may take long, or wait for other calls: the slot takes them. After a failure that nothing
        more shall start behind, none are given out now.
        """
        job = self._take_answered(index, seq)
        if job is None:
            return None, []
        decisions = self._go_on_after(index, n_run, seconds)
        if not failed or job.call.after_error == "go_on":
            decisions = decisions + self._assign() + self._share()
        return job, decisions

    def reported(self, job: Job, report: Report) -> Decisions:
        """Note what became of a job whose slot has been at other things since."""
        decisions = [] if job.call.settled else self._note(job, report)
        return decisions + self._assign() + self._share()

    def fail(self, call: Call, error: BaseException) -> Decisions:
        """Note that nothing can be told of a call."""
        decisions = [] if call.settled else self._fail(call, error)
        return decisions + self._assign()

    def died(self, index: int, seq: int, death: Death) -> Decisions:
        """Note that a slot's process is gone."""
        slot = self.slots[index]
        state = slot.state
        if slot.seq != seq or state is State.EMPTY:
            return []
        slot.death = death
        job = self._take_job(slot)
        expired, unwanted = slot.expired, slot.doomed and not slot.expired
        self._idle.pop(index, None)
        self._free(slot, State.EMPTY)
        slot.n_restarts += state is not State.CLOSING
        if unwanted:
            slot.group = None
        decisions: Decisions = []
        if state is State.BUILDING and not unwanted:
            decisions = self._died_building(slot, death, expired=expired)
        elif job is not None and not job.call.settled:
            decisions = self._died_running(slot, job, death, expired=expired)
        elif state is State.IDLE:
            slot.deaths += 1
        return decisions + self._assign()

    def died_idle(self, index: int, life: int, death: Death) -> Decisions:
        """Note that a process is gone that was at nothing; if it is sent something, that is answered with its death."""
        slot = self.slots[index]
        if slot.life != life or slot.state is not State.IDLE:
            return []
        return self.died(index, slot.seq, death)

    def killed(self, index: int, life: int) -> Decisions:
        """Note that a `KillWorker` was carried out; if its last message was answered before, no death follows."""
        slot = self.slots[index]
        if slot.life != life or not slot.doomed:
            return []
        slot.gone = True
        if slot.state is not State.CLOSING:
            return []
        self._free(slot, State.EMPTY)
        return self._assign()

    def ended(self, index: int, seq: int) -> Decisions:
        """Note that a slot's worker has ended after a `CloseWorker`."""
        slot = self.slots[index]
        if slot.seq != seq or slot.state is not State.CLOSING:
            return []
        self._free(slot, State.EMPTY)
        return self._assign()

    def expire(self, index: int, seq: int, place: int | None = None) -> Decisions:
        """Note that a slot's message is over its time limit, with an item or during construction."""
        slot = self.slots[index]
        if slot.seq != seq or slot.state not in (State.BUILDING, State.BUSY):
            return []
        slot.expired = slot.doomed = True
        slot.expired_place = place
        return [KillWorker(index, slot.life)]

    # --- what callers ask -----------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """True if no caller waits for anything."""
        return not self.calls

    def is_warm(self, group: Group) -> bool:
        """Tell whether every slot that a group may use has its object."""
        return all(slot.state in (State.IDLE, State.BUSY) for slot in self.slots[: self.width(group)])

    @property
    def is_warming(self) -> bool:
        """True if objects are being built that no job waits for."""
        return any(slot.warm for slot in self.slots)

    @property
    def is_empty(self) -> bool:
        """True if no worker is left."""
        return len(self._empty) == self.n_slots

    def is_running(self, group: Group) -> bool:
        """Tell whether a worker runs something of a group, wanted or not, or is built for it."""
        return any(slot.owner is group and slot.state is not State.EMPTY for slot in self.slots)

    # --- outcomes -------------------------------------------------------------------------------------

    def _take_answered(self, index: int, seq: int) -> Job | None:
        slot = self.slots[index]
        return self._take_job(slot) if slot.seq == seq else None

    def _go_on_after(self, index: int, n_run: int, seconds: float) -> Decisions:
        """Count what a slot has done, and free it for more or close it."""
        slot = self.slots[index]
        slot.deaths = 0
        slot.n_done += n_run
        slot.tasks += n_run
        slot.busy_seconds += seconds
        if self.max_tasks is not None and slot.tasks >= self.max_tasks and not slot.doomed:
            return self._close(slot)
        self._free_after_work(slot)
        return []

    def _note(self, job: Job, report: Report) -> Decisions:
        call, rest = job.call, job.note(report)
        if rest and report.was_refused:
            self._put_back(job.some((position,)) for position in reversed(rest))
        elif rest and report.n_run and not call.stopping and (call.after_error == "go_on" or not report.errors):
            # It took too long for one message, or others have nothing to do. Parts for those, or else some for each slot,
            # but none that is over sooner than it is worth.
            n_idle = self._n_idle(call.group)
            n_parts = 1 + n_idle if n_idle else 2 * self.width(call.group)
            worth = report.seconds / report.n_run * len(rest) / PART_SECONDS
            self._put_back(reversed(job.split(rest, max(1, min(n_parts, int(worth))))))
        else:
            call.drop(rest)
        return self._after_errors(call) if report.errors else self._settle_if_done(call)

    def _after_errors(self, call: Call) -> Decisions:
        """Do what a call's error does to the rest of it, and of its group."""
        if call.after_error == "go_on":
            return self._settle_if_done(call)
        call.group.stopping = True
        others = [other for other in self.calls if other.group is call.group and other is not call]
        if call.after_error == "finish_running":
            return self.curtail([call, *others])
        own = self.drop([call]) if call.missing else self._settle(call)
        return own + self.drop(others)

    def _died_building(self, slot: Slot, death: Death, *, expired: bool) -> Decisions:
        slot.deaths += 1
        if expired:
            end = f"given up ({death.reason})" if death.reason else "killed"
            reason = (
                f"it was still at it after init_timeout={slot.limits.init_timeout:g} s and was {end}; if it is only "
                "slow, raise init_timeout."
            )
        elif slot.deaths > slot.limits.max_restarts:
            reason = errors.why_not_built(
                slot.deaths, slot.limits.max_restarts, death.exitcode, death.reason, started=death.started
            )
        else:
            return []
        return self._fail_group(slot, errors.WorkerInitError(slot.index, slot.kwargs_keys, reason, death.pid))

    def _died_running(self, slot: Slot, job: Job, death: Death, *, expired: bool) -> Decisions:
        if not death.started:
            return self._died_before_it_began(slot, job, death, expired=expired)
        if death.n_finished:
            slot.deaths = 0
        guilty = 0 if len(job.positions) == 1 else death.place
        if guilty is not None and not 0 <= guilty < len(job.positions):  # nothing that a worker says is sure
            guilty = None
        if expired and len(job.positions) > 1 and guilty != slot.expired_place:
            guilty = None  # the slow item had just ended when its worker was killed: let the single run tell
        others = [position for place, position in enumerate(job.positions) if place != guilty]
        self._put_back(Job(job.call, (position,)) for position in reversed(others))
        if guilty is None:
            return self._settle_if_done(job.call)
        return self._blame(slot, job, job.positions[guilty], death, expired=expired)

    def _died_before_it_began(self, slot: Slot, job: Job, death: Death, *, expired: bool) -> Decisions:
        slot.deaths += 1
        self._put_back([job])
        decisions = self._settle_if_done(job.call)
        if slot.deaths > job.call.limits.max_restarts:
            slot.group = job.call.group
            why = ""
            if expired:
                death = death._replace(exitcode=None)  # the signal was ours, and would be explained as somebody else's
                why = (
                    f"The last one was ended because no item had begun long after item_timeout="
                    f"{job.call.limits.item_timeout or 0.0:g} s. Likely cause: importing what the function needs hangs, or "
                    "takes minutes; if it is only slow, raise item_timeout."
                )
            elif job.call.target is not None:
                why = (
                    "It had been sent a function: if importing that function's module ends a process, so it does in a fresh "
                    "interpreter."
                )
            decisions += self._give_up(slot, death, job.call.limits, why)
        return decisions

    def _give_up(self, slot: Slot, death: Death, limits: Limits, why: str = "") -> Decisions:
        """End the group of a slot whose workers die before they have done anything."""
        detail = (
            f"Its slot lost {count(slot.deaths, 'worker')}{' in a row, each' * (slot.deaths > 1)} before it finished anything; "
            f"max_restarts={limits.max_restarts}. {why}"
        ).rstrip()
        error = errors.WorkerCrashedError(None, slot.index, death.pid, death.exitcode, detail)
        return self._fail_group(slot, error)

    def _put_back(self, jobs: Iterable[Job]) -> None:
        """Put jobs in front of the queue, the last one first; unless nothing more of their call shall start."""
        for job in jobs:
            if job.call.stopping:
                job.call.drop(job.positions)
            else:
                self.queue.appendleft(job)

    def _blame(self, slot: Slot, job: Job, position: int, death: Death, *, expired: bool) -> Decisions:
        call = job.call
        if job.attempt <= call.limits.retries and not call.stopping:
            avoid = slot.index if self.width(call.group) > 1 else None
            self.queue.appendleft(Job(call, (position,), job.attempt + 1, avoid))
            return []
        slot.deaths = 0  # the item is done with, so this slot has got somewhere
        slot.n_done += 1
        index = call.index(position)
        if expired:
            limit = call.limits.item_timeout or 0.0
            call.fail(position, errors.ItemTimeoutError(index, slot.index, death.pid, limit))
        else:
            call.fail(
                position,
                errors.WorkerCrashedError(index, slot.index, death.pid, death.exitcode, reason=death.reason),
            )
        return self._after_errors(call)

    def _fail_group(self, slot: Slot, error: BaseException) -> Decisions:
        group, slot.group, slot.warm, slot.deaths = slot.group, None, False, 0
        if group is None or group.error is not None:
            return []
        if group.on_error is not None:  # a map or a Parallel call: nothing more of it can count
            group.error = error
        for other in self.slots:
            if other.group is group and other.state in (State.EMPTY, State.CLOSING):
                other.warm = False
        decisions: Decisions = [FailGroup(group, error)]
        queued = {job.call for job in self.queue}
        for call in [call for call in self.calls if call.group is group]:
            # Of calls that were submitted one by one, those fail that wait for a worker.
            if group.on_error is not None or call in queued:
                decisions += self._fail(call, error)
        self.queue = deque(job for job in self.queue if not job.call.settled)
        return decisions

    def _fail(self, call: Call, error: BaseException) -> Decisions:
        call.fatal = error
        return [*self._stop_running(call), *self._settle(call)]

    def _stop_running(self, call: Call) -> Decisions:
        running = [slot for slot in self.slots if slot.job is not None and slot.job.call is call]
        return [StopJob(slot.index, slot.seq) for slot in running]

    def _drop_queued(self, call: Call) -> None:
        call.stopping = True
        for job in [job for job in self.queue if job.call is call]:
            self.queue.remove(job)
            call.drop(job.positions)

    def _settle_if_done(self, call: Call) -> Decisions:
        return [] if call.missing else self._settle(call)

    def _settle(self, call: Call) -> Decisions:
        call.settled = True
        del self.calls[call]
        return [Settle(call)]
