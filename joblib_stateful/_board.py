"""Slots and the work that waits for them: who is free, what goes where.

The lower half of the schedule. It knows nothing of outcomes; see `_schedule` for the rules.
"""

from __future__ import annotations

import sys
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING

from ._slots import Call, CloseWorker, Decisions, Job, SendJob, ShareJob, Slot, StartWorker, State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._records import Group, Request


class Board:
    """The state of all slots and all accepted calls, and the assignment of one to the other.

    Parameters
    ----------
    n_slots : int
        Number of slots.
    max_tasks : int or None
        Items after which a worker is closed and its object built anew; None: never.
    in_turn : bool
        Give work to the slot that has waited longest, built or not, instead of to as few as possible.
    """

    def __init__(self, n_slots: int, max_tasks: int | None = None, *, in_turn: bool = False) -> None:
        self.n_slots, self.max_tasks, self.in_turn = n_slots, max_tasks, in_turn
        self.closing = False
        self.queue: deque[Job] = deque()
        # All that were accepted and are not settled.
        self._calls: dict[Group, dict[Call, None]] = {}
        self.slots = [Slot(index) for index in range(n_slots)]
        # Slots by state and index, in the order in which they came to it.
        self._by_state: dict[State, dict[int, None]] = {state: {} for state in State}
        self._by_state[State.EMPTY].update(dict.fromkeys(range(n_slots)))
        # Those that are to be built even if no job waits.
        self._warm: dict[int, None] = {}
        # Busy slots of whose messages idle ones could have a share, and that were not asked for it; in the order of
        # sending.
        self._shareable: dict[int, None] = {}
        # More slots than this are of no use to any group with calls that are open ...
        self._widest = 0
        # ... and at least so many are of use to each of them.
        self._narrowest = sys.maxsize
        self._avoids = False  # a job that waits has a slot that it avoids, or one did since none waited
        self._seq = 0

    def __repr__(self) -> str:
        states = " ".join(slot.state.value for slot in self.slots)
        return f"<{type(self).__name__} [{states}] {len(self.queue)} queued, {self.n_calls} open>"

    def grow(self, n_slots: int) -> Decisions:
        """Add slots, until there are so many."""
        for index in range(self.n_slots, n_slots):
            self.slots.append(Slot(index))
            self._by_state[State.EMPTY][index] = None
        self.n_slots = len(self.slots)
        return self._assign()

    def width(self, group: Group) -> int:
        """Return how many slots a group may use."""
        return min(self.n_slots, group.n_slots)

    @property
    def _idle(self) -> dict[int, None]:
        return self._by_state[State.IDLE]

    @property
    def _empty(self) -> dict[int, None]:
        return self._by_state[State.EMPTY]

    @property
    def n_calls(self) -> int:
        """How many calls were accepted and are not settled."""
        return sum(map(len, self._calls.values()))

    def groups(self) -> list[Group]:
        """Return the groups that have such calls."""
        return list(self._calls)

    def calls_of(self, group: Group | None = None) -> list[Call]:
        """Return such calls of one group, or all."""
        groups = self._calls if group is None else [group]
        return [call for each in groups for call in self._calls.get(each, ())]

    def _take_request(self, request: Request) -> Call:
        if not self._calls:
            self._widest, self._narrowest = 0, sys.maxsize
        call = Call(request)
        self._calls.setdefault(call.group, {})[call] = None
        self._widest = max(self._widest, call.group.n_slots)
        self._narrowest = min(self._narrowest, call.group.n_slots)
        return call

    def _forget_call(self, call: Call) -> None:
        call.settle()
        calls = self._calls[call.group]
        del calls[call]
        if not calls:
            del self._calls[call.group]

    def release(self) -> Decisions:
        """Close the workers that are idle now."""
        return [decision for index in list(self._idle) for decision in self._close(self.slots[index])]

    def _assign(self) -> Decisions:
        decisions: Decisions = []
        while self.queue and self._idle:
            pair = self._next_pair()
            if pair is None:
                break
            decisions += self._send(*pair)
        decisions += self._start_workers()
        if self.closing and not self.queue:
            decisions += self.release()
        return decisions

    def _next_pair(self) -> tuple[Job, Slot] | None:
        """Return the first job in the queue that an idle slot may run, with that slot."""
        if self._is_too_far(self._idle):
            return None
        at = 0
        while at < len(self.queue):
            job = self.queue[at]
            slot = self._idle_slot_for(job)
            if slot is None:
                at += 1
                continue
            del self.queue[at]
            if self._is_wanted(job.call):
                return job, slot
        return None

    def _is_too_far(self, indices: Iterable[int]) -> bool:
        """Tell whether some slots are of no use to any job, of which there may be thousands."""
        return self._widest < self.n_slots and min(indices) >= self._widest

    def _idle_slot_for(self, job: Job) -> Slot | None:
        if not self.in_turn:
            found = next((index for index in self._idle if _may_run(index, job)), None)
            return None if found is None else self.slots[found]
        able = [index for index in self._idle if _may_run(index, job)]
        if able:
            # Those that had their turn come after new ones, and wait for those that can still be built.
            new = [index for index in able if not self.slots[index].tasks]
            if not new and any(_may_run(index, job) for index in self._empty):
                return None
            able = new or able
        return self.slots[able[0]] if able else None

    def _is_wanted(self, call: Call) -> bool:
        """Ask, just before a call's first item is sent, whether its owner has cancelled it."""
        if not call.claimed:
            call.claimed = call.request.claim is None or call.request.claim()
            if not call.claimed:
                self._forget_call(call)
        return call.claimed

    def _send(self, job: Job, slot: Slot) -> Decisions:
        room = len(job.positions) if self.max_tasks is None else self.max_tasks - slot.tasks
        if room < len(job.positions):
            self.queue.appendleft(job.some(job.positions[room:]))
            job = job.some(job.positions[:room])
        self._enter(slot, State.BUSY)
        slot.job, slot.seq = job, self._next_seq()
        if job.call.request.budget is not None and len(job.positions) > 1:
            self._shareable[slot.index] = None
        return [SendJob(slot.index, slot.seq, job)]

    def _share(self) -> Decisions:
        """Ask one busy slot for a share of what it has, if nothing else can come for an idle one."""
        if self.queue or not self._idle:
            return []
        for index in self._shareable:  # the longest at work first: those who keep others waiting are stragglers
            slot = self.slots[index]
            if slot.job is not None and slot.job.call.group.sharing and self._n_idle(slot.job.call.group):
                del self._shareable[index]
                return [ShareJob(index, slot.seq)]
        return []

    def _n_idle(self, group: Group) -> int:
        """Return how many idle slots a group may use."""
        return sum(index < group.n_slots for index in self._idle)

    def _take_job(self, slot: Slot) -> Job | None:
        """Return what a slot was at, which is over."""
        job, slot.job = slot.job, None
        self._shareable.pop(slot.index, None)
        return job

    def _start_workers(self) -> Decisions:
        """Start a worker for each slot to be warmed, and for each waiting job that none is being built for."""
        decisions: Decisions = []
        for index in [index for index in self._warm if index in self._empty]:
            decisions.append(self._start(self.slots[index]))
        if not self.queue or not self._empty or self._is_too_far(self._empty):
            return decisions
        for job, index in self._places_to_build():
            slot = self.slots[index]
            slot.group, slot.limits = job.call.group, job.call.request.limits
            decisions.append(self._start(slot))
        return decisions

    def _places_to_build(self) -> list[tuple[Job, int]]:
        """Return jobs for which no slot is being built, and an empty one for each, as far as there are any."""
        building, empty = self._by_state[State.BUILDING], self._by_state[State.EMPTY]
        self._avoids &= bool(self.queue)
        if self._narrowest >= self.n_slots and not self._avoids:  # any slot will do for any job
            return list(zip(islice(self.queue, len(building), None), empty, strict=False))
        coming, free, found = list(building), list(empty), []
        # Those first to which the fewest slots will do, so that no other job is served by these.
        for job in sorted(self.queue, key=lambda job: (self.width(job.call.group), job.avoid is None)):
            served = next((index for index in coming if _may_run(index, job)), None)
            if served is not None:
                coming.remove(served)
                continue
            index = next((index for index in free if _may_run(index, job)), None)
            if index is not None:
                free.remove(index)
                found.append((job, index))
                if not free:
                    break
        return found

    def _start(self, slot: Slot) -> StartWorker:
        self._enter(slot, State.BUILDING)
        slot.seq = self._next_seq()
        slot.life += 1
        n_jobs = self.n_slots if slot.group is None else self.width(slot.group)
        return StartWorker(slot.index, slot.seq, slot.limits, n_jobs)

    def _close(self, slot: Slot) -> Decisions:
        self._enter(slot, State.CLOSING)
        slot.seq = self._next_seq()
        return [CloseWorker(slot.index, slot.seq, slot.life)]

    def _free(self, slot: Slot, state: State) -> None:
        self._enter(slot, state)
        slot.doomed = slot.expired = slot.gone = False

    def _free_after_work(self, slot: Slot) -> None:
        if not slot.doomed:
            self._free(slot, State.IDLE)
        elif slot.gone:
            self._free(slot, State.EMPTY)
        else:
            self._enter(slot, State.CLOSING)

    def _enter(self, slot: Slot, state: State) -> None:
        del self._by_state[slot.state][slot.index]
        self._by_state[state][slot.index] = None
        slot.state = state

    def _next_seq(self) -> int:
        self._seq += 1
        return self._seq


def _may_run(index: int, job: Job) -> bool:
    """Tell whether a slot may run a job."""
    return index != job.avoid and index < job.call.group.n_slots
