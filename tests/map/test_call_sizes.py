"""Sizes of calls with many items follow from measurements alone; no process and no clock is needed."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from typing import Any

import pytest

from joblib_stateful._map._batching import BUFFER_BYTES, Batching
from joblib_stateful._map._call_sizes import _MOST_ITEMS, CallSizes
from joblib_stateful._map._size_search import _MOST_SECONDS
from scenes import note_call

pytestmark = pytest.mark.unit

MEGABYTE = 2**20
ROOM = 10**9


def play(
    sizes: CallSizes, seconds_of: Callable[[int], float], n_calls: int = 200, item_bytes: int = 0, result_bytes: int = 0
) -> list[int]:
    """Make so many calls, of which one takes so many seconds by its size; return their sizes."""
    found = []
    for _ in range(n_calls):
        size = sizes.next_batch(ROOM, None)
        found.append(size)
        sizes.note_sent(item_bytes * size, size)
        note_call(sizes, size, seconds_of(size), result_bytes * size)
    return found


def usual(found: list[int]) -> int:
    """Return the size of most calls in the end: now and then others are tried."""
    return statistics.mode(found[-100:])


def up_to(best: int) -> Callable[[int], float]:
    """Return how long calls take that are done as fast as one item up to a size, and no more of them at a time."""
    return lambda size: 0.01 * -(-size // best)


# --- how they grow --------------------------------------------------------------------------------------


def test_the_first_calls_have_one_item() -> None:
    assert CallSizes(8, "auto", "auto").next_batch(ROOM, None) == 1
    assert CallSizes(8, "auto", 1000).next_batch(ROOM, 10**6) == 1


def test_they_grow_as_long_as_that_gives_more_items_per_second() -> None:
    found = play(CallSizes(1, "auto", "auto"), lambda size: 0.05)
    assert usual(found) == _MOST_ITEMS
    assert found.index(_MOST_ITEMS) <= 5, "in few steps"


@pytest.mark.parametrize("best", [8, 32, 256])
def test_they_stop_where_it_gives_no_more(best: int) -> None:
    sizes = CallSizes(1, "auto", "auto")
    found = play(sizes, up_to(best))
    assert best <= usual(found) <= 4 * best
    assert not sizes.is_growing


def test_they_stop_at_a_gain_of_a_few_per_cent() -> None:
    assert usual(play(CallSizes(1, "auto", "auto"), lambda size: 0.01 * size * 0.995**size)) == 1
    assert usual(play(CallSizes(1, "auto", "auto"), lambda size: 0.01 * size)) == 1


def test_they_grow_for_the_sake_of_what_a_call_costs_beside_the_worker_s_time() -> None:
    assert 16 <= usual(play(CallSizes(1, "auto", "auto"), lambda size: 1e-4 * size)) <= 128


@pytest.mark.parametrize("best", [4, 16, 64])
def test_they_go_back_where_it_gives_fewer(best: int) -> None:
    found = play(CallSizes(1, "auto", "auto"), lambda size: 0.01 if size <= best else 0.02 * size / best)
    assert max(found) > best
    assert usual(found) == best


@pytest.mark.parametrize(("item_seconds", "third"), [(0.0001, 64), (0.001, 32), (0.005, 8), (0.01, 8)])
def test_steps_are_as_long_as_what_a_call_costs_whatever_its_size_is_worth(item_seconds: float, third: int) -> None:
    found = play(CallSizes(1, "auto", "auto"), lambda size: 0.01 + item_seconds * size, n_calls=12)
    assert list(dict.fromkeys(found))[:3] == [1, 4, third]


def test_a_step_that_was_too_long_is_made_again_and_shorter() -> None:
    # With 64 items there are more items per second than with 4, and fewer than with 16.
    found = play(CallSizes(1, "auto", "auto"), lambda size: 0.01 if size <= 16 else 0.02 * size / 16)
    assert list(dict.fromkeys(found))[:4] == [1, 4, 64, 16]
    assert usual(found) == 16


def test_one_quick_call_is_no_reason_for_a_long_step_where_times_differ_much() -> None:
    sizes, n_calls = CallSizes(2, "auto", "auto"), 0
    for seconds in (0.02, 0.02, 0.02, 0.01, 0.04):  # of the first two workers' first calls, and of the next ones
        note_call(sizes, 1, seconds, 0)

    def differing(size: int) -> float:
        nonlocal n_calls
        n_calls += 1
        return 0.02 * size * (0.3 if n_calls == 1 else 1)

    assert max(play(sizes, differing, n_calls=20)) <= 8


@pytest.mark.parametrize("seed", range(10))
def test_the_best_size_is_found_where_times_differ_much(seed: int) -> None:
    chance = random.Random(seed)

    def padded(size: int) -> float:
        return 0.008 + 0.005 * size * max(chance.lognormvariate(0, 0.7) for _ in range(size))

    sizes = CallSizes(1, "auto", "auto")
    assert usual(play(sizes, padded, n_calls=300)) in (
        1,
        2,
        4,
        8,
    )  # a tenth fewer items with 1 or 8 than with 2, two fifths with 32


@pytest.mark.parametrize(("item_seconds", "largest"), [(0.3, 4), (0.6, 2), (1.5, 1), (60.0, 1)])
def test_no_call_is_made_so_large_that_it_takes_long(item_seconds: float, largest: int) -> None:
    sizes = CallSizes(1, "auto", "auto")
    found = play(sizes, lambda size: item_seconds * size**0.9)
    assert max(found) == largest
    assert max(found) == 1 or item_seconds * largest**0.9 <= _MOST_SECONDS
    assert not sizes.is_growing


def test_the_first_call_of_each_worker_counts_for_nothing() -> None:
    sizes = CallSizes(3, "auto", "auto")
    for _ in range(3):
        note_call(sizes, 1, 1e-9, 0)  # which nothing will ever be as fast as
    assert sizes.is_growing
    found = play(sizes, lambda size: 0.05)
    assert found[0] == 1
    assert usual(found) == _MOST_ITEMS


def test_one_slow_call_of_a_size_counts_for_nothing() -> None:
    sizes = CallSizes(1, "auto", "auto")
    n_calls = 0

    def seconds_of(size: int) -> float:
        nonlocal n_calls
        n_calls += 1
        return 0.05 if n_calls % 4 else 1.0

    assert usual(play(sizes, seconds_of)) == _MOST_ITEMS


@pytest.mark.parametrize(
    "how", [{"n_calls": 3}, {"n_calls": 0}, {"n_run": 3}, {"size": 3}], ids=["repeated", "none", "cut short", "smaller"]
)
def test_what_was_no_call_of_that_size_counts_for_nothing(how: dict[str, Any]) -> None:
    sizes = CallSizes(1, 4, "auto") if "n_run" in how else CallSizes(1, "auto", "auto")
    note_call(sizes, 1, 0.05, 0)
    note_call(sizes, 1, 0.05, 0)
    before = sizes.batch
    for _ in range(10):
        size = how.get("size", before)
        note_call(sizes, how.get("n_run", size), 1e-6, 0, n_calls=how.get("n_calls", 1))
    assert sizes.batch == before


# --- items that are no longer what they were ------------------------------------------------------------


def settled(seconds_of: Callable[[int], float]) -> CallSizes:
    sizes = CallSizes(1, "auto", "auto")
    play(sizes, seconds_of)
    assert not sizes.is_growing
    return sizes


def test_calls_grow_though_the_first_items_cost_nothing() -> None:
    sizes = CallSizes(1, "auto", "auto")
    play(sizes, lambda size: 1e-6, n_calls=2)  # nothing will ever be as fast
    found = play(sizes, up_to(32))
    assert 32 <= usual(found) <= 512
    assert not sizes.is_growing


def test_calls_grow_when_items_become_cheap() -> None:
    sizes = settled(lambda size: 0.5 * size)
    before = sizes.batch
    found = play(sizes, up_to(64))
    assert before < 64 <= usual(found) <= 1024
    assert not sizes.is_growing


@pytest.mark.parametrize("times", [10, 1000])
def test_calls_shrink_when_they_take_long(times: int) -> None:
    sizes = settled(up_to(256))
    before = sizes.batch
    item_seconds = times * 0.01 / 256

    def seconds_of(size: int) -> float:
        return item_seconds * size

    found = play(sizes, seconds_of)
    assert found[0] == before
    assert [seconds_of(size) <= 2 * _MOST_SECONDS for size in found[1:]] == [True] * (len(found) - 1)
    assert not sizes.is_growing


def test_a_size_stays_where_items_vary() -> None:
    chance = random.Random(0)

    def seconds_of(size: int) -> float:
        return up_to(32)(size) * chance.uniform(1, 3)

    sizes = settled(seconds_of)
    found = play(sizes, seconds_of, n_calls=400)
    assert 32 <= usual(found) <= 128
    assert found.count(usual(found)) > 200, "others are tried ever more seldom"


def test_calls_grow_when_a_call_costs_the_same_whatever_its_size_only_later_on() -> None:
    # Which single items can't show: with one item a call takes as long as before.
    sizes = settled(lambda size: 0.01 * size)
    assert sizes.batch <= 2
    assert max(play(sizes, lambda size: 0.01, n_calls=300)) == _MOST_ITEMS


@pytest.mark.parametrize("seed", range(10))
def test_chance_does_not_keep_calls_small_for_good(seed: int) -> None:
    chance = random.Random(seed)
    found = play(CallSizes(1, "auto", "auto"), lambda size: 0.05 * chance.lognormvariate(0, 1), n_calls=1000)
    assert usual(found) >= 2048


def test_a_call_of_before_is_no_reason_for_larger_ones_than_run_out_of_memory() -> None:
    sizes = CallSizes(1, "auto", "auto")
    play(sizes, lambda size: 0.05, n_calls=20)
    note_call(sizes, 64, 1.0, 0, n_calls=7, n_fit=8)
    note_call(sizes, 512, 30.0, 0)  # it was sent before
    assert max(play(sizes, lambda size: 0.05)) == 8


def test_what_was_measured_does_not_become_more_and_more() -> None:
    sizes = CallSizes(1, "auto", "auto")
    for _ in range(1000):  # of which no call has two items
        note_call(sizes, 1, 1.0, 0)
    assert sum(map(len, sizes._search._times.values())) < 50


@pytest.mark.parametrize("item_seconds", [0.02, 0.1])
def test_calls_shrink_also_where_each_has_as_many_items_as_weigh_little_enough(item_seconds: float) -> None:
    chance, sizes, found = random.Random(0), CallSizes(1, "auto", "auto"), list[float]()
    for number in range(400):
        size = sizes.next_batch(ROOM, None)
        sizes.note_sent(int(size * 30_000 * chance.lognormvariate(0, 0.3)), size)
        found.append(0.05 if number < 30 else item_seconds * size)
        note_call(sizes, size, found[-1], 0)
    assert max(found[-100:]) <= 2 * _MOST_SECONDS


# --- limits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_fixed_size_is_kept(size: int) -> None:
    sizes = CallSizes(2, size, "auto")
    assert set(play(sizes, lambda size: 0.05)) == {size}
    assert set(play(sizes, lambda size: 60.0 * size, item_bytes=100 * MEGABYTE)) == {size}
    assert not sizes.is_growing
    assert sizes.fixed == size


def test_the_items_of_a_call_do_not_weigh_more_than_their_share_of_the_buffer() -> None:
    sizes = CallSizes(2, "auto", "auto")
    assert sizes.max_bytes == BUFFER_BYTES / 4
    found = play(sizes, lambda size: 0.05, item_bytes=MEGABYTE)
    assert max(found) == BUFFER_BYTES // 4 // MEGABYTE
    assert max(play(CallSizes(2, "auto", "auto"), lambda size: 0.05, item_bytes=BUFFER_BYTES)) == 1
    assert CallSizes(2, 100, "auto").max_bytes == float("inf")


def test_nor_do_their_results() -> None:
    sizes = CallSizes(2, "auto", "auto")
    found = play(sizes, lambda size: 0.05, result_bytes=MEGABYTE)
    assert max(found[4:]) <= BUFFER_BYTES // 4 // MEGABYTE
    assert sizes.buffer >= 4 * sizes.batch


@pytest.mark.parametrize(("batch_size", "buffer", "enough"), [(8, 100, 8), (8, 16, 4), (8, 1, 1), (8, "auto", 8)])
def test_a_worker_is_not_called_with_what_little_there_is_room_for(batch_size: Any, buffer: Any, enough: int) -> None:
    assert CallSizes(2, batch_size, buffer).enough == enough
    assert Batching(2, batch_size, buffer).enough == 1, "a message is no call"


@pytest.mark.parametrize(("buffer", "largest"), [(1, 1), (4, 1), (16, 4), (100, 25)])
def test_two_calls_of_each_worker_have_room_in_a_fixed_buffer(buffer: int, largest: int) -> None:
    assert max(play(CallSizes(2, "auto", buffer), lambda size: 0.05)) == largest


def test_an_open_buffer_has_room_for_the_calls() -> None:
    sizes = CallSizes(2, "auto", "auto")
    play(sizes, lambda size: 0.05)
    assert sizes.buffer >= 4 * sizes.batch
    assert CallSizes(2, 50, "auto").buffer >= 4 * 50


def test_all_workers_share_what_is_left_of_the_input() -> None:
    sizes = CallSizes(2, "auto", "auto")
    play(sizes, lambda size: 0.05)
    left = 3 * _MOST_ITEMS - 100
    found = []
    while left > 0:
        found.append(min(left, sizes.next_batch(ROOM, left)))
        left -= found[-1]
    assert found == [_MOST_ITEMS, _MOST_ITEMS - 50, _MOST_ITEMS - 50], "in as many calls as there are workers"
    assert [CallSizes(2, "auto", "auto").next_batch(ROOM, left) for left in (10, 2, 1, 0)] == [1] * 4
    assert CallSizes(2, 50, "auto").next_batch(ROOM, 60) == 50, "who says how many means it"


def test_no_call_has_more_items_than_there_is_room_for() -> None:
    assert [CallSizes(1, 50, "auto").next_batch(room, None) for room in (1, 7, 50, 60)] == [1, 7, 50, 50]


def test_a_call_is_never_shared_out() -> None:
    assert CallSizes(2, "auto", "auto").budget is None


# --- out of memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", ["auto", 64])
def test_after_a_call_that_ran_out_of_memory_none_is_larger_than_what_went_well(batch_size: Any) -> None:
    sizes = CallSizes(1, batch_size, "auto")
    play(sizes, up_to(64))
    assert sizes.batch >= 64
    note_call(sizes, 64, 1.0, 0, n_calls=7, n_fit=16)
    assert sizes.batch == 16
    found = play(sizes, lambda size: 0.05)
    assert (max(found), usual(found)) == (16, 16)
    note_call(sizes, 16, 1.0, 0, n_calls=3, n_fit=8)
    note_call(sizes, 64, 1.0, 0, n_calls=3, n_fit=32)  # it was sent before
    assert max(play(sizes, lambda size: 0.05)) == 8
    assert not sizes.is_growing


def test_they_don_t_grow_again_though_it_happened_at_the_first_call() -> None:
    sizes = CallSizes(1, "auto", "auto")
    note_call(sizes, 2, 1.0, 0, n_calls=3, n_fit=1)
    assert set(play(sizes, lambda size: 0.05)) == {1}
