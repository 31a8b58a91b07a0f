"""Forks, nesting, garbage, and other things that surround a map."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from joblib_stateful import StatefulExecutor, errors, stateful_map
from needs import needs
from programs import program_text

if TYPE_CHECKING:
    from conftest import RunProgram


@needs("fork")
def test_a_fork_that_ends_leaves_the_parents_workers_alone(run_program: RunProgram) -> None:
    done = run_program(program_text("programs/has_a_fork_that_ends"))
    assert (done.code, done.out.strip()) == (0, "fine"), done.err


@needs("fork")
def test_an_inherited_executor_says_so_and_a_new_one_works(run_program: RunProgram) -> None:
    done = run_program(program_text("programs/uses_an_executor_of_its_parent"))
    assert (done.code, done.out.strip()) == (0, "child 0"), done.err


def add(item: int) -> int:
    return item + 1


@pytest.mark.parametrize("engine", ["loky", "threads", "inline"])
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_map_inside_a_map_of_its_like(engine: str, n_jobs: int) -> None:
    def outer(item: int) -> int:
        return sum(stateful_map(add, range(item), n_jobs=n_jobs, engine=engine))

    assert list(stateful_map(outer, [3, 4], n_jobs=n_jobs, engine=engine)) == [6, 10]


class RaisesOrWaits:
    def __init__(self, gate: Path) -> None:
        self.gate = gate

    def __call__(self, item: str) -> None:
        if item == "raise":
            raise KeyboardInterrupt
        while not self.gate.exists():
            time.sleep(0.001)


def test_a_workers_own_keyboard_interrupt_costs_no_other_object(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with StatefulExecutor(RaisesOrWaits, 2, shared_kwargs={"gate": gate}) as executor:
        executor.warm_up()
        before = [info.pid for info in executor.workers()]
        with pytest.raises(KeyboardInterrupt):
            list(stateful_map(executor, ["wait", "raise"], batch_size=1))
        gate.touch()
        assert [info.pid for info in executor.workers()] == before
        assert [info.n_restarts for info in executor.workers()] == [0, 0]


def test_looking_for_joblib_does_not_lose_the_backend(run_program: RunProgram) -> None:
    done = run_program(
        """
        import importlib.util
        import joblib_stateful
        assert importlib.util.find_spec("joblib") is not None
        import joblib
        assert "stateful" in joblib.parallel.BACKENDS
        assert not any("joblib_stateful" in type(finder).__module__ for finder in __import__("sys").meta_path)
        """
    )
    assert done.code == 0, done.err


def test_a_progress_that_fails_does_not_stop_a_parallel_call(run_program: RunProgram) -> None:
    done = run_program(
        """
        from joblib import Parallel, delayed, parallel_config
        import joblib_stateful

        def bad(n):
            raise ValueError("my bar")

        if __name__ == "__main__":
            with parallel_config(backend="stateful", n_jobs=2, progress=bad):
                print(sum(Parallel()(delayed(abs)(n) for n in range(50))))
        """
    )
    assert (done.code, done.out.strip()) == (0, "1225"), done.err
    assert "my bar" in done.err


def test_executors_may_be_collected_at_any_moment(run_program: RunProgram) -> None:
    done = run_program(program_text("programs/has_executors_collected"), limit=60)
    assert done.code == 0, done.err


def test_a_map_asked_by_its_own_input_refuses() -> None:
    def items() -> Any:
        yield next(results)

    results = stateful_map(add, items(), n_jobs=1, engine="threads")
    with pytest.raises(ValueError, match="advanced already"):
        next(results)


def test_a_submitted_call_that_crashes_is_called_a_call() -> None:
    with StatefulExecutor(n_jobs=1) as executor:
        error = executor.submit(os._exit, 3).exception()
        assert isinstance(error, errors.WorkerCrashedError)
        assert "exit code 3 while it ran a call" in str(error)
