"""A consumer that comes back quickly takes its workers' answers itself; nobody else may suffer from it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from joblib_stateful import StatefulExecutor, factory, stateful_map
from joblib_stateful._interrupts import Wakeup
from joblib_stateful.engines import _line, _listening, _loky_worker
from needs import needs
from test_map_tools import Scene, crash, new_scene, orders

if TYPE_CHECKING:
    from conftest import RunProgram, StartProgram

pytestmark = needs("poll")


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return new_scene(tmp_path)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have a consumer take answers after a few waits, however slow this machine is, and until it stays away."""
    monkeypatch.setattr(_listening, "_QUICK_SECONDS", 3600.0)
    monkeypatch.setattr(_listening, "_QUICK_WAITS", 3)
    yield


@pytest.fixture
def patient(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no consumer look by itself, now and then, whether something has happened."""
    monkeypatch.setattr(_listening, "STRETCH_SECONDS", 3600.0)


@pytest.fixture
def never_away(patient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nobody think that a consumer stays away; then answers that it does not wait for are never taken."""
    monkeypatch.setattr(_listening, "_AWAY_SECONDS", 3600.0)


@pytest.fixture
def takers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the threads that have taken answers, one after the other."""
    found: list[int] = []
    answer_in = _listening.answer_in

    def note(*args: Any) -> Any:
        found.append(threading.get_ident())
        return answer_in(*args)

    monkeypatch.setattr(_listening, "answer_in", note)
    return found


class Where:
    """Says, as a result, which thread has unpickled it."""

    def __reduce__(self) -> tuple[Callable[[], int], tuple[()]]:
        return threading.get_ident, ()


# After so many one-item batches each consumer has waited often enough to take its answers itself.
_WARM = 100


@orders
def test_a_quick_consumer_takes_its_answers_itself(never_away: None, takers: list[int], *, ordered: bool) -> None:
    assert (
        len(list(stateful_map(abs, range(2 * _WARM), n_jobs=1, batch_size=1, buffer=1, ordered=ordered))) == 2 * _WARM
    )
    assert set(takers[-_WARM:]) == {threading.get_ident()}


@orders
def test_what_runs_code_when_it_is_loaded_is_left_to_the_threads(
    never_away: None, takers: list[int], *, ordered: bool
) -> None:
    # A Ctrl-C could not interrupt it in the consumer's thread.
    def work(item: int) -> Any:
        return Where() if item >= _WARM and item % 2 else item

    found = list(stateful_map(work, range(3 * _WARM), n_jobs=2, batch_size=1, ordered=ordered))
    assert threading.get_ident() in takers
    assert len(found) == 3 * _WARM
    assert threading.get_ident() not in found


def test_one_that_comes_back_seldom_does_not(takers: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_listening, "_QUICK_SECONDS", 0.0)
    assert len(list(stateful_map(abs, range(2 * _WARM), n_jobs=1, batch_size=1, buffer=1))) == 2 * _WARM
    assert threading.get_ident() not in takers


@orders
def test_while_it_stays_away_its_workers_go_on(quick: None, takers: list[int], scene: Scene, *, ordered: bool) -> None:
    def work(item: int) -> Any:
        if item >= _WARM:
            scene.gate().wait()
            scene.log().note(item)
        return item

    results = stateful_map(work, range(_WARM + 60), n_jobs=2, batch_size=1, buffer=40, ordered=ordered)

    def open_when_full() -> None:
        while results._feeder.n_pulled < _WARM + 40:
            time.sleep(0.001)
        scene.gate().open()

    opener = threading.Thread(target=open_when_full)
    opener.start()
    found = [next(results) for _ in range(_WARM + 1)]  # and now it stays away
    assert threading.get_ident() in takers
    scene.log().wait_for(40)  # all that the buffer holds
    opener.join()
    found += results
    assert len(found) == _WARM + 60


def test_what_is_called_when_a_future_is_done_is_never_called_in_its_thread(
    quick: None, takers: list[int], scene: Scene
) -> None:
    called: list[int] = []
    with StatefulExecutor(factory(lambda: abs), 1) as executor:
        results = stateful_map(executor, range(_WARM + 20), batch_size=1)
        found = [next(results) for _ in range(_WARM)]
        for number in range(20):
            future = executor.submit(scene.gate(number).wait)
            future.add_done_callback(lambda _: called.append(threading.get_ident()))
            scene.gate(number).open()
            found.append(next(results))
            future.result(60)
    assert threading.get_ident() in takers
    assert len(called) == 20
    assert threading.get_ident() not in called


def waits_at(scene: Scene, last: int) -> Callable[[int], int]:
    def work(item: int) -> int:
        if item == last:
            scene.log().note(os.getpid())
            scene.gate().wait()
        return item

    return work


def test_a_map_that_another_thread_closes_ends_at_once(patient: None, scene: Scene) -> None:
    results = stateful_map(waits_at(scene, _WARM), range(2 * _WARM), n_jobs=1, batch_size=1, buffer=1)

    def close() -> None:
        scene.log().wait_for(1)
        results.close()

    closer = threading.Thread(target=close)
    closer.start()
    try:
        assert list(results) == list(range(_WARM))
        assert not scene.gate().path.exists()
    finally:
        scene.gate().open()
        closer.join()


def test_a_consumer_is_woken_by_what_is_no_answer(never_away: None) -> None:
    listening, wakeup, is_so = _listening.Listening(), Wakeup(), threading.Event()
    for _ in range(10):
        listening.wait_for(wakeup, lambda: True)
    assert listening.is_taken_over

    def ring() -> None:
        while not listening._is_polling:
            time.sleep(0.001)
        is_so.set()
        listening.ring()

    ringer = threading.Thread(target=ring)
    ringer.start()
    listening.wait_for(wakeup, is_so.is_set)
    ringer.join()


def test_a_consumer_that_takes_answers_waits_no_longer_than_it_should(never_away: None) -> None:
    listening, wakeup = _listening.Listening(), Wakeup()
    for _ in range(10):
        listening.wait_for(wakeup, lambda: True)
    assert listening.is_taken_over
    listening.wait_for(wakeup, lambda: False, 0.01)  # or this would never return
    assert listening.is_taken_over


def test_two_consumers_of_one_executor(quick: None) -> None:
    with StatefulExecutor(factory(lambda: abs), 2) as executor:
        found: dict[int, list[int]] = {}

        def consume(first: int) -> None:
            items = range(first, first + 5 * _WARM)
            found[first] = list(stateful_map(executor, items, batch_size=1))

        threads = [threading.Thread(target=consume, args=(first,)) for first in (0, 1_000_000)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert found == {first: list(range(first, first + 5 * _WARM)) for first in (0, 1_000_000)}


def test_who_was_sent_away_is_out_before_the_next_one_takes_answers(
    patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A consumer looks, and is taken for away meanwhile; another one comes, and waits for something, too.
    monkeypatch.setattr(_listening, "_AWAY_SECONDS", 0.0)
    listening, wakeup = _listening.Listening(), Wakeup()
    looks, goes_on, first_ends = threading.Event(), threading.Event(), threading.Event()

    def look() -> bool:
        looks.set()
        goes_on.wait(60)
        return first_ends.is_set()

    def consume() -> None:
        for _ in range(10):
            listening.wait_for(wakeup, lambda: True)
        listening.wait_for(wakeup, look)

    first = threading.Thread(target=consume)
    first.start()
    assert looks.wait(60)
    with listening._lock:
        listening._watch()
    assert not listening.is_taken_over
    for _ in range(10):
        listening.wait_for(wakeup, lambda: True)
    assert not listening.is_taken_over
    goes_on.set()
    first_ends.set()
    wakeup.wake()
    first.join(60)
    assert not first.is_alive()
    for _ in range(10):
        listening.wait_for(wakeup, lambda: True)
    assert listening.is_taken_over


@orders
@pytest.mark.usefixtures("never_away")
def test_a_crash_costs_only_what_ran(scene: Scene, *, ordered: bool) -> None:
    def work(item: int) -> int:
        if item % _WARM == 50:
            scene.log(item).note("here")
            if len(scene.log(item).lines) == 1:
                crash()
        return item

    results = list(stateful_map(work, range(3 * _WARM), n_jobs=2, batch_size=1, ordered=ordered, retries=1))
    assert results == list(range(3 * _WARM)) if ordered else sorted(results) == list(range(3 * _WARM))
    assert [len(scene.log(item).lines) for item in range(50, 3 * _WARM, _WARM)] == [2, 2, 2]


@pytest.mark.usefixtures("never_away")
def test_a_result_that_cannot_be_unpickled_costs_only_itself() -> None:
    class Bad:
        def __reduce__(self) -> tuple[Any, ...]:
            return int, ("no number",)

    def work(item: int) -> Any:
        return Bad() if item == _WARM else item

    results = list(stateful_map(work, range(2 * _WARM), n_jobs=1, batch_size=1, on_error="deferred"))
    assert [result.index for result in results if result.exception is not None] == [_WARM]
    assert [result.value for result in results if result.exception is None] == [
        item for item in range(2 * _WARM) if item != _WARM
    ]


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


def test_what_an_alarm_raises_spoils_no_answer(patient: None, alarms: None) -> None:
    def work(item: int) -> Any:
        return Alarm() if item == _WARM else item

    with StatefulExecutor(factory(lambda: work), 1) as executor:
        executor.warm_up()
        before = [info.pid for info in executor.workers()]
        results = stateful_map(executor, range(2 * _WARM), batch_size=1, buffer=1)
        assert [next(results) for _ in range(_WARM)] == list(range(_WARM))
        with pytest.raises(TooLateError):
            next(results)
        assert list(stateful_map(executor, range(5))) == list(range(5))
        assert [info.pid for info in executor.workers()] == before


def test_nor_a_call_that_is_being_sent(alarms: None, monkeypatch: pytest.MonkeyPatch) -> None:
    went_off: list[int] = []

    def encode(message: Any) -> bytes:
        if not went_off:
            went_off.append(1)
            signal.raise_signal(signal.SIGALRM)
        return _line.encode(message)

    with StatefulExecutor(n_jobs=1) as executor:
        executor.warm_up()
        before = [info.pid for info in executor.workers()]
        monkeypatch.setattr(_loky_worker, "encode", encode)
        with pytest.raises(TooLateError):
            executor.submit(abs, -1)
        assert executor.submit(abs, -2).result(60) == 2
        assert [info.pid for info in executor.workers()] == before


def test_ctrl_c_is_heard(program: StartProgram) -> None:
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
def test_a_fork_in_its_middle_takes_nothing(run_program: RunProgram) -> None:
    done = run_program(
        """
        import os, warnings
        from joblib_stateful import stateful_map
        from joblib_stateful.engines import _listening
        warnings.simplefilter("ignore")
        _listening._QUICK_SECONDS = 3600

        if __name__ == "__main__":
            children, found = [], []
            for result in stateful_map(abs, range(2000), n_jobs=2, batch_size=1):
                found.append(result)
                if result % 400 == 399:
                    if not (pid := os.fork()):
                        here = list(stateful_map(abs, range(200), n_jobs=1, batch_size=1))
                        os._exit(0 if here == list(range(200)) else 1)
                    children.append(pid)
            assert found == list(range(2000))
            print(*[os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
        """
    )
    assert (done.code, done.out.split()) == (0, ["0"] * 5), done.err
