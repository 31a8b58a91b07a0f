"""Where the time of a map went, in a few lines, and as a picture."""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING, NamedTuple

from .._words import count

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .._scheduling._requests import Record
    from ._measures import Measures

# From these shares on something is said of what takes them.
_MUCH, _BUSY = 0.3, 0.8
_WIDTH, _LEFT, _ROW = 760, 90, 16
_COLOURS = {"work": "#4c9f70", "building": "#c9a227", "fault": "#c0392b", "input": "#3f7fbf", "waiting": "#9aa5b1"}
_MEANINGS = {
    "work": "the worker's code",
    "building": "building its object",
    "fault": "a worker was lost",
    "input": "pulling and packing the input",
    "waiting": "waiting for results",
}
# Things nearer than this are one in the picture, which may be of 10,000 messages.
_PIXELS = 0.5
_STEP_PIXELS = 100


class SlotReport(NamedTuple):
    """What one worker has done, in seconds."""

    slot: int
    work: float  # in its code
    building: float
    transport: float  # of items and results, and on their way
    n_items: int
    n_builds: int
    n_deaths: int


class Report:
    """Where the time of a map went.

    Attributes
    ----------
    seconds : float
        How long the map took, from its first ``next()`` to its end, or until now.
    n_items : int
        Items whose results were given.
    workers : list of SlotReport
        What each worker has done; seconds in its code, building, and of transport.
    busy : float
        The share of all workers' time in which they ran the worker's code, from 0 to 1.
    building, transport : float
        The shares of all workers' time that building and transport took.
    input, waiting, consumer : float
        The shares of the whole time in which the program's thread pulled and packed the input, waited for results, and was in
        the loop over them.
    advice : str
        What to change.
    """

    def __init__(
        self,
        *,
        seconds: float,
        n_items: int,
        n_at_once: int,
        workers: list[SlotReport],
        shares: dict[str, float],
        advice: str,
        spans: dict[str, list[tuple[float, float, str]]],
    ) -> None:
        self.seconds, self.n_items, self.workers, self.advice = seconds, n_items, workers, advice
        self._n_at_once = n_at_once
        self.busy, self.building, self.transport = shares["work"], shares["building"], shares["transport"]
        self.input, self.waiting, self.consumer = shares["input"], shares["waiting"], shares["consumer"]
        self._spans = spans

    def __str__(self) -> str:
        if not self.seconds:
            return "Nothing has started: the first result was not asked for."
        rate = f", {self.n_items / self.seconds:,.4g} per second" if self.n_items else ""
        own = max(0.0, 1 - self.input - self.waiting - self.consumer)
        lines = [
            f"{count(self.n_items, 'item')} in {self.seconds:.3g} s{rate}, by {count(len(self.workers), 'worker')}.",
            (
                f"Workers' time: {self.busy:.0%} in their code, {self.building:.0%} building, {self.transport:.0%} transport, "
                f"{max(0.0, 1 - self.busy - self.building - self.transport):.0%} with nothing to do."
            ),
            (
                f"The program's: {self.input:.0%} in the input, {self.waiting:.0%} waiting for results, "
                f"{self.consumer:.0%} in the loop over them, {own:.0%} in the map itself."
            ),
        ]
        lines += [
            f"  worker {worker.slot}: {self._how_busy(worker)}, {count(worker.n_items, 'item')}"
            + (f", built {worker.n_builds} times" if worker.n_builds > 1 else "")
            + (f", lost {count(worker.n_deaths, 'time')}" if worker.n_deaths else "")
            for worker in self.workers
        ]
        return "\n".join([*lines, self.advice])

    def _how_busy(self, worker: SlotReport) -> str:
        busy = worker.work / self.seconds
        return f"{busy:.0%} busy" if self._n_at_once == 1 else f"{busy:.1f} of {self._n_at_once} under way on average"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<div>{_picture(self._spans, self.seconds)}<pre>{html.escape(str(self))}</pre></div>"


def report_of(measures: Measures, *, n_jobs: int, n_items: int, n_at_once: int = 1, is_routed: bool = False) -> Report:
    """Return the report of a map, whose workers are ``n_jobs``, and at so many items at once."""
    seconds = measures.seconds
    workers = [
        SlotReport(slot, sums.work, sums.building, sums.transport, sums.n_items, sums.n_builds, sums.n_deaths)
        for slot, sums in sorted(measures.slots.copy().items())
    ]
    capacity = seconds * max(1, min(n_jobs, len(workers) or 1)) or 1.0
    whole, places = seconds or 1.0, capacity * n_at_once
    shares = {
        "work": min(1.0, sum(worker.work for worker in workers) / places),
        "building": min(1.0, sum(worker.building for worker in workers) / capacity),
        "transport": min(1.0, sum(worker.transport for worker in workers) / places),
        "input": min(1.0, measures.input / whole),
        "waiting": min(1.0, measures.waiting / whole),
        "consumer": max(0.0, min(1.0, 1 - measures.inside / whole)),
    }
    spans = _spans_of(measures)
    return Report(
        seconds=seconds,
        n_items=n_items,
        workers=workers,
        shares=shares,
        n_at_once=n_at_once,
        advice=_advice(
            shares,
            seconds,
            workers,
            _straggler(measures.records.copy()),
            n_at_once=n_at_once,
            is_routed=is_routed,
        ),
        spans=spans,
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
    if not any(worker.n_items or worker.n_deaths for worker in workers):
        return "No worker has done anything yet." if workers else "There was nothing to do."
    if straggler is not None and straggler[1] > _MUCH * seconds:
        record, alone, is_late = straggler
        which = f"Item {record.first}" if record.n_items == 1 and record.first is not None else "The last message"
        earlier = "put long items first, or cut them" if is_late else "cut it"
        return (
            f"{which} ran alone for {alone:.3g} s at the end, while the other workers had nothing to do: {earlier} into smaller "
            "ones."
        )
    most = max(workers, key=lambda worker: worker.work)
    if is_routed and most.work / (seconds * n_at_once) >= _BUSY and shares["work"] < _BUSY:
        return (
            f"Worker {most.slot} was busy {most.work / (seconds * n_at_once):.0%} of the time, and the others much less: the route gives it more "
            "than its share."
        )
    largest = max(_TOLD, key=shares.__getitem__)
    if shares["work"] >= _BUSY:
        return _advice_to_the_busy(shares, len(workers), n_at_once)
    if shares[largest] >= _MUCH:
        return _TOLD[largest].format(share=shares[largest])
    return (
        f"Nothing stands out: the workers were in their own code {shares['work']:.0%} of the time, and none of the rest takes much. "
        "They may have worked for somebody else, or there were too few items."
    )


def _advice_to_the_busy(shares: dict[str, float], n_workers: int, n_at_once: int) -> str:
    if n_at_once > 1:
        return (
            f"Of all places for items under way {shares['work']:.0%} are in use on average. If what the workers wait for can do "
            "more at once, raise max_concurrency."
        )
    more = " It is what to make faster, or give it more workers." if n_workers > 1 or shares["waiting"] else ""
    return f"The workers' own code takes {shares['work']:.0%} of their time.{more}"


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


# --- the picture ----------------------------------------------------------------------------------------


def _spans_of(measures: Measures) -> dict[str, list[tuple[float, float, str]]]:
    """Return rows of spans in seconds since the beginning."""
    began = measures.began or 0.0
    rows: dict[str, list[tuple[float, float, str]]] = {"program": []}
    for where, since, until in measures.stays.copy():
        rows["program"].append((since - began, until - began, where))
    for slot in sorted(measures.slots.copy()):
        rows[f"worker {slot}"] = []
    for record in measures.records.copy():
        kind = {"ran": "work", "built": "building"}.get(record.what, "fault")
        # What is not in the worker's code was on the way there and back. A worker's start belongs to building its object.
        half = max(0.0, record.received - record.sent - record.seconds) / 2 if kind == "work" else 0.0
        rows.setdefault(f"worker {record.slot}", []).append(
            (record.sent + half - began, record.received - half - began, kind)
        )
    return rows


def _picture(rows: dict[str, list[tuple[float, float, str]]], seconds: float) -> str:
    if not seconds:
        return ""
    scale, height = _WIDTH / seconds, _ROW * (len(rows) + 1) + 22
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 10}" height="{height}" '
            'font-family="sans-serif" font-size="11" role="img" aria-label="What each worker did, and when">'
        )
    ]
    for at, (name, spans) in enumerate(rows.items()):
        top = at * _ROW
        parts.append(f'<text x="0" y="{top + 12}" fill="currentColor">{html.escape(name)}</text>')
        parts.append(
            f'<rect x="{_LEFT}" y="{top + 2}" width="{_WIDTH}" height="{_ROW - 4}" fill="currentColor" opacity="0.07"/>'
        )
        parts += [
            f'<rect x="{_LEFT + since:.1f}" y="{top + 2}" width="{max(until - since, _PIXELS):.1f}" height="{_ROW - 4}" '
            f'fill="{_COLOURS[kind]}"/>'
            for since, until, kind in _merged(spans, scale)
        ]
    bottom = _ROW * len(rows) + 12
    step = _step(seconds)
    parts += [
        f'<text x="{_LEFT + at * step * scale:.1f}" y="{bottom}" fill="currentColor">{at * step:.3g} s</text>'
        for at in range(int(seconds / step) + 1)
        if at * step * scale < _WIDTH - _STEP_PIXELS / 3
    ]
    shown = {kind for spans in rows.values() for _, _, kind in spans}
    left = _LEFT
    for kind in (kind for kind in _MEANINGS if kind in shown):
        parts.append(f'<rect x="{left}" y="{bottom + 6}" width="10" height="10" fill="{_COLOURS[kind]}"/>')
        parts.append(f'<text x="{left + 14}" y="{bottom + 15}" fill="currentColor">{_MEANINGS[kind]}</text>')
        left += 26 + 6 * len(_MEANINGS[kind])
    return "".join([*parts, "</svg>"])


def _step(seconds: float) -> float:
    """Return the time between two marks: 1, 2 or 5 of some unit, and at least so many pixels."""
    least = seconds * _STEP_PIXELS / _WIDTH
    unit = 10.0 ** math.floor(math.log10(least))
    return next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= least)


def _merged(spans: Sequence[tuple[float, float, str]], scale: float) -> list[tuple[float, float, str]]:
    """Return spans in pixels, those of one kind that touch each other as one."""
    merged: list[tuple[float, float, str]] = []
    for since, until, kind in sorted(spans):
        left, right = max(0.0, since * scale), until * scale
        if merged and merged[-1][2] == kind and left - merged[-1][1] < _PIXELS:
            merged[-1] = merged[-1][0], max(merged[-1][1], right), kind
        else:
            merged.append((left, right, kind))
    return merged
