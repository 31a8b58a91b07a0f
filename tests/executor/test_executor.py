"""What `StatefulExecutor` promises, on every engine."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import signal
import sys
import threading
import time
from concurrent.futures import CancelledError, Executor, Future, as_completed
from concurrent.futures import TimeoutError as FutureTimeoutError
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import joblib
import psutil
import pytest

from joblib_stateful import StatefulExecutor, call_worker, errors, factory, get_worker, get_worker_info
from joblib_stateful._process import _locks
from programs import program_text
from scenes import Gate, Log, Meeting, Scene, engines, new_scene, parallel_engines

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import RunProgram

_PATIENCE = 60


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return new_scene(tmp_path)


class Echo:
    """Logs its life, and answers with its tag."""

    def __init__(self, log: Log | None = None, tag: Any = None) -> None:
        self.log, self.tag = log, tag
        self._note("built")

    def _note(self, what: str) -> None:
        if self.log is not None:
            self.log.note(f"{what} {self.tag} {os.getpid()}")

    def __call__(self, item: Any) -> Any:
        return self.tag, item

    def close(self) -> None:
        self._note("closed")


def count(log: Log, what: str) -> int:
    return sum(line.startswith(what) for line in log.lines)


def tag_of_worker() -> Any:
    return get_worker().tag


def join_and_tag(meeting: Meeting) -> Any:
    meeting.join()
    return get_worker().tag


def wait_at(gate: Gate, started: Gate | None = None) -> int:
    if started is not None:
        started.open()
    gate.wait()
    return os.getpid()


def die() -> NoReturn:
    os._exit(3)


def is_alive(pid: int) -> bool:
    return bool(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)


# --- submit, map --------------------------------------------------------------------------------------


@engines
def test_submit_runs_functions_next_to_the_workers_object(engine: str) -> None:
    with StatefulExecutor(Echo, 2, shared_kwargs={"tag": "x"}, engine=engine) as executor:
        assert isinstance(executor, Executor)
        assert executor.submit(tag_of_worker).result(_PATIENCE) == "x"
        assert executor.submit(call_worker, 5).result(_PATIENCE) == ("x", 5)
        assert executor.submit(call_worker, item=6).result(_PATIENCE) == ("x", 6)
        assert executor.submit(divmod, 7, 2).result(_PATIENCE) == (3, 1)
        assert executor.submit(dict, self=1, fn=2).result(_PATIENCE) == {"self": 1, "fn": 2}


@engines
def test_map_is_that_of_the_standard_library(engine: str) -> None:
    with StatefulExecutor(Echo, 2, engine=engine) as executor:
        assert list(executor.map(pow, range(10), range(10))) == [n**n for n in range(10)]
        assert list(executor.map(call_worker, "ab")) == [(None, "a"), (None, "b")]
        results = executor.map(divmod, [1, 1], [1, 0])
        assert next(results) == (1, 0)
        with pytest.raises(ZeroDivisionError):
            next(results)


@parallel_engines
def test_map_times_out(engine: str, scene: Scene) -> None:
    with StatefulExecutor(n_jobs=1, engine=engine) as executor:
        with pytest.raises(FutureTimeoutError):
            list(executor.map(wait_at, [scene.gate()], timeout=0.01))
        scene.gate().open()


@engines
def test_as_completed_yields_every_future(engine: str) -> None:
    with StatefulExecutor(n_jobs=2, engine=engine) as executor:
        futures = [executor.submit(abs, -n) for n in range(20)]
        assert sorted(future.result() for future in as_completed(futures, _PATIENCE)) == list(range(20))


@engines
def test_each_slot_has_its_own_kwargs_over_the_shared_ones(engine: str, scene: Scene) -> None:
    shared = {"log": scene.log(), "tag": "shared"}
    with StatefulExecutor(Echo, shared_kwargs=shared, worker_kwargs=[{"tag": "a"}, {}], engine=engine) as executor:
        meeting = scene.meeting(1 if engine == "inline" else 2)
        futures = [executor.submit(join_and_tag, meeting) for _ in range(2)]
        assert {future.result(_PATIENCE) for future in futures} == {"a", "shared"}
    assert count(scene.log(), "built") == 2


def test_inline_a_constructor_can_have_another_object_do_something() -> None:
    found = []

    class Model:
        def __init__(self, index: int) -> None:
            if index:
                found.append(executor.submit(len, "abc").result(_PATIENCE))

        def __call__(self, item: int) -> int:
            return -item

    own = [{"index": 0}, {"index": 1}]
    with StatefulExecutor(Model, worker_kwargs=own, engine="inline") as executor:
        assert [executor.submit(call_worker, item).result(_PATIENCE) for item in (1, 2)] == [-1, -2]
    assert found == [3]


@parallel_engines
def test_slots_work_at_the_same_time(engine: str, scene: Scene) -> None:
    with StatefulExecutor(Echo, 3, engine=engine) as executor:
        futures = [executor.submit(join_and_tag, scene.meeting(3)) for _ in range(3)]
        assert [future.result(_PATIENCE) for future in futures] == [None] * 3


@engines
def test_objects_are_built_once_and_no_more_than_are_needed(engine: str, scene: Scene) -> None:
    with StatefulExecutor(Echo, 4, shared_kwargs={"log": scene.log()}, engine=engine) as executor:
        assert scene.log().lines == []
        for n in range(10):
            assert executor.submit(call_worker, n).result(_PATIENCE) == (None, n)
        # One after the other, one worker is enough; the inline engine takes its objects in turn.
        assert count(scene.log(), "built") == (4 if engine == "inline" else 1)


@engines
def test_workers_may_be_partials_and_factories(engine: str) -> None:
    def build(tag: str) -> Echo:
        return Echo(tag=tag)

    workers: list[Any] = [partial(Echo, tag="t"), factory(partial(build, "t")), partial(Echo, None, "t")]
    for worker in workers:
        with StatefulExecutor(worker, 1, engine=engine) as executor:
            assert executor.submit(call_worker, 1).result(_PATIENCE) == ("t", 1)


@engines
def test_objects_need_not_be_callable(engine: str) -> None:
    workers: list[Any] = [dict, partial(dict, device="x")]
    for worker in workers:
        with StatefulExecutor(worker, 1, shared_kwargs={"device": "x"}, engine=engine) as executor:
            assert executor.submit(get_worker).result(_PATIENCE) == {"device": "x"}
            error = executor.submit(call_worker, 1).exception(_PATIENCE)
            assert type(error) is TypeError
            assert "this one is a dict, which can't be called" in str(error)


def test_arguments_are_pickled_at_once(scene: Scene) -> None:
    with StatefulExecutor(n_jobs=1) as executor:
        blocker = executor.submit(wait_at, scene.gate())
        items = [1, 2]
        future = executor.submit(sum, items)
        items.append(100)
        scene.gate().open()
        assert future.result(_PATIENCE) == 3
        blocker.result(_PATIENCE)


@engines
def test_callbacks_may_submit(engine: str) -> None:
    second: Future[int] = Future()
    with StatefulExecutor(n_jobs=1, engine=engine) as executor:

        def go_on(first: Future[int]) -> None:
            executor.submit(abs, first.result() - 1).add_done_callback(lambda done: second.set_result(done.result()))

        executor.submit(abs, -3).add_done_callback(go_on)
        assert second.result(_PATIENCE) == 2


@engines
def test_several_threads_submit(engine: str) -> None:
    sums: list[int] = []

    def use(executor: StatefulExecutor, start: int) -> None:
        sums.append(sum(executor.submit(abs, n).result(_PATIENCE) for n in range(start, start + 20)))

    with StatefulExecutor(n_jobs=2, engine=engine) as executor:
        threads = [threading.Thread(target=use, args=(executor, 100 * n)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(_PATIENCE)
    assert sorted(sums) == [sum(range(100 * n, 100 * n + 20)) for n in range(4)]


def use_inner_executor(engine: str) -> Any:
    with StatefulExecutor(Echo, 1, shared_kwargs={"tag": "inner"}, engine=engine) as inner:
        return get_worker().tag, inner.submit(tag_of_worker).result(_PATIENCE), get_worker().tag


@engines
@pytest.mark.parametrize("inner", ["loky", "threads", "inline"])
def test_executors_nest(engine: str, inner: str) -> None:
    with StatefulExecutor(Echo, 1, shared_kwargs={"tag": "outer"}, engine=engine) as executor:
        assert executor.submit(use_inner_executor, inner).result(_PATIENCE) == ("outer", "inner", "outer")


# --- futures ------------------------------------------------------------------------------------------


@parallel_engines
def test_a_queued_call_can_be_cancelled_and_a_running_one_cannot(engine: str, scene: Scene) -> None:
    with StatefulExecutor(n_jobs=1, engine=engine) as executor:
        running = executor.submit(wait_at, scene.gate(), scene.gate("started"))
        queued = executor.submit(scene.log().note, "ran")
        last = executor.submit(abs, -1)
        scene.gate("started").wait()
        assert running.running()
        assert not running.cancel()
        assert queued.cancel()
        scene.gate().open()
        assert last.result(_PATIENCE) == 1
        assert queued.cancelled()
    assert scene.log().lines == []


class Special(Exception):  # noqa: N818 - a user's own name
    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code

    def __reduce__(self) -> Any:
        return Special, (self.code,)


def fail_specially() -> NoReturn:
    try:
        raise KeyError("inner")
    except KeyError as error:
        raise Special(7) from error


@engines
def test_exceptions_arrive_with_attributes_note_and_cause(engine: str) -> None:
    with StatefulExecutor(n_jobs=1, engine=engine) as executor:
        error = executor.submit(fail_specially).exception(_PATIENCE)
        (info,) = executor.workers()
        assert type(error) is Special
        assert error.code == 7
        assert error.__notes__ == [f"[joblib_stateful: call, slot 0, pid {info.pid}]"]
        if engine == "loky":
            assert isinstance(error.__cause__, errors.RemoteTraceback)
            assert "in fail_specially" in str(error.__cause__)
            assert "KeyError: 'inner'" in str(error.__cause__)
        else:
            assert isinstance(error.__cause__, KeyError)


class Unpicklable:
    def __reduce__(self) -> NoReturn:
        raise TypeError("not to be pickled")


def refuse() -> NoReturn:
    raise ValueError("not to be loaded")


class Unloadable:
    def __reduce__(self) -> Any:
        return refuse, ()


@pytest.mark.parametrize("bad", [Unpicklable, Unloadable])
@pytest.mark.parametrize("where", ["argument", "function", "result"])
def test_what_cannot_travel_is_the_error_of_its_future(bad: type, where: str, scene: Scene) -> None:
    def run(value: Any) -> Any:
        return value

    with StatefulExecutor(Echo, 1, shared_kwargs={"log": scene.log()}) as executor:
        if where == "argument":
            future = executor.submit(run, bad())
        elif where == "function":
            future = executor.submit(partial(run, bad()))
        else:
            future = executor.submit(bad)
        other = executor.submit(call_worker, 1)
        error = future.exception(_PATIENCE)
        assert isinstance(error, errors.TransferError)
        assert error.what == ("result" if where == "result" else "item")
        assert ("not to be pickled" if bad is Unpicklable else "not to be loaded") in str(error)
        assert error.__cause__ is not None
        assert other.result(_PATIENCE) == (None, 1)
    assert count(scene.log(), "built") == 1


class Stubborn(Exception):  # noqa: N818 - a user's own name
    def __init__(self, one: int, two: int) -> None:
        super().__init__("needs two")

    def __reduce__(self) -> Any:
        return Stubborn, (1,)


def raise_stubborn() -> NoReturn:
    raise Stubborn(1, 2)


def test_an_exception_that_cannot_be_rebuilt_is_told_of() -> None:
    with StatefulExecutor(n_jobs=1) as executor:
        error = executor.submit(raise_stubborn).exception(_PATIENCE)
    assert isinstance(error, errors.RemoteError)
    assert error.type_name == "test_executor.Stubborn"
    assert error.message == "needs two"
    assert "in raise_stubborn" in error.remote_traceback


def throw(kind: type[BaseException]) -> NoReturn:
    raise kind("thrown")


@engines
@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, StopIteration, GeneratorExit])
def test_any_exception_is_the_error_of_its_future(engine: str, kind: type[BaseException], scene: Scene) -> None:
    if engine == "inline" and kind is KeyboardInterrupt:
        pytest.skip("in the caller's own thread it is the caller's own Ctrl-C; see the next test")
    with StatefulExecutor(Echo, 1, shared_kwargs={"log": scene.log()}, engine=engine) as executor:
        assert type(executor.submit(throw, kind).exception(_PATIENCE)) is kind
        assert executor.submit(call_worker, 1).result(_PATIENCE) == (None, 1)
    assert count(scene.log(), "built") == 1


def test_ctrl_c_in_an_inline_call_reaches_the_caller(scene: Scene) -> None:
    executor = StatefulExecutor(Echo, 1, shared_kwargs={"log": scene.log()}, engine="inline")
    with pytest.raises(KeyboardInterrupt):
        executor.submit(throw, KeyboardInterrupt)
    assert executor.submit(call_worker, 1).result(_PATIENCE) == (None, 1)
    executor.shutdown()
    assert count(scene.log(), "built") == 1


def test_ctrl_c_while_inline_work_is_handed_out_loses_no_slot(run_program: RunProgram) -> None:
    done = run_program(program_text("executor/is_interrupted_as_inline_work_is_handed_out"), limit=30)
    names = ("submit", "built", "finished", "drop")
    assert (done.code, done.err) == (0, "")
    assert done.out == "".join(f"{name} interrupted\nA B C\n" for name in names)


def test_ctrl_c_in_an_inline_close_reaches_the_caller() -> None:
    executor = StatefulExecutor(Closing, 1, engine="inline")
    executor.warm_up()
    with pytest.raises(KeyboardInterrupt):
        executor.shutdown()
    assert [info.state for info in executor.workers()] == ["empty"]


class Closing:
    """Is interrupted by the user when it is closed."""

    def close(self) -> None:
        signal.raise_signal(signal.SIGINT)


# --- shutdown -----------------------------------------------------------------------------------------


@engines
def test_after_shutdown_nothing_is_accepted(engine: str) -> None:
    executor = StatefulExecutor(Echo, 1, engine=engine)
    executor.submit(call_worker, 1).result(_PATIENCE)
    executor.shutdown()
    executor.shutdown()  # more than once is fine
    for forbidden in (lambda: executor.submit(abs, 1), executor.warm_up, lambda: executor.map(abs, [1])):
        with pytest.raises(RuntimeError) as caught:
            forbidden()
        assert type(caught.value) is errors.ShutdownError
    assert [info.state for info in executor.workers()] == ["empty"]


@engines
def test_after_shutdown_nothing_is_accepted_of_a_finaliser_either(engine: str) -> None:
    with StatefulExecutor(factory(lambda: abs), 1, engine=engine) as executor:
        pass
    # Which may strike where its thread holds one of our locks, and then nothing is waited for.
    with _locks.make_lock(), pytest.raises(errors.ShutdownError):
        executor.submit(abs, 1)


@engines
def test_shutdown_of_an_executor_that_did_nothing(engine: str) -> None:
    executor = StatefulExecutor(Echo, 2, engine=engine)
    executor.shutdown()
    assert [info.pid for info in executor.workers()] == [None, None]


@parallel_engines
def test_shutdown_waits_for_all_that_was_submitted(engine: str, scene: Scene) -> None:
    executor = StatefulExecutor(Echo, 1, shared_kwargs={"log": scene.log()}, engine=engine)
    futures = [executor.submit(wait_at, scene.gate(), scene.gate("started")) for _ in range(3)]
    scene.gate("started").wait()
    threading.Thread(target=scene.gate().open).start()
    executor.shutdown(wait=True)
    assert all(future.done() for future in futures)
    pid = futures[0].result()
    assert engine == "threads" or not is_alive(pid)
    assert count(scene.log(), "closed") == 1


@parallel_engines
def test_shutdown_without_waiting_lets_the_work_be_finished(engine: str, scene: Scene) -> None:
    executor = StatefulExecutor(Echo, 1, shared_kwargs={"log": scene.log()}, engine=engine)
    futures = [executor.submit(wait_at, scene.gate(), scene.gate("started")) for _ in range(3)]
    scene.gate("started").wait()
    executor.shutdown(wait=False)
    assert not any(future.done() for future in futures)
    with pytest.raises(errors.ShutdownError):
        executor.submit(abs, 1)
    scene.gate().open()
    assert len({future.result(_PATIENCE) for future in futures}) == 1
    executor.shutdown(wait=True)
    assert count(scene.log(), "closed") == 1


@parallel_engines
def test_cancel_futures_cancels_what_has_not_started(engine: str, scene: Scene) -> None:
    executor = StatefulExecutor(n_jobs=1, engine=engine)
    running = executor.submit(wait_at, scene.gate(), scene.gate("started"))
    queued = [executor.submit(scene.log().note, n) for n in range(5)]
    scene.gate("started").wait()
    executor.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in queued)
    with pytest.raises(CancelledError):
        queued[0].result(_PATIENCE)
    assert not running.done()
    scene.gate().open()
    running.result(_PATIENCE)
    executor.shutdown()
    assert scene.log().lines == []


@parallel_engines
def test_kill_workers_does_not_wait_for_what_runs(engine: str, scene: Scene) -> None:
    executor = StatefulExecutor(Echo, 1, shared_kwargs={"log": scene.log()}, engine=engine)
    running = executor.submit(wait_at, scene.gate(), scene.gate("started"))
    queued = executor.submit(scene.log().note, "ran")
    scene.gate("started").wait()
    (info,) = executor.workers()
    started = time.monotonic()
    executor.shutdown(kill_workers=True)
    assert time.monotonic() - started < 5
    assert isinstance(running.exception(0), errors.ShutdownError)
    assert queued.cancelled()
    assert engine == "threads" or not is_alive(info.pid or 0)
    scene.gate().open()  # a thread can't be killed
    assert [line.split()[0] for line in scene.log().lines] == ["built"]


@engines
def test_kill_workers_of_idle_ones_closes_nothing(engine: str, scene: Scene) -> None:
    executor = StatefulExecutor(Echo, 1, shared_kwargs={"log": scene.log()}, engine=engine)
    executor.warm_up()
    executor.shutdown(kill_workers=True)
    assert count(scene.log(), "built") == 1
    assert count(scene.log(), "closed") == 0


@parallel_engines
def test_a_with_block_waits_also_after_an_exception(engine: str, scene: Scene) -> None:
    with pytest.raises(Special), StatefulExecutor(n_jobs=1, engine=engine) as executor:
        future = executor.submit(wait_at, scene.gate(), scene.gate("started"))
        scene.gate("started").wait()
        threading.Thread(target=scene.gate().open).start()
        raise Special(1)
    assert future.done()
    future.result(0)


def test_a_with_block_kills_after_ctrl_c(scene: Scene) -> None:
    with pytest.raises(KeyboardInterrupt), StatefulExecutor(n_jobs=1) as executor:
        running = executor.submit(wait_at, scene.gate(), scene.gate("started"))
        queued = executor.submit(abs, 1)
        scene.gate("started").wait()
        raise KeyboardInterrupt
    assert isinstance(running.exception(0), errors.ShutdownError)
    assert queued.cancelled()


@parallel_engines
def test_an_executor_dropped_without_shutdown_finishes_and_its_workers_end(engine: str, scene: Scene) -> None:
    executor = StatefulExecutor(Echo, 1, shared_kwargs={"log": scene.log()}, engine=engine)
    futures = [executor.submit(wait_at, scene.gate()) for _ in range(2)]
    del executor
    gc.collect()
    scene.gate().open()
    pids = {future.result(_PATIENCE) for future in futures}
    assert len(pids) == 1
    scene.log().wait_for(2)
    assert [line.split()[0] for line in scene.log().lines] == ["built", "closed"]
    # That its process or thread ends is what the fixture for all tests looks at.


def test_the_end_of_the_program_finishes_what_was_submitted_and_refuses_more(run_program: RunProgram) -> None:
    done = run_program(program_text("executor/ends_with_a_call_under_way"))
    assert (done.code, done.err) == (0, "")
    first, second = done.out.splitlines()
    assert first == "finished"
    assert second.startswith("ShutdownError cannot schedule new futures after shutdown")


# --- workers(), warm_up -------------------------------------------------------------------------------


@engines
def test_workers_tell_what_is_known_of_each_slot(engine: str) -> None:
    own = [{"tag": "a"}, {"tag": "b"}]
    with StatefulExecutor(Echo, shared_kwargs={"log": None}, worker_kwargs=own, engine=engine) as executor:
        for index, info in enumerate(executor.workers()):
            assert (info.index, info.n_jobs, info.state, info.pid) == (index, 2, "empty", None)
            assert info.kwargs == {"log": None, **own[index]}
            assert (info.n_done, info.n_restarts, info.n_builds) == (0, 0, 0)
            assert (info.init_seconds, info.busy_seconds) == (None, 0.0)
        executor.warm_up()
        first, second = executor.workers()
        assert first.state == second.state == "idle"
        assert first.init_seconds is not None
        assert first.init_seconds >= 0
        assert executor.submit(os.getpid).result(_PATIENCE) in (first.pid, second.pid)
        assert (first.pid == os.getpid()) is (engine != "loky")
        assert (first.pid == second.pid) is (engine != "loky")
        for _ in range(4):
            executor.submit(time.sleep, 0.01).result(_PATIENCE)
        infos = executor.workers()
        assert sum(info.n_done for info in infos) == 5
        assert sum(info.busy_seconds for info in infos) >= 0.04
        assert [info.n_builds for info in infos] == [1, 1]
        assert [info.n_restarts for info in infos] == [0, 0]


@parallel_engines
def test_workers_show_what_is_under_way(engine: str, scene: Scene) -> None:
    class Slow(Echo):
        def __init__(self) -> None:
            super().__init__()
            wait_at(scene.gate("build"), scene.gate("building"))

    with StatefulExecutor(Slow, 1, engine=engine) as executor:
        future = executor.submit(wait_at, scene.gate(), scene.gate("started"))
        scene.gate("building").wait()
        assert [info.state for info in executor.workers()] == ["building"]
        scene.gate("build").open()
        scene.gate("started").wait()
        assert [(info.state, info.n_done) for info in executor.workers()] == [("busy", 0)]
        scene.gate().open()
        future.result(_PATIENCE)


@parallel_engines
def test_warm_up_builds_all_objects_at_the_same_time(engine: str, scene: Scene) -> None:
    class Together(Echo):
        def __init__(self, log: Log, meeting: Meeting) -> None:
            super().__init__(log)
            meeting.join()

    kwargs = {"log": scene.log(), "meeting": scene.meeting(3)}
    with StatefulExecutor(Together, 3, shared_kwargs=kwargs, engine=engine) as executor:
        executor.warm_up()
        assert [info.n_builds for info in executor.workers()] == [1, 1, 1]
        executor.warm_up()
        assert count(scene.log(), "built") == 3


@engines
def test_warm_up_builds_every_object(engine: str, scene: Scene) -> None:
    with StatefulExecutor(Echo, 3, shared_kwargs={"log": scene.log()}, engine=engine) as executor:
        executor.warm_up()
        assert count(scene.log(), "built") == 3
        assert [info.state for info in executor.workers()] == ["idle"] * 3


class Picky(Echo):
    def __init__(self, log: Log | None = None, tag: Any = None, bad: bool = False, allowed: Gate | None = None) -> None:  # noqa: FBT001, FBT002 - passed by name
        super().__init__(log, tag)
        if bad and not (allowed and allowed.path.exists()):
            raise Special(3)


@engines
def test_warm_up_raises_what_a_constructor_raised_and_keeps_the_others(engine: str, scene: Scene) -> None:
    shared = {"log": scene.log(), "allowed": scene.gate()}
    own: list[dict[str, Any]] = [{"tag": "good"}, {"tag": "poor", "bad": True}]
    with StatefulExecutor(Picky, shared_kwargs=shared, worker_kwargs=own, engine=engine) as executor:
        with pytest.raises(errors.WorkerInitError, match="slot 1") as caught:
            executor.warm_up()
        assert caught.value.slot == 1
        assert set(caught.value.kwargs_keys) == {"log", "allowed", "tag", "bad"}
        assert type(caught.value.__cause__) is Special
        assert caught.value.__cause__.code == 3
        scene.gate().open()  # the user has freed the GPU
        executor.warm_up()
        assert [info.state for info in executor.workers()] == ["idle", "idle"]
    assert count(scene.log(), "built good") == 1
    assert count(scene.log(), "built poor") == 2


@engines
def test_a_constructor_that_raises_is_the_error_of_what_waits_for_it(engine: str, scene: Scene) -> None:
    kwargs = {"log": scene.log(), "bad": True, "allowed": scene.gate()}
    with StatefulExecutor(Picky, 1, shared_kwargs=kwargs, engine=engine) as executor:
        error = executor.submit(call_worker, 1).exception(_PATIENCE)
        assert isinstance(error, errors.WorkerInitError)
        assert type(error.__cause__) is Special
        assert count(scene.log(), "built") == 1  # not tried again for this call
        scene.gate().open()
        assert executor.submit(call_worker, 2).result(_PATIENCE) == (None, 2)


# --- time limits --------------------------------------------------------------------------------------


@engines
def test_idle_objects_are_closed_and_built_again_on_demand(engine: str, scene: Scene) -> None:
    with StatefulExecutor(Echo, 1, shared_kwargs={"log": scene.log()}, engine=engine, idle_timeout=0.05) as executor:
        assert executor.submit(call_worker, 1).result(_PATIENCE) == (None, 1)
        scene.log().wait_for(2)
        assert [line.split()[0] for line in scene.log().lines] == ["built", "closed"]
        assert executor.submit(call_worker, 2).result(_PATIENCE) == (None, 2)
        (info,) = executor.workers()
        assert (info.n_done, info.n_builds, info.n_restarts) == (2, 2, 0)


@engines
def test_objects_that_were_only_warmed_up_are_let_go_as_well(engine: str, scene: Scene) -> None:
    with StatefulExecutor(Echo, 2, shared_kwargs={"log": scene.log()}, engine=engine, idle_timeout=0.05) as executor:
        executor.warm_up()
        scene.log().wait_for(4)
        assert count(scene.log(), "closed") == 2


@parallel_engines
def test_a_busy_worker_is_not_idle(engine: str, scene: Scene) -> None:
    kwargs = {"log": scene.log()}
    with StatefulExecutor(Echo, 2, shared_kwargs=kwargs, engine=engine, idle_timeout=0.05) as executor:
        busy = executor.submit(wait_at, scene.gate(), scene.gate("started"))
        scene.gate("started").wait()
        executor.submit(call_worker, 1).result(_PATIENCE)
        time.sleep(0.2)  # four times the timeout: nothing happens that could be waited for
        assert not busy.done()
        scene.gate().open()
        busy.result(_PATIENCE)


@engines
def test_map_reads_no_more_than_its_buffer(engine: str) -> None:
    read: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(10):
            read.append(number)
            yield number

    with StatefulExecutor(n_jobs=2, engine=engine) as executor:
        results = executor.map(pow, numbers(), [2] * 9, buffersize=3)
        assert len(read) == 3
        assert [next(results), next(results)] == [0, 1]
        assert len(read) == 5
        assert list(results) == [number**2 for number in range(2, 9)]
        for wrong, error in ((0, ValueError), (1.5, TypeError)):
            with pytest.raises(error, match="buffersize must be"):
                executor.map(abs, [1], buffersize=wrong)  # type: ignore[arg-type]  # that is what is tried


def test_map_with_a_buffer_keeps_its_time_limit_and_leaves_nothing_queued(scene: Scene) -> None:
    with StatefulExecutor(n_jobs=1, engine="threads") as executor:
        results = executor.map(lambda _: scene.gate().wait(), range(5), buffersize=4, timeout=0.01)
        with pytest.raises(FutureTimeoutError):
            next(results)
        scene.gate().open()
        assert executor.submit(abs, -1).result(_PATIENCE) == 1


def test_without_an_idle_timeout_objects_are_kept(run_program: RunProgram) -> None:
    # In a program of its own: workers that earlier tests have shared are let go by the same clock.
    done = run_program(
        """
        import threading
        from joblib_stateful import StatefulExecutor

        with StatefulExecutor(dict, 1, engine="threads") as executor:
            executor.warm_up()
            print([thread.name for thread in threading.enumerate() if "clock" in thread.name])
        """
    )
    assert done.out.split() == ["[]"], done


def test_a_call_over_its_time_costs_its_own_worker_only(scene: Scene) -> None:
    own = [{"tag": 0}, {"tag": 1}]
    kwargs = {"log": scene.log()}
    with StatefulExecutor(Echo, shared_kwargs=kwargs, worker_kwargs=own, item_timeout=0.3) as executor:
        executor.warm_up()
        pids = [info.pid for info in executor.workers()]
        future = executor.submit(wait_at, scene.gate())
        error = future.exception(_PATIENCE)
        assert isinstance(error, errors.ItemTimeoutError)
        assert isinstance(error, TimeoutError)
        assert (error.index, error.timeout) == (None, 0.3)
        assert error.pid == pids[error.slot]
        executor.warm_up()
        infos = executor.workers()
        assert infos[error.slot].n_restarts == 1
        assert infos[1 - error.slot].pid == pids[1 - error.slot]
        assert infos[error.slot].pid != pids[error.slot]
        assert executor.submit(abs, -1).result(_PATIENCE) == 1
    assert count(scene.log(), f"built {error.slot}") == 2
    assert count(scene.log(), f"built {1 - error.slot}") == 1
    assert count(scene.log(), "closed") == 2  # not that of the killed one


def test_construction_does_not_count_as_item_time(scene: Scene) -> None:
    class Slow(Echo):
        def __init__(self) -> None:
            super().__init__()
            time.sleep(0.6)

    with StatefulExecutor(Slow, 1, item_timeout=0.5) as executor:
        futures = [executor.submit(call_worker, n) for n in range(3)]
        assert [future.result(_PATIENCE) for future in futures] == [(None, n) for n in range(3)]


def test_a_constructor_over_its_time_is_killed(scene: Scene) -> None:
    class Hanging(Echo):
        def __init__(self, log: Log, gate: Gate) -> None:
            super().__init__(log)
            gate.wait()

    kwargs = {"log": scene.log(), "gate": scene.gate()}
    # Construction includes the import of what the class needs.
    with StatefulExecutor(Hanging, 1, shared_kwargs=kwargs, init_timeout=2) as executor:
        error = executor.submit(call_worker, 1).exception(_PATIENCE)
        assert isinstance(error, errors.WorkerInitError)
        assert "init_timeout=2" in str(error)
        assert error.slot == 0
        assert count(scene.log(), "built") == 1
        with pytest.raises(errors.WorkerInitError, match="init_timeout=2"):
            executor.warm_up()
        scene.gate().open()
        assert executor.submit(call_worker, 2).result(_PATIENCE) == (None, 2)


@pytest.mark.parametrize("engine", ["threads", "inline"])
def test_item_timeout_needs_processes(engine: str) -> None:
    with pytest.raises(ValueError, match="thread can't be killed"):
        StatefulExecutor(Echo, 1, item_timeout=1, engine=engine)


# --- crashes ------------------------------------------------------------------------------------------


def test_a_crash_leaves_the_others_their_objects(scene: Scene) -> None:
    own = [{"tag": 0}, {"tag": 1}]
    with StatefulExecutor(Echo, shared_kwargs={"log": scene.log()}, worker_kwargs=own) as executor:
        executor.warm_up()
        pids = [info.pid for info in executor.workers()]
        error = executor.submit(die).exception(_PATIENCE)
        assert isinstance(error, errors.WorkerCrashedError)
        assert (error.index, error.pid, error.exitcode) == (None, pids[error.slot], 3)
        assert "exit code 3" in str(error)
        futures = [executor.submit(join_and_tag, scene.meeting(2)) for _ in range(2)]
        assert {future.result(_PATIENCE) for future in futures} == {0, 1}
        infos = executor.workers()
        assert [info.n_restarts for info in infos] == [int(slot == error.slot) for slot in range(2)]
        assert infos[1 - error.slot].pid == pids[1 - error.slot]
    assert count(scene.log(), f"built {error.slot}") == 2
    assert count(scene.log(), f"built {1 - error.slot}") == 1


def die_once(log: Log) -> list[str]:
    log.note(get_worker_info().index)
    if len(log.lines) == 1:
        die()
    return log.lines


def test_a_retry_goes_to_another_slot(scene: Scene) -> None:
    with StatefulExecutor(n_jobs=2, retries=1) as executor:
        first, second = executor.submit(die_once, scene.log()).result(_PATIENCE)
        assert first != second


def note_and_die(log: Log) -> NoReturn:
    log.note("tried")
    die()


def test_a_call_that_kills_every_worker_is_tried_once_and_retries_times(scene: Scene) -> None:
    with StatefulExecutor(n_jobs=2, retries=2, max_restarts=0) as executor:
        error = executor.submit(note_and_die, scene.log()).exception(_PATIENCE)
        assert isinstance(error, errors.WorkerCrashedError)
        assert executor.submit(abs, -1).result(_PATIENCE) == 1
    assert len(scene.log().lines) == 3


def note_and_wait(log: Log, gate: Gate) -> None:
    log.note("tried")
    gate.wait()


def test_a_call_over_its_time_is_tried_again_as_well(scene: Scene) -> None:
    with StatefulExecutor(n_jobs=1, retries=1, item_timeout=2) as executor:  # which includes importing this module
        error = executor.submit(note_and_wait, scene.log(), scene.gate()).exception(_PATIENCE)
        assert isinstance(error, errors.ItemTimeoutError)
    assert len(scene.log().lines) == 2


def note_and_raise(log: Log) -> NoReturn:
    log.note("tried")
    raise Special(1)


def test_exceptions_are_never_retried(scene: Scene) -> None:
    with StatefulExecutor(n_jobs=2, retries=5) as executor:
        assert type(executor.submit(note_and_raise, scene.log()).exception(_PATIENCE)) is Special
    assert scene.log().lines == ["tried"]


class Doomed(Echo):
    def __init__(self, log: Log, allowed: Gate) -> None:
        super().__init__(log)
        if not allowed.path.exists():
            die()


@pytest.mark.parametrize("max_restarts", [0, 2])
def test_a_slot_that_dies_in_construction_gives_up(max_restarts: int, scene: Scene) -> None:
    kwargs = {"log": scene.log(), "allowed": scene.gate()}
    with StatefulExecutor(Doomed, 1, shared_kwargs=kwargs, max_restarts=max_restarts) as executor:
        futures = [executor.submit(call_worker, n) for n in range(3)]
        for future in futures:
            error = future.exception(_PATIENCE)
            assert isinstance(error, errors.WorkerInitError)
            assert f"max_restarts={max_restarts}" in str(error)
        assert count(scene.log(), "built") == max_restarts + 1
        with pytest.raises(errors.WorkerInitError):
            executor.warm_up()
        assert count(scene.log(), "built") == 2 * (max_restarts + 1)
        scene.gate().open()
        assert executor.submit(call_worker, 1).result(_PATIENCE) == (None, 1)


def test_an_idle_worker_that_was_killed_is_replaced(scene: Scene) -> None:
    with StatefulExecutor(Echo, 1, shared_kwargs={"log": scene.log()}) as executor:
        executor.warm_up()
        for n in range(3):
            (info,) = executor.workers()
            assert info.pid is not None
            os.kill(info.pid, signal.SIGKILL)
            assert executor.submit(call_worker, n).result(_PATIENCE) == (None, n)
        (info,) = executor.workers()
        assert (info.n_restarts, info.n_builds, info.n_done) == (3, 4, 3)


# --- recycling and closing ----------------------------------------------------------------------------


@engines
def test_workers_are_recycled_and_nothing_is_lost(engine: str, scene: Scene) -> None:
    kwargs = {"log": scene.log()}
    with StatefulExecutor(Echo, 2, shared_kwargs=kwargs, engine=engine, max_tasks_per_worker=3) as executor:
        futures = [executor.submit(call_worker, n) for n in range(12)]
        assert [future.result(_PATIENCE) for future in futures] == [(None, n) for n in range(12)]
    built, closed = count(scene.log(), "built"), count(scene.log(), "closed")
    assert 4 <= built <= 5
    assert closed == built
    infos = executor.workers()
    assert sum(info.n_done for info in infos) == 12
    assert sum(info.n_builds for info in infos) == built
    assert [info.n_restarts for info in infos] == [0, 0]


def test_each_recycled_worker_is_a_new_process() -> None:
    with StatefulExecutor(n_jobs=1, max_tasks_per_worker=1) as executor:
        pids = [executor.submit(os.getpid).result(_PATIENCE) for _ in range(3)]
    assert len(set(pids)) == 3


class Context:
    def __init__(self, log: Log) -> None:
        self.log = log

    def __enter__(self) -> NoReturn:
        raise AssertionError("the constructor has built it already")

    def __call__(self) -> None: ...

    def __exit__(self, *exception: object) -> None:
        self.log.note(f"left {exception} {os.getpid()}")


@engines
def test_exit_is_called_where_there_is_no_close(engine: str, scene: Scene) -> None:
    with StatefulExecutor(Context, 1, shared_kwargs={"log": scene.log()}, engine=engine) as executor:
        pid = executor.submit(os.getpid).result(_PATIENCE)
        assert scene.log().lines == []
    assert scene.log().lines == [f"left (None, None, None) {pid}"]


class Both(Context):
    def close(self) -> None:
        self.log.note("closed")


@engines
def test_close_is_called_in_preference_to_exit(engine: str, scene: Scene) -> None:
    with StatefulExecutor(Both, 1, shared_kwargs={"log": scene.log()}, engine=engine) as executor:
        executor.warm_up()
    assert scene.log().lines == ["closed"]


class BadlyClosed(Echo):
    def close(self) -> NoReturn:
        super().close()
        raise Special(9)


@engines
def test_a_close_that_raises_is_logged_and_no_more(engine: str, scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.WARNING, "joblib_stateful"),
        StatefulExecutor(BadlyClosed, 1, shared_kwargs={"log": scene.log()}, engine=engine) as executor,
    ):
        assert executor.submit(call_worker, 1).result(_PATIENCE) == (None, 1)
    assert count(scene.log(), "closed") == 1
    (record,) = [record for record in caplog.records if record.name == "joblib_stateful"]
    assert record.levelno == logging.WARNING
    assert "close() of the worker in slot 0 raised" in record.getMessage()
    assert "code 9" in record.getMessage()


def test_close_runs_in_the_workers_own_process_and_thread(scene: Scene) -> None:
    class Bound(Echo):
        def __init__(self, log: Log) -> None:
            super().__init__(log)
            self.thread = threading.get_ident()

        def close(self) -> None:
            assert self.log is not None
            self.log.note(f"closed {os.getpid()} {self.thread == threading.get_ident()}")

    for engine in ("loky", "threads"):
        with StatefulExecutor(Bound, 1, shared_kwargs={"log": scene.log(engine)}, engine=engine) as executor:
            pid = executor.submit(os.getpid).result(_PATIENCE)
        assert scene.log(engine).lines[-1] == f"closed {pid} True"


# --- environment --------------------------------------------------------------------------------------


def test_each_worker_has_its_environment_before_it_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "seen_at_import.py").write_text(
        "import os\n"
        "DEVICE = os.environ.get('FAKE_DEVICES')\n"
        "class Model:\n"
        "    def __call__(self, _):\n"
        "        return DEVICE\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("FAKE_DEVICES", "all")
    monkeypatch.delitem(sys.modules, "seen_at_import", raising=False)
    import seen_at_import  # type: ignore[import-not-found]  # written above

    assert seen_at_import.DEVICE == "all"
    env = [{"FAKE_DEVICES": "0"}, {"FAKE_DEVICES": "1"}]
    meeting = Meeting(tmp_path / "meeting", 2)
    with StatefulExecutor(seen_at_import.Model, 2, worker_env=env) as executor:

        def see() -> tuple[int, Any]:
            meeting.join()
            return get_worker_info().index, call_worker(None)

        futures = [executor.submit(see) for _ in range(2)]
        assert {future.result(_PATIENCE) for future in futures} == {(0, "0"), (1, "1")}
    assert os.environ["FAKE_DEVICES"] == "all"


# --- bad arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"worker": abs}, TypeError, "stateless function"),
        ({"worker": lambda x: x}, TypeError, "submit that instead"),
        ({"worker": 3}, TypeError, "must be a class"),
        ({"worker": Echo, "n_jobs": 0}, ValueError, "n_jobs=0 has no meaning"),
        ({"worker": Echo, "n_jobs": 1.5}, TypeError, "n_jobs must be an integer"),
        ({"worker": Echo, "n_jobs": True}, TypeError, "n_jobs must be an integer"),
        ({"worker": Echo, "n_jobs": 2, "worker_kwargs": [{}] * 3}, ValueError, "n_jobs=2, but worker_kwargs has 3"),
        ({"worker": Echo, "worker_kwargs": []}, ValueError, "worker_kwargs is empty"),
        ({"worker": Echo, "worker_kwargs": {"tag": 1}}, TypeError, "list with one dict per worker"),
        ({"worker": Echo, "worker_kwargs": [{1: 2}]}, TypeError, r"worker_kwargs\[0\]"),
        ({"worker": Echo, "shared_kwargs": [("tag", 1)]}, TypeError, "shared_kwargs must be a dict"),
        ({"worker": Echo, "shared_kwargs": {"tga": 1}}, TypeError, "unexpected keyword argument 'tga'"),
        ({"worker": Echo, "shared_kwargs": {"tag": Unpicklable()}}, TypeError, "kwarg 'tag' can't be pickled"),
        ({"shared_kwargs": {"tag": 1}}, TypeError, "kwargs"),
        ({"worker": Echo, "n_jobs": 2, "worker_env": [{}]}, ValueError, "worker_env has 1 entry"),
        ({"worker": Echo, "n_jobs": 1, "worker_env": {"A": "1"}}, TypeError, "worker_env must be a list"),
        ({"worker": Echo, "n_jobs": 1, "worker_env": [{"A": 1}]}, TypeError, "Write 'A': \"1\""),
        ({"worker": Echo, "n_jobs": 1, "worker_env": [{}], "engine": "threads"}, ValueError, "worker_env"),
        ({"worker": Echo, "engine": "lokey"}, ValueError, "There is no engine 'lokey'"),
        ({"worker": Echo, "engine": 5}, TypeError, "engine must be one of"),
        ({"worker": Echo, "item_timeout": 0}, ValueError, "item_timeout must be more than 0"),
        ({"worker": Echo, "item_timeout": "1"}, TypeError, "item_timeout must be a number of seconds"),
        ({"worker": Echo, "init_timeout": -1}, ValueError, "init_timeout"),
        ({"worker": Echo, "idle_timeout": 0}, ValueError, "idle_timeout"),
        ({"worker": Echo, "retries": -1}, ValueError, "retries must be 0 or more"),
        ({"worker": Echo, "retries": 1.0}, TypeError, "retries"),
        ({"worker": Echo, "max_restarts": -1}, ValueError, "max_restarts"),
        ({"worker": Echo, "max_tasks_per_worker": 0}, ValueError, "max_tasks_per_worker"),
        ({"worker": Echo, "inner_max_num_threads": 0}, ValueError, "inner_max_num_threads"),
        (
            {"inner_max_num_threads": 2, "engine": "threads"},
            ValueError,
            "inner_max_num_threads=2 .*'threads' starts none",
        ),
        ({"init_timeout": 5, "engine": "inline"}, ValueError, "init_timeout=5 can't be kept by engine='inline'"),
    ],
)
def test_bad_arguments_are_refused_at_once(kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        StatefulExecutor(**kwargs)


def test_n_jobs_has_joblibs_meaning() -> None:
    cpus = joblib.cpu_count()
    for n_jobs, expected in [(None, cpus), (-1, cpus), (-2, max(cpus - 1, 1)), (-1000, 1), (3, 3)]:
        assert StatefulExecutor(Echo, n_jobs, engine="inline").n_jobs == expected
    for n_jobs, expected in [(None, 3), (-1, 3), (3, 3)]:
        assert StatefulExecutor(Echo, n_jobs, worker_kwargs=[{}] * 3, engine="inline").n_jobs == expected


def test_the_repr_tells_what_it_is() -> None:
    assert repr(StatefulExecutor(Echo, 2, engine="threads")) == "<StatefulExecutor Echo n_jobs=2 engine='threads'>"
    assert repr(StatefulExecutor(n_jobs=1)) == "<StatefulExecutor no object n_jobs=1 engine='loky'>"


def test_its_repr_says_what_it_is_at() -> None:
    gate = threading.Event()
    with StatefulExecutor(n_jobs=2, engine="threads") as executor:
        executor.warm_up()
        futures = [executor.submit(gate.wait) for _ in range(3)]
        assert repr(executor) == "<StatefulExecutor no object n_jobs=2 engine='threads': 2 busy, 1 queued>"
        gate.set()
        for future in futures:
            future.result(60)
        executor.submit(abs, -1).result(60)
    assert repr(executor) == "<StatefulExecutor no object n_jobs=2 engine='threads': shut down>"


# --- callbacks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["loky", "threads"])
def test_a_callback_that_would_wait_for_itself_is_told(engine: str, scene: Scene) -> None:
    told: list[BaseException] = []
    executor = StatefulExecutor(n_jobs=1, engine=engine)

    def end(_: Any) -> None:
        try:
            executor.shutdown(wait=True)
        except RuntimeError as error:
            told.append(error)
        scene.gate("told").open()

    future = executor.submit(scene.gate().wait)
    future.add_done_callback(end)
    scene.gate().open()
    scene.gate("told").wait()
    assert "would wait for itself" in str(told[0])
    executor.shutdown(wait=True)
    assert [info.state for info in executor.workers()] == ["empty"]


def say_when_it_ends(scene: Scene) -> int:
    def slowly() -> None:
        scene.log("ended").note("in order")

    atexit.register(slowly)
    return os.getpid()


def test_a_slow_callback_does_not_cut_a_workers_end_short(scene: Scene) -> None:
    executor = StatefulExecutor(n_jobs=1)
    executor.submit(say_when_it_ends, scene).result(_PATIENCE)
    future = executor.submit(scene.gate().wait)
    future.add_done_callback(lambda _: time.sleep(1))  # longer than a process that has lost its use may stay
    scene.gate().open()
    executor.shutdown()
    assert scene.log("ended").lines == ["in order"]
