"""`get_worker` and its kin: in workers, in the threads of these, where joblib runs inline, and elsewhere."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from joblib import Parallel, delayed, parallel_config

from joblib_stateful import (
    StatefulBackend,
    StatefulExecutor,
    call_worker,
    errors,
    get_worker,
    get_worker_info,
    stateful_map,
)
from scenes import Log, Scene, engines, new_scene


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return new_scene(tmp_path)


class Model:
    def __init__(self, device: str = "cpu", log: Log | None = None) -> None:
        self.device = device
        self.calls = 0
        if log is not None:
            log.note(f"built {os.getpid()}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.device, args, kwargs

    def ask(self) -> Any:
        return get_worker() is self, get_worker_info().index


class Asking(Model):
    def __init__(self) -> None:
        super().__init__()
        self.index = get_worker_info().index

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.index, get_worker() is self


def look() -> tuple[Any, ...]:
    info = get_worker_info()
    return get_worker().device, info.index, info.n_jobs, info.kwargs.get("device"), info.pid == os.getpid()


def ask() -> Any:
    return get_worker().ask()


# --- in workers ---------------------------------------------------------------------------------------


@engines
def test_a_function_finds_the_object_of_its_worker(engine: str) -> None:
    with StatefulExecutor(Model, worker_kwargs=[{"device": "a"}, {"device": "b"}], engine=engine) as executor:
        executor.warm_up()
        for _ in range(4):
            device, index, n_jobs, named, is_own_pid = executor.submit(look).result(60)
            assert (device, named) == ("ab"[index],) * 2
            assert n_jobs == 2
            assert is_own_pid


@engines
def test_what_a_function_finds_is_the_object_itself(engine: str) -> None:
    with StatefulExecutor(Model, 1, engine=engine) as executor:
        assert executor.submit(ask).result(60) == (True, 0)
        assert executor.submit(call_worker, 1, two=2).result(60) == ("cpu", (1,), {"two": 2})
        assert executor.submit(lambda: get_worker().calls).result(60) == 1


@engines
def test_the_object_itself_may_ask_for_its_worker(engine: str) -> None:
    assert list(stateful_map(Asking, [1, 2], n_jobs=1, engine=engine)) == [(0, True)] * 2


def ask_in_a_thread() -> Any:
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(look).result(60), threads.submit(call_worker, 1).result(60)


def test_threads_that_a_worker_process_starts_find_its_object() -> None:
    with StatefulExecutor(Model, 1) as executor:
        assert executor.submit(ask_in_a_thread).result(60) == (("cpu", 0, 1, None, True), ("cpu", (1,), {}))


def ask_in_parallel_threads() -> Any:
    return Parallel(n_jobs=2, backend="threading")(delayed(look)() for _ in range(2))


def test_joblibs_threads_within_a_worker_process_find_its_object() -> None:
    with StatefulExecutor(Model, 1, shared_kwargs={"device": "x"}) as executor:
        assert executor.submit(ask_in_parallel_threads).result(60) == [("x", 0, 1, "x", True)] * 2


@engines
def test_a_worker_without_an_object_says_so(engine: str) -> None:
    with StatefulExecutor(n_jobs=1, engine=engine) as executor:
        assert executor.submit(get_worker_info).result(60).index == 0
        for function in (get_worker, call_worker):
            error = executor.submit(function).exception(60)
            assert isinstance(error, errors.NoWorkerError)
            assert "this worker has no object" in str(error)
            assert "StatefulExecutor(YourClass" in str(error)


# --- where joblib runs inline -------------------------------------------------------------------------


@engines
def test_one_job_runs_here_with_an_object_that_is_built_once(engine: str, scene: Scene) -> None:
    kwargs = {"log": scene.log(), "device": "here"}
    with parallel_config(backend="stateful", worker=Model, shared_kwargs=kwargs, n_jobs=1, engine=engine):
        assert scene.log().lines == []
        for _ in range(2):
            assert Parallel()(delayed(look)() for _ in range(2)) == [("here", 0, 1, "here", True)] * 2
        assert Parallel()(delayed(call_worker)(n) for n in range(2)) == [("here", (n,), {}) for n in range(2)]
        assert Parallel()(delayed(ask)() for _ in range(1)) == [(True, 0)]
        assert Parallel(return_as="generator")(delayed(os.getpid)() for _ in range(1)).__next__() == os.getpid()
    assert scene.log().lines == [f"built {os.getpid()}"]


def test_one_job_without_a_class_has_no_object() -> None:
    with parallel_config(backend="stateful", n_jobs=1):
        assert Parallel()(delayed(abs)(-n) for n in range(3)) == [0, 1, 2]
        with pytest.raises(errors.NoWorkerError):
            Parallel()(delayed(get_worker)() for _ in range(2))


def test_one_dict_of_worker_kwargs_is_one_job() -> None:
    with parallel_config(backend="stateful", worker=Model, worker_kwargs=[{"device": "only"}]):
        assert Parallel()(delayed(look)() for _ in range(2)) == [("only", 0, 1, "only", True)] * 2


def test_a_smaller_call_takes_the_first_of_the_kwargs() -> None:
    own = [{"device": "a"}, {"device": "b"}]
    with parallel_config(backend="stateful", worker=Model, worker_kwargs=own):
        assert Parallel(n_jobs=1)(delayed(look)() for _ in range(2)) == [("a", 0, 1, "a", True)] * 2


def test_a_constructor_that_raises_inline() -> None:
    class Broken(Model):
        def __init__(self) -> None:
            raise KeyError("no such model")

    with parallel_config(backend="stateful", worker=Broken, n_jobs=1):
        with pytest.raises(errors.WorkerInitError, match="no such model") as caught:
            Parallel()(delayed(ask)() for _ in range(1))
        assert type(caught.value.__cause__) is KeyError


# --- elsewhere ----------------------------------------------------------------------------------------

_ADVICE = (
    "executor = StatefulExecutor(YourClass",
    "the call is made in the main program",
    "own backend instance with n_jobs=1",
    'require="sharedmem"',
)


def check_refused(function: Callable[[], Any], name: str) -> None:
    with pytest.raises(errors.NoWorkerError) as caught:
        function()
    assert isinstance(caught.value, RuntimeError)
    for advice in _ADVICE:
        assert advice in str(caught.value)
    assert str(caught.value).startswith(f"{name} was called outside a worker")


@pytest.mark.parametrize(
    ("function", "name"),
    [(get_worker, "get_worker()"), (get_worker_info, "get_worker_info()"), (call_worker, "call_worker()")],
)
def test_the_main_program_is_no_worker(function: Callable[[], Any], name: str) -> None:
    check_refused(function, name)
    with parallel_config(backend="stateful", worker=Model, n_jobs=2):
        check_refused(function, name)


def test_the_main_program_is_no_worker_between_calls_that_ran_here() -> None:
    with parallel_config(backend="stateful", worker=Model, n_jobs=1):
        Parallel()(delayed(look)() for _ in range(2))
    check_refused(get_worker, "get_worker()")


@pytest.mark.parametrize("engine", ["threads", "inline"])
def test_the_main_program_is_no_worker_after_calls_that_ran_here(engine: str) -> None:
    with StatefulExecutor(Model, 1, engine=engine) as executor:
        executor.submit(look).result(60)
        check_refused(get_worker, "get_worker()")


def test_an_own_backend_instance_with_one_job_has_no_worker() -> None:
    backend = StatefulBackend(worker=Model)
    check_refused(lambda: Parallel(n_jobs=1, backend=backend)(delayed(get_worker)() for _ in range(2)), "get_worker()")


def test_shared_memory_moves_the_call_to_joblibs_threads() -> None:
    with parallel_config(backend="stateful", worker=Model, n_jobs=2):
        check_refused(
            lambda: Parallel(require="sharedmem")(delayed(get_worker)() for _ in range(2)),
            "get_worker()",
        )


def test_a_thread_beside_the_worker_threads_has_no_worker() -> None:
    found: list[BaseException] = []

    def run() -> None:
        try:
            get_worker()
        except errors.NoWorkerError as error:
            found.append(error)

    with StatefulExecutor(Model, 1, engine="threads") as executor:
        executor.warm_up()
        thread = threading.Thread(target=run)
        thread.start()
        thread.join(60)
    assert len(found) == 1
    assert re.search("outside a worker", str(found[0]))
