"""What values of real libraries cost there and back: each item is sent to a worker and comes back as it is.

Each way runs in a process of its own, in turn, and medians are shown; with ``--peak`` how much memory one item of 100 MB takes.

    pip install ".[libraries]" && python benchmarks/libraries.py [--rounds 5] [--before FOLDER] [--picture FILE]
"""

import argparse
import array
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

MIB = 1 << 20
WAYS = ("now", "joblib", "Pool")


def _torch() -> Any:
    import torch

    return torch


def _module(size: int) -> Any:
    return _torch().nn.Linear(1024, size // 4096)


def _column(size: int) -> Any:
    return np.ones((size // 8, 2))[:, 0]


def _frame(size: int) -> Any:
    import polars as pl

    return pl.DataFrame({"a": np.ones(size // 16), "b": np.arange(size // 16)})


def _jax(size: int) -> Any:
    import jax.numpy as jnp

    return jnp.ones(size // 4)


def _image(size: int) -> Any:
    from PIL import Image

    return Image.new("RGB", (2000, size // 6000))


#: By name, what makes a new value of so many bytes.
TYPES: dict[str, Callable[[int], Any]] = {
    "float64": lambda size: np.ones(size // 8),
    "torch.Tensor": lambda size: _torch().ones(size // 4),
    "bfloat16 tensor": lambda size: _torch().ones(size // 2, dtype=_torch().bfloat16),
    "nn.Module": _module,
    "bytes": lambda size: os.urandom(1) * size,
    "bytearray": bytearray,
    "str": lambda size: "x" * (size - 1) + chr(97 + os.urandom(1)[0] % 26),
    "array.array": lambda size: array.array("d", [1.0]) * (size // 8),
    "list of strings": lambda size: [f"{number:09d}" for number in range(size // 20)],
    "datetime64": lambda size: np.arange(size // 8).astype("M8[s]"),
    "column slice": _column,
    "masked array": lambda size: np.ma.masked_array(np.ones(size // 9), mask=np.zeros(size // 9, bool)),
    "polars frame": _frame,
    "jax": _jax,
    "image": _image,
}


def give_back(value: Any) -> Any:
    return value


def _results(way: str, items: list[Any]) -> Iterable[Any]:
    if way == "now":
        from joblib_stateful import stateful_map

        return stateful_map(give_back, items, n_jobs=2, batch_size=1, progress=False)
    if way == "joblib":
        from joblib import Parallel, delayed

        return Parallel(n_jobs=2, return_as="generator", batch_size=1)(delayed(give_back)(item) for item in items)  # type: ignore[no-any-return]
    raise ValueError(way)


def run_one(way: str, kind: str, megabytes: int, *, same: bool) -> dict[str, float]:
    """Return megabytes a second, and the parent's CPU seconds for each item."""
    count = max(6, 160 // megabytes)
    make, size = TYPES[kind], megabytes * MIB
    items = [make(size)] * count if same else [make(size) for _ in range(count)]
    if way in ("Pool", "torch.multiprocessing"):
        if way == "Pool":
            import multiprocessing
        else:
            from torch import multiprocessing  # type: ignore[no-redef]
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            return _timed(lambda some: pool.imap(give_back, some), items, size)
    return _timed(lambda some: _results(way, some), items, size)


def _timed(results: Callable[[list[Any]], Iterable[Any]], items: list[Any], size: int) -> dict[str, float]:
    for _ in results(items[:2]):
        pass
    started, cpu = time.perf_counter(), time.process_time()
    for _ in results(items):
        pass
    seconds = time.perf_counter() - started
    return {
        "rate": len(items) * size / MIB / seconds,
        "cpu": (time.process_time() - cpu) / len(items),
    }


def peak_of(value: Any) -> int:
    """Return the most memory that this process has had, in bytes."""
    del value
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def measure_peak(kind: str, megabytes: int) -> dict[str, float]:
    """Return by how many times its size one item makes the parent's and the worker's memory grow, there and back."""
    from joblib_stateful import stateful_map

    make = TYPES[kind]
    tiny = make(4096 * 4)
    list(stateful_map(give_back, [tiny], n_jobs=1))
    (worker,) = stateful_map(peak_of, [tiny], n_jobs=1)
    item = make(megabytes * MIB)
    before = Path("/proc/self/clear_refs")
    before.write_text("5")  # the highest mark begins anew
    now = int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) << 10  # noqa: PTH123, SIM115
    for _ in stateful_map(give_back, [item], n_jobs=1):
        pass
    peak = int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) << 10  # noqa: PTH123, SIM115
    (worker_peak,) = stateful_map(peak_of, [tiny], n_jobs=1)
    size = megabytes * MIB
    return {"parent, with the item": 1 + (peak - now) / size, "worker": (worker_peak - worker) / size}


_COLOURS = {
    "now": "#4c9f70",
    "joblib": "#9aa5b1",
    "Pool": "#c9a227",
    "torch.multiprocessing": "#3f7fbf",
}
_NAMES = {"now": "joblib_stateful", "Pool": "multiprocessing.Pool"}


def draw(rates: dict[str, dict[str, float]]) -> str:
    """Return a picture of bars, one group for each type."""
    bar, left, width = 11, 120, 620
    most = max(rate for row in rates.values() for rate in row.values())
    parts, top = [], 24
    at = left
    for way, colour in _COLOURS.items():
        if any(way in row for row in rates.values()):
            name = _NAMES.get(way, way)
            parts.append(f'<rect x="{at}" y="4" width="10" height="10" fill="{colour}"/>')
            parts.append(f'<text x="{at + 14}" y="13">{name}</text>')
            at += 30 + 7 * len(name)
    for kind, row in rates.items():
        parts.append(f'<text x="{left - 6}" y="{top + bar * len(row) / 2 + 4}" text-anchor="end">{kind}</text>')
        for way, rate in row.items():
            length = width * rate / most
            parts.append(f'<rect x="{left}" y="{top}" width="{length:.1f}" height="{bar - 1}" fill="{_COLOURS[way]}"/>')
            parts.append(f'<text x="{left + length + 4:.1f}" y="{top + 9}" font-size="9">{rate:,.0f}</text>')
            top += bar
        top += 7
    parts.append(
        f'<text x="{left}" y="{top + 10}">MB a second, there and back, two workers; a new value for each item</text>'
    )
    size = f'width="{left + width + 50}" height="{top + 18}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11" fill="#24292f">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="#ffffff"/>', *parts, "</svg>"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=8)
    parser.add_argument("--types", nargs="*", default=list(TYPES))
    parser.add_argument("--before", help="folder of another build, which takes turns; it is not in the picture")
    parser.add_argument("--same", action="store_true", help="the same object for each item")
    parser.add_argument("--peak", action="store_true", help="memory of one item of 100 MB instead")
    parser.add_argument("--picture", type=Path, help="where to draw it")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        way, kind = options.one
        found = measure_peak(kind, 100) if options.peak else run_one(way, kind, options.megabytes, same=options.same)
        print(json.dumps(found))
        return
    own = str(Path(__file__).parents[1])
    ways = ["now"] if options.peak else [*WAYS, "torch.multiprocessing"]
    if options.before:
        ways.append("before")
    rates: dict[str, dict[str, float]] = {}
    for kind in options.types:
        found_all: dict[str, list[dict[str, float]]] = {}
        for _ in range(options.rounds):
            for way in ways:
                if way == "torch.multiprocessing" and kind not in ("torch.Tensor", "bfloat16 tensor", "nn.Module"):
                    continue
                command = [sys.executable, __file__, "--one", "now" if way == "before" else way, kind]
                command += ["--megabytes", str(options.megabytes)]
                command += ["--same"] * options.same + ["--peak"] * options.peak
                env = {**os.environ, "PYTHONPATH": options.before if way == "before" else own}
                ran = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
                if ran.returncode:
                    print(f"{way} ended with {ran.returncode} for {kind}:", *ran.stderr.splitlines()[-1:], flush=True)
                    continue
                found_all.setdefault(way, []).append(json.loads(ran.stdout.splitlines()[-1]))
        row = [
            f"{way} " + ", ".join(f"{statistics.median(one[key] for one in found):.4g} {key}" for key in found[0])
            for way, found in found_all.items()
        ]
        print(f"{kind:18}" + "; ".join(row), flush=True)
        if options.picture:
            rates[kind] = {
                way: statistics.median(one["rate"] for one in found)
                for way, found in found_all.items()
                if way in _COLOURS
            }
            options.picture.write_text(draw(rates))


if __name__ == "__main__":
    main()
