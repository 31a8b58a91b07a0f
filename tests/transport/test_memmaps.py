"""Memory maps that are written again go by value; the others by the name of their file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from joblib import Parallel, delayed, parallel_config

from contract import N_JOBS, on
from joblib_stateful import StatefulExecutor, call_worker, get_worker, stateful_map

np = pytest.importorskip("numpy")

SIZES = [100, 250_000]
every_size = pytest.mark.parametrize("size", SIZES)


def new_map(path: Path, size: int, mode: str = "w+") -> Any:
    if not path.exists():
        np.memmap(path, dtype=float, mode="w+", shape=(size,)).flush()
    return np.memmap(path, dtype=float, mode=mode, shape=(size,))


class Scratch:
    """Fills a map of each of its files again and again, and returns it, or a view of it."""

    def __init__(self, size: int) -> None:
        self.size, self.maps = size, dict[Path, Any]()

    def __call__(self, item: tuple[int, Path, str, str]) -> Any:
        number, path, mode, how = item
        if path not in self.maps:
            self.maps[path] = new_map(path, self.size, mode)
        scratch = self.maps[path]
        scratch[:] = number
        return {
            "whole": scratch,
            "part": scratch[5:],
            "plain": np.asarray(scratch),
            "rows": scratch.reshape(2, -1),
        }[how]


@on("loky", "example")
@every_size
def test_a_result_is_what_the_map_held_then(engine: Any, size: int, tmp_path: Path) -> None:
    for mode, how in [("w+", "whole"), ("r+", "whole"), ("r+", "part"), ("w+", "plain")]:
        path = tmp_path / f"{mode} {how}"
        items = [(number, path, mode, how) for number in range(8)]
        results = list(stateful_map(Scratch, items, n_jobs=1, shared_kwargs={"size": size}, engine=engine))
        for number, result in enumerate(results):
            assert (result[0], result[-1]) == (number, number)
            result[0] = -1
        assert [float(result[0]) for result in results] == [-1.0] * 8
        assert set(np.memmap(path, dtype=float, mode="r")) == {7.0}
        if engine == "loky":
            assert {type(result) for result in results} == {np.ndarray}


@on("loky", "example")
@every_size
def test_an_item_is_what_the_map_held_when_it_was_pulled(engine: Any, size: int, tmp_path: Path) -> None:
    scratch = new_map(tmp_path / "scratch", size)

    def refill() -> Iterator[Any]:
        for number in range(9):
            scratch[:] = number
            yield scratch[number:]

    def ends(item: Any) -> tuple[float, float]:
        return float(item[0]), float(item[-1])

    for batch_size in (1, 3):
        found = stateful_map(ends, refill(), n_jobs=N_JOBS, batch_size=batch_size, engine=engine)
        assert list(found) == [(number, number) for number in range(9)]


def overwrite(array: Any) -> Any:
    filename = getattr(array, "filename", None)
    if array.flags.writeable:
        array[0] = 5
    return None if filename is None else str(filename), float(array[-1])


@every_size
def test_items_of_a_list_and_of_an_executor_are_values_too(size: int, tmp_path: Path) -> None:
    data = new_map(tmp_path / "data", size, "r+")
    assert list(stateful_map(overwrite, [data, data[1:]], n_jobs=2)) == [(None, 0.0)] * 2
    with StatefulExecutor(n_jobs=1) as executor:
        assert executor.submit(overwrite, data).result(60) == (None, 0.0)
        assert executor.submit(overwrite, array=data).result(60) == (None, 0.0)
        assert list(executor.map(overwrite, [data])) == [(None, 0.0)]
    assert not data.any()


@on("loky")
def test_memory_maps_that_can_only_be_read_go_by_name(engine: Any, tmp_path: Path) -> None:
    path = tmp_path / "data"
    data = new_map(path, 250_000, "r")
    results = stateful_map(overwrite, [data, data[5:]], n_jobs=2, engine=engine)
    assert list(results) == [(str(path), 0.0)] * 2


@on("loky")
@every_size
def test_memory_maps_among_kwargs_go_by_name_so_that_workers_can_fill_them(
    engine: Any, size: int, tmp_path: Path
) -> None:
    class Writer:
        def __init__(self, out: Any) -> None:
            self.out = out

        def __call__(self, number: int) -> None:
            self.out[number] = number
            self.out.flush()

    out = new_map(tmp_path / "out", size)
    kwargs = {"out": out}
    list(stateful_map(Writer, range(20), n_jobs=N_JOBS, shared_kwargs=kwargs, engine=engine))
    assert list(out[:20]) == list(range(20))
    list(stateful_map(Writer, range(20, 40), worker_kwargs=[{"out": out[:50]}], engine=engine))
    assert list(out[:40]) == list(range(40))


@every_size
def test_memory_maps_among_joblibs_arguments_go_by_name(size: int, tmp_path: Path) -> None:
    out = new_map(tmp_path / "out", size)

    def write(array: Any, number: int) -> Any:
        array[number] = number
        return array

    with parallel_config(backend="stateful", n_jobs=2):
        results = Parallel()(delayed(write)(out, number) for number in range(20))
    assert list(out[:20]) == list(range(20))
    assert {type(result) for result in results} == {np.ndarray}
    results[0][0] = 99
    assert out[0] == 0


def test_a_copy_on_write_map_goes_by_value_and_comes_as_a_plain_array(tmp_path: Path) -> None:
    new_map(tmp_path / "data", 250_000)
    private = new_map(tmp_path / "data", 250_000, "c")
    private[-1] = 3

    class Keeping:
        def __init__(self, array: Any) -> None:
            self.array = array

        def __call__(self, array: Any) -> tuple[str, float, str, float]:
            return type(array).__name__, float(array[-1]), type(self.array).__name__, float(self.array[-1])

    with StatefulExecutor(Keeping, 1, shared_kwargs={"array": private}) as executor:
        assert executor.submit(call_worker, private).result(60) == ("ndarray", 3.0, "ndarray", 3.0)
        assert executor.submit(lambda: bool(get_worker().array.flags.writeable)).result(60)


@pytest.mark.cluster
@on("dask", "ray")
def test_on_clusters_maps_of_files_travel_in_the_same_way(engine: Any, tmp_path: Path) -> None:
    for size in SIZES:  # with one cluster, for each takes seconds to start
        folders = [tmp_path / f"{size} {number}" for number in range(4)]
        for folder in folders:
            folder.mkdir()
        test_a_result_is_what_the_map_held_then(engine, size, folders[0])
        test_an_item_is_what_the_map_held_when_it_was_pulled(engine, size, folders[1])
        test_memory_maps_among_kwargs_go_by_name_so_that_workers_can_fill_them(engine, size, folders[2])
        test_memory_maps_that_can_only_be_read_go_by_name(engine, folders[3])
