"""What an item costs, and what memory the parent takes, from a thousand items to ten million, from 2 slots to 64, and from
1 kB to 100 MB an item. Nothing should grow with the number of items, and little with that of slots.

Each line is a process of its own. Memory is the highest that it ever was (VmHWM), and what it was at the end (VmRSS).

    python benchmarks/sizes.py
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COUNTS = (1_000, 100_000, 10_000_000)
SLOTS = (2, 4, 16, 64)
# Bytes of an item, and how many.
WEIGHTS = ((1_000, 100_000), (100_000, 5_000), (1_000_000, 1_000), (10_000_000, 100), (100_000_000, 10))


def same(item: Any) -> Any:
    return item


def arrays(size: int, count: int) -> Iterator[Any]:
    import numpy as np

    for number in range(count):
        yield np.full(size, number % 100, dtype=np.uint8)


def memory() -> dict[str, float]:
    status = Path("/proc/self/status").read_text()
    return {name: int(status.split(f"{name}:")[1].split()[0]) / 1024 for name in ("VmHWM", "VmRSS")}


def run_one(slots: int, size: int, count: int) -> dict[str, float]:
    from joblib_stateful import stateful_map

    def items(n: int) -> Any:
        return arrays(size, n) if size else iter(range(n))

    for _ in stateful_map(same, items(4 * slots), n_jobs=slots, batch_size=1):
        pass
    before = memory()["VmRSS"]
    started = time.perf_counter()
    n_given = sum(1 for _ in stateful_map(same, items(count), n_jobs=slots))
    seconds = time.perf_counter() - started
    assert n_given == count
    n_open, n_threads = len(os.listdir("/proc/self/fd")), threading.active_count()  # noqa: PTH208 - shorter
    return {"us": seconds / count * 1e6, "before": before, "files": n_open, "threads": n_threads, **memory()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=3, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run_one(*options.one)))
        return
    print(
        f"{'slots':>6}{'bytes':>14}{'items':>12}{'us/item':>12}{'MiB before':>12}{'peak':>8}{'after':>8}{'files':>8}{'threads':>9}"
    )
    plan = [
        *((2, 0, count) for count in COUNTS),
        *((slots, 0, 100_000) for slots in SLOTS),
        *((2, size, count) for size, count in WEIGHTS),
    ]
    for slots, size, count in plan:
        command = [sys.executable, __file__, "--one", *map(str, (slots, size, count))]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        cost = f"{found['us']:>12,.1f}{found['before']:>12,.0f}{found['VmHWM']:>8,.0f}{found['VmRSS']:>8,.0f}"
        print(
            f"{slots:>6}{size or 'a number':>14}{count:>12,}{cost}{found['files']:>8}{found['threads']:>9}", flush=True
        )


if __name__ == "__main__":
    main()
