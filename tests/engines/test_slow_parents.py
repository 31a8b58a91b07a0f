"""Results whose own code takes long, waits, or finds no memory in the parent: Ctrl-C, the program's end, and other calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from joblib_stateful import StatefulExecutor
from joblib_stateful._executor import _driver, _replies
from joblib_stateful._process import _system
from programs import program_text

if TYPE_CHECKING:
    from conftest import RunProgram, StartProgram

_SLOW = """
from concurrent.futures import wait
from joblib_stateful import errors

def load():
    (here / "loads").touch()
    threading.Event().wait()

class Slow:
    def __reduce__(self):
        return load, ()

def make(item):
    return Slow() if item == 150 else item
"""


@pytest.mark.parametrize(
    "use",
    [
        "list(stateful_map(make, range(140, 160), n_jobs=2))",
        "list(stateful_map(make, range(151), n_jobs=1, batch_size=1, buffer=1))",  # which takes its answers itself
        "StatefulExecutor(n_jobs=1).submit(make, 150).result()",
    ],
    ids=["map", "quick map", "submit"],
)
def test_ctrl_c_strikes_while_a_result_is_being_loaded(program: StartProgram, use: str) -> None:
    one = program(f"{_SLOW}\ntry:\n    {use}\nfinally:\n    (here / 'interrupted').touch()\n")
    one.wait_for("loads")
    one.ctrl_c()
    code, _, err = one.ends_within(4)
    assert code != 0
    assert (one.folder / "interrupted").exists()
    if _system.HAS_SIGMASK:  # else it strikes a process that is being born, too
        assert err.count("Traceback") == 1, err
        assert err.rstrip().endswith("KeyboardInterrupt"), err
    one.leaves_nothing()


def test_the_program_ends_while_a_result_is_being_loaded(program: StartProgram) -> None:
    one = program(
        f"""{_SLOW}
results = stateful_map(make, range(149, 160), n_jobs=2, batch_size=1)
assert next(results) == 149
while not (here / "loads").exists():
    time.sleep(0.001)
results.close()
shutdown()
print("at the end")
""",
    )
    one.wait_for("loads")
    code, out, err = one.ends_within(20)
    assert (code, out) == (0, "at the end\n"), err
    one.leaves_nothing()


@pytest.mark.parametrize("how", ["submit", "start_map", "build"])
@pytest.mark.parametrize("way", ["map", "submit", "quick"])
def test_a_result_that_makes_calls_as_it_is_loaded(run_program: RunProgram, how: str, way: str) -> None:
    done = run_program(
        program_text("engines/makes_calls_while_a_result_is_loaded"),
        how,
        way,
        limit=60,
    )
    assert (done.code, done.out) == (0, "done\n"), done.err[-3000:]


@pytest.mark.parametrize("make", ["large", "large_object", "large_array"])
def test_a_result_that_is_too_large_for_the_parent_is_the_error_of_its_item(run_program: RunProgram, make: str) -> None:
    done = run_program(
        program_text("engines/has_no_memory_for_a_result"),
        make,
        "submit",
        limit=60,
    )
    assert (done.code, done.out) == (0, "done\n"), done.err[-3000:]


@pytest.mark.parametrize("make", ["large", "large_array"])
def test_a_result_that_is_too_large_for_the_parent_ends_no_map(run_program: RunProgram, make: str) -> None:
    done = run_program(
        program_text("engines/has_no_memory_for_a_result"),
        make,
        "map",
        limit=60,
    )
    assert (done.code, done.out) == (0, "done\n"), done.err[-3000:]


def test_a_worker_that_waits_for_a_slow_parent_is_not_held_to_be_damaged(run_program: RunProgram) -> None:
    """It has answered as far as it can: the thread that should take it is busy with the answer before."""
    done = run_program(program_text("engines/loads_a_result_for_seconds"), limit=60)
    assert (done.code, done.out) == (0, "done\n"), done.err[-3000:]


def test_what_came_with_an_answer_for_which_there_was_no_memory_comes_again(run_program: RunProgram) -> None:
    """A class that the worker has made: it travels once, and was lost with the first of its objects."""
    done = run_program(program_text("engines/has_no_memory_for_an_answer"), limit=60)
    assert (done.code, done.out) == (0, "done\n"), done.err[-3000:]


def fail() -> None:
    raise ValueError("as it was told to")


@pytest.mark.parametrize("engine", ["loky", "threads"])
def test_a_call_whose_outcome_can_not_even_be_described_has_one(monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise MemoryError("there is none for this either")

    with StatefulExecutor(n_jobs=1, engine=engine) as executor:
        with monkeypatch.context() as patch:
            patch.setattr(_replies, "report_of", no_memory)
            patch.setattr(_replies, "report_without", no_memory)
            patch.setattr(_driver, "report_without", no_memory)
            first, second = executor.submit(fail), executor.submit(fail)
            assert type(first.exception(timeout=20)) is MemoryError
            assert type(second.exception(timeout=20)) is MemoryError
        assert executor.submit(abs, -1).result(timeout=20) == 1
