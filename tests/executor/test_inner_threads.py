"""How many threads libraries use in workers, and what a worker is told of it."""

from __future__ import annotations

import importlib
import os
from typing import Any

import joblib
import pytest
from joblib import Parallel, delayed, parallel_config
from joblib.parallel import ParallelBackendBase

import joblib_stateful
from joblib_stateful import StatefulBackend, StatefulExecutor, get_worker_info, stateful_map
from joblib_stateful._executor import _thread_limits
from scenes import engines

_PATIENCE = 60
_OTHERS = [variable.name for variable in _thread_limits.OTHERS]
_ALL = [*_thread_limits.THREAD_VARIABLES, *_OTHERS]


@pytest.fixture(autouse=True)
def four_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a program that has set nothing, on a machine with four CPUs."""
    for name in _ALL:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("joblib_stateful._executor._arguments.cpu_count", lambda: 4)


def test_the_variables_that_limit_threads_are_joblibs() -> None:
    backend = ParallelBackendBase
    assert set(backend.MAX_NUM_THREADS_VARS) <= set(_thread_limits.THREAD_VARIABLES)  # older ones know fewer
    assert backend.TBB_ENABLE_IPC_VAR == _thread_limits.TBB_VARIABLE


_LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def environment(*names: str) -> list[str | None]:
    return [os.environ.get(name) for name in names]


def test_each_worker_has_its_share_of_threads() -> None:
    for n_jobs in (1, 2):
        with StatefulExecutor(n_jobs=n_jobs) as executor:
            share = str(4 // n_jobs)
            assert executor.submit(environment, *_LIMITS).result(_PATIENCE) == [share] * 3


def test_the_users_own_limit_of_threads_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    with StatefulExecutor(n_jobs=1) as executor:
        assert executor.submit(environment, "OMP_NUM_THREADS").result(_PATIENCE) == ["7"]
    with StatefulExecutor(n_jobs=1, inner_max_num_threads=5) as executor:
        assert executor.submit(environment, *_LIMITS).result(_PATIENCE) == ["5"] * 3
    with StatefulExecutor(n_jobs=1, inner_max_num_threads=5, worker_env=[{"OMP_NUM_THREADS": "3"}]) as executor:
        assert executor.submit(environment, *_LIMITS).result(_PATIENCE) == ["3", "5", "5"]


def test_the_users_limit_is_the_one_at_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    with StatefulExecutor(n_jobs=1) as executor:
        monkeypatch.setenv("OMP_NUM_THREADS", "9")
        assert executor.submit(environment, "OMP_NUM_THREADS").result(_PATIENCE) == ["7"]


# --- what keeps a pool of its own ---------------------------------------------------------------------


def seen() -> dict[str, str]:
    """Return the variables of threads in a worker."""
    return {name: os.environ[name] for name in _ALL if name in os.environ}


def in_a_worker(function: Any = seen, **options: Any) -> Any:
    with StatefulExecutor(**options) as executor:
        return executor.submit(function).result(_PATIENCE)


def test_each_table_entry_is_named_once() -> None:
    assert len(set(_ALL)) == len(_ALL)
    assert all(any(sign.isdigit() for sign in variable.library) for variable in _thread_limits.OTHERS)  # the version


def test_other_libraries_have_their_share_too() -> None:
    assert in_a_worker(n_jobs=2) == dict.fromkeys(_ALL, "2")
    assert in_a_worker(n_jobs=5) == dict.fromkeys(_ALL, "1")


def test_one_worker_leaves_them_what_they_take_by_themselves() -> None:
    assert in_a_worker(n_jobs=1) == dict.fromkeys(_thread_limits.THREAD_VARIABLES, "4")


def test_a_given_number_is_told_to_all() -> None:
    for n_jobs in (1, 2):
        assert in_a_worker(n_jobs=n_jobs, inner_max_num_threads=3) == dict.fromkeys(_ALL, "3")


@pytest.mark.parametrize("name", _OTHERS)
def test_what_the_user_has_set_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    env = [{name: "7"}, {}]
    assert in_a_worker(n_jobs=2, worker_env=[env[0], env[0]]) == {**dict.fromkeys(_ALL, "2"), name: "7"}
    with StatefulExecutor(worker_env=env) as executor:
        assert executor.run_on_all(lambda: os.environ[name]) == ["7", "2"]
    monkeypatch.setenv(name, "9")
    assert in_a_worker(n_jobs=2) == {**dict.fromkeys(_ALL, "2"), name: "9"}
    assert in_a_worker(n_jobs=1)[name] == "9"


def test_leave_sets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(_thread_limits.TBB_VARIABLE, raising=False)

    def look() -> tuple[dict[str, str], bool, int | None]:
        return seen(), _thread_limits.TBB_VARIABLE in os.environ, get_worker_info().n_threads

    assert in_a_worker(look, n_jobs=2, inner_max_num_threads="leave") == ({}, False, 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert in_a_worker(look, n_jobs=2, inner_max_num_threads="leave") == ({"OMP_NUM_THREADS": "7"}, False, 2)


def test_leave_is_told_to_maps_and_to_joblib() -> None:
    joblib_stateful.shutdown()
    found = list(stateful_map(lambda _: seen(), range(2), n_jobs=2, inner_max_num_threads="leave"))
    assert found == [{}, {}]
    assert list(stateful_map(lambda _: seen(), range(1), n_jobs=2)) == [dict.fromkeys(_ALL, "2")]  # in other workers
    calls = [delayed(seen)() for _ in range(2)]
    with parallel_config("stateful", n_jobs=2, inner_max_num_threads="leave"):
        assert Parallel()(calls) == [{}, {}]
    assert Parallel(2, StatefulBackend(inner_max_num_threads="leave"))(calls) == [{}, {}]
    with parallel_config("stateful", n_jobs=1, inner_max_num_threads="leave"):  # without a warning
        assert Parallel()(calls) == [{}, {}]


@engines
def test_leave_is_taken_on_every_engine(engine: str) -> None:
    assert in_a_worker(n_jobs=2, engine=engine, inner_max_num_threads="leave") == {}


@pytest.mark.parametrize("wrong", ["all", "2", "", "Leave"])
def test_other_words_are_refused(wrong: Any) -> None:
    words = f'integer of 1 or more, not {wrong!r}. .*CPUs over workers.*"leave"'
    with pytest.raises(ValueError, match=words):
        StatefulExecutor(inner_max_num_threads=wrong)
    with pytest.raises(ValueError, match=words):
        stateful_map(abs, [1], inner_max_num_threads=wrong)
    with pytest.raises(ValueError, match=words):
        StatefulBackend(inner_max_num_threads=wrong)


# --- the number ---------------------------------------------------------------------------------------


class Model:
    """Knows its number from the start."""

    def __init__(self) -> None:
        self.n_threads = get_worker_info().n_threads

    def __call__(self, _: object) -> tuple[int | None, int | None]:
        return self.n_threads, get_worker_info().n_threads


@engines
def test_each_worker_knows_how_many_threads_are_meant(engine: str) -> None:
    for n_jobs, n_threads in ((1, 4), (2, 2), (3, 1), (9, 1)):
        joblib_stateful.shutdown()
        assert list(stateful_map(Model, [0], n_jobs=n_jobs, engine=engine)) == [(n_threads, n_threads)]


def test_a_given_number_is_the_one() -> None:
    for n_jobs in (1, 2):
        assert in_a_worker(lambda: get_worker_info().n_threads, n_jobs=n_jobs, inner_max_num_threads=3) == 3


@engines
def test_the_program_sees_the_number_of_each_worker(engine: str) -> None:
    with StatefulExecutor(n_jobs=2, engine=engine) as executor:
        assert [info.n_threads for info in executor.workers()] == [None, None]
        executor.warm_up()
        assert [info.n_threads for info in executor.workers()] == [2, 2]


def test_workers_that_are_added_share_with_those_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("joblib_stateful._executor._arguments.cpu_count", lambda: 12)
    joblib_stateful.shutdown()
    assert list(stateful_map(Model, [0], n_jobs=2)) == [(6, 6)]
    with stateful_map(Model, range(100), n_jobs=6) as grown:
        list(grown)
        found = {info.index: info.n_threads for info in grown.workers() if info.state != "empty"}
    assert found[0] == 6
    assert set(found.values()) <= {6, 2}


# --- libraries ----------------------------------------------------------------------------------------


def test_joblib_in_a_worker_counts_the_workers_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for name in _ALL:
        monkeypatch.delenv(name, raising=False)
    n_cpus = joblib.cpu_count()

    def nested() -> tuple[Any, ...]:
        calls = [delayed(abs)(-number) for number in range(3)]
        with StatefulExecutor(n_jobs=2) as executor:
            own = executor.run_on_all(abs, -1)
        return joblib.effective_n_jobs(-1), Parallel(-1)(calls), Parallel(2)(calls), own

    share = max(n_cpus // 2, 1)
    assert in_a_worker(nested, n_jobs=2) == (share, [0, 1, 2], [0, 1, 2], [1, 1])
    assert in_a_worker(nested, n_jobs=1)[0] == n_cpus


def test_scikit_learn_in_a_worker() -> None:
    pytest.importorskip("sklearn", reason="is about scikit-learn, which is not installed")

    def fit() -> int:
        from sklearn.datasets import make_classification
        from sklearn.ensemble import RandomForestClassifier

        data, labels = make_classification(60, random_state=0)
        forest = RandomForestClassifier(4, n_jobs=-1, random_state=0).fit(data, labels)
        return len(forest.predict(data))

    assert in_a_worker(fit, n_jobs=2) == 60


def test_polars_in_a_worker() -> None:
    pytest.importorskip("polars", reason="is about polars, which is not installed")

    def size() -> tuple[int, int]:
        pl: Any = importlib.import_module("polars")

        return int(pl.DataFrame({"k": [1, 1, 2]}).group_by("k").agg(n=pl.len()).height), pl.thread_pool_size()

    assert in_a_worker(size, n_jobs=2) == (2, 2)
    assert in_a_worker(size, n_jobs=2, inner_max_num_threads=3) == (2, 3)


def test_pytorch_in_a_worker() -> None:
    pytest.importorskip("torch", reason="is about PyTorch, which is not installed")

    def numbers() -> tuple[int, int]:
        import torch

        torch.set_num_interop_threads(3)  # which it takes once in a process
        return torch.get_num_threads(), torch.get_num_interop_threads()

    assert in_a_worker(numbers, n_jobs=2, inner_max_num_threads=1) == (1, 3)


def test_arrow_in_a_worker() -> None:
    pytest.importorskip("pyarrow", reason="is about Arrow, which is not installed")

    def numbers() -> int:
        return int(importlib.import_module("pyarrow").cpu_count())

    assert in_a_worker(numbers, n_jobs=2) == 2
