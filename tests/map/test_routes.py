"""`route=`: each item runs in the worker that it names, and in no other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from joblib_stateful import StatefulExecutor, errors, stateful_map
from scenes import Scene, crash, engines, new_scene, orders, parallel_engines

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import BuildLog

SHARDS = [{"shard": number} for number in range(3)]


class Shard:
    """Says which shard it holds, and whether items come to it in the order of the input."""

    def __init__(self, shard: int, *, fails: bool = False) -> None:
        if fails:
            raise OSError(f"shard {shard} is lost")
        self.shard, self.latest = shard, -1

    def __call__(self, item: Any) -> Any:
        if item == "crash":
            crash()
        if item == "raise":
            raise KeyError(item)
        is_in_order, self.latest = item > self.latest, item
        return self.shard, item, is_in_order


class Batches(Shard):
    """The same, of many items at once."""

    def __call__(self, items: list[Any]) -> Any:
        return [(self.shard, item, len(items)) for item in items]


def third(item: Any) -> int:
    return int(item) * 7 % 3


@engines
@orders
@pytest.mark.parametrize("batch_size", [1, 4, "auto"])
def test_each_item_runs_where_it_is_sent_in_the_order_of_the_input(
    *, engine: str, ordered: bool, batch_size: Any
) -> None:
    with StatefulExecutor(Shard, worker_kwargs=SHARDS, engine=engine) as executor:
        found = list(stateful_map(executor, iter(range(500)), route=third, ordered=ordered, batch_size=batch_size))
    assert all(shard == third(item) and is_in_order for shard, item, is_in_order in found)
    items = [item for _, item, _ in found]
    assert (items if ordered else sorted(items)) == list(range(500))


@engines
def test_calls_with_many_items_are_of_one_worker_each(engine: str) -> None:
    found = list(
        stateful_map(
            Batches,
            range(90),
            worker_kwargs=SHARDS,
            route=third,
            pass_as="batch",
            batch_size=4,
            buffer=60,
            engine=engine,
        )
    )
    assert [(shard, item) for shard, item, _ in found] == [(third(item), item) for item in range(90)]
    assert max(size for *_, size in found) == 4


@engines
@orders
@pytest.mark.parametrize("batch_size", [1, 5, "auto"])
def test_the_bound_holds_at_every_pull_also_with_a_route(*, engine: str, ordered: bool, batch_size: Any) -> None:
    pulled = given = 0

    def items() -> Iterator[int]:
        nonlocal pulled
        for item in range(200):
            pulled += 1
            assert pulled - given <= 12
            yield item

    for _ in stateful_map(
        Shard,
        items(),
        worker_kwargs=SHARDS,
        route=lambda item: 0 if item < 150 else 2,
        ordered=ordered,
        batch_size=batch_size,
        buffer=12,
        engine=engine,
    ):
        given += 1
    assert given == 200


@engines
@pytest.mark.parametrize(
    ("where", "error", "text"),
    [
        (True, TypeError, r"an integer from 0 to 2, and returned True"),
        (None, TypeError, r"an integer from 0 to 2, and returned None"),
        (1.0, TypeError, r"an integer from 0 to 2, and returned 1\.0"),
        ("1", TypeError, r"an integer from 0 to 2, and returned '1'"),
        (3, IndexError, r"an integer from 0 to 2, and returned 3\. Write \.\.\. % 3"),
        (-1, IndexError, r"an integer from 0 to 2, and returned -1"),
    ],
)
def test_an_item_that_is_sent_nowhere_fails_alone(
    *, engine: str, where: Any, error: type[Exception], text: str
) -> None:
    results = list(
        stateful_map(
            Shard,
            range(30),
            worker_kwargs=SHARDS,
            route=lambda item: where if item == 7 else 0,
            on_error="deferred",
            engine=engine,
        )
    )
    assert [result.index for result in results if not result.ok] == [7]
    with pytest.raises(error, match=text):
        results[7].unwrap()


@engines
def test_an_exception_of_the_route_is_that_items(engine: str) -> None:
    def route(item: int) -> int:
        return 6 // item

    with pytest.raises(ZeroDivisionError):
        list(stateful_map(Shard, [6, 3, 0, 6], worker_kwargs=SHARDS, route=route, engine=engine))


@engines
def test_a_worker_whose_object_can_not_be_built_fails_its_items_and_no_others(engine: str) -> None:
    kwargs = [SHARDS[0], {"shard": 1, "fails": True}, SHARDS[2]]
    results = list(
        stateful_map(Shard, range(60), worker_kwargs=kwargs, route=third, on_error="deferred", engine=engine)
    )
    assert [result.index for result in results if not result.ok] == [item for item in range(60) if third(item) == 1]
    assert {type(result.exception) for result in results if not result.ok} == {errors.WorkerInitError}
    assert "shard 1 is lost" in str(results[1].exception)
    with pytest.raises(errors.WorkerInitError, match="shard 1 is lost"):
        list(stateful_map(Shard, range(60), worker_kwargs=kwargs, route=third, engine=engine))


def test_an_item_that_kills_its_worker_is_tried_again_in_the_same_one(built: BuildLog) -> None:
    items = [0, 1, "crash", 2, 3]
    results = list(
        stateful_map(
            Shard, items, worker_kwargs=SHARDS, route=lambda _: 1, on_error="deferred", retries=1, batch_size=1
        )
    )
    assert [result.ok for result in results] == [True, True, False, True, True]
    assert isinstance(results[2].exception, errors.WorkerCrashedError)
    assert results[2].exception.slot == 1
    assert {result.unwrap()[0] for result in results if result.ok} == {1}


class Waiting:
    """Waits until it is told to go on, or says that it need not."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def __call__(self, item: int) -> int:
        if item == 0:
            self.scene.gate().wait()
        return item


@parallel_engines
def test_items_of_other_workers_do_not_wait_for_one_that_is_busy(engine: str, tmp_path: Path) -> None:
    scene = new_scene(tmp_path)
    results = stateful_map(
        Waiting,
        range(40),
        n_jobs=2,
        shared_kwargs={"scene": scene},
        route=lambda item: item % 2,
        ordered=False,
        buffer=60,
        engine=engine,
    )
    assert sorted(next(results) for _ in range(20)) == list(range(1, 40, 2))
    scene.gate().open()
    assert list(results) == list(range(0, 40, 2))


def test_what_is_no_route_is_refused_at_the_call() -> None:
    with pytest.raises(TypeError, match="route must be a function from an item to the number of a worker, not 3"):
        stateful_map(Shard, [1], worker_kwargs=SHARDS, route=3)  # type: ignore[call-overload]  # that is the point
    with pytest.raises(ValueError, match=r"this map has one.*n_jobs=2 or more"):
        stateful_map(abs, [1], n_jobs=1, route=lambda _: 0)


@engines
def test_a_route_that_raises_stop_iteration_ends_no_loop(engine: str) -> None:
    def route(_: int) -> int:
        return next(iter([]))

    with pytest.raises(RuntimeError, match="route raised StopIteration for this item"):
        list(stateful_map(Shard, [1], worker_kwargs=SHARDS, route=route, engine=engine))


def test_an_async_route_is_refused_at_the_call() -> None:
    async def route(_: int) -> int:
        return 0

    with pytest.raises(TypeError, match=r"route is async.*write a plain function"):
        stateful_map(Shard, [1], worker_kwargs=SHARDS, route=route)  # type: ignore[arg-type]  # that is the point


def test_only_those_objects_are_built_that_items_go_to(built: BuildLog) -> None:
    class Noting(Shard):
        def __init__(self, shard: int) -> None:
            built.note(shard)
            super().__init__(shard)

    assert len(list(stateful_map(Noting, range(8), worker_kwargs=SHARDS, route=lambda _: 2))) == 8
    assert [line.split()[1] for line in built.lines] == ["2"]
