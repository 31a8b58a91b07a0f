"""Which slot runs what: state in, decisions out.

No I/O, no threads, no clock: each method takes one event, changes the state and returns the decisions that
follow from it, for somebody else to carry out in that order. A slot is marked busy in the very step that
assigns it. The rules, in one place:

- Work goes to slots that have their object, and only then to empty ones: no more objects than are needed. Of those that
  have it, to those that are at the fewest jobs.
- A group runs on its first so many slots only, and those are the same for all that want so many.
- A slot runs one job at a time, or so many at once as its worker can be at. What waits, waits here, where it can still be
  dropped or go elsewhere.
- What a worker gives back of a message that took too long goes to all slots, in parts; it is also asked for that when
  others have nothing to do, and nothing can come for them.
- What a worker has no memory for all at once goes to it one by one.
- When a worker dies, the item that ran pays (a retry on another slot, or its error); the other items of its
  message run again one by one. What had not been started costs nothing. If it was called with several at once, all of them
  pay, and are tried again in halves. If it was at several jobs at once, each of them pays for the item that it ran.
- Deaths that are nobody's fault are counted per slot and in a row; beyond ``max_restarts`` they end the group.
"""

from __future__ import annotations

from concurrent.futures import CancelledError
from typing import TYPE_CHECKING

from .. import errors
from .._words import count
from ._assignment import Assignment
from ._decisions import Decisions, Deliver, FailGroup, KillWorker, StopJob
from ._jobs import Call, Job
from ._requests import Outcome
from ._slots import Killing, Late, Slot, SlotTable, State

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from .._worker._messages import Death
    from ._requests import Group, Limits, Report, Request

# A part should take several times as long as its message costs parent and worker, a millisecond (`docs/performance.md`);
# 3 to 30 ms do as well with two slots (W3 of `python -m benchmarks`).
PART_SECONDS = 0.01


class Scheduler:
    """Takes events, one method each, and returns the decisions that follow.

    Parameters
    ----------
    n_slots : int
        Number of slots; more can be added.
    max_tasks : int or None
        Items after which a worker is closed and its object built anew; None: never.
    in_turn : bool
        Give work to the slot that has waited longest, built or not, instead of to as few as possible.
    capacity : int
        How many jobs a worker can be at.
    """

    def __init__(self, n_slots: int, max_tasks: int | None = None, *, in_turn: bool = False, capacity: int = 1) -> None:
        self.slots = SlotTable(n_slots, max_tasks, capacity)
        self.work = Assignment(self.slots, in_turn=in_turn)
        self.closing = False
        # Jobs that were answered, whose values are still being loaded, and something of which may wait in a moment; and whether
        # their group is held meanwhile.
        self._unreported: dict[Job, bool] = {}

    def __repr__(self) -> str:
        return f"<Scheduler {self.slots!r} {len(self.work.jobs)} queued, {self.work.n_calls} open>"

    # --- events from callers --------------------------------------------------------------------------

    def submit(self, request: Request) -> Decisions:
        """Accept a request."""
        if self.closing:
            raise errors.ShutdownError(
                "cannot schedule new futures after shutdown: shutdown() was called, the executor's with block was left, "
                "or the interpreter is ending. Make a new executor."
            )
        call = self.work.open(request)
        call.group.sharing = False  # more of it can come
        if call.group.error is not None:
            return self._drop([call], fatal=call.group.error)
        if call.group.stopping:
            return self._drop([call])
        if call.group.broken and request.only in call.group.broken:
            return self._fail_items(call, call.positions_left, call.group.broken[request.only])
        if not request.faults:
            self.work.jobs.append(Job(call, range(request.size)))
            return self._assign()
        faults = sorted(request.faults)
        decisions = self._deliver(call, Outcome(faults, [None] * len(faults), request.faults))
        if request.after_error != "go_on":
            return decisions + self._drop_items(call, call.positions_left) + self._after_errors(call)
        if not call.settled:
            self.work.jobs.append(Job(call, call.positions_left))
        return decisions + self._assign()

    def share(self, group: Group) -> Decisions:
        """Note that no more requests of a group can come at present: idle slots get a share of those that run."""
        group.sharing = True
        return self.work.share()

    def grow(self, n_slots: int) -> Decisions:
        """Add slots, until there are so many."""
        self.slots.grow(n_slots)
        return self._assign()

    def warm(self, group: Group, limits: Limits, *, again: bool = False) -> Decisions:
        """Have every slot that a group may use build its object now.

        With ``again``, which says that this was done and they don't stand yet, slots that keep dying are given up.
        """
        slots = self.slots.first(self.work.width(group))
        for slot in slots:
            if slot.state in (State.EMPTY, State.CLOSING) or (
                slot.state is State.BUILDING and slot.killing is not None
            ):
                slot.group, slot.limits = group, limits
            if slot.state in (State.EMPTY, State.CLOSING, State.BUILDING):
                self.slots.warm(slot)
        decisions: Decisions = []
        for slot in slots:
            if (
                again
                and self.slots.is_to_be_warm(slot)
                and slot.group is group
                and slot.death is not None
                and slot.deaths > limits.max_restarts
            ):
                decisions += self._give_up(slot, slot.death, limits)
        return decisions + self._assign()

    def begin(self, group: Group, limits: Limits, n_slots: int) -> Decisions:
        """Have so many slots ready, or on the way to that, for requests of a group that will come in a moment."""
        if self.closing or group.error is not None:
            return []
        slots = self.slots.first(self.work.width(group))
        empty = [slot for slot in slots if slot.state is State.EMPTY]
        n_there = len(slots) - len(empty)
        for slot in empty[: max(0, n_slots - n_there)]:
            slot.group, slot.limits = group, limits
            self.slots.warm(slot)
        return self._assign()

    def drop(self, group: Group | None = None) -> Decisions:
        """Forget the calls of a group (None: all): what is queued is not run, what runs is stopped after its item.

        Their owners hear at once that they are settled, and of nothing that comes of them later.
        """
        return self._drop(self.work.calls_of(group))

    def drop_not_started(self) -> Decisions:
        """Forget all calls of which nothing was sent yet."""
        return self._drop([call for call in self.work.calls_of() if not call.claimed])

    def drop_running(self, index: int) -> Decisions:
        """Forget the calls that a slot is at, also what of them waits or is at other slots."""
        running = dict.fromkeys(job.call for job in self.slots[index].jobs.values())  # each once, whatever it has there
        return self._drop([call for call in running if not call.settled])

    def stop_after_running(self, group: Group) -> Decisions:
        """Let what runs of a group finish its current item, and drop the rest, and what may still come."""
        group.stopping = True
        queued = self.work.jobs.remove(lambda job: job.call.group is group)
        decisions = [decision for job in queued for decision in self._drop_items(job.call, job.positions)]
        stopped = self._stop_running(self.work.calls_of(group), is_unwanted=False)
        return stopped + decisions + self._after_removal()

    def kill(
        self, group: Group | None = None, *, idle_too: bool = False, only: Callable[[Slot], bool] | None = None
    ) -> Decisions:
        """Kill the workers that run, or are built for, a group (None: any group); also those that are idle, or ending."""
        decisions: Decisions = []
        for slot in self.slots:
            is_at_rest = slot.state in (State.IDLE, State.CLOSING)
            is_spared = slot.state is State.EMPTY or (is_at_rest and not idle_too)
            if is_spared or not slot.is_for(group) or (only is not None and not only(slot)):
                continue
            if slot.state is State.IDLE:
                self.slots.enter(slot, State.CLOSING)
            self.slots.leave_cold(slot)
            why = "because something else that it was at was interrupted"
            self.slots.condemn(slot, slot.killing or Killing(why=why))
            decisions.append(KillWorker(slot.index, slot.life))
        return decisions

    def cancel(self, call: Call) -> Decisions:
        """Forget a call, and ask the workers that run it to cancel it."""
        return [] if call.settled else self._drop([call], fatal=CancelledError())

    def stop(self, call: Call) -> Decisions:
        """Forget a call, and kill the workers that run it."""
        running = [slot for slot in self.slots if any(job.call is call for job in slot.jobs.values())]
        for slot in running:
            self.slots.condemn(slot, slot.killing or Killing(why="because another call that it was at was stopped"))
        decisions = [] if call.settled else self._give_back(call, fatal=CancelledError())
        self.work.jobs.remove(lambda job: job.call.settled)
        return [*decisions, *(KillWorker(slot.index, slot.life) for slot in running), *self._after_removal()]

    def close(self) -> Decisions:
        """Take no more calls; close each worker once nothing is left for it."""
        self.closing = True
        self.slots.leave_all_cold()
        return self._assign()

    def release(self) -> Decisions:
        """Close the workers that are idle now."""
        idle = list(self.slots.indices(State.IDLE))
        return [decision for index in idle for decision in self.work.close(self.slots[index])]

    # --- events from workers --------------------------------------------------------------------------

    # Each carries the number of the message that it answers, so that late news of a former worker is ignored.

    def built(self, index: int, seq: int, seconds: float = 0.0) -> Decisions:
        """Note that a slot's object stands, and how long its construction took."""
        slot = self.slots[index]
        if slot.seq != seq or slot.state is not State.BUILDING:
            return []
        slot.n_builds += 1
        slot.init_seconds = seconds
        slot.tasks, slot.group = 0, None
        self.slots.leave_cold(slot)
        self.slots.free_after_work(slot)
        return self._assign() + self.work.share()

    def build_failed(self, index: int, seq: int, error: errors.WorkerInitError) -> Decisions:
        """Note that a slot's constructor raised; its worker is of no use."""
        slot = self.slots[index]
        if slot.seq != seq or slot.state is not State.BUILDING:
            return []
        decisions = self._fail_group(slot, error)
        return [*self.work.close(slot), *decisions, *self._assign()]

    def finished(self, index: int, seq: int, report: Report) -> Decisions:
        """Note what became of a slot's job."""
        job = self._take_answered(index, seq)
        if job is None:
            return []
        # First, for what is noted may have others assigned, and this slot's worker may be of no more use.
        decisions = self._go_on_after(index, report.n_run, report.seconds, is_full=report.is_full)
        if not job.call.settled:
            decisions = self._note(job, report) + decisions
        return decisions + self._assign() + self.work.share()

    def answered(
        self, index: int, seq: int, n_run: int, seconds: float, *, failed: bool = False, is_full: bool = False
    ) -> tuple[Job | None, Decisions]:
        """Note that a slot has done its job; `reported` tells what became of it, when that is known.

        In between, users' code may take long, or wait for other calls: the slot takes them. After a failure that nothing
        more of its group shall start behind, none of that are given out until then.
        """
        job = self._take_answered(index, seq)
        if job is None:
            return None, []
        is_held = failed and job.call.request.after_error != "go_on" and not job.call.settled
        if is_held:
            self.work.jobs.hold(job.call.group)
        if is_held or n_run < len(job.positions):
            self._unreported[job] = is_held
        decisions = self._go_on_after(index, n_run, seconds, is_full=is_full)
        return job, decisions + self._assign() + self.work.share()

    def reported(self, job: Job, report: Report) -> Decisions:
        """Note what became of a job whose slot has been at other things since."""
        decisions = [] if job.call.settled else self._note(job, report)
        self._let_go_of(job)
        return decisions + self._assign() + self.work.share()

    def fail(self, call: Call, error: BaseException) -> Decisions:
        """Note that nothing can be told of a call."""
        decisions = [] if call.settled else self._drop([call], fatal=error)
        for job in [job for job in self._unreported if job.call is call]:
            self._let_go_of(job)
        return decisions + self._assign()

    def _let_go_of(self, job: Job) -> None:
        """Note that a job is reported, or never will be."""
        is_held, group = self._unreported.pop(job, False), job.call.group
        if is_held and not any(held for other, held in self._unreported.items() if other.call.group is group):
            self.work.let_go(group)

    def died(self, index: int, seq: int, death: Death) -> Decisions:
        """Note that a slot's process is gone."""
        slot = self.slots[index]
        if slot.jobs:
            return self._died_at_work(slot, seq, death) + self._assign()
        state = slot.state
        if slot.seq != seq or state is State.EMPTY:
            return []
        slot.death = death
        killing = slot.killing
        late = None if killing is None else killing.late.get(seq)
        unwanted = killing is not None and late is None
        self.slots.enter(slot, State.EMPTY)
        slot.n_restarts += state is not State.CLOSING
        if unwanted and not self.slots.is_to_be_warm(slot):
            slot.group = None
        decisions: Decisions = []
        if state is State.BUILDING and not unwanted:
            decisions = self._died_building(slot, death, late)
        elif state is State.IDLE:
            slot.deaths += 1
        return decisions + self._assign()

    def _died_at_work(self, slot: Slot, seq: int, death: Death) -> Decisions:
        """Note that a slot's process is gone, for one of the jobs that it was at; for each of the others that comes, too."""
        job = self.work.take_job(slot, seq)
        if job is None:
            return []
        slot.death = death
        killing = slot.killing or Killing()
        if not killing.is_told:  # the first that is heard of it; what it is still at may be answered all the same
            slot.n_restarts += 1
            if slot.killing is not None and not slot.killing.late:
                slot.life_mourned = slot.life  # for somebody else's sake it was killed: that is no fault of this slot's
            killing = killing._replace(is_done=True, is_told=True, n_jobs=len(slot.jobs) + 1)
            self.slots.condemn(slot, killing)
        if not slot.jobs:
            self.slots.enter(slot, State.EMPTY)
        if job.call.settled:
            return []
        return self._died_running(slot, job, _as_told(death, seq, killing), killing.late.get(seq), killing)

    def died_idle(self, index: int, life: int, death: Death) -> Decisions:
        """Note that a process is gone that was at nothing; if it is sent something, that is answered with its death."""
        slot = self.slots[index]
        if slot.life != life or slot.state is not State.IDLE:
            return []
        return self.died(index, slot.seq, death)

    def killed(self, index: int, life: int) -> Decisions:
        """Note that a `KillWorker` was carried out; if its last message was answered before, no death follows."""
        slot = self.slots[index]
        if slot.life != life or slot.killing is None:
            return []
        slot.killing = slot.killing._replace(is_done=True)
        if slot.state is not State.CLOSING:
            return []
        self.slots.enter(slot, State.EMPTY)
        return self._assign()

    def ended(self, index: int, seq: int) -> Decisions:
        """Note that a slot's worker has ended after a `CloseWorker`."""
        slot = self.slots[index]
        if slot.seq != seq or slot.state is not State.CLOSING:
            return []
        self.slots.enter(slot, State.EMPTY)
        return self._assign()

    def expire(self, index: int, seq: int, place: int | None = None) -> Decisions:
        """Note that a slot's message is over its time limit, with an item or during construction."""
        slot = self.slots[index]
        if not slot.is_at(seq) or slot.state is State.CLOSING:
            return []
        killing = slot.killing or Killing()
        why = killing.why or "because something else that it was at was over its time limit"
        self.slots.condemn(slot, killing._replace(late={**killing.late, seq: Late(place)}, why=why))
        return [KillWorker(index, slot.life)]

    # --- what callers ask -----------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """True if no caller waits for anything."""
        return not self.work.has_calls

    def is_warm(self, group: Group) -> bool:
        """Tell whether every slot that a group may use has its object."""
        return all(slot.state in (State.IDLE, State.BUSY) for slot in self.slots.first(self.work.width(group)))

    @property
    def is_warming(self) -> bool:
        """True if objects are being built that no job waits for."""
        return bool(self.slots.to_be_warm)

    @property
    def is_empty(self) -> bool:
        """True if no worker is left."""
        return len(self.slots.indices(State.EMPTY)) == len(self.slots)

    def is_running(self, group: Group) -> bool:
        """Tell whether a worker runs something of a group, wanted or not, or is built for it."""
        return any(slot.is_for(group) and slot.state is not State.EMPTY for slot in self.slots)

    def _assign(self) -> Decisions:
        return self.work.assign() + self._release_if_done() if self.closing else self.work.assign()

    def _after_removal(self) -> Decisions:
        """Do what follows from the removal of jobs that waited: others may have waited for those that were to be alone."""
        # Of those for one slot each may have been to be alone.
        may_go_on = self.work.has_alone or self.work.jobs.own
        return self._assign() if may_go_on else self._release_if_done()

    def _release_if_done(self) -> Decisions:
        """Close the workers that are idle if nothing can come for them any more."""
        return self.release() if self.closing and not self.work.jobs and not self._unreported else []

    # --- outcomes -------------------------------------------------------------------------------------

    def _take_answered(self, index: int, seq: int) -> Job | None:
        return self.work.take_job(self.slots[index], seq)

    def _go_on_after(self, index: int, n_run: int, seconds: float, *, is_full: bool) -> Decisions:
        """Count what a slot has done, and free it for more or close it."""
        slot = self.slots[index]
        slot.deaths = 0
        slot.n_done += n_run
        slot.tasks += n_run
        slot.busy_seconds += seconds
        slot.is_full |= is_full
        if not slot.jobs and slot.killing is None and self.slots.is_worn_out(slot):
            return self.work.close(slot)
        self.slots.free_after_work(slot)
        return []

    def _note(self, job: Job, report: Report) -> Decisions:
        call, n_run = job.call, report.n_run
        ran, rest = job.positions, job.positions[n_run:]
        if rest:
            ran = job.positions[:n_run]
        decisions: Decisions = []
        errors_of, values = report.errors, report.values
        if report.late and job.attempt <= call.request.limits.retries and not call.group.stopping:
            decisions += self._try_late_again(job, report)
            kept = [place for place in range(n_run) if place not in report.late]
            ran, values = [job.positions[place] for place in kept], [values[place] for place in kept]
            errors_of = {place: error for place, error in errors_of.items() if place not in report.late}
        if ran:
            faults = {job.positions[place]: error for place, error in errors_of.items()} if errors_of else {}
            outcome = Outcome(
                ran,
                values,
                faults,
                n_run=n_run,
                seconds=report.seconds,
                result_bytes=report.result_bytes,
                n_calls=report.n_calls,
                n_fit=report.n_fit,
            )
            decisions += self._deliver(call, outcome)
        if rest:
            decisions += self._go_on_with(job, rest, report, failed=bool(errors_of))
        return decisions + self._after_errors(call) if errors_of else decisions

    def _try_late_again(self, job: Job, report: Report) -> Decisions:
        """Put back items that were over their time, and that their worker has ended itself."""
        call, late = job.call, [job.positions[place] for place in report.late]
        avoid = report.slot if self.work.width(call.group) > 1 and job.only is None else None
        again = Job(call, late, job.attempt + 1, avoid)
        # One by one, or where they were in one call in halves.
        n_parts = min(2, len(late)) if call.request.is_one_call else len(late)
        return self._put_back(reversed(again.split(late, n_parts)))

    def _go_on_with(self, job: Job, rest: Sequence[int], report: Report, *, failed: bool) -> Decisions:
        """Do what is to be done with items of a job that were not run."""
        call, n_run = job.call, report.n_run
        if report.was_refused:
            return self._put_back_apart(job, rest)
        if not n_run or (failed and call.request.after_error != "go_on"):
            return self._drop_items(call, rest)
        # It took too long for one message, or others have nothing to do. Parts for those, or else some for each slot,
        # but none that is over sooner than it is worth.
        n_free = self.work.n_free(call.group, beside=report.slot)
        n_parts = 1 + n_free if n_free else 2 * self.work.width(call.group)
        worth = report.seconds / n_run * len(rest) / PART_SECONDS
        return self._put_back(reversed(job.split(rest, max(1, min(n_parts, int(worth))))))

    def _after_errors(self, call: Call) -> Decisions:
        """Do what a call's error does to the rest of it, and of its group."""
        after_error = call.request.after_error
        if after_error == "go_on" or call.group.stopping:
            return []
        if after_error == "finish_running":
            return self.stop_after_running(call.group)
        call.group.stopping = True
        return self.drop(call.group)

    def _died_building(self, slot: Slot, death: Death, late: Late | None) -> Decisions:
        slot.deaths += 1
        if late is not None:
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

    def _died_running(self, slot: Slot, job: Job, death: Death, late: Late | None, killing: Killing) -> Decisions:
        if not death.started:
            return self._died_before_it_began(slot, job, death, late)
        slot.life_mourned = slot.life
        if death.n_finished:
            slot.deaths = 0
        suspects = _suspects(job, death, late)
        before, after = job.positions[: suspects.start], job.positions[suspects.stop :]
        decisions = self._put_back_apart(job, after) + self._put_back_apart(job, before)
        if not suspects:
            return decisions
        positions = job.positions[suspects.start : suspects.stop]
        # Of several jobs that the worker was at, none knows which is to blame: each is tried again alone, or it would cost others
        # their tries. Not if the reason is known, and it is another one.
        is_alone = killing.n_jobs > 1 and (late is not None or not killing.why)
        return decisions + self._blame(slot, job, positions, death, late, is_alone=is_alone)

    def _put_back_apart(self, job: Job, positions: Sequence[int]) -> Decisions:
        """Put back items of a job that are not known to be to blame: one by one, or where a call takes several, in fewer."""
        if not positions:
            return []
        n_parts = len(positions)
        if job.call.request.is_one_call:
            n_parts = 2 if n_parts == len(job.positions) else 1
        return self._put_back(reversed(job.split(positions, n_parts)))

    def _died_before_it_began(self, slot: Slot, job: Job, death: Death, late: Late | None) -> Decisions:
        slot.deaths += slot.life_mourned != slot.life  # others that it was at may have been told of before
        slot.life_mourned = slot.life
        request = job.call.request
        decisions = self._put_back([job])
        if slot.deaths > request.limits.max_restarts:
            slot.group = job.call.group
            why = ""
            if late is not None:
                death = death._replace(exitcode=None)  # the signal was ours, and would be explained as somebody else's
                why = (
                    f"The last one was ended because no item had begun long after item_timeout="
                    f"{request.limits.item_timeout or 0.0:g} s. Likely cause: importing what the function needs hangs, or "
                    "takes minutes; if it is only slow, raise item_timeout."
                )
            elif request.target is not None:
                why = (
                    "It had been sent a function: if importing that function's module ends a process, so it does in a fresh "
                    "interpreter."
                )
            decisions += self._give_up(slot, death, request.limits, why)
        return decisions

    def _give_up(self, slot: Slot, death: Death, limits: Limits, why: str = "") -> Decisions:
        """End the group of a slot whose workers die before they have done anything."""
        detail = (
            f"Its slot lost {count(slot.deaths, 'worker')}{' in a row, each' * (slot.deaths > 1)} before it finished anything; "
            f"max_restarts={limits.max_restarts}. {why}"
        ).rstrip()
        error = errors.WorkerCrashedError(None, slot.index, death.pid, death.exitcode, detail)
        return self._fail_group(slot, error)

    def _put_back(self, jobs: Iterable[Job]) -> Decisions:
        """Put jobs in front of the queue, the last one first; unless nothing more of their call shall start."""
        decisions: Decisions = []
        for job in jobs:
            if job.call.group.stopping:
                decisions += self._drop_items(job.call, job.positions)
            else:
                self.work.put_back(job)
        return decisions

    def _blame(
        self,
        slot: Slot,
        job: Job,
        positions: Sequence[int],
        death: Death,
        late: Late | None,
        *,
        is_alone: bool,
    ) -> Decisions:
        """Have the items pay for a death that ran when it came."""
        call, request, n_items = job.call, job.call.request, len(positions)
        if job.attempt <= request.limits.retries and not call.group.stopping:
            avoid = slot.index if self.work.width(call.group) > 1 and job.only is None else None
            again = Job(call, positions, job.attempt + 1, avoid, is_alone=is_alone or job.is_alone)
            return self._put_back(reversed(again.split(positions, min(2, n_items))))
        slot.deaths = 0  # these items are done with, so this slot has got somewhere
        slot.n_done += n_items
        found: dict[int, BaseException] = {}
        for position in positions:
            index = request.index(position)
            if late is not None:
                timeout = request.limits.item_timeout or 0.0
                found[position] = errors.ItemTimeoutError(index, slot.index, death.pid, timeout, n_items=n_items)
            else:
                found[position] = errors.WorkerCrashedError(
                    index, slot.index, death.pid, death.exitcode, reason=death.reason, n_items=n_items
                )
        return self._deliver(call, Outcome(positions, [None] * n_items, found)) + self._after_errors(call)

    def _fail_group(self, slot: Slot, error: BaseException) -> Decisions:
        group, slot.group, slot.deaths = slot.group, None, 0
        self.slots.leave_cold(slot)
        if group is None or group.error is not None:
            return []
        if group.broken is not None:
            return self._break_slot(slot, group, error)
        if group.on_error is not None:  # a map or a Parallel call: nothing more of it can count
            group.error = error
        for other in self.slots.to_be_warm:
            if other.group is group and other.state in (State.EMPTY, State.CLOSING):
                self.slots.leave_cold(other)
        # Of calls that were submitted one by one, those fail that wait for a worker.
        queued = {job.call for job in self.work.jobs if job.only in (None, slot.index)}
        calls = [call for call in self.work.calls_of(group) if group.on_error is not None or call in queued]
        decisions: Decisions = [FailGroup(group, error), *self._stop_running(calls)]
        decisions += [decision for call in calls for decision in self._give_back(call, fatal=error)]
        self.work.jobs.remove(lambda job: job.call.settled)
        return decisions

    def _break_slot(self, slot: Slot, group: Group, error: BaseException) -> Decisions:
        """Fail the items of a group that must run in a slot which is of no use, and those that are still to come."""
        assert group.broken is not None  # noqa: S101 - see `_fail_group`
        group.broken[slot.index] = error
        waiting = self.work.jobs.remove(lambda job: job.only == slot.index and job.call.group is group)
        return [decision for job in waiting for decision in self._fail_items(job.call, job.positions, error)]

    # Each of these says of items what became of them, each item once; with the last one a call is settled.

    def _deliver(self, call: Call, outcome: Outcome) -> Decisions:
        request = call.request
        if call.take(outcome.positions):
            self.work.settle(call)
        else:
            outcome = outcome._replace(is_last=False)
        return [Deliver(request.deliver, outcome)]

    def _drop_items(self, call: Call, positions: Sequence[int]) -> Decisions:
        return self._deliver(call, Outcome(positions, [], is_dropped=True)) if positions else []

    def _fail_items(self, call: Call, positions: Sequence[int], error: BaseException) -> Decisions:
        return self._deliver(call, Outcome(positions, [None] * len(positions), dict.fromkeys(positions, error)))

    def _give_back(self, call: Call, *, fatal: BaseException | None = None) -> Decisions:
        """Say of all items of which nothing was said yet that they will not be run."""
        return self._deliver(call, Outcome(call.positions_left, [], is_dropped=True, fatal=fatal))

    def _drop(self, calls: Collection[Call], *, fatal: BaseException | None = None) -> Decisions:
        decisions = self._stop_running(calls)
        decisions += [decision for call in calls for decision in self._give_back(call, fatal=fatal)]
        self.work.jobs.remove(lambda job: job.call.settled)
        return decisions + self._after_removal()

    def _stop_running(self, calls: Collection[Call], *, is_unwanted: bool = True) -> Decisions:
        wanted = set(calls)
        return [
            StopJob(slot.index, seq, is_unwanted)
            for slot in self.slots
            for seq, job in slot.jobs.items()
            if job.call in wanted
        ]


def _as_told(death: Death, seq: int, killing: Killing) -> Death:
    """Return a worker's death as those are told of it who are at one of its messages."""
    if killing.n_jobs == 1 or seq in killing.late:
        return death
    if killing.why:
        return death._replace(exitcode=None, reason=f"it was killed {killing.why}")  # the signal was ours
    together = f"it was at {killing.n_jobs} at once, any of which may be to blame"
    return death._replace(reason=f"{death.reason}; {together}" if death.reason else together)


def _suspects(job: Job, death: Death, late: Late | None) -> range:
    """Return the places of those items of a job that ran when its worker died; none if that can't be told."""
    size = len(job.positions)
    if size == 1:
        return range(1)
    if death.place is None or not 0 <= death.place < death.place + death.n_together <= size:
        return range(0)  # nothing that a worker says is sure
    if late is not None and death.place != late.place:
        return range(0)  # the slow item had just ended when its worker was killed: let the single run tell
    return range(death.place, death.place + death.n_together)
