"""The records of scheduling: slots, jobs, and the decisions that the schedule hands out."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, TypeAlias

from ._records import NO_LIMITS, Call, Group, Limits, Report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._messages import Death


class State(enum.Enum):
    """What a slot is doing."""

    EMPTY = "empty"
    BUILDING = "building"
    IDLE = "idle"
    BUSY = "busy"
    CLOSING = "closing"


class Job:
    """Items of one call that go out in one message; never changed."""

    def __init__(self, call: Call, positions: Sequence[int], attempt: int = 1, avoid: int | None = None) -> None:
        self.call, self.positions, self.attempt = call, positions, attempt
        self.avoid = avoid  # the slot that this item's worker died in

    def some(self, positions: Sequence[int]) -> Job:
        """Return a job of some of its items."""
        return Job(self.call, positions, self.attempt, self.avoid)

    def note(self, report: Report) -> Sequence[int]:
        """Enter into the call what became of these items; return the positions of those that were not run."""
        call = self.call
        if report.n_run == call.size and not report.errors:
            call.values = report.values
        else:
            for place, position in enumerate(self.positions[: report.n_run]):
                call.values[position] = report.values[place]
                if place in report.errors:
                    call.errors[position] = report.errors[place]
            call.news.extend(self.positions[: report.n_run])
        call.missing -= report.n_run
        call.seconds += report.seconds
        call.result_bytes += report.result_bytes
        return self.positions[report.n_run :]

    def split(self, positions: Sequence[int], parts: int) -> list[Job]:
        """Return jobs of about the same size for some of its items."""
        size = -(-len(positions) // parts)
        return [self.some(positions[at : at + size]) for at in range(0, len(positions), size)]


class Slot:
    """What is known of one slot."""

    state: State = State.EMPTY
    job: Job | None = None
    seq = 0  # of the latest message
    group: Group | None = None  # for whom it is being built
    limits = NO_LIMITS  # of that group
    kwargs_keys: tuple[str, ...] = ()  # what its object is built from, for messages
    warm = False  # to be built even if no job waits
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


class _ForSlot:
    """Something to do with a slot's worker, and the number of its message."""

    def __init__(self, slot: int, seq: int) -> None:
        self.slot, self.seq = slot, seq


class StartWorker(_ForSlot):
    """Open a worker for a slot and have it build its object."""

    def __init__(self, slot: int, seq: int, limits: Limits, n_jobs: int) -> None:
        super().__init__(slot, seq)
        self.limits, self.n_jobs = limits, n_jobs  # the latter as its object shall see it


class SendJob(_ForSlot):
    """Send a job to a slot's worker."""

    def __init__(self, slot: int, seq: int, job: Job) -> None:
        super().__init__(slot, seq)
        self.job = job


class StopJob(_ForSlot):
    """Ask a worker to stop its message after the current item."""


class ShareJob(_ForSlot):
    """Ask a worker to give back what is left of its message, if that will take a while."""


class CloseWorker(_ForSlot):
    """End a slot's worker in an orderly way; if it is not the one of that life any more, it was killed meanwhile."""

    def __init__(self, slot: int, seq: int, life: int) -> None:
        super().__init__(slot, seq)
        self.life = life


class KillWorker:
    """End a slot's worker at once, if it still is the one of that life."""

    def __init__(self, slot: int, life: int) -> None:
        self.slot, self.life = slot, life


class Settle:
    """A call is done with: tell its owner."""

    def __init__(self, call: Call) -> None:
        self.call = call


class FailGroup:
    """Something ended a whole group: tell its owner."""

    def __init__(self, group: Group, error: BaseException) -> None:
        self.group, self.error = group, error


Decision: TypeAlias = StartWorker | SendJob | StopJob | ShareJob | CloseWorker | KillWorker | Settle | FailGroup
Decisions: TypeAlias = list[Decision]
