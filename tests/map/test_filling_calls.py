"""How the input becomes calls with many items: bounded at every pull, whole where nobody waits, in part where a worker does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from joblib_stateful import stateful_map
from joblib_stateful._map import _feeder
from joblib_stateful._map._batches import Inbox
from joblib_stateful._map._call_sizes import CallSizes
from joblib_stateful._map._feeder import Feeder
from joblib_stateful._scheduling._requests import Group
from joblib_stateful._transport._transport import ByReference
from scenes import engines, new_scene, note_call, orders, parallel_engines, plan_of_calls


@pytest.fixture
def all_inputs_are_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the time for pulling be over when it begins, so that each item is late."""
    monkeypatch.setattr(_feeder, "PULL_SECONDS", -1.0)


def give_back(items: list[Any]) -> list[Any]:
    return items


def check_bound(buffer: int, engine: str, **options: Any) -> None:
    """Fail if more is pulled, at any moment, than the buffer has room for."""
    n_pulled = n_taken = 0

    def source() -> Iterator[int]:
        nonlocal n_pulled
        for item in range(100):
            n_pulled += 1
            assert n_pulled - n_taken <= buffer
            yield item

    for _ in stateful_map(give_back, source(), n_jobs=2, pass_as="batch", buffer=buffer, engine=engine, **options):
        n_taken += 1
    assert n_taken == 100


@engines
@orders
@pytest.mark.parametrize("batch_size", [1, 3, 50, "auto"])
def test_the_bound_is_strict(*, engine: str, ordered: bool, batch_size: Any) -> None:
    for buffer in (1, 2, 7, 60):
        check_bound(buffer, engine, batch_size=batch_size, ordered=ordered)


@engines
@orders
@pytest.mark.usefixtures("all_inputs_are_slow")
def test_the_bound_is_strict_while_a_slow_input_fills_calls(*, engine: str, ordered: bool) -> None:
    for buffer in (1, 2, 7, 60):
        check_bound(buffer, engine, batch_size=5, ordered=ordered)


@engines
def test_failed_calls_leave_the_buffer_too(engine: str) -> None:
    n_pulled = n_taken = 0

    def source() -> Iterator[int]:
        nonlocal n_pulled
        for item in range(60):
            n_pulled += 1
            assert n_pulled - n_taken <= 8
            yield item

    def refuse_some(items: list[int]) -> list[int]:
        if any(item % 7 == 0 for item in items):
            raise ValueError(items)
        return items

    options: dict[str, Any] = {"pass_as": "batch", "batch_size": 4, "buffer": 8, "on_error": "deferred"}
    n_failed = 0
    for result in stateful_map(refuse_some, source(), n_jobs=2, engine=engine, **options):
        n_taken += 1
        n_failed += not result.ok
    assert (n_taken, n_failed) == (60, 9)


@engines
@pytest.mark.parametrize("fails", [False, True])
def test_length_and_progress_count_items(*, engine: str, fails: bool) -> None:
    def work(items: list[int]) -> list[int]:
        if fails and 3 in items:
            raise ValueError(3)
        return items

    shown: list[int] = []
    options: dict[str, Any] = {"pass_as": "batch", "batch_size": 8, "on_error": "deferred", "engine": engine}
    results = stateful_map(work, range(30), n_jobs=1, progress=shown.append, **options)
    assert len(results) == 30
    for n_taken, _ in enumerate(results, 1):
        assert n_taken <= sum(shown) <= 30
    assert sum(shown) == 30
    assert all(n > 0 for n in shown)


@parallel_engines
def test_a_consumer_that_takes_one_result_after_the_other_makes_no_small_calls(engine: str, tmp_path: Path) -> None:
    calls = new_scene(tmp_path).log()

    def note(items: list[int]) -> list[int]:
        calls.note(len(items))
        return items

    options: dict[str, Any] = {"n_jobs": 1, "pass_as": "batch", "batch_size": 8, "engine": engine}
    for n_taken, _ in enumerate(stateful_map(note, range(400), **options), 1):
        # Behind what was sent, on the only slot: whenever the consumer looks, the worker has nothing to do.
        if n_taken % 5 == 0 and n_taken < 100:
            list(stateful_map(note, [0], **options))
    sizes = [int(line) for line in calls.lines]
    assert sizes.count(8) == 50
    assert sizes.count(1) == len(sizes) - 50, "those of the other maps"


# --- an input that is slow ------------------------------------------------------------------------------


@parallel_engines
@pytest.mark.usefixtures("all_inputs_are_slow")
def test_a_slow_input_fills_calls_while_the_workers_are_busy(engine: str, tmp_path: Path) -> None:
    scene = new_scene(tmp_path)

    def source() -> Iterator[int]:
        yield from range(4)
        scene.gate().open()
        yield 4

    def work(items: list[int]) -> list[int]:
        scene.log().note(items)
        scene.gate().wait()
        return items

    results = stateful_map(work, source(), n_jobs=1, pass_as="batch", batch_size=4, engine=engine)
    assert list(results) == [*range(5)]
    # The first one goes out at once, for a worker waits for it; the others together, when they are as many as they shall be.
    assert scene.log().lines == ["[0]", "[1, 2, 3, 4]"]


@parallel_engines
@pytest.mark.usefixtures("all_inputs_are_slow")
def test_a_part_of_a_call_is_sent_when_a_worker_waits(engine: str, tmp_path: Path) -> None:
    calls = new_scene(tmp_path).log()

    def source() -> Iterator[int]:
        yield 0
        calls.wait_for(1)  # or it would never be run
        yield from (1, 2, 3)

    def work(items: list[int]) -> list[int]:
        calls.note(items)
        return items

    assert list(stateful_map(work, source(), n_jobs=1, pass_as="batch", batch_size=4, engine=engine)) == [*range(4)]
    assert calls.lines[0] == "[0]"


@pytest.mark.parametrize("ends", ["ends", "raises"])
@pytest.mark.usefixtures("all_inputs_are_slow")
def test_what_has_begun_is_sent_when_the_input_ends(ends: str, tmp_path: Path) -> None:
    scene = new_scene(tmp_path)

    def source() -> Iterator[int]:
        yield from range(3)
        scene.gate().open()
        if ends == "raises":
            raise OSError("the disk is gone")

    def work(items: list[int]) -> list[int]:
        scene.gate().wait()
        return items

    found: list[int] = []
    results = stateful_map(work, source(), n_jobs=1, pass_as="batch", batch_size=8, engine="threads")
    if ends == "ends":
        found.extend(results)
    else:
        with pytest.raises(OSError, match="the disk is gone"):
            found.extend(results)
    assert found == [0, 1, 2]


# --- the feeder alone -----------------------------------------------------------------------------------


class Closing:
    """An input that says when it is closed."""

    def __init__(self, items: Iterable[int]) -> None:
        self.is_closed = False
        self.items = self._pull(items)

    def _pull(self, items: Iterable[int]) -> Iterator[int]:
        try:
            yield from items
        finally:
            self.is_closed = True


def feeder_of(source: Iterable[Any], sizes: CallSizes, length: int | None = None) -> Feeder:
    return Feeder(plan_of_calls(source, sizes, ByReference(), length), Group(), Inbox())


def next_size(feeder: Feeder, room: int = 100, *, is_awaited: bool) -> int | None:
    batch = feeder.next_batch(room, is_awaited=is_awaited)
    return None if batch is None else batch.size


@pytest.mark.unit
@pytest.mark.usefixtures("all_inputs_are_slow")
def test_a_call_that_has_begun_is_gone_on_with() -> None:
    feeder = feeder_of((item for item in range(10)), CallSizes(1, 3, 100))
    assert [next_size(feeder, is_awaited=False) for _ in range(3)] == [None, None, 3]
    assert not feeder.has_begun_batch
    assert next_size(feeder, is_awaited=False) is None
    assert feeder.has_begun_batch
    assert feeder.n_pulled == 3
    assert next_size(feeder, is_awaited=True) == 2
    assert feeder.n_pulled == 5


@pytest.mark.unit
@pytest.mark.usefixtures("all_inputs_are_slow")
def test_a_call_that_has_begun_has_no_more_than_there_is_room_for() -> None:
    feeder = feeder_of((item for item in range(10)), CallSizes(1, 8, 100))
    assert [next_size(feeder, room=2, is_awaited=False) for _ in range(2)] == [None, 2]


@pytest.mark.unit
@pytest.mark.usefixtures("all_inputs_are_slow")
def test_calls_may_become_smaller_than_the_one_that_has_begun() -> None:
    sizes = CallSizes(1, 8, 100)
    feeder = feeder_of((item for item in range(100)), sizes)
    assert [next_size(feeder, is_awaited=False) for _ in range(5)] == [None] * 5
    note_call(sizes, 8, 1.0, 0, n_calls=7, n_fit=2)
    assert next_size(feeder, is_awaited=False) == 5
    assert [next_size(feeder, is_awaited=False) for _ in range(2)] == [None, 2]
    assert (feeder.error, feeder.is_over) == (None, False)


@pytest.mark.unit
@pytest.mark.usefixtures("all_inputs_are_slow")
def test_what_has_begun_goes_with_the_map() -> None:
    source = Closing(range(10))
    feeder = feeder_of(source.items, CallSizes(1, 8, 100))
    assert next_size(feeder, is_awaited=False) is None
    feeder.end()
    assert source.is_closed
    assert not feeder.has_begun_batch
    assert feeder.is_over


@pytest.mark.unit
def test_an_input_that_is_there_is_never_waited_for() -> None:
    feeder = feeder_of([*range(20)], CallSizes(2, 8, 100), length=20)
    assert [next_size(feeder, is_awaited=False) for _ in range(3)] == [8, 8, 4]


@pytest.mark.unit
def test_heavy_items_end_a_call_early_under_auto() -> None:
    sizes = CallSizes(2, "auto", "auto")
    for _ in range(8):
        note_call(sizes, sizes.batch, 0.05, 0)
    assert sizes.batch > 8
    feeder = feeder_of([bytes(4 * 2**20) for _ in range(20)], sizes)
    size = next_size(feeder, is_awaited=False)
    assert size is not None
    assert size <= sizes.max_bytes / (4 * 2**20) + 1
