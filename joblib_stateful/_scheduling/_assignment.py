"""Open calls, the jobs of theirs that wait, and which slot runs what.

It knows nothing of outcomes; see `_scheduler` for the rules.
"""

from __future__ import annotations

import sys
from itertools import islice
from typing import TYPE_CHECKING

from ._decisions import CloseWorker, Decisions, SendJob, ShareJob, StartWorker
from ._jobs import Call, Job
from ._queue import JobQueue
from ._slots import State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._requests import Group, Request
    from ._slots import Slot, SlotTable


class Assignment:
    """The assignment of jobs to slots.

    Parameters
    ----------
    slots : SlotTable
        All slots.
    in_turn : bool
        Give work to the slot that has waited longest, built or not, instead of to as few as possible.
    """

    def __init__(self, slots: SlotTable, *, in_turn: bool = False) -> None:
        self._slots, self.in_turn = slots, in_turn
        self._empty = slots.indices(State.EMPTY)
        self.jobs = JobQueue()  # that wait
        # All that were accepted and are not settled.
        self._calls: dict[Group, dict[Call, None]] = {}
        # Messages under way of which slots with nothing to do could have a share, and that were not asked for it: the slot and
        # the job, by number and in the order of sending.
        self._shareable: dict[int, tuple[int, Job]] = {}
        # More slots than this are of no use to any group with calls that are open ...
        self._widest = 0
        # ... and at least so many are of use to each of them.
        self._narrowest = sys.maxsize
        #: A job for any slot waits that is to be alone; until it runs, slots are given no more than one.
        self.has_alone = False
        self._avoids = False  # a job that waits has a slot that it avoids, or one did since none waited

    # --- open calls -----------------------------------------------------------------------------------

    @property
    def has_calls(self) -> bool:
        """True if there are open calls."""
        return bool(self._calls)

    @property
    def n_calls(self) -> int:
        """How many calls are open."""
        return sum(map(len, self._calls.values()))

    def groups(self) -> list[Group]:
        """Return the groups that have open calls."""
        return list(self._calls)

    def calls_of(self, group: Group | None = None) -> list[Call]:
        """Return the open calls of one group, or all."""
        groups = self._calls if group is None else [group]
        return [call for each in groups for call in self._calls.get(each, ())]

    def open(self, request: Request) -> Call:
        """Take up a request."""
        if not self._calls:
            self._widest, self._narrowest = 0, sys.maxsize
        call = Call(request)
        self._calls.setdefault(call.group, {})[call] = None
        self._widest = max(self._widest, call.group.n_slots)
        self._narrowest = min(self._narrowest, call.group.n_slots)
        return call

    def settle(self, call: Call) -> None:
        """Note that nothing more is to come of a call."""
        call.settle()
        calls = self._calls[call.group]
        del calls[call]
        if not calls:
            del self._calls[call.group]

    # --- jobs that wait -------------------------------------------------------------------------------

    def put_back(self, job: Job) -> None:
        """Put a job in front of all others."""
        self._avoids |= job.avoid is not None
        self.has_alone |= job.is_alone and job.only is None
        self.jobs.put_back(job)

    def let_go(self, group: Group) -> None:
        """Have the jobs of a group go out again that was held."""
        for job in reversed(self.jobs.let_go(group)):
            self.put_back(job)

    # --- what goes where ------------------------------------------------------------------------------

    def width(self, group: Group) -> int:
        """Return how many slots a group may use."""
        return min(len(self._slots), group.n_slots)

    def assign(self) -> Decisions:
        """Send jobs to slots that have room for one, and have workers started for what waits."""
        decisions: Decisions = []
        if self.has_alone:
            self._look_for_alone()
        others_wait = True
        while others_wait:
            others_wait = self.has_alone
            if self.jobs.own:
                decisions += self._send_own()
            if self.jobs.common and self._slots.free:
                decisions += self._send_common()
            others_wait &= not self.has_alone
        if self._empty:  # as it isn't behind most messages
            decisions += self._start_workers()
        return decisions

    def _send_common(self) -> Decisions:
        """Send to slots that have room what any of several may run."""
        decisions: Decisions = []
        while self.jobs.common and self._slots.free:
            pair = self._next_pair()
            if pair is None:
                break
            decisions += self._send(*pair)
        return decisions

    def _send_own(self) -> Decisions:
        """Send to slots that have room what is for them only."""
        decisions: Decisions = []
        free = self._slots.free
        for index in [index for index in self.jobs.own if index in free]:
            while (
                index in self.jobs.own and index in free and self._is_free(self._slots[index], self.jobs.own[index][0])
            ):
                job = self.jobs.take_own(index)
                if self._is_wanted(job.call):
                    decisions += self._send(job, self._slots[index])
        return decisions

    def share(self) -> Decisions:
        """Ask one busy slot for a share of what it has, if nothing else can come for an idle one."""
        if self.jobs.common or not self._slots.free:
            return []
        # The longest at work first: those who keep others waiting are stragglers.
        for seq, (index, job) in self._shareable.items():
            if job.call.settled:  # what comes of it is nobody's, and it is stopped
                continue
            if job.call.group.sharing and self.n_free(job.call.group):
                del self._shareable[seq]
                return [ShareJob(index, seq)]
        return []

    def n_free(self, group: Group, *, beside: int | None = None) -> int:
        """Return how many slots have room for a job of a group, beside one."""
        return sum(index < group.n_slots and index != beside for index in self._slots.free)

    def take_job(self, slot: Slot, seq: int) -> Job | None:
        """Return what a slot was at by a message, which is over."""
        self._shareable.pop(seq, None)
        return self._slots.take(slot, seq)

    def close(self, slot: Slot) -> Decisions:
        """End a slot's worker in an orderly way."""
        self._slots.enter(slot, State.CLOSING)
        return [CloseWorker(slot.index, self._slots.new_message(slot), slot.life)]

    def _next_pair(self) -> tuple[Job, Slot] | None:
        """Return the first job that a slot with room may run, with that slot."""
        if self._is_too_far(self._slots.free):
            return None
        at, jobs = 0, self.jobs.common
        while at < len(jobs):
            job = jobs[at]
            slot = self._free_slot_for(job)
            if slot is None:
                at += 1
                continue
            del jobs[at]
            if self._is_wanted(job.call):
                return job, slot
            if self.has_alone:
                self._look_for_alone()
        return None

    def _is_too_far(self, indices: Iterable[int]) -> bool:
        """Tell whether some slots are of no use to any job, of which there may be thousands."""
        return self._widest < len(self._slots) and min(indices) >= self._widest

    def _free_slot_for(self, job: Job) -> Slot | None:
        free = self._slots.free
        if not self.in_turn:
            slots = (self._slots[index] for index in free if _may_run(index, job))
            if self._slots.capacity == 1:
                return next(slots, None)
            slots = (slot for slot in slots if self._is_free(slot, job))
            return min(slots, key=lambda slot: len(slot.jobs), default=None)
        able = [index for index in free if _may_run(index, job)]
        if able:
            # Those that had their turn come after new ones, and wait for those that can still be built.
            new = [index for index in able if not self._slots[index].tasks]
            if not new and any(_may_run(index, job) for index in self._slots.indices(State.EMPTY)):
                return None
            able = new or able
        return self._slots[able[0]] if able else None

    def _is_free(self, slot: Slot, job: Job) -> bool:
        """Tell whether a slot that has room may be given a job: while some wait that are to be alone, only if it is at nothing."""
        if not slot.jobs:
            return True
        own = self.jobs.own.get(slot.index)
        return not (self.has_alone or job.is_alone or (own is not None and own[0].is_alone))

    def _look_for_alone(self) -> None:
        self.has_alone = any(job.is_alone for job in self.jobs.common)

    def _is_wanted(self, call: Call) -> bool:
        """Ask, just before a call's first item is sent, whether its owner has cancelled it."""
        if not call.claimed:
            call.claimed = call.request.claim is None or call.request.claim()
            if not call.claimed:
                self.settle(call)
        return call.claimed

    def _send(self, job: Job, slot: Slot) -> Decisions:
        room = self._slots.room(slot)
        if room is not None and room < len(job.positions):
            self.jobs.put_back(job.some(job.positions[room:]))
            job = job.some(job.positions[:room])
        seq = self._slots.put(slot, job)
        if self.has_alone:
            self._look_for_alone()
        if job.call.request.budget is not None and len(job.positions) > 1:
            self._shareable[seq] = slot.index, job
        return [SendJob(slot.index, seq, job)]

    def _start_workers(self) -> Decisions:
        """Start a worker for each slot to be warmed, and for each waiting job that none is being built for."""
        if not (self.jobs.common or self.jobs.own or self._slots.has_warm):
            return []
        decisions: Decisions = [self._start(slot) for slot in self._slots.to_be_warm if slot.state is State.EMPTY]
        own = [(jobs[0], self._slots[index]) for index, jobs in self.jobs.own.items()]
        own = [(job, slot) for job, slot in own if slot.state is State.EMPTY]
        for job, slot in own + self._places_to_build():
            slot.group, slot.limits = job.call.group, job.call.request.limits
            decisions.append(self._start(slot))
        return decisions

    def _places_to_build(self) -> list[tuple[Job, Slot]]:
        """Return jobs for which no slot is being built, and an empty one for each, as far as there are any."""
        jobs = self.jobs.common
        self._avoids &= bool(jobs)
        if not jobs:
            return []
        building, empty = self._slots.indices(State.BUILDING), self._empty
        capacity, own = 1 if self.has_alone else self._slots.capacity, self.jobs.own
        if own:  # they are built for those, and have room for others only beside them
            building = dict.fromkeys((*building, *(index for index in empty if index in own)))
            empty = {index: None for index in empty if index not in own}
        if not empty or self._is_too_far(empty):
            return []
        coming = [index for index in building for _ in range(capacity - len(own.get(index, ())))]
        if self._narrowest >= len(self._slots) and not self._avoids:  # any slot will do for any job
            waiting = islice(jobs, len(coming), None, capacity)
            return [(job, self._slots[index]) for job, index in zip(waiting, empty, strict=False)]
        free, found = list(empty), list[int]()
        served: list[tuple[Job, int]] = []
        # Those first to which the fewest slots will do: then no other is served by these, and none has to make way but for one
        # that avoids a slot.
        for job in sorted(jobs, key=lambda job: (self.width(job.call.group), job.avoid is None)):
            if _find_place(job, coming, served) is not None:
                continue
            index = _find_place(job, free, served)
            if index is not None:
                coming += [index] * (capacity - 1)
                found.append(index)
                if not free:
                    break
        job_of = {index: job for job, index in reversed(served)}
        return [(job_of[index], self._slots[index]) for index in found]

    def _start(self, slot: Slot) -> StartWorker:
        self._slots.enter(slot, State.BUILDING)
        slot.life += 1
        n_jobs = len(self._slots) if slot.group is None else self.width(slot.group)
        return StartWorker(slot.index, self._slots.new_message(slot), slot.limits, n_jobs)

    def __repr__(self) -> str:
        return f"<Assignment {len(self.jobs)} queued, {self.n_calls} open>"


def _find_place(job: Job, spare: list[int], served: list[tuple[Job, int]]) -> int | None:
    """Find a slot for a job among spare ones, or that of a job which will do with a spare one; return which of these is taken."""
    index = next((index for index in spare if _may_run(index, job)), None)
    if index is not None:
        spare.remove(index)
        served.append((job, index))
        return index
    avoided = job.avoid
    if avoided is None or avoided not in spare:
        return None
    for at, (other, its) in enumerate(served):
        if _may_run(its, job) and _may_run(avoided, other):
            spare.remove(avoided)
            served[at] = other, avoided
            served.append((job, its))
            return avoided
    return None


def _may_run(index: int, job: Job) -> bool:
    """Tell whether a slot may run a job."""
    return index != job.avoid and index < job.call.group.n_slots
