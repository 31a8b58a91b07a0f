"""Workers whose memory is damaged: what they answer, or say of themselves, is anything, and nobody waits for ever."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from programs import program_text

if TYPE_CHECKING:
    from conftest import RunProgram


@pytest.mark.parametrize("part", range(4))
def test_an_answer_that_is_none_is_a_crash_of_its_worker(run_program: RunProgram, part: int) -> None:
    done = run_program(program_text("faults/damages_its_answers"), str(part), "4", limit=110)
    assert done.code == 0, done.err[-3000:]
    assert done.out == "done\n"


@pytest.mark.parametrize("what", ["hang", "crash", "go on"])
def test_a_page_that_says_what_cannot_be_keeps_no_limit_from_being_over(run_program: RunProgram, what: str) -> None:
    done = run_program(program_text("faults/damages_its_progress_page"), what, limit=110)
    assert done.code == 0, done.err[-3000:]
    assert done.out == "done\n"
