"""Calls in one particular worker, in each of them, and calls that are stopped."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import CancelledError, Future, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from joblib_stateful import StatefulExecutor, call_worker, errors, get_worker, get_worker_info, stateful_map
from scenes import Scene, engines, new_scene, parallel_engines

if TYPE_CHECKING:
    from conftest import BuildLog, RunProgram

OWN = [{"number": number} for number in range(3)]


class Counter:
    """Counts what it is called with."""

    def __init__(self, number: int, built: BuildLog | None = None) -> None:
        if built is not None:
            built.note()
        self.number, self.seen = number, list[Any]()

    def __call__(self, item: Any) -> Any:
        self.seen.append(item)
        return self.number, item


def seen() -> list[Any]:
    return list(get_worker().seen)


def where() -> int:
    return get_worker_info().index


def fails_in(*slots: int) -> int:
    if where() in slots:
        raise KeyError(where())
    return where()


# --- one of them -----------------------------------------------------------------------------------------


@engines
def test_calls_run_in_the_worker_they_are_submitted_to_in_order(engine: str) -> None:
    with StatefulExecutor(Counter, worker_kwargs=OWN, engine=engine) as executor:
        futures = [executor.submit_to(item % 3, call_worker, item) for item in range(90)]
        assert [future.result() for future in futures] == [(item % 3, item) for item in range(90)]
        for slot in range(3):
            assert executor.submit_to(slot, seen).result() == list(range(slot, 90, 3))


@engines
@pytest.mark.parametrize(
    ("index", "error", "text"),
    [
        (3, IndexError, "There is no worker 3: this executor has 3"),
        (-1, IndexError, "There is no worker -1"),
        (True, TypeError, "an integer from 0 to 2, not True"),
        (1.0, TypeError, "an integer from 0 to 2, not 1.0"),
        (None, TypeError, "not None"),
    ],
)
def test_a_worker_that_there_is_not_is_refused(*, engine: str, index: Any, error: type[Exception], text: str) -> None:
    with StatefulExecutor(Counter, worker_kwargs=OWN, engine=engine) as executor, pytest.raises(error, match=text):
        executor.submit_to(index, where)


def test_what_can_not_be_called_is_refused_with_the_line_that_was_meant() -> None:
    with StatefulExecutor(Counter, worker_kwargs=OWN) as executor:
        with pytest.raises(
            TypeError, match=r"submit_to\(\) takes a function.*executor\.submit_to\(1, call_worker, 7\)"
        ):
            executor.submit_to(1, 7)  # type: ignore[call-overload]  # that is the point
        with pytest.raises(TypeError, match=r"run_on_all\(\) takes a function"):
            executor.run_on_all("abs")  # type: ignore[call-overload]  # that is the point


@parallel_engines
def test_other_workers_take_other_calls_while_one_is_waited_for(engine: str, tmp_path: Path) -> None:
    gate = new_scene(tmp_path).gate()
    with StatefulExecutor(Counter, worker_kwargs=OWN, engine=engine) as executor:
        blocked = executor.submit_to(0, gate.wait)
        behind = executor.submit_to(0, where)
        assert {executor.submit(where).result() for _ in range(8)} <= {1, 2}
        assert not behind.done()
        gate.open()
        assert (blocked.result(), behind.result()) == (None, 0)


def test_a_broken_worker_fails_its_own_calls_only(tmp_path: Path) -> None:
    kwargs: list[dict[str, Any]] = [{"number": 0}, {"number": 1, "built": "no log"}, {"number": 2}]
    with StatefulExecutor(Counter, worker_kwargs=kwargs) as executor:
        mine, others = executor.submit_to(1, where), [executor.submit_to(slot, where) for slot in (0, 2)]
        assert [future.result() for future in others] == [0, 2]
        assert isinstance(mine.exception(), errors.WorkerInitError)


# --- all of them -----------------------------------------------------------------------------------------


@engines
def test_a_function_runs_once_in_each_worker(engine: str, built: BuildLog) -> None:
    with StatefulExecutor(Counter, shared_kwargs={"built": built}, worker_kwargs=OWN, engine=engine) as executor:
        assert executor.run_on_all(where, build=False) == [None] * 3
        assert len(built) == 0
        assert executor.run_on_all(call_worker, "x") == [(number, "x") for number in range(3)]
        assert executor.run_on_all(seen, build=False) == [["x"]] * 3
        assert len(built) == 3


@engines
def test_the_error_of_the_lowest_slot_is_raised_with_the_others_noted(engine: str) -> None:
    with StatefulExecutor(Counter, worker_kwargs=OWN, engine=engine) as executor:
        with pytest.raises(KeyError) as caught:
            executor.run_on_all(fails_in, 1, 2)
        assert caught.value.args == (1,)
        assert any("slot 2 failed too: KeyError: 2" in note for note in caught.value.__notes__)
        assert executor.run_on_all(where) == [0, 1, 2]


@engines
def test_during_a_map_it_runs_between_items(engine: str) -> None:
    with StatefulExecutor(Counter, worker_kwargs=OWN, engine=engine) as executor:
        results = stateful_map(executor, range(300), batch_size=1, buffer=30)
        first = next(results)
        counts = executor.run_on_all(lambda: len(get_worker().seen))
        assert all(count is not None for count in counts)
        assert sum(count or 0 for count in counts) < 300
        assert [item for _, item in [first, *results]] == list(range(300))


def test_it_comes_before_what_waits_for_the_same_worker(tmp_path: Path) -> None:
    gate = new_scene(tmp_path).gate()
    with StatefulExecutor(Counter, worker_kwargs=OWN[:1]) as executor:
        blocked = executor.submit(gate.wait)
        waiting = [executor.submit_to(0, call_worker, item) for item in range(20)]
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.extend(executor.run_on_all(seen)))
        thread.start()
        while len(executor._pool._scheduler.work.jobs) < 21:
            time.sleep(0.001)  # until it waits, too
        gate.open()
        thread.join()
        assert found == [[]]
        wait([blocked, *waiting])


def test_build_must_be_a_truth_value() -> None:
    with StatefulExecutor(n_jobs=1) as executor, pytest.raises(TypeError, match="build must be True or False"):
        executor.run_on_all(where, build=1)  # type: ignore[call-overload]  # that is the point


# --- stopping --------------------------------------------------------------------------------------------


def begins(scene: Scene) -> None:
    scene.log("begun").note(os.getpid())
    threading.Event().wait()


def test_a_call_that_runs_is_ended_with_its_worker_alone(tmp_path: Path, built: BuildLog) -> None:
    scene = new_scene(tmp_path)
    with StatefulExecutor(Counter, shared_kwargs={"built": built}, worker_kwargs=OWN[:2]) as executor:
        pids = executor.run_on_all(os.getpid)
        future, waiting = executor.submit_to(1, begins, scene), executor.submit_to(1, where)
        scene.log("begun").wait_for(1)
        assert executor.stop(future) is True
        assert future.cancelled()
        assert future.done()
        with pytest.raises(CancelledError):
            future.result()
        assert waiting.result() == 1
        now = executor.run_on_all(os.getpid)
        assert (now[0] == pids[0], now[1] == pids[1]) == (True, False)
        assert [info.n_builds for info in executor.workers()] == [1, 2]
        assert executor.stop(future) is True, "as Future.cancel says of one that is cancelled already"


def test_whoever_waits_for_a_stopped_call_hears_of_it(tmp_path: Path) -> None:
    scene, heard = new_scene(tmp_path), list[Future[None]]()
    with StatefulExecutor(n_jobs=1) as executor:
        future = executor.submit(begins, scene)
        future.add_done_callback(heard.append)
        scene.log("begun").wait_for(1)
        threading.Timer(0.0, executor.stop, [future]).start()
        done, _ = wait([future], timeout=20)
        assert done == {future}
    assert heard == [future]


@parallel_engines
def test_a_call_that_waits_is_only_cancelled(engine: str, tmp_path: Path) -> None:
    gate = new_scene(tmp_path).gate()
    with StatefulExecutor(n_jobs=1, engine=engine) as executor:
        running, waiting = executor.submit(gate.wait), executor.submit(where)
        assert executor.stop(waiting) is True
        assert waiting.cancelled()
        gate.open()
        running.result()


def test_a_call_that_is_done_or_anothers_is_not_stopped(tmp_path: Path) -> None:
    scene = new_scene(tmp_path)
    with StatefulExecutor(n_jobs=1) as executor, StatefulExecutor(n_jobs=1) as other:
        done = executor.submit(where)
        done.result()
        assert executor.stop(done) is False
        theirs = other.submit(begins, scene)
        scene.log("begun").wait_for(1)
        assert executor.stop(theirs) is False
        assert theirs.running()
        assert other.stop(theirs) is True


@pytest.mark.parametrize("engine", ["threads"])
def test_a_thread_can_not_be_stopped_and_it_says_so(engine: str, tmp_path: Path) -> None:
    gate = new_scene(tmp_path).gate()
    with StatefulExecutor(n_jobs=1, engine=engine) as executor:
        future = executor.submit(gate.wait)
        while not future.running():
            time.sleep(0.001)
        with pytest.raises(ValueError, match=r"engine='threads' a call that runs can't be stopped.*engine=\"loky\""):
            executor.stop(future)
        gate.open()
        assert future.result() is None


def test_what_is_no_future_is_refused() -> None:
    with StatefulExecutor(n_jobs=1) as executor, pytest.raises(TypeError, match=r"stop\(\) takes a future"):
        executor.stop(None)  # type: ignore[arg-type]  # that is the point


@parallel_engines
def test_a_future_of_nobodys_is_left_alone(engine: str) -> None:
    with StatefulExecutor(n_jobs=1, engine=engine) as executor:
        future: Future[None] = Future()
        assert executor.stop(future) is False
        assert not future.cancelled()


@engines
def test_nobody_is_told_nothing_of_workers_that_are_gone(engine: str) -> None:
    executor = StatefulExecutor(n_jobs=1, engine=engine)
    executor.shutdown()
    for build in (True, False):
        with pytest.raises(errors.ShutdownError):
            executor.run_on_all(where, build=build)


@pytest.mark.parametrize("engine", ["threads", "inline"])
def test_a_worker_that_would_wait_for_itself_is_told_so(engine: str) -> None:
    with StatefulExecutor(n_jobs=2, engine=engine) as executor:
        with pytest.raises(RuntimeError, match=r"run_on_all\(\) in a call of one of the executor's own workers"):
            executor.submit(lambda: executor.run_on_all(where)).result()
        assert executor.run_on_all(where) == [0, 1]


def test_a_ctrl_c_ends_what_runs_on_all(run_program: RunProgram) -> None:
    done = run_program(
        """
        import os, signal, threading
        from multiprocessing.connection import Client, Listener
        from joblib_stateful import StatefulExecutor

        def hang(address):
            Client(address).send("runs")
            threading.Event().wait()

        def strike(listener):
            for _ in range(2):  # once both run
                listener.accept().recv()
            os.kill(os.getpid(), signal.SIGINT)

        if __name__ == "__main__":
            signal.signal(signal.SIGINT, signal.default_int_handler)
            executor, listener = StatefulExecutor(n_jobs=2), Listener(("127.0.0.1", 0))
            try:
                threading.Thread(target=strike, args=[listener], daemon=True).start()
                executor.run_on_all(hang, listener.address)
            except KeyboardInterrupt:
                print("ended")
            print(executor.submit(abs, -1).result())
            listener.close()
        """
    )
    assert (done.code, done.out) == (0, "ended\n1\n"), done.err
