"""Where the time of some workers went, in a few lines, and as a picture."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, NamedTuple

from .._words import count
from ._picture import picture_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._measures import SlotReport
    from ._picture import Span

# From these shares on something is said of what takes them.
MUCH, BUSY = 0.3, 0.8


class Shares(NamedTuple):
    """The shares of all workers' time that something took, from 0 to 1."""

    work: float
    building: float
    transport: float

    @property
    def idle(self) -> float:
        """What is left: they had nothing to do."""
        return max(0.0, 1 - sum(self))


class Report:
    """Where the time of an executor's workers went, or that of a map.

    Attributes
    ----------
    seconds : float
        How long it took: a map from its first ``next()`` to its end, or until now; an executor's workers from the start of
        the first one until now, or to the end of the last one.
    n_items : int
        Of a map, the items whose results were given; of an executor, the items and calls that were run.
    workers : list of SlotReport
        What each worker has done; seconds in its code, building, and of transport.
    busy : float
        The share of all workers' time in which they ran the worker's code, from 0 to 1.
    building, transport : float
        The shares of all workers' time that building and transport took.
    input, waiting, consumer : float or None
        The shares of the whole time in which the program's thread pulled and packed a map's input, waited for results, and
        was in the loop over them. None for an executor, which has neither.
    advice : str
        What to change.
    """

    input: float | None = None
    waiting: float | None = None
    consumer: float | None = None

    def __init__(
        self,
        *,
        seconds: float,
        n_items: int,
        n_at_once: int,
        workers: Sequence[SlotReport],
        shares: Shares,
        advice: str,
        rows: dict[str, list[Span]],
    ) -> None:
        self.seconds, self.n_items, self.workers, self.advice = seconds, n_items, list(workers), advice
        self._n_at_once, self._shares, self._rows = n_at_once, shares, rows
        self.busy, self.building, self.transport = shares

    def __str__(self) -> str:
        if not self.seconds:
            return self._nothing()
        rate = f", {self.n_items / self.seconds:,.4g} per second" if self.n_items else ""
        lines = [
            f"{count(self.n_items, 'item')} in {self.seconds:.3g} s{rate}, by {count(len(self.workers), 'worker')}.",
            (
                f"Workers' time: {self.busy:.0%} in their code, {self.building:.0%} building, {self.transport:.0%} transport, "
                f"{self._shares.idle:.0%} with nothing to do."
            ),
            *self._more_lines(),
        ]
        lines += [
            f"  worker {worker.slot}: {self._how_busy(worker)}, {count(worker.n_items, 'item')}"
            + (f", built {worker.n_builds} times" if worker.n_builds > 1 else "")
            + (f", lost {count(worker.n_deaths, 'time')}" if worker.n_deaths else "")
            for worker in self.workers
        ]
        return "\n".join([*lines, self.advice])

    def _nothing(self) -> str:
        return "Nothing has started: no worker was needed yet."

    def _more_lines(self) -> list[str]:
        return []

    def _how_busy(self, worker: SlotReport) -> str:
        busy = worker.work / self.seconds
        return f"{busy:.0%} busy" if self._n_at_once == 1 else f"{busy:.1f} of {self._n_at_once} under way on average"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<div>{picture_of(self._rows, self.seconds)}<pre>{html.escape(str(self))}</pre></div>"


def shares_of(workers: Sequence[SlotReport], seconds: float, n_at_once: int) -> Shares:
    """Return what took which share of the time of some workers that are at so many items at once."""
    capacity = seconds * max(1, len(workers)) or 1.0
    places = capacity * n_at_once
    return Shares(
        min(1.0, sum(worker.work for worker in workers) / places),
        min(1.0, sum(worker.building for worker in workers) / capacity),
        min(1.0, sum(worker.transport for worker in workers) / places),
    )


def advice_to_the_busy(share: float, n_at_once: int, more: str) -> str:
    """Say what to change where nearly all of the time is spent in the workers' own code."""
    if n_at_once > 1:
        return (
            f"Of all places for items under way {share:.0%} are in use on average. If what the workers wait for can do "
            "more at once, raise max_concurrency."
        )
    return f"The workers' own code takes {share:.0%} of their time.{more}"
