"""Workers that are generators give lists, async ones are awaited; any other result that nobody has run is an error that says so."""

from __future__ import annotations

import asyncio
import functools
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from joblib import Parallel, delayed, parallel_config

from contract import ALL, N_JOBS, on
from joblib_stateful import StatefulExecutor, call_worker, errors, factory, stateful_map

pytestmark = pytest.mark.cluster


class Splitter:
    """Its call is a generator function."""

    def __init__(self, by: str = " ") -> None:
        self.by = by

    def __call__(self, text: str) -> Iterator[str]:
        for part in text.split(self.by):
            if part == "bad":
                raise ValueError(part)
            yield part


def split(text: str) -> Iterator[str]:
    yield from text.split()


def count_up(first: int, last: int = 3) -> Iterator[int]:
    yield from range(first, last)


def noted(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return call


@on(*ALL)
def test_a_generator_gives_a_list_for_each_item(engine: Any) -> None:
    options: dict[str, Any] = {"n_jobs": N_JOBS, "engine": engine}
    wanted = [["a", "b"], ["c"]]
    assert list(stateful_map(Splitter, ["a b", "c"], **options)) == wanted
    assert list(stateful_map(factory(Splitter), ["a b", "c"], **options)) == wanted
    assert list(stateful_map(split, ["a b", "c"], **options)) == wanted
    assert list(stateful_map(functools.partial(count_up, last=2), [0, 1], **options)) == [[0, 1], [1]]
    assert list(stateful_map(Splitter("-").__call__, ["a-b", "c"], **options)) == wanted
    assert list(stateful_map(noted(split), ["a b", "c"], **options)) == wanted
    assert list(stateful_map(count_up, [(0, 2), (1, 3)], pass_as="args", **options)) == [[0, 1], [1, 2]]
    assert list(stateful_map(count_up, [{"first": 2}], pass_as="kwargs", **options)) == [[2]]


@on(*ALL)
def test_what_a_generator_raises_is_its_items_error(engine: Any) -> None:
    found: list[Any] = list(stateful_map(Splitter, ["a b", "c bad", "d"], n_jobs=1, engine=engine, on_error="deferred"))
    assert [result.value for result in found] == [["a", "b"], None, ["d"]]
    assert isinstance(found[1].exception, ValueError)


@on("loky", "example", "dask", "ray")
def test_a_time_limit_holds_for_what_a_generator_does(engine: Any) -> None:
    def forever(item: int) -> Iterator[int]:
        while item:
            yield from ()
        yield item

    limits: dict[str, Any] = {"item_timeout": 1.0, "on_error": "deferred"}
    found = list(stateful_map(forever, [0, 1], n_jobs=1, engine=engine, **limits))
    assert found[0].value == [0]
    assert isinstance(found[1].exception, errors.ItemTimeoutError)


async def later(item: int) -> int:
    return item


async def items_later(item: int) -> AsyncIterator[int]:
    yield item


class Lazy:
    """Returns what nobody has run, for some items."""

    def __call__(self, item: int) -> Any:
        if item == 1:
            return later(item)
        if item == 2:
            return items_later(item)
        if item == 3:
            return count_up(item)
        return item


@on(*ALL)
def test_a_coroutine_or_generator_that_nobody_has_run_is_an_items_error(engine: Any) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = list(stateful_map(Lazy, range(5), n_jobs=N_JOBS, engine=engine, on_error="deferred"))
    assert [str(warning.message) for warning in caught if "never awaited" in str(warning.message)] == []
    assert [result.value for result in found] == [0, None, None, None, 4]
    told = [str(result.exception) for result in found[1:4]]
    assert [type(result.exception) for result in found[1:4]] == [TypeError] * 3
    assert "a coroutine" in told[0]
    assert "asyncio.run(" in told[0]
    assert "an async generator" in told[1]
    assert "a generator" in told[2]
    assert "list(" in told[2]


@on(*ALL)
def test_submitted_async_functions_are_awaited_and_other_coroutines_or_generators_are_no_result(engine: Any) -> None:
    with StatefulExecutor(Splitter, 1, engine=engine) as executor:
        assert executor.submit(later, 1).result() == 1
        give_items: Any = items_later
        assert executor.submit(give_items, 1).result() == [1]
        for function in (lambda: later(1), lambda: items_later(1), lambda: count_up(1)):
            with pytest.raises(TypeError, match=r"asyncio\.run\(|list\("):
                executor.submit(function).result()
        with pytest.raises(TypeError, match=r"list\("):
            executor.submit(count_up, 1).result()
        with pytest.raises(TypeError, match=r"list\("):
            executor.submit(call_worker, "a b").result()
        assert executor.submit(lambda: list(call_worker("a b"))).result() == ["a", "b"]
        assert executor.submit(lambda: asyncio.run(later(1))).result() == 1


@on(*ALL)
def test_a_coroutine_or_generator_is_no_result_of_joblibs_calls(engine: Any) -> None:
    with parallel_config(backend="stateful", n_jobs=N_JOBS, engine=engine):
        for function in (later, items_later, count_up):
            with pytest.raises(TypeError, match=r"asyncio\.run\(|list\("):
                Parallel()(delayed(function)(item) for item in range(3))
        assert Parallel()(delayed(list)(range(item)) for item in range(3)) == [[], [0], [0, 1]]


class Async:
    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()

    async def __call__(self, item: int) -> int:
        await asyncio.sleep(0)
        assert asyncio.get_running_loop() is self.loop
        return item


class AsyncItems:
    async def __call__(self, item: int) -> AsyncIterator[int]:
        for number in range(item):
            await asyncio.sleep(0)
            yield number


async def make_later() -> Callable[[int], Any]:
    await asyncio.sleep(0)
    return later


@on(*ALL)
def test_async_workers_are_awaited(engine: Any) -> None:
    options: dict[str, Any] = {"n_jobs": 1, "engine": engine}
    workers: tuple[Any, ...] = (
        Async,
        later,
        functools.partial(later),
        factory(Async),
        functools.partial(Async),
        factory(functools.partial(Async)),
        factory(lambda: later),
        factory(make_later),
    )
    for worker in workers:
        assert list(stateful_map(worker, [1, 2], **options)) == [1, 2]
    give_items: tuple[Any, ...] = (AsyncItems, factory(AsyncItems))
    for worker in give_items:
        assert list(stateful_map(worker, [0, 2], **options)) == [[], [0, 1]]
    give_item: Any = items_later
    assert list(stateful_map(give_item, [3], **options)) == [[3]]
    with StatefulExecutor(Async, 1, engine=engine) as executor:
        assert list(stateful_map(executor, [1, 2])) == [1, 2]
        assert executor.submit(call_worker, 3).result() == 3


@on(*ALL)
def test_other_iterators_are_results_as_they_are(engine: Any) -> None:
    found = list(stateful_map(lambda item: zip(range(item), "abc", strict=False), [1, 2], n_jobs=1, engine=engine))
    assert [list(result) for result in found] == [[(0, "a")], [(0, "a"), (1, "b")]]
