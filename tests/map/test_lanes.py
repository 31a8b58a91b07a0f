"""The threads of a worker that takes several messages: no worker, no process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from joblib_stateful._worker._lanes import Lanes

pytestmark = pytest.mark.unit


def lanes_of(n_lanes: int) -> Lanes:
    first: Any = SimpleNamespace(life=SimpleNamespace(lock=None))
    return Lanes(first, n_lanes, lambda _: first)


def doing(done: threading.Event) -> Callable[[Any], Callable[[], object]]:
    return lambda _: done.set


def test_what_is_started_after_the_end_is_done_and_holds_nothing_up() -> None:
    """As when a worker is killed by one thread while another hands it a message."""
    lanes = lanes_of(2)
    before = threading.active_count()
    for is_over in (False, True, True):
        if is_over:
            lanes.end()
        done = threading.Event()
        lanes.start(0, doing(done))
        assert done.wait(20)
        while not lanes._idle and not is_over:  # the thread is about to wait for more
            pass
    while threading.active_count() > before:
        pass
    assert not lanes.lock.locked()


def test_threads_that_end_and_threads_that_begin_never_lose_anything() -> None:
    for _ in range(50):
        lanes, done = lanes_of(4), [threading.Event() for _ in range(20)]
        ending = threading.Thread(target=lambda lanes=lanes: [lanes.end() for _ in range(20)])
        ending.start()
        for event in done:
            lanes.start(0, doing(event))
        assert all(event.wait(20) for event in done)
        ending.join()
        lanes.end()
