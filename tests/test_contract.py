"""One contract for all engines: what holds on one holds on each, clusters included.

The clusters are real, two processes each; without the packages dask and ray their cases are skipped, and say so.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from joblib import Parallel, delayed, parallel_config

import joblib_stateful
from joblib_stateful import StatefulExecutor, call_worker, engines, errors, get_worker, get_worker_info, stateful_map
from joblib_stateful._records import Build, Built, Run
from joblib_stateful.testing import MemoryEngine

ALL = ("loky", "threads", "inline", "memory", "example", "dask", "ray")
PROCESSES = ("loky", "example", "dask", "ray")
EXAMPLES = Path(__file__).parent.parent / "examples"
N_JOBS = 2

pytestmark = pytest.mark.cluster


@pytest.fixture
def dask_cluster() -> Iterator[Any]:
    # One for each test: Dask's nannies have been seen not to start a killed process again.
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": N_JOBS, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0", "host": "127.0.0.1"}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        yield client


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=N_JOBS, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return the engine of a test's case, on its cluster if it has one."""
    name: str = request.param
    if name in ("dask", "ray"):
        request.getfixturevalue(f"{name}_cluster")
    if name == "memory":
        yield MemoryEngine(auto=True)
    elif name == "example":
        monkeypatch.syspath_prepend(EXAMPLES)
        yield importlib.import_module("process_engine").ProcessEngine()
    else:
        yield name
    joblib_stateful.shutdown()


def on(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("engine", names, indirect=True)


class Model:
    """Notes in a file when it is built and closed, and does what an item says."""

    def __init__(self, log: Path, tag: str = "", *, fails: bool = False) -> None:
        if fails:
            raise ValueError(f"no model for {tag!r}")
        self.log, self.tag = log, tag
        self.thread = threading.get_ident()
        self._note("built")

    def _note(self, what: str) -> None:
        with self.log.open("a") as file:
            file.write(f"{what} {os.getpid()}\n")

    def __call__(self, item: Any) -> Any:
        assert self.thread == threading.get_ident(), "an object is used in the thread that it was built in"
        return item() if callable(item) else (self.tag, item)

    def close(self) -> None:
        self._note("closed")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log"
    path.touch()
    return path


def count(log: Path, what: str) -> int:
    return log.read_text().split().count(what)


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def kill_oneself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    threading.Event().wait()


def values(results: Any) -> list[Any]:
    return [result.value for result in results]


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
def test_one_may_leave_early(engine: Any, log: Path) -> None:
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


# --- Dask -----------------------------------------------------------------------------------------------


@on("dask")
def test_there_are_as_many_slots_as_dask_has_processes(engine: Any, log: Path) -> None:
    with StatefulExecutor(Model, shared_kwargs={"log": log}, engine=engine) as executor:
        assert len(executor.workers()) == N_JOBS
        executor.warm_up()
        assert len({info.pid for info in executor.workers()}) == N_JOBS
    with pytest.raises(ValueError, match=r"worker_env.*starts none"):
        stateful_map(abs, [1], engine=engine, worker_env=[{"A": "1"}] * N_JOBS)


def test_more_slots_than_dask_has_processes_is_an_error_after_a_while(dask_cluster: Any, log: Path) -> None:
    engine = engines.DaskEngine(dask_cluster, worker_timeout=0.5)
    message = r"slot \d of 3 found no Dask worker process of its own.* has 2"
    with (
        StatefulExecutor(Model, N_JOBS + 1, shared_kwargs={"log": log}, engine=engine) as executor,
        pytest.raises(errors.WorkerInitError, match=message),
    ):
        executor.warm_up()


def test_a_process_that_joins_later_is_used_by_the_slot_that_waits(log: Path) -> None:
    distributed = pytest.importorskip("distributed")
    options = {"threads_per_worker": 2, "dashboard_address": "127.0.0.1:0", "processes": False}
    with distributed.LocalCluster(n_workers=1, **options) as cluster, distributed.Client(cluster) as client:
        engine = engines.DaskEngine(client)
        with StatefulExecutor(Model, 2, shared_kwargs={"log": log}, engine=engine) as executor:
            assert executor.submit(call_worker, 1).result() == ("", 1)
            cluster.scale(2)
            executor.warm_up()
            assert count(log, "built") == 2


def test_a_cluster_that_is_closed_in_the_middle_is_an_error(log: Path) -> None:
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(n_workers=1, dashboard_address="127.0.0.1:0", processes=False)
    client = distributed.Client(cluster)
    results = stateful_map(
        Model, range(10_000), shared_kwargs={"log": log}, engine=engines.DaskEngine(client), batch_size=1, buffer=2
    )
    assert next(iter(results)) == ("", 0)
    client.close()
    cluster.close()
    with pytest.raises(errors.StatefulError, match="client"):
        list(results)
    joblib_stateful.shutdown()


def test_a_new_client_of_the_same_cluster_costs_nothing(log: Path) -> None:
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0", "host": "127.0.0.1"}
    with distributed.LocalCluster(**options) as cluster:
        pids = set()
        for _ in range(2):
            with distributed.Client(cluster) as client:
                found = list(stateful_map(Model, range(5), shared_kwargs={"log": log}, engine="dask"))
                assert found == [("", item) for item in range(5)]
                pids |= {*client.run(os.getpid).values()}
        assert len(pids) == 1, "a process was killed that nobody had asked to be"
        joblib_stateful.shutdown()


def test_a_process_without_the_resources_is_not_waited_for(dask_cluster: Any, log: Path) -> None:
    engine = engines.DaskEngine(dask_cluster, resources={"GPU": 1}, worker_timeout=0.5)
    message = r"found no Dask worker process of its own that offers \{'GPU': 1\}: the cluster has 0"
    with (
        StatefulExecutor(Model, 1, shared_kwargs={"log": log}, engine=engine) as executor,
        pytest.raises(errors.WorkerInitError, match=message),
    ):
        executor.warm_up()


def test_a_far_end_that_was_started_anew_has_no_object() -> None:
    host = engines.Host(engines.Pickled(), is_process=False)
    parcel, _ = engines.Pickled().pack_all([1])
    with pytest.raises(RuntimeError, match="started anew"):
        host.serve(Run(2, "item", None, None, parcel, "go_on"))
    assert isinstance(host.serve(Build(3, 0, 1, None)), Built)
    with pytest.raises(RuntimeError, match="answered before"):
        host.serve(Build(3, 0, 1, None))


# --- Ray ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("ray_cluster")
def test_an_actor_that_cannot_be_placed_is_an_error_that_says_why(log: Path) -> None:
    engine = engines.RayEngine(num_gpus=1)
    message = "asks for 1 CPU, 1 GPU; free are 2 of 2 CPU, 0 of 0 GPU"
    with (
        StatefulExecutor(Model, 1, shared_kwargs={"log": log}, engine=engine, init_timeout=1.0) as executor,
        pytest.raises(errors.WorkerInitError, match=message),
    ):
        executor.warm_up()


@on("ray")
def test_idle_actors_make_way(engine: Any, log: Path) -> None:
    """They hold all CPUs, and the next map would wait for them."""
    assert len(list(stateful_map(Model, range(10), shared_kwargs={"log": log}, engine=engine))) == 10
    assert list(stateful_map(abs, range(10), engine=engine)) == list(range(10))
    assert len(list(stateful_map(Model, range(10), shared_kwargs={"log": log, "tag": "b"}, engine=engine))) == 10


@pytest.mark.usefixtures("ray_cluster")
def test_the_environment_of_a_slot_is_its_actors(log: Path) -> None:
    engine = engines.RayEngine(num_cpus=0.5, runtime_env={"env_vars": {"BOTH": "b", "OWN": "o"}})
    env = [{"OWN": "first"}, {"OWN": "second"}]
    with StatefulExecutor(Model, 2, shared_kwargs={"log": log}, worker_env=env, engine=engine) as executor:
        executor.warm_up()
        look = {executor.submit(lambda: (os.environ["BOTH"], os.environ["OWN"])).result() for _ in range(20)}
    assert look <= {("b", "first"), ("b", "second")}


# --- what is not there ----------------------------------------------------------------------------------


@pytest.mark.skipif(find_spec("distributed") is None, reason="distributed is not installed")
def test_without_a_client_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import distributed

    def none() -> None:
        raise ValueError("No clients found")

    monkeypatch.setattr(distributed, "default_client", none)  # another test's cluster may be up
    with pytest.raises(errors.EngineError, match=r"needs a client.*there is none.*distributed\.Client\(\)"):
        stateful_map(abs, [1], engine="dask")
    with parallel_config(backend="stateful", engine="dask"), pytest.raises(errors.EngineError, match="needs a client"):
        Parallel()(delayed(abs)(-1) for _ in range(2))
    with pytest.raises(TypeError, match=r"client must be a distributed\.Client, not 'tcp"):
        engines.DaskEngine("tcp://127.0.0.1:8786")


@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
def test_without_ray_it_says_so(request: pytest.FixtureRequest) -> None:
    import ray

    if ray.is_initialized():
        pytest.skip("Ray is up for other tests of this run")
    with pytest.raises(errors.EngineError, match=r"needs a connection to Ray.*ray\.init\(\)"):
        stateful_map(abs, [1], engine="ray")


@pytest.mark.parametrize(("name", "package"), [("dask", "distributed"), ("ray", "ray")])
def test_what_is_not_installed_is_named_with_its_extra(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"joblib_stateful.engines._{name}", raising=False)
    monkeypatch.delitem(engines._loaded, name, raising=False)
    with pytest.raises(errors.EngineError, match=rf"package {package}, .*pip install 'joblib_stateful\[{name}\]'"):
        stateful_map(abs, [1], engine=name)
