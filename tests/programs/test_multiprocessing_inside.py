"""multiprocessing in a worker does what it does in the program."""

from __future__ import annotations

import importlib.util
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from joblib_stateful import stateful_map
from programs import program_text

if TYPE_CHECKING:
    from conftest import RunProgram

METHODS = ("fork", "spawn", "forkserver")


@pytest.mark.parametrize("method", METHODS)
def test_processes_queues_pools_and_managers_in_a_worker(run_program: RunProgram, method: str) -> None:
    done = run_program(program_text("programs/uses_multiprocessing_in_workers"), method, "directly")
    assert done.code == 0, done.err


def test_processes_queues_pools_and_managers_in_a_worker_of_a_worker(run_program: RunProgram) -> None:
    done = run_program(program_text("programs/uses_multiprocessing_in_workers"), "spawn", "nested")
    assert done.code == 0, done.err


def test_the_programs_start_method_is_a_workers(run_program: RunProgram) -> None:
    done = run_program(program_text("programs/sets_a_start_method"))
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
    done = run_program(program_text("programs/loads_data_with_torch"), limit=100)
    assert (done.code, done.out.strip()) == (0, "[[0, 1], [4, 9]]"), done.err
