"""Sizes of batches and buffers follow from measurements alone; no process and no clock is needed."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest

from joblib_stateful import stateful_map
from joblib_stateful._map._batching import (
    ALONE_SECONDS,
    BATCH_BYTES,
    BATCH_SECONDS,
    BUFFER_BYTES,
    BUFFER_ITEMS,
    GROWTH,
    LEAP_SECONDS,
    OVERTIME,
    REMOTE_ALONE_SECONDS,
    Batching,
)
from joblib_stateful.testing import MemoryEngine

if TYPE_CHECKING:
    from joblib_stateful.engines import Engine

pytestmark = pytest.mark.unit


MEGABYTE = 2**20


def play(
    batching: Batching, item_seconds: float, n_rounds: int, item_bytes: int = 0, result_bytes: int = 0
) -> list[int]:
    """Send and take back so many batches of items that are all alike; return their sizes."""
    sizes = []
    for _ in range(n_rounds):
        size = batching.next_batch(room=10**9, remaining=None)
        sizes.append(size)
        batching.note_sent(item_bytes * size, size)
        batching.note_back(size, size, item_seconds * size, result_bytes * size)
    return sizes


# --- batches --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_fixed_size_is_kept(size: int) -> None:
    batching = Batching(2, size, "auto")
    assert set(play(batching, 1e-6, 5)) == {size}
    assert set(play(batching, 10.0, 5, item_bytes=100 * MEGABYTE)) == {size}


def test_the_first_batch_is_one_item() -> None:
    assert Batching(8, "auto", "auto").next_batch(10**9, None) == 1
    assert Batching(8, "auto", 1000).next_batch(10**9, 10**6) == 1


def test_short_items_soon_travel_in_large_batches() -> None:
    sizes = play(Batching(2, "auto", "auto"), 1e-6, 8)
    assert sizes == sorted(sizes)
    assert sizes[0] == 1
    assert all(after <= max(before * GROWTH, LEAP_SECONDS / 1e-6) for before, after in itertools.pairwise(sizes))
    assert sizes[-1] >= 0.9 * BATCH_SECONDS / 1e-6


@pytest.mark.parametrize("seconds", [1e-5, 1e-4, 1e-3, 5e-3])
def test_a_batch_takes_as_long_as_it_should(seconds: float) -> None:
    size = play(Batching(2, "auto", "auto"), seconds, 12)[-1]
    assert 0.8 * BATCH_SECONDS <= size * seconds <= 1.01 * BATCH_SECONDS


def test_one_odd_measurement_makes_no_long_batch() -> None:
    batching = Batching(2, "auto", "auto")
    batching.note_back(1, 1, 1e-5, 0)
    assert batching.batch * 1e-5 <= LEAP_SECONDS
    batching.note_back(1, 1, 1e-3, 0)
    assert batching.batch <= GROWTH


def test_it_is_known_whether_batches_still_grow() -> None:
    batching = Batching(2, "auto", "auto")
    assert not batching.is_growing, "nothing is known"
    play(batching, 1e-6, 1)
    assert batching.is_growing
    play(batching, 1e-6, 8)
    assert not batching.is_growing
    play(batching, 1.0, 8)
    assert not batching.is_growing, "long items travel alone"
    assert not Batching(2, 3, "auto").is_growing


def test_a_batch_may_take_some_times_as_long_as_it_should_and_one_of_a_fixed_size_as_long_as_it_likes() -> None:
    assert Batching(2, "auto", "auto").budget == OVERTIME * BATCH_SECONDS
    assert Batching(2, 1000, "auto").budget is None


@pytest.mark.parametrize("seconds", [1.1 * ALONE_SECONDS, 0.1, 10.0])
def test_long_items_travel_alone(seconds: float) -> None:
    assert set(play(Batching(2, "auto", "auto"), seconds, 10)) == {1}


class Far(MemoryEngine):
    """As those of clusters are."""

    is_remote = True


@pytest.mark.parametrize(("engine", "size"), [(MemoryEngine(), 1), (Far(), 10)], ids=["near", "far"])
def test_where_a_message_takes_longer_so_do_items_that_travel_together(engine: Engine, size: int) -> None:
    batching = stateful_map(abs, [], n_jobs=2, engine=engine)._plan.batching
    assert play(batching, 0.02, 8)[-1] == size
    assert play(batching, 1.1 * REMOTE_ALONE_SECONDS, 8)[-1] == 1


def test_items_that_become_long_travel_alone_soon() -> None:
    batching = Batching(2, "auto", "auto")
    assert play(batching, 1e-5, 8)[-1] > 1000
    assert play(batching, 1.0, 3)[1:] == [1, 1]


def test_items_that_become_short_again_travel_together_again() -> None:
    batching = Batching(2, "auto", "auto")
    play(batching, 1.0, 3)
    assert play(batching, 1e-5, 25)[-1] > 1000


def test_instant_items_do_not_divide_by_zero() -> None:
    assert play(Batching(2, "auto", "auto"), 0.0, 20)[-1] <= BATCH_SECONDS / 1e-7


@pytest.mark.parametrize("item_bytes", [1000, 100_000, MEGABYTE, 10 * MEGABYTE])
def test_a_batch_of_heavy_items_is_capped_in_bytes(item_bytes: int) -> None:
    size = play(Batching(2, "auto", "auto"), 1e-6, 12, item_bytes=item_bytes)[-1]
    assert size == max(1, BATCH_BYTES // item_bytes)


@pytest.mark.parametrize(("buffer", "n_jobs"), [(1, 2), (7, 2), (100, 2), (100, 8)])
def test_a_batch_leaves_room_in_a_small_buffer_for_every_slot(buffer: int, n_jobs: int) -> None:
    batching = Batching(n_jobs, "auto", buffer)
    play(batching, 1e-6, 8)
    assert batching.batch == max(1, buffer // (2 * n_jobs))


def test_a_batch_never_exceeds_the_room() -> None:
    batching = Batching(2, 100, "auto")
    assert batching.next_batch(room=7, remaining=None) == 7
    assert batching.next_batch(room=1000, remaining=None) == 100


def test_at_the_end_batches_shrink_so_that_all_slots_share_it() -> None:
    batching = Batching(2, "auto", "auto")
    play(batching, 1e-3, 10)
    assert batching.batch == pytest.approx(BATCH_SECONDS / 1e-3, abs=1)
    assert batching.next_batch(10**9, remaining=1000) == batching.batch
    assert batching.next_batch(10**9, remaining=40) == 17
    assert batching.next_batch(10**9, remaining=12) == 6
    assert batching.next_batch(10**9, remaining=9) == 4  # no smaller than what takes 4 ms
    assert batching.next_batch(10**9, remaining=1) == 4  # nor here: the input may have lied
    assert batching.next_batch(10**9, remaining=0) == 4
    assert batching.next_batch(10**9, remaining=None) == batching.batch


def test_a_fixed_size_does_not_shrink_at_the_end() -> None:
    batching = Batching(2, 50, "auto")
    play(batching, 1e-3, 3)
    assert batching.next_batch(10**9, remaining=10) == 50


# --- buffers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("buffer", [1, 2, 7, 10**6])
def test_a_fixed_buffer_is_kept(buffer: int) -> None:
    batching = Batching(2, "auto", buffer)
    assert batching.buffer == buffer
    play(batching, 1e-6, 10, item_bytes=100 * MEGABYTE, result_bytes=100 * MEGABYTE)
    assert batching.buffer == buffer


def test_at_first_the_buffer_is_small() -> None:
    # The weight of results is not known yet.
    assert Batching(4, "auto", "auto").buffer == 8
    assert Batching(4, 10, "auto").buffer == 80


def test_once_something_is_known_the_buffer_is_enough_for_every_slot() -> None:
    batching = Batching(4, "auto", "auto")
    play(batching, 1.0, 3)
    assert batching.buffer == 4 * BUFFER_ITEMS
    play(batching, 1e-6, 20)
    assert batching.buffer >= 4 * 4 * batching.batch


@pytest.mark.parametrize("batch_size", [1, 100, "auto"])
@pytest.mark.parametrize(
    ("item_bytes", "result_bytes"), [(10 * MEGABYTE, 0), (0, 10 * MEGABYTE), (5 * MEGABYTE, 5 * MEGABYTE)]
)
def test_heavy_items_and_results_keep_the_buffer_small(batch_size: Any, item_bytes: int, result_bytes: int) -> None:
    batching = Batching(2, batch_size, "auto")
    play(batching, 1e-3, 12, item_bytes=item_bytes, result_bytes=result_bytes)
    assert batching.buffer == pytest.approx(BUFFER_BYTES // (10 * MEGABYTE), abs=1)
    assert batching.buffer * (item_bytes + result_bytes) <= BUFFER_BYTES


def test_however_heavy_items_are_the_buffer_has_one_for_each_slot() -> None:
    batching = Batching(3, "auto", "auto")
    play(batching, 1.0, 3, item_bytes=10**9, result_bytes=10**9)
    assert (batching.batch, batching.buffer) == (1, 3)


# --- what is not counted --------------------------------------------------------------------------------


def test_what_was_not_run_teaches_nothing() -> None:
    batching = Batching(2, "auto", "auto")
    batching.note_back(10, 0, 0.0, 0)
    assert (batching.batch, batching.buffer) == (1, 4)


def test_only_what_was_run_of_a_batch_counts() -> None:
    one, other = Batching(2, "auto", "auto"), Batching(2, "auto", "auto")
    one.note_back(10, 4, 0.02, 0)
    other.note_back(10, 10, 0.05, 0)
    assert one.batch == other.batch == round(BATCH_SECONDS / 5e-3)
