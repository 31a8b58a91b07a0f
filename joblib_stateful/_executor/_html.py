"""What notebooks show of an executor: its slots, as a table."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .._public import WorkerInfo

_HEADS = ("slot", "state", "pid", "items done", "built", "lost", "last built in", "busy for")


def table_of(title: str, infos: Iterable[WorkerInfo]) -> str:
    """Return a table with a row for each slot."""
    heads = "".join(f"<th>{head}</th>" for head in _HEADS)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells_of(info)) + "</tr>" for info in infos
    )
    return f"<div>{html.escape(title)}<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"


def _cells_of(info: WorkerInfo) -> tuple[str, ...]:
    return (
        str(info.index),
        info.state,
        "" if info.pid is None else str(info.pid),
        f"{info.n_done:,}",
        str(info.n_builds),
        str(info.n_restarts),
        "" if info.init_seconds is None else f"{info.init_seconds:.3g} s",
        f"{info.busy_seconds:.3g} s",
    )
