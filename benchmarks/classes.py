"""What objects of a script's own classes cost, there and back: ours next to joblib's loky backend and multiprocessing.Pool.

Such classes can't be imported by workers, so that cloudpickle puts them into each pickle. Here they go once per worker and
version. Each way is measured in the same run, by default options and with as many items, which come back as they are; the
least of several runs is shown, after one that starts the workers. Pool forks, and so has the classes already. CPU time is
that of the program and its workers together, which other programs on the machine disturb less.

    python benchmarks/classes.py [--items 3000] [--rounds 3]
"""

import argparse
import collections
import contextlib
import dataclasses
import enum
import multiprocessing
import os
import random
import time
import typing
from collections.abc import Callable, Iterator, Sequence

import psutil
from joblib import Parallel, delayed

from joblib_stateful import shutdown, stateful_map

N_JOBS = 2
T = typing.TypeVar("T")


@dataclasses.dataclass
class Point:
    x: float
    y: float


class Row(typing.NamedTuple):
    number: int
    text: str


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Slotted:
    __slots__ = ("color", "number")

    def __init__(self, number: int, color: Color) -> None:
        self.number, self.color = number, color


class Coloured:
    def __init__(self, number: int, color: Color) -> None:
        self.number, self.color = number, color


class Tree:
    class Leaf:
        def __init__(self, number: int) -> None:
            self.number = number

    def __init__(self, number: int) -> None:
        self.leaves = [Tree.Leaf(number), Tree.Leaf(-number)]


class Box(typing.Generic[T]):
    def __init__(self, content: T) -> None:
        self.content = content


class Trouble(Exception):  # noqa: N818 - users name theirs as they like
    """No error here, but a value."""


Record = collections.namedtuple("Record", ["number", "text"])  # noqa: PYI024 - as `DataFrame.itertuples` makes them


def rows_of_frame(count: int) -> list[typing.Any]:
    import pandas as pd

    frame = pd.DataFrame({"a": range(count), "b": [0.5] * count})
    return list(frame.itertuples())


KINDS: dict[str, Callable[[int], Sequence[typing.Any]]] = {
    "dataclass": lambda n: [Point(i, 0.5) for i in range(n)],
    "NamedTuple": lambda n: [Row(i, "text") for i in range(n)],
    "namedtuple": lambda n: [Record(i, "text") for i in range(n)],
    "enum": lambda n: [Color.RED, Color.BLUE] * (n // 2),
    "enum in an attribute": lambda n: [Coloured(i, Color.RED) for i in range(n)],
    "enum in slots": lambda n: [Slotted(i, Color.RED) for i in range(n)],
    "nested": lambda n: [Tree(i) for i in range(n)],
    "generic": lambda n: [Box(i) for i in range(n)],
    "exception": lambda n: [Trouble(i) for i in range(n)],
    "rows of a DataFrame": rows_of_frame,
}


class Echo:
    """Gives back what it gets."""

    def __call__(self, item: typing.Any) -> typing.Any:
        return item


def echo(item: T) -> T:
    return item


def ours(items: Sequence[typing.Any]) -> list[typing.Any]:
    return list(stateful_map(Echo, items, n_jobs=N_JOBS))


def joblibs(items: Sequence[typing.Any]) -> list[typing.Any]:
    return list(Parallel(n_jobs=N_JOBS)(delayed(echo)(item) for item in items))


@contextlib.contextmanager
def pool() -> Iterator[Callable[[Sequence[typing.Any]], list[typing.Any]]]:
    with multiprocessing.get_context("fork").Pool(N_JOBS) as found:
        yield lambda items: list(found.imap(echo, items))


def cpu_seconds() -> float:
    """Return the CPU time of this program and its workers so far."""
    this = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in (this, *this.children(recursive=True)))


def seconds(
    run: Callable[[Sequence[typing.Any]], list[typing.Any]], items: Sequence[typing.Any]
) -> tuple[float, float] | None:
    """Return how long it took, and how much CPU time; None if it can't be done."""
    before, started = cpu_seconds(), time.perf_counter()
    try:
        results = run(items)
    except Exception as error:  # noqa: BLE001 - what others can't do is no end of ours
        print(f"  {run.__name__}: {type(error).__name__}: {str(error).splitlines()[0][:100]}")
        return None
    taken = time.perf_counter() - started, cpu_seconds() - before
    assert len(results) == len(items)
    assert all(type(result) is type(item) for result, item in zip(results, items, strict=True))
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"{options.items} items, {N_JOBS} workers, {os.cpu_count()} CPUs; µs per item, and our share of theirs")
    print(f"{'kind':22}{'ours':>8}{'joblib':>8}{'Pool':>8}{'ours/joblib':>13}{'ours/Pool':>11}{'CPU: ours/joblib':>18}")
    random.seed(0)
    for kind, make in KINDS.items():
        items = make(options.items)
        with pool() as pools:
            ways: dict[str, Callable[[Sequence[typing.Any]], list[typing.Any]]] = {
                "ours": ours,
                "joblib": joblibs,
                "Pool": pools,
            }
            for run in ways.values():
                with contextlib.suppress(Exception):
                    run(items[:10])
            least = dict.fromkeys(ways, (float("nan"), float("nan")))
            for _ in range(options.rounds):
                # In turn, and in another order each time, so that what else the machine does disturbs all alike.
                for name in random.sample(list(ways), len(ways)):
                    taken = seconds(ways[name], items)
                    if taken is not None:
                        least[name] = tuple(map(min, taken, least[name]))
        each = {name: taken / len(items) * 1e6 for name, (taken, _) in least.items()}
        print(
            f"{kind:22}{each['ours']:8.1f}{each['joblib']:8.1f}{each['Pool']:8.1f}"
            f"{each['ours'] / each['joblib']:13.2f}{each['ours'] / each['Pool']:11.2f}"
            f"{least['ours'][1] / least['joblib'][1]:18.2f}"
        )
    shutdown()


if __name__ == "__main__":
    main()
