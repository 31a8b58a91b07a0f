"""A call with many items for which there is no memory: its items are run in smaller ones, and so are those that follow."""

from __future__ import annotations

import statistics
import weakref
from pathlib import Path
from typing import Any

import pytest

from joblib_stateful import stateful_map
from joblib_stateful._map import _size_search
from scenes import Log, engines, new_scene

ROOM = 4  # items that a worker has memory for


@pytest.fixture
def calls(tmp_path: Path) -> Log:
    """Return where workers note the first item and the number of items of each call."""
    return new_scene(tmp_path).log("calls")


class OutOfMemoryError(RuntimeError):
    """Named as that of PyTorch, which is no MemoryError."""


ERRORS = {
    "MemoryError": MemoryError(),
    "a class's name": OutOfMemoryError("tried to allocate 2.00 GiB"),
    "a text": RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
}


class Device:
    """Has memory for so many items, and for none of some."""

    def __init__(self, calls: Log, error: Exception, room: int = ROOM, too_large: int | None = None) -> None:
        self.calls, self.error, self.room, self.too_large = calls, error, room, too_large

    def __call__(self, items: list[int]) -> list[int]:
        self.calls.note(f"{items[0]} {len(items)}")
        if len(items) > self.room or self.too_large in items:
            raise self.error
        return [item * 10 for item in items]


def noted(calls: Log) -> list[tuple[int, int]]:
    return [(int(first), int(n_items)) for first, n_items in map(str.split, calls.lines)]


def run(n_items: int, engine: str, kwargs: dict[str, Any], **options: Any) -> list[Any]:
    return list(
        stateful_map(Device, range(n_items), n_jobs=1, shared_kwargs=kwargs, pass_as="batch", engine=engine, **options)
    )


@engines
@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("isolate", [True, False])
def test_all_results_come_and_later_calls_are_small_enough(
    *, engine: str, error: Exception, isolate: bool, calls: Log
) -> None:
    kwargs = {"calls": calls, "error": error}
    assert run(80, engine, kwargs, batch_size=16, isolate=isolate) == [item * 10 for item in range(80)]
    sizes = noted(calls)
    assert sizes[:4] == [(0, 16), (0, 8), (0, 4), (4, 4)]
    # What was sent before the first answer came is as large: a call that runs and one that waits.
    assert all(n_items <= ROOM for first, n_items in sizes if first >= 32)
    assert sum(n_items for first, n_items in sizes if n_items <= ROOM) == 80, "each is run well once"


@engines
def test_calls_that_grow_stop_there(engine: str, calls: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_size_search, "_WORTH_A_STEP", 0.0)  # however long calls take, they grow
    monkeypatch.setattr(_size_search, "_COMPARED_AGAIN", 10**6)  # nor are smaller ones found better by chance
    kwargs = {"calls": calls, "error": MemoryError()}
    assert run(400, engine, kwargs, isolate=False) == [item * 10 for item in range(400)]
    sizes = noted(calls)
    too_large = [first for first, n_items in sizes if n_items > ROOM]
    assert too_large
    assert max(too_large) < 200  # two calls had been sent before the first one's answer came
    later = [n_items for first, n_items in sizes if 200 <= first < 390]
    assert max(later) == statistics.mode(later) == ROOM


@engines
@pytest.mark.parametrize("isolate", [True, False])
def test_an_item_that_is_too_large_alone_fails_alone_and_makes_no_call_smaller(
    *, engine: str, isolate: bool, calls: Log
) -> None:
    kwargs = {"calls": calls, "error": MemoryError("too large"), "room": 8, "too_large": 5}
    found = run(80, engine, kwargs, batch_size=8, isolate=isolate, on_error="deferred")
    assert [result.index for result in found if not result.ok] == [5]
    assert repr(found[5].exception) == "MemoryError('too large')"
    assert [result.value for result in found if result.ok] == [item * 10 for item in range(80) if item != 5]
    assert {n_items for first, n_items in noted(calls) if first >= 8} == {8}


alive = {"n": 0}  # in a worker


class Heavy:
    """There is memory for so many of them, when they are loaded."""

    def __init__(self, number: int) -> None:
        self.number = number
        alive["n"] += 1
        if alive["n"] > ROOM:
            raise MemoryError("no room to load it")

    def __del__(self) -> None:
        alive["n"] -= 1


class Light:
    """Becomes heavy in a worker."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        return Heavy, (self.number,)


def test_items_that_cannot_be_loaded_together_are_run_in_smaller_calls(calls: Log) -> None:
    def work(items: list[Heavy]) -> list[int]:
        calls.note(f"{items[0].number} {len(items)}")
        return [item.number for item in items]

    items = [Light(number) for number in range(48)]
    assert list(stateful_map(work, items, n_jobs=1, pass_as="batch", batch_size=8)) == [*range(48)]
    assert {n_items for _, n_items in noted(calls)} == {ROOM}


class Block:
    """Memory that a call has taken."""


def test_what_a_call_has_taken_is_given_back_before_it_is_repeated() -> None:
    blocks: list[weakref.ref[Block]] = []

    def work(items: list[int]) -> list[int]:
        assert not any(block() for block in blocks)
        block = Block()
        blocks.append(weakref.ref(block))
        if len(items) > 1:
            raise MemoryError(f"with {block}")
        return items

    options: dict[str, Any] = {"n_jobs": 1, "pass_as": "batch", "batch_size": 4, "engine": "inline"}
    assert list(stateful_map(work, range(4), **options)) == [*range(4)]
    assert len(blocks) == 7
