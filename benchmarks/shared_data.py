"""What one array of 200 MB costs that every one of 50 tasks gets: time, and memory of the workers' own.

Each way is run in a process of its own, interleaved. The tasks themselves look at their process's USS, which is what
would be free if it ended: an array that both workers map counts for neither. The median is shown, for until the second
worker maps the array it counts as the first one's. (joblib's own backend can't be asked not to map: with
``mmap_mode=None`` it breaks, as of joblib 1.6.)

    python benchmarks/shared_data.py [--rounds 3]
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np
import psutil

MEGABYTES, TASKS = 200, 50
WAYS = {
    "stateful": {"backend": "stateful"},
    "stateful, mmap_mode=None": {"backend": "stateful", "mmap_mode": None},
    "joblib's loky": {"backend": "loky"},
}


def column_sum(array: Any, number: int) -> tuple[float, float]:
    total = float(array[:, number].sum())
    return total, psutil.Process().memory_full_info().uss / 1e6


def run_one(way: str) -> dict[str, float]:
    """Return the seconds that it took, and the median USS of a worker in MB."""
    from joblib import Parallel, delayed

    import joblib_stateful  # noqa: F401 - it registers the backend

    array = np.random.default_rng(0).random((MEGABYTES * 125_000 // TASKS, TASKS))
    with Parallel(n_jobs=2, **WAYS[way]) as parallel:
        parallel(delayed(abs)(-1) for _ in range(4))
        started = time.perf_counter()
        found = parallel(delayed(column_sum)(array, number) for number in range(TASKS))
        seconds = time.perf_counter() - started
    np.testing.assert_allclose([total for total, _ in found], array.sum(axis=0))
    return {"seconds": seconds, "uss": statistics.median(uss for _, uss in found)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run_one(options.one)))
        return
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(options.rounds):
        for way, runs in found.items():
            command = [sys.executable, __file__, "--one", way]
            runs.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    print(f"{'':28}{'time (ratio)':>14}{'USS, MB':>10}")
    medians = {
        way: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for way, runs in found.items()
    }
    base = medians["joblib's loky"]["seconds"]
    for way, median in medians.items():
        print(f"{way:28}{median['seconds'] / base:>14.2f}{median['uss']:>10.0f}")


if __name__ == "__main__":
    main()
