"""Handlers of signals in workers: what they raise is an item's error, and never costs the process or another outcome."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from contract import on
from joblib_stateful import StatefulExecutor, call_worker, stateful_map

pytestmark = pytest.mark.cluster

PROCESSES = ("loky", "example")  # Ray's own loop has the main thread, and Dask's slots have another one


class AlarmError(Exception):
    """Raised by a handler."""


class Alarmed:
    """An alarm goes off all the time, whatever is being done."""

    def __init__(self, interval: float) -> None:
        signal.signal(signal.SIGALRM, self.strike)
        self.interval, self.n_raised = interval, 0

    def start(self) -> None:
        """Have it go off from the first call on: in the constructor it would be that one's error."""
        if self.interval:
            signal.setitimer(signal.ITIMER_REAL, self.interval, self.interval)
            self.interval = 0.0

    def strike(self, number: int, frame: Any) -> None:
        self.n_raised += 1
        raise AlarmError(self.n_raised)

    def __call__(self, item: int) -> tuple[int, int]:
        self.start()
        return item, os.getpid()

    def close(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)


class SlowToTravel:
    """Its result takes long to pack, with Python's own code."""

    def __init__(self, value: int) -> None:
        self.value, self.pid = value, os.getpid()

    def __reduce__(self) -> Any:
        for _ in range(2000):
            len(str(self.value))
        return tuple, ((self.value, self.pid),)


class AlarmedSlow(Alarmed):
    def __call__(self, item: int) -> Any:
        self.start()
        return SlowToTravel(item)


@on(*PROCESSES)
@pytest.mark.parametrize("worker", [Alarmed, AlarmedSlow])
@pytest.mark.parametrize("batch_size", [1, 7, "auto"])
def test_an_alarm_between_items_costs_no_process(engine: Any, worker: Any, batch_size: Any) -> None:
    options: dict[str, Any] = {"n_jobs": 1, "batch_size": batch_size, "engine": engine, "on_error": "deferred"}
    found = list(stateful_map(worker, range(600), shared_kwargs={"interval": 0.002}, **options))
    assert [result.index for result in found] == list(range(600))
    values = [result.value if result.ok else None for result in found]
    assert [value[0] for value in values if value] == [result.index for result in found if result.ok]
    assert len({value[1] for value in values if value}) == 1
    failed = [result.exception for result in found if not result.ok]
    assert {type(error) for error in failed} == {AlarmError}
    # Each alarm that was raised is one item's error, and none is two's.
    numbers = [error.args[0] for error in failed if error is not None]
    assert len(set(numbers)) == len(numbers)


class AlarmedCalls(Alarmed):
    def __call__(self, items: list[int]) -> Any:  # type: ignore[override]  # it is called with many at once
        self.start()
        return [SlowToTravel(item) if item % 5 == 0 else (item, os.getpid()) for item in items]


@on(*PROCESSES)
@pytest.mark.parametrize("isolate", [True, False])
def test_an_alarm_between_calls_with_many_items_costs_no_process(engine: Any, *, isolate: bool) -> None:
    options: dict[str, Any] = {"n_jobs": 1, "batch_size": 7, "engine": engine, "on_error": "deferred"}
    kwargs = {"interval": 0.002}
    results = stateful_map(AlarmedCalls, range(300), shared_kwargs=kwargs, pass_as="batch", isolate=isolate, **options)
    found = list(results)
    assert [result.index for result in found] == list(range(300))
    assert [result.value[0] for result in found if result.ok] == [result.index for result in found if result.ok]
    assert len({result.value[1] for result in found if result.ok}) == 1
    assert {type(result.exception) for result in found} <= {AlarmError, type(None)}


@on(*PROCESSES)
def test_an_alarm_that_is_late_is_the_next_items(engine: Any, tmp_path: Path) -> None:
    struck = tmp_path / "struck"

    def handle(number: int, frame: Any) -> None:
        struck.touch()
        raise AlarmError("late")

    def set_alarm() -> int:
        signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        return os.getpid()

    def get() -> tuple[int, Any]:
        return os.getpid(), signal.getsignal(signal.SIGALRM) is handle

    with StatefulExecutor(n_jobs=1, engine=engine) as executor:
        pid = executor.submit(set_alarm).result()
        deadline = time.monotonic() + 30
        while not struck.exists():  # while the worker waits for a message
            assert time.monotonic() < deadline
            time.sleep(0.001)
        with pytest.raises(AlarmError, match="late"):
            executor.submit(os.getpid).result()
            executor.submit(get).result()  # calls of C functions alone may be over before Python looks
        assert executor.submit(get).result()[0] == pid


@on(*PROCESSES)
def test_handlers_that_do_not_raise_are_called_at_once(engine: Any, tmp_path: Path) -> None:
    told = tmp_path / "told"

    def listen() -> int:
        signal.signal(signal.SIGUSR1, lambda *_: told.touch())
        return os.getpid()

    with StatefulExecutor(n_jobs=1, engine=engine) as executor:
        pid = executor.submit(listen).result()
        os.kill(pid, signal.SIGUSR1)
        deadline = time.monotonic() + 30
        while not told.exists():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert executor.submit(os.getpid).result() == pid


@on(*PROCESSES)
def test_an_alarm_within_an_item_strikes_at_once(engine: Any) -> None:
    def limited(seconds: float) -> str:
        def handle(number: int, frame: Any) -> None:
            raise TimeoutError("too slow")

        before = signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            threading.Event().wait(20)
        except TimeoutError as error:
            return str(error)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        return "waited"

    def default() -> bool:
        return signal.getsignal(signal.SIGALRM) is signal.SIG_DFL

    with StatefulExecutor(n_jobs=1, engine=engine) as executor:
        assert executor.submit(limited, 0.05).result() == "too slow"
        assert executor.submit(default).result()


@on(*PROCESSES)
def test_children_of_a_worker_have_their_handlers(engine: Any) -> None:
    def fork_in_a_thread() -> str:
        def work() -> None:
            pid = os.fork()
            if pid == 0:
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.05)
                    for _ in range(2000):
                        time.sleep(0.01)
                except AlarmError:
                    os._exit(7)
                finally:
                    os._exit(8)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

        def handle(number: int, frame: Any) -> None:
            raise AlarmError

        codes: list[int] = []
        signal.signal(signal.SIGALRM, handle)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return str(codes)

    with StatefulExecutor(n_jobs=1, engine=engine) as executor:
        assert executor.submit(fork_in_a_thread).result() == "[7]"


@on(*PROCESSES)
def test_a_worker_ends_in_order_with_an_alarm_held(
    engine: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Closing(Alarmed):
        def close(self) -> None:
            super().close()
            (tmp_path / "closed").touch()

    executor = StatefulExecutor(Closing, 1, shared_kwargs={"interval": 0.3}, engine=engine)
    with executor, contextlib.suppress(AlarmError):
        executor.submit(call_worker, 1).result()
    assert (tmp_path / "closed").exists() or "AlarmError" in caplog.text
