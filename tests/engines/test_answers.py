"""What a worker may answer to a call with many items: anything else is a crash, and counts nothing wrongly."""

from __future__ import annotations

from typing import Any

import pytest

from joblib_stateful._transport._transport import Parcel
from joblib_stateful._worker._messages import Failure, Ran, Run
from joblib_stateful.engines._answers import fault_in

pytestmark = pytest.mark.unit

N_ITEMS = 5
FAILURE = Failure(None, "ValueError", "no", "ValueError: no", "")


def parcel(n_values: int, *, joint: bool = False) -> Parcel:
    return Parcel((b"",) * (1 if joint else n_values), n_values, joint=joint, nbytes=0)


def counted(**counts: Any) -> Ran:
    return answer(1, (5,))._replace(**counts)


MESSAGE = Run(seq=3, mode="batch", target_id=None, target=None, parcel=parcel(N_ITEMS), after_error="go_on")


def answer(n_values: int, rows: Any, *, n_run: int = N_ITEMS, failed: tuple[int, ...] = (), joint: bool = False) -> Ran:
    return Ran(3, n_run, parcel(n_values, joint=joint), dict.fromkeys(failed, FAILURE), 0.1, rows=rows)


@pytest.mark.parametrize(
    "reply",
    [
        answer(5, ()),
        answer(1, (5,)),
        answer(2, (2, 3)),
        answer(3, (2, 0, 2)),
        answer(5, (0,) * 5),
        answer(5, (), joint=True),
        answer(2, (2, 1), failed=(0, 4)),
        answer(0, (), failed=(0, 1, 2, 3, 4)),
        answer(1, (3,), n_run=3),
    ],
)
def test_as_many_results_as_there_are_items(reply: Ran) -> None:
    assert fault_in(MESSAGE, reply) == ""


@pytest.mark.parametrize(
    "reply",
    [
        answer(1, (4,)),
        answer(1, (6,)),
        answer(2, (6, -1)),
        answer(1, [5]),
        answer(1, (5.0,)),
        answer(1, (True,)),
        answer(1, None),
        answer(2, (5,)),
        answer(1, (2, 3)),
        answer(1, (5,), failed=(0,)),
        answer(1, (5,), n_run=3),
        answer(0, (), n_run=0),
        counted(n_calls="1"),
        counted(n_calls=-1),
        counted(n_fit=None),
        counted(n_fit=-1),
        counted(n_fit=6),
    ],
)
def test_what_can_not_be(reply: Ran) -> None:
    assert fault_in(MESSAGE, reply) != ""
