"""Batches that are done with in parts: cut short because they took too long, or run one by one after a crash."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest

from joblib_stateful import StatefulExecutor, factory, stateful_map
from joblib_stateful._map import _batching
from joblib_stateful._process._locks import Lock
from joblib_stateful.errors import ShutdownError
from scenes import Scene, crash, new_scene, orders, parallel_engines

# A batch of so many quick items would hold all that come behind them.
_QUICK = 20_000


def waits_at_the_end(scene: Scene) -> Any:
    def work(item: int) -> int:
        if item >= _QUICK:
            time.sleep(0.005)
        if item == _QUICK + 299:
            scene.gate().wait()
        return item

    return work


@parallel_engines
@orders
def test_results_of_a_batch_do_not_wait_for_its_last_part(*, engine: str, ordered: bool, tmp_path: Path) -> None:
    scene, found = new_scene(tmp_path), []
    inputs = (item for item in range(_QUICK + 300))
    for item in stateful_map(waits_at_the_end(scene), inputs, n_jobs=2, ordered=ordered, engine=engine):
        found.append(item)
        if item >= _QUICK:
            scene.gate().open()  # or the last one fails after a long time
    assert found == list(range(_QUICK + 300)) if ordered else sorted(found) == list(range(_QUICK + 300))


@orders
def test_results_do_not_wait_for_items_that_run_one_by_one_after_a_crash(*, ordered: bool, tmp_path: Path) -> None:
    scene, found = new_scene(tmp_path), []

    def work(item: int) -> int:
        if item == 2:
            crash()
        if item == 9:
            scene.gate().wait()
        return item

    results = stateful_map(work, range(10), n_jobs=2, batch_size=10, buffer=20, ordered=ordered, on_error="deferred")
    for result in results:
        found.append(result.index)
        if len(found) == 5:
            scene.gate().open()
        assert (result.index == 2) == (not result.ok)
    assert found == list(range(10)) if ordered else sorted(found) == list(range(10))


def takes_a_while(item: int) -> tuple[int, int, int]:
    time.sleep(0.01)
    return item, os.getpid(), threading.get_ident()


class Given:
    """Sizes of batches that are given, and that no batch is cut short for its own sake."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *sizes: int) -> None:
        left = list(sizes)
        monkeypatch.setattr(_batching, "OVERTIME", 1000)
        monkeypatch.setattr(_batching.Batching, "next_batch", lambda _, room, __: min(room, left.pop(0)))
        monkeypatch.setattr(_batching.Batching, "_find_buffer", lambda self: self._fixed_buffer)


@parallel_engines
@orders
def test_who_has_nothing_to_do_gets_a_share_of_the_last_batch(
    *, engine: str, ordered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    Given(monkeypatch, 1, 1, 1, 1, 60, 1)
    results = list(stateful_map(takes_a_while, range(64), n_jobs=2, buffer=100, ordered=ordered, engine=engine))
    assert sorted(item for item, _, _ in results) == list(range(64))
    assert len({worker for item, worker in map(_named, results) if item >= 4}) == 2


def _named(result: tuple[int, int, int]) -> tuple[int, str]:
    item, *worker = result
    return item, repr(worker)


@parallel_engines
def test_who_has_nothing_to_do_gets_a_share_of_a_batch_that_keeps_the_buffer_full(
    *, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Given(monkeypatch, 1, 1, 1, 1, *[100] * 100)  # the fifth one with all that the buffer has room for
    with stateful_map(takes_a_while, count(), n_jobs=2, buffer=64, engine=engine) as taken:
        results = list(islice(taken, 64))
    assert [item for item, _, _ in results] == list(range(64))
    assert len({worker for item, worker in map(_named, results) if item >= 4}) == 2


def one_fails_while_another_one_runs(scene: Scene) -> Any:
    def work(item: int) -> int:
        if item >= _QUICK:
            time.sleep(0.005)
        if item >= _QUICK + 100:
            log = scene.log("long")
            log.note(item)
            if log.lines[0] != str(item):
                raise ValueError(item)
            log.wait_for(2)
            scene.gate().wait()  # which the end of the input opens
            scene.log("ended").note(item)
        return item

    return work


@parallel_engines
@orders
def test_the_input_ends_with_the_first_error_under_wait_others(*, engine: str, ordered: bool, tmp_path: Path) -> None:
    scene = new_scene(tmp_path)

    def items() -> Iterator[int]:
        try:
            yield from range(100 * _QUICK)
        finally:
            scene.gate().open()

    results = stateful_map(
        one_fails_while_another_one_runs(scene),
        items(),
        n_jobs=2,
        ordered=ordered,
        on_error="wait_others",
        engine=engine,
    )
    with pytest.raises(ValueError, match=r"\d"):  # whichever item came second
        list(results)
    assert scene.log("ended").lines == scene.log("long").lines[:1], "it was let run to its end"


class Interrupted:
    """Works a while, then is interrupted."""

    def __init__(self) -> None:
        self.ran: list[int] = []

    def __call__(self, item: int) -> int:
        if item >= 40:
            time.sleep(0.02)
        self.ran.append(item)
        if len(self.ran) == 60:
            raise KeyboardInterrupt
        return item


def test_ctrl_c_in_the_callers_own_thread_leaves_the_rest_undone() -> None:
    work = Interrupted()
    with StatefulExecutor(factory(lambda: work), 2, engine="inline") as executor:
        with pytest.raises(KeyboardInterrupt):
            list(stateful_map(executor, range(1000)))
        assert len(work.ran) == 60
        assert [info.state for info in executor.workers()] == ["idle", "idle"]
        assert list(stateful_map(executor, range(3))) == [0, 1, 2]


class Turn:
    """The lock of a map, that closes it in the last moment of somebody's turn."""

    def __init__(self, results: Any) -> None:
        self.results, self.lock = results, Lock()
        self.acquire, self.release = self.lock.acquire, self.lock.release

    @property
    def is_mine(self) -> bool:
        return self.lock.is_mine

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        other = threading.Thread(target=self.results.close)
        other.start()
        other.join()
        self.lock.release()


def test_a_map_that_is_closed_at_the_end_of_a_turn_is_shut() -> None:
    results: Any = stateful_map(abs, range(100), n_jobs=1, batch_size=1, buffer=4, engine="threads")
    results._turn = Turn(results)
    assert next(results) == 0
    assert results._is_shut
    assert list(results) == []


@parallel_engines
@orders
@pytest.mark.parametrize("how", [{"wait": False, "cancel_futures": True}, {"kill_workers": True}])
def test_a_map_whose_executor_was_shut_down_says_what_is_missing(
    *, engine: str, ordered: bool, how: dict[str, bool], tmp_path: Path
) -> None:
    if engine == "threads" and "kill_workers" in how:
        pytest.skip("threads can't be killed")
    scene = new_scene(tmp_path)

    def work(item: int) -> int:
        if item == 1:
            scene.gate().wait()
        return item

    executor = StatefulExecutor(factory(lambda: work), 1, engine=engine)
    results = stateful_map(executor, range(6), batch_size=1, buffer=6, ordered=ordered)
    assert next(results) == 0  # and all others have been sent
    assert results._feeder.n_pulled == 6
    executor.shutdown(**how)
    scene.gate().open()
    with pytest.raises(ShutdownError, match="the rest of its results will never come"):
        list(results)
