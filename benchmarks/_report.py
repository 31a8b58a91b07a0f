"""Figures as a table of ratios and as a picture."""

import importlib.metadata
import os
import platform
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

from ._peers import ALL, OURS, TwoProcesses
from ._workloads import WORKLOADS, Workload

# By workload, peer and setting: a figure per round, None where the run failed.
Runs = dict[tuple[str, str, int | None], list[float | None]]
Best = dict[str, tuple[int | None, list[float | None]]]


def best_of_each(runs: Runs, workload: Workload) -> Best:
    """Return each peer's best setting, by the median, and its figures; the best peer first."""
    best: Best = {}
    order = _order(workload)
    for (name, peer, setting), figures in runs.items():
        if name == workload.name and median(figures) is not None:
            known = best.get(peer)
            if known is None or order(figures) < order(known[1]):
                best[peer] = (setting, figures)
    return dict(sorted(best.items(), key=lambda item: order(item[1][1])))


def _order(workload: Workload) -> Callable[[Iterable[float | None]], float]:
    def key(figures: Iterable[float | None]) -> float:
        middle = median(figures)
        assert middle is not None
        return -middle if workload.better == "more" else middle

    return key


def median(figures: Iterable[float | None]) -> float | None:
    known = [figure for figure in figures if figure is not None]
    return statistics.median(known) if known else None


def ratios(workload: Workload, ours: list[float | None], theirs: list[float | None]) -> list[float]:
    """Return how much better ours is, round by round: over 1 is better."""
    pairs = [(mine, other) for mine, other in zip(ours, theirs, strict=True) if mine and other]
    return [mine / other if workload.better == "more" else other / mine for mine, other in pairs]


def table(runs: Runs, speeds: list[float], taken_away: float) -> str:
    """Return the tables as Markdown; ``taken_away`` is the share of the cores' time that others have had (steal)."""
    machine = f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    speed = f"{min(speeds):.2f} to {max(speeds):.2f} ms, median {statistics.median(speeds):.2f}"
    speed += f"; a machine beneath this one had {taken_away:.1%} of the cores' time"
    lines = [
        f"{machine}; {', '.join(_versions(runs))}. A loop of one millisecond took {speed}.",
        "",
        "| workload | ours | best peer | ours to it | ours to joblib | ours to loky | ours to two bare processes | aim |",
        "|---|---|---|---|---|---|---|---|",
    ]
    details = [
        "| workload | every peer at every setting, as a multiple of ours (over 1: better than ours) |",
        "|---|---|",
    ]
    for workload in WORKLOADS:
        best = best_of_each(runs, workload)
        ours = best.pop(OURS, (None, []))[1]
        if not ours:
            continue
        limit = best.pop(TwoProcesses.name, (None, []))[1]
        row = [workload.name, _figure(ours, workload.unit)]
        if best:
            peer, (setting, figures) = next(iter(best.items()))
            row.append(f"{peer}{_setting(setting)}: {_figure(figures, workload.unit)}")
            row.append(_ratio(ratios(workload, ours, figures)))
        else:
            row += ["", ""]
        for peer in ("joblib", "loky"):
            row.append(_ratio(ratios(workload, ours, best[peer][1])) if peer in best else "")
        row.append(_ratio(ratios(workload, ours, limit)) if limit else "")
        lines.append(f"| {' | '.join([*row, workload.goal])} |")
        others = [
            f"{peer}{_setting(setting)} {1 / statistics.median(of):.2f}"
            for peer in best
            for (name, other, setting), figures in runs.items()
            if (name, other) == (workload.name, peer) and (of := ratios(workload, ours, figures))
        ]
        details.append(f"| {workload.name}: {workload.what} | {', '.join(others)} |")
    return "\n".join([*lines, "", *details])


def _versions(runs: Runs) -> list[str]:
    needs = {peer.needs for peer in ALL if peer.needs and any(name == peer.name for _, name, _ in runs)}
    return [f"{name} {importlib.metadata.version(name)}" for name in sorted(needs)]


def _setting(setting: int | None) -> str:
    return "" if setting is None else f" ({setting})"


def _figure(figures: list[float | None], unit: str) -> str:
    middle = median(figures) or 0.0
    return f"{middle:,.0f} {unit}" if middle >= 100 else f"{middle:.3g} {unit}"


def _ratio(of: list[float]) -> str:
    return f"**{statistics.median(of):.2f}** ({min(of):.2f} to {max(of):.2f})" if of else ""


def draw(runs: Runs, path: Path) -> None:
    """Draw every peer's figure as a multiple of ours."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "joblib_stateful"  # the same figures make the same file
    from matplotlib import pyplot as plt

    shown = [workload for workload in WORKLOADS if len(best_of_each(runs, workload).keys() - {TwoProcesses.name}) > 1]
    figure, axes = plt.subplots(figsize=(9, 1 + 0.4 * len(shown)), layout="constrained")
    markers = dict(zip([peer.name for peer in ALL], "*osDv^<>Pphd8|", strict=True))
    for peer in ALL:
        places, values = [], []
        for number, workload in enumerate(shown):
            best = best_of_each(runs, workload)
            if peer.name != OURS and peer.name in best and (of := ratios(workload, best[OURS][1], best[peer.name][1])):
                places.append(number)
                values.append(1 / statistics.median(of))
        if values:
            axes.scatter(values, places, marker=markers[peer.name], s=36, alpha=0.8, label=peer.name)
    axes.axvline(1, color="black", linewidth=1.2)
    axes.set_xscale("log")
    axes.set_yticks(range(len(shown)), [workload.name for workload in shown])
    axes.invert_yaxis()
    axes.grid(axis="both", alpha=0.25)
    axes.set_xlabel("as good as joblib_stateful, times (line: joblib_stateful with its defaults; right of it: better)")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    figure.savefig(path, format="svg", metadata={"Date": None})
