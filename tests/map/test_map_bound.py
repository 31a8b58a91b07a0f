"""Memory stays bounded: what is pulled and not yet taken never exceeds the buffer, checked at every pull."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from joblib_stateful import stateful_map
from joblib_stateful._map._batching import BATCH_BYTES, BUFFER_BYTES
from joblib_stateful._transport._shared_memory import SharedMemory
from programs import program_text
from scenes import Gate, engines, new_scene, orders, parallel_engines

if TYPE_CHECKING:
    from conftest import RunProgram

MEGABYTE = 2**20
BIG = 10 * MEGABYTE


class Watched:
    """An input that notes, at each pull, how far it is ahead of the consumer."""

    def __init__(self, items: Iterable[Any]) -> None:
        self.items = items
        self.n_pulled = 0
        self.n_yielded = 0
        self.most = 0

    def __iter__(self) -> Iterator[Any]:
        for item in self.items:
            self.n_pulled += 1
            self.most = max(self.most, self.n_pulled - self.n_yielded)
            yield item

    def taken(self, results: Iterable[Any]) -> Iterator[Any]:
        """Count what the consumer is done with: the one in its hand is not among them."""
        for result in results:
            yield result
            self.n_yielded += 1


def identity(item: Any) -> Any:
    return item


@engines
@orders
@pytest.mark.parametrize("batch_size", [1, 3, "auto"])
def test_the_bound_is_strict(*, engine: str, ordered: bool, batch_size: Any) -> None:
    for buffer in (1, 2, 7, 100):
        source = Watched(range(300 if engine != "loky" else 120))
        results = stateful_map(
            identity, source, n_jobs=2, ordered=ordered, batch_size=batch_size, buffer=buffer, engine=engine
        )
        assert sorted(source.taken(results)) == list(source.items)
        assert source.most <= buffer


@engines
@orders
def test_failures_leave_the_buffer_too(*, engine: str, ordered: bool) -> None:
    def fail(item: int) -> None:
        raise ValueError(item)

    policies: list[Any] = ["wait_others", "deferred"]
    for policy in policies:
        source = Watched(range(50))
        results = stateful_map(
            fail, source, n_jobs=2, batch_size=2, buffer=5, ordered=ordered, on_error=policy, engine=engine
        )
        if policy == "deferred":
            assert len(list(source.taken(results))) == 50
        else:
            with pytest.raises(ValueError, match="0"):
                list(source.taken(results))
        assert source.most <= 5


class FirstWaits:
    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def __call__(self, item: int) -> int:
        if item == 0:
            self.gate.wait()
        return item


@parallel_engines
@pytest.mark.parametrize("batch_size", [1, 3, "auto"])
@pytest.mark.parametrize("buffer", [2, 7, 100])
def test_a_slow_first_item_holds_up_the_input_when_ordered(
    engine: str, batch_size: Any, buffer: int, tmp_path: Path
) -> None:
    if engine == "loky" and buffer == 7:
        pytest.skip("the threads have it")
    gate = new_scene(tmp_path).gate()
    source = Watched(range(300))
    finished: list[int] = []

    def release(n: int) -> None:
        # All that the buffer lets in is done but for the batch of the first item: it is full, and nothing moves.
        finished.append(n)
        if sum(finished) >= buffer - (batch_size if batch_size != "auto" else 1):
            gate.open()

    results = stateful_map(
        FirstWaits,
        source,
        n_jobs=2,
        shared_kwargs={"gate": gate},
        batch_size=batch_size,
        buffer=buffer,
        progress=release if buffer > 3 or batch_size != 3 else None,
        engine=engine,
    )
    if not (buffer > 3 or batch_size != 3):
        gate.open()
    assert list(source.taken(results)) == list(range(300))
    assert source.most <= buffer
    if batch_size == 1:
        assert source.most == buffer  # it was used, too


@parallel_engines
@pytest.mark.parametrize("buffer", [2, 7])
def test_a_slow_first_item_does_not_hold_up_the_others_unordered(engine: str, buffer: int, tmp_path: Path) -> None:
    gate = new_scene(tmp_path).gate()
    source = Watched(range(100))
    results = stateful_map(
        FirstWaits,
        source,
        n_jobs=2,
        shared_kwargs={"gate": gate},
        batch_size=1,
        buffer=buffer,
        ordered=False,
        engine=engine,
    )
    found = []
    for result in source.taken(results):
        found.append(result)
        if len(found) == 99:
            assert 0 not in found
            gate.open()
    assert sorted(found) == list(range(100))
    assert source.most <= buffer


@parallel_engines
@orders
@pytest.mark.parametrize("batch_size", [1, "auto"])
def test_a_consumer_that_comes_late_finds_no_more_than_the_buffer(
    *,
    engine: str,
    ordered: bool,
    batch_size: Any,
    tmp_path: Path,
) -> None:
    source = Watched(range(1000))
    options: dict[str, Any] = {"n_jobs": 1, "engine": engine}
    results = stateful_map(identity, source, ordered=ordered, batch_size=batch_size, buffer=10, **options)
    for _ in zip(range(5), source.taken(results), strict=False):
        # On the only slot this is behind all that was sent: when it is back, the workers have nothing to do.
        list(stateful_map(identity, [0], **options))
        assert source.n_pulled - source.n_yielded <= 10
    results.close()
    assert source.most <= 10


@engines
def test_with_a_buffer_of_one_the_input_may_depend_on_the_result(engine: str) -> None:
    """Room appears when the consumer comes back, and not before."""
    last = [1]

    def doubling() -> Iterator[int]:
        while last[0] < 1000:
            yield last[0]

    found = []
    for result in stateful_map(lambda item: item * 2, doubling(), n_jobs=2, buffer=1, engine=engine):
        last[0] = result
        found.append(result)
    assert found == [2**power for power in range(1, 11)]


# --- bytes ----------------------------------------------------------------------------------------------


def big_bytes(item: Any) -> Any:
    return bytes(BIG)


def big_array(item: Any) -> Any:
    import numpy as np

    return np.zeros(BIG // 8)


def weigh(item: Any) -> int:
    return len(item) if isinstance(item, bytes) else int(item.nbytes)


class Weighed(Watched):
    """An input whose items are big, and are made when they are pulled."""

    def __init__(self, n: int, make: Any) -> None:
        super().__init__(make(number) for number in range(n))


@parallel_engines
@orders
def test_big_items_stay_under_the_byte_cap(*, engine: str, ordered: bool) -> None:
    pytest.importorskip("numpy")
    for make in (big_bytes, big_array):
        source = Weighed(30, make)
        results = stateful_map(weigh, source, n_jobs=2, ordered=ordered, engine=engine)
        assert list(source.taken(results)) == [BIG] * 30
        assert 2 <= source.most <= BUFFER_BYTES // BIG


def first_small_then_big() -> Iterator[bytes]:
    for _ in range(50_000):
        yield b"x"
    for _ in range(150):
        yield bytes(MEGABYTE)


@parallel_engines
def test_an_input_whose_items_become_big_stays_about_the_byte_cap(engine: str) -> None:
    source = Watched(first_small_then_big())
    most = n_big = 0
    for weight in source.taken(stateful_map(len, source, n_jobs=2, engine=engine)):
        if weight == MEGABYTE:  # from here on
            n_big += 1
            most = max(most, source.n_pulled - source.n_yielded)
    assert n_big == 150
    assert most <= 1.1 * BUFFER_BYTES // MEGABYTE


@parallel_engines
def test_a_list_of_small_and_big_items_comes_whole_and_in_order(engine: str) -> None:
    items = [bytes((number % 7 == 0) * 400_000 + number) for number in range(500)]
    assert list(stateful_map(len, items, n_jobs=2, engine=engine)) == list(map(len, items))


@pytest.mark.parametrize("big", [bytes(MEGABYTE), [bytes(MEGABYTE)]], ids=["plain", "pickled"])
def test_a_list_whose_items_become_big_is_sent_in_small_batches(big: Any) -> None:
    items = [b"x"] * 5000 + [big] * 20
    packed = SharedMemory().packing()
    assert packed.fill(items, max_bytes=BATCH_BYTES) <= 5002
    assert list(stateful_map(identity, items, n_jobs=2)) == items


@parallel_engines
@orders
def test_big_results_stay_under_the_byte_cap(*, engine: str, ordered: bool) -> None:
    pytest.importorskip("numpy")
    for make in (big_bytes, big_array):
        source = Watched(range(30))
        results = stateful_map(make, source, n_jobs=2, ordered=ordered, engine=engine)
        assert [weigh(result) for result in source.taken(results)] == [BIG] * 30
        assert 2 <= source.most <= BUFFER_BYTES // BIG


@parallel_engines
def test_small_items_are_not_held_up_by_the_byte_cap(engine: str) -> None:
    source = Watched(range(3000))
    assert sum(source.taken(stateful_map(identity, source, n_jobs=2, engine=engine))) == sum(range(3000))
    assert source.most > 20


# --- a million ------------------------------------------------------------------------------------------

PEAK_MEGABYTES = 40


@orders
def test_a_million_items_in_flat_memory(*, run_program: RunProgram, ordered: bool) -> None:
    done = run_program(program_text("map/maps_a_million_items"), str(ordered), limit=100)
    assert (done.code, done.err) == (0, "")
    peak, outcome = done.out.splitlines()
    assert outcome == f"{10**6} {200 * 10**6}"
    assert int(peak) < PEAK_MEGABYTES * MEGABYTE
