"""Where the time of an executor's workers went, and what to change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._measuring._picture import rows_of
from .._measuring._report import BUSY, MUCH, Report, advice_to_the_busy, shares_of
from .._words import count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .._measuring._measures import Measures, SlotReport
    from .._measuring._report import Shares
    from .._scheduling._requests import Record

# One worker that has done so many times what the others did on average does more than its share.
_TIMES = 4


def report_of(measures: Measures, under_way: Sequence[Record], *, n_at_once: int) -> Report:
    """Return the report of an executor, whose workers are at so many items at once."""
    seconds, workers, records = measures.seconds, measures.of_workers(under_way), measures.records
    shares = shares_of(workers, seconds, n_at_once)
    return Report(
        seconds=seconds,
        n_items=sum(worker.n_items for worker in workers),
        workers=workers,
        shares=shares,
        n_at_once=n_at_once,
        advice=_advice(shares, seconds, workers, n_at_once),
        rows=rows_of([*records, *under_way], (worker.slot for worker in workers), measures.began or 0.0),
    )


def _advice(shares: Shares, seconds: float, workers: Sequence[SlotReport], n_at_once: int) -> str:
    if not any(worker.n_items or worker.n_deaths or worker.work for worker in workers):
        return "No worker has done anything yet."
    return _of_losses(workers) + _of_time(shares, seconds * n_at_once, workers, n_at_once)


def _of_losses(workers: Sequence[SlotReport]) -> str:
    most = max(workers, key=lambda worker: worker.n_deaths)
    total = sum(worker.n_deaths for worker in workers)
    if not total:
        return ""
    where = f", {'all' if most.n_deaths == total else 'most'} of them in slot {most.slot}" if total > 1 else ""
    return (
        f"Workers were lost {count(total, 'time')}{where}; each takes with it what it is at, and its object is built again: the "
        "errors of its calls say why. "
    )


def _of_time(shares: Shares, whole: float, workers: Sequence[SlotReport], n_at_once: int) -> str:
    if shares.building >= max(MUCH, shares.transport):
        return (
            f"Building the objects takes {shares.building:.0%} of the workers' time: keep them for longer (a larger idle_timeout "
            "or max_tasks_per_worker), give them more to do, load less, or use fewer workers."
        )
    if shares.transport >= MUCH:
        return (
            f"Transport takes {shares.transport:.0%} of the workers' time: send names or numbers instead of data, return less, or "
            "do more in one call (stateful_map sends many tiny items in one message)."
        )
    if shares.work >= BUSY:
        return advice_to_the_busy(shares.work, n_at_once, " It is what to make faster, or give it more workers.")
    most = max(workers, key=lambda worker: worker.work)
    others = sum(worker.work for worker in workers) - most.work
    if most.work >= MUCH * whole and most.work * (len(workers) - 1) > _TIMES * others:
        return (
            f"Worker {most.slot} was busy {most.work / whole:.0%} of the time, and the others much less: what only it may run "
            "(submit_to, route=) is more than its share, or there was seldom more than one call to run."
        )
    if shares.idle > 1 - MUCH:
        return (
            f"The workers had nothing to do {shares.idle:.0%} of the time: submit more calls before you wait for the first, or use "
            "fewer workers; idle_timeout= has objects closed meanwhile."
        )
    return f"Nothing stands out: the workers were in their own code {shares.work:.0%} of the time, and none of the rest takes much."
