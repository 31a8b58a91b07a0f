"""Async workers: one event loop for each, several items under way in it, and all else as with other workers."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import pytest

from joblib_stateful import (
    Failure,
    StatefulExecutor,
    call_worker,
    errors,
    factory,
    get_worker,
    get_worker_info,
    stateful_map,
)
from joblib_stateful._worker._event_loop import _Call
from scenes import Log, Scene, engines, new_scene, orders, parallel_engines

PATIENCE = 30.0


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return new_scene(tmp_path)


async def until(holds: Callable[[], object]) -> None:
    """Let others go on until something holds."""
    async with asyncio.timeout(PATIENCE):
        while not holds():  # noqa: ASYNC110 - some of it happens in other processes
            await asyncio.sleep(0.001)


class Client:
    """Lives in one event loop; what it does with an item, the item says."""

    def __init__(self, log: Log) -> None:
        self.log, self.loop, self.n_here, self.most = log, asyncio.get_running_loop(), 0, 0
        log.note("built")

    async def __call__(self, item: Any) -> Any:
        assert asyncio.get_running_loop() is self.loop
        self.n_here += 1
        self.most = max(self.most, self.n_here)
        try:
            return await item(self) if callable(item) else item
        finally:
            self.n_here -= 1

    async def close(self) -> None:
        await asyncio.sleep(0)
        assert asyncio.get_running_loop() is self.loop
        self.log.note("closed")


def meet(n_items: int) -> Callable[[Client], Awaitable[int]]:
    """Return what waits until so many are under way at once."""

    async def call(client: Client) -> int:
        await until(lambda: client.most >= n_items)
        return client.most

    return call


def hang_async() -> Callable[[Client], Awaitable[Any]]:
    async def call(_: Client) -> None:
        await asyncio.Event().wait()

    return call


def raise_in_time(error: type[BaseException]) -> Callable[[Client], Awaitable[Any]]:
    async def call(_: Client) -> None:
        await asyncio.sleep(0)
        raise error("of an item")

    return call


# --- one loop per worker, several items in it -------------------------------------------------------------


@engines
def test_all_calls_of_a_worker_are_in_the_event_loop_that_it_was_built_in(engine: str, scene: Scene) -> None:
    kwargs = {"log": scene.log("log")}
    assert list(stateful_map(Client, range(20), n_jobs=2, shared_kwargs=kwargs, engine=engine)) == list(range(20))


@parallel_engines
def test_as_many_items_are_under_way_at_once_as_max_concurrency_says(engine: str, scene: Scene) -> None:
    kwargs = {"log": scene.log("log")}
    # By one worker: of two the second may come when fewer are left.
    found = list(stateful_map(Client, [meet(5)] * 40, n_jobs=1, max_concurrency=5, shared_kwargs=kwargs, engine=engine))
    assert set(found) == {5}


@engines
def test_one_item_at_a_time_is_under_way_by_default(engine: str, scene: Scene) -> None:
    kwargs = {"log": scene.log("log")}
    found = list(stateful_map(Client, [meet(1)] * 20, n_jobs=2, shared_kwargs=kwargs, engine=engine))
    assert set(found) == {1}


@parallel_engines
def test_each_result_comes_as_soon_as_it_is_ready(engine: str, scene: Scene) -> None:
    gate = scene.gate("first may end")

    async def wait(_: Client) -> str:
        await until(gate.path.exists)
        return "waited"

    kwargs = {"log": scene.log("log")}
    results = stateful_map(
        Client, [wait, 1, 2, 3], n_jobs=1, max_concurrency=2, ordered=False, shared_kwargs=kwargs, engine=engine
    )
    assert [next(results) for _ in range(3)] == [1, 2, 3]
    gate.open()
    assert list(results) == ["waited"]


@engines
@orders
def test_results_are_in_order_unless_that_is_not_wanted(engine: str, scene: Scene, *, ordered: bool) -> None:
    async def call(item: int) -> int:
        for _ in range(item % 7):
            await asyncio.sleep(0)
        return item

    found = list(stateful_map(call, range(200), n_jobs=2, max_concurrency=8, ordered=ordered, engine=engine))
    assert (found if ordered else sorted(found)) == list(range(200))


@engines
def test_the_loop_goes_on_between_messages(engine: str, scene: Scene) -> None:
    gate, done = scene.gate("may tick"), scene.gate("has ticked")

    class Refreshed:
        def __init__(self) -> None:
            self.n_ticks = 0
            self.task = asyncio.get_running_loop().create_task(self.refresh())

        async def refresh(self) -> None:
            await until(gate.path.exists)
            self.n_ticks += 1
            done.open()

        async def __call__(self, _: Any) -> int:
            return self.n_ticks

    with StatefulExecutor(Refreshed, 1, engine=engine) as executor:
        assert executor.submit(call_worker, None).result() == 0
        gate.open()
        done.wait()  # with no call under way
        assert executor.submit(call_worker, None).result() == 1


@engines
def test_async_functions_are_workers_and_can_be_submitted(engine: str) -> None:
    async def double(item: int) -> int:
        await asyncio.sleep(0)
        return 2 * item

    assert list(stateful_map(double, range(5), n_jobs=2, max_concurrency=3, engine=engine)) == [0, 2, 4, 6, 8]
    with StatefulExecutor(n_jobs=2, max_concurrency=3, engine=engine) as executor:
        assert [future.result() for future in [executor.submit(double, item) for item in range(5)]] == [0, 2, 4, 6, 8]
        assert executor.submit_to(1, double, 4).result() == 8
        assert executor.run_on_all(double, 3) == [6, 6]


@engines
def test_a_worker_whose_call_is_an_async_generator_gives_a_list_per_item(engine: str) -> None:
    async def count(item: int) -> AsyncIterator[int]:
        for number in range(item):
            await asyncio.sleep(0)
            yield number

    worker: Any = count
    assert list(stateful_map(worker, [0, 2, 3], n_jobs=1, engine=engine)) == [[], [0, 1], [0, 1, 2]]


@engines
def test_who_one_is_is_known_in_a_coroutine(engine: str, scene: Scene) -> None:
    async def who(client: Client) -> Any:
        await asyncio.sleep(0)
        return get_worker() is client, get_worker_info().n_jobs

    kwargs = {"log": scene.log("log")}
    found = stateful_map(Client, [who] * 4, n_jobs=2, max_concurrency=2, shared_kwargs=kwargs, engine=engine)
    assert list(found) == [(True, 2)] * 4


@engines
def test_the_object_can_be_called_by_a_coroutine_and_by_a_function(engine: str, scene: Scene) -> None:
    async def call_it(item: Any) -> Any:
        return await call_worker(item) + 1

    def call_it_here(item: Any) -> Any:
        return call_worker(item) + 1

    with StatefulExecutor(Client, 1, shared_kwargs={"log": scene.log("log")}, engine=engine) as executor:
        assert executor.submit(call_it, 1).result() == 2
        assert executor.submit(call_it_here, 1).result() == 2


# --- from the beginning to the end ----------------------------------------------------------------------


@engines
def test_async_close_is_awaited(engine: str, scene: Scene) -> None:
    log = scene.log("log")
    with StatefulExecutor(Client, 2, shared_kwargs={"log": log}, engine=engine) as executor:
        executor.warm_up()
    assert Counter(log.lines) == {"built": 2, "closed": 2}


class Session:
    """Is used by `async with`."""

    def __init__(self, log: Log) -> None:
        self.log, self.is_open = log, False

    async def __aenter__(self) -> Self:
        await asyncio.sleep(0)
        self.is_open = True
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.sleep(0)
        self.log.note("left")

    async def __call__(self, _: Any) -> bool:
        return self.is_open

    def close(self) -> None:
        raise AssertionError("it is left, and not closed, too")


async def open_session(log: Log) -> Session:
    await asyncio.sleep(0)
    return Session(log)


@engines
@pytest.mark.parametrize("worker", [Session, factory(open_session), factory(Session)], ids=["class", "async", "sync"])
def test_what_async_with_does_is_done(engine: str, worker: Any, scene: Scene) -> None:
    log = scene.log("log")
    with StatefulExecutor(worker, 1, shared_kwargs={"log": log}, engine=engine) as executor:
        assert list(stateful_map(executor, [1, 2])) == [True, True]
    assert log.lines == ["left"]


@engines
def test_tasks_of_the_object_are_cancelled_at_its_end(engine: str, scene: Scene) -> None:
    log = scene.log("log")

    class Refreshed:
        def __init__(self) -> None:
            self.task = asyncio.get_running_loop().create_task(self.refresh())

        async def refresh(self) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                log.note("cancelled")

        async def __call__(self, item: Any) -> Any:
            await asyncio.sleep(0)
            return item

    with StatefulExecutor(Refreshed, 1, engine=engine) as executor:
        assert list(stateful_map(executor, [1])) == [1]
    assert log.lines == ["cancelled"]


@engines
def test_what_an_async_constructor_and_close_raise_is_told(
    engine: str, scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> Any:
        await asyncio.sleep(0)
        raise ValueError("no such server")

    build: Any = factory(fail)
    with pytest.raises(errors.WorkerInitError, match="no such server") as caught:
        list(stateful_map(build, [1], n_jobs=1, engine=engine))
    assert isinstance(caught.value.__cause__, ValueError)

    class Stubborn:
        async def __call__(self, item: Any) -> Any:
            return item

        async def close(self) -> None:
            raise ValueError("it won't close")

    with StatefulExecutor(Stubborn, 1, engine=engine) as executor:
        assert executor.submit(call_worker, 1).result() == 1
    assert "it won't close" in caplog.text


# --- errors and policies ------------------------------------------------------------------------------------


@engines
@pytest.mark.parametrize("error", [ValueError, SystemExit, asyncio.CancelledError, TimeoutError])
def test_what_a_coroutine_raises_is_its_items_error_alone(engine: str, error: Any, scene: Scene) -> None:
    log = scene.log("log")
    items: list[Any] = [0, raise_in_time(error), 2, raise_in_time(error), 4]
    with StatefulExecutor(Client, 1, shared_kwargs={"log": log}, max_concurrency=2, engine=engine) as executor:
        found = list(stateful_map(executor, items, on_error="deferred"))
    assert [result.value for result in found] == [0, None, 2, None, 4]
    assert {type(result.exception) for result in found if not result.ok} == {error}
    assert log.lines == ["built", "closed"]


def test_a_call_that_is_cancelled_before_it_has_begun_is_over() -> None:
    async def cancel_at_once() -> _Call:
        call = _Call(lambda: None, None)
        call.start(lambda: False)
        call.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return call

    call = asyncio.run(cancel_at_once())
    assert call.done.is_set()
    with pytest.raises(asyncio.CancelledError):
        call.result()


@parallel_engines
def test_immediate_raises_though_others_are_under_way(engine: str, scene: Scene) -> None:
    items = [hang_async(), raise_in_time(ValueError), hang_async()]
    with StatefulExecutor(
        Client, 1, shared_kwargs={"log": scene.log("log")}, max_concurrency=3, engine=engine
    ) as executor:
        with pytest.raises(ValueError, match="of an item"):
            list(stateful_map(executor, items))
        executor.shutdown(kill_workers=True)


@parallel_engines
def test_wait_others_waits_for_those_that_are_under_way_and_yields_their_results(engine: str, scene: Scene) -> None:
    has_failed, log = scene.gate("has failed"), scene.log("run")

    async def fail(client: Client) -> None:
        await until(lambda: client.n_here == 3)
        has_failed.open()
        raise ValueError("of an item")

    async def outlast(_: Client) -> str:
        log.note("run")
        await until(has_failed.path.exists)
        for _turn in range(20):
            await asyncio.sleep(0.001)
        return "outlasted"

    results: Iterator[Any] = stateful_map(
        Client,
        [fail, outlast, outlast, *[outlast] * 50],
        n_jobs=1,
        max_concurrency=3,
        on_error="wait_others",
        ordered=False,
        shared_kwargs={"log": scene.log("log")},
        engine=engine,
    )
    found: list[Any] = []
    with pytest.raises(ValueError, match="of an item"):
        found.extend(results)
    assert found == ["outlasted"] * 2
    assert len(log.lines) == 2, "nothing more was begun"


@engines
def test_a_failure_that_is_returned_is_its_items_error(engine: str) -> None:
    async def half(item: int) -> Any:
        return Failure(ValueError("odd")) if item % 2 else item // 2

    found = list(stateful_map(half, range(4), n_jobs=1, max_concurrency=2, on_error="deferred", engine=engine))
    assert [result.value for result in found] == [0, None, 1, None]


@engines
def test_batches_are_awaited_too(engine: str) -> None:
    async def double(items: Sequence[int]) -> list[int]:
        await asyncio.sleep(0)
        if 5 in items:
            raise ValueError("five")
        return [2 * item for item in items]

    found = list(
        stateful_map(
            double, range(12), n_jobs=2, max_concurrency=2, pass_as="batch", on_error="deferred", engine=engine
        )
    )
    assert [result.value for result in found] == [None if item == 5 else 2 * item for item in range(12)]


@parallel_engines
@pytest.mark.parametrize("buffer", [1, 3, 10])
def test_no_more_is_pulled_than_the_buffer_holds(engine: str, buffer: int) -> None:
    n_pulled = 0

    def numbers() -> Iterator[int]:
        nonlocal n_pulled
        for number in range(60):
            n_pulled += 1
            yield number

    async def same(item: int) -> int:
        await asyncio.sleep(0)
        return item

    results = stateful_map(same, numbers(), n_jobs=2, max_concurrency=4, buffer=buffer, engine=engine)
    for n_given, item in enumerate(results):
        assert item == n_given
        assert n_pulled <= n_given + buffer


# --- time limits, retries, deaths ---------------------------------------------------------------------------


def test_a_hung_item_is_cancelled_and_its_worker_lives_on(scene: Scene) -> None:
    log, cancelled = scene.log("log"), scene.log("cancelled")

    async def hang(_: Client) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.note(os.getpid())

    with StatefulExecutor(Client, 1, shared_kwargs={"log": log}, max_concurrency=3) as executor:
        found = list(stateful_map(executor, [0, hang, 2, hang, 4], on_error="deferred", item_timeout=0.5))
        assert [result.value for result in found] == [0, None, 2, None, 4]
        for result in found:
            assert result.ok or isinstance(result.exception, errors.ItemTimeoutError)
        assert [result.index for result in found if not result.ok] == [1, 3]
        error = found[3].exception
        assert isinstance(error, errors.ItemTimeoutError)
        assert (error.index, error.slot, error.timeout) == (3, 0, 0.5)
    assert log.lines == ["built", "closed"]
    assert len(cancelled.lines) == 2


def test_an_item_that_was_cancelled_is_tried_again_where_there_are_retries(scene: Scene) -> None:
    tries = scene.log("tries")

    async def hang_once(item: int) -> int:
        tries.note(item)
        if item == 3 and tries.lines.count("3") < 2:
            await asyncio.Event().wait()
        return item

    options: dict[str, Any] = {"n_jobs": 2, "max_concurrency": 2, "item_timeout": 0.5}
    assert list(stateful_map(hang_once, range(6), retries=1, **options)) == list(range(6))
    assert Counter(tries.lines) == {"0": 1, "1": 1, "2": 1, "3": 2, "4": 1, "5": 1}


def test_an_item_that_does_not_let_itself_be_cancelled_costs_its_worker(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = scene.log("log")

    async def hang(_: Client) -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                log.note("ignored")

    with StatefulExecutor(Client, 1, shared_kwargs={"log": log}, max_concurrency=2) as executor:
        found = list(stateful_map(executor, [hang, 1, 2, 3], on_error="deferred", item_timeout=0.3))
    assert [result.value for result in found] == [None, 1, 2, 3]
    assert isinstance(found[0].exception, errors.ItemTimeoutError)
    assert log.lines[:2] == ["built", "ignored"]


@pytest.mark.parametrize("retries", [0, 1])
def test_a_crash_blames_all_that_were_under_way(scene: Scene, retries: int) -> None:
    runs, crashed = scene.log("runs"), scene.gate("crashed")

    class Crashing:
        def __init__(self) -> None:
            self.n_here = 0

        async def __call__(self, item: int) -> int:
            runs.note(item)
            if crashed.path.exists():
                return item
            self.n_here += 1
            await until(lambda: self.n_here == 3)
            if item == 1:
                crashed.open()
                os.kill(os.getpid(), signal.SIGKILL)
            await asyncio.Event().wait()
            return item

    found = list(stateful_map(Crashing, range(8), n_jobs=1, max_concurrency=3, retries=retries, on_error="deferred"))
    failed = [result.index for result in found if not result.ok]
    assert failed == ([] if retries else [0, 1, 2])
    assert [result.value for result in found if result.ok] == [n for n in range(8) if n not in failed]
    assert {type(result.exception) for result in found} <= {errors.WorkerCrashedError, type(None)}
    expected = {str(n): 1 + (n < 3 and retries) for n in range(8)}
    assert Counter(runs.lines) == expected


def test_nothing_is_lost_and_nothing_comes_twice_if_workers_are_killed_again_and_again(scene: Scene) -> None:
    runs = scene.log("runs")

    async def die_now_and_then(item: int) -> int:
        runs.note(item)
        await asyncio.sleep(0)
        if item % 17 == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    found = list(
        stateful_map(die_now_and_then, range(200), n_jobs=2, max_concurrency=4, on_error="deferred", max_restarts=50)
    )
    assert [result.index for result in found] == list(range(200))
    assert all(result.value == result.index for result in found if result.ok)
    assert all(isinstance(result.exception, errors.WorkerCrashedError) for result in found if not result.ok)
    assert all(not found[item].ok for item in range(5, 200, 17))
    assert max(Counter(runs.lines).values()) == 1, "retries=0"


# --- code that blocks ---------------------------------------------------------------------------------------


@parallel_engines
def test_code_that_blocks_the_loop_is_named_once(engine: str, scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    gate = scene.gate("may go on")

    async def block(_: Client) -> None:
        gate.wait()

    def open_when_told() -> None:
        warned.wait(PATIENCE)
        gate.open()

    warned = threading.Event()

    class Listener:
        def filter(self, record: Any) -> bool:
            if "has been blocked" in record.getMessage():
                warned.set()
            return True

    caplog.handler.addFilter(listener := Listener())
    opener = threading.Thread(target=open_when_told)
    opener.start()
    kwargs = {"log": scene.log("log")}
    with StatefulExecutor(Client, 1, shared_kwargs=kwargs, max_concurrency=2, engine=engine) as executor:
        assert list(stateful_map(executor, [block, 1])) == [None, 1]
    opener.join()
    caplog.handler.removeFilter(listener)
    told = [record.getMessage() for record in caplog.records if "has been blocked" in record.getMessage()]
    assert len(told) == 1
    assert "test_async_workers.py" in told[0]
    assert "in block" in told[0]
    assert "asyncio.to_thread" in told[0]


# --- what is async, and what only looks so ------------------------------------------------------------------


async def add_one(item: int) -> int:
    await asyncio.sleep(0)
    return item + 1


def run_by_itself(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return asyncio.run(function(*args))

    return wrapper


def pass_on(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


class Static:
    @staticmethod
    async def __call__(item: int) -> int:
        return item + 1


class OfClass:
    @classmethod
    async def __call__(cls, item: int) -> int:
        return item + 1


class Wrapped:
    @pass_on
    async def __call__(self, item: int) -> int:
        return await add_one(item)


class RunByItself:
    @run_by_itself
    async def __call__(self, item: int) -> int:
        return await add_one(item)


@engines
@pytest.mark.parametrize("worker", [run_by_itself(add_one), pass_on(add_one), Static, OfClass, Wrapped, RunByItself])
def test_decorators_may_await_what_they_wrap_or_leave_it_to_the_worker(engine: str, worker: Any) -> None:
    assert list(stateful_map(worker, range(3), n_jobs=1, max_concurrency=2, engine=engine)) == [1, 2, 3]
    if isinstance(worker, type):
        with StatefulExecutor(worker, 1, engine=engine) as executor:
            assert executor.submit(call_worker, 1).result() == 2
    else:
        with StatefulExecutor(n_jobs=1, engine=engine) as executor:
            assert executor.submit(worker, 1).result() == 2


@engines
def test_threads_that_a_coroutine_starts_know_the_worker(engine: str, scene: Scene) -> None:
    async def ask(client: Client) -> Any:
        return await asyncio.to_thread(get_worker) is client

    kwargs = {"log": scene.log("log")}
    assert list(stateful_map(Client, [ask] * 3, n_jobs=1, shared_kwargs=kwargs, engine=engine)) == [True] * 3


# --- what nobody wants any more -----------------------------------------------------------------------------


@parallel_engines
def test_items_of_a_map_that_was_left_are_cancelled(engine: str, scene: Scene) -> None:
    begun, cancelled = scene.log("begun"), scene.log("cancelled")

    async def hang(_: Client) -> None:
        begun.note("begun")
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.note("cancelled")

    with StatefulExecutor(
        Client, 1, shared_kwargs={"log": scene.log("log")}, max_concurrency=3, engine=engine
    ) as executor:
        results = stateful_map(executor, [0, hang, hang, hang], buffer=4)
        assert next(results) == 0
        begun.wait_for(3)
        results.close()
        assert list(stateful_map(executor, range(5))) == list(range(5))
        cancelled.wait_for(3)
    assert scene.log("log").lines == ["built", "closed"]


@parallel_engines
def test_what_is_under_way_when_workers_are_killed_may_clean_up(engine: str, scene: Scene) -> None:
    begun, cleaned = scene.log("begun"), scene.log("cleaned")

    async def hang(item: int) -> None:
        begun.note(item)
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(item * 150):  # longer than it takes until it is heard that nobody wants it
                await asyncio.sleep(0.001)
            cleaned.note(item)

    executor = StatefulExecutor(n_jobs=1, max_concurrency=4, engine=engine)
    futures = [executor.submit(hang, item) for item in range(4)]
    begun.wait_for(4)
    executor.shutdown(kill_workers=True)
    assert all(future.cancelled() or future.exception() is not None for future in futures)
    if engine == "threads":  # a process is gone
        cleaned.wait_for(4)


def test_a_call_that_is_stopped_is_cancelled_and_others_go_on(scene: Scene) -> None:
    gate, begun, cancelled = scene.gate("may end"), scene.log("begun"), scene.log("cancelled")

    async def wait(_: Client) -> str:
        begun.note("begun")
        await until(gate.path.exists)
        return "waited"

    async def hang(_: Client) -> None:
        begun.note("begun")
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.note("cancelled")

    with StatefulExecutor(Client, 1, shared_kwargs={"log": scene.log("log")}, max_concurrency=3) as executor:
        waiting = executor.submit(call_worker, wait)
        hanging = executor.submit(call_worker, hang)
        begun.wait_for(2)
        assert executor.stop(hanging)
        assert hanging.cancelled()
        cancelled.wait_for(1)
        gate.open()
        assert waiting.result(PATIENCE) == "waited"
    assert scene.log("log").lines == ["built", "closed"]


# --- who is to blame, and what is said ----------------------------------------------------------------------


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_with_a_retry_a_crash_costs_only_the_item_that_is_to_blame(n_jobs: int) -> None:
    async def crash_at_seven(item: int) -> int:
        await asyncio.sleep(0)
        if item == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    found = list(
        stateful_map(
            crash_at_seven, range(40), n_jobs=n_jobs, max_concurrency=10, retries=1, on_error="deferred", buffer=80
        )
    )
    assert [result.index for result in found if not result.ok] == [7]


def test_calls_over_their_time_are_tried_again_in_halves(scene: Scene) -> None:
    async def hang_on_three(items: Sequence[int]) -> Sequence[int]:
        if 3 in items:
            await asyncio.Event().wait()
        return items

    found = list(
        stateful_map(
            hang_on_three,
            range(4),
            n_jobs=1,
            pass_as="batch",
            batch_size=4,
            item_timeout=0.2,
            retries=2,
            on_error="deferred",
        )
    )
    assert [result.value for result in found] == [0, 1, 2, None]


def test_errors_say_whether_the_worker_lives_on_and_who_else_may_be_to_blame(scene: Scene) -> None:
    is_there = scene.log("is there")

    async def hang(_: int) -> None:
        await asyncio.Event().wait()

    def crash(item: int) -> None:
        is_there.note(item)
        is_there.wait_for(2)
        if item:
            os.kill(os.getpid(), signal.SIGKILL)
        threading.Event().wait()

    (late,) = stateful_map(hang, [0], n_jobs=1, item_timeout=0.2, on_error="deferred")
    assert "and was cancelled; its worker lives on" in str(late.exception)
    for result in stateful_map(crash, [0, 1], n_jobs=1, max_concurrency=2, on_error="deferred"):
        assert "it was at 2 at once, any of which may be to blame" in str(result.exception)
        assert "SIGKILL" in str(result.exception)


def test_those_beside_a_call_that_is_killed_are_told_so(scene: Scene) -> None:
    begun = scene.log("begun")

    def hang(item: int) -> None:
        begun.note(item)
        threading.Event().wait()

    with StatefulExecutor(n_jobs=1, max_concurrency=2) as executor:
        futures = [executor.submit(hang, item) for item in range(2)]
        begun.wait_for(2)
        assert executor.stop(futures[0])
        error = futures[1].exception(PATIENCE)
    assert isinstance(error, errors.WorkerCrashedError)
    assert "it was killed because another call that it was at was stopped" in str(error)
    assert "out-of-memory" not in str(error)


# --- bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "3", None])
def test_a_number_of_items_at_once_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="max_concurrency must be"):
        stateful_map(abs, [1], max_concurrency=value)
    with pytest.raises((TypeError, ValueError), match="max_concurrency must be"):
        StatefulExecutor(max_concurrency=value)


def test_it_is_the_executors_if_there_is_one() -> None:
    with (
        StatefulExecutor(factory(lambda: abs), 1) as executor,
        pytest.raises(TypeError, match="max_concurrency can't be given next to a StatefulExecutor"),
    ):
        stateful_map(executor, [1], max_concurrency=2)


@engines
def test_a_loop_that_was_stopped_keeps_nobody_waiting(engine: str) -> None:
    async def stop(item: int) -> int:
        if item == 1:
            asyncio.get_running_loop().stop()
            await asyncio.Event().wait()
        return item

    with StatefulExecutor(n_jobs=1, max_concurrency=2, engine=engine) as executor:
        assert executor.submit(stop, 0).result(PATIENCE) == 0
        for item in (1, 2):  # under way, and behind
            error = executor.submit(stop, item).exception(PATIENCE)
            assert isinstance(error, RuntimeError)
            assert "loop.stop()" in str(error)
