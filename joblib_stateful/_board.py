"""Slots and the work that waits for them: who is free, what goes where.

The lower half of the schedule. It knows nothing of outcomes; see `_schedule` for the rules.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from ._slots import CloseWorker, Decisions, Job, SendJob, ShareJob, Slot, StartWorker, State

if TYPE_CHECKING:
    from ._records import Call, Group


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
        self.calls: dict[Call, None] = {}
        self.slots = [Slot(index) for index in range(n_slots)]
        # Free slots by index, in the order in which they became free.
        self._idle: dict[int, None] = {}
        self._empty = dict.fromkeys(range(n_slots))
        # Busy slots of whose messages idle ones could have a share, and that were not asked for it; in the order of
        # sending.
        self._shareable: dict[int, None] = {}
        # More slots than this are of no use to any group with calls that are open.
        self._widest = 0
        self._seq = 0

    def __repr__(self) -> str:
        states = " ".join(slot.state.value for slot in self.slots)
        return f"<{type(self).__name__} [{states}] {len(self.queue)} queued, {len(self.calls)} open>"

    def grow(self, n_slots: int) -> Decisions:
        """Add slots, until there are so many."""
        for index in range(self.n_slots, n_slots):
            self.slots.append(Slot(index))
            self._empty[index] = None
        self.n_slots = len(self.slots)
        return self._assign()

    def width(self, group: Group) -> int:
        """Return how many slots a group may use."""
        return min(self.n_slots, group.n_slots)

    def _take_call(self, call: Call) -> None:
        if not self.calls:
            self._widest = 0
        self.calls[call] = None
        self._widest = max(self._widest, call.group.n_slots)

    def release(self) -> Decisions:
        """Close the workers that are idle now."""
        return [decision for slot in self.slots if slot.state is State.IDLE for decision in self._close(slot)]

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
        if min(self._idle) >= self._widest:  # they are not for any of the jobs, which may be thousands
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

    def _idle_slot_for(self, job: Job) -> Slot | None:
        able = [index for index in self._idle if _may_run(index, job)]
        if self.in_turn:
            # Those that had their turn come after new ones, and wait for those that can still be built.
            new = [index for index in able if not self.slots[index].tasks]
            if not new and any(_may_run(index, job) for index in self._empty):
                return None
            able = new or able
        return self.slots[able[0]] if able else None

    def _is_wanted(self, call: Call) -> bool:
        """Ask, just before a call's first item is sent, whether its owner has cancelled it."""
        if not call.claimed:
            call.claimed = call.claim is None or call.claim()
            if not call.claimed:
                call.settled = True
                del self.calls[call]
        return call.claimed

    def _send(self, job: Job, slot: Slot) -> Decisions:
        room = len(job.positions) if self.max_tasks is None else self.max_tasks - slot.tasks
        if room < len(job.positions):
            self.queue.appendleft(job.some(job.positions[room:]))
            job = job.some(job.positions[:room])
        del self._idle[slot.index]
        slot.state, slot.job, slot.seq = State.BUSY, job, self._next_seq()
        if job.call.budget is not None and len(job.positions) > 1:
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
        for index in [i for i in self._empty if self.slots[i].warm]:
            decisions.append(self._start(self.slots[index]))
        if not self.queue or not self._empty or min(self._empty) >= self._widest:
            return decisions
        coming = [slot.index for slot in self.slots if slot.state is State.BUILDING]
        # Those first to which the fewest slots will do, so that no other job is served by these.
        for job in sorted(self.queue, key=lambda job: (self.width(job.call.group), job.avoid is None)):
            served = next((index for index in coming if _may_run(index, job)), None)
            if served is not None:
                coming.remove(served)
                continue
            free = next((index for index in self._empty if _may_run(index, job)), None)
            if free is not None:
                slot = self.slots[free]
                slot.group, slot.limits = job.call.group, job.call.limits
                decisions.append(self._start(slot))
                if not self._empty:
                    break
        return decisions

    def _start(self, slot: Slot) -> StartWorker:
        del self._empty[slot.index]
        slot.state, slot.seq = State.BUILDING, self._next_seq()
        slot.life += 1
        n_jobs = self.n_slots if slot.group is None else self.width(slot.group)
        return StartWorker(slot.index, slot.seq, slot.limits, n_jobs)

    def _close(self, slot: Slot) -> Decisions:
        self._idle.pop(slot.index, None)
        slot.state, slot.seq = State.CLOSING, self._next_seq()
        return [CloseWorker(slot.index, slot.seq, slot.life)]

    def _free(self, slot: Slot, state: State) -> None:
        slot.state = state
        (self._idle if state is State.IDLE else self._empty)[slot.index] = None
        slot.doomed = slot.expired = slot.gone = False

    def _free_after_work(self, slot: Slot) -> None:
        if not slot.doomed:
            self._free(slot, State.IDLE)
        elif slot.gone:
            self._free(slot, State.EMPTY)
        else:
            slot.state = State.CLOSING

    def _next_seq(self) -> int:
        self._seq += 1
        return self._seq


def _may_run(index: int, job: Job) -> bool:
    """Tell whether a slot may run a job."""
    return index != job.avoid and index < job.call.group.n_slots
