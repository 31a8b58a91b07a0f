"""The joblib backend ``"stateful"``: what `joblib.Parallel` promises, with an object in each worker."""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import joblib
import pytest
from joblib import Parallel, delayed, parallel_backend, parallel_config

from joblib_stateful import Failure, StatefulBackend, call_worker, errors, factory, get_worker, get_worker_info
from programs import program_text
from scenes import Gate, Log, Meeting, Scene, engines, new_scene, parallel_engines

if TYPE_CHECKING:
    from conftest import RunProgram

# joblib warns of generators that are not consumed, whatever the backend.
pytestmark = pytest.mark.filterwarnings("ignore:.*tasks which were still being processed by the workers:UserWarning")
stateful = partial(parallel_config, backend="stateful")


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return new_scene(tmp_path)


class Tagged:
    """Has a tag, and logs that it was built."""

    def __init__(self, log: Log | None = None, tag: Any = None) -> None:
        self.tag = tag
        if log is not None:
            log.note(f"built {tag} {os.getpid()}")

    def __call__(self, item: Any) -> Any:
        return self.tag, item


def tag_of(item: Any) -> Any:
    return get_worker().tag, item


def meet(meeting: Meeting) -> Any:
    meeting.join()
    info = get_worker_info()
    return info.index, info.n_jobs, info.kwargs.get("tag")


def wait_at(gate: Gate, item: Any = None) -> Any:
    gate.wait()
    return item


def fail_at(bad: int, item: int) -> int:
    if item == bad:
        raise ValueError(f"bad item {item}")
    return item


def die() -> NoReturn:
    os._exit(4)


def die_once(log: Log, item: int) -> int:
    if item == 2 and not log.lines:
        log.note("died")
        die()
    return item


# --- ways to ask for it -------------------------------------------------------------------------------


@engines
def test_parallel_config(engine: str) -> None:
    with stateful(worker=Tagged, shared_kwargs={"tag": "t"}, n_jobs=2, engine=engine):
        assert Parallel()(delayed(tag_of)(n) for n in range(10)) == [("t", n) for n in range(10)]
        assert Parallel()(delayed(call_worker)(n) for n in range(3)) == [("t", n) for n in range(3)]


@engines
def test_parallel_backend(engine: str) -> None:
    with parallel_backend("stateful", n_jobs=2, worker=Tagged, shared_kwargs={"tag": "t"}, engine=engine):
        assert Parallel()(delayed(tag_of)(n) for n in range(10)) == [("t", n) for n in range(10)]


@engines
def test_backend_named_in_the_call(engine: str) -> None:
    parallel = Parallel(2, backend="stateful", worker=Tagged, shared_kwargs={"tag": "t"}, engine=engine)
    assert parallel(delayed(tag_of)(n) for n in range(10)) == [("t", n) for n in range(10)]


@engines
def test_backend_instance(engine: str) -> None:
    backend = StatefulBackend(worker=Tagged, shared_kwargs={"tag": "t"}, engine=engine)
    for _ in range(2):
        assert Parallel(n_jobs=2, backend=backend)(delayed(tag_of)(n) for n in range(5)) == [("t", n) for n in range(5)]
    with parallel_config(backend=backend, n_jobs=2):
        assert Parallel()(delayed(tag_of)(n) for n in range(5)) == [("t", n) for n in range(5)]


@engines
def test_parallel_as_a_context_manager(engine: str, scene: Scene) -> None:
    with (
        stateful(worker=Tagged, shared_kwargs={"log": scene.log(), "tag": "t"}, n_jobs=2, engine=engine),
        Parallel() as parallel,
    ):
        for _ in range(3):
            assert parallel(delayed(tag_of)(n) for n in range(5)) == [("t", n) for n in range(5)]
    assert 1 <= len(scene.log().lines) <= 2


@engines
def test_a_stateless_pool(engine: str) -> None:
    with stateful(n_jobs=2, engine=engine):
        assert Parallel()(delayed(pow)(n, 2) for n in range(10)) == [n * n for n in range(10)]
        with pytest.raises(errors.NoWorkerError, match="given no worker class"):
            Parallel()(delayed(tag_of)(n) for n in range(3))


@engines
def test_each_worker_has_its_own_kwargs(engine: str, scene: Scene) -> None:
    own = [{"tag": "a"}, {"tag": "b"}]
    meeting = scene.meeting(1 if engine == "inline" else 2)
    with stateful(worker=Tagged, shared_kwargs={"log": scene.log()}, worker_kwargs=own, engine=engine):
        found = Parallel(n_jobs=-1, batch_size=1)(delayed(meet)(meeting) for _ in range(2))
    assert sorted(found) == [(0, 2, "a"), (1, 2, "b")]


def test_factories_and_partials() -> None:
    def build(tag: str) -> Tagged:
        return Tagged(tag=tag)

    for worker in (factory(build), partial(Tagged, tag="p")):
        kwargs = {"tag": "f"} if not isinstance(worker, partial) else {}
        with stateful(worker=worker, shared_kwargs=kwargs, n_jobs=2, engine="threads"):
            assert {tag for tag, _ in Parallel()(delayed(tag_of)(n) for n in range(4))} == {kwargs.get("tag", "p")}


def test_lambdas_and_closures_travel() -> None:
    offset = 10
    with stateful(n_jobs=2):
        assert Parallel()(delayed(lambda n: n + offset)(n) for n in range(4)) == [10, 11, 12, 13]


# --- how results come back ----------------------------------------------------------------------------


@engines
@pytest.mark.parametrize("return_as", ["list", "generator", "generator_unordered"])
def test_return_as(engine: str, return_as: str) -> None:
    with stateful(worker=Tagged, n_jobs=2, engine=engine):
        results = Parallel(return_as=return_as)(delayed(tag_of)(n) for n in range(50))
        assert isinstance(results, list) is (return_as == "list")
        found = [n for _, n in results]
    assert (sorted(found) if return_as == "generator_unordered" else found) == list(range(50))


@parallel_engines
def test_unordered_results_come_as_they_finish(engine: str, scene: Scene) -> None:
    gates = [scene.gate(n) for n in range(2)]
    gates[1].open()
    with stateful(n_jobs=2, engine=engine):
        parallel = Parallel(return_as="generator_unordered", batch_size=1)
        results = parallel(delayed(wait_at)(gate, n) for n, gate in enumerate(gates))
        assert next(results) == 1
        gates[0].open()
        assert list(results) == [0]


@parallel_engines
def test_two_generators_at_once_under_one_config(engine: str, scene: Scene) -> None:
    with stateful(worker=Tagged, shared_kwargs={"tag": "t"}, n_jobs=2, engine=engine):
        first = Parallel(return_as="generator")(delayed(tag_of)(n) for n in range(20))
        second = Parallel(return_as="generator")(delayed(tag_of)(-n) for n in range(20))
        for n in range(20):
            assert next(first) == ("t", n)
            assert next(second) == ("t", -n)


@parallel_engines
def test_one_of_two_generators_is_abandoned(engine: str, scene: Scene) -> None:
    with stateful(worker=Tagged, shared_kwargs={"log": scene.log()}, n_jobs=2, engine=engine):
        first = Parallel(return_as="generator")(delayed(tag_of)(n) for n in range(200))
        second = Parallel(return_as="generator")(delayed(tag_of)(-n) for n in range(20))
        assert next(first) == (None, 0)
        assert next(second) == (None, 0)
        first.close()
        assert list(second) == [(None, -n) for n in range(1, 20)]
    assert 1 <= len(scene.log().lines) <= 2


@engines
def test_verbose_prints_as_joblib_does(engine: str, capfd: pytest.CaptureFixture[str]) -> None:
    with stateful(n_jobs=2, engine=engine):
        # All at once: else joblib learns that there are four only behind a task, and that may be the last one.
        Parallel(verbose=11, pre_dispatch="all")(delayed(abs)(-n) for n in range(4))
    shown, deadline = "", time.monotonic() + 20
    while "4 out of   4" not in shown:  # the call may be over before the thread has printed that counts its last task
        assert time.monotonic() < deadline, shown
        shown += "".join(capfd.readouterr())
    assert "Using backend StatefulBackend with 2 concurrent workers." in shown


def test_pre_dispatch_and_batch_size(scene: Scene) -> None:
    pulled = []

    def items() -> Iterator[Any]:
        for n in range(20):
            pulled.append(n)
            yield delayed(wait_at)(scene.gate(), n)

    with stateful(n_jobs=2, engine="threads"):
        results = Parallel(return_as="generator", pre_dispatch=4, batch_size=1)(items())
        assert len(pulled) <= 4
        scene.gate().open()
        assert list(results) == list(range(20))


# --- n_jobs -------------------------------------------------------------------------------------------


def slots_of(parallel: Parallel) -> int:
    return int(parallel(delayed(n_jobs_here)() for _ in range(2))[0])


def n_jobs_here() -> int:
    return get_worker_info().n_jobs


def environment(name: str) -> str | None:
    return os.environ.get(name)


def test_n_jobs_not_given_is_the_number_of_worker_kwargs() -> None:
    with stateful(worker=Tagged, worker_kwargs=[{}] * 3, engine="threads"):
        assert joblib.effective_n_jobs() == 3
        assert slots_of(Parallel()) == 3
    # Parallel(backend="stateful", worker_kwargs=...) is one call by itself.
    parallel = Parallel(backend="stateful", worker=Tagged, worker_kwargs=[{}] * 3, engine="threads")
    assert slots_of(parallel) == 3
    with parallel:
        assert slots_of(parallel) == slots_of(parallel) == 3


@pytest.mark.parametrize(("n_jobs", "expected"), [(-1, 3), (-2, 2), (2, 2), (3, 3)])
def test_n_jobs_of_a_call_under_worker_kwargs(n_jobs: int, expected: int) -> None:
    with stateful(worker=Tagged, worker_kwargs=[{"tag": n} for n in range(3)], engine="threads"):
        assert joblib.effective_n_jobs(n_jobs) == expected
        assert slots_of(Parallel(n_jobs=n_jobs)) == expected
        assert {tag for tag, _ in Parallel(n_jobs=n_jobs)(delayed(tag_of)(n) for n in range(30))} <= set(
            range(expected)
        )


def test_more_jobs_than_worker_kwargs_means_all_with_one_warning() -> None:
    with stateful(worker=Tagged, worker_kwargs=[{}] * 2, engine="threads"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(3):
                assert slots_of(Parallel(n_jobs=5)) == 2
        assert len(caught) == 1
        assert re.search("n_jobs=5, but there are worker_kwargs for 2 workers", str(caught[0].message))


@pytest.mark.parametrize("n_jobs", [2, 4])
def test_a_contradiction_within_one_call_is_refused(n_jobs: int) -> None:
    own: list[dict[str, Any]] = [{}] * 3
    message = f"n_jobs={n_jobs}, but worker_kwargs has 3 entries"
    with stateful(worker=Tagged, worker_kwargs=own, n_jobs=n_jobs), pytest.raises(ValueError, match=message):
        Parallel()(delayed(abs)(n) for n in range(3))
    with pytest.raises(ValueError, match=message):
        Parallel(n_jobs, backend="stateful", worker=Tagged, worker_kwargs=own)(delayed(abs)(n) for n in range(3))


def test_without_worker_kwargs_n_jobs_is_joblibs() -> None:
    with stateful(worker=Tagged, engine="threads"):
        assert joblib.effective_n_jobs(-1) == joblib.cpu_count()
        assert slots_of(Parallel(n_jobs=3)) == 3
    with stateful(worker=Tagged, n_jobs=0), pytest.raises(ValueError, match="n_jobs == 0"):
        Parallel()(delayed(abs)(n) for n in range(3))


_UNUSED: dict[str, Any] = {
    "worker_env": [{}],
    "inner_max_num_threads": 2,
    "item_timeout": 600,
    "init_timeout": 60,
    "retries": 1,
    "max_restarts": 1,
    "progress": [].append,
}


@pytest.mark.parametrize("name", _UNUSED)
@pytest.mark.parametrize("n_jobs", [None, 1])
def test_an_option_that_one_worker_cannot_use_is_warned_about_once(name: str, n_jobs: int | None) -> None:
    with stateful(n_jobs=n_jobs, **{name: _UNUSED[name]}), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            assert Parallel()(delayed(abs)(n) for n in range(2)) == [0, 1]
    assert [str(warning.message).partition(":")[0] for warning in caught] == [f"{name} is not used"]
    assert "n_jobs=2" in str(caught[0].message)


def test_all_options_that_one_worker_cannot_use_are_named() -> None:
    with pytest.warns(UserWarning, match=f"^{', '.join(_UNUSED)} are not used"):
        Parallel(backend="stateful", **_UNUSED)(delayed(abs)(n) for n in range(2))


def test_options_that_are_given_as_they_are_by_default_are_not_warned_about() -> None:
    with stateful(retries=0, max_restarts=3, item_timeout=None, progress=False):
        assert Parallel()(delayed(abs)(n) for n in range(2)) == [0, 1]


def one_by_one(item: int) -> Any:
    warnings.filterwarnings("error", message=".*not used")  # in a worker that lives as long as its test
    with stateful(retries=1, progress=print):
        return Parallel()(delayed(abs)(-n) for n in range(item))


@parallel_engines
def test_a_call_within_a_worker_is_not_warned_about(engine: str) -> None:
    with stateful(n_jobs=2, engine=engine):
        assert Parallel()(delayed(one_by_one)(2) for _ in range(2)) == [[0, 1]] * 2


def test_calls_nested_in_what_runs_in_this_process_are_not_warned_about() -> None:
    def nest(item: int) -> Any:
        return Parallel()(delayed(abs)(-n) for n in range(item))

    with stateful(retries=1), pytest.warns(UserWarning, match="retries is not used") as caught:
        assert Parallel()(delayed(nest)(2) for _ in range(2)) == [[0, 1]] * 2
    assert len(caught) == 1


def test_worker_env_is_set_and_with_one_job_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAKE_DEVICE", raising=False)
    env = [{"FAKE_DEVICE": "0"}, {"FAKE_DEVICE": "1"}]
    with stateful(n_jobs=2, worker_env=env):
        assert set(Parallel()(delayed(environment)("FAKE_DEVICE") for _ in range(4))) <= {"0", "1"}
    with stateful(n_jobs=1, worker_env=env[:1]), pytest.warns(UserWarning, match="worker_env is not used"):
        assert Parallel()(delayed(environment)("FAKE_DEVICE") for _ in range(2)) == [None, None]


def test_inner_max_num_threads() -> None:
    with stateful(n_jobs=2, inner_max_num_threads=3):
        assert Parallel()(delayed(environment)("OMP_NUM_THREADS") for _ in range(2)) == ["3", "3"]


@pytest.mark.parametrize("engine", ["threads", "inline"])
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_inner_max_num_threads_is_refused_where_no_process_is_started(engine: str, n_jobs: int) -> None:
    message = f"inner_max_num_threads=3 .*'{engine}' starts none"
    with (
        stateful(n_jobs=n_jobs, engine=engine, inner_max_num_threads=3),  # joblib's own argument, set afterwards
        pytest.raises(ValueError, match=message),
    ):
        Parallel()(delayed(abs)(n) for n in range(2))
    with pytest.raises(ValueError, match=message):
        Parallel(n_jobs, backend="stateful", engine=engine, inner_max_num_threads=3)(delayed(abs)(n) for n in range(2))
    with pytest.raises(ValueError, match=message):
        StatefulBackend(engine=engine, inner_max_num_threads=3)


# --- exceptions and early ends ------------------------------------------------------------------------


@engines
def test_an_exception_is_raised_and_the_objects_stay(engine: str, scene: Scene) -> None:
    with stateful(worker=Tagged, shared_kwargs={"log": scene.log()}, n_jobs=2, engine=engine):
        for _ in range(3):
            with pytest.raises(ValueError, match="bad item 7") as caught:
                Parallel()(delayed(fail_at)(7, n) for n in range(20))
            assert re.search(r"\[joblib_stateful: item \d+, slot \d, pid \d+\]", caught.value.__notes__[0])
            assert Parallel()(delayed(tag_of)(n) for n in range(20)) == [(None, n) for n in range(20)]
    assert 1 <= len(scene.log().lines) <= 2


@parallel_engines
@pytest.mark.parametrize("how", ["close", "collect"])
@pytest.mark.parametrize("return_as", ["generator", "generator_unordered"])
def test_an_abandoned_generator_leaves_the_objects(engine: str, how: str, return_as: str, scene: Scene) -> None:
    with stateful(worker=Tagged, shared_kwargs={"log": scene.log()}, n_jobs=2, engine=engine):
        for _ in range(3):
            results = Parallel(return_as=return_as)(delayed(tag_of)(n) for n in range(500))
            next(results)
            if how == "close":
                results.close()
            del results
            gc.collect()
        assert Parallel()(delayed(tag_of)(n) for n in range(20)) == [(None, n) for n in range(20)]
    assert 1 <= len(scene.log().lines) <= 2


@parallel_engines
def test_what_is_queued_is_dropped_and_what_runs_finishes(engine: str, scene: Scene) -> None:
    def run(item: int) -> int:
        scene.log().note(item)
        if item == 0:
            scene.log("second").wait_for(1)
            raise ValueError("first")
        scene.log("second").note("started")
        scene.gate().wait()
        scene.log("finished").note(item)
        return item

    with stateful(n_jobs=2, engine=engine):
        with pytest.raises(ValueError, match="first"):
            Parallel(batch_size=1, pre_dispatch="all")(delayed(run)(n) for n in range(20))
        scene.gate().open()
        scene.log("finished").wait_for(1)
        Parallel()(delayed(abs)(n) for n in range(2))
    assert len(scene.log().lines) <= 3


def test_joblibs_timeout_kills_the_workers_of_its_call_only(scene: Scene) -> None:
    kwargs = {"log": scene.log()}
    with stateful(worker=Tagged, shared_kwargs=kwargs, n_jobs=3):
        Parallel(batch_size=1)(delayed(meet)(scene.meeting(3)) for _ in range(3))  # all are built
        other = Parallel(return_as="generator", n_jobs=3, batch_size=1)(
            delayed(wait_at)(scene.gate("other"), n) for n in range(1)
        )
        with pytest.raises(multiprocessing.TimeoutError):
            Parallel(timeout=0.3, batch_size=1)(delayed(wait_at)(scene.gate("never")) for _ in range(2))
        scene.gate("other").open()
        assert list(other) == [0]
        # The workers that hung do not block the next call.
        assert len(Parallel(batch_size=1)(delayed(meet)(scene.meeting(3, "again")) for _ in range(3))) == 3
    # The worker that worked for the other call was not killed.
    assert len(scene.log().lines) == 5


@pytest.mark.parametrize("return_as", ["list", "generator", "generator_unordered"])
def test_after_joblibs_timeout_the_next_call_works(return_as: str, scene: Scene) -> None:
    with stateful(n_jobs=2):
        with pytest.raises(multiprocessing.TimeoutError):
            list(Parallel(timeout=0.3, return_as=return_as)(delayed(wait_at)(scene.gate()) for _ in range(2)))
        assert list(Parallel(timeout=30, return_as=return_as)(delayed(abs)(-1) for _ in range(2))) == [1, 1]


@pytest.mark.parametrize("kind", [TimeoutError, multiprocessing.TimeoutError])
def test_a_timeout_error_of_a_task_is_not_joblibs_timeout(kind: type[Exception], scene: Scene) -> None:
    def run(item: int) -> None:
        scene.meeting(2).join()
        if item:
            scene.gate().wait()
            scene.log("finished").note(item)
        else:
            raise kind("a server's own")

    with stateful(worker=Tagged, shared_kwargs={"log": scene.log()}, n_jobs=2):
        with pytest.raises(kind, match="a server's own"):
            Parallel(batch_size=1)(delayed(run)(n) for n in range(2))
        scene.gate().open()
        scene.log("finished").wait_for(1)  # it was not killed
        Parallel()(delayed(tag_of)(n) for n in range(4))
    assert len(scene.log().lines) == 2


def test_a_crash_is_raised_and_the_next_call_works(scene: Scene) -> None:
    def run(item: int) -> int:
        if item == 3:
            die()
        return item

    with stateful(worker=Tagged, shared_kwargs={"log": scene.log()}, n_jobs=2):
        Parallel(batch_size=1)(delayed(meet)(scene.meeting(2)) for _ in range(2))
        with pytest.raises(errors.WorkerCrashedError) as caught:
            Parallel(batch_size=1)(delayed(run)(n) for n in range(10))
        assert (caught.value.index, caught.value.exitcode) == (3, 4)
        Parallel(batch_size=1)(delayed(meet)(scene.meeting(2, "again")) for _ in range(2))
    assert len(scene.log().lines) == 3  # one was built again, the other kept its object


def test_retries(scene: Scene) -> None:
    with stateful(n_jobs=2, retries=1):
        found = Parallel(batch_size=1)(delayed(die_once)(scene.log(), n) for n in range(6))
    assert found == list(range(6))
    assert scene.log().lines == ["died"]


def test_item_timeout(scene: Scene) -> None:
    # A worker's first item includes its import of joblib.
    with stateful(n_jobs=2, item_timeout=2), pytest.raises(errors.ItemTimeoutError):
        Parallel(batch_size=1)(delayed(wait_at)(scene.gate()) for _ in range(2))
    with stateful(n_jobs=2):  # without a limit, for a worker that was killed imports joblib again
        assert Parallel()(delayed(abs)(-1) for _ in range(2)) == [1, 1]


class Broken(Tagged):
    def __init__(self, log: Log, allowed: Gate) -> None:
        super().__init__(log)
        if not allowed.path.exists():
            raise KeyError("no such model")


@engines
def test_a_constructor_that_raises_ends_the_call(engine: str, scene: Scene) -> None:
    kwargs = {"log": scene.log(), "allowed": scene.gate()}
    with stateful(worker=Broken, shared_kwargs=kwargs, n_jobs=2, engine=engine):
        with pytest.raises(errors.WorkerInitError, match="no such model") as caught:
            Parallel()(delayed(tag_of)(n) for n in range(20))
        assert type(caught.value.__cause__) is KeyError
        assert 1 <= len(scene.log().lines) <= 2  # one attempt per slot and call
        scene.gate().open()
        assert Parallel()(delayed(tag_of)(n) for n in range(20)) == [(None, n) for n in range(20)]


def test_a_slot_that_keeps_dying_ends_the_call() -> None:
    class Deadly(Tagged):
        def __init__(self) -> None:
            die()

    with (
        stateful(worker=Deadly, n_jobs=2, max_restarts=1),
        pytest.raises(errors.WorkerInitError, match="max_restarts=1"),
    ):
        Parallel()(delayed(tag_of)(n) for n in range(20))


class Unpicklable:
    def __reduce__(self) -> NoReturn:
        raise TypeError("not to be pickled")


@pytest.mark.parametrize("bad", ["argument", "result"])
def test_an_argument_or_result_that_cannot_travel_ends_the_call(bad: str, scene: Scene) -> None:
    tasks = [delayed(id)(Unpicklable()) if bad == "argument" else delayed(Unpicklable)() for _ in range(3)]
    with stateful(worker=Tagged, shared_kwargs={"log": scene.log()}, n_jobs=2):
        with pytest.raises(errors.TransferError, match="not to be pickled"):
            Parallel(batch_size=1)(tasks)
        Parallel()(delayed(tag_of)(n) for n in range(4))
    assert 1 <= len(scene.log().lines) <= 2


@pytest.mark.parametrize("return_as", ["list", "generator"])
def test_ctrl_c_ends_a_program_within_two_seconds(return_as: str, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(program_text("joblib/is_interrupted_in_parallel"))
    with subprocess.Popen(
        [sys.executable, "-W", "error", os.fspath(script), return_as],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as program:
        try:
            assert program.stdout is not None
            assert [program.stdout.readline() for _ in range(2)] == ["started\n"] * 2
            started = time.monotonic()
            os.killpg(program.pid, signal.SIGINT)  # as a terminal does: workers included
            out, err = program.communicate(timeout=30)
            took = time.monotonic() - started
        finally:
            program.kill()
    assert "interrupted" in out
    assert program.returncode in (1, 130, -signal.SIGINT)
    assert err.count("Traceback") == 1  # the program's own
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert took < 2


# --- nesting, progress --------------------------------------------------------------------------------


def nest(item: int) -> tuple[Any, list[int]]:
    return get_worker().tag, Parallel(n_jobs=2)(delayed(abs)(-n) for n in range(item))


@engines
def test_a_parallel_within_a_task(engine: str) -> None:
    with stateful(worker=Tagged, shared_kwargs={"tag": "t"}, n_jobs=2, engine=engine):
        assert Parallel()(delayed(nest)(n) for n in range(4)) == [("t", list(range(n))) for n in range(4)]


def nest_stateful(item: int) -> list[Any]:
    with stateful(worker=Tagged, shared_kwargs={"tag": "inner"}, n_jobs=2):
        found: list[Any] = Parallel()(delayed(tag_of)(n) for n in range(item))
    return [*found, get_worker().tag]


@parallel_engines
def test_a_stateful_parallel_within_a_task(engine: str) -> None:
    with stateful(worker=Tagged, shared_kwargs={"tag": "outer"}, n_jobs=2, engine=engine):
        found = Parallel()(delayed(nest_stateful)(2) for _ in range(2))
    assert found == [[("inner", 0), ("inner", 1), "outer"]] * 2


class Bar:
    """What of tqdm is needed, with a record of what was done to it."""

    made: ClassVar[list[Bar]]

    def __init__(self, total: int | None = None) -> None:
        self.total, self.n, self.closed = total, 0, False
        type(self).made.append(self)

    def update(self, n: int) -> None:
        self.n += n

    def close(self) -> None:
        self.closed = True


def nest_in_threads(item: int) -> Any:
    return Parallel(n_jobs=2)(delayed(abs)(-n) for n in range(item))


@parallel_engines
def test_one_bar_for_the_outermost_call_only(engine: str) -> None:
    class Mine(Bar):
        made: ClassVar[list[Bar]] = []

    with stateful(n_jobs=2, engine=engine, progress=Mine):
        Parallel()(delayed(nest_in_threads)(3) for n in range(5))
    assert [(bar.n, bar.closed) for bar in Mine.made] == [(5, True)]


@engines
def test_progress_counts_the_calls(engine: str) -> None:
    counts: list[int] = []
    with stateful(n_jobs=2, engine=engine, progress=counts.append):
        Parallel()(delayed(abs)(n) for n in range(30))
    assert sum(counts) == 30


def test_progress_true_shows_a_bar(capfd: pytest.CaptureFixture[str]) -> None:
    with stateful(n_jobs=2, engine="threads", progress={"desc": "mine", "ascii": True}):
        Parallel()(delayed(abs)(n) for n in range(30))
    assert re.search(r"mine.*30", capfd.readouterr().err)


# --- bad arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        (
            {"wroker": Tagged},
            TypeError,
            "has no argument 'wroker'. Did you mean worker\\? It takes worker, shared_kwargs",
        ),
        ({"worker": abs}, TypeError, "joblib's delayed"),
        ({"worker": 5}, TypeError, "worker must be a class"),
        ({"shared_kwargs": {"tag": 1}}, TypeError, "tag"),
        ({"worker": Tagged, "shared_kwargs": {"tga": 1}}, TypeError, "tga"),
        ({"worker": Tagged, "worker_kwargs": []}, ValueError, "worker_kwargs is empty"),
        ({"engine": "lokey"}, ValueError, "There is no engine 'lokey'"),
        ({"engine": "threads", "item_timeout": 1}, ValueError, "thread can't be killed"),
        ({"engine": "threads", "worker_env": [{}]}, ValueError, "worker_env"),
        ({"engine": "inline", "init_timeout": 5}, ValueError, "init_timeout=5 can't be kept"),
        ({"retries": -1}, ValueError, "retries"),
        ({"max_restarts": "3"}, TypeError, "max_restarts"),
        ({"progress": 5}, TypeError, "progress must be"),
    ],
)
def test_bad_arguments_are_refused_at_once(kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message), stateful(n_jobs=2, **kwargs):
        pass
    with pytest.raises(error, match=message):
        Parallel(n_jobs=2, backend="stateful", **kwargs)(delayed(abs)(n) for n in range(2))


def test_worker_env_of_the_wrong_length_is_refused() -> None:
    with stateful(n_jobs=2, worker_env=[{}] * 3), pytest.raises(ValueError, match="worker_env has 3 entries"):
        Parallel()(delayed(abs)(n) for n in range(2))


# --- a script's own classes ---------------------------------------------------------------------------


def test_a_program_that_defines_its_class_in_main(run_program: RunProgram) -> None:
    done = run_program(program_text("joblib/defines_its_worker_in_main"))
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == ["[0, 2, 4]", "caught (3,)"]


def fail_at_3(item: int) -> int:
    if item == 3:
        raise ValueError(item)
    return item


@parallel_engines
def test_what_a_failed_call_left_is_not_run_in_the_next_one(engine: str) -> None:
    with stateful(n_jobs=2, engine=engine), Parallel() as parallel:
        for _ in range(4):  # until joblib sends many at once
            parallel(delayed(abs)(item) for item in range(600))
        with pytest.raises(ValueError, match="3"):
            parallel(delayed(fail_at_3)(item) for item in range(1000))
        assert parallel(delayed(abs)(item) for item in range(6)) == [*range(6)]


@engines
def test_a_failure_that_a_task_returns_is_its_error(engine: str) -> None:
    def invert(number: int) -> Any:
        return 1 / number if number else Failure(ValueError("zero has no inverse"))

    with stateful(n_jobs=2, engine=engine), pytest.raises(ValueError, match="zero has no inverse"):
        Parallel()(delayed(invert)(number) for number in (1, 2, 0, 4))
