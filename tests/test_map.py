"""What `stateful_map` promises, on every engine."""

from __future__ import annotations

import operator
import os
import threading
from functools import partial
from typing import Any

import pytest
from conftest import ENGINES, BuildLog

from joblib_stateful import StatefulExecutor, StatefulMap, factory, stateful_map

engines = pytest.mark.parametrize("engine", ENGINES)
orders = pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "unordered"])


class Adder:
    """Adds what it was built with, and says so in a log."""

    def __init__(self, log: BuildLog | None = None, to: int = 0) -> None:
        if log is not None:
            log.note(to)
        self.to = to

    def __call__(self, item: int) -> int:
        return self.to + item


@engines
@orders
def test_each_item_goes_through_a_worker_once(engine: str, ordered: bool) -> None:
    results = list(stateful_map(Adder, range(100), n_jobs=2, shared_kwargs={"to": 5}, ordered=ordered, engine=engine))
    assert (results if ordered else sorted(results)) == list(range(5, 105))


@engines
def test_objects_are_built_once_and_found_again_by_the_next_map(engine: str, built: BuildLog) -> None:
    for _ in range(3):
        results = stateful_map(Adder, range(50), n_jobs=2, shared_kwargs={"log": built}, engine=engine)
        assert list(results) == list(range(50))
    assert 1 <= len(built) <= 2
