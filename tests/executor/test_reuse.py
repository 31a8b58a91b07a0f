"""Objects are kept when the number of jobs changes, and when two workers are used in turn."""

from __future__ import annotations

import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from joblib import Parallel, delayed, parallel_config

import joblib_stateful
from joblib_stateful import call_worker, get_worker, get_worker_info, stateful_map
from joblib_stateful._executor._pool import WorkerPool
from joblib_stateful.testing import MemoryEngine
from scenes import Log, Meeting, Scene, engines, new_scene, parallel_engines, wait_until


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return new_scene(tmp_path)


class Model:
    """Logs that it was built, and that it was closed; each call tells the slot, its number of slots and the kwargs."""

    def __init__(self, log: Log, tag: str = "") -> None:
        self.log, self.tag = log, tag
        log.note(f"built {type(self).__name__}{tag}")

    def __call__(self, item: Any) -> Any:
        for wait in ("join", "wait"):  # a meeting, or a gate
            getattr(item, wait, int)()
        info = get_worker_info()
        return info.index, info.n_jobs, self.tag, os.getpid()

    def close(self) -> None:
        self.log.note(f"closed {type(self).__name__}{self.tag}")


class Other(Model): ...


class Third(Model): ...


def tell(item: Any) -> Any:
    return get_worker()(item)


def count(log: Log, what: str) -> int:
    return sum(line.startswith(what) for line in log.lines)


def meet(engine: str, scene: Scene, n_jobs: int, worker: Any = Model, **kwargs: Any) -> list[Any]:
    """Use all slots at once, and return what each has told."""
    size = 1 if engine == "inline" else n_jobs
    meeting = scene.meeting(size, f"meeting-{os.urandom(4).hex()}")
    options: dict[str, Any] = {"n_jobs": n_jobs, "shared_kwargs": {"log": scene.log()}, **kwargs}
    return sorted(stateful_map(worker, [meeting] * n_jobs, engine=engine, batch_size=1, **options))


def meet_by_joblib(engine: str, scene: Scene, n_jobs: int) -> list[Any]:
    size = 1 if engine == "inline" else n_jobs
    meeting = scene.meeting(size, f"meeting-{os.urandom(4).hex()}")
    return sorted(Parallel(n_jobs=n_jobs, batch_size=1)(delayed(tell)(meeting) for _ in range(n_jobs)))


# --- the number of jobs changes -----------------------------------------------------------------------


@engines
def test_fewer_slots_are_some_of_those_that_stand_and_more_are_added(engine: str, scene: Scene) -> None:
    for n_jobs in (2, 3, 1, 2, 3):
        found = meet(engine, scene, n_jobs)
        assert [(index, n) for index, n, *_ in found] == [(index, n_jobs) for index in range(n_jobs)]
    assert scene.log().lines == ["built Model"] * 3


@engines
def test_under_the_backend_fewer_slots_are_some_of_those_that_stand_and_more_are_added(
    engine: str, scene: Scene
) -> None:
    with parallel_config("stateful", worker=Model, shared_kwargs={"log": scene.log()}, engine=engine):
        for n_jobs in (2, 4, 3, 2, 4):
            found = meet_by_joblib(engine, scene, n_jobs)
            assert [(index, n) for index, n, *_ in found] == [(index, n_jobs) for index in range(n_jobs)]
    assert scene.log().lines == ["built Model"] * 4


def test_processes_that_stand_are_the_same_for_other_numbers_of_jobs(scene: Scene) -> None:
    two, three, one = (meet("loky", scene, n_jobs) for n_jobs in (2, 3, 1))
    pids = [[pid for *_, pid in found] for found in (two, three, one)]
    assert pids[1][:2] == pids[0]
    assert pids[2] == pids[0][:1]


@engines
def test_fewer_jobs_with_worker_kwargs_use_the_first_so_many_of_them(engine: str, scene: Scene) -> None:
    own = [{"tag": tag} for tag in "abc"]
    for n_jobs in (2, 3, 1):
        found = meet(engine, scene, n_jobs, worker_kwargs=own[:n_jobs])
        assert [tag for _, _, tag, _ in found] == list("abc"[:n_jobs])
    config = {"worker": Model, "shared_kwargs": {"log": scene.log()}, "worker_kwargs": own, "engine": engine}
    with parallel_config("stateful", **config):
        for n_jobs in (2, 3):
            assert [tag for _, _, tag, _ in meet_by_joblib(engine, scene, n_jobs)] == list("abc"[:n_jobs])
    assert sorted(scene.log().lines) == ["built Modela", "built Modelb", "built Modelc"]


@engines
def test_other_kwargs_of_a_slot_are_another_executor(engine: str, scene: Scene) -> None:
    for tags in ("ab", "ac"):
        found = meet(engine, scene, 2, worker_kwargs=[{"tag": tag} for tag in tags])
        assert [tag for _, _, tag, _ in found] == list(tags)
    assert count(scene.log(), "built") == 4


def test_other_environments_of_a_slot_are_another_executor(scene: Scene) -> None:
    def variable(_: Any) -> str | None:
        return os.environ.get("A_DEVICE")

    def run(*devices: str) -> set[str | None]:
        env = [{"A_DEVICE": device} for device in devices]
        return set(stateful_map(variable, range(20), n_jobs=len(env), worker_env=env))

    assert run("a") == {"a"}
    assert run("a", "b") <= {"a", "b"}
    assert run("a") == {"a"}
    assert run("b") == {"b"}
    with parallel_config(
        "stateful", worker=Model, worker_env=[{"A_DEVICE": d} for d in "abc"], shared_kwargs={"log": scene.log()}
    ):
        for n_jobs in (2, 3, -1):
            assert set(Parallel(n_jobs=n_jobs)(delayed(variable)(n) for n in range(9))) <= set("abc"[: n_jobs % 4])


@parallel_engines
def test_maps_that_want_fewer_slots_use_no_others_while_somebody_uses_all(engine: str, scene: Scene) -> None:
    meeting = scene.meeting(4)
    wide = stateful_map(
        Model, [meeting] * 3, n_jobs=3, shared_kwargs={"log": scene.log()}, engine=engine, batch_size=1, ordered=False
    )
    asking = threading.Thread(target=lambda: found.append(next(wide)))
    found: list[Any] = []
    asking.start()
    wait_until(meeting.path, 3)  # all are at work
    narrow: list[Any] = []
    both = threading.Thread(target=lambda: narrow.extend(meet(engine, scene, 1)))
    both.start()
    meeting.join()
    asking.join(60)
    both.join(60)
    assert [(index, n) for index, n, *_ in narrow] == [(0, 1)]
    assert sorted(index for index, *_ in [*found, *wide]) == [0, 1, 2]
    assert scene.log().lines == ["built Model"] * 3


@parallel_engines
def test_slots_are_added_while_somebody_uses_the_others(engine: str, scene: Scene) -> None:
    first = stateful_map(Model, range(50), n_jobs=1, shared_kwargs={"log": scene.log()}, engine=engine, buffer=2)
    assert next(first)[:2] == (0, 1)
    assert [index for index, *_ in meet(engine, scene, 3)] == [0, 1, 2]
    assert {found[:2] for found in first} == {(0, 1)}
    assert scene.log().lines == ["built Model"] * 3


def test_a_crash_in_a_slot_that_is_alone_is_tried_again_there(scene: Scene) -> None:
    def die_once(_: Any) -> int:
        if not scene.log().lines:
            scene.log().note("died")
            os._exit(3)
        return get_worker_info().index

    list(stateful_map(abs, range(8), n_jobs=3))
    assert list(stateful_map(die_once, [1], n_jobs=1, retries=1)) == [0]


def test_a_call_sends_no_more_messages_than_its_own_slots_can_use() -> None:
    engine = MemoryEngine()

    def feed(n_jobs: int) -> Any:
        results = stateful_map(abs, range(100), n_jobs=n_jobs, engine=engine, batch_size=1, buffer=50)
        thread = threading.Thread(target=lambda: got.extend(results))
        got: list[int] = []
        thread.start()
        while thread.is_alive():
            engine.answer_all()
            n_busy.append(len(engine.pending))
        assert got == list(range(100))

    n_busy: list[int] = []
    feed(3)
    assert len(engine.workers) == 3
    assert max(n_busy) <= 3
    del n_busy[:]
    feed(1)
    assert len(engine.workers) == 3
    assert max(n_busy) <= 1
    joblib_stateful.shutdown()


def test_new_workers_share_the_cpus_among_all(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("joblib_stateful._executor._arguments.cpu_count", lambda: 12)

    def threads(meeting: Meeting) -> Any:
        meeting.join()
        return get_worker_info().index, os.environ["OMP_NUM_THREADS"]

    joblib_stateful.shutdown()
    found = [sorted(stateful_map(threads, [scene.meeting(n, n)] * n, n_jobs=n, batch_size=1)) for n in (2, 3, 1)]
    joblib_stateful.shutdown()
    assert found == [[(0, "6"), (1, "6")], [(0, "6"), (1, "6"), (2, "4")], [(0, "6")]]


def test_the_objects_of_scikit_learn_in_a_loop_are_as_many_as_the_largest_call_needs(scene: Scene) -> None:
    sklearn = pytest.importorskip("sklearn")
    assert sklearn
    from sklearn.datasets import make_classification
    from sklearn.ensemble import BaggingClassifier
    from sklearn.model_selection import cross_val_score
    from sklearn.tree import DecisionTreeClassifier

    data, labels = make_classification(60, random_state=0)
    kwargs = {"log": scene.log()}
    for _ in range(3):
        with parallel_config("stateful", worker=Model, shared_kwargs=kwargs, n_jobs=4):
            BaggingClassifier(DecisionTreeClassifier(), n_estimators=2, random_state=0).fit(data, labels)
            assert len(cross_val_score(DecisionTreeClassifier(), data, labels, cv=4)) == 4
    assert 1 <= count(scene.log(), "built") <= 4
    assert count(scene.log(), "closed") == 0


# --- two workers in turn ------------------------------------------------------------------------------


def take_turns(engine: str, scene: Scene, *workers: Any, **kwargs: Any) -> None:
    for worker in workers:
        meet(engine, scene, 1, worker, **kwargs)


@engines
def test_of_two_workers_in_turn_none_makes_way_twice(
    engine: str, scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "joblib_stateful"):
        take_turns(engine, scene, Model, Other)
        assert scene.log().lines == ["built Model", "closed Model", "built Other"]
        assert caplog.messages == []
        take_turns(engine, scene, *(Model, Other) * 3)
    assert scene.log().lines[3:] == ["built Model"]
    (message,) = caplog.messages
    assert message.startswith("Workers for Other and workers for Model are used in turn")
    assert "shutdown()" in message
    joblib_stateful.shutdown()
    assert count(scene.log(), "closed") == 3


@engines
def test_three_workers_in_turn_are_all_kept_soon(engine: str, scene: Scene) -> None:
    take_turns(engine, scene, *(Model, Other, Third) * 2)
    before = count(scene.log(), "built")
    assert before <= 6
    take_turns(engine, scene, *(Model, Other, Third) * 2)
    assert count(scene.log(), "built") == before


def test_a_worker_that_is_new_has_all_that_take_turns_make_way(scene: Scene) -> None:
    take_turns("threads", scene, Model, Other, Model)
    take_turns("threads", scene, Third)
    closed, last = scene.log().lines[-3:-1], scene.log().lines[-1]
    assert (set(closed), last) == ({"closed Other", "closed Model"}, "built Third")


def test_two_workers_of_a_class_in_turn_with_other_kwargs_stay(scene: Scene) -> None:
    for tag in "abab":
        take_turns("threads", scene, Model, shared_kwargs={"log": scene.log(), "tag": tag})
    assert count(scene.log(), "built") == 3


def test_two_workers_with_large_arrays_are_known_again_though_those_are_gone(scene: Scene) -> None:
    numpy = pytest.importorskip("numpy")

    class Large(Model):
        def __init__(self, log: Log, weights: Any) -> None:
            super().__init__(log)
            self.weights = weights

    class Larger(Large): ...

    for n, worker in enumerate((Large, Larger) * 3):
        weights = numpy.full(100_000 * (1 + n % 2), 1.0)
        take_turns("loky", scene, worker, shared_kwargs={"log": scene.log(), "weights": weights})
    assert count(scene.log(), "built") == 3


def test_the_backend_and_maps_take_turns_too(scene: Scene) -> None:
    kwargs = {"log": scene.log()}
    for worker in (Model, Other) * 3:
        with parallel_config("stateful", worker=worker, shared_kwargs=kwargs, n_jobs=2, engine="threads"):
            Parallel()(delayed(call_worker)(n) for n in range(4))
    # One or two objects each, of which those of the first turn were built twice.
    assert count(scene.log(), "built Other") <= 2
    assert count(scene.log(), "built Model") <= 4


class Named:
    """A worker that says what it was built from."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, _: int) -> str:
        return self.name


@pytest.mark.parametrize("engine", ["loky", "threads"])
def test_two_threads_that_want_more_slots_at_once(monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    """The second one comes while the first one is about to have the executor grow."""
    kwargs = [{"name": name} for name in "abcd"]
    list(stateful_map(Named, range(2), worker_kwargs=kwargs[:2], engine=engine))
    grow, is_there, go_on = WorkerPool.grow, threading.Event(), threading.Event()

    def wait_and_grow(pool: WorkerPool, other: WorkerPool) -> None:
        if not is_there.is_set():
            is_there.set()
            go_on.wait()
        grow(pool, other)

    monkeypatch.setattr(WorkerPool, "grow", wait_and_grow)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(lambda: list(stateful_map(Named, range(40), worker_kwargs=kwargs, engine=engine)))
        try:
            assert is_there.wait(20)
            found = list(stateful_map(Named, range(40), worker_kwargs=kwargs, engine=engine))
        finally:
            go_on.set()
        assert {*found, *first.result(60)} <= {*"abcd"}
    joblib_stateful.shutdown()


def test_two_of_one_name_that_are_used_in_turn_can_be_told_apart(caplog: pytest.LogCaptureFixture) -> None:
    for name in ("one", "other", "one"):
        list(stateful_map(Named, range(2), shared_kwargs={"name": name}, n_jobs=1, engine="threads"))
    assert "Named and workers for Named with other kwargs, code or options are" in caplog.text
    joblib_stateful.shutdown()
