"""What the scheduler knows of a request, and what of it goes out in one message."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._requests import Request


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

    def __init__(
        self,
        call: Call,
        positions: Sequence[int],
        attempt: int = 1,
        avoid: int | None = None,
        *,
        is_alone: bool = False,
    ) -> None:
        self.call, self.positions, self.attempt = call, positions, attempt
        self.avoid = avoid  # the slot that this item's worker died in
        self.is_alone = is_alone  # its worker is to be at nothing else, or others would pay for what it may do
        self.only = call.request.only  # the slot that it must run in

    def some(self, positions: Sequence[int]) -> Job:
        """Return a job of some of its items."""
        return Job(self.call, positions, self.attempt, self.avoid, is_alone=self.is_alone)

    def split(self, positions: Sequence[int], parts: int) -> list[Job]:
        """Return jobs of about the same size for some of its items."""
        size = -(-len(positions) // parts)
        return [self.some(positions[at : at + size]) for at in range(0, len(positions), size)]

    def __repr__(self) -> str:
        return f"<Job {list(self.positions)}{'' if self.attempt == 1 else f' attempt {self.attempt}'}>"
