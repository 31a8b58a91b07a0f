"""Several users of one executor, and of one process: right results, each its own, objects built once."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import joblib
import loky
import numpy as np
import pytest
from joblib import Parallel, delayed, parallel_config

from joblib_stateful import StatefulExecutor, call_worker, errors, get_worker_info, stateful_map
from scenes import Log, Scene, new_scene, parallel_engines


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return new_scene(tmp_path)


class Model:
    """Counts its own calls; some items make trouble."""

    def __init__(self, log: Log) -> None:
        log.note(f"{get_worker_info().index} {os.getpid()}")

    def __call__(self, item: Any) -> Any:
        if item == "raise":
            raise ValueError(item)
        if item == "crash":
            os._exit(3)
        return item


def built_per_slot(log: Log) -> list[str]:
    return sorted(line.split()[0] for line in log.lines)


@contextmanager
def executor_of(scene: Scene) -> Iterator[StatefulExecutor]:
    with StatefulExecutor(Model, 2, shared_kwargs={"log": scene.log()}) as executor:
        executor.warm_up()
        yield executor


# --- one executor, one thread ---------------------------------------------------------------------------


def test_maps_of_all_kinds_interleaved(scene: Scene) -> None:
    with executor_of(scene) as executor:
        ordered = stateful_map(executor, range(200), buffer=16)
        unordered = stateful_map(executor, range(1000, 1200), ordered=False, batch_size=1)
        single = stateful_map(executor, range(2000, 2200), batch_size=7, buffer=7)
        found: list[list[int]] = [[], [], []]
        for number in range(200):
            for results, into in zip((ordered, unordered, single), found, strict=True):
                into.append(next(results))
            if number % 50 == 0:  # calls by themselves go between them
                assert executor.submit(call_worker, "own").result(60) == "own"
        assert found[0] == list(range(200))
        assert sorted(found[1]) == list(range(1000, 1200))
        assert found[2] == list(range(2000, 2200))
        assert [next(results, None) for results in (ordered, unordered, single)] == [None] * 3
        assert built_per_slot(scene.log()) == ["0", "1"]


@pytest.mark.parametrize("policy", ["immediate", "wait_others"])
def test_an_error_of_one_map_is_not_the_others(policy: Any, scene: Scene) -> None:
    with executor_of(scene) as executor:
        fails = stateful_map(executor, [*range(20), "raise", *range(20)], on_error=policy, batch_size=1)
        goes_on = stateful_map(executor, range(200), buffer=16)
        found = [next(goes_on) for _ in range(10)]
        with pytest.raises(ValueError, match="raise"):
            list(fails)
        assert found + list(goes_on) == list(range(200))
        assert built_per_slot(scene.log()) == ["0", "1"]


def test_leaving_one_map_leaves_the_other(scene: Scene) -> None:
    with executor_of(scene) as executor:
        left = stateful_map(executor, range(1000), batch_size=1)
        goes_on = stateful_map(executor, range(200), buffer=16)
        found = [next(goes_on) for _ in range(10)]
        assert next(left) == 0
        left.close()
        assert found + list(goes_on) == list(range(200))
        assert built_per_slot(scene.log()) == ["0", "1"]


def test_a_crash_in_one_map_costs_the_other_nothing(scene: Scene) -> None:
    with executor_of(scene) as executor:
        crashes = stateful_map(executor, [*range(20), "crash", *range(20)], on_error="deferred", batch_size=1)
        goes_on = stateful_map(executor, range(200), buffer=16, batch_size=1)
        pairs = [(next(crashes), next(goes_on)) for _ in range(41)]
        bad = [result for result, _ in pairs if not result.ok]
        assert [result.index for result in bad] == [20]
        assert isinstance(bad[0].exception, errors.WorkerCrashedError)
        assert [item for _, item in pairs] + list(goes_on) == list(range(200))
        assert len(scene.log().lines) <= 3


# --- one executor, several threads ----------------------------------------------------------------------


@parallel_engines
def test_four_threads_at_once_each_get_their_own(engine: str, scene: Scene) -> None:
    found: dict[tuple[int, int], Any] = {}
    start = threading.Barrier(4)

    def work(number: int, executor: StatefulExecutor) -> None:
        items: list[Any] = list(range(1000 * number, 1000 * number + 150))
        start.wait(60)
        for turn in range(3):
            if number == 0:  # one of them has errors, and keeps them
                bad = [*items, "raise"]
                results = list(stateful_map(executor, bad, on_error="deferred"))
                assert [result.index for result in results if not result.ok] == [150]
                found[number, turn] = [result.value for result in results[:-1]]
            elif number == 1:  # one leaves early
                with stateful_map(executor, items) as some:
                    found[number, turn] = [next(some) for _ in range(50)]
            else:
                found[number, turn] = list(stateful_map(executor, items, ordered=number == 2))

    with StatefulExecutor(Model, 2, shared_kwargs={"log": scene.log()}, engine=engine) as executor:
        threads = [threading.Thread(target=work, args=(number, executor)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(100)
    assert set(found) == {(number, turn) for number in range(4) for turn in range(3)}
    for (number, _), values in found.items():
        expected = list(range(1000 * number, 1000 * number + (50 if number == 1 else 150)))
        assert (sorted(values) if number == 3 else values) == expected
    assert built_per_slot(scene.log()) in (["0"], ["0", "1"])


# --- others in the same process -------------------------------------------------------------------------


def test_a_grid_search_and_lokys_own_executor_in_between(scene: Scene) -> None:
    with executor_of(scene) as executor:
        svm = pytest.importorskip("sklearn.svm")
        selection = pytest.importorskip("sklearn.model_selection")
        rng = np.random.default_rng(0)
        features = rng.normal(size=(60, 4))
        target = (features[:, 0] > 0).astype(int)

        def search() -> Any:
            grid = selection.GridSearchCV(svm.SVC(), {"C": [0.1, 1.0, 10.0]}, cv=2, n_jobs=2)
            return grid.fit(features, target).cv_results_["mean_test_score"].tolist()

        with parallel_config(backend="sequential"):
            expected = search()
        results = stateful_map(executor, range(300), buffer=16)
        found = [next(results) for _ in range(10)]
        assert search() == expected  # joblib's loky
        found += [next(results) for _ in range(10)]
        theirs = loky.get_reusable_executor(max_workers=2)
        assert list(theirs.map(abs, range(-5, 0))) == [5, 4, 3, 2, 1]
        found += [next(results) for _ in range(10)]
        with parallel_config(backend="stateful", n_jobs=2):
            assert search() == expected
            found += [next(results) for _ in range(10)]
            assert Parallel()(delayed(abs)(-n) for n in range(5)) == list(range(5))
        theirs.shutdown(wait=True, kill_workers=True)
        assert found + list(results) == list(range(300))
        assert executor.submit(call_worker, "still there").result(60) == "still there"
        assert built_per_slot(scene.log()) == ["0", "1"]
        joblib.externals.loky.get_reusable_executor().shutdown(wait=True)
