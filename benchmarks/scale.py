"""How many slots one parent can keep busy: a simulation with the in-memory engine.

The parent's part is real and timed: packing each item, deciding, unpacking each result. The workers' time is simulated:
items take 10 ms or 1 s; one in a hundred takes twenty times as long, one in a thousand takes its worker down, and a new
worker is there after a second. The parent does one thing after the other, so that a result waits while it is busy.
One item per message, which is the worst case: batches divide the parent's work by their size.

Then what the first calls of an executor without workers take, and its shutdown, in CPU time: twice as many slots should take
about twice as long.

    python benchmarks/scale.py [--most 10000]
"""

import argparse
import heapq
import random
import subprocess
import sys
import time
from dataclasses import dataclass, field

import psutil

from joblib_stateful import StatefulExecutor
from joblib_stateful.testing import MemoryEngine, MemoryWorker

STRAGGLERS, TIMES_AS_LONG, CRASHES, START_SECONDS = 0.01, 20, 0.001, 1.0


def identity(item: int) -> int:
    return item


@dataclass
class Cluster:
    """Slots whose workers take simulated time, and a parent whose real time is added to it."""

    n_slots: int
    seconds: float
    n_items: int
    chance: random.Random
    now: float = 0.0  # when the parent is free
    busy: float = 0.0  # all workers together
    n_sent: int = 0
    n_done: int = 0
    own: float = 0.0  # the parent's seconds
    events: list[tuple[float, int, MemoryWorker]] = field(default_factory=list)

    def run(self) -> tuple[float, float, float]:
        """Return decisions a second, the share of the time in which slots were busy, and MB per 1,000 slots."""
        before = psutil.Process().memory_info().rss
        engine = MemoryEngine()
        with StatefulExecutor(n_jobs=self.n_slots, engine=engine, retries=10, max_restarts=10**6) as executor:
            self._submit(executor, self.n_slots)
            for worker in engine.workers[:]:
                worker.answer()  # its build
            self.own = self.now = 0.0
            for worker in engine.workers[:]:
                self._begin(worker)
            self._submit(executor, self.n_slots)  # so that the next item is there when one ends
            memory = psutil.Process().memory_info().rss - before
            while self.events:
                self._step(executor, engine)
        assert self.n_done == self.n_items
        return self.n_done / self.own, self.busy / (self.n_slots * self.now), memory / 1e6 / self.n_slots * 1000

    def _submit(self, executor: StatefulExecutor, count: int) -> None:
        for _ in range(min(count, self.n_items - self.n_sent)):
            executor.submit(identity, self.n_sent).add_done_callback(self._count)
            self.n_sent += 1

    def _count(self, _: object) -> None:
        self.n_done += 1

    def _begin(self, worker: MemoryWorker, extra: float = 0.0) -> None:
        seconds = self.seconds * (TIMES_AS_LONG if self.chance.random() < STRAGGLERS else 1)
        self.busy += seconds
        heapq.heappush(self.events, (self.now + extra + seconds, id(worker), worker))

    def _step(self, executor: StatefulExecutor, engine: MemoryEngine) -> None:
        due, _, worker = heapq.heappop(self.events)
        n_workers = len(engine.workers)
        started = time.perf_counter()
        crashes = self.chance.random() < CRASHES
        if crashes:
            worker.crash()
        else:
            worker.answer()
        self._submit(executor, 1)
        spent = time.perf_counter() - started
        self.own += spent
        self.now = max(self.now, due) + spent
        if worker.pending is not None:
            self._begin(worker)
        if crashes or len(engine.workers) > n_workers:
            started_now = engine.workers[n_workers:]
            for one in started_now:
                one.answer()  # its build
            # The item that is tried again may have gone to any slot that was idle.
            waiting = {id(one) for _, _, one in self.events}
            for one in engine.pending:
                if id(one) not in waiting:
                    self._begin(one, START_SECONDS if one in started_now else 0.0)


def start_and_end(n_slots: int) -> tuple[float, float]:
    """Return the CPU time in which an executor with so many slots begins to work, and ends."""
    engine = MemoryEngine()
    executor = StatefulExecutor(n_jobs=n_slots, engine=engine)
    before = time.process_time()
    for item in range(n_slots):
        executor.submit(identity, item)
    start = time.process_time() - before
    engine.answer_all()
    before = time.process_time()
    executor.shutdown()
    return start, time.process_time() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=10_000)
    parser.add_argument("--one", nargs=2, type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        seconds, n_slots = options.one[0], int(options.one[1])
        # Enough for a second of parallel work at least, so that the end, where slots run dry, does not count much.
        n_items = min(200_000, max(2_000, n_slots * (30 if seconds >= 1 else 300)))
        rate, share, memory = Cluster(n_slots, seconds, n_items, random.Random(0)).run()
        print(f"{n_slots:>7,}{seconds:>6g} s{rate:>14,.0f}{share:>12.2f}{memory:>20.1f}", flush=True)
        return
    print(f"{'slots':>7}{'item':>8}{'decisions/s':>14}{'slots busy':>12}{'MB per 1,000 slots':>20}", flush=True)
    for seconds in (0.01, 1.0):
        for n_slots in (1, 10, 100, 1_000, 10_000):
            if n_slots <= options.most:
                subprocess.run([sys.executable, __file__, "--one", str(seconds), str(n_slots)], check=True)
    print(f"\n{'slots':>7}{'start':>10}{'shutdown':>10}")
    for n_slots in (500, 1_000, 2_000, 4_000):
        if n_slots <= options.most:
            start, end = start_and_end(n_slots)
            print(f"{n_slots:>7,}{start:>8.3f} s{end:>8.3f} s", flush=True)


if __name__ == "__main__":
    main()
