"""Executors that maps and the backend share: who finds whose objects, and who makes way for whom."""

from __future__ import annotations

import gc
import os
import threading
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import loky
import numpy as np
import psutil
import pytest
from joblib import Parallel, delayed, parallel_config

import joblib_stateful
from joblib_stateful import StatefulExecutor, call_worker, factory, stateful_map
from scenes import Gate, Log, Scene, engines, new_scene, parallel_engines


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return new_scene(tmp_path)


class Model:
    """Logs that it was built, and that it was closed."""

    def __init__(self, log: Log, weights: Any = None) -> None:
        self.log, self.weights = log, weights
        log.note(f"built {type(self).__name__} {os.getpid()}")

    def __call__(self, item: Any) -> Any:
        return item

    def close(self) -> None:
        self.log.note(f"closed {type(self).__name__} {os.getpid()}")


class Other(Model): ...


def count(log: Log, what: str) -> int:
    return sum(line.startswith(what) for line in log.lines)


def use(engine: str, worker: Any = Model, n_jobs: int = 1, **kwargs: Any) -> None:
    items = range(4)
    assert list(stateful_map(worker, items, n_jobs=n_jobs, engine=engine, **kwargs)) == list(items)


# --- what is the same ---------------------------------------------------------------------------------


@engines
def test_a_map_and_the_backend_find_each_others_objects(engine: str, scene: Scene) -> None:
    kwargs = {"log": scene.log()}
    use(engine, n_jobs=2, shared_kwargs=kwargs)
    with parallel_config(backend="stateful", worker=Model, shared_kwargs=kwargs, n_jobs=2, engine=engine):
        assert Parallel()(delayed(call_worker)(n) for n in range(4)) == list(range(4))
    use(engine, n_jobs=2, shared_kwargs={"log": scene.log()})
    assert 1 <= count(scene.log(), "built") <= 2
    assert count(scene.log(), "closed") == 0


SMALL, LARGE = 1000, 1 << 18  # in line, and in shared memory
sizes = pytest.mark.parametrize("size", [SMALL, LARGE])


@engines
@sizes
def test_equal_arrays_are_equal_kwargs(engine: str, size: int, scene: Scene) -> None:
    for _ in range(3):
        use(engine, shared_kwargs={"log": scene.log(), "weights": np.arange(size)})
        use(engine, worker=partial(Model, weights=np.arange(size)), shared_kwargs={"log": scene.log()})
    assert count(scene.log(), "built") == 1


@engines
@sizes
def test_an_array_that_has_changed_means_another_object(engine: str, size: int, scene: Scene) -> None:
    weights = np.arange(size)
    for value in (0, 1, 1):
        weights[size // 2] = value
        use(engine, shared_kwargs={"log": scene.log(), "weights": weights})
    assert count(scene.log(), "built") == 2


@engines
def test_a_memory_map_of_a_file_that_has_changed_means_another_object(
    engine: str, scene: Scene, tmp_path: Path
) -> None:
    for value in (0, 1, 1):
        np.full(LARGE, value).tofile(tmp_path / "weights")
        weights = np.memmap(tmp_path / "weights", dtype=int, mode="r")
        use(engine, shared_kwargs={"log": scene.log(), "weights": weights})
        del weights
    assert count(scene.log(), "built") == 2


@engines
@sizes
@pytest.mark.parametrize("what", ["one value", "type", "shape", "none"])
def test_other_arrays_mean_another_object(engine: str, size: int, what: str, scene: Scene) -> None:
    weights = np.arange(size)
    other = {
        "one value": weights + (weights == size // 2),
        "type": weights.astype(float),
        "shape": weights.reshape(10 if size == SMALL else 16, -1),
        "none": None,
    }
    use(engine, shared_kwargs={"log": scene.log(), "weights": weights})
    use(engine, shared_kwargs={"log": scene.log(), "weights": other[what]})
    assert count(scene.log(), "built") == 2
    assert count(scene.log(), "closed") == 1


@engines
def test_the_class_is_told_by_identity(engine: str, scene: Scene) -> None:
    def make() -> type:
        class Local(Model): ...

        return Local

    one, other = make(), make()
    for worker in (one, one, other, other):
        use(engine, worker=worker, shared_kwargs={"log": scene.log()})
    assert count(scene.log(), "built") == 2


@engines
def test_a_factory_of_the_same_function_is_the_same_worker(engine: str, scene: Scene) -> None:
    for _ in range(2):  # each access to a bound method makes a new object
        use(engine, worker=factory(scene_model.build), shared_kwargs={"log": scene.log()})
    assert count(scene.log(), "built") == 1


@engines
def test_the_instance_whose_method_builds_is_told_by_what_it_holds(engine: str, scene: Scene) -> None:
    loader, opener = Loader("a"), Loader("a")
    for worker, owner in ((loader.load, loader), (opener, opener)):
        for weights, built in (("a", 1), ("a", 1), ("b", 2)):
            owner.weights = weights
            log = scene.log(type(worker).__name__)
            results = stateful_map(factory(worker), [1], n_jobs=1, engine=engine, shared_kwargs={"log": log})
            assert list(results) == [(weights, 1)]
            assert count(log, "built") == built


class Loader:
    """Gives what it builds something of its own."""

    def __init__(self, weights: str) -> None:
        self.weights = weights

    def load(self, log: Log) -> Any:
        weights = self.weights
        log.note("built")
        return lambda item: (weights, item)

    def __call__(self, log: Log) -> Any:
        return self.load(log)


class SceneModel:
    def build(self, log: Log) -> Model:
        return Model(log)


scene_model = SceneModel()


class Collects(Model):
    """Writes to what it was given, which by reference is the caller's own."""

    def __call__(self, item: int) -> int:
        self.weights.append(item)
        return item


def collect(engine: str, scene: Scene, into: list[int]) -> Any:
    kwargs = {"log": scene.log(), "weights": into}
    return stateful_map(Collects, range(4), n_jobs=1, shared_kwargs=kwargs, engine=engine, buffer=1)


within = pytest.mark.parametrize("engine", ["threads", "inline"])


@within
def test_an_object_that_holds_something_else_by_now_is_not_reused(engine: str, scene: Scene) -> None:
    for _ in range(2):
        into: list[int] = []
        assert list(collect(engine, scene, into)) == into == [0, 1, 2, 3]
    assert [line.split()[0] for line in scene.log().lines] == ["built", "closed", "built"]


@within
def test_an_object_that_holds_something_else_by_the_first_item_is_not_reused(engine: str, scene: Scene) -> None:
    one: list[int] = []
    other: list[int] = []
    list(collect(engine, scene, []))
    results, later = collect(engine, scene, one), collect(engine, scene, other)
    assert list(results) == list(later) == one == other == [0, 1, 2, 3]


@within
def test_an_object_in_use_that_holds_something_else_stays_with_its_user(engine: str, scene: Scene) -> None:
    one: list[int] = []
    other: list[int] = []
    results = collect(engine, scene, one)
    assert next(results) == 0
    assert list(collect(engine, scene, other)) == other == [0, 1, 2, 3]
    assert count(scene.log(), "closed") == 0
    assert list(results) == [1, 2, 3]
    assert one == [0, 1, 2, 3]
    scene.log().wait_for(3)
    assert [line.split()[0] for line in scene.log().lines] == ["built", "built", "closed"]


def test_with_processes_what_a_worker_does_with_its_kwargs_is_its_own_affair(scene: Scene) -> None:
    for _ in range(2):
        into: list[int] = []
        list(collect("loky", scene, into))
        assert into == []
    assert count(scene.log(), "built") == 1


def test_env_and_engine_are_told_apart(scene: Scene) -> None:
    kwargs = {"log": scene.log()}
    use("threads", shared_kwargs=kwargs)
    use("inline", shared_kwargs=kwargs)
    use("loky", shared_kwargs=kwargs, worker_env=[{"A_VARIABLE": "1"}])
    use("loky", shared_kwargs=kwargs, worker_env=[{"A_VARIABLE": "2"}])
    use("loky", shared_kwargs=kwargs, worker_env=[{"A_VARIABLE": "2"}])
    assert count(scene.log(), "built") == 4
    assert count(scene.log(), "closed") == 3


def pid_of(_: Any) -> int:
    return os.getpid()


def other_pid_of(_: Any) -> int:
    return os.getpid()


def test_stateless_functions_share_one_pool() -> None:
    pids = {*stateful_map(pid_of, [1], n_jobs=1), *stateful_map(other_pid_of, [1], n_jobs=1)}
    pids |= set(stateful_map(lambda _: os.getpid(), [1], n_jobs=1))
    assert len(pids) == 1


# --- who makes way ------------------------------------------------------------------------------------


@engines
def test_an_idle_worker_makes_way_for_another_before_that_is_built(engine: str, scene: Scene) -> None:
    use(engine, shared_kwargs={"log": scene.log()})
    use(engine, worker=Other, shared_kwargs={"log": scene.log()})
    assert [line.split()[:2] for line in scene.log().lines] == [
        ["built", "Model"],
        ["closed", "Model"],
        ["built", "Other"],
    ]


@engines
def test_a_stateless_pool_leaves_the_objects_alone(engine: str, scene: Scene) -> None:
    use(engine, shared_kwargs={"log": scene.log()})
    assert list(stateful_map(abs, [-1], n_jobs=1, engine=engine)) == [1]
    use(engine, shared_kwargs={"log": scene.log()})
    assert count(scene.log(), "built") == 1


@engines
def test_a_worker_in_use_stays(engine: str, scene: Scene) -> None:
    kwargs = {"log": scene.log()}
    results = stateful_map(Model, range(100), n_jobs=1, shared_kwargs=kwargs, engine=engine, buffer=4)
    assert next(results) == 0
    use(engine, worker=Other, shared_kwargs=kwargs)
    assert count(scene.log(), "closed Model") == 0
    assert list(results) == list(range(1, 100))
    assert count(scene.log(), "built Model") == 1
    use(engine, worker=Other, shared_kwargs=kwargs)  # it is still there as well
    assert count(scene.log(), "built Other") == 1


class Waiting(Model):
    def __call__(self, item: Gate) -> int:
        self.log.note("running")
        item.wait()
        self.log.note("finished")
        return os.getpid()


@parallel_engines
def test_what_only_finishes_an_abandoned_item_makes_way_too(engine: str, scene: Scene) -> None:
    never = scene.gate("never")
    results = stateful_map(
        Waiting, [scene.gate("open"), never], n_jobs=1, shared_kwargs={"log": scene.log()}, engine=engine, batch_size=1
    )
    scene.gate("open").open()
    next(results)
    scene.log().wait_for(4)  # built, running, finished, running
    results.close()
    use(engine, worker=Other, shared_kwargs={"log": scene.log("other")})
    assert count(scene.log(), "closed") == 0  # killed, not closed
    if engine == "loky":
        (pid,) = {int(line.split()[2]) for line in scene.log().lines if line.startswith("built")}
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    never.open()  # a thread can't be killed


def test_a_pool_without_objects_does_not_wait_for_abandoned_items_if_another_number_is_wanted(scene: Scene) -> None:
    meeting, log = scene.meeting(3), scene.log()

    def hold(item: int) -> int:
        if item:
            log.note(os.getpid())
            meeting.join()
            threading.Event().wait()
        return item

    results = stateful_map(hold, [0, 1, 1], n_jobs=2, batch_size=1)
    next(results)
    log.wait_for(2)
    meeting.join()
    results.close()
    use("loky", worker=abs, n_jobs=1)
    assert not any(map(psutil.pid_exists, map(int, log.lines)))


# --- shutdown -----------------------------------------------------------------------------------------


@engines
def test_shutdown_closes_the_objects_at_once(engine: str, scene: Scene) -> None:
    use(engine, shared_kwargs={"log": scene.log()})
    joblib_stateful.shutdown()
    assert [line.split()[0] for line in scene.log().lines] == ["built", "closed"]
    joblib_stateful.shutdown()
    use(engine, shared_kwargs={"log": scene.log()})
    assert count(scene.log(), "built") == 2


@parallel_engines
def test_shutdown_kills_what_only_finishes_an_abandoned_item(engine: str, scene: Scene) -> None:
    results = stateful_map(
        Waiting,
        [scene.gate("open"), scene.gate("never")],
        n_jobs=1,
        shared_kwargs={"log": scene.log()},
        engine=engine,
        batch_size=1,
    )
    scene.gate("open").open()
    next(results)
    scene.log().wait_for(4)
    results.close()
    joblib_stateful.shutdown()
    if engine == "loky":
        assert [child for child in psutil.Process().children() if "_loky_child" in " ".join(child.cmdline())] == []
    assert count(scene.log(), "closed") == 0
    scene.gate("never").open()


@engines
def test_shutdown_leaves_a_map_in_use_alone_until_it_ends(engine: str, scene: Scene) -> None:
    results = stateful_map(Model, range(50), n_jobs=1, shared_kwargs={"log": scene.log()}, engine=engine, buffer=4)
    assert next(results) == 0
    joblib_stateful.shutdown()
    assert list(results) == list(range(1, 50))
    scene.log().wait_for(2)
    assert [line.split()[0] for line in scene.log().lines] == ["built", "closed"]


@engines
def test_shutdown_leaves_executors_that_are_the_callers_alone(engine: str, scene: Scene) -> None:
    with StatefulExecutor(Model, 1, shared_kwargs={"log": scene.log()}, engine=engine) as executor:
        executor.warm_up()
        joblib_stateful.shutdown()
        assert list(stateful_map(executor, [1])) == [1]
        use(engine, worker=Other, shared_kwargs={"log": scene.log("other")})
        assert executor.submit(call_worker, 2).result(60) == 2
    assert [line.split()[0] for line in scene.log().lines] == ["built", "closed"]


class Fills:
    """Changes what it was built from."""

    def __init__(self, box: list[int], closed: Log) -> None:
        self.box, self.closed = box, closed

    def __call__(self, item: int) -> int:
        self.box.append(item)
        return item

    def close(self) -> None:
        self.closed.note("closed")


class ClosesLate:
    def __init__(self, closing: threading.Event, may_close: threading.Event) -> None:
        self.closing, self.may_close = closing, may_close

    def __call__(self, item: int) -> int:
        return item

    def close(self) -> None:
        self.closing.set()
        assert self.may_close.wait(60)


def test_an_object_that_is_given_back_while_another_takes_its_place_is_closed(scene: Scene) -> None:
    def fill(*items: int) -> Any:
        kwargs = {"box": [], "closed": scene.log()}
        return stateful_map(Fills, items, n_jobs=1, shared_kwargs=kwargs, engine="threads")

    def give_back() -> None:
        assert closing.wait(60)
        first.close()
        may_close.set()

    first = fill(1, 2)
    assert next(first) == 1
    closing, may_close = threading.Event(), threading.Event()
    kwargs = {"closing": closing, "may_close": may_close}
    assert list(stateful_map(ClosesLate, [3], n_jobs=1, shared_kwargs=kwargs, engine="threads")) == [3]
    giving = threading.Thread(target=give_back)
    giving.start()
    assert list(fill(4)) == [4]  # which waits until the late one has made way
    giving.join(60)
    joblib_stateful.shutdown()
    assert scene.log().lines == ["closed", "closed"]


# --- others in the same process -----------------------------------------------------------------------


def test_other_users_of_loky_and_joblib_do_not_disturb_us_nor_we_them(scene: Scene) -> None:
    kwargs = {"log": scene.log()}
    theirs = loky.get_reusable_executor(max_workers=2)
    their_pid = theirs.submit(os.getpid).result(60)
    results = stateful_map(Model, range(100), n_jobs=2, shared_kwargs=kwargs, buffer=8)
    assert next(results) == 0
    assert Parallel(n_jobs=2, backend="loky")(delayed(abs)(-n) for n in range(4)) == list(range(4))
    # Other arguments: joblib's and loky's reusable executors are shut down and made anew.
    assert Parallel(n_jobs=3, backend="loky")(delayed(abs)(-n) for n in range(4)) == list(range(4))
    loky.get_reusable_executor(max_workers=1, kill_workers=True, reuse=False).submit(abs, -1).result(60)
    joblib_stateful.shutdown()
    assert list(results) == list(range(1, 100))
    assert 1 <= count(scene.log(), "built") <= 2
    mine = loky.get_reusable_executor(max_workers=1)
    pid = mine.submit(os.getpid).result(60)
    use("loky", shared_kwargs={"log": scene.log("again")})
    joblib_stateful.shutdown()
    assert mine.submit(os.getpid).result(60) == pid
    assert their_pid != pid
    assert Parallel(n_jobs=3, backend="loky")(delayed(abs)(-n) for n in range(4)) == list(range(4))
    mine.shutdown(wait=True)
    joblib.externals.loky.get_reusable_executor().shutdown(wait=True)
    del theirs, mine
    gc.collect()


@engines
def test_several_threads_map_at_once_with_two_workers_that_make_way(engine: str, scene: Scene) -> None:
    found: dict[int, list[int]] = {}

    def run(thread: int) -> None:
        worker = Model if thread % 2 else Other
        items = range(100 * thread, 100 * thread + 30)
        kwargs = {"log": scene.log()}
        for _ in range(2):
            found[thread] = list(stateful_map(worker, items, n_jobs=2, shared_kwargs=kwargs, engine=engine))

    threads = [threading.Thread(target=run, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert found == {n: list(range(100 * n, 100 * n + 30)) for n in range(6)}
