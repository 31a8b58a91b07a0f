"""`max_concurrency` of workers that are not async: several items at once in threads of one process."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from joblib_stateful import StatefulExecutor, TaskResult, call_worker, errors, get_worker, get_worker_info, stateful_map
from scenes import CountingCalls, Scene, engines, new_scene, parallel_engines

if TYPE_CHECKING:
    from pathlib import Path

N_AT_ONCE = 4


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return new_scene(tmp_path)


class Counting(CountingCalls):
    awaited = N_AT_ONCE


def meet(worker: Counting) -> int:
    # Not a barrier: how many items each of several workers gets isn't said, and the last ones might wait for others.
    assert worker.all_are_here.wait(30)
    return threading.get_ident()


@parallel_engines
def test_a_worker_is_called_from_as_many_threads_as_max_concurrency_says(engine: str) -> None:
    found = list(stateful_map(Counting, [meet] * 40, n_jobs=1, max_concurrency=N_AT_ONCE, engine=engine))
    assert len(set(found)) >= N_AT_ONCE
    with StatefulExecutor(Counting, 2, max_concurrency=N_AT_ONCE, engine=engine) as executor:
        executor.warm_up()
        list(stateful_map(executor, [meet] * 80))
        assert executor.run_on_all(lambda: get_worker().most) == [N_AT_ONCE, N_AT_ONCE]


@engines
def test_order_and_values_are_as_with_one_at_a_time(engine: str) -> None:
    assert list(stateful_map(Counting, range(300), n_jobs=2, max_concurrency=3, engine=engine)) == list(range(300))


@parallel_engines
@pytest.mark.parametrize("size", [10, 1_000_000])
def test_arrays_of_calls_under_way_at_once_are_not_mixed_up(engine: str, size: int) -> None:
    def double(array: Any) -> Any:
        return 2 * array

    arrays = [np.full(size, number, dtype=np.int64) for number in range(24)]
    found = stateful_map(double, arrays, n_jobs=2, max_concurrency=3, engine=engine)
    for number, array in enumerate(found):
        assert array.shape == (size,)
        assert (array == 2 * number).all()
        array.fill(0)  # it is the caller's


@parallel_engines
def test_items_that_travel_together_run_one_after_the_other(engine: str) -> None:
    def who(_: int) -> int:
        return threading.get_ident()

    found = list(stateful_map(who, range(40), n_jobs=1, max_concurrency=2, batch_size=10, engine=engine))
    assert all(len(set(found[at : at + 10])) == 1 for at in range(0, 40, 10))


@parallel_engines
def test_submitted_calls_run_at_once_too(engine: str) -> None:
    with StatefulExecutor(Counting, 1, max_concurrency=N_AT_ONCE, engine=engine) as executor:
        futures = [executor.submit(call_worker, meet) for _ in range(N_AT_ONCE)]
        assert len({future.result() for future in futures}) == N_AT_ONCE
        assert executor.submit(lambda: get_worker_info().index).result() == 0
        assert executor.submit(call_worker, 3).result() == 3


@parallel_engines
def test_objects_are_built_anew_only_when_nothing_is_under_way(engine: str) -> None:
    def who(worker: Counting) -> int:
        return id(worker)

    with StatefulExecutor(Counting, 1, max_concurrency=3, max_tasks_per_worker=5, engine=engine) as executor:
        found = list(stateful_map(executor, [who] * 22))
        assert max(Counter(found).values()) <= 5 or engine == "threads"  # where an address is used again
        assert [info.n_builds for info in executor.workers()] == [5]


@pytest.mark.parametrize("retries", [0, 1])
def test_one_item_over_its_time_costs_the_others_under_way_their_worker(scene: Scene, retries: int) -> None:
    runs, is_there = scene.log("runs"), scene.log("is there")

    def run(item: int) -> int:
        runs.note(item)
        if runs.lines.count(str(item)) == 1 and item < 3:
            is_there.note(item)
            is_there.wait_for(3)
            threading.Event().wait(600 if item == 1 else 30)
        return item

    found = list(
        stateful_map(run, range(6), n_jobs=1, max_concurrency=3, item_timeout=1.5, retries=retries, on_error="deferred")
    )
    failed = [result for result in found if not result.ok]
    assert [result.value for result in found if result.ok] == (list(range(6)) if retries else [3, 4, 5])
    kinds = Counter(type(result.exception) for result in failed)
    assert sum(kinds.values()) == (0 if retries else 3)
    assert set(kinds) <= {errors.ItemTimeoutError, errors.WorkerCrashedError}
    assert retries or kinds[errors.ItemTimeoutError] >= 1
    assert Counter(runs.lines) == {str(item): 1 + (item < 3 and retries) for item in range(6)}


@pytest.mark.parametrize("retries", [0, 1])
def test_a_crash_blames_all_that_were_under_way(scene: Scene, retries: int) -> None:
    runs, is_there = scene.log("runs"), scene.log("is there")

    def run(item: int) -> int:
        runs.note(item)
        if item < 3 and runs.lines.count(str(item)) == 1:
            is_there.note(item)
            is_there.wait_for(3)
            if item == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)
        return item

    found = list(stateful_map(run, range(6), n_jobs=1, max_concurrency=3, retries=retries, on_error="deferred"))
    failed = [result.index for result in found if not result.ok]
    assert failed == ([] if retries else [0, 1, 2])
    assert all(isinstance(found[index].exception, errors.WorkerCrashedError) for index in failed)
    assert Counter(runs.lines) == {str(item): 1 + (item < 3 and retries) for item in range(6)}


def test_nothing_is_lost_if_a_worker_with_several_calls_is_killed_from_outside(scene: Scene) -> None:
    runs = scene.log("runs")

    def run(item: int) -> int:
        runs.note(f"{item} {os.getpid()}")
        return item

    results = stateful_map(
        run, range(400), n_jobs=2, max_concurrency=4, on_error="deferred", max_restarts=100, buffer=50
    )
    found: list[TaskResult[int]] = []
    killed: set[int] = set()
    for result in results:
        found.append(result)
        if result.index % 40 == 7:
            pid = int(runs.lines[-1].split()[1])
            if pid not in killed:  # else nothing has run since, and all that is given was there before
                killed.add(pid)
                os.kill(pid, signal.SIGKILL)
    assert len(killed) >= 2
    assert [result.index for result in found] == list(range(400))
    assert all(result.value == result.index for result in found if result.ok)
    assert all(isinstance(result.exception, errors.WorkerCrashedError) for result in found if not result.ok)
    assert max(Counter(line.split()[0] for line in runs.lines).values()) == 1, "retries=0"


@parallel_engines
def test_a_slow_callback_keeps_no_call_from_being_answered(engine: str) -> None:
    may_go_on, others = threading.Event(), []

    with StatefulExecutor(n_jobs=1, max_concurrency=2, engine=engine) as executor:
        first = executor.submit(abs, -1)
        first.add_done_callback(lambda _: may_go_on.wait(30))
        others = [executor.submit(abs, -number).result(timeout=30) for number in range(10)]
        may_go_on.set()
    assert others == list(range(10))


@parallel_engines
def test_maps_of_several_threads_with_functions_of_their_own_share_workers(engine: str) -> None:
    # Each function goes to a worker once, and messages that count on it may not come before it.
    def run(factor: int) -> list[list[int]]:
        found = []
        for offset in range(10):

            def work(item: int, factor: int = factor, offset: int = offset) -> int:
                return factor * item + offset

            found.append(list(stateful_map(work, range(30), n_jobs=2, max_concurrency=4, engine=engine)))
        return found

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(run, range(4)))
    assert found == [[[factor * item + offset for item in range(30)] for offset in range(10)] for factor in range(4)]
