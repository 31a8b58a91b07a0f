"""What holds on Dask and Ray beside the contract of all engines; both are real, two processes each."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from joblib import Parallel, delayed, parallel_config

import joblib_stateful
from contract import DASK, N_JOBS, Model, count, on
from joblib_stateful import StatefulExecutor, call_worker, engines, errors, stateful_map
from joblib_stateful._worker._messages import Build, Built, Run
from programs import program_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import RunProgram

pytestmark = pytest.mark.cluster


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
    with distributed.LocalCluster(**{**DASK, "n_workers": 1}) as cluster:
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


def test_a_call_that_hangs_in_this_process_does_not_keep_the_program_from_ending(run_program: RunProgram) -> None:
    pytest.importorskip("distributed")
    done = run_program(
        program_text("engines/hangs_in_a_dask_thread"),
        env={"TMPDIR": tempfile.gettempdir()},  # Dask leaves its folder there
    )
    assert done.code == 0, done.err
    assert done.out == "the end\n"


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
    with StatefulExecutor(Model, N_JOBS, shared_kwargs={"log": log}, engine=engine) as own:
        assert own.submit(call_worker, 1).result(60) == ("", 1)
    assert len(list(stateful_map(abs, range(10), engine=engine))) == 10
    another = engines.RayEngine(num_cpus=N_JOBS)
    assert list(stateful_map(abs, range(10), engine=another)) == list(range(10))


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.usefixtures("ray_cluster")
def test_an_actor_is_killed_when_it_stands(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is killed while Ray is making it may keep its CPU for good, and the next ones wait for ever."""
    import ray

    from joblib_stateful.engines import _ray

    states: list[str] = []

    def kill(actor: Any) -> None:
        states.append(ray._private.state.actors(actor._ray_actor_id.hex())["State"])
        really_kill(actor)

    really_kill = ray.kill
    monkeypatch.setattr(ray, "kill", kill)
    monkeypatch.setattr(_ray, "_MAKING_SECONDS", 60.0)
    executor = StatefulExecutor(Model, N_JOBS, shared_kwargs={"log": log}, engine="ray")
    futures = [executor.submit(call_worker, 1) for _ in range(N_JOBS)]
    executor.shutdown(kill_workers=True)
    assert all(future.cancelled() for future in futures)
    until(lambda: len(states) >= N_JOBS)
    assert set(states) <= {"ALIVE", "DEAD"}
    assert count(log, "built") == 0


@pytest.mark.usefixtures("ray_cluster")
def test_an_actor_that_waits_for_a_place_is_killed_soon(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or it would stand in the queue before the next ones."""
    import ray

    from joblib_stateful.engines import _ray

    def pending() -> list[Any]:
        return [actor for actor in ray._private.state.actors().values() if actor["State"] not in ("ALIVE", "DEAD")]

    monkeypatch.setattr(_ray, "_MAKING_SECONDS", 1.0)
    executor = StatefulExecutor(Model, 1, shared_kwargs={"log": log}, engine=engines.RayEngine(num_gpus=1))
    executor.submit(call_worker, 1)
    until(pending)
    executor.shutdown(kill_workers=True)
    until(lambda: not pending())


@pytest.mark.usefixtures("ray_cluster")
def test_idle_actors_stay_where_there_is_room(log: Path) -> None:
    engine = engines.RayEngine(num_cpus=0.5)
    for _ in range(2):
        assert len(list(stateful_map(Model, range(10), n_jobs=2, shared_kwargs={"log": log}, engine=engine))) == 10
        with StatefulExecutor(Model, 1, shared_kwargs={"log": log}, engine=engine) as own:
            own.warm_up()
    joblib_stateful.shutdown()
    assert count(log, "built") == 2 + 1 + 1


@pytest.mark.usefixtures("ray_cluster")
def test_the_environment_of_a_slot_is_its_actors(log: Path) -> None:
    engine = engines.RayEngine(num_cpus=0.5, runtime_env={"env_vars": {"BOTH": "b", "OWN": "o"}})
    env = [{"OWN": "first"}, {"OWN": "second"}]
    with StatefulExecutor(Model, 2, shared_kwargs={"log": log}, worker_env=env, engine=engine) as executor:
        executor.warm_up()
        look = {executor.submit(lambda: (os.environ["BOTH"], os.environ["OWN"])).result() for _ in range(20)}
    assert look <= {("b", "first"), ("b", "second")}


def test_a_new_connection_to_ray_begins_anew(run_program: RunProgram, ray_address: str) -> None:
    """What was built or stored in the old one is built and stored again, and nothing of it is asked for."""
    done = run_program(
        program_text("engines/connects_to_ray_twice"),
        ray_address,
        limit=110,
        env={"TMPDIR": tempfile.gettempdir()},  # Ray leaves its logs there
    )
    assert done.code == 0, done.err
    assert done.out == "the end\n"


def test_a_connection_to_ray_that_is_closed_at_work_is_an_error(
    run_program: RunProgram, ray_address: str, log: Path
) -> None:
    """Also for what waits for an answer just then: Ray itself would have it wait for ever."""
    done = run_program(
        program_text("engines/disconnects_from_ray_at_work"),
        ray_address,
        str(log),
        limit=100,
        env={"TMPDIR": tempfile.gettempdir()},  # Ray leaves its logs there
    )
    assert done.code == 0, done.err
    assert done.out == "the end\n"
    _wait_until_ray_has_ended(log)


def test_actors_end_with_a_driver_that_is_killed_in_mid_map(ray_address: str, log: Path, tmp_path: Path) -> None:
    script = tmp_path / "driver.py"
    script.write_text(program_text("engines/drives_ray_until_it_is_killed"))
    command = [sys.executable, str(script), ray_address, str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "ready\n"
        driver.kill()
    _wait_until_ray_has_ended(log)


def _wait_until_ray_has_ended(log: Path) -> None:
    """Wait for the end of the actors whose processes have noted their numbers: Ray ends them in the background."""
    pids = set(map(int, log.read_text().split()))
    assert pids
    deadline = time.monotonic() + 60
    while any(map(psutil.pid_exists, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


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


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [("dask", "dask._engine", "distributed"), ("ray", "_ray", "ray")],
    ids=["dask", "ray"],
)
def test_what_is_not_installed_is_named_so_that_it_can_be_had(
    name: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"joblib_stateful.engines.{module}", raising=False)
    monkeypatch.delitem(engines._loaded, name, raising=False)
    with pytest.raises(errors.EngineError, match=rf"package {package}, .* -m pip install {package}$"):
        stateful_map(abs, [1], engine=name)
