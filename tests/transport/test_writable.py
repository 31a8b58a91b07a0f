"""Items, kwargs and results can be written to at every size, and what is written is seen by nobody else."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from joblib import Parallel, delayed, parallel_config

from contract import N_JOBS, on
from joblib_stateful import StatefulExecutor, call_worker, get_worker, stateful_map
from needs import needs

np = pytest.importorskip("numpy")

# In line; shared and copied on arrival, alone and several in one message; mapped.
SIZES = [12_500, 37_500, 250_000, 1_250_000]
MAPPED = SIZES[-1]
every_size = pytest.mark.parametrize("size", SIZES, ids=["100 kB", "300 kB", "2 MB", "10 MB"])


def poke(array: Any) -> None:
    """Write to an array as compiled code does that doesn't ask whether it may."""
    ctypes.memset(array.ctypes.data, 0, array.itemsize)


def centre(array: Any) -> Any:
    array -= array.mean()
    return array


def ask(line: Any) -> float:
    """Ask what is at its other end for the number that it keeps."""
    line.send(True)
    number: float = line.recv()
    return number


def dirty_bytes() -> int:
    """Return how much of the shared memory that this process has mapped is its own, because it has changed it."""
    total, counts = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *rest = line.split(maxsplit=1)
        if "-" in name and not name.endswith(":"):
            counts = "memfd:joblib_stateful segment" in line
        elif counts and name == "Anonymous:":
            total += int(rest[0].split()[0]) << 10
    return total


# --- items and results --------------------------------------------------------------------------------------


# Sizes, kinds and modes come one after the other to the same workers, for the start of one takes longer than all of them.


@on("loky", "threads", "inline", "memory", "example")
def test_an_item_can_be_changed_in_place_and_so_can_the_result(
    engine: Any,
    sizes: Sequence[int] = (*SIZES, 5_000_000),  # of which neither side keeps the memory
) -> None:
    for size in sizes:
        arrays = [np.arange(float(size)) + number for number in range(3)]
        for array, result in zip(arrays, stateful_map(centre, arrays, n_jobs=N_JOBS, engine=engine), strict=True):
            assert result[0] == -(size - 1) / 2
            np.add(result, 1, out=result)
            assert result[0] == -(size - 1) / 2 + 1
            if engine not in ("threads", "inline"):  # these hand on the caller's own objects
                assert array[0] in range(3)


@pytest.mark.cluster
@on("dask", "ray")
def test_on_clusters_an_item_can_be_changed_in_place_and_so_can_the_result(engine: Any) -> None:
    # With one cluster, for each takes seconds to start.
    test_an_item_can_be_changed_in_place_and_so_can_the_result(engine, SIZES[1:3])
    test_each_value_has_memory_of_its_own(engine, SIZES[1:3])
    for size in SIZES[1:3]:
        test_kwargs_are_each_workers_own(engine, size)


@on("loky", "memory", "example")
def test_each_value_has_memory_of_its_own(engine: Any, sizes: Sequence[int] = SIZES) -> None:
    class Keeper:
        def __init__(self) -> None:
            self.kept: dict[int, list[Any]] = {}

        def __call__(self, array: Any) -> list[float]:
            kept = self.kept.setdefault(len(array), [])
            array[-1] += 1
            kept.append(array[-1:])
            return [float(one[0]) for one in kept]

    with StatefulExecutor(Keeper, 1, engine=engine) as executor:
        for size in sizes:
            array = np.zeros(size)
            for batch_size in (3, 1, 1):
                for found in stateful_map(executor, [array] * 3, batch_size=batch_size):
                    assert set(found) == {1.0}
            assert executor.submit(call_worker, array).result(60) == [1.0] * 10
            assert not array.any()


@pytest.mark.parametrize("size", SIZES[2:])
def test_a_frozen_item_stays_frozen_and_what_is_one_in_an_item_stays_one(size: int) -> None:
    frozen, array = np.zeros(size), np.zeros(size)
    frozen.flags.writeable = False

    def change(item: Any) -> tuple[bool, float]:
        item[1][0] = 5
        return item[0].flags.writeable, float(item[2][0])

    assert list(stateful_map(change, [(frozen, array, array[: size // 2]), (frozen, array, array[:])], n_jobs=1)) == [
        (False, 0.0),  # of another length
        (False, 5.0),
    ]


def test_what_is_kept_is_not_changed_by_what_comes_later() -> None:
    # The pages of those that are not kept are written to again; those that a private map has not touched lie there.
    class Keeper:
        def __init__(self) -> None:
            self.kept: list[Any] = []

        def __call__(self, item: tuple[int, Any]) -> list[float]:
            number, array = item
            if number % 3 == 0:
                array[0] = -1
                self.kept.append(array)
            return [float(kept[-1]) for kept in self.kept]

    size = 1 << 20
    pairs = ((number, np.full(size, float(number))) for number in range(15))
    results = list(stateful_map(Keeper, pairs, n_jobs=1, batch_size=1, buffer=2))
    assert results[-1] == [0.0, 3.0, 6.0, 9.0, 12.0]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@needs("fork")
def test_what_a_fork_of_the_worker_keeps_is_not_changed_by_what_comes_later() -> None:
    class Forker:
        def __init__(self) -> None:
            self.asks: list[Callable[[], float]] = []
            self.ends: list[Any] = []

        def __call__(self, array: Any) -> list[float]:
            twice = array[:]
            here, there = multiprocessing.Pipe()
            if len(self.asks) < 3:
                if not os.fork():
                    while there.recv():
                        there.send(float(twice[-1]))
                    os._exit(0)
                self.asks.append(partial(ask, here))
                self.ends.append(here)
            return [ask() for ask in self.asks]

        def close(self) -> None:
            for end in self.ends:
                end.send(False)

    arrays = (np.full(1 << 20, float(number)) for number in range(9))
    results = list(stateful_map(Forker, arrays, n_jobs=1, batch_size=1, buffer=2))
    assert results[-1] == [0.0, 1.0, 2.0]


def test_more_arrays_in_a_message_than_files_go_with_it_can_all_be_written_to() -> None:
    def change(item: Any) -> float:
        for array in item:
            np.add(array, 1, out=array)
        return float(sum(array[0] for array in item))

    arrays = [np.zeros(37_500) for _ in range(300)]
    assert list(stateful_map(change, [arrays], n_jobs=1)) == [300.0]


def test_a_result_is_not_what_the_worker_goes_on_changing() -> None:
    class Filler:
        def __init__(self) -> None:
            self.buffers = {size: np.zeros(size) for size in SIZES}

        def __call__(self, item: tuple[int, int]) -> Any:
            size, number = item
            self.buffers[size][:] = number
            return self.buffers[size][1:].reshape(-1)

    for size in SIZES:
        for number, result in enumerate(stateful_map(Filler, [(size, number) for number in range(4)], n_jobs=1)):
            result[0] += 1
            assert (result[0], result[-1], len(result)) == (number + 1, number, size - 1)


# --- kwargs -------------------------------------------------------------------------------------------------


class Weighing:
    def __init__(self, weights: Any) -> None:
        self.weights = weights

    def __call__(self, array: Any) -> tuple[float, float]:
        self.weights[0] += 1
        array[0] += 10
        return float(self.weights[0]), float(array[0])


@on("loky", "memory", "example")
@every_size
def test_kwargs_are_each_workers_own(engine: Any, size: int) -> None:
    weights = np.zeros(size)
    with StatefulExecutor(Weighing, N_JOBS, shared_kwargs={"weights": weights}, engine=engine) as executor:
        executor.warm_up()
        found = list(stateful_map(executor, [weights] * 4, batch_size=1))  # the items are the same array
    assert {own for _, own in found} == {10.0}
    assert min(own for own, _ in found) == 1.0
    assert not weights.any()


@needs("sendfds", "memfd")
def test_kwargs_are_shared_by_all_workers_but_for_the_pages_that_one_changes() -> None:
    def read_and_write() -> tuple[float, int, int]:
        weights = get_worker().weights
        total = float(weights.sum())
        before = dirty_bytes()
        weights[MAPPED // 2] = 2
        return total, before, dirty_bytes()

    with StatefulExecutor(Weighing, 2, shared_kwargs={"weights": np.ones(MAPPED)}) as executor:
        executor.warm_up()
        total, before, after = executor.submit(read_and_write).result(60)
    assert (total, before) == (MAPPED, 0)
    assert 0 < after <= 1 << 16


# --- kinds of values ----------------------------------------------------------------------------------------


def _change_frame(size: int) -> Any:
    pandas = pytest.importorskip("pandas")

    def change(frame: Any) -> Any:
        frame.loc[:, "a"] = 0.0
        return float(frame["a"].sum())

    return change, pandas.DataFrame({"a": np.ones(size), "b": np.ones(size)}), 0.0


def _sort_sparse(size: int) -> Any:
    sparse = pytest.importorskip("scipy.sparse")
    indices = np.arange(size, dtype=np.int32)[::-1].copy()
    matrix = sparse.csr_matrix((np.ones(size), indices, np.array([0, size], dtype=np.int32)), shape=(1, size))

    def change(item: Any) -> Any:
        item.sum_duplicates()  # as many things do first
        return float(item.max()), bool(item.has_sorted_indices)

    return change, matrix, (1.0, True)


def _change_torch(size: int) -> Any:
    torch = pytest.importorskip("torch", reason="torch is too large to be installed for one test")

    def change(array: Any) -> Any:
        import torch

        torch.from_numpy(array).div_(4)
        return float(array[-1])

    del torch
    return change, np.full(size, 2.0), 0.5


def _fill(item: Any) -> Any:
    item[:] = 1
    return item.shape, float(np.sum(item))


def _fill_record(item: Any) -> Any:
    item["b"] = 2
    return float(item["b"].sum())


def _fill_bytes(item: Any) -> Any:
    view = memoryview(item).cast("B")
    view[-1] = 9
    return view.readonly, view[-1]


KINDS: dict[str, Callable[[int], Any]] = {
    "Fortran": lambda size: (_fill, np.asfortranarray(np.zeros((2, size))), ((2, size), 2.0 * size)),
    "strided": lambda size: (_fill, np.zeros(2 * size)[::2], ((size,), float(size))),
    "masked": lambda size: (_fill, np.ma.masked_array(np.zeros(size)), ((size,), float(size))),
    "records": lambda size: (_fill_record, np.zeros(size, dtype=[("a", "i4"), ("b", "f8")]), 2.0 * size),
    "bytearray": lambda size: (_fill_bytes, bytearray(8 * size), (False, 9)),
    "array": lambda size: (_fill_bytes, __import__("array").array("d", bytes(8 * size)), (False, 9)),
    "memory": lambda size: (_fill_bytes, np.zeros(size), (False, 9)),
    "frame": _change_frame,
    "sparse": _sort_sparse,
    "torch": _change_torch,
}


@pytest.mark.filterwarnings("error:.*writable")
@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_of_items_can_be_changed(kind: str) -> None:
    with StatefulExecutor(n_jobs=1) as executor:
        for size in SIZES:
            change, item, expected = KINDS[kind](size)
            assert [executor.submit(change, item).result(60) for _ in range(2)] == [expected] * 2


@pytest.mark.parametrize("backend", [None, "stateful"])
def test_results_that_were_merely_not_copied_can_be_written_to(backend: str | None) -> None:
    pandas = pytest.importorskip("pandas")
    for size in SIZES:
        write_to_results(pandas, size, backend)


def write_to_results(pandas: Any, size: int, backend: str | None) -> None:
    frame = pandas.DataFrame({"a": np.zeros(size), "b": np.ones(size)})
    calls: list[tuple[Callable[[Any], Any], Any]] = [
        (lambda array: array.reshape(2, -1), np.zeros(size)),
        (lambda array: array, np.zeros(size)),
        (lambda array: array[2:].view("i8"), np.zeros(size)),
        (lambda frame: frame.rename(columns={"a": "c"}), frame),
        (lambda frame: frame[["a"]], frame),
    ]
    for call, item in calls:
        if backend is None:
            results = list(stateful_map(call, [item, item], n_jobs=2))
        else:
            with parallel_config(backend=backend, n_jobs=2):
                results = Parallel()(delayed(call)(item) for _ in range(2))
        for result in results:
            if isinstance(result, pandas.DataFrame):
                result.iloc[:, 0] = 7.0
                assert set(result.iloc[:, 0]) == {7.0}
            else:
                result[..., -1] = 7
                assert result.flat[-1] == 7
                assert result.flat[0] == 0
    assert not frame["a"].any()


# --- under joblib -------------------------------------------------------------------------------------------


@every_size
def test_compiled_code_that_ignores_numpys_flag_ends_no_worker_and_is_seen_by_none(size: int) -> None:
    class Poking:
        def __init__(self) -> None:
            self.kept: list[Any] = []

        def look_and_poke(self, array: Any) -> tuple[bool, float]:
            self.kept.append(array)
            found = array.flags.writeable, float(array[0])
            poke(array)
            return found

    mmap_mode: str | None
    for mmap_mode in ("r", "c", "r+", None):
        data = np.ones(size)
        with parallel_config(backend="stateful", n_jobs=2, worker=Poking):
            calls = (delayed(lambda array: get_worker().look_and_poke(array))(data) for _ in range(8))
            found = Parallel(batch_size=1, mmap_mode=mmap_mode)(calls)  # of a batch, joblib makes one value
        is_mapped = size * 8 > 1 << 20 and mmap_mode is not None
        assert {flag for flag, _ in found} == {not is_mapped or mmap_mode != "r"}
        if is_mapped and mmap_mode == "r+":  # then all are to see it
            assert min(first for _, first in found) == 0.0
        else:
            assert {first for _, first in found} == {1.0}
        assert data.all()


def test_a_result_that_looks_into_memory_that_cannot_be_changed_can_be() -> None:
    makes: dict[str, Callable[[], Any]] = {
        "empty": lambda: np.frombuffer(b"", np.uint8),
        "plain": lambda: np.frombuffer(bytes(96)),
        "Fortran": lambda: np.frombuffer(bytes(96)).reshape(3, 4).T,
        "empty times": lambda: np.frombuffer(bytes(96), "M8[ns]")[:0],
        "records": lambda: np.frombuffer(bytes(96), [("a", "i4"), ("b", "i4")]),
        "strided": lambda: np.frombuffer(bytes(96))[::2],
        "broadcast": lambda: np.broadcast_to(np.frombuffer(bytes(24)), (2, 3)),
        "large": lambda: np.frombuffer(bytes(800_000)),
        "large, strided": lambda: np.frombuffer(bytes(range(250)) * 8000, np.uint8)[::2],
        "large, times": lambda: np.frombuffer(bytes(800_000), "M8[ns]"),
        "large, some times": lambda: np.frombuffer(bytes(range(250)) * 8000, "M8[ns]")[::-2],
    }
    results = stateful_map(lambda make: make(), makes.values(), n_jobs=1, batch_size=1)
    for (name, make), result in zip(makes.items(), results, strict=True):
        assert result.flags.writeable, name
        np.testing.assert_array_equal(result, make(), err_msg=name)
