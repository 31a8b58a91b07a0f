"""Whoever asks a scheduler for something, and hears what became of it: each item once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from joblib_stateful import errors
from joblib_stateful._scheduling._requests import NO_LIMITS, Group, Limits, Outcome, Request

if TYPE_CHECKING:
    from collections.abc import Collection

    from joblib_stateful._scheduling._jobs import Call
    from joblib_stateful._worker._messages import AfterError, Mode


class Asked:
    """A request of so many items, of which some could not be packed, and what its owner has heard."""

    def __init__(
        self,
        size: int,
        group: Group,
        limits: Limits = NO_LIMITS,
        *,
        after_error: AfterError = "go_on",
        budget: float | None = None,
        first: int | None = None,
        unsent: Collection[int] = (),
        mode: Mode = "call",
        only: int | None = None,
        is_urgent: bool = False,
    ) -> None:
        faults = {position: errors.TransferError(position, "item", "a lock") for position in unsent}
        self.request = Request(
            size,
            group,
            self.hear,
            limits,
            after_error=after_error,
            budget=budget,
            indices=None if first is None else range(first, first + size),
            faults=faults,
            mode=mode,
            only=only,
            is_urgent=is_urgent,
        )
        self.size, self.group, self.limits, self.after_error = size, group, limits, after_error
        self.values: list[Any] = [None] * size
        self.errors: dict[int, BaseException] = {}
        self.dropped: set[int] = set()
        self.heard_of: set[int] = set()
        self.fatal: BaseException | None = None
        self.is_settled = False

    def hear(self, outcome: Outcome) -> None:
        """Take note of an outcome."""
        positions = set(outcome.positions)
        assert positions
        assert len(positions) == len(outcome.positions)
        assert not self.is_settled, "something comes after the last outcome"
        assert not positions & self.heard_of, "an item's outcome comes twice"
        assert positions <= set(range(self.size))
        self.heard_of |= positions
        self.fatal = outcome.fatal
        if outcome.is_dropped:
            assert not outcome.values
            assert not outcome.errors
            self.dropped |= positions
        else:
            for position, value in zip(outcome.positions, outcome.values, strict=True):
                self.values[position] = value
            assert set(outcome.errors) <= positions
            self.errors.update(outcome.errors)
        self.is_settled = outcome.is_last
        assert self.is_settled == (len(self.heard_of) == self.size), "the last outcome is that of the last items"

    @property
    def missing(self) -> int:
        """Items of which nothing was heard."""
        return self.size - len(self.heard_of)


def who_asked(call: Call) -> Asked:
    """Return whose call it is."""
    found: Asked = call.request.deliver.__self__  # type: ignore[attr-defined]  # the method above
    return found
