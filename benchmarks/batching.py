"""Share of two cores that the workers' own code gets, by batch length: what the constants of ``_batching`` rest on.

Each item spins for a while by the worker's own clock; "busy" is the time spent so over twice the wall time. The
last column is ``batch_size="auto"``, with its defaults. On a cluster items sleep, for its workers have cores of their own.

    python benchmarks/batching.py
    python benchmarks/batching.py --engine ray
"""

import argparse
import contextlib
import time
from collections.abc import Iterator

from joblib_stateful import StatefulExecutor, stateful_map


class Spin:
    """Burns CPU for a given time per item."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, _: int) -> float:
        started = time.thread_time()
        while time.thread_time() - started < self.seconds:
            pass
        return time.thread_time() - started


class Sleep:
    """Waits for a given time per item."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, _: int) -> float:
        started = time.perf_counter()
        time.sleep(self.seconds)
        return time.perf_counter() - started


def busy(seconds: float, batch_size: int | str, n: int, engine: str = "loky") -> float:
    worker = Spin if engine == "loky" else Sleep
    with StatefulExecutor(worker, 2, shared_kwargs={"seconds": seconds}, engine=engine) as executor:
        executor.warm_up()
        started = time.perf_counter()
        spun = sum(stateful_map(executor, range(n), batch_size=batch_size))  # type: ignore[arg-type]  # int or "auto"
        return spun / (2 * (time.perf_counter() - started))


@contextlib.contextmanager
def cluster(engine: str) -> Iterator[None]:
    """Start a cluster of two workers for an engine that needs one."""
    if engine == "ray":
        import ray

        ray.init(num_cpus=2, log_to_driver=False, logging_level="ERROR")
        yield
        ray.shutdown()
    elif engine == "dask":
        from distributed import Client

        with Client(n_workers=2, threads_per_worker=1, dashboard_address=None):
            yield
    else:
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=["loky", "dask", "ray"], default="loky")
    engine = parser.parse_args().engine
    with cluster(engine):
        if engine == "loky":
            table(engine, ((0.1, 1.0), (1.0, 1.0), (10.0, 1.2), (30.0, 1.2)))
        else:
            table(engine, ((1.0, 2.0), (12.0, 2.0), (20.0, 2.0), (40.0, 3.0), (80.0, 4.0), (150.0, 6.0)))


def table(engine: str, items: tuple[tuple[float, float], ...]) -> None:
    for milliseconds, total in items:
        seconds = milliseconds / 1000
        row = []
        for batch_ms in (0, 5, 20, 50, 80, 200):
            size = max(1, round(batch_ms / milliseconds))
            n = 2 * size * round(total / seconds / size)  # the same for both workers, for the end is not what is asked
            row.append(f"{batch_ms or milliseconds:g} ms: {busy(seconds, size, n, engine):.3f}")
        row.append(f"auto: {busy(seconds, 'auto', int(2 * total / seconds), engine):.3f}")
        print(f"items of {milliseconds:g} ms   " + "   ".join(row), flush=True)


if __name__ == "__main__":
    main()
