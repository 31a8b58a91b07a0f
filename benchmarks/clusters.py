"""Overhead per item on a cluster of two processes: ours, Ray's ActorPool and Dask's own actors, side by side.

All on one cluster each, warm, interleaved; items do next to nothing. The peers get one item per call, as their users
write it; ActorPool and Dask's actors know no batches. Then one array of 100 MB for each of 20 tasks.

    python benchmarks/clusters.py [--rounds 3]
"""

import argparse
import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from joblib import Parallel, delayed, parallel_config

import joblib_stateful
from joblib_stateful import stateful_map

N_ONE, N_AUTO, N_TASKS, MEGABYTES = 1_000, 50_000, 20, 100


class Adder:
    """Adds to each item."""

    def __init__(self, what: int = 1) -> None:
        self.what = what

    def __call__(self, item: int) -> int:
        return item + self.what

    def add(self, item: int) -> int:
        return item + self.what


def look(array: Any, number: int) -> float:
    return float(array[number])


def ours(engine: str, count: int, batch_size: Any) -> None:
    assert sum(1 for _ in stateful_map(Adder, range(count), n_jobs=2, engine=engine, batch_size=batch_size)) == count


def ours_array(engine: str, array: Any) -> None:
    with parallel_config(backend="stateful", n_jobs=2, engine=engine):
        assert Parallel(batch_size=1)(delayed(look)(array, number) for number in range(N_TASKS))[1] == array[1]


def measure(ways: dict[str, tuple[int, Callable[[], None]]], rounds: int) -> None:
    found: dict[str, list[float]] = {way: [] for way in ways}
    for function in (function for _, function in ways.values()):
        function()
    for _ in range(rounds):
        for way, (count, function) in ways.items():
            started = time.perf_counter()
            function()
            found[way].append((time.perf_counter() - started) / count)
    for way, seconds in found.items():
        middle = statistics.median(seconds)
        print(f"{way:44}{middle * 1e6:>10,.0f} µs an item   ({min(seconds) * 1e6:,.0f} to {max(seconds) * 1e6:,.0f})")


def on_ray(rounds: int, array: Any) -> None:
    import ray
    from ray.util import ActorPool

    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    pool = ActorPool([ray.remote(Adder).remote() for _ in range(2)])

    def actor_pool() -> None:
        assert sum(1 for _ in pool.map(lambda actor, item: actor.add.remote(item), range(N_ONE))) == N_ONE

    task = ray.remote(look)

    def ray_array() -> None:
        reference = ray.put(array)
        assert ray.get([task.remote(reference, number) for number in range(N_TASKS)])[1] == array[1]

    measure(
        {
            "Ray ActorPool": (N_ONE, actor_pool),
            'ours, engine="ray", batch_size=1': (N_ONE, lambda: ours("ray", N_ONE, 1)),
            'ours, engine="ray"': (N_AUTO, lambda: ours("ray", N_AUTO, "auto")),
            f"ray.put, {MEGABYTES} MB for each of {N_TASKS} tasks": (N_TASKS, ray_array),
            f"ours, {MEGABYTES} MB for each of {N_TASKS} tasks": (N_TASKS, lambda: ours_array("ray", array)),
        },
        rounds,
    )
    joblib_stateful.shutdown()
    ray.shutdown()


def on_dask(rounds: int, array: Any) -> None:
    from distributed import Client

    with Client(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as client:
        actors = [client.submit(Adder, actor=True, pure=False).result() for _ in range(2)]

        def dask_actors() -> None:
            waiting = deque((actor, actor.add(0)) for actor in actors)
            for item in range(1, N_ONE - 1):
                actor, future = waiting.popleft()
                future.result()
                waiting.append((actor, actor.add(item)))
            for _, future in waiting:
                future.result()

        def dask_array() -> None:
            future = client.scatter(array, broadcast=True, hash=False)
            futures = client.map(look, [future] * N_TASKS, range(N_TASKS), pure=False)
            assert client.gather(futures)[1] == array[1]

        measure(
            {
                "Dask actors": (N_ONE, dask_actors),
                'ours, engine="dask", batch_size=1': (N_ONE, lambda: ours("dask", N_ONE, 1)),
                'ours, engine="dask"': (N_AUTO, lambda: ours("dask", N_AUTO, "auto")),
                f"client.scatter, {MEGABYTES} MB for each of {N_TASKS} tasks": (N_TASKS, dask_array),
                f"ours, {MEGABYTES} MB for each of {N_TASKS} tasks": (N_TASKS, lambda: ours_array("dask", array)),
            },
            rounds,
        )
        joblib_stateful.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    array = np.random.default_rng(0).random(MEGABYTES * 125_000)
    on_ray(options.rounds, array)
    on_dask(options.rounds, array)


if __name__ == "__main__":
    main()
