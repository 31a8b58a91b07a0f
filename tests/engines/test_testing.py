"""The engine in memory keeps the seam's contract, and plays what tests of the other rooms need of it."""

from __future__ import annotations

import doctest
import gc
import threading
import time
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from joblib_stateful import StatefulExecutor, call_worker, errors, get_worker_info, stateful_map, testing
from joblib_stateful._executor import _exit
from joblib_stateful._transport._transport import Pickled
from joblib_stateful._worker._messages import Build, Death, Finish, Run
from joblib_stateful.engines import Runtime
from joblib_stateful.testing import MemoryEngine, MemoryWorker

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from joblib_stateful._worker._messages import Failure, Reply

pytestmark = pytest.mark.unit


class Counter:
    """Counts its calls, and tells how it was built and closed."""

    closed: list[int] = []  # noqa: RUF012 - shared on purpose: it outlives the objects

    def __init__(self, start: int = 0) -> None:
        self.count = start

    def __call__(self, item: Any) -> tuple[int, Any]:
        self.count += 1
        return self.count, item

    def close(self) -> None:
        self.closed.append(self.count)


def a_run(size: int = 1, seq: int = 2) -> Run:
    parcel, _ = Pickled().pack_all([(abs, (-number,), {}) for number in range(size)])
    return Run(seq, "call", None, None, parcel, "go_on")


def sent(worker: MemoryWorker, message: Build | Run) -> list[Reply | Death]:
    """Send a message and return where its answer will be."""
    replies: list[Reply | Death] = []
    assert worker.send(message, replies.append) is None
    return replies


def crash_and_tell(worker: MemoryWorker) -> None:
    """Crash while there is nothing to answer, and have that noticed at once, as with processes."""
    worker.crash()
    assert worker.on_idle_death is not None
    worker.on_idle_death(Death(worker.pid, -9))


class Untidy(Runtime):
    """Leaves something behind, for which the end of the program has to wait."""

    transport = Pickled()
    engine: MemoryEngine
    settled: ClassVar[list[float]] = []

    def open(self, slot: int, env: Mapping[str, str]) -> MemoryWorker:
        return MemoryWorker(slot, env, 1, 1, auto=True)

    @classmethod
    def settle(cls, seconds: float) -> None:
        cls.settled.append(seconds)


class UntidyEngine(MemoryEngine):
    def make_runtime(self, n_slots: int) -> Untidy:
        return Untidy(self)


def test_at_the_end_what_executors_have_left_behind_is_waited_for_once_also_when_they_are_gone() -> None:
    for _ in range(2):
        with StatefulExecutor(n_jobs=1, engine=UntidyEngine(auto=True)) as executor:
            assert executor.submit(abs, -1).result() == 1
        del executor
    gc.collect()
    _exit._settle()
    assert len(Untidy.settled) == 1


def test_the_examples_in_its_docstrings_run() -> None:
    failed, n_tried = doctest.testmod(testing)
    assert n_tried > 0
    assert failed == 0


def test_nothing_happens_before_the_test_says_so() -> None:
    engine = MemoryEngine()
    with StatefulExecutor(Counter, n_jobs=3, engine=engine, shared_kwargs={"start": 10}) as executor:
        first, second = executor.submit(call_worker, "a"), executor.submit(call_worker, "b")
        assert [repr(worker) for worker in engine.workers] == [
            "<MemoryWorker slot=0 life=1: Build pending>",
            "<MemoryWorker slot=1 life=1: Build pending>",
        ]
        engine.worker(1).answer()
        assert repr(engine.worker(1)) == "<MemoryWorker slot=1 life=1: Run of 1 pending>"
        assert not first.done()
        engine.worker(1).answer()
        assert first.result() == (11, "a")
        assert engine.pending == engine.workers
        engine.answer_all()
        assert second.result() == (12, "b")
        assert repr(engine) == "<MemoryEngine 2 workers opened, 0 pending>"
        assert repr(engine.worker(0)) == "<MemoryWorker slot=0 life=1: waiting>"
    assert repr(engine.worker(0)) == "<MemoryWorker slot=0 life=1: gone>"


def test_values_travel_as_between_processes() -> None:
    engine = MemoryEngine(auto=True)
    item = ["mutable"]
    with StatefulExecutor(Counter, n_jobs=1, engine=engine) as executor:
        (_, returned) = executor.submit(call_worker, item).result()
        assert returned == item
        assert returned is not item
        with pytest.raises(errors.TransferError):
            executor.submit(threading.Lock).result()


def test_a_crash_costs_one_slot_its_object_and_an_item_its_result() -> None:
    engine = MemoryEngine()
    with StatefulExecutor(Counter, n_jobs=2, engine=engine) as executor:
        futures = [executor.submit(call_worker, item) for item in "ab"]
        engine.worker(0).answer()
        engine.worker(0).crash(exitcode=3)
        error = futures[0].exception()
        assert isinstance(error, errors.WorkerCrashedError)
        assert (error.slot, error.pid, error.exitcode) == (0, engine.workers[0].pid, 3)
        engine.answer_all()
        assert futures[1].result() == (1, "b")
        third = executor.submit(call_worker, "c")
        engine.answer_all()
        assert third.result() == (2, "c")
    assert [(worker.slot, worker.life) for worker in engine.workers] == [(0, 1), (1, 1)]


def test_a_retry_goes_to_the_other_slot() -> None:
    engine = MemoryEngine()
    with StatefulExecutor(Counter, n_jobs=2, engine=engine, retries=1) as executor:
        executor.submit(call_worker, "a")
        engine.answer_all()
        future = executor.submit(call_worker, "b")
        engine.worker(0).crash()
        assert engine.pending == [engine.worker(1)]
        engine.answer_all()
        assert future.result() == (1, "b")


def test_an_idle_crash_shows_with_the_next_message_and_costs_no_item() -> None:
    engine = MemoryEngine()
    with StatefulExecutor(Counter, n_jobs=1, engine=engine) as executor:
        executor.submit(call_worker, "a")
        engine.answer_all()
        engine.worker(0).crash()
        future = executor.submit(call_worker, "b")
        assert repr(engine.worker(0)) == "<MemoryWorker slot=0 life=2: Build pending>"
        engine.answer_all()
        assert future.result() == (1, "b")


def test_an_idle_crash_that_is_told_is_made_up_for_once() -> None:
    engine = MemoryEngine()
    with StatefulExecutor(Counter, n_jobs=1, engine=engine) as executor:
        executor.submit(call_worker, "a")
        engine.answer_all()
        crash_and_tell(engine.worker(0))
        (info,) = executor.workers()
        assert (info.state, info.pid, info.n_restarts) == ("empty", None, 1)
        future = executor.submit(call_worker, "b")
        crash_and_tell(engine.workers[0])  # too late
        assert repr(engine.worker(0)) == "<MemoryWorker slot=0 life=2: Build pending>"
        engine.answer_all()
        assert future.result() == (1, "b")
        assert executor.workers()[0].n_restarts == 1


def test_warm_up_gives_up_a_slot_that_dies_as_soon_as_it_is_built() -> None:
    engine = MemoryEngine()
    raised: list[BaseException] = []

    def warm_up() -> None:
        try:
            executor.warm_up()
        except errors.WorkerCrashedError as error:
            raised.append(error)

    with StatefulExecutor(Counter, n_jobs=2, engine=engine, max_restarts=0) as executor:
        warming = threading.Thread(target=warm_up)
        warming.start()
        deadline = time.monotonic() + 30
        while len(engine.pending) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        engine.worker(0).answer()
        crash_and_tell(engine.worker(0))
        engine.worker(1).answer()
        warming.join(30)
        assert not warming.is_alive()
    assert "lost 1 worker before" in str(raised[0])
    assert len(engine.workers) == 2


def test_a_worker_that_is_killed_just_before_it_is_closed_leaves_the_slots_next_one_alone() -> None:
    engine = MemoryEngine()
    executor = StatefulExecutor(Counter, n_jobs=1, engine=engine, max_tasks_per_worker=1)
    futures = [executor.submit(call_worker, "a")]

    def kill_and_go_on(_: Any) -> None:
        executor.pool.kill()
        futures.append(executor.submit(call_worker, "b"))

    try:
        engine.worker(0).answer()
        futures[0].add_done_callback(kill_and_go_on)
        engine.worker(0).answer()  # that it is to be closed is decided by now, and done when the callback has returned
        assert [repr(worker) for worker in engine.workers] == [
            "<MemoryWorker slot=0 life=1: gone>",
            "<MemoryWorker slot=0 life=2: Build pending>",
        ]
        engine.answer_all()
        assert futures[1].result(timeout=0) == (1, "b")
    finally:
        executor.shutdown(kill_workers=True)


def test_deaths_during_construction_are_counted() -> None:
    engine = MemoryEngine()
    with StatefulExecutor(Counter, n_jobs=1, engine=engine, max_restarts=1) as executor:
        future = executor.submit(call_worker, "a")
        engine.worker(0).crash()
        assert engine.worker(0).life == 2
        engine.worker(0).crash()
        assert isinstance(future.exception(), errors.WorkerInitError)
        assert len(engine.workers) == 2


def test_an_item_that_has_begun_can_run_out_of_time() -> None:
    engine = MemoryEngine()
    with StatefulExecutor(Counter, n_jobs=1, engine=engine, item_timeout=0.01) as executor:
        future = executor.submit(call_worker, "a")
        engine.worker(0).answer()
        engine.worker(0).begin()
        assert isinstance(future.exception(timeout=60), errors.ItemTimeoutError)
        assert engine.worker(0).is_gone


def test_shutdown_can_kill_what_is_pending() -> None:
    engine = MemoryEngine()
    executor = StatefulExecutor(Counter, n_jobs=1, engine=engine)
    future = executor.submit(call_worker, "a")
    executor.shutdown(kill_workers=True)
    assert future.cancelled()
    assert repr(engine.workers) == "[<MemoryWorker slot=0 life=1: gone>]"


def test_objects_are_closed_and_slots_have_their_environment() -> None:
    Counter.closed.clear()
    engine = MemoryEngine(auto=True)
    with StatefulExecutor(Counter, engine=engine, n_jobs=1, worker_env=[{"DEVICE": "3"}]) as executor:
        assert executor.submit(get_worker_info).result().index == 0
        executor.submit(call_worker, "a").result()
        assert engine.worker(0).env["DEVICE"] == "3"
        assert Counter.closed == []
    assert Counter.closed == [1]


def test_auto_answers_at_once() -> None:
    engine = MemoryEngine(auto=True)
    worker: Any = Counter
    results = stateful_map(worker, "abcd", n_jobs=2, engine=engine, batch_size=1)
    assert list(results) == [(1, "a"), (1, "b"), (2, "c"), (2, "d")]
    assert [worker.slot for worker in engine.workers] == [0, 1]


@pytest.mark.parametrize(
    ("crash", "expected"),
    [
        (lambda worker: worker.crash(), Death(7, -9, started=True, place=0, n_finished=0)),
        (lambda worker: worker.crash(1, place=2), Death(7, 1, started=True, place=2, n_finished=2)),
        (lambda worker: worker.crash(place=None), Death(7, -9, started=True, place=None, n_finished=3)),
        (lambda worker: worker.crash(started=False), Death(7, -9, started=False, place=None, n_finished=0)),
        (lambda worker: worker.kill(), Death(7, -9, started=False, place=None, n_finished=0)),
    ],
    ids=["first", "third", "reply under way", "not begun", "killed"],
)
def test_deaths_tell_what_a_real_one_would(crash: Callable[[MemoryWorker], None], expected: Death) -> None:
    worker = MemoryWorker(0, {}, 1, pid=7)
    replies = sent(worker, a_run(3))
    crash(worker)
    assert replies == [expected]
    # Whoever sends it something later is told the same way.
    again = worker.send(a_run(seq=3), replies.append)
    assert again == Death(7, expected.exitcode)
    assert len(replies) == 1


def test_a_kill_finds_the_item_that_was_begun() -> None:
    worker = MemoryWorker(0, {}, 1, pid=7)
    replies = sent(worker, a_run(3))
    worker.begin(1)
    worker.kill()
    worker.kill()
    assert replies == [Death(7, -9, started=True, place=1, n_finished=1)]


def test_a_worker_that_is_gone_can_still_be_closed() -> None:
    worker = MemoryWorker(0, {}, 1, pid=7)
    worker.kill()
    closed: list[Failure | None] = []
    worker.close(Finish(3), closed.append)
    assert closed == [None]


def test_what_a_test_gets_wrong_is_said() -> None:
    engine = MemoryEngine()
    with pytest.raises(LookupError, match="No worker was opened for slot 1 yet"):
        engine.worker(1)
    engine.make_runtime(2).open(1, {})
    worker = engine.worker(1)
    with pytest.raises(RuntimeError, match="has no message to answer"):
        worker.answer()
    sent(worker, a_run(2))
    with pytest.raises(ValueError, match="one of the message's 2 items, counted from 0, not 2"):
        worker.crash(place=2)
    with pytest.raises(RuntimeError, match="was sent a second message"):
        worker.send(a_run(), lambda reply: None)
    with pytest.raises(RuntimeError, match="was to be closed before it answered"):
        worker.close(Finish(3), lambda failure: None)
