"""Where the time of both cores goes while 2,000 items of a millisecond run: what is not the items' own, and whose it is.

Linux only: times are those that the kernel has counted for each process, and for the machine.

    pip install ".[bench]" && python -m benchmarks.shares [--maps 12]
"""

import argparse
import os
import time
from pathlib import Path

import psutil

from joblib_stateful import shutdown, stateful_map

from ._workloads import MILLISECOND, WARM_UP, Spin


def cpu_of(pid: int) -> float:
    """Return the seconds that a process was run."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def of_machine() -> tuple[float, float]:
    """Return the seconds for which the cores were idle, and for which a machine beneath kept them from running."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return int(fields[4]) / os.sysconf("SC_CLK_TCK"), int(fields[8]) / os.sysconf("SC_CLK_TCK")


def own_overhead() -> float:
    """Return the seconds that calling the items takes beyond what they measure, without any library."""
    spin, started = Spin(), time.thread_time()
    burned = sum(map(spin, MILLISECOND[::4]))
    return 4 * (time.thread_time() - started - burned)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=int, default=12)
    n_maps = parser.parse_args().maps
    for _ in stateful_map(Spin, WARM_UP, n_jobs=2, batch_size=1):
        pass
    pids = [child.pid for child in psutil.Process().children(recursive=True)]
    calls = own_overhead()
    workers, (idle, stolen) = sum(map(cpu_of, pids)), of_machine()
    parent, started = time.process_time(), time.perf_counter()
    burned = sum(sum(stateful_map(Spin, MILLISECOND, n_jobs=2)) for _ in range(n_maps))
    wall, parent = time.perf_counter() - started, time.process_time() - parent
    idle, stolen = (after - before for after, before in zip(of_machine(), (idle, stolen), strict=True))
    workers = sum(map(cpu_of, pids)) - workers
    shutdown()
    whole = 2 * wall
    rows = {
        "the items' own": burned,
        "calling them, as any loop would": calls * n_maps,
        "the workers' part of each message": workers - burned - calls * n_maps,
        "the parent": parent,
        "idle": idle,
        "a machine beneath this one (steal)": stolen,
    }
    rows["other processes, and the kernel's own"] = whole - sum(rows.values())
    for name, seconds in rows.items():
        print(f"{name:40} {seconds / whole:7.2%}   {seconds / n_maps * 1e3:7.1f} ms")


if __name__ == "__main__":
    main()
