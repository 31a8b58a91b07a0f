"""A torch module as a kwarg of two workers: time from the call to the first results of both, and memory.

The other way is joblib's: an initializer that gets the module. Each runs in a process of its own, in turn, and medians are shown.
In the time is the start of two workers, each of which imports torch; shown beside it is what that takes with a tiny module.
Memory is what the program and its workers hold together beyond what they hold with the tiny one, as a multiple of the
module's size.

    pip install ".[libraries]" && python benchmarks/module_kwarg.py [--rounds 5] [--megabytes 50] [--before FOLDER]
"""

import argparse
import builtins
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

N_JOBS = 2


class Holder:
    """Has a module, and says what it makes of an item."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(self, item: int) -> float:
        time.sleep(0.02)  # so that both workers get some
        return item + float(self.module.bias.detach()[0])


def hold(module: Any) -> None:
    vars(builtins)["held"] = Holder(
        module
    )  # a global of this program would be another one in each function that is sent


def use(item: int) -> float:
    result: float = vars(builtins)["held"](item)
    return result


def make(megabytes: float) -> Any:
    import torch

    return torch.nn.Linear(1024, max(1, int(megabytes * 2**20) // 4096))


def run(way: str, module: Any) -> float:
    """Return the seconds until each worker has given its first results."""
    from joblib import Parallel, delayed, parallel_config

    if way == "joblib":
        started = time.perf_counter()
        with parallel_config("loky", n_jobs=N_JOBS, initializer=hold, initargs=(module,)):
            Parallel()(delayed(use)(item) for item in range(2 * N_JOBS))
        return time.perf_counter() - started
    from joblib_stateful import stateful_map

    started = time.perf_counter()
    list(stateful_map(Holder, range(2 * N_JOBS), n_jobs=N_JOBS, shared_kwargs={"module": module}, batch_size=1))
    return time.perf_counter() - started


def held() -> int:
    """Return what this process and its children hold, each shared page once, in bytes."""
    me = psutil.Process()
    total: int = sum(process.memory_full_info().pss for process in (me, *me.children(recursive=True)))
    return total


def run_one(way: str, megabytes: float) -> dict[str, float]:
    """Return the seconds, and the copies of the module that there are."""
    tiny, module = make(0.01), make(megabytes)
    run(way, make(0.02))  # what is imported once
    tiny_seconds = run(way, tiny)
    before = held()
    seconds = run(way, module)
    return {
        "s": seconds,
        "s with a tiny one": tiny_seconds,
        "copies, with the program's own": 1 + (held() - before) / (megabytes * 2**20),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=float, default=50)
    parser.add_argument("--before", help="folder of another build, which takes turns")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run_one(options.one, options.megabytes)))
        return
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(options.rounds):
        for way in ("now", "joblib", *["before"] * bool(options.before)):
            folder = options.before if way == "before" else str(Path(__file__).parents[1])
            command = [sys.executable, __file__, "--one", way, "--megabytes", str(options.megabytes)]
            done = subprocess.run(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": folder}, check=True)
            found.setdefault(way, []).append(json.loads(done.stdout))
    for way, results in found.items():
        row = (f"{statistics.median(one[key] for one in results):.3g} {key}" for key in results[0])
        print(f"{way:10}" + ", ".join(row), flush=True)


if __name__ == "__main__":
    main()
