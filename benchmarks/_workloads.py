"""What is measured. Each run is one of these on one peer, in a process of its own."""

import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ._peers import OURS, Peer

Figures = dict[str, float]


@dataclass(frozen=True)
class Workload:
    """Something to be measured.

    Parameters
    ----------
    name, what : str
        A short name and a sentence.
    unit : str
        Of the figure that peers are compared by.
    better : {"more", "less"}
        Which way it is better.
    run : callable
        Takes the peer's class, its setting and the loops of a microsecond, and returns the figures.
    sizes : tuple of int
        Sizes of batches that are tried on peers that know some.
    ordered : bool
        What peers must be able to do.
    peers : tuple of str, optional
        Only these, beside ours.
    has_limit : bool
        Tell what two processes with nothing in between can do, too.
    alone : bool
        Ours has to send one item in a message, too, instead of what it does by default.
    repeats : int
        Runs in a round: short ones differ the most.
    goal : str
        What ours shall be.
    needs : str
        The module that it takes, beside the standard library.
    """

    name: str
    what: str
    unit: str
    better: Literal["more", "less"]
    run: Callable[[type[Peer], int | None, int], Figures]
    sizes: tuple[int, ...] = (1,)
    ordered: bool = True
    peers: tuple[str, ...] = ()
    has_limit: bool = False
    alone: bool = False
    repeats: int = 1
    goal: str = ""
    needs: str = ""

    def is_there(self) -> bool:
        """Tell whether what it takes is installed."""
        return not self.needs or importlib.util.find_spec(self.needs) is not None

    def settings(self, peer: type[Peer]) -> tuple[int | None, ...]:
        """Return what is tried on a peer; None is its own default."""
        if self.alone and peer.name == OURS:
            return (1,)
        found = peer.settings(self.sizes)
        return found if self.ordered or peer.has_unordered_batches else found[:1]

    def takes(self, peer: type[Peer]) -> bool:
        """Tell whether the peer can do this."""
        if peer.is_limit:
            return self.has_limit
        return self.ordered in peer.orders and (not self.peers or peer.name in (OURS, *self.peers))


# --- what workers do ------------------------------------------------------------------------------------


def loop(count: int) -> int:
    total = 0
    for number in range(count):
        total += number
    return total


def loops_of_a_microsecond() -> int:
    """Return how much of `loop` takes a microsecond here, at the best of many times."""
    count = 20_000
    return max(1, round(count / (min(_timed(loop, count) for _ in range(200)) * 1e6)))


def _timed(function: Callable[..., Any], *args: Any) -> float:
    started = time.perf_counter()
    function(*args)
    return time.perf_counter() - started


class Tiny:
    """Two microseconds per item."""

    def __init__(self, loops: int) -> None:
        self.loops = loops

    def __call__(self, item: int) -> int:
        loop(self.loops)
        return item


class Spin:
    """Burns as many microseconds of CPU as the item says, and returns the seconds that it burned."""

    def __call__(self, microseconds: float) -> float:
        started = time.thread_time()
        end = started + microseconds / 1e6
        while time.thread_time() < end:
            pass
        return time.thread_time() - started


class Slow:
    """Takes a second to build, and notes it."""

    def __init__(self, file: str) -> None:
        time.sleep(1)
        with open(file, "a") as notes:  # noqa: PTH123 - one write, appended
            notes.write("x")

    def __call__(self, item: int) -> int:
        return item


class Echo:
    """Gives back what it gets."""

    def __call__(self, item: Any) -> Any:
        return item


class Dot:
    """Holds a large array and looks up what each item's numbers weigh."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __call__(self, item: Any) -> float:
        return float(item[:1000] @ self.data[:1000]) + float(self.data[-1])


class AddOne:
    """Returns a new array as large as the item."""

    def __call__(self, item: Any) -> Any:
        return item + 1


# --- the workloads --------------------------------------------------------------------------------------


def tiny(peer: type[Peer], chunk: int | None, loops: int, *, ordered: bool, count: int) -> Figures:
    pool = peer(Tiny, {"loops": 2 * loops})
    if peer.keeps:  # warm: what starts its workers with the first items shall have all of them
        assert sum(1 for _ in pool.map(range(count), ordered=ordered, chunk=chunk)) == count
    started = time.perf_counter()
    total = sum(pool.map(range(count), ordered=ordered, chunk=chunk))
    seconds = time.perf_counter() - started
    assert total == count * (count - 1) // 2
    pool.close()
    return {"figure": count / seconds}


def busy(peer: type[Peer], chunk: int | None, _: int, *, ordered: bool, items: list[float]) -> Figures:
    """Return the share of two cores that the workers' own code gets."""
    pool = peer(Spin, {})
    if peer.keeps:
        assert sum(1 for _ in pool.map(WARM_UP, ordered=ordered, chunk=1)) == len(WARM_UP)
    started = time.perf_counter()
    spent = list(pool.map(items, ordered=ordered, chunk=chunk))
    seconds = time.perf_counter() - started
    assert len(spent) == len(items)
    pool.close()
    return {"figure": sum(spent) / (2 * seconds)}


def reuse(peer: type[Peer], chunk: int | None, _: int) -> Figures:
    """Five maps, each as a user writes it who keeps nothing by hand."""
    with tempfile.NamedTemporaryFile() as notes:
        started = time.perf_counter()
        for _ in range(5):
            pool = peer(Slow, {"file": notes.name})
            assert list(pool.map(range(20), ordered=True, chunk=chunk)) == list(range(20))
            if peer.name not in (OURS, "loky", "joblib"):
                pool.close()
        seconds = time.perf_counter() - started
        builds = os.path.getsize(notes.name)  # noqa: PTH202 - shorter
        pool.close()
    return {"figure": seconds, "builds": builds}


def slow_consumer(peer: type[Peer], chunk: int | None, _: int, *, figure: str) -> Figures:
    """20,000 lazy items of 100 kB, of which a consumer takes 3,000, half a millisecond each."""
    pulled = lead = 0

    def items() -> Iterator[bytes]:
        nonlocal pulled
        for number in range(20_000):
            pulled += 1
            yield number.to_bytes(8, "little") * 12_500

    pool = peer(Echo, {})
    started = time.perf_counter()
    first = 0.0
    results = pool.map(items(), ordered=True, chunk=chunk)
    for taken, result in enumerate(results):
        first = first or time.perf_counter() - started
        assert result[:8] == taken.to_bytes(8, "little")
        lead = max(lead, pulled - taken)
        time.sleep(0.0005)
        if taken == 2_999:
            break
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    figures = {"lead": lead, "memory": peak, "first": first}
    # What is left of the input is not waited for: the figures are there, and the process ends now.
    return {"figure": figures[figure], **figures}


def shared_array(peer: type[Peer], chunk: int | None, _: int, *, figure: str) -> Figures:
    """200 items of 1 MB, and 200 MB that both workers hold."""
    import numpy as np

    data = np.random.default_rng(0).random(25_000_000)
    items = [np.full(125_000, float(number)) for number in range(200)]
    expected = [float(item[:1000] @ data[:1000]) + float(data[-1]) for item in items]
    pool = peer(Dot, {"data": data})
    if peer.keeps:
        assert len(list(pool.map(items[:10], ordered=True, chunk=chunk))) == 10
    started = time.perf_counter()
    found = list(pool.map(items, ordered=True, chunk=chunk))
    seconds = time.perf_counter() - started
    assert np.allclose(found, expected)
    memory = _memory_of_children(pool.map(items, ordered=True, chunk=chunk)) if figure == "memory" else 0.0
    pool.close()
    return {"figure": memory if figure == "memory" else seconds}


def _memory_of_children(results: Iterable[Any]) -> float:
    """Return the most that all child processes had for themselves (USS), looked at while results come."""
    import psutil

    most = 0.0
    for number, _ in enumerate(results):
        if number % 20 == 0:
            used = 0.0
            for child in psutil.Process().children(recursive=True):
                if "resource_tracker" not in " ".join(child.cmdline()):
                    used += child.memory_full_info().uss / 1e6
            most = max(most, used)
    return most


def there_and_back(peer: type[Peer], chunk: int | None, _: int, *, megabytes: int, count: int) -> Figures:
    """Return the gigabytes a second of arrays that go to a worker and come back as new ones."""
    import numpy as np

    items = [np.full(megabytes * 125_000, float(number)) for number in range(count)]
    pool = peer(AddOne, {})
    assert len(list(pool.map(items[:4], ordered=True, chunk=chunk))) == 4
    started = time.perf_counter()
    for number, result in enumerate(pool.map(items, ordered=True, chunk=chunk)):
        assert result[0] == result[-1] == number + 1
    seconds = time.perf_counter() - started
    pool.close()
    return {"figure": 2 * count * megabytes / 1e3 / seconds}


def echoed(peer: type[Peer], chunk: int | None, _: int, *, kind: str, count: int) -> Figures:
    """Return the megabytes a second of values that go to a worker and come back as they are."""
    from .libraries import TYPES  # it imports numpy, which others must not have

    items = [TYPES[kind](_VALUE_BYTES) for _ in range(count)]
    pool = peer(Echo, {})
    assert len(list(pool.map(items[:4], ordered=True, chunk=chunk))) == 4
    started = time.perf_counter()
    assert sum(type(result) is type(items[0]) for result in pool.map(items, ordered=True, chunk=chunk)) == count
    seconds = time.perf_counter() - started
    pool.close()
    return {"figure": count * _VALUE_BYTES / 1e6 / seconds}


_VALUE_BYTES = 8 << 20
# Values of these libraries, and where they come from.
_KINDS = {
    "bytes": "",
    "bytearray": "",
    "list of strings": "",
    "datetime64": "numpy",
    "column slice": "numpy",
    "torch.Tensor": "torch",
    "nn.Module": "torch",
    "polars frame": "polars",
    "jax": "jax",
}


def first_result(peer: type[Peer], chunk: int | None, _: int) -> Figures:
    """Return when the first result was there, by the system's clock; the caller knows when the process was started."""
    pool = peer(Echo, {})
    results = pool.map(range(10), ordered=True, chunk=chunk)
    assert next(results) == 0
    at = time.clock_gettime(time.CLOCK_MONOTONIC)
    assert list(results) == list(range(1, 10))
    pool.close()
    return {"at": at}


# So long that all workers have started, also of those that start them one by one.
WARM_UP = [1000.0] * 600
MILLISECOND = [1000.0] * 2_000
SKEWED = [25_000.0 if number % 40 == 20 else 250.0 for number in range(2_400)]
SHIFTING = [20.0] * 20_000 + [2_000.0] * 600 + [20.0] * 20_000

_LAZY = "20,000 lazy items of 100 kB, a consumer that takes 3,000 of them, 0.5 ms each"
_LAZY_PEERS = ("joblib", "mpire", "mtasklite", "py_stateful_map", "multiprocessing.Pool", "loky")
_ARRAYS = "200 arrays of 1 MB to workers that hold one of 200 MB, warm"


def _busy_share(name: str, what: str, items: list[float], goal: str, *, ordered: bool = True) -> Workload:
    run = partial(busy, ordered=ordered, items=items)
    return Workload(name, what, "of two cores busy", "more", run, (20, 100), ordered=ordered, has_limit=True, goal=goal)


def _tiny(name: str, *, ordered: bool, alone: bool, goal: str) -> Workload:
    run = partial(tiny, ordered=ordered, count=5_000 if alone else 100_000)
    what = "5,000 items of 2 µs, one in a message" if alone else "100,000 items of 2 µs"
    sizes = (1,) if alone else (500, 5000)
    return Workload(
        name,
        what,
        "items/s",
        "more",
        run,
        sizes,
        ordered=ordered,
        has_limit=not alone,
        alone=alone,
        repeats=3 if alone else 1,
        goal=goal,
    )


WORKLOADS = (
    _tiny("W1 tiny, ordered", ordered=True, alone=False, goal="1.0 of the best at 500, 1.7 of joblib"),
    _tiny("W1 tiny, unordered", ordered=False, alone=False, goal="1.0 of the best at 500, 1.7 of joblib"),
    _tiny("W1 one in a message", ordered=True, alone=True, goal="1.0 of loky, 1.5 of joblib"),
    _busy_share("W2 medium", "2,000 items of 1 ms", MILLISECOND, "0.97 of the cores"),
    _busy_share("W3 skewed, ordered", "2,400 items, every 40th a hundred times as long", SKEWED, "0.96 of the cores"),
    _busy_share(
        "W3 skewed, unordered",
        "2,400 items, every 40th a hundred times as long",
        SKEWED,
        "0.96 of the cores",
        ordered=False,
    ),
    _busy_share("W3 shifting", "20,000 items of 20 µs, 600 of 2 ms, 20,000 of 20 µs", SHIFTING, ""),
    Workload(
        "W4 reuse",
        "five maps with a constructor of 1 s, nothing kept by hand",
        "s",
        "less",
        reuse,
        (1,),
        peers=("loky", "joblib", "ProcessPoolExecutor"),
        goal="1.0 of loky",
    ),
    Workload(
        "W5 lead",
        _LAZY,
        "items ahead",
        "less",
        partial(slow_consumer, figure="lead"),
        peers=_LAZY_PEERS,
        goal="at most `buffer`",
    ),
    Workload(
        "W5 memory",
        _LAZY,
        "MiB",
        "less",
        partial(slow_consumer, figure="memory"),
        peers=_LAZY_PEERS,
        goal="45 MiB",
    ),
    Workload(
        "W5 first result",
        _LAZY,
        "s",
        "less",
        partial(slow_consumer, figure="first"),
        peers=_LAZY_PEERS,
        goal="1.0 of joblib",
    ),
    Workload(
        "W6 arrays",
        _ARRAYS,
        "s",
        "less",
        partial(shared_array, figure="time"),
        (1, 20),
        peers=("ProcessPoolExecutor", "loky", "joblib", "mpire", "multiprocessing.Pool"),
        goal="1.0 of the best",
    ),
    Workload(
        "W6 workers' memory",
        _ARRAYS,
        "MB (USS)",
        "less",
        partial(shared_array, figure="memory"),
        (1, 20),
        peers=("ProcessPoolExecutor", "loky", "joblib"),
        goal="60 MB",
    ),
    *(
        Workload(
            f"W6 {megabytes} MB",
            f"{count} arrays of {megabytes} MB there and back",
            "GB/s",
            "more",
            partial(there_and_back, megabytes=megabytes, count=count),
            peers=("loky", "joblib", "ProcessPoolExecutor"),
            goal="2.0 of loky and joblib",
        )
        for megabytes, count in ((8, 40), (32, 12))
    ),
    Workload(
        "W7 first result",
        "from the start of the program, imports included",
        "s",
        "less",
        first_result,
        repeats=5,
        goal="1.3 of loky",
    ),
    *(
        Workload(
            f"W8 {kind}",
            f"20 values of 8 MiB there and back: {kind}",
            "MB/s",
            "more",
            partial(echoed, kind=kind, count=20),
            # Not what forks: what jax and torch have started would be missing there.
            peers=("loky", "joblib", "multiprocessing.Pool (spawn)"),
            goal="1.0 of joblib",
            needs=needs,
        )
        for kind, needs in _KINDS.items()
    ),
)
BY_NAME = {workload.name: workload for workload in WORKLOADS}
