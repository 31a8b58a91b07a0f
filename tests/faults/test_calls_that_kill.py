"""Calls with many items that end their worker, or take too long: all of their items are suspect, and no others."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from joblib_stateful import TaskResult, errors, stateful_map
from scenes import Log, Scene, crash, new_scene, orders

if TYPE_CHECKING:
    from conftest import RunProgram


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return new_scene(tmp_path)


@pytest.fixture
def calls(scene: Scene) -> Log:
    """Return where workers note what they are called with."""
    return scene.log("calls")


class Works:
    """Dies of some items, and raises for others."""

    def __init__(self, calls: Log, deadly: set[int], guilty: set[int] = frozenset(), most: int = 1000) -> None:  # type: ignore[assignment]
        self.calls, self.deadly, self.guilty, self.most = calls, deadly, guilty, most
        self.calls.note("built")

    def __call__(self, items: list[int]) -> list[int]:
        self.calls.note(" ".join(map(str, items)))
        if self.deadly & set(items) and len(items) <= self.most:
            crash()
        if self.guilty & set(items):
            raise LookupError(len(items))
        return [item * 10 for item in items]


def run(n_items: int, calls: Log, deadly: set[int], **options: Any) -> list[TaskResult[int]]:
    kwargs = {"calls": calls, "deadly": deadly, **options.pop("kwargs", {})}
    options = {"n_jobs": 2, "batch_size": 4, "on_error": "deferred", **options}
    return list(stateful_map(Works, range(n_items), shared_kwargs=kwargs, pass_as="batch", **options))


def runs(calls: Log) -> Counter[int]:
    """Return how often each item was run."""
    return Counter(int(item) for line in calls.lines if line != "built" for item in line.split())


def failed(results: Sequence[TaskResult[Any]]) -> list[int]:
    return [result.index for result in results if not result.ok]


def check_values(results: Sequence[TaskResult[int]]) -> None:
    assert [result.index for result in results] == list(range(len(results)))
    assert all(result.value == result.index * 10 for result in results if result.ok)


# --- crashes --------------------------------------------------------------------------------------------


def test_a_crash_costs_all_items_of_its_call_and_no_others(calls: Log) -> None:
    found = run(40, calls, {17})
    check_values(found)
    assert failed(found) == [16, 17, 18, 19]
    for result in found[16:20]:
        error = result.exception
        assert isinstance(error, errors.WorkerCrashedError)
        assert (error.index, error.n_items, error.exitcode) == (result.index, 4, 3)
        assert f"a call with 4 items, item {result.index} among them" in str(error)
        assert "set retries to have them run again in halves" in str(error)
        again = pickle.loads(pickle.dumps(error))
        assert (again.n_items, str(again)) == (4, str(error))
    assert set(runs(calls).values()) == {1}, "none is run twice"
    assert calls.lines.count("built") <= 3


@pytest.mark.parametrize("batch_size", [2, 4, 8])
def test_with_enough_retries_only_the_deadly_item_fails(batch_size: int, calls: Log) -> None:
    n_halvings = batch_size.bit_length() - 1
    found = run(24, calls, {9}, batch_size=batch_size, retries=n_halvings)
    check_values(found)
    assert failed(found) == [9]
    error = found[9].exception
    assert isinstance(error, errors.WorkerCrashedError)
    assert (error.index, error.n_items) == (9, 1)
    assert "while it ran item 9" in str(error)
    n_runs = runs(calls)
    assert n_runs[9] == 1 + n_halvings
    assert max(n_runs.values()) == 1 + n_halvings


def test_with_fewer_retries_what_is_left_of_the_call_fails(calls: Log) -> None:
    found = run(16, calls, {9}, batch_size=8, retries=1)
    check_values(found)
    assert failed(found) == [8, 9, 10, 11]
    assert {getattr(result.exception, "n_items", None) for result in found[8:12]} == {4}
    assert [runs(calls)[item] for item in range(16)] == [1] * 8 + [2] * 8


def test_several_deadly_items_are_all_found(calls: Log) -> None:
    found = run(16, calls, {0, 3, 4, 15}, batch_size=8, retries=3)
    check_values(found)
    assert failed(found) == [0, 3, 4, 15]
    assert {getattr(result.exception, "n_items", None) for result in found if not result.ok} == {1}


def test_a_call_that_dies_once_is_made_up_for_by_a_retry(scene: Scene, calls: Log) -> None:
    def work(items: list[int]) -> list[int]:
        calls.note(" ".join(map(str, items)))
        if 5 in items and not scene.gate("died").path.exists():
            scene.gate("died").open()
            crash()
        return items

    options: dict[str, Any] = {"n_jobs": 2, "pass_as": "batch", "batch_size": 4, "retries": 1}
    assert list(stateful_map(work, range(12), **options)) == [*range(12)]
    assert sorted(line for line in calls.lines if line in ("4 5", "6 7")) == ["4 5", "6 7"]


def test_a_crash_while_a_call_is_repeated_costs_that_part_of_it(calls: Log) -> None:
    # Together they raise; of the halves the first goes well but for one item, and the second one dies.
    found = run(8, calls, {6}, n_jobs=1, batch_size=8, kwargs={"guilty": {1}, "most": 4})
    check_values(found)
    assert failed(found) == [1, 4, 5, 6, 7]
    assert isinstance(found[1].exception, LookupError)
    for result in found[4:]:
        assert isinstance(result.exception, errors.WorkerCrashedError)
        assert result.exception.n_items == 4


@orders
@pytest.mark.parametrize("policy", ["immediate", "wait_others"])
def test_a_crash_is_an_error_as_others_are_under_each_policy(*, policy: Any, ordered: bool, calls: Log) -> None:
    results = stateful_map(
        Works,
        range(12),
        n_jobs=1,
        shared_kwargs={"calls": calls, "deadly": {5}},
        pass_as="batch",
        batch_size=4,
        buffer=12,
        ordered=ordered,
        on_error=policy,
    )
    found: list[int] = []
    with pytest.raises(errors.WorkerCrashedError) as caught:
        found.extend(results)
    assert (caught.value.index, caught.value.n_items) == (4, 4)
    assert found == [0, 10, 20, 30] or (policy == "immediate" and found == [0, 10, 20, 30][: len(found)])
    assert runs(calls)[8] == 0
    assert list(results) == []


PROGRAM = """
import os, pathlib, signal, sys, threading, time
from joblib_stateful import errors, stateful_map

FOLDER = pathlib.Path(sys.argv[1])
RETRIES = int(sys.argv[2])
VICTIMS = (40, 203, 397)  # whose workers are killed in mid-call, once each

class Model:
    def __init__(self):
        self.name = "a model"

    def __call__(self, items):
        for item in items:
            if item in VICTIMS:
                if not (FOLDER / f"waits {item}").exists():
                    (FOLDER / f"half {item}").write_text(str(os.getpid()))
                    (FOLDER / f"half {item}").rename(FOLDER / f"waits {item}")
                    signal.pause()
        return [item * 10 for item in items]

def kill_each():
    for item in VICTIMS:
        while not (FOLDER / f"waits {item}").exists():
            time.sleep(0.002)  # between processes there is nothing to wait for
        os.kill(int((FOLDER / f"waits {item}").read_text()), signal.SIGKILL)

if __name__ == "__main__":
    killer = threading.Thread(target=kill_each, daemon=True)
    killer.start()
    options = dict(pass_as="batch", batch_size=8, retries=RETRIES, on_error="deferred", ordered=sys.argv[3] == "ordered")
    results = list(stateful_map(Model, (item for item in range(480)), n_jobs=3, **options))
    assert sorted(result.index for result in results) == list(range(480))
    assert all(result.value == result.index * 10 for result in results if result.ok)
    lost = sorted(result.index for result in results if not result.ok)
    for result in results:
        if not result.ok:
            assert type(result.exception) is errors.WorkerCrashedError, repr(result.exception)
            assert result.exception.exitcode == -9
            assert result.exception.n_items == 8
    killer.join()
    print(lost)
"""


@pytest.mark.parametrize("order", ["ordered", "unordered"])
@pytest.mark.parametrize("retries", [0, 2])
def test_kills_while_many_calls_are_under_way_lose_nothing_else(
    retries: int, order: str, run_program: RunProgram, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    done = run_program(PROGRAM, str(folder), str(retries), order, limit=60)
    assert (done.code, done.err) == (0, "")
    lost = [] if retries else [*range(40, 48), *range(200, 208), *range(392, 400)]
    assert done.out.strip() == str(lost)


# --- calls that take too long ---------------------------------------------------------------------------


class Waits:
    """Waits in vain if it is called with some item."""

    def __init__(self, calls: Log, endless: int) -> None:
        self.calls, self.endless = calls, endless

    def __call__(self, items: list[int]) -> list[int]:
        self.calls.note(f"{os.getpid()} {len(items)}")
        if self.endless in items:
            signal.pause()
        return items


def test_a_call_over_its_time_is_ended_and_its_error_says_how_much_that_was(calls: Log) -> None:
    kwargs = {"calls": calls, "endless": 4}
    options: dict[str, Any] = {"pass_as": "batch", "batch_size": 3, "item_timeout": 0.2, "on_error": "deferred"}
    found = list(stateful_map(Waits, range(9), n_jobs=2, shared_kwargs=kwargs, **options))
    assert failed(found) == [3, 4, 5]
    for result in found[3:6]:
        error = result.exception
        assert isinstance(error, errors.ItemTimeoutError)
        assert (error.index, error.timeout, error.n_items) == (result.index, 0.2, 3)
        assert f"A call with 3 items, item {result.index} among them, ran longer than 3 x item_timeout=0.2 s" in str(
            error
        )
        again = pickle.loads(pickle.dumps(error))
        assert (again.n_items, str(again)) == (3, str(error))
    assert [result.value for result in found if result.ok] == [0, 1, 2, 6, 7, 8]


def test_an_endless_item_is_found_with_retries(calls: Log) -> None:
    kwargs = {"calls": calls, "endless": 2}
    options: dict[str, Any] = {"pass_as": "batch", "batch_size": 4, "item_timeout": 0.3, "on_error": "deferred"}
    found = list(stateful_map(Waits, range(8), n_jobs=2, shared_kwargs=kwargs, retries=2, **options))
    assert failed(found) == [2]
    error = found[2].exception
    assert isinstance(error, errors.ItemTimeoutError)
    assert "Item 2 ran longer than item_timeout=0.3 s" in str(error)


def test_a_call_has_the_time_of_all_its_items() -> None:
    def take(items: list[int]) -> list[int]:
        threading.Event().wait(0.2 * len(items))  # twice the limit of one
        return items

    options: dict[str, Any] = {"n_jobs": 1, "pass_as": "batch", "batch_size": 20, "item_timeout": 0.6}
    assert list(stateful_map(take, range(20), **options)) == [*range(20)]


def test_each_repeated_call_has_its_own_time() -> None:
    def take(items: list[int]) -> list[int]:
        threading.Event().wait(0.25 * len(items))
        if 7 in items:
            raise LookupError(len(items))
        return items

    options: dict[str, Any] = {"pass_as": "batch", "batch_size": 8, "item_timeout": 0.6, "on_error": "deferred"}
    found = list(
        stateful_map(take, range(8), n_jobs=1, **options)
    )  # all calls together take twice the first one's limit
    assert failed(found) == [7]
    assert isinstance(found[7].exception, LookupError)
