"""The records of scheduling: slots, calls, jobs, and the decisions that the schedule hands out."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from ._records import NO_LIMITS, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._records import Death, Group, Limits, Outcome


class State(enum.Enum):
    """What a slot is doing."""

    EMPTY = "empty"
    BUILDING = "building"
    IDLE = "idle"
    BUSY = "busy"
    CLOSING = "closing"


class Call:
    """What is known of a request while something of it is missing."""

    __slots__ = ("claimed", "group", "left", "parcel", "request", "settled")

    def __init__(self, request: Request) -> None:
        self.request, self.group, self.parcel = request, request.group, request.parcel
        self.left: range | set[int] = range(request.size)  # positions of which there is no outcome
        self.claimed = False  # its owner has said that it may run
        self.settled = False  # there is an outcome of all

    def take(self, positions: Sequence[int]) -> bool:
        """Note that there is an outcome of some items; return whether that makes it one of all."""
        if len(positions) == len(self.left):
            self.left = range(0)
            return True
        if isinstance(self.left, range):
            self.left = set(self.left)
        self.left.difference_update(positions)
        return False

    @property
    def positions_left(self) -> Sequence[int]:
        """The positions of which there is no outcome, in order."""
        return self.left if isinstance(self.left, range) else sorted(self.left)

    def settle(self) -> None:
        """Let go of what was needed to run it; a worker may still be at something of it that nobody wants.

        The parcel goes first: who reads the request, and then finds that, has both.
        """
        self.settled, self.parcel = True, None
        self.request = self.request.emptied()

    def __repr__(self) -> str:
        state = "settled" if self.settled else f"{len(self.left)} left"
        return f"<Call of {self.request.size} items, {state}>"


class Job:
    """Items of one call that go out in one message; never changed."""

    def __init__(self, call: Call, positions: Sequence[int], attempt: int = 1, avoid: int | None = None) -> None:
        self.call, self.positions, self.attempt = call, positions, attempt
        self.avoid = avoid  # the slot that this item's worker died in

    def some(self, positions: Sequence[int]) -> Job:
        """Return a job of some of its items."""
        return Job(self.call, positions, self.attempt, self.avoid)

    def split(self, positions: Sequence[int], parts: int) -> list[Job]:
        """Return jobs of about the same size for some of its items."""
        size = -(-len(positions) // parts)
        return [self.some(positions[at : at + size]) for at in range(0, len(positions), size)]

    def __repr__(self) -> str:
        return f"<Job {list(self.positions)}{'' if self.attempt == 1 else f' attempt {self.attempt}'}>"


class Slot:
    """What is known of one slot."""

    state: State = State.EMPTY
    job: Job | None = None
    seq = 0  # of the latest message
    group: Group | None = None  # for whom it is being built
    limits = NO_LIMITS  # of that group
    kwargs_keys: tuple[str, ...] = ()  # what its object is built from, for messages
    life = 0  # counts the workers that this slot has had
    doomed = False  # its worker is to be killed: nothing more is sent to it
    expired = False  # ... for being over a time limit
    expired_place: int | None = None
    gone = False  # ... and that was done
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

    def __repr__(self) -> str:
        job = f" {list(self.job.positions)}" if self.job is not None else ""
        return f"<Slot {self.index} {self.state.value}{job}>"


# --- decisions ----------------------------------------------------------------------------------------

# `slot` and `seq` are a slot and the number of its message.


class StartWorker(NamedTuple):
    """Open a worker for a slot and have it build its object, which shall see so many slots as ``n_jobs``."""

    slot: int
    seq: int
    limits: Limits
    n_jobs: int


class SendJob(NamedTuple):
    """Send a job to a slot's worker."""

    slot: int
    seq: int
    job: Job


class StopJob(NamedTuple):
    """Ask a worker to stop its message after the current item."""

    slot: int
    seq: int


class ShareJob(NamedTuple):
    """Ask a worker to give back what is left of its message, if that will take a while."""

    slot: int
    seq: int


class CloseWorker(NamedTuple):
    """End a slot's worker in an orderly way; if it is not the one of that life any more, it was killed meanwhile."""

    slot: int
    seq: int
    life: int


class KillWorker(NamedTuple):
    """End a slot's worker at once, if it still is the one of that life."""

    slot: int
    life: int


class Deliver(NamedTuple):
    """Hand an outcome to whom it concerns."""

    deliver: Callable[[Outcome], object]
    outcome: Outcome


class FailGroup(NamedTuple):
    """Something ended a whole group: tell its owner."""

    group: Group
    error: BaseException


Decision: TypeAlias = StartWorker | SendJob | StopJob | ShareJob | CloseWorker | KillWorker | Deliver | FailGroup
Decisions: TypeAlias = list[Decision]
