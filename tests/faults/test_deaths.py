"""What DESIGN.md promises about dying workers, row by row, each as a program that must end and leave nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from programs import program_text

if TYPE_CHECKING:
    from conftest import RunProgram


def says_ok(run_program: RunProgram, text: str, *args: str) -> None:
    done = run_program(text, *args)
    assert (done.code, done.out) == (0, "ok\n"), done.err
    assert "Traceback" not in done.err


# --- worker killed, segfault, os._exit ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "order"),
    [("SIGKILL", "ordered"), ("SIGKILL", "unordered"), ("segfault", "unordered"), ("os._exit", "unordered")],
)
def test_a_death_costs_its_item_alone_and_is_told_exactly(way: str, order: str, run_program: RunProgram) -> None:
    says_ok(run_program, program_text("faults/dies_at_one_item"), way, order)


def test_memory_that_runs_out_in_python_is_an_exception(run_program: RunProgram) -> None:
    """Only the kernel's killer makes it a death, by SIGKILL; the message of that one names it."""
    says_ok(run_program, program_text("faults/runs_out_of_memory_in_python"))


# --- the same item kills every worker that takes it -----------------------------------------------------


@pytest.mark.parametrize("retries", [0, 2])
def test_an_item_that_kills_every_worker(retries: int, run_program: RunProgram) -> None:
    says_ok(run_program, program_text("faults/kills_every_worker"), str(retries))


# --- a slot that keeps dying without finishing anything -------------------------------------------------


@pytest.mark.parametrize("policy", ["immediate", "wait_others", "deferred"])
def test_a_slot_that_always_dies_in_construction(policy: str, run_program: RunProgram) -> None:
    says_ok(run_program, program_text("faults/dies_in_construction"), policy)


@pytest.mark.parametrize("policy", ["immediate", "wait_others", "deferred"])
def test_a_slot_that_always_dies_idle(policy: str, run_program: RunProgram) -> None:
    says_ok(run_program, program_text("faults/dies_idle"), policy)


def test_deadly_items_alone_give_no_slot_up(run_program: RunProgram) -> None:
    says_ok(run_program, program_text("faults/dies_at_every_item"))


def test_batches_whose_last_item_dies_get_somewhere(run_program: RunProgram) -> None:
    """Each worker dies with the results of two items in its hands: they are run again, and nobody gives up."""
    says_ok(run_program, program_text("faults/dies_at_the_last_item_of_batches"))


# --- construction that raises, hangs, or is killed ------------------------------------------------------


@pytest.mark.parametrize("how", ["raises", "hangs"])
@pytest.mark.parametrize("policy", ["immediate", "wait_others", "deferred"])
def test_a_construction_that_fails(how: str, policy: str, run_program: RunProgram) -> None:
    says_ok(run_program, program_text("faults/fails_in_construction"), how, policy)


def test_constructions_that_are_killed_are_made_up_for(run_program: RunProgram) -> None:
    says_ok(run_program, program_text("faults/is_killed_in_construction"))


# --- exceptions that are none elsewhere -----------------------------------------------------------------


@pytest.mark.parametrize("engine", ["loky", "threads"])
@pytest.mark.parametrize("order", ["ordered", "unordered"])
def test_exceptions_that_end_other_loops(engine: str, order: str, run_program: RunProgram) -> None:
    says_ok(run_program, program_text("faults/raises_what_ends_loops"), engine, order)
