"""How many workers the backend has, where nobody, a library or the user says it; and that who asks first is told so."""

from __future__ import annotations

import multiprocessing
import os
import warnings
from functools import partial
from typing import Any

import joblib
import pytest
from joblib import Parallel, delayed, parallel_backend, parallel_config

from joblib_stateful import StatefulBackend, get_worker, get_worker_info

stateful = partial(parallel_config, backend="stateful")
N_CPUS = 3


@pytest.fixture(autouse=True)
def _three_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("joblib_stateful._executor._arguments.cpu_count", lambda: N_CPUS)


class Worker:
    def __init__(self, tag: str = "") -> None:
        self.tag = tag


def slot(_: Any = None) -> tuple[int, int]:
    assert isinstance(get_worker(), Worker)
    info = get_worker_info()
    return info.n_jobs, info.pid or 0


def n_slots(**options: Any) -> int:
    """Return how many slots a Parallel call has; 1 means that it ran in this process."""
    found = {*Parallel(**options)(delayed(slot)() for _ in range(4))}
    n_jobs: int
    (n_jobs,) = {n for n, _ in found}
    assert n_jobs > 1 or {pid for _, pid in found} == {os.getpid()}
    return n_jobs


three: dict[str, Any] = {"worker": Worker, "worker_kwargs": [{"tag": tag} for tag in "abc"]}
four: dict[str, Any] = {"worker": Worker, "worker_kwargs": [{"tag": tag} for tag in "abcd"]}


def test_a_worker_without_n_jobs_has_all_cpus() -> None:
    with stateful(worker=Worker):
        assert joblib.effective_n_jobs(None) == joblib.effective_n_jobs(-1) == N_CPUS
        assert n_slots() == n_slots(n_jobs=None) == n_slots(n_jobs=-1) == N_CPUS


def test_worker_kwargs_say_how_many() -> None:
    with stateful(**four):
        assert joblib.effective_n_jobs(None) == joblib.effective_n_jobs(-1) == 4
        assert joblib.effective_n_jobs(2) == 2
        assert joblib.effective_n_jobs(-2) == 3
        assert n_slots(engine="threads") == n_slots(engine="threads", n_jobs=-1) == 4


def test_worker_env_says_how_many() -> None:
    with stateful(worker=Worker, worker_env=[{"A": "1"}, {"A": "2"}]):
        assert joblib.effective_n_jobs(None) == joblib.effective_n_jobs(-1) == 2
        assert n_slots() == 2


def test_without_a_worker_the_default_is_one_job_as_with_joblibs_own() -> None:
    with stateful():
        assert joblib.effective_n_jobs(None) == 1
        assert joblib.effective_n_jobs(-1) == N_CPUS
        assert Parallel()(delayed(os.getpid)() for _ in range(2)) == [os.getpid()] * 2
    with stateful(worker_env=[{"A": "1"}, {"A": "2"}]):
        assert joblib.effective_n_jobs(None) == 1


@pytest.mark.parametrize("n_jobs", [1, 2, -1, -2])
def test_the_n_jobs_of_the_configuration_holds(n_jobs: int) -> None:
    expected = {1: 1, 2: 2, -1: N_CPUS, -2: N_CPUS - 1}[n_jobs]
    with stateful(worker=Worker, n_jobs=n_jobs, engine="threads"):
        assert joblib.effective_n_jobs(None) == expected
        assert n_slots() == expected
    with parallel_backend("stateful", n_jobs=n_jobs, worker=Worker, engine="threads"):
        assert n_slots() == expected


def test_one_job_that_was_asked_for_is_one() -> None:
    for options in ({"worker": Worker}, three):
        with stateful(**options):
            assert n_slots() == N_CPUS
            assert n_slots(n_jobs=1) == 1
            assert joblib.effective_n_jobs(1) == 1


def test_a_library_that_asks_for_n_jobs_and_passes_it_on_has_workers() -> None:
    for options in ({"worker": Worker, "engine": "threads"}, {**three, "engine": "threads"}):
        with stateful(**options):
            for own in (None, -1, 2):  # a library's own n_jobs
                assert n_slots(n_jobs=joblib.effective_n_jobs(own)) == (own if own == 2 else 3)


def test_a_backend_object_has_the_same_defaults() -> None:
    backend = StatefulBackend(worker=Worker, engine="threads")
    assert n_slots(backend=backend) == N_CPUS
    assert n_slots(backend=backend, n_jobs=2) == 2
    with parallel_config(backend=StatefulBackend(**three, engine="threads")):
        assert joblib.effective_n_jobs(None) == 3
        assert n_slots() == 3


def test_a_backend_named_in_the_call_has_the_same_defaults() -> None:
    named = partial(n_slots, backend="stateful", engine="threads")
    assert named(worker=Worker) == named(worker=Worker, n_jobs=None) == N_CPUS
    assert named(worker=Worker, n_jobs=2) == 2
    assert named(**four) == named(**four, n_jobs=-1) == 4
    with parallel_config(n_jobs=2):  # somebody else's
        assert named(worker=Worker) == 2
        assert named(**three) == 2
    assert (
        Parallel(n_jobs=1, backend="stateful", worker=Worker)(delayed(os.getpid)() for _ in range(2))
        == [os.getpid()] * 2
    )


def test_a_worker_named_in_the_call_under_a_configuration_has_the_same_defaults() -> None:
    with stateful(engine="threads"):
        assert n_slots(worker=Worker) == N_CPUS
        assert n_slots(worker=Worker, n_jobs=2) == 2
        assert n_slots(**four) == 4


@pytest.mark.parametrize("n_jobs", [1, 2, 4])
def test_a_contradiction_within_one_call_is_refused(n_jobs: int) -> None:
    message = f"n_jobs={n_jobs}"
    with pytest.raises(ValueError, match=message):
        Parallel(n_jobs, backend="stateful", **three)(delayed(abs)(n) for n in range(3))
    with stateful(worker=Worker, worker_env=[{}] * 3, n_jobs=n_jobs), pytest.raises(ValueError, match=message):
        Parallel()(delayed(abs)(n) for n in range(3))


@pytest.mark.parametrize("name", ["worker_kwargs", "worker_env"])
def test_under_a_configuration_fewer_jobs_are_that_many_and_more_are_all_with_one_warning(name: str) -> None:
    with stateful(worker=Worker, **{name: [{}] * 2}), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert n_slots(n_jobs=5) == n_slots(n_jobs=4) == n_slots(n_jobs=2) == n_slots(n_jobs=-1) == 2
        assert n_slots(n_jobs=1) == 1
    assert [str(warning.message) for warning in caught if name == "worker_kwargs"] == [
        "n_jobs=5, but there are worker_kwargs for 2 workers: no more are used."
    ] * (name == "worker_kwargs")


def test_with_one_cpu_joblib_runs_the_calls_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("joblib_stateful._executor._arguments.cpu_count", lambda: 1)
    with stateful(worker=Worker):
        assert joblib.effective_n_jobs(None) == 1
        assert n_slots() == 1


def in_daemon(found: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with stateful(worker=Worker):
            found.put((joblib.effective_n_jobs(None), n_slots()))


def test_in_a_daemonic_process_there_is_one_job() -> None:
    context = multiprocessing.get_context("spawn")
    found = context.Queue()
    process = context.Process(target=in_daemon, args=(found,), daemon=True)
    process.start()
    assert found.get(timeout=60) == (1, 1)
    process.join(60)


def test_scikit_learn_gets_all_workers_without_being_told() -> None:
    pytest.importorskip("sklearn")
    from sklearn.datasets import make_classification
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import cross_val_score
    from sklearn.tree import DecisionTreeClassifier

    class Here(DecisionTreeClassifier):  # type: ignore[misc]  # scikit-learn is not typed
        def fit(self, *args: Any, **kwargs: Any) -> Any:
            assert get_worker_info().pid != parent
            return super().fit(*args, **kwargs)

    parent = os.getpid()
    data, labels = make_classification(60, random_state=0)
    with stateful(worker=Worker):
        assert len(cross_val_score(Here(), data, labels, cv=3, error_score="raise")) == 3
        RandomForestClassifier(n_estimators=4, random_state=0).fit(data, labels)
