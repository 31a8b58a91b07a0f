"""The program's ``__main__``: what looks there for a name finds in a worker what it finds in the program."""

from __future__ import annotations

import importlib.util
import tempfile
from typing import TYPE_CHECKING

import pytest

from programs import program_text

if TYPE_CHECKING:
    from conftest import RunProgram


@pytest.mark.parametrize("engine", ["loky", "threads", "inline"])
@pytest.mark.parametrize("depth", ["once", "nested"])
def test_what_pickle_and_others_look_up_by_name(engine: str, depth: str, run_program: RunProgram) -> None:
    done = run_program(program_text("transport/finds_its_own_names_in_a_worker"), engine, depth)
    assert (done.code, done.out) == (0, "as in the program\n"), done.err


@pytest.mark.cluster
@pytest.mark.timeout(180)
def test_on_ray_what_pickle_and_others_look_up_by_name(run_program: RunProgram, ray_address: str) -> None:
    done = run_program(
        "import sys, ray\n"
        "ray.init(address=sys.argv[3], include_dashboard=False, log_to_driver=False, logging_level='ERROR')\n"
        + program_text("transport/finds_its_own_names_in_a_worker"),
        "ray",
        "once",
        ray_address,
        limit=110,
        env={"TMPDIR": tempfile.gettempdir()},  # Ray leaves its logs there
    )
    assert (done.code, done.out) == (0, "as in the program\n"), done.err


@pytest.mark.parametrize("engine", ["loky", "threads"])
def test_names_stand_for_what_they_stand_for_now(engine: str, run_program: RunProgram) -> None:
    done = run_program(program_text("transport/changes_what_its_names_stand_for"), engine)
    assert (done.code, done.out) == (0, "as in the program\n"), done.err


@pytest.mark.parametrize("engine", ["loky", "threads", "inline"])
def test_types_that_typing_has_made(engine: str, run_program: RunProgram) -> None:
    done = run_program(program_text("transport/has_types_of_its_own"), engine)
    assert (done.code, done.out) == (0, "as in the program\n"), done.err


@pytest.mark.parametrize(
    "library",
    [
        "none",
        pytest.param("numpy", marks=pytest.mark.skipif(not importlib.util.find_spec("numpy"), reason="it isn't there")),
    ],
)
def test_what_there_is_one_of_in_each_process_is_not_copied(library: str, run_program: RunProgram) -> None:
    done = run_program(program_text("transport/uses_what_there_is_one_of"), library)
    assert (done.code, done.out) == (0, "as in the program\n"), done.err
