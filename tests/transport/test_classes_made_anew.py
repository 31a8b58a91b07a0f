"""Classes and functions of a script in workers, where it matters how they are made there and which object is which."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING

import pytest

from joblib_stateful import stateful_map
from programs import USER_PROGRAMS, program_text

if TYPE_CHECKING:
    from conftest import RunProgram

_KINDS = sorted(file.stem for file in (USER_PROGRAMS / "transport" / "classes").glob("[!_]*.py"))


@pytest.mark.parametrize("kind", _KINDS)
def test_a_map_gives_what_a_loop_gives(kind: str, run_program: RunProgram) -> None:
    done = run_program(program_text(f"transport/classes/{kind}"))
    assert (done.code, done.out) == (0, ""), done.err


def test_a_dataclass_that_another_pickler_has_brought_back_can_travel() -> None:
    @dataclasses.dataclass
    class Point:
        x: float

    for field in dataclasses.fields(Point):
        field.default = copy.copy(dataclasses.MISSING)  # as joblib's results leave it
    (found,) = stateful_map(lambda point: point, [Point(1.0)], n_jobs=1)
    assert found == Point(1.0)
