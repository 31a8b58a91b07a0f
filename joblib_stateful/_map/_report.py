"""Where the time of a map went: besides its workers', the program's own, and what to change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._measuring._picture import rows_of
from .._measuring._report import BUSY, MUCH, Report, advice_to_the_busy, shares_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .._measuring._measures import SlotReport
    from .._scheduling._requests import Record
    from ._measures import MapMeasures


class MapReport(Report):
    """Where the time of a map went; of its attributes none is None."""

    input: float
    waiting: float
    consumer: float

    def __init__(self, *, of_program: dict[str, float], **of_workers: Any) -> None:
        super().__init__(**of_workers)
        self.input, self.waiting, self.consumer = (of_program[name] for name in ("input", "waiting", "consumer"))

    def _nothing(self) -> str:
        return "Nothing has started: the first result was not asked for."

    def _more_lines(self) -> list[str]:
        own = max(0.0, 1 - self.input - self.waiting - self.consumer)
        return [
            (
                f"The program's: {self.input:.0%} in the input, {self.waiting:.0%} waiting for results, "
                f"{self.consumer:.0%} in the loop over them, {own:.0%} in the map itself."
            )
        ]


def report_of(
    measures: MapMeasures,
    under_way: Sequence[Record] = (),
    *,
    n_items: int,
    n_at_once: int = 1,
    is_routed: bool = False,
) -> MapReport:
    """Return the report of a map that has given so many items, and whose workers are at so many at once."""
    seconds, workers, records = measures.seconds, measures.of_workers(under_way), measures.records
    began, whole = measures.began or 0.0, seconds or 1.0
    of_program = {
        "input": min(1.0, measures.input / whole),
        "waiting": min(1.0, measures.waiting / whole),
        "consumer": max(0.0, min(1.0, 1 - measures.inside / whole)),
    }
    shares = shares_of(workers, seconds, n_at_once)
    stays = [(since - began, until - began, where) for where, since, until in measures.stays.copy()]
    return MapReport(
        seconds=seconds,
        n_items=n_items,
        workers=workers,
        shares=shares,
        of_program=of_program,
        n_at_once=n_at_once,
        advice=_advice(
            {**shares._asdict(), **of_program},
            seconds,
            workers,
            _straggler(records),
            n_at_once=n_at_once,
            is_routed=is_routed,
        ),
        rows={"program": stays, **rows_of([*records, *under_way], (worker.slot for worker in workers), began)},
    )


def _straggler(records: Iterable[Record]) -> tuple[Record, float, bool] | None:
    """Return the message that ran last and alone, for how many seconds, and whether it could have begun earlier."""
    ran = sorted((record for record in records if record.what == "ran"), key=lambda record: record.received)
    if len({record.slot for record in ran}) < 2:  # noqa: PLR2004 - there was nobody who could have done something else
        return None
    last, before = ran[-1], ran[-2]
    is_late = any(record.received <= last.sent for record in ran)
    return last, last.received - max(before.received, last.sent), is_late


def _advice(
    shares: dict[str, float],
    seconds: float,
    workers: list[SlotReport],
    straggler: tuple[Record, float, bool] | None,
    *,
    n_at_once: int,
    is_routed: bool,
) -> str:
    if not any(worker.n_items or worker.n_deaths or worker.work for worker in workers):
        return "No worker has done anything yet." if workers else "There was nothing to do."
    if straggler is not None and straggler[1] > MUCH * seconds:
        record, alone, is_late = straggler
        which = f"Item {record.first}" if record.n_items == 1 and record.first is not None else "The last message"
        earlier = "put long items first, or cut them" if is_late else "cut it"
        return (
            f"{which} ran alone for {alone:.3g} s at the end, while the other workers had nothing to do: {earlier} into smaller "
            "ones."
        )
    most = max(workers, key=lambda worker: worker.work)
    if is_routed and most.work / (seconds * n_at_once) >= BUSY and shares["work"] < BUSY:
        return (
            f"Worker {most.slot} was busy {most.work / (seconds * n_at_once):.0%} of the time, and the others much less: the route gives it more "
            "than its share."
        )
    largest = max(_TOLD, key=shares.__getitem__)
    if shares["work"] >= BUSY:
        could_be_more = len(workers) > 1 or shares["waiting"]
        more = " It is what to make faster, or give it more workers." if could_be_more else ""
        return advice_to_the_busy(shares["work"], n_at_once, more)
    if shares[largest] >= MUCH:
        return _TOLD[largest].format(share=shares[largest])
    return (
        f"Nothing stands out: the workers were in their own code {shares['work']:.0%} of the time, and none of the rest takes much. "
        "They may have worked for somebody else, or there were too few items."
    )


_TOLD = {
    "input": (
        "The input takes {share:.0%} of the time, with its own code, route= and the packing of what it yields: workers wait for "
        "items. Have the workers read what it reads, and yield names or numbers instead."
    ),
    "consumer": (
        "The loop over the results takes {share:.0%} of the time: workers wait for room in the buffer. Do less in it, or have the "
        "workers do it; a larger buffer= helps only against ups and downs."
    ),
    "building": (
        "Building the objects takes {share:.0%} of the workers' time: build them once for several maps (a StatefulExecutor, or the "
        "same worker again), load less, or use fewer workers."
    ),
    "transport": (
        "Transport takes {share:.0%} of the workers' time: send names or numbers instead of data, return less, or send more tiny "
        "items in one message (a larger batch_size)."
    ),
}
