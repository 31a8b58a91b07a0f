"""What a tiny item costs beyond its own work: CPU time on either side, by the part that spends it.

Items are integers that come back as they are, in batches as large as the default makes them. The clock is the thread's
own, so other programs disturb little; the least of several runs is shown.

    python benchmarks/items.py [--items 100000]
"""

import argparse
import math
import time
from collections.abc import Callable

from joblib_stateful import shutdown, stateful_map
from joblib_stateful._transport._transport import Pickled
from joblib_stateful._worker._messages import Run
from joblib_stateful._worker._progress_page import Progress
from joblib_stateful._worker._worker import Worker
from joblib_stateful.engines.loky._shared_numbers import SharedNumbers


class Echo:
    """Gives back what it gets."""

    def __call__(self, item: int) -> int:
        return item


def nanoseconds(run: Callable[[], object], count: int) -> float:
    """Return what each of ``count`` items costs this thread at best."""
    least = float("inf")
    for _ in range(7):
        started = time.thread_time()
        run()
        least = min(least, time.thread_time() - started)
    return least / count * 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    count = parser.parse_args().items
    transport, numbers, echo = Pickled(), SharedNumbers(Progress.SIZE), Echo()
    worker = Worker(transport, Progress(numbers.values))
    worker.object, worker.has_object = echo, True
    parcel, _ = transport.pack_all(range(count))
    message = Run(1, "item", None, None, parcel, "drop", timed=False, budget=60.0)

    def call() -> None:
        for item in range(count):
            echo(item)

    def pack() -> None:
        packing = transport.packing()
        packing.fill(list(range(count)), max_bytes=math.inf)
        packing.finish()

    def pull() -> None:
        packing = transport.packing()
        packing.pull((item for item in range(count)), count, until=time.perf_counter() + 60, max_bytes=2**40)
        packing.finish()

    def consume() -> None:
        for _ in stateful_map(Echo, range(count), n_jobs=2):
            pass

    consume()  # builds the workers
    rows = (
        ("the item's own work", call),
        ("... by a worker, which unpacks it, notes it, packs its result", lambda: worker.handle(message)),
        ("packing it in the parent", pack),
        ("... if it comes from a generator, which makes it", pull),
        ("the consumer's thread in all", consume),
    )
    print(f"{'':62} ns/item")
    for name, run in rows:
        print(f"{name:62} {nanoseconds(run, count):7.0f}")
    shutdown()


if __name__ == "__main__":
    main()
