"""One thread hears all workers of an executor: nobody waits for it, whatever users' code does with an answer."""

from __future__ import annotations

import gc
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from joblib_stateful import StatefulExecutor, errors, factory, stateful_map
from joblib_stateful._process._interrupts import Wakeup, put_off_wakeups, wake_those_put_off
from joblib_stateful._transport._transport import Pickled
from joblib_stateful._worker._messages import Build
from joblib_stateful.engines.loky import _line, _outbox, _reader
from joblib_stateful.engines.loky._worker import LokyWorker
from needs import needs
from programs import program_text
from scenes import Scene, crash, new_scene, orders

if TYPE_CHECKING:
    from conftest import RunProgram, StartProgram


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return new_scene(tmp_path)


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "joblib_stateful-reader"]


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for threads to end, which they do a moment after there is nothing to be heard."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, threading.enumerate()
        time.sleep(0.002)


def wait_for_readers(count: int) -> None:
    wait_until(lambda: len(readers()) == count)


# --- one thread -----------------------------------------------------------------------------------------


def test_all_slots_have_one_thread_as_long_as_there_are_workers() -> None:
    before = set(threading.enumerate())
    with StatefulExecutor(n_jobs=4) as executor:
        assert readers() == []
        for _ in range(2):
            executor.warm_up()
            # Log records have a thread for all executors.
            assert {one.name for one in set(threading.enumerate()) - before} <= {
                "joblib_stateful-reader",
                "joblib_stateful-logs",
            }
            assert len(readers()) == 1
            executor.pool.release()
            wait_for_readers(0)
    with StatefulExecutor(n_jobs=1) as executor, StatefulExecutor(n_jobs=2) as another:
        executor.warm_up()
        another.warm_up()
        assert len(readers()) == 2


def test_the_thread_that_reads_ends_with_an_executor_that_nobody_needs() -> None:
    StatefulExecutor(n_jobs=2).warm_up()
    wait_for_readers(0)


def test_a_worker_that_is_killed_has_its_next_one_heard_by_the_same() -> None:
    with StatefulExecutor(n_jobs=2) as executor:
        executor.warm_up()
        (reader,) = readers()
        with pytest.raises(errors.WorkerCrashedError):
            executor.submit(crash).result(60)
        assert [executor.submit(abs, -n).result(60) for n in range(8)] == list(range(8))
        assert readers() == [reader]


def test_what_goes_wrong_in_reading_loses_no_answer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    receive, failed = _reader._receive, list[int]()

    def fail_once(line: _line.Line) -> Any:
        if not failed:
            failed.append(1)
            raise MemoryError
        return receive(line)

    with StatefulExecutor(n_jobs=1) as executor:
        executor.warm_up()
        monkeypatch.setattr(_reader, "_receive", fail_once)
        assert executor.submit(abs, -1).result(60) == 1
    assert failed
    assert "tried again" in caplog.text
    caplog.clear()


# --- the consumer's thread ------------------------------------------------------------------------------


class Where:
    """Says, as a result, which thread has unpickled it."""

    def __reduce__(self) -> tuple[Callable[[], int], tuple[()]]:
        return threading.get_ident, ()


@orders
def test_what_runs_code_when_it_is_loaded_is_not_loaded_in_the_consumers_thread(*, ordered: bool) -> None:
    # A Ctrl-C could not interrupt it there.
    def work(item: int) -> Any:
        return Where() if item % 2 else item

    found = list(stateful_map(work, range(200), n_jobs=2, batch_size=1, ordered=ordered))
    assert len(found) == 200
    assert threading.get_ident() not in found


@orders
def test_while_the_consumer_stays_away_its_workers_go_on(scene: Scene, *, ordered: bool) -> None:
    def work(item: int) -> Any:
        if item >= 100:
            scene.gate().wait()
            scene.log().note(item)
        return item

    results = stateful_map(work, range(160), n_jobs=2, batch_size=1, buffer=40, ordered=ordered)

    def open_when_full() -> None:
        while results._feeder.n_pulled < 140:
            time.sleep(0.001)
        scene.gate().open()

    opener = threading.Thread(target=open_when_full)
    opener.start()
    found = [next(results) for _ in range(101)]  # and now it stays away
    scene.log().wait_for(40)  # all that the buffer holds
    opener.join()
    found += results
    assert len(found) == 160


def test_what_is_called_when_a_future_is_done_is_never_called_in_its_thread(scene: Scene) -> None:
    called: list[int] = []
    with StatefulExecutor(factory(lambda: abs), 1) as executor:
        results = stateful_map(executor, range(120), batch_size=1)
        found = [next(results) for _ in range(100)]
        for number in range(20):
            future = executor.submit(scene.gate(number).wait)
            future.add_done_callback(lambda _: called.append(threading.get_ident()))
            scene.gate(number).open()
            found.append(next(results))
            future.result(60)
    assert found == list(range(120))
    assert len(called) == 20
    assert threading.get_ident() not in called


def test_a_map_that_another_thread_closes_ends_at_once(scene: Scene) -> None:
    def work(item: int) -> int:
        if item == 100:
            scene.log().note(os.getpid())
            scene.gate().wait()
        return item

    results = stateful_map(work, range(200), n_jobs=1, batch_size=1, buffer=1)

    def close() -> None:
        scene.log().wait_for(1)
        results.close()

    closer = threading.Thread(target=close)
    closer.start()
    try:
        assert list(results) == list(range(100))
        assert not scene.gate().path.exists()
    finally:
        scene.gate().open()
        closer.join()


def test_two_consumers_of_one_executor() -> None:
    with StatefulExecutor(factory(lambda: abs), 2) as executor:
        found: dict[int, list[int]] = {}

        def consume(first: int) -> None:
            items = range(first, first + 500)
            found[first] = list(stateful_map(executor, items, batch_size=1))

        threads = [threading.Thread(target=consume, args=(first,)) for first in (0, 1_000_000)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert found == {first: list(range(first, first + 500)) for first in (0, 1_000_000)}


@orders
def test_a_crash_costs_only_what_ran(scene: Scene, *, ordered: bool) -> None:
    def work(item: int) -> int:
        if item % 100 == 50:
            scene.log(item).note("here")
            if len(scene.log(item).lines) == 1:
                crash()
        return item

    results = list(stateful_map(work, range(300), n_jobs=2, batch_size=1, ordered=ordered, retries=1))
    assert results == list(range(300)) if ordered else sorted(results) == list(range(300))
    assert [len(scene.log(item).lines) for item in range(50, 300, 100)] == [2, 2, 2]


def test_a_result_that_cannot_be_unpickled_costs_only_itself() -> None:
    class Bad:
        def __reduce__(self) -> tuple[Any, ...]:
            return int, ("no number",)

    def work(item: int) -> Any:
        return Bad() if item == 100 else item

    results = list(stateful_map(work, range(200), n_jobs=1, batch_size=1, on_error="deferred"))
    assert [result.index for result in results if result.exception is not None] == [100]
    assert [result.value for result in results if result.exception is None] == [
        item for item in range(200) if item != 100
    ]


# --- users' code that takes long over an answer -----------------------------------------------------------


@pytest.fixture
def stuck() -> Iterator[threading.Event]:
    """Return what users' code waits for, and have it go on at the end of the test."""
    event = threading.Event()
    yield event
    event.set()
    wait_for_readers(0)


def test_a_callback_that_waits_holds_up_no_other_worker(scene: Scene, stuck: threading.Event) -> None:
    with StatefulExecutor(n_jobs=3) as executor:
        executor.warm_up()
        called = threading.Event()
        first = executor.submit(scene.gate().wait)

        def wait(_: Any) -> None:
            called.set()
            stuck.wait()

        first.add_done_callback(wait)
        scene.gate().open()
        assert called.wait(30)
        assert [executor.submit(abs, -n).result(30) for n in range(9)] == list(range(9))
        assert not stuck.is_set()
        assert len(readers()) == 2
        stuck.set()
        wait_for_readers(1)
        assert [future.result(30) for future in [executor.submit(abs, -n) for n in range(9)]] == list(range(9))
        assert len(readers()) == 1


def test_what_is_loaded_slowly_holds_up_no_other_worker(run_program: RunProgram) -> None:
    done = run_program(program_text("engines/loads_a_result_slowly"))
    assert (done.code, done.out, done.err) == (0, "done\n", "")


def test_callbacks_may_each_wait_for_a_call_of_their_own() -> None:
    with StatefulExecutor(n_jobs=2) as executor:
        found: list[int] = []

        def ask_again(future: Any) -> None:
            if future.result() < 5:
                further = executor.submit(int, future.result() + 1)
                further.add_done_callback(ask_again)
                found.append(further.result(30))

        executor.submit(int, 0).add_done_callback(ask_again)
        wait_until(lambda: len(found) == 5)
        assert sorted(found) == [1, 2, 3, 4, 5]
    wait_for_readers(0)


def test_there_is_no_thread_for_each_answer_that_is_handled_slowly(stuck: threading.Event) -> None:
    with StatefulExecutor(n_jobs=2) as executor:
        executor.warm_up()
        futures = [executor.submit(abs, -n) for n in range(20)]
        for future in futures:
            future.add_done_callback(lambda _: time.sleep(0.06))
        for future in futures:
            future.result(60)
            assert len(readers()) <= 5
        stuck.set()


def test_a_death_is_told_although_a_callback_of_that_worker_waits(scene: Scene, stuck: threading.Event) -> None:
    with StatefulExecutor(n_jobs=1) as executor:
        called = threading.Event()
        first = executor.submit(abs, -1)

        def wait(_: Any) -> None:
            called.set()
            stuck.wait()

        first.add_done_callback(wait)
        assert called.wait(30)
        second = executor.submit(crash)
        assert isinstance(second.exception(30), errors.WorkerCrashedError)
        assert not stuck.is_set()
        assert executor.submit(abs, -3).result(30) == 3
        stuck.set()


def test_half_an_answer_holds_up_no_other_worker(scene: Scene) -> None:
    def send_half(self: _line.Line, data: Any, fds: Any = ()) -> None:
        header = _line._HEADER.pack(_line._SIGN, len(data), 0, _line._check(len(data), 0))
        self._end.sendall(header + data[: len(data) // 2])
        scene.log("half").note(os.getpid())
        scene.gate().wait()
        self._end.sendall(data[len(data) // 2 :])

    def work(item: int) -> Any:
        if item == 0:
            _line.Line.send = send_half  # type: ignore[method-assign]  # in that worker
            return bytes(200_000)  # a larger one goes beside it
        scene.log("half").wait_for(1)
        return item

    with StatefulExecutor(n_jobs=2) as executor:
        first, *others = [executor.submit(work, item) for item in range(6)]
        assert [other.result(30) for other in others] == [1, 2, 3, 4, 5]
        assert not first.done()
        scene.gate().open()
        assert len(first.result(30)) == 200_000


def shut_line_and_wait() -> None:
    from joblib_stateful.engines.loky import _child

    _child._kept[1]._end.shutdown(socket.SHUT_WR)
    threading.Event().wait()


def test_a_worker_that_can_be_heard_no_more_is_ended_as_a_crash_and_not_as_damaged() -> None:
    with StatefulExecutor(n_jobs=1) as executor:
        error = executor.submit(shut_line_and_wait).exception(30)
        assert isinstance(error, errors.WorkerCrashedError)
        assert error.exitcode == -signal.SIGKILL
        assert "can't be" not in str(error)
        assert executor.submit(abs, -1).result(30) == 1


# --- signals and forks ----------------------------------------------------------------------------------


class TooLateError(Exception):
    """Raised by the handler of an alarm."""


def too_late(number: int, frame: object) -> None:
    raise TooLateError


class Alarm:
    """Goes off where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return signal.raise_signal, (signal.SIGALRM,)


@pytest.fixture
def alarms() -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, too_late)
    yield
    signal.signal(signal.SIGALRM, before)


def test_what_an_alarm_raises_spoils_no_answer(alarms: None) -> None:
    def work(item: int) -> Any:
        return Alarm() if item == 100 else item

    with StatefulExecutor(factory(lambda: work), 1) as executor:
        executor.warm_up()
        before = [info.pid for info in executor.workers()]
        results = stateful_map(executor, range(200), batch_size=1, buffer=1)
        assert [next(results) for _ in range(100)] == list(range(100))
        with pytest.raises(TooLateError):
            next(results)
        assert list(stateful_map(executor, range(5))) == list(range(5))
        assert [info.pid for info in executor.workers()] == before


def test_what_an_alarm_raises_spoils_no_call_that_is_being_sent(alarms: None, monkeypatch: pytest.MonkeyPatch) -> None:
    went_off: list[int] = []

    def encode(message: Any) -> bytes:
        if not went_off:
            went_off.append(1)
            signal.raise_signal(signal.SIGALRM)
        return _line.encode(message)

    with StatefulExecutor(n_jobs=1) as executor:
        executor.warm_up()
        before = [info.pid for info in executor.workers()]
        monkeypatch.setattr(_outbox, "encode", encode)
        with pytest.raises(TooLateError):
            executor.submit(abs, -1)
        assert executor.submit(abs, -2).result(60) == 2
        assert [info.pid for info in executor.workers()] == before


def test_ctrl_c_is_heard_among_many_quick_answers(program: StartProgram) -> None:
    running = program(
        """
        for result in stateful_map(Worker, [*["a"] * 500, "hang"], n_jobs=2, batch_size=1):
            pass
        """
    )
    running.wait_for("hangs-*")
    running.ctrl_c()
    _, _, err = running.ends_within(5)
    assert "KeyboardInterrupt" in err
    running.leaves_nothing()


@needs("fork")
def test_a_fork_in_the_middle_of_a_map_takes_no_answers(run_program: RunProgram) -> None:
    done = run_program(program_text("engines/forks_in_the_middle_of_a_map"))
    assert (done.code, done.out.split()) == (0, ["0"] * 5), done.err


@needs("fork")
def test_a_fork_in_a_callback_hears_its_own_workers_only(run_program: RunProgram) -> None:
    done = run_program(program_text("engines/forks_in_a_callback"))
    assert (done.code, done.out.split()) == (0, ["7"]), done.err


def is_woken(wakeup: Wakeup) -> bool:
    return wakeup._closed.acquire(blocking=False)


def test_a_thread_may_put_off_whom_it_wakes() -> None:
    wakeup = Wakeup()
    put_off_wakeups()
    try:
        wakeup.wake()
        assert not is_woken(wakeup)
        other = threading.Thread(target=wakeup.wake)  # others wake at once
        other.start()
        other.join()
        assert is_woken(wakeup)
    finally:
        wake_those_put_off()
    assert is_woken(wakeup)
    wakeup.wake()
    assert is_woken(wakeup)


class Keeper:
    """Keeps something beyond its own end."""

    kept: ClassVar[list[Any]] = []

    def __init__(self, thing: Any) -> None:
        self.thing = thing

    def __del__(self) -> None:
        self.kept.append(self.thing)


def test_whoever_gets_hold_of_a_worker_that_is_collected_closes_nobody_else_s_files() -> None:
    answered = threading.Event()
    worker = LokyWorker(Pickled(), {}, _reader.Reader())
    worker.send(Build(1, 0, 1, None), lambda _: answered.set())
    assert answered.wait(30)
    cycle: list[Any] = [Keeper(worker)]
    cycle.append(cycle)
    del worker, cycle
    gc.collect()
    worker = Keeper.kept.pop()
    wait_for_readers(0)
    mine = [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]  # one has the number that its lifeline had
    worker.kill()
    for file in mine:
        os.close(file)  # which raises if it is closed
