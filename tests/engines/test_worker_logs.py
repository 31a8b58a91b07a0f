"""Log records of worker processes are handled by the loggers of the parent."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from joblib_stateful import StatefulExecutor, call_worker, errors, shutdown, stateful_map
from needs import needs
from programs import program_text

if TYPE_CHECKING:
    from conftest import RunProgram


pytestmark = needs("records")
log = logging.getLogger("app.of.logs")


class Collector(logging.Handler):
    """Keeps records, and can be told to wait with each."""

    def __init__(self, level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self.records: list[logging.LogRecord] = []
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.came = threading.Semaphore(0)

    def emit(self, record: logging.LogRecord) -> None:
        self.goes_on.wait()
        self.records.append(record)
        self.came.release()

    @property
    def messages(self) -> list[str]:
        return [record.getMessage() for record in self.records]


@contextlib.contextmanager
def collecting(
    name: str = "app.of.logs", level: int = logging.INFO, wants: int = logging.NOTSET, *, propagate: bool = True
) -> Iterator[Collector]:
    logger, collector = logging.getLogger(name), Collector(wants)
    before = logger.level
    logger.setLevel(level)
    logger.addHandler(collector)
    logger.propagate = propagate
    try:
        yield collector
    finally:
        collector.goes_on.set()
        shutdown()
        logger.propagate = True
        logger.removeHandler(collector)
        logger.setLevel(before)


class Talker:
    """Logs what it is told, and its own life."""

    def __init__(self, tag: str = "") -> None:
        log.info("built%s", tag)

    def __call__(self, item: Any) -> Any:
        return item() if callable(item) else log.info("item %d", item)

    def close(self) -> None:
        log.info("closed")


def test_records_come_with_the_slot_before_the_map_ends() -> None:
    with collecting() as collector:
        list(stateful_map(Talker, range(20), n_jobs=2))
        assert sorted(collector.messages, key=str)[:2] in (["built", "built"], ["built", "item 0"])
        items = [record for record in collector.records if record.msg == "item %d"]
        assert sorted(record.getMessage() for record in items) == sorted(f"item {at}" for at in range(20))
        assert {vars(record)["slot"] for record in items} <= {0, 1}
        assert all(record.process != os.getpid() and record.name == "app.of.logs" for record in items)
        assert {record.funcName for record in items} == {"__call__"}
        assert {record.filename for record in items} == {"test_worker_logs.py"}


def test_records_of_one_worker_come_in_order() -> None:
    with collecting() as collector:
        list(stateful_map(Talker, range(3_000), n_jobs=1))
        shutdown()  # which waits longer than the end of the map
        assert collector.messages == ["built", *(f"item {at}" for at in range(3_000)), "closed"]


def test_records_at_a_workers_end_come_before_shutdown_returns() -> None:
    with collecting() as collector:
        with StatefulExecutor(Talker, n_jobs=2) as executor:
            executor.warm_up()
        assert sorted(collector.messages) == ["built", "built", "closed", "closed"]


def log_and_exit() -> None:
    for at in range(100):
        log.info("last words %d", at)
    os._exit(3)


def log_and_be_killed() -> None:
    log.info("last words")
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("end", [log_and_exit, log_and_be_killed])
def test_records_before_a_crash_arrive(end: Callable[[], None]) -> None:
    with collecting() as collector:
        (result,) = stateful_map(Talker, [end], n_jobs=1, on_error="deferred")
        assert isinstance(result.exception, errors.WorkerCrashedError)
        count = 100 if end is log_and_exit else 1
        for _ in range(1 + count):
            assert collector.came.acquire(timeout=10)
        assert len([text for text in collector.messages if text.startswith("last words")]) == count


class Unpicklable:
    def __reduce__(self) -> str:
        raise TypeError("not me")

    def __str__(self) -> str:
        return "as text"

    def __repr__(self) -> str:
        return "as repr"


class Unloadable:
    def __reduce__(self) -> Any:
        return int, ("no number",)


def log_odd_things() -> None:
    log.info("an %s", Unpicklable(), extra={"odd": Unpicklable(), "fine": [1, 2], "bad": Unloadable()})
    log.info(Unpicklable())
    log.info("%(a)s", {"a": 3})
    try:
        os.environ["NO SUCH KEY"]
    except KeyError:
        log.exception("caught", stack_info=True)
    log.info("x" * 1_000_000)
    log.info("%d", "no number")  # a mistake of the user's, told on the worker's stderr as ever


def test_what_cannot_be_pickled_is_formatted_in_the_worker() -> None:
    with collecting() as collector:
        list(stateful_map(Talker, [log_odd_things], n_jobs=1))
        _, odd, message, mapping, caught, large, *_ = collector.records
        assert odd.getMessage() == "an as text"
        assert (vars(odd)["odd"], vars(odd)["fine"]) == ("as repr", [1, 2])
        assert "no number" in vars(odd)["bad"]
        assert message.getMessage() == "as text"
        assert mapping.getMessage() == "3"
        text = logging.Formatter().format(caught)
        assert text.startswith("caught\nTraceback (most recent call last):\n")
        assert 'os.environ["NO SUCH KEY"]' in text
        assert "KeyError: 'NO SUCH KEY'" in text
        assert "Stack (most recent call last)" in text
        assert large.getMessage() == "x" * 1_000_000


def levels() -> tuple[bool, bool, bool]:
    for level in (logging.DEBUG, logging.INFO, logging.ERROR):
        log.log(level, "at %d", level)
    return log.isEnabledFor(logging.DEBUG), log.isEnabledFor(logging.INFO), log.isEnabledFor(logging.ERROR)


def sent() -> list[int]:
    """Return the levels of records that are really sent, and not thrown away in the parent."""
    from joblib_stateful.engines.loky import _log_channel

    levels_sent: list[int] = []
    encode = _log_channel.encode

    def noting(record: logging.LogRecord) -> bytes:
        levels_sent.append(record.levelno)
        return encode(record)

    _log_channel.encode = noting
    try:
        levels()
    finally:
        _log_channel.encode = encode
    return levels_sent


def test_levels_are_the_parents_and_what_no_handler_wants_is_not_sent() -> None:
    # pytest's own handlers, above, want all of them
    wanting_info = collecting(level=logging.DEBUG, wants=logging.INFO, propagate=False)
    with wanting_info as collector, StatefulExecutor(n_jobs=1) as executor:
        assert executor.submit(levels).result() == (True, True, True)
        assert executor.submit(sent).result() == [logging.INFO, logging.ERROR]
        # Set while the worker stands, each is so from the next call on.
        collector.setLevel(logging.ERROR)
        log.setLevel(logging.INFO)
        assert executor.submit(levels).result() == (False, True, True)
        assert executor.submit(sent).result() == [logging.ERROR]
        log.disabled = True
        log.setLevel(logging.DEBUG)
        assert executor.submit(levels).result() == (False, False, False)
        log.disabled = False
        logging.disable(logging.INFO)
        try:
            assert executor.submit(levels).result() == (False, False, True)
        finally:
            logging.disable(logging.NOTSET)
        assert executor.submit(levels).result() == (True, True, True)


def test_a_logger_that_does_not_propagate_in_the_parent() -> None:
    aside = collecting(level=logging.WARNING, propagate=False)
    with aside as collector, collecting("app", level=logging.DEBUG) as others:
        list(stateful_map(Talker, [levels], n_jobs=1))
        assert (collector.messages, others.messages) == (["at 40"], [])


def flood() -> int:
    for at in range(30_000):
        log.info("flood %d %s", at, "x" * 300)
    return 1


def test_a_flood_into_a_slow_handler_delays_nothing_and_is_bounded() -> None:
    with collecting(propagate=False) as collector, StatefulExecutor(Talker, n_jobs=2) as executor:
        executor.warm_up()
        collector.goes_on.clear()  # a handler that takes none at all
        futures = [executor.submit(flood), executor.submit(flood)]
        assert [future.result(timeout=60) for future in futures] == [1, 1]
        assert executor.submit(int).result(timeout=60) == 0
        log_told = Collector()
        logging.getLogger("joblib_stateful").addHandler(log_told)
        collector.goes_on.set()
        executor.shutdown()
        logging.getLogger("joblib_stateful").removeHandler(log_told)
    numbers: dict[int, list[int]] = {0: [], 1: []}
    for record in collector.records:
        if str(record.msg).startswith("flood"):
            numbers[vars(record)["slot"]].append(record.args[0])  # type: ignore[index,arg-type]  # it is a tuple
    dropped = dict.fromkeys(numbers, 0)
    for record in log_told.records:
        assert record.levelno == logging.WARNING and "were dropped, the oldest first" in record.getMessage()
        dropped[vars(record)["slot"]] += record.args[0]  # type: ignore[index,operator]  # it is a tuple
    for slot, came in numbers.items():
        assert came == sorted(came)
        assert came[-1] == 29_999
        assert 0 < dropped[slot] == 30_000 - len(came)


class Broken(logging.Handler):
    def handle(self, record: logging.LogRecord) -> bool:
        raise RuntimeError("this handler is broken")


def test_a_handler_that_raises_does_no_harm(capfd: pytest.CaptureFixture[str]) -> None:
    with collecting() as collector:
        broken = Broken()
        logging.getLogger("app").addHandler(broken)
        try:
            assert list(stateful_map(Talker, [int, int], n_jobs=1)) == [0, 0]
            assert collector.messages == ["built"]
        finally:
            logging.getLogger("app").removeHandler(broken)
        assert "this handler is broken" in capfd.readouterr().err


class Mapping(logging.Handler):
    """A handler that asks the workers for something itself."""

    def __init__(self, executor: StatefulExecutor) -> None:
        super().__init__()
        self.executor = executor
        self.found: list[Any] = []

    def emit(self, record: logging.LogRecord) -> None:
        if not self.found:
            self.found += [self.executor.submit(abs, -2).result(timeout=30)]
            self.found += list(stateful_map(self.executor, [int], batch_size=1))
            log.info("handled")


def test_a_handler_may_use_the_executor() -> None:
    with collecting(), StatefulExecutor(Talker, n_jobs=2) as executor:
        handler = Mapping(executor)
        log.addHandler(handler)
        try:
            executor.warm_up()
            list(stateful_map(executor, [3]))
        finally:
            executor.shutdown()
            log.removeHandler(handler)
        assert handler.found == [2, 0]


def log_in_a_fork() -> int:
    pid = os.fork()
    if not pid:
        try:
            log.info("of a fork")
        finally:
            os._exit(0)
    return os.waitpid(pid, 0)[1]


@needs("fork")
def test_children_that_a_worker_forks_log_too() -> None:
    with collecting() as collector:
        assert list(stateful_map(Talker, [log_in_a_fork], n_jobs=1)) == [0]
        assert collector.messages == ["built", "of a fork"]


def map_inside() -> list[Any]:
    return list(stateful_map(Talker, [1, 2], n_jobs=1))


def test_records_of_nested_workers_are_handed_on() -> None:
    with collecting() as collector:
        list(stateful_map(Talker, [map_inside], n_jobs=1))
        shutdown()
        assert sorted(collector.messages) == ["built", "built", "closed", "closed", "item 1", "item 2"]


def configure_and_log() -> int:
    logging.basicConfig(level=logging.DEBUG, format="worker's own %(message)s")
    log.info("told")
    return len(logging.getLogger().handlers)


def test_basic_config_in_a_worker_changes_nothing() -> None:
    with collecting() as collector:
        assert list(stateful_map(Talker, [configure_and_log], n_jobs=1)) == [1]
        assert collector.messages == ["built", "told"]


def test_records_of_joblibs_calls_come_too() -> None:
    from joblib import Parallel, delayed, parallel_config

    with collecting() as collector, parallel_config(backend="stateful", worker=Talker, n_jobs=2):
        Parallel()(delayed(call_worker)(at) for at in range(5))
        assert {f"item {at}" for at in range(5)} <= set(collector.messages)


def test_a_script_without_any_configuration_shows_warnings_once(run_program: RunProgram) -> None:
    done = run_program(program_text("engines/logs_without_configuration"))
    assert (done.code, done.out, done.err.splitlines()) == (0, "", ["loud 0", "loud 1", "loud 2"])


def test_records_at_the_end_of_a_program_are_handled(run_program: RunProgram) -> None:
    done = run_program(program_text("engines/logs_at_its_end"))
    assert done.code == 0, done.err
    assert done.out.splitlines() == ["0 app item 0", "0 app item 1", "0 app closed", "0 app at exit"]


@needs("fork")
def test_a_fork_of_the_parent_has_nothing_to_do_with_its_workers_records(run_program: RunProgram) -> None:
    done = run_program(program_text("engines/logs_in_a_fork"))
    assert done.code == 0, done.err
    assert done.out.splitlines() == ["item a", "item in the fork", "item b"]
