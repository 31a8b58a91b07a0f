"""Share of two cores that the workers' own code gets, by batch length: what the constants of ``_batching`` rest on.

Each item spins for a while by the worker's own clock; "busy" is the time spent so over twice the wall time. The
last column is ``batch_size="auto"``, with its defaults.

    python benchmarks/batching.py
"""

import time

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


def busy(seconds: float, batch_size: int | str, n: int) -> float:
    with StatefulExecutor(Spin, 2, shared_kwargs={"seconds": seconds}) as executor:
        executor.warm_up()
        started = time.perf_counter()
        spun = sum(stateful_map(executor, range(n), batch_size=batch_size))  # type: ignore[arg-type]  # int or "auto"
        return spun / (2 * (time.perf_counter() - started))


def main() -> None:
    for milliseconds, total in ((0.1, 1.0), (1.0, 1.0), (10.0, 1.2), (30.0, 1.2)):
        seconds = milliseconds / 1000
        row = []
        for batch_ms in (0, 5, 20, 50, 80, 200):
            size = max(1, round(batch_ms / milliseconds))
            n = 2 * size * round(total / seconds / size)  # the same for both workers, for the end is not what is asked
            row.append(f"{batch_ms or milliseconds:g} ms: {busy(seconds, size, n):.3f}")
        row.append(f"auto: {busy(seconds, 'auto', int(2 * total / seconds)):.3f}")
        print(f"items of {milliseconds:g} ms   " + "   ".join(row), flush=True)


if __name__ == "__main__":
    main()
