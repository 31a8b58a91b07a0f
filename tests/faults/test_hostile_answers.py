"""Exceptions and results whose own code raises when the parent looks at them: no call is ever left without an outcome."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from programs import program_text

if TYPE_CHECKING:
    from conftest import RunProgram


@pytest.fixture(autouse=True)
def _hostile(tmp_path: Path) -> None:
    """Lay the classes beside the programs, which import them."""
    (tmp_path / "hostile.py").write_text(program_text("faults/hostile"))


def _run(run_program: RunProgram, engine: str, text: str) -> None:
    done = run_program(text, engine, limit=100)
    assert done.code == 0, done.err[-4000:]
    assert done.out == "done\n", done.out


ENGINES = ("loky", "threads", "inline", "memory")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_hostile_exception_is_the_error_of_its_item_in_a_map(run_program: RunProgram, engine: str) -> None:
    _run(run_program, engine, program_text("faults/raises_hostile_exceptions_in_maps"))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_hostile_exception_is_the_error_of_its_call(run_program: RunProgram, engine: str) -> None:
    _run(run_program, engine, program_text("faults/raises_hostile_exceptions_in_calls"))


@pytest.mark.parametrize("engine", ["loky", "threads"])
def test_a_hostile_exception_ends_its_parallel_call(run_program: RunProgram, engine: str) -> None:
    _run(run_program, engine, program_text("faults/raises_hostile_exceptions_in_parallel"))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_hostile_exception_of_a_constructor_is_its_error(run_program: RunProgram, engine: str) -> None:
    _run(run_program, engine, program_text("faults/raises_hostile_exceptions_in_construction"))


@pytest.mark.parametrize("engine", ["loky", "memory"])
def test_whatever_loading_a_result_raises_is_the_error_of_its_item(run_program: RunProgram, engine: str) -> None:
    _run(run_program, engine, program_text("faults/returns_hostile_results"))


@pytest.mark.cluster
@pytest.mark.parametrize(("engine", "package"), [("dask", "distributed"), ("ray", "ray")])
def test_on_clusters_a_hostile_answer_is_the_error_of_its_item_too(
    run_program: RunProgram, request: pytest.FixtureRequest, engine: str, package: str
) -> None:
    pytest.importorskip(package)
    address = [request.getfixturevalue("ray_address")] if engine == "ray" else []
    env = {"TMPDIR": tempfile.gettempdir()}  # they leave their logs there
    done = run_program(program_text("faults/has_hostile_answers_on_clusters"), engine, *address, limit=100, env=env)
    assert done.code == 0, done.err[-4000:]
    assert done.out == "done\n", done.out
