"""Users' finalisers that use an executor, run wherever garbage is collected: also where a thread holds a lock of ours."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from joblib_stateful._process import _locks
from programs import program_text

if TYPE_CHECKING:
    from conftest import RunProgram


@pytest.mark.parametrize("engine", ["loky", "threads", "inline"])
@pytest.mark.parametrize("use", ["submit", "look", "close_map", "end"])
def test_a_finaliser_that_runs_under_any_of_our_locks(run_program: RunProgram, engine: str, use: str) -> None:
    done = run_program(
        program_text("executor/uses_executors_in_finalisers"),
        engine,
        use,
        "under any lock",
        limit=60,
    )
    assert (done.code, done.out) == (0, "done\n"), done.err[-3000:]


@pytest.mark.parametrize("engine", ["loky", "threads"])
@pytest.mark.parametrize("use", ["submit", "look"])
def test_finalisers_in_all_threads_all_the_time(run_program: RunProgram, engine: str, use: str) -> None:
    done = run_program(
        program_text("executor/uses_executors_in_finalisers"),
        engine,
        use,
        "all the time",
        limit=60,
    )
    assert (done.code, done.out) == (0, "done\n"), done.err[-3000:]


def test_what_a_thread_holds_is_known_to_it_alone() -> None:
    lock, found = _locks.make_lock(), list[bool]()
    with lock:
        thread = threading.Thread(target=lambda: found.append(_locks.is_held()))
        thread.start()
        thread.join()
        assert _locks.is_held()
    assert found == [False]
    assert not _locks.is_held()


@pytest.mark.parametrize("engine", ["loky", "threads", "inline"])
def test_a_map_that_is_left_by_a_finaliser_under_one_of_our_locks(run_program: RunProgram, engine: str) -> None:
    done = run_program(program_text("executor/leaves_maps_in_finalisers"), engine, limit=60)
    assert (done.code, done.out) == (0, "done\n"), done.err[-3000:]
