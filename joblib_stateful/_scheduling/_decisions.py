"""What the scheduler decides: one record for each thing that somebody else is to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._jobs import Job
    from ._requests import Group, Limits, Outcome

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
    """Ask a worker to stop its message after the current item, or with it, if nobody wants that and it can be cancelled."""

    slot: int
    seq: int
    is_unwanted: bool = False


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
