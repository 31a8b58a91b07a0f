"""What owns workers, or a run of them, refuses to be copied or pickled; a configuration can be both."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import cloudpickle
import pytest
from joblib import Parallel, delayed, parallel_config

from joblib_stateful import StatefulBackend, StatefulExecutor, get_worker, stateful_map
from joblib_stateful.testing import MemoryEngine
from scenes import engines

copying = pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps, cloudpickle.dumps])


@copying
@engines
def test_a_map_refuses_to_be_copied_and_goes_on(duplicate: Callable[[Any], Any], engine: str) -> None:
    results = stateful_map(abs, range(5), n_jobs=1, engine=engine)
    for expected in range(5):
        with pytest.raises(TypeError, match=r"A StatefulMap can't be copied or pickled: .* itertools\.tee"):
            duplicate(results)
        assert next(results) == expected
    if duplicate is not copy.copy:  # which doesn't look into what it copies
        with pytest.raises(TypeError, match="StatefulMap can't be copied"):
            duplicate({"among": [results]})


@copying
@engines
def test_an_executor_refuses_to_be_copied_and_goes_on(duplicate: Callable[[Any], Any], engine: str) -> None:
    with StatefulExecutor(n_jobs=1, engine=engine) as executor:
        for _ in range(2):
            with pytest.raises(TypeError, match="A StatefulExecutor can't be copied or pickled: its workers belong"):
                duplicate(executor)
            assert executor.submit(abs, -1).result(60) == 1


class Uses:
    """Uses an executor."""

    def __init__(self, executor: StatefulExecutor) -> None:
        self.executor = executor

    def __call__(self, item: int) -> int:
        return self.executor.submit(abs, item).result()


def test_the_message_reaches_who_sends_one_to_a_worker() -> None:
    with StatefulExecutor(n_jobs=1) as executor:
        future = executor.submit(repr, executor)
        with pytest.raises(Exception, match="A StatefulExecutor can't be copied or pickled"):
            future.result(60)
    with pytest.raises(TypeError, match="A StatefulExecutor can't be copied or pickled"):
        stateful_map(Uses, [1], shared_kwargs={"executor": executor})


class Keeps:
    """Keeps what it is built from."""

    def __init__(self, tag: str) -> None:
        self.tag = tag


def tag_of(_: Any) -> str:
    tag: str = get_worker().tag
    return tag


@copying
def test_a_backend_at_work_refuses_to_be_copied(duplicate: Callable[[Any], Any]) -> None:
    with (
        parallel_config("stateful", worker=Keeps, shared_kwargs={"tag": "t"}, n_jobs=2, engine="threads"),
        Parallel() as parallel,
    ):
        assert parallel(delayed(tag_of)(n) for n in range(3)) == ["t"] * 3
        with pytest.raises(TypeError, match="A StatefulBackend can't be copied or pickled: it is at work"):
            duplicate(parallel._backend)
        assert parallel(delayed(tag_of)(n) for n in range(3)) == ["t"] * 3


def through_pickle(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, through_pickle])
def test_a_backend_that_is_only_a_configuration_can_be_copied_and_pickled(duplicate: Callable[[Any], Any]) -> None:
    backend = StatefulBackend(worker=Keeps, shared_kwargs={"tag": "t"}, engine="threads", retries=0)
    for made in (duplicate(backend), duplicate(duplicate(backend))):
        assert made is not backend
        assert Parallel(n_jobs=2, backend=made)(delayed(tag_of)(n) for n in range(3)) == ["t"] * 3
    with parallel_config(backend, n_jobs=1):  # which has an object in this process
        assert Parallel()(delayed(tag_of)(n) for n in range(3)) == ["t"] * 3
        assert Parallel(n_jobs=2, backend=duplicate(backend))(delayed(tag_of)(n) for n in range(3)) == ["t"] * 3
    with parallel_config(duplicate(backend), inner_max_num_threads=None, n_jobs=2):
        assert Parallel()(delayed(tag_of)(n) for n in range(3)) == ["t"] * 3


def test_a_copy_has_what_joblib_has_set_and_the_same_engine() -> None:
    engine = MemoryEngine(auto=True)
    with parallel_config(StatefulBackend(worker=dict, engine=engine), inner_max_num_threads=3, n_jobs=2) as config:
        made = copy.deepcopy(config["backend"])
    assert made.inner_max_num_threads == 3
    assert Parallel(n_jobs=2, backend=made)(delayed(abs)(n) for n in range(3)) == [0, 1, 2]
    assert engine.workers
