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
from dataclasses import dataclass, field
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
from joblib_stateful._scheduling._slots import Slot, State
from joblib_stateful._worker._messages import Death

if TYPE_CHECKING:
    from collections.abc import Callable

    from joblib_stateful._scheduling._jobs import Job
    from joblib_stateful._worker._messages import AfterError

pytestmark = pytest.mark.unit


_AFTER_ERROR: tuple[AfterError, ...] = ("go_on", "finish_running", "drop")
_MANY_STEPS = 10_000


@dataclass(eq=False)
class Life:
    """A worker: what it owes, and what was decided about it."""

    number: int
    limits: Limits
    building: int | None  # the seq of the message that it builds by
    latest: int  # seq of what it was sent
    jobs: dict[int, Job] = field(default_factory=dict)  # that it owes answers to, by seq
    n_run: int = 0
    closing: int | None = None
    doomed: bool = False  # it is to be killed
    gone: bool = False  # it was
    dead: bool = False  # that was told with one of its messages, and is to be told with the others
    mourned: bool = False  # somebody paid for its death, or it was counted
    is_full: bool = False
    expired: dict[int, int | None] = field(default_factory=dict)  # with which item, by seq

    @property
    def n_under_way(self) -> int:
        """How many items it was sent that it has not answered."""
        return sum(len(job.positions) for job in self.jobs.values())

    @property
    def is_at_rest(self) -> bool:
        """True if it has an object and nothing to do."""
        return self.building is self.closing is None and not self.jobs


class ScheduleMachine(RuleBasedStateMachine):
    """The world around a scheduler."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(1)
        self.max_tasks: int | None = None
        self.capacity = 1
        self.plain, self.map = Group(), Group(on_error=_ignore)
        self.narrow = Group(on_error=_ignore, n_slots=1)
        self.groups: list[Group] = []
        self.calls: list[Asked] = []
        self.cancelled: set[Asked] = set()
        self.lives: dict[int, Life] = {}
        self.kills: list[KillWorker] = []
        # Answers whose values are still being loaded, and whether they hold an error that nothing is to start behind.
        self.unreported: list[tuple[Job, Report, bool]] = []
        self.blamed: Counter[tuple[Asked, int]] = Counter()  # deaths that an item paid for
        self.blamed_in: dict[tuple[Asked, int], int | None] = {}
        self.unblamed: Counter[int] = Counter()  # deaths of a slot, in a row, that nobody paid for
        self.lost: Counter[int] = Counter()  # deaths of a slot that were told

    @initialize(
        n_slots=st.integers(1, 3),
        max_tasks=st.sampled_from([None, None, 1, 2, 3, 5]),
        # Only a synchronous engine works in turn, whose workers are at one thing.
        how=st.sampled_from([(1, False), (1, True), (2, False), (2, False), (3, False), (3, False)]),
    )
    def begin(self, *, n_slots: int, max_tasks: int | None, how: tuple[int, bool]) -> None:
        self.capacity, in_turn = how
        self.max_tasks = max_tasks
        self.scheduler = Scheduler(n_slots, max_tasks=max_tasks, in_turn=in_turn, capacity=self.capacity)
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
                self.scheduler.slots[decision.slot].life, decision.limits, building=decision.seq, latest=decision.seq
            )
            self._check_needed(decision.slot)
        elif isinstance(decision, SendJob):
            self._send(decision)
        elif isinstance(decision, StopJob):
            assert decision.seq in self.lives[decision.slot].jobs
        elif isinstance(decision, ShareJob):
            job = self._job(decision.slot, decision.seq)
            assert job.call.request.budget is not None
            assert len(job.positions) > 1
            assert job.call.group.sharing
            assert not self.scheduler.work.jobs.common  # what waits for one slot only is of no use to others
            width = job.call.group.n_slots
            assert any(index < width for index in self._free())
        elif isinstance(decision, CloseWorker):
            life = self.lives[decision.slot]
            assert life.number == decision.life
            assert life.is_at_rest
            life.closing = life.latest = decision.seq
        else:
            assert self.lives[decision.slot].number == decision.life
            self.lives[decision.slot].doomed = True
            self.kills.append(decision)

    def _send(self, send: SendJob) -> None:
        call, life = who_asked(send.job.call), self.lives[send.slot]
        assert life.building is None, "it is being built"
        assert len(life.jobs) < self.capacity, "it is at work"
        assert not life.jobs or not send.job.is_alone, "others would pay for it"
        assert not any(job.is_alone for job in life.jobs.values()), "it would pay for the one that is there"
        assert not life.doomed
        assert not life.dead
        assert not life.is_full
        assert life.closing is None
        assert send.slot < call.group.n_slots, "not one of its own slots"
        assert not call.is_settled
        assert not call.group.stopping
        assert not self._is_held(call.group), "an error is known that nothing is to start behind"
        assert call.request.claim is None or send.job.call.claimed
        assert send.job.positions
        assert send.job.call.request.only in (None, send.slot)
        running = {
            p
            for other in self.lives.values()
            for job in other.jobs.values()
            if job.call is send.job.call
            for p in job.positions
        }
        assert running.isdisjoint(send.job.positions), "it runs elsewhere"
        for position in send.job.positions:
            item = call, position
            assert position not in call.heard_of, "it has an outcome already"
            assert self.blamed[item] <= call.limits.retries
            if self.scheduler.work.width(call.group) > 1 and call.request.only is None:
                assert self.blamed_in.get(item) != send.slot, "it killed its worker here before"
        others = [index for index in self._free() if index < call.group.n_slots and _may_run(send.job, index)]
        others = [index for index in others if not self._is_kept_for_one_alone(index)]
        assert len(life.jobs) == min(len(self.lives[index].jobs) for index in others), "another one has less to do"
        assert send.seq > life.latest
        life.jobs[send.seq], life.latest = send.job, send.seq
        assert self.max_tasks is None or life.n_run + life.n_under_way <= self.max_tasks

    def _is_kept_for_one_alone(self, slot: int) -> bool:
        """Tell whether a slot with room gets nothing, because the first that waits for it only is to be at it alone."""
        own = list(self.scheduler.work.jobs.own.get(slot, ()))
        return bool(self.lives[slot].jobs and own) and own[0].is_alone

    def _check_needed(self, slot: int) -> None:
        """Check that what is being built for jobs that wait is too little without a slot, which is built for such a one."""
        if self.scheduler.slots.is_to_be_warm(self.scheduler.slots[slot]):
            return
        if self._n_jobs_at_once() > 1 and any(job.avoid is not None for job in self._waiting()):
            return  # which of several has room for those that avoid a slot is guessed well, but not always best
        building = [other.index for other in self.scheduler.slots if other.state is State.BUILDING]
        assert self._n_served(building) > self._n_served([each for each in building if each != slot])

    def _n_served(self, building: list[int]) -> int:
        """Return for how many jobs that wait a slot is coming, if these are built, each of which can be at several.

        By augmenting paths, as in Kuhn, H. W. (1955), "The Hungarian method for the assignment problem".
        """
        served: dict[int, list[Job]] = {index: [] for index in building}
        n_at_once = self._n_jobs_at_once()

        def serve(job: Job, tried: set[int]) -> bool:
            for index in building:
                if index in tried or index >= job.call.group.n_slots or not _may_run(job, index):
                    continue
                tried.add(index)
                others = served[index]
                if len(others) < n_at_once:
                    others.append(job)
                    return True
                for at, other in enumerate(others):
                    if serve(other, tried):
                        others[at] = job
                        return True
            return False

        return sum(serve(job, set()) for job in self._waiting())

    def _n_jobs_at_once(self) -> int:
        """Return how many jobs a new worker can be at, each of which has an item at least."""
        if any(job.is_alone for job in self.scheduler.work.jobs.common):
            return 1
        return self.capacity if self.max_tasks is None else min(self.capacity, self.max_tasks)

    def _free(self) -> list[int]:
        """Return the slots that may be sent something."""
        return [
            slot
            for slot, life in self.lives.items()
            if life.building is life.closing is None
            and not life.doomed
            and not life.dead
            and not life.is_full
            and len(life.jobs) < self.capacity
            and not any(job.is_alone for job in life.jobs.values())
            and (self.max_tasks is None or life.n_run + life.n_under_way < self.max_tasks)
        ]

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

    @precondition(lambda self: not self.scheduler.closing)
    @rule(
        sizes=st.lists(st.integers(1, 3), min_size=2, max_size=6),
        whose=st.sampled_from(["plain", "map"]),
        retries=st.integers(0, 1),
        budget=st.sampled_from([0.1, None]),
    )
    def submit_to_built_workers(
        self, *, sizes: list[int], whose: Literal["plain", "map"], retries: int, budget: float | None
    ) -> None:
        """Have much under way, or else no worker would often be at several things."""
        for size in sizes:
            call = Asked(size, getattr(self, whose), Limits(5.0, 5.0, retries, 2), budget=budget)
            self.calls.append(call)
            self.carry_out(self.scheduler.submit(call.request))
        self.all_built()

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
            self.drop_running,
            self.stop,
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

    def drop_running(self, data: st.DataObject) -> None:
        slot = data.draw(st.integers(0, len(self.scheduler.slots) - 1))
        running = list(self.scheduler.slots[slot].jobs.values())
        # Others may be sent there at once if they have waited for one that was to be alone.
        may_be_others = self.scheduler.work.has_alone
        self.carry_out(self.scheduler.drop_running(slot))
        assert all(job.call.settled for job in running)
        assert (
            may_be_others or slot not in self.lives or all(job.call.settled for job in self.lives[slot].jobs.values())
        )

    def stop(self, data: st.DataObject) -> None:
        calls = self.scheduler.work.calls_of()
        if not calls:
            return
        call = calls[data.draw(st.integers(0, len(calls) - 1))]
        self.carry_out(self.scheduler.stop(call))
        assert call.settled
        for life in self.lives.values():
            assert life.doomed or not any(job.call is call for job in life.jobs.values())

    def warm(self, data: st.DataObject) -> None:
        max_restarts, again = data.draw(st.integers(0, 2)), data.draw(st.booleans())
        group = Group(on_error=_ignore, n_slots=data.draw(st.sampled_from([1, 9])))
        self.groups.append(group)
        slots = self.scheduler.slots.first(group.n_slots)
        wanted = [
            slot.index
            for slot in slots
            if slot.state in (State.EMPTY, State.CLOSING)
            or (slot.state is State.BUILDING and self.lives[slot.index].doomed)
        ]
        given_up = [index for index in wanted if again and self.unblamed[index] > max_restarts]
        # With the first of them the others are left as they are that nothing is being built in.
        given_up[1:] = [index for index in given_up[1:] if slots[index].state is State.BUILDING]
        decisions = self.scheduler.warm(group, Limits(init_timeout=5.0, max_restarts=max_restarts), again=again)
        if given_up:
            for index in given_up:
                self.unblamed[index] = 0
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
        self.carry_out(self.scheduler.built(slot, self._has_built(slot)))

    @precondition(lambda self: self._building())
    @rule()
    def all_built(self) -> None:
        while building := self._building():
            self.carry_out(self.scheduler.built(building[0], self._has_built(building[0])))

    @precondition(lambda self: self._building())
    @rule(data=st.data())
    def build_failed(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(self._building()))
        group = self.scheduler.slots[slot].group
        life, error = self.lives[slot], errors.WorkerInitError(slot)
        seq, life.building = life.building, None
        assert seq is not None
        decisions = self.scheduler.build_failed(slot, seq, error)
        self._check_ended(slot, group, decisions)
        self.unblamed[slot] = 0
        self.carry_out(decisions)

    @precondition(lambda self: self._busy())
    @rule(data=st.data(), is_full=st.sampled_from([False, False, False, True]), is_slow=st.booleans())
    def finished(self, *, data: st.DataObject, is_full: bool, is_slow: bool) -> None:
        slot, seq = data.draw(st.sampled_from(self._busy()))
        job = self._job(slot, seq)
        size = len(job.positions)
        n_run = data.draw(st.integers(1, size))  # it was asked to stop, or has worked for long enough
        failed = data.draw(st.sets(st.integers(0, n_run - 1), max_size=2))
        if failed and job.call.request.after_error != "go_on":
            n_run = min(failed) + 1  # the worker itself stops there
        failed = {place for place in failed if place < n_run}
        self._finish(slot, seq, n_run, failed, is_full=is_full, is_slow=is_slow and not self.scheduler.work.in_turn)

    @precondition(lambda self: self.unreported)
    @rule(data=st.data())
    def reported(self, data: st.DataObject) -> None:
        self._report(data.draw(st.integers(0, len(self.unreported) - 1)))

    def _report(self, at: int) -> None:
        job, report, _ = self.unreported.pop(at)
        self.carry_out(self.scheduler.reported(job, report))

    @precondition(lambda self: self.unreported)
    @rule(data=st.data())
    def could_not_be_reported(self, data: st.DataObject) -> None:
        """Play a want of memory: nothing can be told of a call."""
        job, *_ = self.unreported.pop(data.draw(st.integers(0, len(self.unreported) - 1)))
        was_settled, error = job.call.settled, MemoryError()
        # The driver gives up one answer at a time, of which a call may have several.
        self.unreported = [one for one in self.unreported if one[0].call is not job.call]
        self.carry_out(self.scheduler.fail(job.call, error))
        assert was_settled or who_asked(job.call).fatal is error

    @precondition(lambda self: self._busy())
    @rule(data=st.data())
    def interrupted(self, data: st.DataObject) -> None:
        """Play a Ctrl-C under a synchronous engine: nothing more of the message was run."""
        self._finish(*data.draw(st.sampled_from(self._busy())), 0, set())

    @precondition(lambda self: self._busy())
    @rule(data=st.data())
    def refused(self, data: st.DataObject) -> None:
        """Play a worker without memory for all of a message: its items go out again, one by one, or in halves."""
        slot, seq = data.draw(st.sampled_from(self._busy()))
        job = self._job(slot, seq)
        stopping = job.call.group.stopping or job.call.settled
        if len(job.positions) == 1:
            self._finish(slot, seq, 1, {0})
            return
        self._finish(slot, seq, 0, set(), was_refused=True)
        waiting = [(j.call, tuple(j.positions)) for j in self.scheduler.work.jobs]
        running = [(j.call, tuple(j.positions)) for life in self.lives.values() for j in life.jobs.values()]
        size = -(-len(job.positions) // 2) if job.call.request.is_one_call else 1
        for at in () if stopping else range(0, len(job.positions), size):
            assert (job.call, tuple(job.positions[at : at + size])) in [*waiting, *running]

    @precondition(lambda self: self._building())
    @rule(data=st.data())
    def died_building(self, data: st.DataObject) -> None:
        self._die_building(data.draw(st.sampled_from(self._building())))

    def _die_building(self, slot: int) -> None:
        group, life = self.scheduler.slots[slot].group, self.lives.pop(slot)
        assert life.building is not None
        self.lost[slot] += 1
        decisions = self.scheduler.died(slot, life.building, Death(exitcode=-9, started=True))
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
        self.lost[slot] += 1
        life = self.lives.pop(slot).number
        self.carry_out(self.scheduler.died_idle(slot, life, Death(exitcode=-9)))

    @precondition(lambda self: self._busy())
    @rule(data=st.data())
    def died_before_it_began(self, data: st.DataObject) -> None:
        self._die_before_it_began(*data.draw(st.sampled_from(self._busy())))

    def _die_before_it_began(self, slot: int, seq: int) -> None:
        job, life = self._job(slot, seq), self.lives[slot]
        was_settled = job.call.settled
        decisions = self._die(slot, seq, Death(exitcode=-9))
        if not was_settled:
            # However many messages tell of it, it is one death.
            n_deaths = int(not life.mourned)
            life.mourned = True
            self._count_unblamed(slot, job.call.group, job.call.request.limits, decisions, n_deaths)
        self.carry_out(decisions)

    @precondition(lambda self: self._busy())
    @rule(data=st.data())
    def died_at_work(self, data: st.DataObject) -> None:
        self._die_somewhere(data, *data.draw(st.sampled_from(self._busy())))

    @precondition(lambda self: self._busy())
    @rule(data=st.data())
    def died_at_all(self, data: st.DataObject) -> None:
        """Play a death that is told with each message under way, with nothing in between."""
        slot, _ = data.draw(st.sampled_from(self._busy()))
        for seq in data.draw(st.permutations(list(self.lives[slot].jobs))):
            if data.draw(st.booleans()):
                self._die_somewhere(data, slot, seq)
            else:
                self._die_before_it_began(slot, seq)

    def _die_somewhere(self, data: st.DataObject, slot: int, seq: int) -> None:
        job = self._job(slot, seq)
        size = len(job.positions)
        place = data.draw(st.sampled_from([None, *range(size)]))
        together = 1
        if place is not None and job.call.request.is_one_call:
            together = data.draw(st.integers(1, size - place))
        n_finished = place if place is not None else data.draw(st.sampled_from([0, size]))
        self._die_at_work(slot, seq, place, n_finished, together)

    def _die_at_work(self, slot: int, seq: int, place: int | None, n_finished: int, together: int = 1) -> None:
        job, life = self._job(slot, seq), self.lives[slot]
        call, size, was_settled = who_asked(job.call), len(job.positions), job.call.settled
        guilty: list[int] = []  # positions
        if size == 1:
            guilty = [job.positions[0]]
        elif place is not None and life.expired.get(seq, place) == place:
            guilty = list(job.positions[place : place + together])
        if not was_settled:
            life.mourned = True
            self.unblamed[slot] *= not n_finished
            for position in guilty:
                self.blamed[call, position] += 1
                # If it is the only one, the item is tried again in it, also if others are added before that.
                self.blamed_in[call, position] = slot if self.scheduler.work.width(call.group) > 1 else None
        stopping = call.group.stopping
        death = Death(exitcode=-9, started=True, place=place, n_finished=n_finished, n_together=together)
        decisions = self._die(slot, seq, death)
        assert not any(isinstance(decision, FailGroup) for decision in decisions)
        self.carry_out(decisions)
        for position in () if was_settled else guilty:
            is_final = stopping or self.blamed[call, position] > call.limits.retries
            assert (position in call.errors) is is_final
            if is_final:
                self.unblamed[slot] = 0
                error = call.errors[position]
                assert isinstance(error, errors.ItemTimeoutError if seq in life.expired else errors.WorkerCrashedError)
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
        if is_death_told_first and life is not None and life.number == kill.life:
            if life.building is not None:
                self._die_building(kill.slot)
            elif life.jobs:
                # With some of its messages, or all.
                n_told = data.draw(st.integers(1, len(life.jobs)))
                for seq in list(life.jobs)[:n_told]:
                    self._die_at_work(kill.slot, seq, 0, 0)
        self._carry_out_kill(kill)

    def _carry_out_kill(self, kill: KillWorker) -> None:
        self.kills.remove(kill)
        life = self.lives.get(kill.slot)
        if life is not None and life.number == kill.life:
            life.gone = True
            if life.building is None and not life.jobs:
                del self.lives[kill.slot]
        self.carry_out(self.scheduler.killed(kill.slot, kill.life))

    # --- the clock, and late news ---------------------------------------------------------------------

    @precondition(lambda self: self._building() + self._busy())
    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        building = [(slot, self.lives[slot].latest) for slot in self._building()]
        slot, seq = data.draw(st.sampled_from(building + self._busy()))
        life = self.lives[slot]
        places = [None] if life.building is not None else range(len(life.jobs[seq].positions))
        life.expired[seq] = data.draw(st.sampled_from(places))
        decisions = self.scheduler.expire(slot, seq, life.expired[seq])
        assert [type(decision) for decision in decisions] == [KillWorker]
        self.carry_out(decisions)

    @rule(data=st.data(), age=st.integers(1, 5))
    def late_news(self, data: st.DataObject, age: int) -> None:
        if self.scheduler.work.in_turn and self._building() and self.scheduler.work.jobs:
            return  # what waits for a slot that is being built goes to one that had its turn, at any news
        slot = data.draw(st.sampled_from(list(self.scheduler.slots)))
        life = self.lives.get(slot.index)
        # The latest message, too, if it was answered before others.
        ages = range(age - 1 if life is not None and life.jobs else age, age + self.capacity + 1)
        index, seq = slot.index, next(s for a in ages if (s := slot.seq - a) not in slot.jobs)
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
        running = [job for slot in self.scheduler.slots for job in slot.jobs.values()]
        for job in (*self.scheduler.work.jobs, *running, *(job for job, *_ in self.unreported)):
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
        for job in self._waiting():
            own = [slot for slot in scheduler.slots.first(job.call.group.n_slots) if _may_run(job, slot.index)]
            n_building = len([slot for slot in own if slot.state is State.BUILDING])
            for slot in own:
                # No more are built than there are jobs for.
                assert slot.state is not State.EMPTY or n_building
                # In turn, an object that was used waits for those that are being built.
                is_in_turn = scheduler.work.in_turn and n_building
                assert slot.index not in self._free() or is_in_turn or self._waits_for_one_alone(slot, job)

    def _waits_for_one_alone(self, slot: Slot, job: Job) -> bool:
        """Tell whether a slot with room is given nothing, because it is to be at nothing else than a job that waits."""
        waiting = self.scheduler.work.jobs
        first = [job, *waiting.common, *list(waiting.own.get(slot.index, ()))[:1]]
        return bool(slot.jobs) and any(each.is_alone for each in first)

    @invariant()
    def as_many_are_built_as_jobs_wait(self) -> None:
        # A matching of jobs and slots that are being built: where those can't be had for all, no other slot helps.
        slots = self.scheduler.slots
        building = [slot.index for slot in slots if slot.state is State.BUILDING]
        n_served = self._n_served(building)
        if n_served < len(self._waiting()):
            for slot in slots:
                assert slot.state is not State.EMPTY or self._n_served([*building, slot.index]) == n_served

    @invariant()
    def somebody_works_while_a_call_is_open(self) -> None:
        assert self.lives or self.unreported or not self.scheduler.work.calls_of()

    @invariant()
    def slots_are_what_the_workers_are(self) -> None:
        scheduler = self.scheduler
        for slot in scheduler.slots:
            life = self.lives.get(slot.index)
            assert (slot.state is State.EMPTY) is (life is None)
            if life is None:
                continue
            assert slot.seq == life.latest
            assert slot.life == life.number
            assert slot.jobs == life.jobs
            assert slot.group is None or slot.state in (State.BUILDING, State.CLOSING)
            assert len(slot.jobs) <= self.capacity
            if life.building is not None or life.jobs:
                assert slot.state is (State.BUSY if life.jobs else State.BUILDING)
            else:
                assert slot.state is (State.CLOSING if life.doomed or life.closing is not None else State.IDLE)
        # Counted apart for speed; a wrong count would show only much later.
        for state in State:
            assert set(scheduler.slots.indices(state)) == {
                slot.index for slot in scheduler.slots if slot.state is state
            }
        assert set(scheduler.slots.free) == set(self._free())
        if self.capacity == 1:
            assert list(scheduler.slots.free) == list(scheduler.slots.indices(State.IDLE))

    @invariant()
    def each_death_is_counted_once(self) -> None:
        for slot in self.scheduler.slots:
            assert slot.deaths == self.unblamed[slot.index]
            assert slot.n_restarts == self.lost[slot.index]

    @invariant()
    def nobody_stays_when_all_is_done(self) -> None:
        if self.scheduler.closing and not self.scheduler.work.jobs and not self.unreported:
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
                slot, seq = busy[0]
                if self.lives[slot].dead:
                    self._die_before_it_began(slot, seq)
                else:
                    self._finish(slot, seq, len(self._job(slot, seq).positions), set())
            elif self.unreported:
                self._report(0)
            elif closing := self._closing():
                end = self.lives.pop(closing[0]).closing
                assert end is not None
                self.carry_out(self.scheduler.ended(closing[0], end))
            else:
                return
        pytest.fail(f"this never ends: {self.scheduler}")

    # --- helpers --------------------------------------------------------------------------------------

    def _building(self) -> list[int]:
        return [slot for slot, life in self.lives.items() if life.building is not None]

    def _is_held(self, group: Group) -> bool:
        """Tell whether nothing of a group is to start, for it will hear of an error as soon as that is loaded."""
        return any(is_held and job.call.group is group for job, _, is_held in self.unreported)

    def _waiting(self) -> list[Job]:
        """Return the jobs that wait for a slot, and for nothing else."""
        return [job for job in self.scheduler.work.jobs if not self._is_held(job.call.group)]

    def _busy(self) -> list[tuple[int, int]]:
        """Return all messages under way, by slot and seq."""
        return [(slot, seq) for slot, life in self.lives.items() for seq in life.jobs]

    def _closing(self) -> list[int]:
        return [slot for slot, life in self.lives.items() if life.closing is not None]

    def _idle(self) -> list[int]:
        return [slot for slot, life in self.lives.items() if life.is_at_rest and not life.doomed]

    def _cancellable(self) -> list[Asked]:
        waiting = [who_asked(call) for call in self.scheduler.work.calls_of() if not call.claimed]
        return [call for call in waiting if call.request.claim and call not in self.cancelled]

    def _draw_group(self, data: st.DataObject) -> Group:
        groups = self.scheduler.work.groups()
        return groups[data.draw(st.integers(0, len(groups) - 1))]

    def _job(self, slot: int, seq: int) -> Job:
        return self.lives[slot].jobs[seq]

    def _has_built(self, slot: int) -> int:
        """Note that a worker has built its object; return by which message."""
        life = self.lives[slot]
        seq, life.building = life.building, None
        assert seq is not None
        self._bury(slot)
        return seq

    def _bury(self, slot: int) -> None:
        """Forget a worker that is gone, if nothing more is to come of it."""
        life = self.lives[slot]
        if (life.gone or life.dead) and not life.jobs:  # an answer was on its way when it was killed
            del self.lives[slot]

    def _finish(
        self,
        slot: int,
        seq: int,
        n_run: int,
        failed: set[int],
        *,
        was_refused: bool = False,
        is_full: bool = False,
        is_slow: bool = False,
    ) -> None:
        life = self.lives[slot]
        job = life.jobs.pop(seq)
        faults: dict[int, BaseException] = {place: ValueError(place) for place in failed}
        values = [
            None if at in failed else _value(who_asked(job.call), p) for at, p in enumerate(job.positions[:n_run])
        ]
        life.n_run += n_run
        life.is_full |= is_full
        self.unblamed[slot] = 0
        self._bury(slot)
        report = Report(n_run, values, faults, seconds=n_run, was_refused=was_refused, is_full=is_full, slot=slot)
        if is_slow:
            answered, decisions = self.scheduler.answered(slot, seq, n_run, n_run, failed=bool(failed), is_full=is_full)
            assert answered is job
            is_held = bool(failed) and not job.call.settled and who_asked(job.call).after_error != "go_on"
            self.unreported.append((job, report, is_held))
            self.carry_out(decisions)
        else:
            self.carry_out(self.scheduler.finished(slot, seq, report))

    def _die(self, slot: int, seq: int, death: Death) -> Decisions:
        life = self.lives[slot]
        del life.jobs[seq]
        if not life.dead:
            life.dead = True
            life.mourned |= life.doomed and not life.expired  # killed for others' sake: that is no fault of this slot's
            self.lost[slot] += 1
        self._bury(slot)
        return self.scheduler.died(slot, seq, death)

    def _count_unblamed(
        self, slot: int, group: Group | None, limits: Limits, decisions: Decisions, n_deaths: int = 1
    ) -> None:
        self.unblamed[slot] += n_deaths
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
        slots = [{**vars(slot), "jobs": dict(slot.jobs)} for slot in self.scheduler.slots]
        return repr(self.scheduler), slots, list(self.scheduler.slots.free)


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
