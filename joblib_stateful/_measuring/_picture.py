"""A timeline: what each worker did, and when, as SVG."""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .._scheduling._requests import Record

#: What somebody was at, in seconds since the beginning.
Span = tuple[float, float, str]

_WIDTH, _LEFT, _ROW = 760, 90, 16
_COLOURS = {"work": "#4c9f70", "building": "#c9a227", "fault": "#c0392b", "input": "#3f7fbf", "waiting": "#9aa5b1"}
_MEANINGS = {
    "work": "the worker's code",
    "building": "building its object",
    "fault": "a worker was lost",
    "input": "pulling and packing the input",
    "waiting": "waiting for results",
}
_KINDS = {"ran": "work", "running": "work", "built": "building", "building": "building"}
# Things nearer than this are one in the picture, which may be of 10,000 messages.
_PIXELS = 0.5
_STEP_PIXELS = 100


def rows_of(records: Iterable[Record], slots: Iterable[int], began: float) -> dict[str, list[Span]]:
    """Return a row for each worker, with what it was at."""
    rows: dict[str, list[Span]] = {f"worker {slot}": [] for slot in slots}
    for record in records:
        kind = _KINDS.get(record.what, "fault")
        # What is not in the worker's code was on the way there and back. A worker's start belongs to building its object.
        half = max(0.0, record.received - record.sent - record.seconds) / 2 if record.what == "ran" else 0.0
        rows.setdefault(f"worker {record.slot}", []).append(
            (record.sent + half - began, record.received - half - began, kind)
        )
    return rows


def picture_of(rows: dict[str, list[Span]], seconds: float) -> str:
    """Return the picture of some rows by name; nothing if nothing has begun."""
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


def _merged(spans: Sequence[Span], scale: float) -> list[Span]:
    """Return spans in pixels, those of one kind that touch each other as one."""
    merged: list[Span] = []
    for since, until, kind in sorted(spans):
        left, right = max(0.0, since * scale), until * scale
        if merged and merged[-1][2] == kind and left - merged[-1][1] < _PIXELS:
            merged[-1] = merged[-1][0], max(merged[-1][1], right), kind
        else:
            merged.append((left, right, kind))
    return merged
