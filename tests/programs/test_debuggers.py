"""breakpoint() and pdb in workers, whose standard input is empty."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from programs import program_text

if TYPE_CHECKING:
    from conftest import RunProgram

PROGRAM = program_text("programs/stops_in_a_debugger")


def test_breakpoint_says_that_it_cannot_stop_and_what_to_do(run_program: RunProgram) -> None:
    done = run_program(PROGRAM, "stops", "loky", env={"PYTHONBREAKPOINT": ""})
    assert done.code == 1
    last = done.err.strip().splitlines()[-2]
    assert last.startswith("RuntimeError: breakpoint() can't stop here: this is a worker process")
    assert 'Use engine="inline" to debug' in last
    assert "    breakpoint()\n" in done.err


@pytest.mark.parametrize("choice", ["0", "builtins.id"])
def test_what_the_user_has_chosen_for_breakpoint_works(run_program: RunProgram, choice: str) -> None:
    done = run_program(PROGRAM, "stops", "loky", env={"PYTHONBREAKPOINT": choice})
    if choice == "0":
        assert (done.code, done.out) == (0, "value 5\n"), done.err
    else:  # which wants an argument
        assert "TypeError: id() takes exactly one argument (0 given)" in done.err


def test_a_hook_that_the_workers_code_sets_works(run_program: RunProgram) -> None:
    done = run_program(PROGRAM, "has_its_own", "loky")
    assert (done.code, done.out) == (0, "the user's own\nvalue 5\n"), done.err


def test_pdb_itself_ends_with_a_note(run_program: RunProgram) -> None:
    done = run_program(PROGRAM, "debugs", "loky")
    assert done.code == 1
    assert "BdbQuit" in done.err or sys.version_info >= (3, 14)  # from then on pdb ends the program
    assert "a debugger was started in a worker process" in done.out
    assert 'Use engine="inline" to debug' in done.out


@pytest.mark.parametrize("engine", ["inline", "threads"])
def test_in_the_programs_own_process_it_stops(run_program: RunProgram, engine: str) -> None:
    done = run_program(PROGRAM, "stops", engine, env={"PYTHONBREAKPOINT": "builtins.print"})
    assert (done.code, done.out) == (0, "\nvalue 5\n"), done.err
