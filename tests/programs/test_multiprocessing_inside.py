"""multiprocessing in a worker does what it does in the program."""

from __future__ import annotations

import importlib.util
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from joblib_stateful import stateful_map

if TYPE_CHECKING:
    from conftest import RunProgram

METHODS = ("fork", "spawn", "forkserver")


# What is asked of a worker: with a class and functions that only the program has, as those of a script or a notebook.
USES = """
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from joblib_stateful import StatefulExecutor, stateful_map

@dataclass
class Point:
    x: int

def moved(point):
    return Point(point.x + 1)

def put(queue, point):
    queue.put(moved(point))

def use(method):
    context = multiprocessing.get_context(method)
    found = []
    queue = context.Queue()
    process = context.Process(target=put, args=(queue, Point(1)))
    process.start()
    found.append(queue.get())
    process.join()
    assert process.exitcode == 0
    points = [Point(1), Point(2)]
    with context.Pool(2) as pool:
        found += pool.map(moved, points)
    with context.Manager() as manager:
        shared = manager.dict()
        process = context.Process(target=shared.update, args=({"a": 1},))
        process.start()
        process.join()
        found.append(dict(shared))
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        found += executor.map(moved, points)
    assert all(type(one) in (Point, dict) for one in found)
    return str(found)

def nested(method):
    return next(stateful_map(use, [method], n_jobs=1))

WANTED = str([Point(2), Point(2), Point(3), {"a": 1}, Point(2), Point(3)])
"""


@pytest.mark.parametrize("method", METHODS)
def test_processes_queues_pools_and_managers_in_a_worker(run_program: RunProgram, method: str) -> None:
    done = run_program(
        f"""{USES}
if __name__ == "__main__":
    assert next(stateful_map(use, ["{method}"], n_jobs=1)) == WANTED
    assert multiprocessing.get_start_method(allow_none=True) is None
"""
    )
    assert done.code == 0, done.err


def test_and_in_a_worker_of_a_worker(run_program: RunProgram) -> None:
    done = run_program(
        f"""{USES}
if __name__ == "__main__":
    assert next(stateful_map(nested, ["spawn"], n_jobs=1)) == WANTED
"""
    )
    assert done.code == 0, done.err


def test_the_programs_start_method_is_a_workers(run_program: RunProgram) -> None:
    done = run_program(
        """
        import multiprocessing
        from joblib_stateful import stateful_map

        def method(_):
            return multiprocessing.get_start_method(allow_none=True)

        def nested(_):
            return next(stateful_map(method, [0], n_jobs=1))

        if __name__ == "__main__":
            multiprocessing.set_start_method("spawn")
            print(*stateful_map(method, [0], n_jobs=1), *stateful_map(nested, [0], n_jobs=1))
        """
    )
    assert (done.code, done.out.strip()) == (0, "spawn spawn"), done.err


def test_the_default_start_method_stays_open_in_both() -> None:
    def method(_: int) -> Any:
        return multiprocessing.get_start_method(allow_none=True)

    before = multiprocessing.get_start_method(allow_none=True)
    assert list(stateful_map(method, [0], n_jobs=1)) == [before]
    assert multiprocessing.get_start_method(allow_none=True) == before


def test_joblib_in_a_worker() -> None:
    def inner(backend: str) -> Any:
        from joblib import Parallel, delayed

        return Parallel(n_jobs=2, backend=backend)(delayed(abs)(item) for item in range(-3, 0))

    assert list(stateful_map(inner, ["loky", "multiprocessing"], n_jobs=1)) == [[3, 2, 1]] * 2


def test_an_executor_of_the_standard_library_with_its_default_context() -> None:
    def inner(items: list[int]) -> Any:
        with ProcessPoolExecutor(2) as executor:
            return list(executor.map(abs, items))

    assert list(stateful_map(inner, [[-1, -2]], n_jobs=1)) == [[1, 2]]


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_a_data_loader_with_workers_of_its_own(run_program: RunProgram) -> None:
    done = run_program(
        """
        from joblib_stateful import stateful_map

        class Squares:
            def __len__(self):
                return 4
            def __getitem__(self, index):
                return index * index

        def load(_):
            from torch.utils.data import DataLoader
            return [batch.tolist() for batch in DataLoader(Squares(), batch_size=2, num_workers=2)]

        if __name__ == "__main__":
            print(*stateful_map(load, [0], n_jobs=1))
        """,
        limit=100,
    )
    assert (done.code, done.out.strip()) == (0, "[[0, 1], [4, 9]]"), done.err
