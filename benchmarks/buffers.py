"""What large arrays cost on their way to a worker and back: through shared memory, in line, and with joblib.

Items are arrays that are summed (out), results are arrays that are made (back). Each way runs in a process of its own,
interleaved, and the medians are shown as ratios to the pickle in line. It is for finding the threshold from which
buffers are shared.

With ``--arrival`` something else is shown: what it takes a worker to get an array that lies in shared memory and to
look at its first number, to read all of it, to write all of it, or to change each number; copied at once, and as
ratios to that mapped privately. It is for finding the size up to which arrays are copied.

With ``--again``: the processor's time that the caller needs to pack an array of 20 MB for the first time, and each time
again, when it is only compared with what was written; in pieces of several sizes, which matters for arrays with gaps.

With ``--kept``: the processor's time that it takes to write a file in memory again by a system call, through a new map of it,
and through one that was kept. It is for finding the size from which maps are kept.

    python benchmarks/buffers.py [--rounds 3] [--arrival | --again | --kept]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

KILOBYTES = (64, 256, 1024, 4096, 32768)
ARRIVING = (256, 1024, 2048, 3072, 4096, 8192, 16384, 65536)
WAYS = ("in line", "shared", "joblib")


def total(array: Any) -> float:
    return float(array[0])


def make(size: int) -> Any:
    return np.ones(size)


def arrays(count: int, size: int) -> Iterator[Any]:
    array = np.ones(size)
    for number in range(count):
        array[0] = number
        yield array.copy()


def run_one(way: str, direction: str, kilobytes: int) -> float:
    """Return the gigabytes a second of one way."""
    from joblib import Parallel, delayed

    from joblib_stateful import stateful_map
    from joblib_stateful._transport._shared_memory import SharedMemory
    from joblib_stateful._transport._transport import Pickled, Sharing
    from joblib_stateful.engines.loky._runtime import LokyRuntime

    size, count = kilobytes << 7, max(8, min(400, (1 << 18) // kilobytes))
    LokyRuntime.transport = Pickled() if way == "in line" else SharedMemory(Sharing(threshold=1))

    def work(n: int) -> Any:
        if way == "joblib":
            tasks = (
                (delayed(total)(a) for a in arrays(n, size))
                if direction == "out"
                else (delayed(make)(size) for _ in range(n))
            )
            return Parallel(n_jobs=2, return_as="generator", max_nbytes=1)(tasks)
        if direction == "out":
            return stateful_map(total, arrays(n, size), n_jobs=2)
        return stateful_map(make, [size] * n, n_jobs=2)

    for _ in work(8):
        pass
    started = time.perf_counter()
    for _ in work(count):
        pass
    return count * kilobytes / (time.perf_counter() - started) / 1e6


USES = {
    "first": lambda array: array[0],
    "read": lambda array: array.sum(),
    "write": lambda array: array.fill(1.0),
    "change": lambda array: array.__iadd__(1.0),
}


def arrive(kilobytes: int, use: str, copied: int) -> float:
    """Return the microseconds until an array is there and used, in the median."""
    from joblib_stateful._transport._arrivals import Arrived
    from joblib_stateful._transport._segments import Received, Segment

    segment = Segment([memoryview(np.ones(kilobytes << 7)).cast("B")])
    received = Received(segment.number, segment.size, segment.mode)
    seconds = []
    for _ in range(max(8, min(200, (1 << 18) // kilobytes))):
        fd = os.dup(segment.fd)
        started = time.perf_counter()
        (memory,) = Arrived({segment.number: fd}, {segment.number: 1}, copied).memory_of([received])
        array = np.frombuffer(memory)
        USES[use](array)
        del array, memory
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds) * 1e6


def show_arrivals(rounds: int) -> None:
    print(f"{'':12}" + "".join(f"{use:>20}" for use in USES) + "   (us copied; times mapped)")
    for kilobytes in ARRIVING:
        row = ""
        for use in USES:
            pairs = [(arrive(kilobytes, use, sys.maxsize), arrive(kilobytes, use, 0)) for _ in range(rounds)]
            copied, mapped = (statistics.median(times) for times in zip(*pairs, strict=True))
            row += f"{copied:>14.0f}{copied / mapped:>6.2f}"
        print(f"{kilobytes:>8} KiB{row}", flush=True)


AGAIN = {
    "contiguous": lambda: np.ones(2_500_000),
    "dates": lambda: np.ones(2_500_000, np.int64).view("M8[s]"),
    "a column": lambda: np.ones((2_500_000, 2))[:, 0],
    "few columns": lambda: np.ones((800_000, 4))[:, :3],
    "reversed": lambda: np.ones(2_500_000)[::-1],
    "of two bytes": lambda: np.ones(20_000_000, np.int16)[::2],
    "records": lambda: np.ones(2_500_000, [("a", "i4"), ("b", "f8")])[::2],
    "other axes": lambda: np.ones((1000, 50, 50)).transpose(2, 0, 1)[:, ::-1],
}
PIECES = (64, 256, 1024, 4096)


def pack(array: Any, times: int) -> Iterator[float]:
    """Yield the milliseconds of the processor that packing takes each time."""
    from joblib_stateful._transport._shared_memory import SharedMemory

    transport, frames = SharedMemory(), []
    for _ in range(times):
        started = time.process_time()
        frames.append(transport.pack_shared(array))
        yield (time.process_time() - started) * 1e3


def show_again(rounds: int) -> None:
    from joblib_stateful._transport import _contents

    print(f"{'ms':14}{'first':>8}" + "".join(f"{kilobytes:>8} KiB" for kilobytes in PIECES))
    for name, make in AGAIN.items():
        array, row, first = make(), "", 0.0
        for kilobytes in PIECES:
            _contents._COMPARED_BYTES = kilobytes << 10
            first, *again = pack(array, 2 * rounds + 1)
            row += f"{statistics.median(again):>12.1f}"
        print(f"{name:14}{first:>8.1f}{row}", flush=True)


def write(kilobytes: int, way: str) -> float:
    """Return the microseconds of the processor until a file in memory is written again, in the median."""
    from joblib_stateful._transport import _segments
    from joblib_stateful._transport._kept_maps import map_of

    size = kilobytes << 10
    contents, fd = memoryview(np.ones(size >> 3)).cast("B"), _segments.open_unnamed("benchmark")
    _segments._write(fd, [contents])
    kept, seconds = map_of(fd, size, is_sealed=False), []
    for _ in range(max(8, min(200, (1 << 18) // kilobytes))):
        started = time.process_time()
        _segments._write(
            fd, [contents], 0, map_of(fd, size, is_sealed=False) if way == "new" else kept if way == "kept" else None
        )
        seconds.append(time.process_time() - started)
    os.close(fd)
    return statistics.median(seconds) * 1e6


def show_kept(rounds: int) -> None:
    print(f"{'':12}{'by a call':>12}{'new map':>12}{'kept map':>12}   (us by a call; times that)")
    for kilobytes in (16, 64, 256, 1024, 4096, 8192, 32768):
        found = [[write(kilobytes, way) for way in ("call", "new", "kept")] for _ in range(rounds)]
        call, *others = (statistics.median(times) for times in zip(*found, strict=True))
        print(f"{kilobytes:>8} KiB{call:>12.0f}" + "".join(f"{other / call:>12.2f}" for other in others), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--arrival", action="store_true")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--kept", action="store_true")
    options = parser.parse_args()
    for is_wanted, show in ((options.arrival, show_arrivals), (options.again, show_again), (options.kept, show_kept)):
        if is_wanted:
            show(options.rounds)
            return
    if options.one:
        way, direction, kilobytes = options.one
        print(json.dumps(run_one(way, direction, int(kilobytes))))
        return
    found: dict[tuple[str, str, int], list[float]] = {}
    for _ in range(options.rounds):
        for kilobytes in KILOBYTES:
            for direction in ("out", "back"):
                for way in WAYS:
                    command = [sys.executable, __file__, "--one", way, direction, str(kilobytes)]
                    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                    found.setdefault((way, direction, kilobytes), []).append(json.loads(output))
    print(f"{'':16}" + "".join(f"{way:>14}" for way in WAYS) + "   (times in line; GB/s in line)")
    for kilobytes in KILOBYTES:
        for direction in ("out", "back"):
            medians = [statistics.median(found[way, direction, kilobytes]) for way in WAYS]
            row = "".join(f"{median / medians[0]:>14.2f}" for median in medians)
            print(f"{kilobytes:>8} KiB {direction:4}{row}   {medians[0]:.2f}")


if __name__ == "__main__":
    main()
