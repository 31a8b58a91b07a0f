"""The jobs that wait: those for any slot in one queue, and those for one slot only in that slot's own."""

from __future__ import annotations

from collections import deque
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ._jobs import Job
    from ._requests import Group


class JobQueue:
    """Jobs in the order in which they are to be sent."""

    def __init__(self) -> None:
        self.common: deque[Job] = deque()
        #: By slot; only those for which something waits.
        self.own: dict[int, deque[Job]] = {}
        self._held: dict[Group, deque[Job]] = {}  # those of groups that are held

    def __len__(self) -> int:
        return sum(map(len, self._queues()))

    def __bool__(self) -> bool:
        return bool(self.common or self.own) or any(self._held.values())

    def __iter__(self) -> Iterator[Job]:
        return chain.from_iterable(self._queues())

    def _queues(self) -> Iterator[deque[Job]]:
        return chain((self.common,), self.own.values(), self._held.values())

    def __repr__(self) -> str:
        own = {slot: len(jobs) for slot, jobs in self.own.items()}
        return f"<JobQueue {len(self.common)} for any slot{f', {own} for one' * bool(own)}>"

    def append(self, job: Job) -> None:
        """Put a job behind all others, or, if it is urgent, before those for the same slot."""
        if job.call.request.is_urgent:
            self.put_back(job)
        elif self._held and job.call.group in self._held:
            self._held[job.call.group].append(job)
        elif job.only is None:
            self.common.append(job)
        else:
            self.own.setdefault(job.only, deque()).append(job)

    def put_back(self, job: Job) -> None:
        """Put a job in front of all others for the same slots."""
        jobs = self._held.get(job.call.group) if self._held else None
        if jobs is None:
            jobs = self.common if job.only is None else self.own.setdefault(job.only, deque())
        jobs.appendleft(job)

    def hold(self, group: Group) -> None:
        """Take the jobs of a group aside, also those that come, until `let_go`."""
        if group not in self._held:
            self._held[group] = deque(self.remove(lambda job: job.call.group is group))

    def let_go(self, group: Group) -> deque[Job]:
        """Return what was taken aside of a group, in order; it is to be put back."""
        return self._held.pop(group)

    def take_own(self, slot: int) -> Job:
        """Take the first job that is for a slot only."""
        jobs = self.own[slot]
        job = jobs.popleft()
        if not jobs:
            del self.own[slot]
        return job

    def remove(self, is_unwanted: Callable[[Job], bool]) -> list[Job]:
        """Take out those that are not wanted any more, and return them."""
        removed = [job for job in self if is_unwanted(job)]
        if removed:
            self.common = deque(job for job in self.common if not is_unwanted(job))
            kept = {slot: deque(job for job in jobs if not is_unwanted(job)) for slot, jobs in self.own.items()}
            self.own = {slot: jobs for slot, jobs in kept.items() if jobs}
            for group, jobs in self._held.items():
                self._held[group] = deque(job for job in jobs if not is_unwanted(job))
        return removed
