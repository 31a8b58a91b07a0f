"""Slots: what each is doing, and what may come next."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

from ._requests import NO_LIMITS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .._worker._messages import Death
    from ._jobs import Job
    from ._requests import Group


class State(enum.Enum):
    """What a slot is doing."""

    EMPTY = "empty"
    BUILDING = "building"
    IDLE = "idle"
    BUSY = "busy"
    CLOSING = "closing"

    # Each message asks for it fourteen times, and that of enums is Python code.
    __hash__ = object.__hash__


#: From each state those that may follow. A worker that is being killed stays in its state until that is noticed; if it answers
#: before, there is nothing more to come of it, and it is closing, or gone already.
TRANSITIONS: dict[State, frozenset[State]] = {
    State.EMPTY: frozenset({State.BUILDING}),
    State.BUILDING: frozenset({State.IDLE, State.CLOSING, State.EMPTY}),
    State.IDLE: frozenset({State.BUSY, State.CLOSING, State.EMPTY}),
    State.BUSY: frozenset({State.IDLE, State.CLOSING, State.EMPTY}),
    State.CLOSING: frozenset({State.EMPTY}),
}


class Late(NamedTuple):
    """What is over a time limit: a message, with an item of it; None: before any, or while an object was built."""

    place: int | None


class Killing(NamedTuple):
    """A worker's end that was decided: nothing more is sent to it."""

    late: Mapping[int, Late] = {}  # its messages that were over a time limit, by their numbers
    is_done: bool = False
    is_told: bool = False  # with one of its messages; with the others it may still come
    n_jobs: int = 0  # that it was at then
    why: str = ""  # of a kill for the sake of others than what it was at, for that

    @property
    def is_late(self) -> bool:
        """True if any was."""
        return bool(self.late)


class Slot:
    """What is known of one slot."""

    state: State = State.EMPTY
    killing: Killing | None = None
    seq = 0  # of the latest message
    group: Group | None = None  # for whom it is being built
    limits = NO_LIMITS  # of that group
    kwargs_keys: tuple[str, ...] = ()  # what its object is built from, for messages
    life = 0  # counts the workers that this slot has had
    deaths = 0  # in a row, without finishing anything
    life_mourned = 0  # the latest one whose death was counted there
    death: Death | None = None  # the latest one
    tasks = 0  # finished by the present worker
    n_done = 0
    n_restarts = 0
    n_builds = 0
    init_seconds: float | None = None  # that the latest construction took
    busy_seconds = 0.0

    is_full = False  # its worker holds more memory than it may

    def __init__(self, index: int) -> None:
        self.index = index
        self.jobs: dict[int, Job] = {}  # that its worker is at, by the numbers of their messages

    def is_for(self, group: Group | None) -> bool:
        """Tell whether its worker is at something of a group, or being built for it; None: of any."""
        if group is None:
            return True
        return any(job.call.group is group for job in self.jobs.values()) if self.jobs else self.group is group

    def group_of(self, seq: int) -> Group | None:
        """Return for whom a message is under way; None if for nobody any more."""
        job = self.jobs.get(seq)
        return self.group if job is None else job.call.group

    def is_at(self, seq: int) -> bool:
        """Tell whether a message is under way."""
        return seq in self.jobs or (self.seq == seq and self.state in (State.BUILDING, State.CLOSING))

    @property
    def is_killed(self) -> bool:
        """True if its worker was killed, which may not have been noticed."""
        return self.killing is not None and self.killing.is_done

    def __repr__(self) -> str:
        jobs = "".join(f" {list(job.positions)}" for job in self.jobs.values())
        return f"<Slot {self.index} {self.state.value}{jobs}{' being killed' * (self.killing is not None)}>"


class SlotTable(list[Slot]):
    """All slots, by index and by state.

    Parameters
    ----------
    n_slots : int
        Number of slots; more can be added.
    max_tasks : int or None
        Items after which a worker is closed and its object built anew; None: never.
    capacity : int
        How many jobs a worker can be at.
    """

    def __init__(self, n_slots: int, max_tasks: int | None = None, capacity: int = 1) -> None:
        super().__init__()
        # Each job has an item at least: a worker that ends after fewer items is never at so many.
        self.capacity = capacity if max_tasks is None else min(capacity, max_tasks)
        self._max_tasks = max_tasks
        #: Those whose object stands and that can take one more job, in the order in which they came to that; not to be changed.
        self.free: dict[int, None] = {}
        # In the order in which they came to it.
        self._by_state: dict[State, dict[int, None]] = {state: {} for state in State}
        # Those that are to be built even if no job waits.
        self._warm: dict[int, None] = {}
        self._seq = 0
        self.grow(n_slots)

    def grow(self, n_slots: int) -> None:
        """Add slots, until there are so many."""
        for index in range(len(self), n_slots):
            self.append(Slot(index))
            self._by_state[State.EMPTY][index] = None

    def __repr__(self) -> str:
        return f"[{' '.join(slot.state.value for slot in self)}]"

    def first(self, n_slots: int) -> list[Slot]:
        """Return the first so many slots."""
        return self[:n_slots]

    def indices(self, state: State) -> dict[int, None]:
        """Return the indices of those in a state, in the order in which they came to it; not to be changed."""
        return self._by_state[state]

    # --- what becomes of one --------------------------------------------------------------------------

    def enter(self, slot: Slot, state: State) -> None:
        """Have a slot go from its state to another one."""
        assert state in TRANSITIONS[slot.state], f"{slot!r} can't be {state.value} next"  # noqa: S101 - a fault of ours
        del self._by_state[slot.state][slot.index]
        self._by_state[state][slot.index] = None
        slot.state = state
        if state in (State.IDLE, State.EMPTY):
            slot.killing, slot.is_full = None, False
        self._sort(slot)

    def _sort(self, slot: Slot) -> None:
        """Have a slot among the free ones, as the last one, if it is."""
        self.free.pop(slot.index, None)
        if slot.state is State.IDLE or (
            slot.state is State.BUSY
            and len(slot.jobs) < self.capacity
            and slot.killing is None
            and not next(iter(slot.jobs.values())).is_alone
            and not self.is_worn_out(slot)
        ):
            self.free[slot.index] = None

    def room(self, slot: Slot) -> int | None:
        """Return how many items more a slot's worker may run; None: any number."""
        if self._max_tasks is None:
            return None
        return self._max_tasks - slot.tasks - sum(len(job.positions) for job in slot.jobs.values())

    def is_worn_out(self, slot: Slot) -> bool:
        """Tell whether a slot's worker is to be closed when it has done what it is at."""
        return slot.is_full or self.room(slot) == 0

    def put(self, slot: Slot, job: Job) -> int:
        """Have a free slot be at one more job; return the number of its message."""
        seq = self.new_message(slot)
        slot.jobs[seq] = job
        if slot.state is State.BUSY:
            self._sort(slot)
        else:
            self.enter(slot, State.BUSY)
        return seq

    def take(self, slot: Slot, seq: int) -> Job | None:
        """Return what a slot was at by a message, which is over."""
        return slot.jobs.pop(seq, None)

    def condemn(self, slot: Slot, killing: Killing) -> None:
        """Note that a slot's worker is to be killed."""
        slot.killing = killing
        self._sort(slot)

    def new_message(self, slot: Slot) -> int:
        """Return the number of a slot's next message."""
        self._seq += 1
        slot.seq = self._seq
        return self._seq

    def free_after_work(self, slot: Slot) -> None:
        """Note that a slot has answered; its worker may be about to be killed all the same."""
        if slot.jobs:
            self._sort(slot)
        elif slot.killing is None:
            self.enter(slot, State.IDLE)
        else:
            self.enter(slot, State.EMPTY if slot.killing.is_done else State.CLOSING)

    # --- those to be built even if no job waits -------------------------------------------------------

    def warm(self, slot: Slot) -> None:
        """Have a slot built as soon as it is empty."""
        self._warm[slot.index] = None

    def leave_cold(self, slot: Slot) -> None:
        """Have it built no more, or note that it is."""
        self._warm.pop(slot.index, None)

    def leave_all_cold(self) -> None:
        """Have none built any more unless a job waits."""
        self._warm.clear()

    def is_to_be_warm(self, slot: Slot) -> bool:
        """Tell whether a slot is to be built, or being built, though no job waits."""
        return slot.index in self._warm

    @property
    def has_warm(self) -> bool:
        """True if there are slots to be built, or being built, though no job waits."""
        return bool(self._warm)

    @property
    def to_be_warm(self) -> list[Slot]:
        """All such slots."""
        return [self[index] for index in self._warm]
