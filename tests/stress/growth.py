"""See that nothing grows: many maps in a row on one executor, and many executors opened and closed.

Prints a table of what this process holds at each step, and fails if the last steps hold more than the first::

    python tests/stress/growth.py --maps 2000 --executors 200

"Hooks" are what `threading` calls at the end of the interpreter: loky adds one each time that a pool starts, and we
replace our own.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from loky.backend import resource_tracker as lokys_tracker

from joblib_stateful import StatefulExecutor, call_worker, get_worker_info, stateful_map

# What ends in the background has this long to do so before it counts as left behind.
_PATIENCE = 10.0
# Memory that an allocator may keep, in MiB: a leak of 8 kB per map, or 80 kB per executor, is seen.
_SLACK_MIB = 16.0
_MIB = 2**20


class Echo:
    """Returns what it is given, with ballast."""

    def __init__(self) -> None:
        self.slot = get_worker_info().index

    def __call__(self, item: int) -> tuple[int, bytes]:
        if item == 13:
            raise ValueError(item)
        return item, bytes(100_000 if item % 10 == 0 else 1)


@dataclass(frozen=True)
class Held:
    """What this process holds at one moment."""

    done: int
    files: int
    threads: int
    children: int
    shared: int
    hooks: int
    own_mib: float
    worker_mib: float

    @classmethod
    def now(cls, done: int) -> Held:
        gc.collect()
        process = psutil.Process()
        own = [child for child in process.children(recursive=True) if not is_tracker(child)]
        shm = Path("/dev/shm")
        return cls(
            done=done,
            files=process.num_fds(),
            threads=threading.active_count(),
            children=len(own),
            shared=sum(f"-{os.getpid()}-" in path.name for path in shm.iterdir()) if shm.is_dir() else 0,
            hooks=len(getattr(threading, "_threading_atexits", ())),
            own_mib=process.memory_info().rss / _MIB,
            worker_mib=sum(map(rss, own)) / _MIB,
        )

    @classmethod
    def at_rest(cls, done: int, before: Held | None) -> Held:
        """Return what is held once all that is ending has ended."""
        deadline = time.monotonic() + _PATIENCE
        while (held := cls.now(done)).counts > (before or held).counts and time.monotonic() < deadline:
            time.sleep(0.02)  # threads of loky's can't be waited for
        return held

    @property
    def counts(self) -> tuple[int, ...]:
        return self.files, self.threads, self.children, self.shared

    def __str__(self) -> str:
        return (
            f"{self.done:9d} {self.files:6d} {self.threads:8d} {self.children:9d} {self.shared:9d} {self.hooks:6d} "
            f"{self.own_mib:8.1f} {self.worker_mib:12.1f}"
        )


HEADER = "     done  files  threads  children  /dev/shm  hooks  RSS MiB  workers' MiB"


def is_tracker(process: psutil.Process) -> bool:
    try:
        return "resource_tracker" in " ".join(process.cmdline()) or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def rss(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def one_map(executor: StatefulExecutor, number: int) -> None:
    """Map as users do: to the end in either order, with an exception, with errors kept, and left early."""
    way = number % 5
    if way == 3:
        found = [result.ok for result in stateful_map(executor, range(20), on_error="deferred")]
        assert found.count(False) == 1, found
        return
    try:
        results = stateful_map(executor, range(20 if way == 2 else 13), ordered=way != 1)
        for count, (item, ballast) in enumerate(results):
            assert len(ballast) == (100_000 if item % 10 == 0 else 1)
            if way == 4 and count == 3:
                break
    except ValueError as error:
        assert way == 2, error
    else:
        assert way != 2


def many_maps(count: int) -> Iterator[int]:
    """Map many times on one executor."""
    with StatefulExecutor(Echo, 2) as executor:
        executor.warm_up()
        before = [info.pid for info in executor.workers()]
        for number in range(count):
            one_map(executor, number)
            yield number + 1
        infos = executor.workers()
        assert [info.pid for info in infos] == before, "a worker was replaced"
        assert [info.n_builds for info in infos] == [1, 1], "an object was built twice"


def many_executors(count: int) -> Iterator[int]:
    """Open and close many executors, one after the other."""
    for number in range(count):
        with StatefulExecutor(Echo, 2, item_timeout=60) as executor:
            futures = [executor.submit(call_worker, item) for item in (1, 10)]
            assert [future.result()[0] for future in futures] == [1, 10]
            assert len(list(stateful_map(executor, range(12)))) == 12
        yield number + 1


def watch(title: str, run: Callable[[int], Iterator[int]], count: int, steps: int = 10) -> list[str]:
    """Do something so often, print what is held at each step, and return what has grown."""
    print(f"{title}\n{HEADER}", flush=True)
    rows: list[Held] = []
    at = {max(1, count * step // steps) for step in range(1, steps + 1)}
    for done in run(count):
        if done in at:
            rows.append(Held.at_rest(done, rows[0] if rows else None))
            print(rows[-1], flush=True)
    first, last = rows[0], rows[-1]
    names = ("files", "threads", "children", "/dev/shm")
    grown = [
        f"{title}: {name} {old} -> {new}"
        for name, old, new in zip(names, first.counts, last.counts, strict=True)
        if new > old
    ]
    for name, old_mib, new_mib in (
        ("RSS", first.own_mib, last.own_mib),
        ("workers' RSS", first.worker_mib, last.worker_mib),
    ):
        if new_mib > old_mib + _SLACK_MIB:
            grown.append(f"{title}: {name} {old_mib:.1f} -> {new_mib:.1f} MiB")
    return grown


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--maps", type=int, default=2000)
    parser.add_argument("--executors", type=int, default=200)
    options = parser.parse_args()
    lokys_tracker.ensure_running()  # kept for good, and no leak
    started = time.monotonic()
    grown = watch(f"{options.maps} maps on one executor", many_maps, options.maps)
    grown += watch(f"{options.executors} executors", many_executors, options.executors)
    print("\n".join(grown) if grown else f"nothing grew, {time.monotonic() - started:.0f} s")
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
