"""Ours and its peers on the same work, interleaved, each run in a process of its own.

    pip install ".[bench]" && python -m benchmarks

Peers that are not installed are left out. Each is shown at the best of its settings (sizes of batches, by the median),
ours with its defaults. Figures of different machines can't be compared, and this one's speed may change from second to
second: compare ratios, which are taken within each round.
"""

import argparse
import contextlib
import fnmatch
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from . import _report
from ._peers import ALL, BY_NAME
from ._workloads import BY_NAME as WORKLOADS_BY_NAME
from ._workloads import WORKLOADS, Workload, loop, loops_of_a_microsecond

LIMIT_SECONDS = 120


def run_here(workload: str, peer: str, setting: int | None, loops: int) -> None:
    """Print the figures of one run, and end with all that it started."""
    figures = WORKLOADS_BY_NAME[workload].run(BY_NAME[peer], setting, loops)
    print(json.dumps(figures), flush=True)
    import psutil

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "resource_tracker" not in " ".join(child.cmdline()):  # they tidy up after us, and end
                child.kill()
    os._exit(0)


def run(workload: Workload, peer: str, setting: int | None, loops: int) -> dict[str, float] | None:
    """Return the figures of one run, or None if it failed."""
    asked = json.dumps([workload.name, peer, setting, loops])
    started = time.clock_gettime(time.CLOCK_MONOTONIC)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks", "--one", asked],
            check=True,
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            # An installed package is compiled, also where one that is being worked at must not be.
            env={name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        print(f"{workload.name}: {peer} failed: {error}\n{str(error.stderr)[-2000:]}", file=sys.stderr)
        return None
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    if "at" in figures:
        figures["figure"] = figures["at"] - started
    return figures


def seconds_taken_away() -> float:
    """Return how long a machine beneath this one has kept its cores from running, in all since it was started."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
        return int(fields[8]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):  # not Linux
        return 0.0


def chosen(patterns: list[str], names: list[str]) -> list[str]:
    return [name for name in names if not patterns or any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]


def plan(workloads: list[str], peers: list[str]) -> Iterator[tuple[Workload, str, int | None]]:
    for workload in filter(Workload.is_there, WORKLOADS):
        for _ in range(workload.repeats):
            for peer in ALL:
                if workload.name in workloads and peer.name in peers and peer.is_there() and workload.takes(peer):
                    for setting in workload.settings(peer):
                        yield workload, peer.name, setting


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workloads", nargs="*", default=[], help="names or patterns, such as 'W1*'")
    parser.add_argument("--peers", nargs="*", default=[], help="likewise")
    parser.add_argument("--docs", type=Path, help="folder to write performance_figures.md and performance.svg into")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        run_here(*json.loads(options.one))
        return
    steps = list(
        plan(
            chosen(options.workloads, [workload.name for workload in WORKLOADS]),
            ["joblib_stateful", *chosen(options.peers, [peer.name for peer in ALL])],
        )
    )
    loops = loops_of_a_microsecond()
    found: _report.Runs = {}
    speeds = []
    began, taken_away = time.perf_counter(), seconds_taken_away()
    for number in range(options.rounds):
        for count, (workload, peer, setting) in enumerate(steps):
            started = time.perf_counter()
            loop(1000 * loops)
            speeds.append((time.perf_counter() - started) * 1e3)
            print(f"\rround {number + 1}: {count + 1} of {len(steps)}  ", end="", file=sys.stderr, flush=True)
            figures = run(workload, peer, setting, loops)
            found.setdefault((workload.name, peer, setting), []).append(figures and figures["figure"])
        cores = (os.cpu_count() or 1) * (time.perf_counter() - began)
        report = _report.table(found, speeds, (seconds_taken_away() - taken_away) / cores)
        if options.docs:  # after each round, for one may not want to wait for the last
            (options.docs / "performance_figures.md").write_text(report + "\n")
            _report.draw(found, options.docs / "performance.svg")
    print(file=sys.stderr)
    print(report)


if __name__ == "__main__":
    main()
