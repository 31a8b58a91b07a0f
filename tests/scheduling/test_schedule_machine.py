"""The scheduler against a model of workers: whatever happens, in whatever order, nothing is lost or run twice.

The machine is the world around a `Scheduler`: it carries out decisions, and plays callers, workers, their deaths
and the clock. What it asserts while doing so are the rules at the top of `_scheduler.py`; its invariants hold
after every event, and at the end everything is driven to its end.

``JOBLIB_STATEFUL_EXAMPLES=20000 pytest tests/scheduling/test_schedule_machine.py`` looks longer, and elsewhere each time.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from asked import Asked, who_asked
from joblib_stateful import errors
from joblib_stateful._scheduling._decisions import (
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
from joblib_stateful._scheduling._requests import Group, Limits, Report
from joblib_stateful._scheduling._scheduler import Scheduler
from joblib_stateful._scheduling._slots import State
from joblib_stateful._worker._messages import Death

if TYPE_CHECKING:
    from collections.abc import Callable

    from joblib_stateful._scheduling._jobs import Job
    from joblib_stateful._worker._messages import AfterError

pytestmark = pytest.mark.unit


_AFTER_ERROR: tuple[AfterError, ...] = ("go_on", "finish_running", "drop")
_MANY_STEPS = 1000


@dataclass(eq=False)
class Life:
    """A worker: what it owes, and what was decided about it."""

    number: int
    limits: Limits
    message: int | None  # the seq it owes an answer to
    job: Job | None = None  # of that message; None: it builds
    n_run: int = 0
    stop_asked: bool = False
    closing: int | None = None
    doomed: bool = False  # it is to be killed
    gone: bool = False  # it was
    expired: bool = False
    expired_place: int | None = None


class ScheduleMachine(RuleBasedStateMachine):
    """The world around a scheduler."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(1)
        self.plain, self.map = Group(), Group(on_error=_ignore)
        self.narrow = Group(on_error=_ignore, n_slots=1)
        self.groups: list[Group] = []
        self.calls: list[Asked] = []
        self.cancelled: set[Asked] = set()
        self.lives: dict[int, Life] = {}
        self.kills: list[KillWorker] = []
        self.blamed: Counter[tuple[Asked, int]] = Counter()  # deaths that an item paid for
        self.blamed_in: dict[tuple[Asked, int], int | None] = {}
        self.unblamed: Counter[int] = Counter()  # deaths of a slot, in a row, that nobody paid for

    @initialize(n_slots=st.integers(1, 3), max_tasks=st.sampled_from([None, None, 1, 2, 3]), in_turn=st.booleans())
    def begin(self, *, n_slots: int, max_tasks: int | None, in_turn: bool) -> None:
        self.scheduler = Scheduler(n_slots, max_tasks=max_tasks, in_turn=in_turn)
        self.groups = [self.plain, self.map, self.narrow]

    # --- carrying out decisions -----------------------------------------------------------------------

    def carry_out(self, decisions: Decisions) -> None:
        for decision in decisions:
            self._carry_out_one(decision)

    def _carry_out_one(self, decision: Decision) -> None:
        if isinstance(decision, Deliver):
            decision.deliver(decision.outcome)
            if decision.outcome.is_last:
                self._settle(decision)
        elif isinstance(decision, FailGroup):
            assert decision.group in self.groups
        elif isinstance(decision, StartWorker):
            assert decision.slot not in self.lives, "the slot's old worker is still there"
            group = self.scheduler.slots[decision.slot].group
            assert group is not None
            assert decision.slot < decision.n_jobs == min(group.n_slots, len(self.scheduler.slots))
            self.lives[decision.slot] = Life(
                self.scheduler.slots[decision.slot].life, decision.limits, message=decision.seq
            )
        elif isinstance(decision, SendJob):
            self._send(decision)
        elif isinstance(decision, StopJob):
            assert self.lives[decision.slot].message == decision.seq
            self.lives[decision.slot].stop_asked = True
        elif isinstance(decision, ShareJob):
            job = self.lives[decision.slot].job
            assert self.lives[decision.slot].message == decision.seq
            assert job is not None
            assert job.call.request.budget is not None
            assert len(job.positions) > 1
            assert job.call.group.sharing
            assert not self.scheduler.work.jobs
            width = job.call.group.n_slots
            assert any(slot.state is State.IDLE for slot in self.scheduler.slots.first(width))
        elif isinstance(decision, CloseWorker):
            life = self.lives[decision.slot]
            assert life.number == decision.life
            assert life.message is None
            assert life.closing is None
            life.closing = decision.seq
        else:
            assert self.lives[decision.slot].number == decision.life
            self.lives[decision.slot].doomed = True
            self.kills.append(decision)

    def _send(self, send: SendJob) -> None:
        call, life = who_asked(send.job.call), self.lives[send.slot]
        assert life.message is None, "it is at work, or being built"
        assert not life.doomed
        assert life.closing is None
        assert send.slot < call.group.n_slots, "not one of its own slots"
        assert not call.is_settled
        assert not call.group.stopping
        assert call.request.claim is None or send.job.call.claimed
        assert send.job.positions
        assert send.job.call.request.only in (None, send.slot)
        running = {
            p
            for other in self.lives.values()
            if other.job and other.job.call is send.job.call
            for p in other.job.positions
        }
        assert running.isdisjoint(send.job.positions), "it runs elsewhere"
        for position in send.job.positions:
            item = call, position
            assert position not in call.heard_of, "it has an outcome already"
            assert self.blamed[item] <= call.limits.retries
            if self.scheduler.work.width(call.group) > 1 and call.request.only is None:
                assert self.blamed_in.get(item) != send.slot, "it killed its worker here before"
        max_tasks = self.scheduler.max_tasks
        assert max_tasks is None or life.n_run + len(send.job.positions) <= max_tasks
        life.message, life.job, life.stop_asked = send.seq, send.job, False

    def _settle(self, decision: Deliver) -> None:
        call: Asked = decision.deliver.__self__  # type: ignore[attr-defined]  # its method
        assert call.missing == 0
        if call.fatal is None:
            for position in range(call.size):
                error, is_dropped = call.errors.get(position), position in call.dropped
                value = None if error is not None or is_dropped else _value(call, position)
                assert call.values[position] == value
                assert error is None or not is_dropped
                assert not isinstance(error, errors.WorkerError) or self.blamed[call, position]

    # --- callers --------------------------------------------------------------------------------------

    @rule(
        size=st.integers(1, 4),
        whose=st.sampled_from(["plain", "map", "map", "narrow"]),
        retries=st.integers(0, 2),
        max_restarts=st.integers(0, 2),
        after_error=st.sampled_from(_AFTER_ERROR),
        budget=st.sampled_from([0.1, 0.1, None]),
        unsent=st.sampled_from([(), (), (), (0,), (1,), (0, 2)]),
        together=st.booleans(),
        only=st.sampled_from([None, None, 0, 1]),
        is_urgent=st.booleans(),
    )
    def submit(
        self,
        *,
        size: int,
        whose: Literal["plain", "map", "narrow"],
        retries: int,
        max_restarts: int,
        after_error: AfterError,
        budget: float | None,
        unsent: tuple[int, ...],
        together: bool,
        only: int | None,
        is_urgent: bool,
    ) -> None:
        limits = Limits(5.0, 5.0, retries, max_restarts)
        kept = frozenset(position for position in unsent if position < size)
        group: Group = getattr(self, whose)
        if only is not None and only >= self.scheduler.work.width(group):
            only = None
        call = Asked(
            size,
            group,
            limits,
            after_error=after_error,
            budget=None if together or only is not None else budget,
            unsent=kept,
            mode="batch" if together else "item",
            only=only,
            is_urgent=is_urgent,
        )
        if call.group.on_error is None:
            call.request.claim = lambda: call not in self.cancelled
        if self.scheduler.closing:
            with pytest.raises(errors.ShutdownError):
                self.scheduler.submit(call.request)
            return
        self.calls.append(call)
        self.carry_out(self.scheduler.submit(call.request))

    def begin_another_map(self, data: st.DataObject) -> None:
        self.map, self.narrow = Group(on_error=_ignore), Group(on_error=_ignore, n_slots=data.draw(st.integers(1, 2)))
        self.groups += [self.map, self.narrow]

    @precondition(lambda self: self.scheduler.work.groups())
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        group = self._draw_group(data)
        calls = self.scheduler.work.calls_of(group)
        self.carry_out(self.scheduler.drop(group))
        assert all(call.settled for call in calls)

    @precondition(lambda self: self.scheduler.work.groups())
    @rule(data=st.data())
    def stop_after_running(self, data: st.DataObject) -> None:
        group = self._draw_group(data)
        self.carry_out(self.scheduler.stop_after_running(group))
        assert not any(job.call.group is group for job in self.scheduler.work.jobs)
        if group is self.plain:  # what is submitted by itself goes on with another one
            self.plain = Group()
            self.groups.append(self.plain)
        elif group is self.map:
            self.map = Group(on_error=_ignore)
            self.groups.append(self.map)
        elif group is self.narrow:
            self.narrow = Group(on_error=_ignore, n_slots=group.n_slots)
            self.groups.append(self.narrow)

    @rule()
    def share(self) -> None:
        self.carry_out(self.scheduler.share(self.map))

    @rule()
    def send_more(self) -> None:
        self.map.sharing = False

    @precondition(lambda self: self._cancellable())
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.cancelled.add(data.draw(st.sampled_from(self._cancellable())))

    def drop_what_has_not_started(self, _: st.DataObject) -> None:
        calls = [call for call in self.scheduler.work.calls_of() if not call.claimed]
        assert not any(who_asked(call).heard_of - set(call.request.faults) for call in calls)
        self.carry_out(self.scheduler.drop_not_started())
        assert all(call.settled for call in calls)

    @rule(data=st.data())
    def disturb(self, data: st.DataObject) -> None:
        # One rule for what happens seldom, or else little would ever be under way.
        steps = (
            self.begin_another_map,
            self.drop_what_has_not_started,
            self.kill,
            self.warm,
            self.release,
            self.grow,
            self.close,
        )
        data.draw(st.sampled_from(steps))(data)

    def kill(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sampled_from([None, self.plain, self.map, self.narrow]))
        # As the pool does: what shall be killed is dropped before.
        self.carry_out(self.scheduler.drop(chosen))
        self.carry_out(self.scheduler.kill(chosen, idle_too=data.draw(st.booleans())))

    def warm(self, data: st.DataObject) -> None:
        max_restarts, again = data.draw(st.integers(0, 2)), data.draw(st.booleans())
        group = Group(on_error=_ignore, n_slots=data.draw(st.sampled_from([1, 9])))
        self.groups.append(group)
        slots = self.scheduler.slots.first(group.n_slots)
        wanted = [slot.index for slot in slots if slot.state in (State.EMPTY, State.CLOSING)]
        given_up = [index for index in wanted if again and self.unblamed[index] > max_restarts]
        decisions = self.scheduler.warm(group, Limits(init_timeout=5.0, max_restarts=max_restarts), again=again)
        if given_up:
            self.unblamed[given_up[0]] = 0
            self._check_ended(given_up[0], group, decisions)
        self.carry_out(decisions)

    def release(self, _: st.DataObject) -> None:
        self.carry_out(self.scheduler.release())

    def grow(self, data: st.DataObject) -> None:
        n_slots = data.draw(st.integers(1, 4))
        before = len(self.scheduler.slots)
        self.carry_out(self.scheduler.grow(n_slots))
        assert len(self.scheduler.slots) == len(self.scheduler.slots) == max(before, n_slots)

    def close(self, _: st.DataObject) -> None:
        if len(self.calls) > 5:
            self.carry_out(self.scheduler.close())

    # --- workers --------------------------------------------------------------------------------------

    @precondition(lambda self: self._building())
    @rule(data=st.data())
    def built(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(self._building()))
        seq = self._answered(slot)
        self.carry_out(self.scheduler.built(slot, seq))

    @precondition(lambda self: self._building())
    @rule()
    def all_built(self) -> None:
        while building := self._building():
            self.carry_out(self.scheduler.built(building[0], self._answered(building[0])))

    @precondition(lambda self: self._building())
    @rule(data=st.data())
    def build_failed(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(self._building()))
        group = self.scheduler.slots[slot].group
        life, error = self.lives[slot], errors.WorkerInitError(slot)
        seq = life.message
        assert seq is not None
        life.message = None
        decisions = self.scheduler.build_failed(slot, seq, error)
        self._check_ended(slot, group, decisions)
        self.unblamed[slot] = 0
        self.carry_out(decisions)

    @precondition(lambda self: self._busy())
    @rule(data=st.data())
    def finished(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(self._busy()))
        job = self._job(slot)
        size = len(job.positions)
        n_run = data.draw(st.integers(1, size))  # it was asked to stop, or has worked for long enough
        failed = data.draw(st.sets(st.integers(0, n_run - 1), max_size=2))
        if failed and job.call.request.after_error != "go_on":
            n_run = min(failed) + 1  # the worker itself stops there
        self._finish(slot, n_run, {place for place in failed if place < n_run})

    @precondition(lambda self: self._busy())
    @rule(data=st.data())
    def interrupted(self, data: st.DataObject) -> None:
        """Play a Ctrl-C under a synchronous engine: nothing more of the message was run."""
        self._finish(data.draw(st.sampled_from(self._busy())), 0, set())

    @precondition(lambda self: self._busy())
    @rule(data=st.data())
    def refused(self, data: st.DataObject) -> None:
        """Play a worker without memory for all of a message: its items go out again, one by one, or in halves."""
        slot = data.draw(st.sampled_from(self._busy()))
        job, stopping = self._job(slot), self._job(slot).call.group.stopping or self._job(slot).call.settled
        if len(job.positions) == 1:
            self._finish(slot, 1, {0})
            return
        self._finish(slot, 0, set(), was_refused=True)
        waiting = [(j.call, tuple(j.positions)) for j in self.scheduler.work.jobs]
        running = [(life.job.call, tuple(life.job.positions)) for life in self.lives.values() if life.job]
        size = -(-len(job.positions) // 2) if job.call.request.is_one_call else 1
        for at in () if stopping else range(0, len(job.positions), size):
            assert (job.call, tuple(job.positions[at : at + size])) in [*waiting, *running]

    @precondition(lambda self: self._building())
    @rule(data=st.data())
    def died_building(self, data: st.DataObject) -> None:
        self._die_building(data.draw(st.sampled_from(self._building())))

    def _die_building(self, slot: int) -> None:
        group, life = self.scheduler.slots[slot].group, self.lives[slot]
        decisions = self._die(slot, Death(exitcode=-9, started=True))
        if life.expired:
            self.unblamed[slot] = 0
            self._check_ended(slot, group, decisions)
        elif life.doomed:
            assert not any(isinstance(decision, FailGroup) for decision in decisions)
        else:
            self._count_unblamed(slot, group, life.limits, decisions)
        self.carry_out(decisions)

    @precondition(lambda self: self._idle())
    @rule(data=st.data())
    def died_idle(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(self._idle()))
        self.unblamed[slot] += 1
        life = self.lives.pop(slot).number
        self.carry_out(self.scheduler.died_idle(slot, life, Death(exitcode=-9)))

    @precondition(lambda self: self._busy())
    @rule(data=st.data())
    def died_before_it_began(self, data: st.DataObject) -> None:
        self._die_before_it_began(data.draw(st.sampled_from(self._busy())))

    def _die_before_it_began(self, slot: int) -> None:
        job = self._job(slot)
        was_settled = job.call.settled
        decisions = self._die(slot, Death(exitcode=-9))
        if not was_settled:
            self._count_unblamed(slot, job.call.group, job.call.request.limits, decisions)
        self.carry_out(decisions)

    @precondition(lambda self: self._busy())
    @rule(data=st.data())
    def died_at_work(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(self._busy()))
        size = len(self._job(slot).positions)
        place = data.draw(st.sampled_from([None, *range(size)]))
        together = 1
        if place is not None and self._job(slot).call.request.is_one_call:
            together = data.draw(st.integers(1, size - place))
        n_finished = place if place is not None else data.draw(st.sampled_from([0, size]))
        self._die_at_work(slot, place, n_finished, together)

    def _die_at_work(self, slot: int, place: int | None, n_finished: int, together: int = 1) -> None:
        job, life = self._job(slot), self.lives[slot]
        call, size, was_settled = who_asked(job.call), len(job.positions), job.call.settled
        guilty: list[int] = []  # positions
        if size == 1:
            guilty = [job.positions[0]]
        elif place is not None and not (life.expired and place != life.expired_place):
            guilty = list(job.positions[place : place + together])
        if not was_settled:
            self.unblamed[slot] *= not n_finished
            for position in guilty:
                self.blamed[call, position] += 1
                # If it is the only one, the item is tried again in it, also if others are added before that.
                self.blamed_in[call, position] = slot if self.scheduler.work.width(call.group) > 1 else None
        stopping = call.group.stopping
        death = Death(exitcode=-9, started=True, place=place, n_finished=n_finished, n_together=together)
        decisions = self._die(slot, death)
        assert not any(isinstance(decision, FailGroup) for decision in decisions)
        self.carry_out(decisions)
        for position in () if was_settled else guilty:
            is_final = stopping or self.blamed[call, position] > call.limits.retries
            assert (position in call.errors) is is_final
            if is_final:
                self.unblamed[slot] = 0
                error = call.errors[position]
                assert isinstance(error, errors.ItemTimeoutError if life.expired else errors.WorkerCrashedError)
                assert error.n_items == len(guilty)

    @precondition(lambda self: self._closing())
    @rule(data=st.data())
    def ended(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(self._closing()))
        closing = self.lives.pop(slot).closing
        assert closing is not None
        self.carry_out(self.scheduler.ended(slot, closing))

    @precondition(lambda self: self.kills)
    @rule(data=st.data(), is_death_told_first=st.booleans())
    def killed(self, *, data: st.DataObject, is_death_told_first: bool) -> None:
        kill = self.kills[data.draw(st.integers(0, len(self.kills) - 1))]
        life = self.lives.get(kill.slot)
        if is_death_told_first and life is not None and life.number == kill.life and life.message is not None:
            if life.job is None:
                self._die_building(kill.slot)
            else:
                self._die_at_work(kill.slot, 0, 0)
        self._carry_out_kill(kill)

    def _carry_out_kill(self, kill: KillWorker) -> None:
        self.kills.remove(kill)
        life = self.lives.get(kill.slot)
        if life is not None and life.number == kill.life:
            life.gone = True
            if life.message is None:
                del self.lives[kill.slot]
        self.carry_out(self.scheduler.killed(kill.slot, kill.life))

    # --- the clock, and late news ---------------------------------------------------------------------

    @precondition(lambda self: self._building() + self._busy())
    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(self._building() + self._busy()))
        life = self.lives[slot]
        assert life.message is not None
        places = [None] if life.job is None else range(len(life.job.positions))
        place = data.draw(st.sampled_from(places))
        life.expired, life.expired_place = True, place
        self.carry_out(self.scheduler.expire(slot, life.message, life.expired_place))

    @rule(data=st.data(), age=st.integers(1, 5))
    def late_news(self, data: st.DataObject, age: int) -> None:
        slot = data.draw(st.sampled_from(list(self.scheduler.slots)))
        index, seq = slot.index, slot.seq - age
        before = self._snapshot()
        assert self.scheduler.built(index, seq) == []
        assert self.scheduler.build_failed(index, seq, errors.WorkerInitError(index)) == []
        assert self.scheduler.finished(index, seq, Report(1, [1], {})) == []
        assert self.scheduler.died(index, seq, Death(started=True, place=0)) == []
        assert self.scheduler.expire(index, seq, 0) == []
        assert self.scheduler.ended(index, seq) == []
        assert self.scheduler.killed(index, slot.life - age) == []
        assert self.scheduler.died_idle(index, slot.life - age, Death()) == []
        assert slot.state is State.IDLE or self.scheduler.died_idle(index, slot.life, Death()) == []
        assert self._snapshot() == before

    # --- what always holds ----------------------------------------------------------------------------

    @invariant()
    def each_item_is_in_one_place(self) -> None:
        places: Counter[tuple[Asked, int]] = Counter()
        running = [slot.job for slot in self.scheduler.slots if slot.job is not None]
        for job in (*self.scheduler.work.jobs, *running):
            if not job.call.settled:
                places.update((who_asked(job.call), position) for position in job.positions)
        assert max(places.values(), default=1) == 1
        for open_call in self.scheduler.work.calls_of():
            call = who_asked(open_call)
            waits_for = {position for owner, position in places if owner is call}
            assert waits_for == set(open_call.left) == set(range(call.size)) - call.heard_of
            assert waits_for

    @invariant()
    def no_job_waits_that_nobody_wants(self) -> None:
        assert all(
            job.call in self.scheduler.work.calls_of() and not job.call.group.stopping
            for job in self.scheduler.work.jobs
        )

    @invariant()
    def no_job_waits_while_a_slot_is_free(self) -> None:
        scheduler = self.scheduler
        for job in scheduler.work.jobs:
            own = [slot for slot in scheduler.slots.first(job.call.group.n_slots) if _may_run(job, slot.index)]
            n_building = len([slot for slot in own if slot.state is State.BUILDING])
            for slot in own:
                # No more are built than there are jobs for.
                assert slot.state is not State.EMPTY or n_building
                # In turn, an object that was used waits for those that are being built.
                assert slot.state is not State.IDLE or (scheduler.work.in_turn and n_building)

    @invariant()
    def as_many_are_built_as_jobs_wait(self) -> None:
        # A matching of jobs and slots that are being built: where those can't be had for all, no slot is free for the rest.
        scheduler = self.scheduler
        coming = [slot.index for slot in scheduler.slots if slot.state is State.BUILDING]
        empty = [slot.index for slot in scheduler.slots if slot.state is State.EMPTY]
        fewest_first = sorted(
            scheduler.work.jobs,
            key=lambda job: (job.only is None, scheduler.work.width(job.call.group), job.avoid is None),
        )
        for job in fewest_first:
            own = [index for index in coming if index < job.call.group.n_slots and _may_run(job, index)]
            if own:
                coming.remove(own[0])
            else:
                assert not [index for index in empty if index < job.call.group.n_slots and _may_run(job, index)]

    @invariant()
    def somebody_works_while_a_call_is_open(self) -> None:
        assert self.lives or not self.scheduler.work.calls_of()

    @invariant()
    def slots_are_what_the_workers_are(self) -> None:
        scheduler = self.scheduler
        for slot in scheduler.slots:
            life = self.lives.get(slot.index)
            assert (slot.state is State.EMPTY) is (life is None)
            if life is not None and life.message is not None:
                assert slot.state is (State.BUILDING if life.job is None else State.BUSY)
                assert slot.seq == life.message
        # Counted apart for speed; a wrong count would show only much later.
        for state in State:
            assert set(scheduler.slots.indices(state)) == {
                slot.index for slot in scheduler.slots if slot.state is state
            }

    @invariant()
    def nobody_stays_when_all_is_done(self) -> None:
        if self.scheduler.closing and not self.scheduler.work.jobs:
            assert not self._idle()

    # --- the end --------------------------------------------------------------------------------------

    def teardown(self) -> None:
        if sys.exc_info()[0] is not None:
            return  # a rule was left half done: its error shall not be hidden by what follows from it
        self._drive()
        assert self.scheduler.is_idle
        assert not self.scheduler.is_warming
        assert not any(self.scheduler.is_running(group) for group in self.groups)
        self.carry_out(self.scheduler.close())
        self._drive()
        assert self.scheduler.is_empty
        for call in self.calls:
            # One that its owner has cancelled needs no telling; all others hear of each item once (see `Asked`).
            assert call.is_settled or call in self.cancelled

    def _drive(self) -> None:
        """Have everything under way end well."""
        for _ in range(_MANY_STEPS):
            if self.kills:
                self._carry_out_kill(self.kills[0])
            elif self._building():
                self.all_built()
            elif busy := self._busy():
                self._finish(busy[0], len(self._job(busy[0]).positions), set())
            elif closing := self._closing():
                seq = self.lives.pop(closing[0]).closing
                assert seq is not None
                self.carry_out(self.scheduler.ended(closing[0], seq))
            else:
                return
        pytest.fail(f"this never ends: {self.scheduler}")

    # --- helpers --------------------------------------------------------------------------------------

    def _building(self) -> list[int]:
        return [slot for slot, life in self.lives.items() if life.message is not None and life.job is None]

    def _busy(self) -> list[int]:
        return [slot for slot, life in self.lives.items() if life.message is not None and life.job is not None]

    def _closing(self) -> list[int]:
        return [slot for slot, life in self.lives.items() if life.closing is not None]

    def _idle(self) -> list[int]:
        lives = self.lives.items()
        return [slot for slot, life in lives if life.message is life.closing is None and not life.doomed]

    def _cancellable(self) -> list[Asked]:
        waiting = [who_asked(call) for call in self.scheduler.work.calls_of() if not call.claimed]
        return [call for call in waiting if call.request.claim and call not in self.cancelled]

    def _draw_group(self, data: st.DataObject) -> Group:
        groups = self.scheduler.work.groups()
        return groups[data.draw(st.integers(0, len(groups) - 1))]

    def _job(self, slot: int) -> Job:
        job = self.lives[slot].job
        assert job is not None
        return job

    def _answered(self, slot: int) -> int:
        """Note that a worker has answered; return what."""
        life = self.lives[slot]
        seq, life.message, life.job = life.message, None, None
        assert seq is not None
        if life.gone:  # the answer was on its way when it was killed
            del self.lives[slot]
        return seq

    def _finish(self, slot: int, n_run: int, failed: set[int], *, was_refused: bool = False) -> None:
        job, life = self._job(slot), self.lives[slot]
        faults: dict[int, BaseException] = {place: ValueError(place) for place in failed}
        values = [
            None if at in failed else _value(who_asked(job.call), p) for at, p in enumerate(job.positions[:n_run])
        ]
        life.n_run += n_run
        self.unblamed[slot] = 0
        seq = self._answered(slot)
        report = Report(n_run, values, faults, seconds=n_run, was_refused=was_refused)
        self.carry_out(self.scheduler.finished(slot, seq, report))

    def _die(self, slot: int, death: Death) -> Decisions:
        seq = self.lives.pop(slot).message
        assert seq is not None
        return self.scheduler.died(slot, seq, death)

    def _count_unblamed(self, slot: int, group: Group | None, limits: Limits, decisions: Decisions) -> None:
        self.unblamed[slot] += 1
        if self.unblamed[slot] > limits.max_restarts:
            self.unblamed[slot] = 0
            self._check_ended(slot, group, decisions)
        else:
            assert not any(isinstance(decision, FailGroup) for decision in decisions)

    def _check_ended(self, slot: int, group: Group | None, decisions: Decisions) -> None:
        if group is None:
            return
        assert group.error is not None or any(isinstance(d, FailGroup) and d.group is group for d in decisions)
        if group.on_error is not None:
            assert not any(call.group is group for call in self.scheduler.work.calls_of())
        # Of calls that were submitted one by one, those wait on that must run in other slots.
        assert not any(job.call.group is group and job.only in (None, slot) for job in self.scheduler.work.jobs)

    def _snapshot(self) -> object:
        slots = [dict(vars(slot)) for slot in self.scheduler.slots]
        return repr(self.scheduler), slots


def _may_run(job: Job, index: int) -> bool:
    return index != job.avoid and job.only in (None, index)


def _value(call: Asked, position: int) -> object:
    return id(call), position


def _ignore(error: BaseException) -> None:
    pass


_EXAMPLES = os.environ.get("JOBLIB_STATEFUL_EXAMPLES")
TestScheduleMachine: Callable[[], None] = ScheduleMachine.TestCase  # type: ignore[assignment]
ScheduleMachine.TestCase.settings = settings(
    max_examples=int(_EXAMPLES or 300),
    stateful_step_count=40,
    deadline=None,
    # The same examples each time, unless somebody asked for more of them.
    derandomize=_EXAMPLES is None,
    database=None,
)
