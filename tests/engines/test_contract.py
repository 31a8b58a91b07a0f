"""One contract for all engines: what holds on one holds on each, clusters included.

The clusters are real, two processes each; without the packages dask and ray their cases are skipped, and say so.
"""

from __future__ import annotations

import importlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from joblib import Parallel, cpu_count, delayed, parallel_config

import joblib_stateful
from contract import ALL, N_JOBS, PROCESSES, Model, count, hang, kill_oneself, on, values
from joblib_stateful import (
    Failure,
    StatefulExecutor,
    call_worker,
    engines,
    errors,
    get_worker,
    get_worker_info,
    stateful_map,
)

pytestmark = pytest.mark.cluster


# --- an engine and its runtimes -------------------------------------------------------------------------


@on(*ALL)
def test_each_executor_has_a_runtime_of_its_own_and_to_make_one_starts_nothing(engine: Any) -> None:
    named = engines.get(engine)

    def started() -> tuple[set[Any], set[Any]]:
        threads = (thread for thread in threading.enumerate() if thread.name.startswith("joblib_stateful"))
        return set(threads), set(psutil.Process().children())

    before = started()
    one, other = named.make_runtime(N_JOBS), named.make_runtime(1)
    assert one is not other
    assert one.engine is other.engine is named
    assert repr(one) == f"<runtime of {named!r}>"
    assert [now - earlier for now, earlier in zip(started(), before, strict=True)] == [set(), set()]


@on(*ALL)
def test_runtimes_of_one_engine_understand_each_other(engine: Any) -> None:
    np = pytest.importorskip("numpy")
    one, other = (engines.get(engine).make_runtime(N_JOBS).transport for _ in range(2))
    assert other.unpack(one.pack({"key": lambda: 3}))["key"]() == 3
    # That is how an executor is found again, also by the large arrays among its kwargs.
    array = np.arange(1 << 17)
    assert one.identify(array) == other.identify(array.copy())
    assert one.identify(array) != other.identify(array + 1)


@on(*ALL)
def test_one_engine_serves_several_executors_at_once(engine: Any) -> None:
    options: dict[str, Any] = {"n_jobs": 1, "engine": engine}
    with StatefulExecutor(dict, shared_kwargs={"a": 1}, **options) as one:
        assert one.submit(lambda: get_worker()["a"]).result() == 1
        with StatefulExecutor(dict, shared_kwargs={"a": 2}, **options) as other:
            assert other.submit(lambda: get_worker()["a"]).result() == 2
        assert one.submit(lambda: get_worker()["a"]).result() == 1


# --- features -------------------------------------------------------------------------------------------


@on(*ALL)
@pytest.mark.parametrize("ordered", [True, False])
def test_every_item_comes_once(engine: Any, log: Path, *, ordered: bool) -> None:
    results = stateful_map(
        Model, iter(range(200)), n_jobs=N_JOBS, shared_kwargs={"log": log, "tag": "a"}, ordered=ordered, engine=engine
    )
    found = list(results)
    assert (found if ordered else sorted(found)) == [("a", item) for item in range(200)]
    assert count(log, "built") <= N_JOBS


@on(*ALL)
def test_each_worker_has_its_own_kwargs(engine: Any, log: Path) -> None:
    n_jobs = 1 if engine == "inline" else N_JOBS
    own = [{"tag": f"tag {slot}"} for slot in range(n_jobs)]
    with StatefulExecutor(Model, shared_kwargs={"log": log}, worker_kwargs=own, engine=engine) as executor:
        executor.warm_up()
        assert count(log, "built") == n_jobs

        def look() -> Any:
            info = get_worker_info()
            return info.index, info.n_jobs, get_worker().tag

        found = {executor.submit(look).result() for _ in range(8)}
        assert found <= {(slot, n_jobs, f"tag {slot}") for slot in range(n_jobs)}
        assert [info.n_builds for info in executor.workers()] == [1] * n_jobs
    assert count(log, "closed") == n_jobs


@on(*ALL)
def test_an_executor_reports_what_its_workers_did(engine: Any, log: Path) -> None:
    n_jobs = 1 if engine == "inline" else N_JOBS
    with StatefulExecutor(Model, n_jobs, shared_kwargs={"log": log}, engine=engine) as executor:
        executor.warm_up()
        assert [executor.submit(call_worker, item).result() for item in range(5)] == [("", item) for item in range(5)]
        assert len(list(stateful_map(executor, range(50)))) == 50
        report = executor.report()
        assert report.n_items == sum(info.n_done for info in executor.workers()) == 55
        assert [(worker.slot, worker.n_builds, worker.n_deaths) for worker in report.workers] == [
            (slot, 1, 0) for slot in range(n_jobs)
        ]
        assert 0 < report.busy + report.building + report.transport <= 1.001
    assert executor.report().n_items == 55


@on(*PROCESSES)
def test_an_executor_reports_workers_that_it_has_lost(engine: Any, log: Path) -> None:
    with StatefulExecutor(Model, 1, shared_kwargs={"log": log}, engine=engine) as executor:
        with pytest.raises(errors.WorkerCrashedError):
            executor.submit(kill_oneself).result()
        executor.warm_up()
        (worker,) = executor.report().workers
        assert (worker.n_items, worker.n_builds, worker.n_deaths) == (0, 2, 1)


@on(*ALL)
def test_each_worker_knows_how_many_threads_it_is_meant_to_use(engine: Any) -> None:
    n_jobs = 1 if engine == "inline" else N_JOBS
    with StatefulExecutor(n_jobs=n_jobs, engine=engine) as executor:
        told = executor.run_on_all(lambda: get_worker_info().n_threads)
        there = executor.run_on_all(lambda: len(os.sched_getaffinity(0)))
    # A cluster's workers are elsewhere, and are told nothing: they have what there is.
    share = max(cpu_count() // n_jobs, 1)
    assert told == (there if engines.get(engine).is_remote else [share] * n_jobs)


@on(*ALL)
@pytest.mark.parametrize(("pass_as", "item"), [("item", (3, 4)), ("args", (3, 4)), ("kwargs", {"x": 3, "y": 4})])
def test_items_are_passed_as_one_asks(engine: Any, pass_as: Any, item: Any) -> None:
    def add(x: Any, y: int = 0) -> int:
        return sum(x) if isinstance(x, tuple) else x + y

    assert list(stateful_map(add, [item] * 3, n_jobs=N_JOBS, pass_as=pass_as, engine=engine)) == [7] * 3


@on(*ALL)
def test_objects_are_there_for_the_next_map(engine: Any, log: Path) -> None:
    for _ in range(3):
        assert len(list(stateful_map(Model, range(20), n_jobs=1, shared_kwargs={"log": log}, engine=engine))) == 20
    assert (count(log, "built"), count(log, "closed")) == (1, 0)
    joblib_stateful.shutdown()
    assert count(log, "closed") == 1


@on(*ALL)
def test_it_serves_joblib(engine: Any, log: Path) -> None:
    options = {"worker": Model, "shared_kwargs": {"log": log, "tag": "joblib"}, "engine": engine}
    with parallel_config(backend="stateful", n_jobs=N_JOBS, **options):
        found = Parallel()(delayed(lambda item: (get_worker().tag, item))(item) for item in range(20))
    assert found == [("joblib", item) for item in range(20)]


@on(*ALL)
def test_it_serves_scikit_learn(engine: Any) -> None:
    model_selection, neighbors = (
        pytest.importorskip("sklearn.model_selection"),
        importlib.import_module("sklearn.neighbors"),
    )
    np = pytest.importorskip("numpy")
    data = np.random.default_rng(0).random((90, 4))
    kinds = np.arange(90) % 3

    class Nearest(neighbors.KNeighborsClassifier):  # type: ignore[misc, name-defined]  # scikit-learn is not typed
        def fit(self, x: Any, y: Any) -> Any:
            self.where_ = get_worker()["where"]
            return super().fit(x, y)

    def search() -> Any:
        return model_selection.GridSearchCV(neighbors.KNeighborsClassifier(), {"n_neighbors": [1, 3, 5]}, cv=3)

    expected = search().fit(data, kinds)
    options = {"worker": dict, "shared_kwargs": {"where": "there"}, "engine": engine}
    with parallel_config(backend="stateful", n_jobs=N_JOBS, **options):
        found = search().fit(data, kinds)
        fits = model_selection.cross_validate(Nearest(), data, kinds, cv=3, return_estimator=True)["estimator"]
    np.testing.assert_array_equal(found.cv_results_["mean_test_score"], expected.cv_results_["mean_test_score"])
    assert found.best_params_ == expected.best_params_
    assert [fit.where_ for fit in fits] == ["there"] * 3


@on(*ALL)
@pytest.mark.parametrize("batch_size", [1, 3, "auto"])
def test_the_bound_holds_at_every_pull(engine: Any, batch_size: Any) -> None:
    pulled = yielded = 0

    def items() -> Iterator[int]:
        nonlocal pulled
        for item in range(100):
            pulled += 1
            assert pulled - yielded <= 8
            yield item

    for _ in stateful_map(abs, items(), n_jobs=N_JOBS, buffer=8, batch_size=batch_size, engine=engine):
        yielded += 1
    assert yielded == 100


@on(*ALL)
def test_a_map_may_be_left_early(engine: Any, log: Path) -> None:
    results = stateful_map(Model, range(1000), n_jobs=N_JOBS, shared_kwargs={"log": log}, buffer=8, engine=engine)
    assert next(iter(results)) == ("", 0)
    results.close()
    again = stateful_map(Model, range(10), n_jobs=N_JOBS, shared_kwargs={"log": log}, engine=engine)
    assert len(list(again)) == 10
    assert count(log, "built") <= N_JOBS


@on(*ALL)
def test_an_object_is_built_anew_after_so_many_items(engine: Any, log: Path) -> None:
    with StatefulExecutor(Model, 1, shared_kwargs={"log": log}, max_tasks_per_worker=2, engine=engine) as executor:
        assert [executor.submit(call_worker, item).result()[1] for item in range(6)] == list(range(6))
    assert (count(log, "built"), count(log, "closed")) == (3, 3)


@on(*ALL)
@pytest.mark.parametrize("mode", ["r", "c"])
def test_large_arrays_come_and_go(engine: Any, mode: Any) -> None:
    np = pytest.importorskip("numpy")
    data = np.arange(400_000.0)
    is_shared = engine in ("loky", "dask", "ray")

    def use(array: Any, number: int) -> Any:
        assert array.flags.writeable == (mode == "c" or not is_shared)
        return array + number

    with parallel_config(backend="stateful", n_jobs=N_JOBS, engine=engine, mmap_mode=mode):
        for number, result in enumerate(Parallel()(delayed(use)(data, number) for number in range(6))):
            np.testing.assert_array_equal(result, data + number)
            result[0] = 1.0  # results can be written to
        data[0] = -1.0  # what the caller changes between two calls arrives changed
        assert Parallel()(delayed(lambda array: array[0])(data) for _ in range(4)) == [-1.0] * 4


# --- errors ---------------------------------------------------------------------------------------------


class CustomError(Exception):
    """Needs two arguments, so that it can't be rebuilt by pickle's default."""

    def __init__(self, item: int, why: str) -> None:
        super().__init__(f"{item}: {why}")
        self.item = item

    def __reduce__(self) -> Any:
        return CustomError, (self.item, "again")


def fail_at_3(item: int) -> int:
    if item == 3:
        raise CustomError(item, "bad")
    return item


@on(*ALL)
def test_an_error_of_an_item_is_raised_where_it_was_asked_for(engine: Any) -> None:
    results = stateful_map(fail_at_3, range(10), n_jobs=N_JOBS, on_error="deferred", engine=engine)
    found = list(results)
    assert [result.index for result in found if not result.ok] == [3]
    assert isinstance(found[3].exception, CustomError)
    assert values(found[:3]) == [0, 1, 2]
    for policy in ("immediate", "wait_others"):
        with pytest.raises(CustomError):
            list(stateful_map(fail_at_3, range(10), n_jobs=N_JOBS, on_error=policy, engine=engine))


@on(*ALL)
def test_a_constructor_that_raises(engine: Any, log: Path) -> None:
    kwargs = {"log": log, "fails": True, "tag": "x"}
    with pytest.raises(errors.WorkerInitError, match="no model for 'x'") as caught:
        list(stateful_map(Model, range(3), n_jobs=N_JOBS, shared_kwargs=kwargs, engine=engine))
    assert isinstance(caught.value.__cause__, ValueError)


class _Unpicklable:
    def __reduce__(self) -> Any:
        raise TypeError("this can't travel")


@on("loky", "memory", "example", "dask", "ray")
def test_what_cannot_travel_is_one_items_error(engine: Any) -> None:
    def give(item: Any) -> Any:
        return threading.Lock() if item == 1 else item

    items = [0, 1, _Unpicklable(), 3]
    found = list(stateful_map(give, items, n_jobs=N_JOBS, on_error="deferred", engine=engine))
    assert [type(result.exception).__name__ for result in found] == ["NoneType", *["TransferError"] * 2, "NoneType"]
    assert [getattr(result.exception, "what", None) for result in found] == [None, "result", "item", None]


# --- calls with many items ------------------------------------------------------------------------------


@on(*ALL)
@pytest.mark.parametrize("ordered", [True, False])
def test_a_worker_may_be_called_with_many_items_at_once(engine: Any, *, ordered: bool) -> None:
    def double(items: list[int]) -> list[int]:
        assert type(items) is list
        return [item * 2 for item in items]

    for batch_size in (1, 7, "auto"):
        options: dict[str, Any] = {"pass_as": "batch", "batch_size": batch_size, "ordered": ordered}
        found = list(stateful_map(double, iter(range(60)), n_jobs=N_JOBS, engine=engine, **options))
        assert (found if ordered else sorted(found)) == [item * 2 for item in range(60)]


@on(*ALL)
def test_the_rows_of_an_array_are_results(engine: Any) -> None:
    np = pytest.importorskip("numpy")

    def numbers(items: list[int]) -> Any:
        return np.array(items, np.int16)

    def rows(items: list[int]) -> Any:
        return np.outer(items, np.ones(100_000, np.float32))

    def records(items: list[int]) -> Any:
        return np.array([(item, str(item)) for item in items], [("number", np.int32), ("text", "U3")])

    for make in (numbers, rows, records):
        found = list(stateful_map(make, range(8), n_jobs=1, pass_as="batch", batch_size=4, engine=engine))
        for item, row in enumerate(found):
            (expected,) = make([item])
            assert (type(row), row.dtype, row.tolist()) == (type(expected), expected.dtype, expected.tolist())
        if make is rows:
            found[0][:] = -1.0  # results can be written to, and each is its own
            assert [row[0] for row in found] == [-1.0, *range(1, 8)]


@on(*ALL)
@pytest.mark.parametrize("isolate", [True, False])
def test_of_a_call_that_raises_the_guilty_items_fail(engine: Any, log: Path, *, isolate: bool) -> None:
    def check(items: list[int]) -> list[int]:
        with log.open("a") as file:
            file.write(f"{len(items)}\n")
        if 5 in items:
            raise CustomError(5, f"among {len(items)}")
        return items

    options: dict[str, Any] = {"pass_as": "batch", "batch_size": 4, "on_error": "deferred", "isolate": isolate}
    found = list(stateful_map(check, range(12), n_jobs=N_JOBS, engine=engine, **options))
    assert [result.index for result in found if not result.ok] == ([5] if isolate else [4, 5, 6, 7])
    assert {type(result.exception) for result in found if not result.ok} == {CustomError}
    assert all(result.value == result.index for result in found if result.ok)
    assert sorted(log.read_text().split()) == ["1", "1", "2", "2", "4", "4", "4"][0 if isolate else 4 :]


@on(*ALL)
def test_a_worker_may_say_which_items_have_failed(engine: Any) -> None:
    def invert(items: list[int]) -> list[Any]:
        return [1 / item if item else Failure(CustomError(item, "zero")) for item in items]

    options: dict[str, Any] = {"pass_as": "batch", "batch_size": 3, "on_error": "deferred"}
    found = list(stateful_map(invert, [1, 0, 2], n_jobs=1, engine=engine, **options))
    assert values(found) == [1.0, None, 0.5]
    assert isinstance(found[1].exception, CustomError)


@on(*PROCESSES)
@pytest.mark.parametrize("retries", [0, 1])
def test_a_crash_costs_the_items_of_its_call_and_no_others(engine: Any, log: Path, retries: int) -> None:
    def work(items: list[int]) -> list[int]:
        with log.open("a") as file:
            file.write(f"{' '.join(map(str, items))}\n")
        if 5 in items:
            kill_oneself()
        return items

    options: dict[str, Any] = {"pass_as": "batch", "batch_size": 2, "on_error": "deferred", "retries": retries}
    found = list(stateful_map(work, range(12), n_jobs=N_JOBS, engine=engine, **options))
    assert [result.index for result in found] == list(range(12))
    assert all(result.value == result.index for result in found if result.ok)
    lost = [result.exception for result in found if not result.ok]
    assert [(error.index, error.n_items) for error in lost if isinstance(error, errors.WorkerCrashedError)] == (
        [(5, 1)] if retries else [(4, 2), (5, 2)]
    )
    assert sorted(log.read_text().splitlines()) == sorted(
        ["0 1", "2 3", "4 5", "6 7", "8 9", "10 11", *["4", "5"] * retries]
    )


@on(*PROCESSES)
def test_a_call_over_the_time_of_all_its_items_is_ended(engine: Any) -> None:
    def work(items: list[int]) -> list[int]:
        if 3 in items:
            hang()
        return items

    options: dict[str, Any] = {"pass_as": "batch", "batch_size": 2, "on_error": "deferred", "item_timeout": 1.0}
    found = list(stateful_map(work, range(6), n_jobs=N_JOBS, engine=engine, **options))
    assert [result.index for result in found if not result.ok] == [2, 3]
    for result in found[2:4]:
        assert isinstance(result.exception, errors.ItemTimeoutError)
        assert "longer than 2 x item_timeout=1 s" in str(result.exception)


# --- processes that die or hang -------------------------------------------------------------------------


@on(*PROCESSES)
def test_a_crash_costs_its_item_and_no_other_object(engine: Any, log: Path) -> None:
    items: list[Any] = [*range(20), kill_oneself, *range(20)]
    options = {"n_jobs": N_JOBS, "shared_kwargs": {"log": log}, "batch_size": 1, "engine": engine}
    found = list(stateful_map(Model, items, on_error="deferred", **options))
    (lost,) = [result for result in found if not result.ok]
    assert isinstance(lost.exception, errors.WorkerCrashedError)
    assert (lost.index, lost.exception.index) == (20, 20)
    assert lost.exception.slot in range(N_JOBS)
    assert lost.exception.pid is not None
    assert [result.index for result in found] == list(range(41))
    assert count(log, "built") in (N_JOBS, N_JOBS + 1)


@on(*PROCESSES)
def test_a_crash_in_a_batch_costs_one_item_too(engine: Any, log: Path) -> None:
    items: list[Any] = [*range(20), kill_oneself, *range(20)]
    options = {"n_jobs": N_JOBS, "shared_kwargs": {"log": log}, "batch_size": 7, "engine": engine}
    found = list(stateful_map(Model, items, on_error="deferred", **options))
    assert [result.index for result in found if not result.ok] == [20]


@on(*PROCESSES)
def test_an_item_is_tried_again_after_a_crash(engine: Any, log: Path, tmp_path: Path) -> None:
    mark = tmp_path / "has died"

    def die_once() -> str:
        if not mark.exists():
            mark.touch()
            kill_oneself()
        return "alive"

    found = stateful_map(Model, [die_once], n_jobs=N_JOBS, shared_kwargs={"log": log}, retries=1, engine=engine)
    assert list(found) == ["alive"]
    assert count(log, "built") == 2


@on(*PROCESSES)
def test_a_worker_that_dies_idle_is_replaced(engine: Any, log: Path) -> None:
    with StatefulExecutor(Model, 1, shared_kwargs={"log": log}, engine=engine) as executor:
        executor.warm_up()
        (info,) = executor.workers()
        assert info.pid is not None
        os.kill(info.pid, signal.SIGKILL)
        # A cluster may hear of it only after the call was sent, and can't tell whether that had begun.
        retries = 0 if engine == "loky" else 1
        assert list(stateful_map(executor, [1], retries=retries)) == [("", 1)]
    assert count(log, "built") == 2


@on(*PROCESSES)
def test_an_item_over_its_time_is_ended(engine: Any, log: Path) -> None:
    items: list[Any] = [1, hang, 3, 4]
    options = {"n_jobs": N_JOBS, "shared_kwargs": {"log": log}, "engine": engine, "item_timeout": 1.0}
    found = list(stateful_map(Model, items, on_error="deferred", **options))
    assert [type(result.exception).__name__ for result in found] == ["NoneType", "ItemTimeoutError", *["NoneType"] * 2]
    assert isinstance(found[1].exception, errors.ItemTimeoutError)
    assert found[1].exception.pid is not None


@on("example", "dask", "ray")
def test_a_time_limit_is_for_single_items(engine: Any) -> None:
    with pytest.raises(ValueError, match=r"batch_size=4.*which item of a batch runs isn't seen"):
        stateful_map(abs, [1], engine=engine, n_jobs=1, item_timeout=1.0, batch_size=4)
