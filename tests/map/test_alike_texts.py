"""Texts of about the same length share a call where its size is found on the way, and nothing else is told by that."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from joblib_stateful import StatefulExecutor, stateful_map
from joblib_stateful._map import _feeder
from joblib_stateful._map._alike import AlikeFeeder, alike
from joblib_stateful._map._batches import Batch, Inbox
from joblib_stateful._map._call_sizes import _TOGETHER, CallSizes
from joblib_stateful._scheduling._requests import Group
from joblib_stateful._transport._transport import ByReference, Pickled
from scenes import Scene, crash, new_scene, note_call, orders, parallel_engines, plan_of_calls

ROOM = 10**9


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return new_scene(tmp_path)


def texts(count: int, seed: int = 0) -> list[str]:
    """Return texts of 1 to 100 characters, each with its index."""
    draw = random.Random(seed)
    return [f"{index}{'.' * draw.randrange(100)}" for index in range(count)]


# --- which share a call -----------------------------------------------------------------------------------


@pytest.mark.unit
@pytest.mark.parametrize(("count", "size"), [(128, 8), (1, 8), (7, 8), (9, 8), (130, 8), (100, 1), (64, 32)])
def test_each_item_has_its_call_and_none_has_too_many(count: int, size: int) -> None:
    lengths = list(map(len, texts(count)))
    found = alike(lengths, size)
    assert sorted(place for places in found for place in places) == list(range(count))
    assert max(map(len, found)) <= size
    assert len(found) == -(-count // size)
    assert all(places == sorted(places) for places in found)
    assert found == sorted(found), "the items that came first go first"


@pytest.mark.unit
def test_those_of_a_call_are_alike() -> None:
    lengths = list(map(len, texts(128)))

    def padded(calls: Sequence[Sequence[int]]) -> int:
        return sum(len(places) * max(lengths[place] for place in places) for places in calls)

    in_order = [range(start, start + 8) for start in range(0, 128, 8)]
    assert padded(alike(lengths, 8)) < 1.1 * sum(lengths)
    assert padded(in_order) > 1.5 * sum(lengths)


@pytest.mark.unit
def test_equal_ones_stay_in_their_order() -> None:
    assert alike([5] * 20, 8) == [list(range(6)), list(range(6, 13)), list(range(13, 20))]


# --- when they are chosen -----------------------------------------------------------------------------------


def settled(seconds: float = 0.05, *, buffer: Any = "auto", is_of_alike: bool = True) -> CallSizes:
    """Return sizes of calls that have found theirs, 16 to 64 items, of which each takes so long."""
    sizes = CallSizes(2, "auto", buffer, is_of_alike=is_of_alike)
    for _ in range(100):
        note_call(sizes, sizes.call, seconds * (1 if sizes.call <= 16 else sizes.call / 16))
    assert not sizes.is_growing
    assert sizes.call > 1
    sizes.are_texts = True
    note_call(sizes, sizes.call, seconds)
    return sizes


@pytest.mark.unit
def test_many_calls_are_filled_together_once_their_size_is_known() -> None:
    assert CallSizes(2, "auto", "auto", is_of_alike=True).batch == 1
    sizes = settled()
    assert sizes.batch == _TOGETHER * sizes.call
    assert sizes.next_batch(ROOM, None) == sizes.batch
    assert sizes.buffer >= 2 * sizes.batch


@pytest.mark.unit
def test_they_are_filled_in_order_where_that_was_said_or_choosing_costs_more() -> None:
    for sizes in (settled(is_of_alike=False), settled(seconds=1e-3)):
        assert sizes.batch == sizes.call
    numbers = settled()
    numbers.are_texts = False
    note_call(numbers, numbers.call, 0.05)
    assert numbers.batch == numbers.call


@pytest.mark.unit
def test_what_is_filled_together_leaves_the_buffer_room_for_as_much() -> None:
    sizes = settled(buffer=100)
    assert sizes.batch <= 50
    heavy = settled()
    heavy.note_sent(2**20 * 100, 100)
    note_call(heavy, heavy.call, 0.05, nbytes=2**20 * heavy.call)
    assert heavy.batch <= max(heavy.call, heavy.buffer // 2)


@pytest.mark.unit
def test_calls_are_whole_and_at_the_end_the_workers_share_what_is_left() -> None:
    sizes = settled()
    call = sizes.call
    assert sizes.next_batch(room=2 * call + 1, remaining=None) == 2 * call
    assert sizes.next_batch(room=call - 1, remaining=None) == call - 1
    assert sizes.next_batch(ROOM, remaining=5 * call) == 3 * call
    assert sizes.next_batch(ROOM, remaining=2 * call) == call
    assert sizes.next_batch(ROOM, remaining=call) == call, "once and for all"


# --- how they are pulled ------------------------------------------------------------------------------------


def feeder_of(source: Any, sizes: CallSizes, transport: Any) -> AlikeFeeder:
    return AlikeFeeder(plan_of_calls(source, sizes, transport), Group(), Inbox())


def calls_of(batch: Batch | None) -> list[list[int]]:
    assert batch is not None
    return [list(request.indices or ()) for request in batch.requests]


@pytest.mark.unit
@pytest.mark.parametrize("transport", [ByReference(), Pickled()], ids=["by reference", "pickled"])
@pytest.mark.parametrize("kind", [list, iter], ids=["there already", "pulled"])
def test_a_batch_has_calls_of_texts_that_are_alike(transport: Any, kind: Any) -> None:
    sizes = settled()
    items = texts(1000)
    feeder = feeder_of(kind(items), sizes, transport)
    batch = feeder.next_batch(ROOM)
    assert batch is not None
    calls = calls_of(batch)
    assert batch.n_calls == batch.n_open == len(calls) == _TOGETHER
    assert calls == alike(list(map(len, items[: batch.size])), sizes.call)
    for request, places in zip(batch.requests, calls, strict=True):
        parcel = request.parcel
        assert parcel is not None
        found = transport.unpack_joint(parcel) or [transport.unpack(frame) for frame in parcel.frames]
        assert found == [items[place] for place in places]


@pytest.mark.unit
@pytest.mark.parametrize("transport", [ByReference(), Pickled()], ids=["by reference", "pickled"])
@pytest.mark.parametrize("odd", [3, None, ["a"], b"bytes", type("Text", (str,), {})("of a class")])
def test_behind_another_item_calls_are_filled_in_order(transport: Any, odd: Any) -> None:
    sizes = settled()
    call = sizes.call
    items: list[Any] = texts(1000)
    items[call + 1] = odd
    feeder = feeder_of(items, sizes, transport)
    batch = feeder.next_batch(ROOM)
    assert calls_of(batch) == [list(range(call)), list(range(call, 2 * call))]
    later = feeder.next_batch(ROOM)
    assert later is not None
    assert later.first == 2 * call


@pytest.mark.unit
def test_a_slow_input_is_gone_on_with_until_a_worker_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_feeder, "PULL_SECONDS", -1.0)  # each item is late
    sizes = settled()
    feeder = feeder_of((text for text in texts(1000)), sizes, Pickled())
    assert [feeder.next_batch(ROOM, is_awaited=False) for _ in range(sizes.call + 1)] == [None] * (sizes.call + 1)
    assert feeder.has_begun_batch
    calls = calls_of(feeder.next_batch(ROOM, is_awaited=True))
    assert sorted(place for places in calls for place in places) == list(range(sizes.call + 2))
    assert max(map(len, calls)) <= sizes.call
    assert feeder.next_batch(ROOM, is_awaited=False) is None
    feeder.end()
    assert not feeder.has_begun_batch


@pytest.mark.unit
def test_pulling_takes_no_longer_for_many_calls_than_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, now = settled(), 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    seconds = 0.9 * _feeder.PULL_SECONDS / sizes.call  # for each item: a call takes a little less than it may

    def source() -> Iterator[str]:
        nonlocal now
        for text in texts(1000):
            now += seconds
            yield text

    feeder = feeder_of(source(), sizes, Pickled())
    assert feeder.next_batch(ROOM, is_awaited=False) is None
    assert feeder.has_begun_batch
    assert now <= 1.2 * _feeder.PULL_SECONDS
    batch = feeder.next_batch(ROOM, is_awaited=True)
    assert batch is not None
    assert batch.size == round(now / seconds)
    assert now <= 2.4 * _feeder.PULL_SECONDS


@pytest.mark.unit
def test_news_go_before_more_calls() -> None:
    sizes = settled()
    feeder = feeder_of((text for text in texts(1000)), sizes, Pickled())
    feeder._inbox.put()
    assert feeder.next_batch(ROOM, is_awaited=False) is None
    assert feeder.has_begun_batch
    feeder._inbox.news.clear()
    calls = calls_of(feeder.next_batch(ROOM, is_awaited=False))
    assert sorted(place for places in calls for place in places) == list(range(sizes.batch))


# --- what comes of it ---------------------------------------------------------------------------------------


class Pads:
    """Takes as long for each text of a call as for the longest one, and notes what it was called with."""

    def __init__(self, calls: Any = None) -> None:
        self.calls = calls

    def __call__(self, items: list[Any]) -> list[Any]:
        if "crash" in items:
            crash()
        time.sleep(2e-3 + 2e-5 * len(items) * max(map(len, items)))
        if self.calls is not None:
            self.calls.note(json.dumps(items))
        if "raise" in items:
            raise KeyError("raise")
        return [item.upper() for item in items]


def calls_in(scene: Scene) -> list[list[str]]:
    return [json.loads(line) for line in scene.log().lines]


@orders
@parallel_engines
def test_each_text_has_its_own_result(*, engine: str, ordered: bool, scene: Scene) -> None:
    items = texts(1500)
    with StatefulExecutor(Pads, n_jobs=2, shared_kwargs={"calls": scene.log()}, engine=engine) as executor:
        found = list(stateful_map(executor, (item for item in items), pass_as="batch", ordered=ordered))
    assert (found if ordered else sorted(found)) == (items if ordered else sorted(items))
    calls = calls_in(scene)
    assert Counter(text for call in calls for text in call) == Counter(items)
    indices = [[int(text.rstrip(".")) for text in call] for call in calls]
    assert any(places[-1] - places[0] >= len(places) > 1 for places in indices), "some were chosen"


@parallel_engines
def test_one_worker_alone_gets_them_in_order(engine: str, scene: Scene) -> None:
    items = texts(300)
    with StatefulExecutor(Pads, n_jobs=1, shared_kwargs={"calls": scene.log()}, engine=engine) as executor:
        assert list(stateful_map(executor, items, pass_as="batch")) == items
    assert [text for call in calls_in(scene) for text in call] == items


def test_so_do_those_that_were_told_how_many(scene: Scene) -> None:
    items = texts(300)
    results = stateful_map(Pads, items, pass_as="batch", n_jobs=2, batch_size=8, shared_kwargs={"calls": scene.log()})
    assert list(results) == items
    for call in calls_in(scene):
        first = int(call[0].rstrip("."))
        assert call == items[first : first + len(call)]


@orders
def test_the_buffer_holds(*, ordered: bool) -> None:
    n_pulled, most = 0, 0

    def source() -> Iterator[str]:
        nonlocal n_pulled
        for text in texts(600):
            n_pulled += 1
            yield text

    results = stateful_map(Pads, source(), pass_as="batch", n_jobs=2, buffer=60, ordered=ordered)
    for n_had, _ in enumerate(results):  # that one is still in hand
        most = max(most, n_pulled - n_had)
    assert n_pulled == 600
    assert most <= 60


@orders
@parallel_engines
def test_of_a_call_that_raises_only_the_guilty_item_fails(*, engine: str, ordered: bool) -> None:
    items = texts(900)
    items[700] = "raise"
    results = list(
        stateful_map(Pads, items, pass_as="batch", n_jobs=2, engine=engine, ordered=ordered, on_error="deferred")
    )
    assert sorted(result.index for result in results) == list(range(900))
    assert [result.index for result in results if not result.ok] == [700]
    assert all(result.value == items[result.index] for result in results if result.ok)


@pytest.mark.parametrize("policy", ["immediate", "wait_others"])
def test_the_error_says_which_item_it_is_and_nothing_is_missing_before(policy: Any) -> None:
    items = texts(900)
    items[700] = "raise"
    found: list[str] = []
    with pytest.raises(KeyError) as caught:
        found.extend(stateful_map(Pads, items, pass_as="batch", n_jobs=2, on_error=policy))
    assert any("item 700," in note for note in caught.value.__notes__)
    assert found == [item for item in items if item != "raise"][: len(found)]


def test_a_crash_costs_nobody_else_anything() -> None:
    items = texts(900)
    items[700] = "crash"
    results = list(stateful_map(Pads, items, pass_as="batch", n_jobs=2, on_error="deferred", retries=9))
    assert [result.index for result in results if not result.ok] == [700]
    assert [result.value for result in results if result.ok] == [item for item in items if item != "crash"]


def test_what_was_chosen_is_told_by_number(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    items = texts(900)
    assert list(stateful_map(Pads, items, pass_as="batch", n_jobs=2, trace=path)) == items
    names = {event["name"] for event in json.loads(path.read_text()) if event.get("cat") == "ran"}
    assert any(" of items " in name for name in names)
    assert "item 0" in names
