"""Several items at once in one worker of a cluster, in threads or in its event loop."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

import joblib_stateful
from contract import N_JOBS, on
from joblib_stateful import StatefulExecutor, call_worker, engines, errors, factory, get_worker, stateful_map
from joblib_stateful._executor._links import Link
from joblib_stateful._scheduling._requests import Group, Request
from joblib_stateful._worker._messages import Build, Built, Death, Ran, Run
from joblib_stateful._worker._progress_page import Progress
from joblib_stateful.engines import _remote
from joblib_stateful.engines._mailbox import Mailbox
from scenes import CountingCalls, Log, Scene, new_scene, orders

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

pytestmark = pytest.mark.cluster

N_AT_ONCE = 3
PATIENCE = 30.0


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return new_scene(tmp_path)


class Counting(CountingCalls):
    awaited = N_AT_ONCE


def meet(worker: Counting) -> int:
    assert worker.all_are_here.wait(PATIENCE)
    return threading.get_ident()


class Client:
    """The same in one event loop."""

    def __init__(self, log: Log) -> None:
        self.log, self.loop, self.n_here, self.most = log, asyncio.get_running_loop(), 0, 0
        self.all_are_here = asyncio.Event()
        log.note("built")

    async def __call__(self, item: Any) -> Any:
        assert asyncio.get_running_loop() is self.loop
        self.n_here += 1
        self.most = max(self.most, self.n_here)
        if self.n_here == N_AT_ONCE:
            self.all_are_here.set()
        try:
            return await item(self) if callable(item) else item
        finally:
            self.n_here -= 1

    async def close(self) -> None:
        self.log.note("closed")


async def meet_all(client: Client) -> int:
    await asyncio.wait_for(client.all_are_here.wait(), PATIENCE)
    return client.most


async def hang(_: Client) -> None:
    await asyncio.Event().wait()


# --- at once ----------------------------------------------------------------------------------------------


@on("dask", "ray")
def test_a_worker_is_called_from_as_many_threads_as_max_concurrency_says(engine: Any) -> None:
    with StatefulExecutor(Counting, N_JOBS, max_concurrency=N_AT_ONCE, engine=engine) as executor:
        executor.warm_up()
        found = list(stateful_map(executor, [meet] * (10 * N_JOBS * N_AT_ONCE)))
        assert len(set(found)) >= N_AT_ONCE
        assert executor.run_on_all(lambda: get_worker().most) == [N_AT_ONCE] * N_JOBS


@on("dask", "ray")
def test_items_of_an_async_worker_are_under_way_at_once_in_its_loop(engine: Any, scene: Scene) -> None:
    log = scene.log()
    options: dict[str, Any] = {"shared_kwargs": {"log": log}, "max_concurrency": N_AT_ONCE, "engine": engine}
    assert set(stateful_map(Client, [meet_all] * 30, n_jobs=1, **options)) == {N_AT_ONCE}
    joblib_stateful.shutdown()
    assert log.lines == ["built", "closed"]


@on("dask", "ray")
def test_one_item_at_a_time_is_under_way_by_default_where_the_object_was_built(engine: Any) -> None:
    with StatefulExecutor(Counting, 1, engine=engine) as executor:
        assert all(stateful_map(executor, [lambda worker: worker.thread == threading.get_ident()] * 20))
        assert executor.run_on_all(lambda: get_worker().most) == [1]


@on("dask", "ray")
@orders
def test_results_are_in_order_unless_that_is_not_wanted(engine: Any, *, ordered: bool) -> None:
    async def call(item: int) -> int:
        for _ in range(item % 5):
            await asyncio.sleep(0)
        return item

    for target in (call, abs):
        options: dict[str, Any] = {"n_jobs": N_JOBS, "max_concurrency": N_AT_ONCE, "ordered": ordered}
        found = list(stateful_map(target, range(100), engine=engine, **options))
        assert (found if ordered else sorted(found)) == list(range(100))


@on("dask", "ray")
def test_a_result_does_not_wait_for_one_that_was_begun_before(engine: Any, scene: Scene) -> None:
    gate = scene.gate()

    def wait(_: Counting) -> str:
        gate.wait()
        return "waited"

    options: dict[str, Any] = {"n_jobs": 1, "max_concurrency": 2, "ordered": False, "engine": engine}
    results = stateful_map(Counting, [wait, 1, 2, 3], **options)
    assert [next(results) for _ in range(3)] == [1, 2, 3]
    gate.open()
    assert list(results) == ["waited"]


@on("dask", "ray")
def test_arrays_of_calls_under_way_at_once_are_not_mixed_up(engine: Any) -> None:
    np = pytest.importorskip("numpy")
    size = 250_000

    class Doubling:
        def __init__(self) -> None:
            self.barrier = threading.Barrier(2)

        def __call__(self, array: Any) -> Any:
            self.barrier.wait(PATIENCE)  # so that two of them are there at once
            return 2 * array

    arrays = [np.full(size, number, dtype=np.int64) for number in range(12)]
    for number, array in enumerate(stateful_map(Doubling, arrays, n_jobs=1, max_concurrency=2, engine=engine)):
        assert array.shape == (size,)
        assert (array == 2 * number).all()
        array.fill(0)  # it is the caller's


@on("dask", "ray")
def test_calls_under_way_at_once_bring_and_give_classes_of_their_own(engine: Any) -> None:
    class Given:
        def __init__(self, number: int) -> None:
            self.number = number

    class Making:
        def __init__(self) -> None:
            self.kind = type("Made", (), {"__module__": "__main__", "doubled": property(lambda made: 2 * made.number)})

        def __call__(self, given: Given) -> Any:
            made = self.kind()
            made.number = given.number
            return made, given

    found = list(stateful_map(Making, map(Given, range(60)), n_jobs=1, max_concurrency=8, engine=engine))
    assert [(made.doubled, given.number) for made, given in found] == [(2 * number, number) for number in range(60)]
    assert {type(given) for _, given in found} == {Given}
    assert len({type(made) for made, _ in found}) == 1


@on("dask", "ray")
def test_functions_may_be_submitted_from_several_threads(engine: Any) -> None:
    n_threads = 4
    found: dict[int, list[int]] = {}

    with StatefulExecutor(Counting, 1, max_concurrency=N_AT_ONCE, engine=engine) as executor:

        def submit(thread: int) -> None:
            def add(item: int) -> int:
                return item + 100 * thread

            found[thread] = [future.result() for future in [executor.submit(add, item) for item in range(10)]]

        threads = [threading.Thread(target=submit, args=(thread,)) for thread in range(n_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert executor.submit(call_worker, 3).result() == 3
    assert found == {thread: list(range(100 * thread, 100 * thread + 10)) for thread in range(n_threads)}


# --- errors, deaths, limits -------------------------------------------------------------------------------


@on("dask", "ray")
def test_an_exception_is_its_items_alone(engine: Any, scene: Scene) -> None:
    async def fail(client: Client) -> None:
        await meet_all(client)
        raise ValueError("of an item")

    log = scene.log()
    with StatefulExecutor(Client, 1, shared_kwargs={"log": log}, max_concurrency=N_AT_ONCE, engine=engine) as executor:
        items: list[Any] = [meet_all, fail, meet_all, 3]
        found = list(stateful_map(executor, items, on_error="deferred"))
        assert [result.value for result in found] == [N_AT_ONCE, None, N_AT_ONCE, 3]
        assert isinstance(found[1].exception, ValueError)
        assert log.lines == ["built"]
        with pytest.raises(ValueError, match="of an item"):
            list(stateful_map(executor, [hang, fail, hang]))
        executor.shutdown(kill_workers=True)


@on("dask", "ray")
@pytest.mark.parametrize("retries", [0, 1])
def test_a_crash_blames_all_that_were_under_way(engine: Any, scene: Scene, retries: int) -> None:
    runs, is_there = scene.log("runs"), scene.log("is there")

    def run(item: int) -> int:
        runs.note(item)
        if item < N_AT_ONCE and runs.lines.count(str(item)) == 1:
            is_there.note(item)
            is_there.wait_for(N_AT_ONCE)
            if item == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            threading.Event().wait()
        return item

    options: dict[str, Any] = {"n_jobs": 1, "max_concurrency": N_AT_ONCE, "on_error": "deferred", "engine": engine}
    # Whether what was sent with the news of the death under way had begun isn't seen from here.
    found = list(stateful_map(run, range(6), retries=retries, buffer=N_AT_ONCE, **options))
    failed = [result.index for result in found if not result.ok]
    assert failed == ([] if retries else [0, 1, 2])
    assert all(isinstance(found[index].exception, errors.WorkerCrashedError) for index in failed)
    assert [result.value for result in found if result.ok] == list(range(6))[len(failed) :]
    assert Counter(runs.lines) == {str(item): 1 + (item < N_AT_ONCE and retries) for item in range(6)}


@on("dask", "ray")
@pytest.mark.parametrize("kind", ["class", "function", "factory"])
def test_a_hung_async_item_is_cancelled_and_its_object_lives_on(engine: Any, scene: Scene, kind: str) -> None:
    log, cancelled = scene.log(), scene.log("cancelled")

    async def call(item: Any) -> Any:
        try:
            return await item(None) if callable(item) else item
        except asyncio.CancelledError:
            cancelled.note(os.getpid())
            raise

    class Calling(Client):
        async def __call__(self, item: Any) -> Any:
            return await call(item)

    def make() -> Any:
        log.note("built")
        return call

    worker: Any = {"class": Calling, "function": call, "factory": factory(make)}[kind]
    options: dict[str, Any] = {"shared_kwargs": {"log": log}} if kind == "class" else {}
    options |= {"item_timeout": 1.0, "on_error": "deferred", "max_concurrency": N_AT_ONCE, "engine": engine}
    found = list(stateful_map(worker, [0, hang, 2, hang, 4], n_jobs=1, **options))
    assert [result.value for result in found] == [0, None, 2, None, 4]
    assert [type(result.exception) for result in found if not result.ok] == [errors.ItemTimeoutError] * 2
    assert len(cancelled.lines) == 2
    assert len(set(cancelled.lines)) == 1
    assert log.lines.count("built") == (kind != "function")


@on("dask", "ray")
def test_a_hung_call_in_a_thread_costs_the_others_under_way_their_worker(engine: Any, scene: Scene) -> None:
    runs, is_there = scene.log("runs"), scene.log("is there")

    def run(item: int) -> int:
        runs.note(item)
        if item < 2 and runs.lines.count(str(item)) == 1:
            is_there.note(item)
            is_there.wait_for(2)
            threading.Event().wait()
        return item

    options: dict[str, Any] = {"n_jobs": 1, "max_concurrency": 2, "item_timeout": 2.0, "retries": 1, "engine": engine}
    assert list(stateful_map(run, range(4), **options)) == list(range(4))
    assert Counter(runs.lines) == {"0": 2, "1": 2, "2": 1, "3": 1}


@on("dask", "ray")
def test_a_shutdown_in_between_leaves_nothing_waiting(engine: Any, scene: Scene) -> None:
    begun = scene.log("begun")

    def block() -> None:
        begun.note("begun")
        threading.Event().wait()

    executor = StatefulExecutor(Counting, 1, max_concurrency=N_AT_ONCE, engine=engine)
    futures = [executor.submit(block) for _ in range(2 * N_AT_ONCE)]
    begun.wait_for(N_AT_ONCE)
    executor.shutdown(kill_workers=True)
    assert all(future.cancelled() or future.exception(PATIENCE) is not None for future in futures)
    assert list(stateful_map(Counting, range(10), n_jobs=1, max_concurrency=2, engine=engine)) == list(range(10))


@on("dask", "ray")
def test_a_map_may_be_left_with_several_items_under_way(engine: Any) -> None:
    options: dict[str, Any] = {"n_jobs": 1, "max_concurrency": N_AT_ONCE, "engine": engine}
    items: list[Any] = [*[meet] * N_AT_ONCE, *range(1_000)]
    results = stateful_map(Counting, items, buffer=2 * N_AT_ONCE, **options)
    next(iter(results))
    results.close()
    assert list(stateful_map(abs, range(10), **options)) == list(range(10))


# --- the parts --------------------------------------------------------------------------------------------


def test_an_actor_of_rays_has_a_thread_for_each_item_under_way_or_as_many_as_its_user_wants() -> None:
    pytest.importorskip("ray")
    assert "max_concurrency" not in engines.RayEngine().options_for({})
    assert engines.RayEngine().options_for({}, 3)["max_concurrency"] == 3
    assert engines.RayEngine(max_concurrency=2).options_for({}, 3)["max_concurrency"] == 3
    assert engines.RayEngine(max_concurrency=5).options_for({}, 3)["max_concurrency"] == 5


def _run(seq: int, after: int, *, target: bool, lane: int = 0) -> Run:
    transport = engines.Pickled()
    parcel, _ = transport.pack_all([-seq])
    return Run(seq, "item", "abs", transport.pack(abs) if target else None, parcel, "go_on", lane=lane, after=after)


def test_messages_are_begun_in_the_order_of_sending_whatever_order_they_come_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = engines.Host(engines.Pickled(), is_process=False, n_lanes=2)
    with pytest.raises(RuntimeError, match="started anew"):
        host.serve(_run(2, 1, target=True))
    assert isinstance(host.serve(Build(1, 0, 1, None)), Built)
    with monkeypatch.context() as patched:
        patched.setattr(_remote, "_TURN_SECONDS", 0.0)
        with pytest.raises(RuntimeError, match="message 5, which was to be begun before message 4, has not come"):
            host.serve(_run(4, 5, target=False))

    answers: dict[int, Any] = {}
    first, second = _run(5, 1, target=True), _run(4, 5, target=False, lane=1)
    thread = threading.Thread(target=lambda: answers.update({4: host.serve(second)}))
    thread.start()
    answers[5] = host.serve(first)
    thread.join(PATIENCE)
    for seq in (4, 5):
        assert isinstance(answers[seq], Ran)
        assert engines.Pickled().unpack(answers[seq].values.frames[0]) == seq
    for message in (first, second):
        with pytest.raises(RuntimeError, match="answered before"):
            host.serve(message)


def test_a_message_that_was_refused_is_waited_for_no_more() -> None:
    host = engines.Host(engines.Pickled(), is_process=False, n_lanes=2)
    host.serve(Build(1, 0, 1, None))
    refused = host.refuse(2, 1)
    assert refused.pid == os.getpid()
    assert isinstance(host.serve(_run(3, 2, target=True)), Ran)


def test_what_waits_for_its_turn_is_given_up_when_nobody_waits_for_it() -> None:
    host = engines.Host(engines.Pickled(), is_process=False, n_lanes=2)
    host.serve(Build(1, 0, 1, None))
    host.stop()
    with pytest.raises(RuntimeError, match="has not come"):
        host.serve(_run(3, 2, target=False))


def test_all_that_is_under_way_ends_after_its_item_when_nobody_waits_for_it(scene: Scene) -> None:
    host, transport = engines.Host(engines.Pickled(), is_process=False, n_lanes=2), engines.Pickled()
    begun, gate = scene.log(), scene.gate()
    host.serve(Build(1, 0, 1, None))

    def wait(item: int) -> int:
        begun.note(item)
        gate.wait()
        return item

    parcel, _ = transport.pack_all([1, 2, 3])
    answers: list[Any] = []
    threads = []
    for lane in range(2):
        message = Run(2 + lane, "item", "wait", transport.pack(wait), parcel, "go_on", lane=lane, after=1 + lane)
        threads.append(threading.Thread(target=lambda message=message: answers.append(host.serve(message))))
        threads[-1].start()
    begun.wait_for(2)
    host.stop()
    gate.open()
    for thread in threads:
        thread.join(PATIENCE)
    assert [answer.n_run for answer in answers] == [1, 1]


def test_a_message_says_before_which_one_it_must_not_be_begun_if_several_are_under_way() -> None:
    request, (parcel, _) = Request(1, Group(), print), engines.Pickled().pack_all([1])
    for is_one_at_a_time, after in ((False, [1, 2, 5]), (True, [0, 0, 0])):
        link = Link(1, engines.get("threads").make_runtime(1).open(0, {}), is_one_at_a_time=is_one_at_a_time)
        link.build(Build(1, 0, 1, None), (), None)
        assert [link.run(seq, request, parcel, 1).after for seq in (2, 5, 3)] == after


def test_what_is_seen_of_a_message_is_never_what_another_one_does_in_its_place() -> None:
    mailbox, pages = Mailbox(2), Progress.pages(2)
    first, second = (mailbox.put(_run(seq, 0, target=True), print) for seq in (2, 3))
    assert [mailbox.page_of(seq, pages) for seq in (2, 3)] == pages
    assert isinstance(first, Run)
    assert isinstance(second, Run)
    assert (first.lane, second.lane) == (0, 1)
    mailbox.take(2)
    mailbox.put(_run(4, 0, target=True), print)
    assert mailbox.page_of(4, pages) is pages[0]
    assert mailbox.page_of(2, pages) not in pages
    assert Mailbox().page_of(2, pages[:1]) is pages[0]


class _LaneWorker(engines.RemoteWorker):
    """Its far end is of no use any more as soon as it is sent a list that is empty."""

    def __init__(self, runtime: _LaneRuntime) -> None:
        super().__init__(runtime.max_concurrency)
        self.host = engines.Host(runtime.transport, is_process=False, n_lanes=runtime.max_concurrency)
        self.engine, self.n_ended = runtime.engine, 0

    def exchange(self, message: Any) -> Any:
        if isinstance(message, Run):
            self.engine.arrivals.wait(PATIENCE)
            if self.engine.fails_at == message.parcel.n_values:
                raise ConnectionError("the line is cut")
            self.engine.ended.wait(PATIENCE)
        return self.host.serve(message)

    def end(self) -> None:
        self.engine.ended.set()


class _LaneRuntime(engines.Runtime):
    transport = engines.Pickled()
    engine: _LaneEngine

    def open(self, slot: int, env: Mapping[str, str]) -> _LaneWorker:
        return _LaneWorker(self)


class _LaneEngine(engines.Engine):
    name = "lanes"
    is_concurrent = True

    def __init__(self, n_at_once: int, fails_at: int) -> None:
        self.arrivals, self.fails_at, self.ended = threading.Barrier(n_at_once), fails_at, threading.Event()

    def make_runtime(self, n_slots: int) -> _LaneRuntime:
        return _LaneRuntime(self)


def test_if_one_of_several_exchanges_fails_all_are_answered_once_with_a_death() -> None:
    engine = _LaneEngine(N_AT_ONCE, 2)
    runtime = engine.make_concurrent_runtime(1, N_AT_ONCE)
    worker = runtime.open(0, {})
    built, answers, all_are_here = threading.Event(), Counter[tuple[int, Any]](), threading.Semaphore(0)
    worker.send(Build(1, 0, 1, None), lambda _: built.set())
    assert built.wait(PATIENCE)

    def note(seq: int) -> Callable[[Any], None]:
        def on_reply(reply: Any) -> None:
            answers[seq, type(reply)] += 1
            assert reply.reason == "ConnectionError: the line is cut"
            all_are_here.release()

        return on_reply

    for seq, n_values in ((2, 1), (3, 2), (4, 1)):
        parcel, _ = runtime.transport.pack_all([0] * n_values)
        assert worker.send(Run(seq, "item", "abs", None, parcel, "go_on", after=seq - 1), note(seq)) is None
    for _ in range(N_AT_ONCE):
        assert all_are_here.acquire(timeout=PATIENCE)
    assert answers == {(seq, Death): 1 for seq in (2, 3, 4)}
    assert isinstance(worker.send(_run(5, 4, target=True), note(5)), Death)
