"""Slots: what each is doing, and what may come next."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

from ._requests import NO_LIMITS

if TYPE_CHECKING:
    from collections.abc import Iterator

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


class Killing(NamedTuple):
    """A worker's end that was decided: nothing more is sent to it."""

    is_late: bool = False  # its message was over a time limit
    place: int | None = None  # ... with this item of it
    is_done: bool = False


class Slot:
    """What is known of one slot."""

    state: State = State.EMPTY
    killing: Killing | None = None
    job: Job | None = None
    seq = 0  # of the latest message
    group: Group | None = None  # for whom it is being built
    limits = NO_LIMITS  # of that group
    kwargs_keys: tuple[str, ...] = ()  # what its object is built from, for messages
    life = 0  # counts the workers that this slot has had
    deaths = 0  # in a row, without finishing anything
    death: Death | None = None  # the latest one
    tasks = 0  # finished by the present worker
    n_done = 0
    n_restarts = 0
    n_builds = 0
    init_seconds: float | None = None  # that the latest construction took
    busy_seconds = 0.0

    def __init__(self, index: int) -> None:
        self.index = index

    @property
    def owner(self) -> Group | None:
        """For whom it works at the moment."""
        return self.job.call.group if self.job is not None else self.group

    @property
    def is_killed(self) -> bool:
        """True if its worker was killed, which may not have been noticed."""
        return self.killing is not None and self.killing.is_done

    def __repr__(self) -> str:
        job = f" {list(self.job.positions)}" if self.job is not None else ""
        return f"<Slot {self.index} {self.state.value}{job}{' being killed' * (self.killing is not None)}>"


class SlotTable:
    """All slots, by index and by state.

    Parameters
    ----------
    n_slots : int
        Number of slots; more can be added.
    """

    def __init__(self, n_slots: int) -> None:
        self._slots: list[Slot] = []
        # In the order in which they came to it.
        self._by_state: dict[State, dict[int, None]] = {state: {} for state in State}
        # Those that are to be built even if no job waits.
        self._warm: dict[int, None] = {}
        self._seq = 0
        self.grow(n_slots)

    def grow(self, n_slots: int) -> None:
        """Add slots, until there are so many."""
        for index in range(len(self._slots), n_slots):
            self._slots.append(Slot(index))
            self._by_state[State.EMPTY][index] = None

    def __len__(self) -> int:
        return len(self._slots)

    def __getitem__(self, index: int) -> Slot:
        return self._slots[index]

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots)

    def __repr__(self) -> str:
        return f"[{' '.join(slot.state.value for slot in self._slots)}]"

    def first(self, n_slots: int) -> list[Slot]:
        """Return the first so many slots."""
        return self._slots[:n_slots]

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
            slot.killing = None

    def new_message(self, slot: Slot) -> int:
        """Return the number of a slot's next message."""
        self._seq += 1
        slot.seq = self._seq
        return self._seq

    def free_after_work(self, slot: Slot) -> None:
        """Note that a slot has answered; its worker may be about to be killed all the same."""
        if slot.killing is None:
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
    def to_be_warm(self) -> list[Slot]:
        """All such slots."""
        return [self._slots[index] for index in self._warm]
