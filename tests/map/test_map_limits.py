"""Time limits, retries and restarts, as `stateful_map` takes them."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from joblib_stateful import StatefulExecutor, errors, get_worker_info, stateful_map
from scenes import Scene, crash, engines, new_scene

if TYPE_CHECKING:
    from conftest import BuildLog

# Long against a slow machine's hiccups, short against a test's patience.
LIMIT = 1.0


class Works:
    """Does what each item says; its construction may take its time, or crash."""

    def __init__(
        self, scene: Scene, built: BuildLog | None = None, seconds: float = 0.0, *, dies: bool = False
    ) -> None:
        if built is not None:
            built.note(get_worker_info().index)
        time.sleep(seconds)
        if dies:
            crash()
        self.scene = scene

    def __call__(self, item: Any) -> Any:
        slot = get_worker_info().index
        self.scene.log("ran").note(f"{item} {slot}")
        if item == "hang":
            self.scene.gate("never").wait()
        if item == "crash":
            crash()
        if item == "crash once" and len(self.scene.log("ran").lines) == 1:
            crash()
        if isinstance(item, float):
            time.sleep(item)
        if item == "meet":
            self.scene.meeting(2).join()
        return item


# --- item_timeout ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4])
def test_an_item_that_hangs_is_ended_and_alone_pays(batch_size: int, built: BuildLog, tmp_path: Path) -> None:
    scene = new_scene(tmp_path)
    items = ["a", "b", "hang", "c", "d", "e", "f", "g"]
    results = list(
        stateful_map(
            Works,
            items,
            n_jobs=1,
            shared_kwargs={"scene": scene, "built": built},
            item_timeout=LIMIT,
            batch_size=batch_size,
            on_error="deferred",
        )
    )
    assert [result.value for result in results] == ["a", "b", None, "c", "d", "e", "f", "g"]
    error = results[2].exception
    assert type(error) is errors.ItemTimeoutError
    assert isinstance(error, TimeoutError)
    assert (error.index, error.slot, error.timeout) == (2, 0, LIMIT)
    assert f"item_timeout={LIMIT:g}" in str(error)
    assert error.pid not in (None, os.getpid())
    assert len(built) == 2


def test_queueing_and_construction_are_not_charged(tmp_path: Path) -> None:
    # Each item is under the limit; the batch, what waits in the queue, and the construction are over it.
    results = stateful_map(
        Works,
        [0.6 * LIMIT] * 3,
        n_jobs=1,
        shared_kwargs={"scene": new_scene(tmp_path), "seconds": 1.3 * LIMIT},
        item_timeout=LIMIT,
        batch_size=3,
    )
    assert list(results) == [0.6 * LIMIT] * 3
    results = stateful_map(
        Works,
        [0.6 * LIMIT] * 3,
        n_jobs=1,
        shared_kwargs={"scene": new_scene(tmp_path)},
        item_timeout=LIMIT,
        batch_size=1,
        buffer=3,
    )
    assert list(results) == [0.6 * LIMIT] * 3


# --- init_timeout ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["immediate", "wait_others", "deferred"])
def test_a_construction_that_hangs_is_ended(policy: Any, built: BuildLog, tmp_path: Path) -> None:
    kwargs = {"scene": new_scene(tmp_path), "built": built, "seconds": 60.0}
    started = time.monotonic()
    with pytest.raises(errors.WorkerInitError, match=r"init_timeout=2 s") as caught:
        list(stateful_map(Works, [1, 2], n_jobs=1, shared_kwargs=kwargs, init_timeout=2, on_error=policy))
    assert time.monotonic() - started < 30
    assert (caught.value.index, caught.value.slot) == (None, 0)
    assert len(built) <= 1  # importing its class is part of it, and takes long on a slow machine


def test_running_is_not_charged_to_construction(tmp_path: Path) -> None:
    kwargs = {"scene": new_scene(tmp_path)}
    results = stateful_map(Works, [1.5 * LIMIT], n_jobs=1, shared_kwargs=kwargs, init_timeout=LIMIT)
    assert list(results) == [1.5 * LIMIT]


# --- retries --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_retry_runs_on_another_slot_where_there_is_one(n_jobs: int, built: BuildLog, tmp_path: Path) -> None:
    scene = new_scene(tmp_path)
    kwargs = {"scene": scene, "built": built}
    assert list(stateful_map(Works, ["crash once"], n_jobs=n_jobs, shared_kwargs=kwargs, retries=1)) == ["crash once"]
    first, second = [line.split()[-1] for line in scene.log("ran").lines]
    assert (first != second) == (n_jobs == 2)


def test_without_retries_an_item_runs_at_most_once(tmp_path: Path) -> None:
    scene = new_scene(tmp_path)
    results = list(
        stateful_map(Works, ["crash", "a"], n_jobs=2, shared_kwargs={"scene": scene}, batch_size=1, on_error="deferred")
    )
    assert type(results[0].exception) is errors.WorkerCrashedError
    assert results[0].exception.exitcode == 3
    assert (results[0].exception.index, results[1].value) == (0, "a")
    assert sum(line.startswith("crash") for line in scene.log("ran").lines) == 1


@pytest.mark.parametrize("retries", [1, 2])
def test_retries_come_to_an_end(retries: int, tmp_path: Path) -> None:
    scene = new_scene(tmp_path)
    with pytest.raises(errors.WorkerCrashedError):
        list(stateful_map(Works, ["crash"], n_jobs=2, shared_kwargs={"scene": scene}, retries=retries))
    assert len(scene.log("ran").lines) == 1 + retries


@engines
def test_an_exception_is_never_retried(engine: str, tmp_path: Path) -> None:
    scene = new_scene(tmp_path)

    def fail(item: int) -> None:
        scene.log().note(item)
        raise ValueError(item)

    with pytest.raises(ValueError, match="1"):
        list(stateful_map(fail, [1], n_jobs=2, retries=5, engine=engine))
    assert scene.log().lines == ["1"]


def test_a_timeout_is_retried_too(tmp_path: Path) -> None:
    scene = new_scene(tmp_path)
    with pytest.raises(errors.ItemTimeoutError):
        list(stateful_map(Works, ["hang"], n_jobs=2, shared_kwargs={"scene": scene}, retries=1, item_timeout=0.3))
    assert len({line.split()[-1] for line in scene.log("ran").lines}) == 2


# --- max_restarts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_restarts", [0, 2])
def test_a_slot_that_keeps_dying_is_given_up(max_restarts: int, built: BuildLog, tmp_path: Path) -> None:
    kwargs = {"scene": new_scene(tmp_path), "built": built, "dies": True}
    with pytest.raises(errors.WorkerInitError, match=f"max_restarts={max_restarts}") as caught:
        list(stateful_map(Works, [1, 2, 3], n_jobs=1, shared_kwargs=kwargs, max_restarts=max_restarts))
    assert len(built) == 1 + max_restarts
    assert caught.value.kwargs_keys == ("scene", "built", "dies")


# --- limits of an executor ------------------------------------------------------------------------------


def test_limits_that_are_not_given_are_the_executors(tmp_path: Path) -> None:
    scene = new_scene(tmp_path)
    with StatefulExecutor(Works, 2, shared_kwargs={"scene": scene}, retries=1, item_timeout=0.3) as executor:
        assert list(stateful_map(executor, ["crash once"])) == ["crash once"]
        assert len(scene.log("ran").lines) == 2
        with pytest.raises(errors.ItemTimeoutError) as caught:
            list(stateful_map(executor, ["hang"]))
        assert caught.value.timeout == 0.3
        assert len(scene.log("ran").lines) == 4


def test_limits_that_are_given_go_before_the_executors(tmp_path: Path) -> None:
    scene = new_scene(tmp_path)
    with StatefulExecutor(Works, 2, shared_kwargs={"scene": scene}, retries=1, item_timeout=0.3) as executor:
        assert list(stateful_map(executor, [0.6], item_timeout=5)) == [0.6]
        with pytest.raises(errors.WorkerCrashedError):
            list(stateful_map(executor, ["crash"], retries=3))
        assert len(scene.log("ran").lines) == 1 + 4


def test_limits_that_are_given_as_their_defaults_go_before_the_executors(built: BuildLog, tmp_path: Path) -> None:
    scene = new_scene(tmp_path)
    with StatefulExecutor(Works, 1, shared_kwargs={"scene": scene}, retries=2) as executor:
        with pytest.raises(errors.WorkerCrashedError):
            list(stateful_map(executor, ["crash"], retries=0))
        assert len(scene.log("ran").lines) == 1
    kwargs = {"scene": scene, "built": built, "dies": True}
    with (
        StatefulExecutor(Works, 1, shared_kwargs=kwargs, max_restarts=0) as executor,
        pytest.raises(errors.WorkerInitError, match="max_restarts=3"),
    ):
        list(stateful_map(executor, ["a"], max_restarts=3))
    assert len(built) == 4
