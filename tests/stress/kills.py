"""Kills random workers at random moments, and checks that every item is delivered exactly once.

    python tests/stress/kills.py --kills 500
    python tests/stress/kills.py --kills 500 --seconds 600   # again and again, until the time is over

One round is four maps, each of which goes on until its share of the kills is done: ordered and unordered, with
retries (nothing may be lost) and without (each lost item is a `WorkerCrashedError` that names a worker that was
killed, no two of them the same one). Items take 0 to 50 ms and give 1 byte or 50 MB; some weigh 5 MB themselves,
and each worker is built from 40 MB. Half of all that are bytes, which go through pipes, and half arrays, which go
through shared memory.
A map that delivers nothing for a minute is a hang: all threads' stacks are printed and the program ends.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil

from joblib_stateful import StatefulExecutor, errors, stateful_map

N_JOBS = 3
LARGE_RESULT, LARGE_ITEM, WEIGHTS = 50_000_000, 5_000_000, 20_000_000
KINDS = (bytes, np.ndarray)
STALLED_SECONDS = 60
# Process numbers come round again, and what others have left is not ours.
_BEFORE = {path.name for path in Path("/dev/shm").iterdir()} if Path("/dev/shm").is_dir() else set()
SETTLED_SECONDS = 5


@dataclass(frozen=True)
class Data:
    """One byte many times over, as bytes or as an array."""

    number: int
    payload: bytes | np.ndarray[Any, np.dtype[np.uint8]]

    @classmethod
    def make(cls, number: int, size: int, kind: type) -> Data:
        byte = number % 256
        return cls(number, bytes([byte]) * size if kind is bytes else np.full(size, byte, np.uint8))

    def check(self, *sizes: int) -> int:
        """Return the size, if all is as it was made."""
        assert len(self.payload) in sizes, (self.number, len(self.payload))
        assert bytes(self.payload).count(self.number % 256) == len(self.payload), self.number
        return len(self.payload)


@dataclass(frozen=True)
class Item:
    """What an item takes, and what it gives."""

    data: Data
    seconds: float
    size: int
    kind: type


class Worker:
    """Takes the time that its item says, and gives a result of the size that it says."""

    def __init__(self, **weights: Data) -> None:
        for data in weights.values():
            data.check(WEIGHTS)
        self.weights = weights

    def __call__(self, item: Item) -> Data:
        item.data.check(0, LARGE_ITEM)
        time.sleep(item.seconds)
        return Data.make(item.data.number, item.size, item.kind)


def weights() -> dict[str, Data]:
    return {kind.__name__: Data.make(7, WEIGHTS, kind) for kind in KINDS}


class Killer:
    """A thread that kills random workers of an executor, wherever they are in their lives."""

    def __init__(self, executor: StatefulExecutor, n_kills: int, chance: random.Random) -> None:
        self.executor, self.n_kills, self.chance = executor, n_kills, chance
        self.killed: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="killer")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def is_done(self) -> bool:
        return len(self.killed) >= self.n_kills

    def _run(self) -> None:
        while not self.is_done and not self._stop.wait(self.chance.random() * 0.4):
            pids = {info.pid for info in self.executor.workers() if info.pid}
            # A process that died a moment ago may be listed still; don't hit a stranger that got its number.
            pids &= {child.pid for child in psutil.Process().children()}
            pids -= set(self.killed)
            if pids:
                victim = self.chance.choice(sorted(pids))
                os.kill(victim, signal.SIGKILL)
                self.killed.append(victim)


@dataclass
class Held:
    """What this process holds that must come back to where it was."""

    files: int
    threads: int
    children: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    @classmethod
    def now(cls, pids: set[int]) -> Held:
        children = []
        for child in psutil.Process().children(recursive=True):
            try:
                command = " ".join(child.cmdline())
            except psutil.NoSuchProcess:
                continue
            if "resource_tracker" not in command:
                children.append(f"{child.pid} {command}")
        shm = Path("/dev/shm")
        ours = {str(pid) for pid in pids | {os.getpid()}}
        names = {path.name for path in shm.iterdir()} - _BEFORE if shm.is_dir() else set()
        left = [name for name in names if ours & set(name.split("-"))]
        left += [path.name for path in Path(tempfile.gettempdir()).iterdir()]
        return cls(len(list(Path("/proc/self/fd").iterdir())), threading.active_count(), children, left)

    def is_within(self, before: Held) -> bool:
        return self.files <= before.files and self.threads <= before.threads and not self.children and not self.left


def run_map(*, ordered: bool, retries: int, n_kills: int, seed: int) -> str:
    """Map until so many workers were killed; return a line that says what happened."""
    chance = random.Random(seed)
    batch_size = (1, 5, "auto")[seed % 3]
    on_error = "immediate" if retries else "deferred"
    n_pulled = 0

    def items() -> Iterator[Item]:
        nonlocal n_pulled
        while not killer.is_done:
            size = LARGE_RESULT if chance.random() < 0.02 else 1
            weight = LARGE_ITEM if chance.random() < 0.02 else 0
            data = Data.make(n_pulled, weight, chance.choice(KINDS))
            yield Item(data, chance.random() * 0.05, size, chance.choice(KINDS))
            n_pulled += 1

    delivered: list[int] = []
    lost: list[errors.WorkerCrashedError] = []
    n_bytes, told = 0, 0.0
    options: dict[str, Any] = {"ordered": ordered, "batch_size": batch_size, "on_error": on_error, "retries": retries}
    with (
        StatefulExecutor(Worker, N_JOBS, shared_kwargs=weights(), max_restarts=10**9) as executor,
        Killer(executor, n_kills, random.Random(seed + 1)) as killer,
    ):
        for result in stateful_map(executor, items(), **options):
            value = result if retries else result.value
            if value is None:
                error = result.exception
                assert isinstance(error, errors.WorkerCrashedError), repr(error)
                assert error.index == result.index, error
                lost.append(error)
                delivered.append(result.index)
            else:
                assert retries or value.number == result.index, (value.number, result.index)
                n_bytes += value.check(1, LARGE_RESULT)
                delivered.append(value.number)
            if (now := time.monotonic()) - told > 1:
                told = now
                faulthandler.dump_traceback_later(STALLED_SECONDS, exit=True)
                show(f"  {len(killer.killed)}/{n_kills} kills, {len(delivered)} items, {len(lost)} lost")
    killed = killer.killed
    assert (delivered if ordered else sorted(delivered)) == list(range(n_pulled)), "lost, doubled or out of order"
    assert len(killed) == len(set(killed)) == n_kills
    guilty = [error.pid for error in lost]
    assert len(guilty) == len(set(guilty)), "one kill cost two items"
    assert set(guilty) <= set(killed), "blamed a worker that nobody killed"
    assert all(error.exitcode == -signal.SIGKILL for error in lost), [error.exitcode for error in lost]
    assert not (retries and lost)
    SEEN.update(killed)
    how = f"{'ordered' if ordered else 'unordered'}, retries={retries}, batch_size={batch_size}"
    return f"{how}: {n_kills} kills, {n_pulled} items, {n_bytes / 1e9:.1f} GB, {len(lost)} lost"


# The workers that were killed, by whose numbers left files are told.
SEEN: set[int] = set()


def settled(before: Held) -> Held:
    """Return what is held once that is no more than before, or when the time for it is over."""
    deadline = time.monotonic() + SETTLED_SECONDS
    while not (held := Held.now(SEEN)).is_within(before) and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.05)  # polled, because threads of loky's can't be waited for
    return held


def alive() -> Counter[str]:
    """Count the objects that are ours or loky's: what keeps a left file alive is among them, if anything does."""
    kinds = Counter(f"{type(one).__module__}.{type(one).__qualname__}" for one in gc.get_objects())
    return Counter({kind: n for kind, n in kinds.items() if kind.startswith(("loky.", "joblib_stateful."))})


def show(text: str, end: str = "\r") -> None:
    if end == "\n" or sys.stdout.isatty():
        print(f"{text:<100}" if end == "\r" else text, end=end, flush=True)


def run_round(n_kills: int, seed: int, before: Held) -> None:
    for retries in (10**6, 0):
        for ordered in (True, False):
            share = n_kills // 2 + (n_kills % 2 if ordered else 0)
            faulthandler.dump_traceback_later(STALLED_SECONDS, exit=True)
            started = time.monotonic()
            line = run_map(ordered=ordered, retries=retries, n_kills=share, seed=seed)
            held = settled(before)
            assert held.is_within(before), f"left behind: {held}, before: {before}, alive: {alive()}"
            rss = psutil.Process().memory_info().rss / 1e6
            show(
                f"{line}, {time.monotonic() - started:.0f} s, {held.files} fds, {held.threads} threads, {rss:.0f} MB",
                "\n",
            )
            seed += 1


def start_what_is_kept() -> None:
    """Start what is started once and kept, such as resource trackers, because that is no leak."""
    with StatefulExecutor(Worker, N_JOBS, shared_kwargs=weights()) as executor:
        executor.warm_up()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=500, help="kills with retries, and as many without")
    parser.add_argument("--seconds", type=float, default=0, help="start rounds until this time is over")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    options = parser.parse_args()
    started, n_rounds = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        start_what_is_kept()
        before = settled(Held(sys.maxsize, sys.maxsize))
        print(f"seed {options.seed}; at the start {before.files} fds, {before.threads} threads", flush=True)
        while n_rounds == 0 or time.monotonic() - started < options.seconds:
            run_round(options.kills, options.seed + 10 * n_rounds, before)
            n_rounds += 1
        tempfile.tempdir = None
    faulthandler.cancel_dump_traceback_later()
    print(
        f"ok: {n_rounds} rounds, {2 * options.kills * n_rounds} kills, nothing lost, nothing twice, nothing left, "
        f"{time.monotonic() - started:.0f} s",
    )


if __name__ == "__main__":
    main()
