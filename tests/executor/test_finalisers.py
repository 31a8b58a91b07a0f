"""Users' finalisers that use an executor, run wherever garbage is collected: also where a thread holds a lock of ours."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from joblib_stateful._process import _locks

if TYPE_CHECKING:
    from conftest import RunProgram

_PROGRAM = """
import faulthandler, gc, sys, threading
from concurrent.futures import wait
from joblib_stateful import StatefulExecutor, shutdown, stateful_map
from joblib_stateful._process import _locks

faulthandler.dump_traceback_later(50, exit=True)
futures, seen, done = [], [], threading.Event()
executor = StatefulExecutor(n_jobs=2, engine=sys.argv[1], item_timeout=None if sys.argv[1] != "loky" else 60)
others = []

class Finalised:
    def __init__(self):
        self.me = self  # garbage that only the collector finds
    def __del__(self):
        use()
        seen.append(_locks.is_held())

def submit():
    futures.append(executor.submit(abs, -1))

def look():
    assert len(executor.workers()) == 2

def close_map():
    results = stateful_map(abs, range(3), n_jobs=2, engine=sys.argv[1])
    results.close()

def end():
    other = StatefulExecutor(n_jobs=1, engine=sys.argv[1])
    others.append(other)
    other.submit(abs, -1)
    other.shutdown(wait=True)

use = globals()[sys.argv[2]]
"""


@pytest.mark.parametrize("engine", ["loky", "threads", "inline"])
@pytest.mark.parametrize("use", ["submit", "look", "close_map", "end"])
def test_a_finaliser_that_runs_under_any_of_our_locks(run_program: RunProgram, engine: str, use: str) -> None:
    done = run_program(
        _PROGRAM
        + """
assert executor.submit(abs, -5).result(timeout=40) == 5
for lock in [ref() for ref in list(_locks._alive.values())]:
    if lock is None:
        continue
    Finalised()
    with lock:  # as if the collector struck there
        gc.collect()
    assert seen.pop()
    Finalised()
    gc.collect()
    assert not seen.pop()
assert not seen
while use is submit and len(futures) < 2:
    pass
for future in futures:
    assert future.result(timeout=40) == 1
executor.shutdown()
shutdown()
print("done")
""",
        engine,
        use,
        limit=60,
    )
    assert (done.code, done.out) == (0, "done\n"), done.err[-3000:]


@pytest.mark.parametrize("engine", ["loky", "threads"])
@pytest.mark.parametrize("use", ["submit", "look"])
def test_finalisers_in_all_threads_all_the_time(run_program: RunProgram, engine: str, use: str) -> None:
    done = run_program(
        _PROGRAM
        + """
gc.set_threshold(1)  # the collector runs wherever anything is made

class Item:
    def __init__(self):
        Finalised()

assert list(stateful_map(abs, (Item() and -item for item in range(60)), n_jobs=2, batch_size=1, engine=sys.argv[1])) == [*range(60)]
for _ in range(60):
    Finalised()
    executor.submit(abs, -2)
gc.set_threshold(700)
gc.collect()
for future in list(futures):
    assert future.result(timeout=40) == 1
assert len(seen) >= 120
executor.shutdown()
shutdown()
print("done")
""",
        engine,
        use,
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
    done = run_program(
        """
import faulthandler, gc, sys
from joblib_stateful import shutdown, stateful_map
from joblib_stateful._process import _locks

faulthandler.dump_traceback_later(50, exit=True)

def results():
    with stateful_map(abs, iter(range(10**6)), n_jobs=2, engine=sys.argv[1]) as found:
        yield from found

gc.disable()
first = results()
assert next(first) == 0  # from now on there are all the locks
for lock in [ref() for ref in list(_locks._alive.values())]:
    cycle = [results()]
    assert next(cycle[0]) == 0
    cycle.append(cycle)
    del cycle  # garbage that only the collector finds
    with lock:  # as if it struck there
        gc.collect()
first.close()
shutdown()
print("done")
""",
        engine,
        limit=60,
    )
    assert (done.code, done.out) == (0, "done\n"), done.err[-3000:]
