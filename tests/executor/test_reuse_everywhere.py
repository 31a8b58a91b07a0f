"""Another number of jobs, on every engine: the objects that stand are used, and none is built twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from joblib import Parallel, delayed, parallel_config

from contract import ALL, N_JOBS, Model, count, on
from joblib_stateful import call_worker, get_worker_info, stateful_map

pytestmark = pytest.mark.cluster


def where() -> tuple[int, int]:
    info = get_worker_info()
    return info.index, info.n_jobs


@on(*ALL)
def test_slots_are_added_and_the_first_so_many_are_used(engine: Any, log: Path) -> None:
    own = [{"tag": tag} for tag in "ab"]
    for n_jobs in (1, N_JOBS, 1, N_JOBS):
        options: dict[str, Any] = {"shared_kwargs": {"log": log}, "worker_kwargs": own[:n_jobs], "engine": engine}
        found = list(stateful_map(Model, [where] * 40, **options))
        assert set(found) <= {(index, n_jobs) for index in range(n_jobs)}
        assert {tag for tag, _ in stateful_map(Model, range(40), **options)} <= set("ab"[:n_jobs])
    assert count(log, "built") <= N_JOBS
    assert count(log, "closed") == 0


@on(*ALL)
def test_a_map_and_a_parallel_call_that_want_other_numbers_share_objects(engine: Any, log: Path) -> None:
    kwargs = {"log": log}
    for _ in range(2):
        assert list(stateful_map(Model, [1], n_jobs=1, shared_kwargs=kwargs, engine=engine)) == [("", 1)]
        with parallel_config("stateful", worker=Model, shared_kwargs=kwargs, engine=engine, n_jobs=N_JOBS):
            assert Parallel()(delayed(call_worker)(item) for item in range(20)) == [("", item) for item in range(20)]
    assert count(log, "built") <= N_JOBS
    assert count(log, "closed") == 0


@on("dask", "ray")
def test_on_a_cluster_what_is_idle_makes_way_each_time(engine: Any, log: Path) -> None:
    for _ in range(3):
        for tag in "ab":
            kwargs = {"log": log, "tag": tag}
            assert list(stateful_map(Model, [1], n_jobs=N_JOBS, shared_kwargs=kwargs, engine=engine)) == [(tag, 1)]
    assert count(log, "built") >= count(log, "closed") + 1 >= 6
