"""What errors say: what happened, the likely cause, which item, which worker, and what to do.

Refused arguments are in `test_bad_input`; here are those that come up while things run.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import resource
import signal
import sys
import threading
import time
from typing import Any

import pytest
from joblib import Parallel, delayed, parallel_config

from joblib_stateful import StatefulBackend, StatefulExecutor, call_worker, errors, factory, get_worker, stateful_map
from joblib_stateful.compat.py_stateful_map import StateFullWorkerPool
from scenes import engines


def says(error: BaseException | None, *words: str) -> None:
    assert error is not None
    text = str(error)
    for word in words:
        assert word in text, text
    # A sentence, and no piece of it missing.
    assert "  " not in text or "\n" in text  # an example may be indented
    assert ".." not in text.replace("...", "")
    assert ": ." not in text
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (type(error), text)


def only_error(worker: Any, **options: Any) -> BaseException | None:
    (result,) = stateful_map(worker, ["item"], n_jobs=1, on_error="deferred", **options)
    return result.exception


# --- crashes --------------------------------------------------------------------------------------------


CRASHES = [-number for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)]


@pytest.mark.parametrize(
    ("exitcode", "words"),
    [
        (-signal.SIGKILL, ("was killed by SIGKILL", "out-of-memory killer", "dmesg", "fewer or smaller workers")),
        (
            -signal.SIGSEGV,
            ("was killed by SIGSEGV", "invalid memory access", "compiled code", 'engine="inline"', "faulthandler"),
        ),
        (-signal.SIGABRT, ("was killed by SIGABRT", "failed check", "compiled code")),
        (-signal.SIGBUS, ("was killed by SIGBUS", "full disk")),
        (-signal.SIGFPE, ("was killed by SIGFPE", "arithmetic")),
        (-signal.SIGILL, ("was killed by SIGILL", "instruction that this CPU lacks")),
        (-signal.SIGXCPU, ("was killed by SIGXCPU", "ulimit -t")),
        (-signal.SIGTERM, ("was killed by SIGTERM", "another process", "batch system")),
        (-63, ("was killed by signal 63", "another process")),
        (0, ("ended with exit code 0", "os._exit()")),
        (5, ("ended with exit code 5", "os._exit()")),
        (None, ("died",)),
    ],
)
def test_the_signal_tells_the_likely_cause(exitcode: int | None, words: tuple[str, ...]) -> None:
    error = errors.WorkerCrashedError(7, 2, 4711, exitcode)
    says(error, *words, "slot 2 (pid 4711)", "while it ran item 7.", "other workers keep their objects", "Set retries")
    assert ("out-of-memory" in str(error)) == (exitcode == -signal.SIGKILL)
    assert ("compiled code" in str(error)) == (exitcode in CRASHES)


def segfault(_: Any) -> None:
    ctypes.string_at(0)


def killed(_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def out_of_cpu_time(_: Any) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (1, 10))
    while True:
        pass


def test_a_segfault_and_the_out_of_memory_killer_are_told_apart(capfd: pytest.CaptureFixture[str]) -> None:
    error = only_error(segfault)
    says(error, "item 0", "slot 0", f"pid {getattr(error, 'pid', None)}", "SIGSEGV", "compiled code")
    assert "in segfault" in capfd.readouterr().err  # where the message sends its reader
    says(only_error(killed), "item 0", "slot 0", "SIGKILL", "out-of-memory killer")
    says(only_error(out_of_cpu_time), "SIGXCPU", "ulimit -t")


def test_a_submitted_call_is_called_a_call() -> None:
    with StatefulExecutor(n_jobs=1) as executor:
        says(executor.submit(os._exit, 3).exception(60), "exit code 3 while it ran a call.", "slot 0 (pid ")
        says(executor.submit(Unloadable).exception(60), "result of the call")


def test_a_slot_that_loses_worker_after_worker() -> None:
    detail = "Its slot lost 4 workers in a row, each before it finished anything; max_restarts=3."
    error = errors.WorkerCrashedError(None, 1, 4711, -9, detail)
    says(error, "slot 1 (pid 4711)", "SIGKILL while nothing ran on it.", "4 workers in a row", "out-of-memory")


# --- time limits ----------------------------------------------------------------------------------------


def test_an_item_over_its_time() -> None:
    error = only_error(lambda _: threading.Event().wait(), item_timeout=0.3)
    pid = getattr(error, "pid", None)
    says(error, "Item 0", "item_timeout=0.3 s", f"slot 0 (pid {pid})", "killed", "Raise item_timeout", "retries")


def wait_for_ever() -> None:
    threading.Event().wait()


class Loads:
    """A function; while a worker loads it, something is done there."""

    def __init__(self, do: Any, *args: Any) -> None:
        self.do, self.args = do, args

    def __call__(self, item: Any) -> Any:
        return item

    def __reduce__(self) -> Any:
        return self.do, self.args


def test_a_function_that_is_never_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("joblib_stateful._executor._timeouts._STARTUP_SECONDS", 0.2)  # instead of a minute
    with pytest.raises(errors.WorkerCrashedError) as caught:
        only_error(Loads(wait_for_ever), item_timeout=0.3, max_restarts=1)
    says(caught.value, "2 workers in a row", "max_restarts=1", "item_timeout=0.3 s", "importing", "raise item_timeout")
    assert "out-of-memory" not in str(caught.value)


def test_a_function_whose_loading_ends_its_worker_is_no_items_fault() -> None:
    with pytest.raises(errors.WorkerCrashedError) as caught:
        only_error(Loads(os._exit, 3), max_restarts=1)
    says(
        caught.value,
        "exit code 3 while nothing ran on it.",
        "2 workers in a row",
        "max_restarts=1",
        "fresh interpreter",
    )
    assert "retries" not in str(caught.value)


# --- construction ---------------------------------------------------------------------------------------


class Builds:
    def __init__(self, way: str, secret: str = "") -> None:
        if way == "raise":
            raise ValueError(f"no such device: {way}")
        if way == "raise nothing":
            raise ValueError
        if way == "raise a sentence":
            raise ValueError("No such device.")
        if way == "exit":
            sys.exit(5)
        if way == "hang":
            time.sleep(600)
        if way == "die":
            os.kill(os.getpid(), signal.SIGKILL)

    def __call__(self, item: Any) -> Any:
        return item


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("raise", ("ValueError: no such device: raise.",)),
        ("raise nothing", (": ValueError. Fix",)),
        ("raise a sentence", ("ValueError: No such device. Fix",)),
        ("exit", ("SystemExit: 5.",)),
        ("hang", ("init_timeout=0.5 s", "raise init_timeout")),
        ("die", ("died 2 times in a row", "killed by SIGKILL", "max_restarts=1", "out-of-memory killer")),
    ],
)
def test_an_object_that_could_not_be_built(way: str, words: tuple[str, ...]) -> None:
    kwargs = {"way": way, "secret": "hunter2"}
    with pytest.raises(errors.WorkerInitError) as caught:
        list(stateful_map(Builds, [1], n_jobs=1, shared_kwargs=kwargs, max_restarts=1, init_timeout=0.5))
    error = caught.value
    says(error, f"slot 0 (pid {error.pid})", "kwargs given: way, secret", *words, "Fix the cause and call again")
    assert error.pid is not None
    assert "hunter2" not in str(error)


def test_a_thread_is_given_up_not_killed() -> None:
    kwargs = {"way": "wait", "secret": ""}
    gate = threading.Event()
    with pytest.raises(errors.WorkerInitError) as caught:
        waits: Any = factory(lambda **_: gate.wait())
        list(stateful_map(waits, [1], n_jobs=1, shared_kwargs=kwargs, init_timeout=0.3, engine="threads"))
    gate.set()
    says(caught.value, "init_timeout=0.3 s and was given up", "raise init_timeout")


def test_a_process_that_could_not_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("joblib_stateful.engines.loky._process.WorkerProcess._Popen", fail)
    with pytest.raises(errors.WorkerInitError) as caught:
        list(stateful_map(abs, [1], n_jobs=1, max_restarts=1))
    says(caught.value, "slot 0", "could not be started, 2 times", "Too many open files", "ulimit -a", "fewer workers")
    assert "died" not in str(caught.value)


@engines
def test_an_object_that_cannot_be_called(engine: str) -> None:
    words = ("of type dict", "can't be called", "__call__", "factory's function")
    build: Any = factory(dict)
    (made,) = stateful_map(build, [1], n_jobs=1, on_error="deferred", engine=engine)
    with StatefulExecutor(dict, 1, engine=engine) as executor:
        (own,) = stateful_map(executor, [1], on_error="deferred")
    for result in (made, own):
        assert type(result.exception) is TypeError
        for word in words:
            assert word in str(result.exception)


def test_a_function_instead_of_a_class() -> None:
    with pytest.raises(
        TypeError, match=r"stateless function .*submit that instead; or write factory\(.*once per worker"
    ):
        StatefulExecutor(len)
    with pytest.raises(TypeError, match=r"stateless function .*write factory\(.*delayed\(\)"):
        StatefulBackend(worker=len)


# --- what can't travel ----------------------------------------------------------------------------------


class Unloadable:
    def __reduce__(self) -> Any:
        return explode, ()


def explode() -> None:
    raise LookupError("nothing here")


def locked() -> None:
    raise Locked


class Locked(Exception):  # noqa: N818 - users name theirs as they like
    def __init__(self) -> None:
        super().__init__("has a lock")
        self.lock = threading.Lock()


def test_what_cannot_travel() -> None:
    advice = ("cloudpickle", "locks", "imported on both sides")
    lock = only_error(lambda _: threading.Lock())
    says(lock, "result at index 0", "back from its worker", "cannot pickle '_thread.lock' object", *advice)
    unloadable = only_error(lambda _: Unloadable())
    says(unloadable, "result at index 0", "LookupError: nothing here.", *advice)
    (result,) = stateful_map(abs, [threading.Lock()], n_jobs=1, on_error="deferred")
    says(result.exception, "item at index 0", "to its worker", "cannot pickle '_thread.lock' object", *advice)
    for error in (lock, unloadable):
        assert error is not None
        assert "item 0, slot 0, pid " in error.__notes__[0]


def test_a_function_is_not_called_an_item() -> None:
    error = errors.TransferError(3, "function", "ImportError: x.")
    says(error, "The function to be called with the item at index 3 could not be sent to its worker: ImportError: x.")
    says(errors.TransferError(None, "function", "x."), "The function of the call could not be sent to its worker")


def test_an_exception_that_cannot_travel() -> None:
    error = only_error(lambda _: locked())
    says(error, "test_messages.Locked: has a lock", "RemoteError stands for it", "__reduce__")
    says(errors.RemoteError("ValueError", "x"), "ValueError: x\n")


# --- where there is no worker ---------------------------------------------------------------------------


def test_asking_for_the_worker_where_joblib_runs_a_call_inline_without_one() -> None:
    with parallel_config(backend="stateful", n_jobs=1), pytest.raises(errors.NoWorkerError) as caught:
        Parallel()(delayed(get_worker)() for _ in range(1))
    says(
        caught.value, "was given no worker class, and has run the call in this process", "n_jobs=1", "worker=YourClass"
    )


def test_asking_for_the_worker_outside_of_one() -> None:
    with pytest.raises(errors.NoWorkerError) as caught:
        get_worker()
    says(caught.value, "get_worker() was called outside a worker", "executor.submit(", "stateful_map(", "sharedmem")
    with StatefulExecutor(n_jobs=1, engine="inline") as executor:
        error = executor.submit(get_worker).exception(60)
    says(error, "this worker has no object", "no worker class", "StatefulExecutor(YourClass")


# --- the end --------------------------------------------------------------------------------------------


@engines
def test_an_executor_after_its_end(engine: str) -> None:
    with StatefulExecutor(Builds, 1, shared_kwargs={"way": "well"}, engine=engine) as executor:
        executor.submit(call_worker, 1).result(60)
    for use in (lambda: executor.submit(call_worker, 1), lambda: list(stateful_map(executor, [1]))):
        with pytest.raises(errors.ShutdownError) as caught:
            use()
        says(caught.value, "cannot schedule new futures after shutdown", "shutdown()", "Make a new executor")
    with pytest.raises(errors.ShutdownError, match=r"shut down.*make a new one"):
        executor.warm_up()


def test_a_call_that_shutdown_cut_short() -> None:
    with StatefulExecutor(n_jobs=1) as executor:
        future = executor.submit(time.sleep, 600)
        while not future.running():
            time.sleep(0.001)
        executor.shutdown(kill_workers=True)
        says(future.exception(60), "kill_workers=True", "submit it to another one")


def test_a_backend_on_its_own() -> None:
    with pytest.raises(errors.ShutdownError) as caught:
        StatefulBackend().submit(lambda: None)
    says(caught.value, "Parallel(backend=...)", "StatefulExecutor")


def test_a_pool_of_the_predecessor_after_its_end() -> None:
    with StateFullWorkerPool(1, Builds, {"way": "well"}, use_threads=True) as pool:
        pass
    with pytest.raises(errors.ShutdownError, match=r"with block was left; make a new StateFullWorkerPool"):
        pool.map([1], is_unordered=False)


# --- StopIteration --------------------------------------------------------------------------------------


def stop(item: int) -> int:
    if item == 2:
        raise StopIteration("of the worker")
    return item


@engines
def test_a_stop_iteration_names_its_item(engine: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        list(stateful_map(stop, range(4), n_jobs=1, batch_size=1, engine=engine))
    says(caught.value, "StopIteration for item 2", "end your loop")
    assert repr(caught.value.__cause__) == "StopIteration('of the worker')"


# --- joblib ---------------------------------------------------------------------------------------------


def test_under_joblib_the_task_is_named() -> None:
    with parallel_config(backend="stateful", n_jobs=2), pytest.raises(errors.WorkerCrashedError) as caught:
        Parallel(batch_size=1)(delayed(killed if n == 3 else abs)(n) for n in range(6))
    says(caught.value, "item 3", "SIGKILL", "slot ")
