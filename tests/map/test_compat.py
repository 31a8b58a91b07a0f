"""Programs written for py_stateful_map run on `joblib_stateful.compat.py_stateful_map`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from joblib_stateful import errors
from joblib_stateful.compat.py_stateful_map import (
    ArgumentPassing,
    ExceptionBehavior,
    StateFullWorkerPool,
    WorkerResultWrapper,
)
from programs import program_text


@pytest.mark.parametrize("order", ["ordered", "unordered"])
@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_program_runs_with_its_import_changed(tmp_path: Path, kind: str, order: str) -> None:
    program, log = tmp_path / "program.py", tmp_path / "log"
    program.write_text(program_text("map/program_of_the_predecessor"))
    done = subprocess.run(
        [sys.executable, str(program), str(log), kind, order], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "right True" in done.stdout
    assert "failed" not in done.stdout
    if order == "ordered":
        assert "in order True" in done.stdout
    # len() of the results gave the bar its end.
    assert re.search(r"100%\|█+\| 300/300", done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    main = re.findall(r"main (\d+)", done.stdout)
    built_in = log.read_text().split()
    assert 1 <= len(built_in) <= 2
    assert (set(built_in) == set(main)) == (kind == "threads")


# --- the pool -----------------------------------------------------------------------------------------


class Echo:
    """Returns what it was built from and where it runs, with what it was called with."""

    def __init__(self, name: str = "", greeting: str = "hello", meeting: Path | None = None) -> None:
        self.built_in = (os.getpid(), threading.get_ident())
        self.name, self.greeting, self.meeting = name, greeting, meeting
        if meeting is not None:
            (meeting / name).touch()

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        while self.meeting is not None and len(list(self.meeting.iterdir())) < 2:
            time.sleep(0.01)  # until the other worker is there
        return {
            "name": self.name,
            "greeting": self.greeting,
            "args": args,
            "kwargs": kwargs,
            "built_here": self.built_in == (os.getpid(), threading.get_ident()),
            "pid": os.getpid(),
        }


class Grumpy:
    """Raises on some items, and writes down which ones it was called with."""

    def __init__(self, log: Path, bad: tuple[int, ...], slow: dict[int, float] | None = None) -> None:
        self.log, self.bad, self.slow = log, bad, slow or {}

    def __call__(self, item: int) -> int:
        with self.log.open("a") as file:
            file.write(f"{item} begun\n")
        if item in self.bad:
            raise LookupError(f"no {item}")
        time.sleep(self.slow.get(item, 0.01))
        with self.log.open("a") as file:
            file.write(f"{item} done\n")
        return -item


def square(number: int) -> int:
    return number * number


def call_with(worker: Any, items: Any, *, unordered: bool = False, **options: Any) -> list[WorkerResultWrapper]:
    with StateFullWorkerPool(2, worker, **options) as pool:
        return list(pool.map(items, unordered))


@pytest.mark.parametrize("use_threads", [True, False])
def test_each_worker_is_built_in_its_own_process_from_its_own_kwargs(tmp_path: Path, *, use_threads: bool) -> None:
    results = call_with(
        Echo,
        range(100),
        shared_kwarg_dict={"name": "shared", "greeting": "hi", "meeting": tmp_path},
        worker_kwarg_dict_arr=[{"name": "a"}, {"name": "b"}],
        chunk_size=10,
        use_threads=use_threads,
    )
    seen = [result.ret_val for result in results if result.ret_val is not None]
    assert len(seen) == 100
    assert {value["name"] for value in seen} == {"a", "b"}
    assert {value["greeting"] for value in seen} == {"hi"}
    assert all(value["built_here"] for value in seen)
    assert (os.getpid() in {value["pid"] for value in seen}) == use_threads


@pytest.mark.parametrize(
    ("passing", "item", "args", "kwargs"),
    [
        (ArgumentPassing.AS_SINGLE_ARG, (1, 2), ((1, 2),), {}),
        (ArgumentPassing.AS_ARGS, (1, 2), (1, 2), {}),
        (ArgumentPassing.AS_KWARGS, {"x": 1, "y": 2}, (), {"x": 1, "y": 2}),
    ],
)
def test_argument_passing(passing: str, item: Any, args: Any, kwargs: Any) -> None:
    (result,) = call_with(Echo, [item], argument_passing=passing, use_threads=True)
    assert result.ret_val is not None
    assert (result.ret_val["args"], result.ret_val["kwargs"]) == (args, kwargs)


def test_constants_are_the_predecessors() -> None:
    assert (ArgumentPassing.AS_SINGLE_ARG, ArgumentPassing.AS_ARGS, ArgumentPassing.AS_KWARGS) == (
        "single_arg",
        "args",
        "kwargs",
    )
    assert (ExceptionBehavior.IMMEDIATE, ExceptionBehavior.IMMEDIATE_WAIT_OTHERS, ExceptionBehavior.DEFERRED) == (
        "immediate",
        "immediate_wait_others",
        "deferred",
    )


@pytest.mark.parametrize("unordered", [False, True])
@pytest.mark.parametrize("behavior", ["immediate", "immediate_wait_others", "deferred"])
def test_every_result_says_where_its_item_stood(behavior: str, *, unordered: bool) -> None:
    results = call_with(square, iter(range(500)), unordered=unordered, exception_behavior=behavior)
    assert sorted((result.obj_id, result.ret_val) for result in results) == [(i, i * i) for i in range(500)]
    assert all(result.exception_obj is None for result in results)
    if not unordered:
        assert [result.obj_id for result in results] == list(range(500))


def test_unordered_results_come_as_they_finish(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with StateFullWorkerPool(2, Grumpy, {"log": log, "bad": (), "slow": {0: 60}}, chunk_size=4) as pool:
        first = next(pool.map(range(4), is_unordered=True))
    assert first.obj_id != 0
    assert first.ret_val == -first.obj_id


def test_immediate_raises_while_others_run(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with StateFullWorkerPool(2, Grumpy, {"log": log, "bad": (1,), "slow": {0: 60}}) as pool:
        started = time.perf_counter()
        with pytest.raises(LookupError, match="no 1"):
            list(pool.map(range(100), is_unordered=False))
        assert "0 done" not in log.read_text()
    assert time.perf_counter() - started < 30
    assert "99 begun" not in log.read_text()


def test_immediate_wait_others_raises_when_the_others_have_ended(tmp_path: Path) -> None:
    log = tmp_path / "log"
    options: Any = {"exception_behavior": ExceptionBehavior.IMMEDIATE_WAIT_OTHERS}
    found: list[WorkerResultWrapper] = []
    with StateFullWorkerPool(2, Grumpy, {"log": log, "bad": (1,), "slow": {0: 1}}, **options) as pool:
        with pytest.raises(LookupError, match="no 1"):
            found.extend(pool.map(range(100), is_unordered=False))
        assert "0 done" in log.read_text()
    assert [(result.obj_id, result.ret_val) for result in found[:1]] == [(0, 0)]
    assert "99 begun" not in log.read_text()


@pytest.mark.parametrize("use_threads", [True, False])
@pytest.mark.parametrize("unordered", [False, True])
def test_deferred_puts_exceptions_into_results(tmp_path: Path, *, unordered: bool, use_threads: bool) -> None:
    results = call_with(
        Grumpy,
        range(20),
        unordered=unordered,
        shared_kwarg_dict={"log": tmp_path / "log", "bad": (3, 7)},
        exception_behavior=ExceptionBehavior.DEFERRED,
        use_threads=use_threads,
    )
    failed = {result.obj_id: result for result in results if result.exception_obj is not None}
    assert sorted(failed) == [3, 7]
    assert all(type(result.exception_obj) is LookupError for result in failed.values())
    assert all(result.ret_val is None for result in failed.values())
    assert sorted(result.obj_id for result in results) == list(range(20))


def test_input_is_pulled_no_further_than_the_window() -> None:
    pulled = 0

    def items() -> Iterator[int]:
        nonlocal pulled
        for number in range(1000):
            pulled += 1
            yield number

    for unordered, window in ((False, 5), (True, 15)):
        pulled = 0
        with StateFullWorkerPool(2, square, chunk_size=5, chunk_prefill_ratio=3, use_threads=True) as pool:
            for taken, _ in enumerate(pool.map(items(), unordered), 1):
                assert pulled - (taken - 1) <= window
            assert pulled == 1000


def test_length() -> None:
    with StateFullWorkerPool(1, square, use_threads=True) as pool:
        assert len(pool.map([1, 2, 3], is_unordered=True)) == 3
        with pytest.raises(TypeError, match="no"):
            len(pool.map(iter([1, 2, 3]), is_unordered=True))


def test_pool_can_be_mapped_again_and_keeps_its_objects() -> None:
    with StateFullWorkerPool(1, Echo) as pool:
        rounds = [[result.ret_val for result in pool.map(range(50), is_unordered=True)] for _ in range(2)]
    pids = [{value["pid"] for value in values if value is not None} for values in rounds]
    assert pids[0] == pids[1]
    assert len(pids[0]) == 1


class Closing:
    def __init__(self, log: Path) -> None:
        self.log = log

    def __call__(self, item: float) -> int:
        time.sleep(item)
        return os.getpid()

    def close(self) -> None:
        with self.log.open("a") as file:
            file.write("closed\n")


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_leaving_the_block_ends_the_workers(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with StateFullWorkerPool(1, Closing, {"log": log}) as pool:
        (result,) = pool.map([0.0], is_unordered=False)
        assert result.ret_val is not None
        assert is_alive(result.ret_val)
    assert not is_alive(result.ret_val)
    assert log.read_text() == "closed\n"
    with pytest.raises(errors.ShutdownError, match="with block was left"):
        pool.map([0.0], is_unordered=False)


class Patient:
    """Waits, when it is called or closed, until a file is there: a thread can't be killed."""

    def __init__(self, release: Path, *, slow_to_close: bool = False) -> None:
        self.release, self.slow_to_close = release, slow_to_close

    def wait(self) -> None:
        while not self.release.exists():
            time.sleep(0.01)

    def __call__(self, item: str) -> None:
        if item == "wait":
            self.wait()

    def close(self) -> None:
        if self.slow_to_close:
            self.wait()


@pytest.mark.parametrize("use_threads", [True, False])
def test_leaving_the_block_does_not_wait_for_what_runs(tmp_path: Path, *, use_threads: bool) -> None:
    release = tmp_path / "release"
    with StateFullWorkerPool(2, Patient, {"release": release}, use_threads=use_threads) as pool:
        for _ in pool.map(["go", "wait"], is_unordered=False):
            break
    release.touch()


@pytest.mark.parametrize("use_threads", [True, False])
def test_join_timeout_bounds_closing(tmp_path: Path, *, use_threads: bool) -> None:
    options: Any = {"use_threads": use_threads, "join_timeout": 0.2}
    release = tmp_path / "release"
    kwargs = {"release": release, "slow_to_close": True}
    with StateFullWorkerPool(1, Patient, kwargs, **options) as pool:
        list(pool.map(["go"], is_unordered=False))
    release.touch()


class Fragile:
    def __call__(self, item: int) -> int:
        if item == 5:
            os._exit(3)
        return item


def test_worker_that_dies_costs_its_item_and_no_hang() -> None:
    results = call_with(Fragile, range(10), exception_behavior=ExceptionBehavior.DEFERRED)
    (failed,) = [result for result in results if result.exception_obj is not None]
    assert failed.obj_id == 5
    assert isinstance(failed.exception_obj, errors.WorkerCrashedError)
    assert failed.exception_obj.exitcode == 3


def test_number_of_workers_is_at_least_one() -> None:
    for given in (0, -3, "2"):
        with StateFullWorkerPool(given, square, use_threads=True) as pool:  # type: ignore[arg-type]
            assert [result.ret_val for result in pool.map([1, 2], is_unordered=False)] == [1, 4]
            assert pool.num_workers == max(int(given), 1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_workers": "two"}, TypeError, "num_workers must be a whole number, not 'two'"),
        ({"chunk_size": 0}, ValueError, "chunk_size must be 1 or more"),
        ({"chunk_prefill_ratio": None}, TypeError, "chunk_prefill_ratio must be a whole number"),
        ({"argument_passing": "item"}, ValueError, "argument_passing must be one of 'single_arg', 'args', 'kwargs'"),
        ({"exception_behavior": "wait"}, ValueError, "exception_behavior must be one of 'immediate'"),
        ({"join_timeout": -1}, ValueError, "join_timeout must be 0 seconds or more"),
        ({"join_timeout": "1"}, TypeError, "join_timeout must be a number of seconds"),
        ({"shared_kwarg_dict": [1]}, TypeError, "shared_kwarg_dict must be a dict"),
        ({"worker_kwarg_dict_arr": {"name": "a"}}, TypeError, "worker_kwarg_dict_arr must be a list"),
        ({"worker_kwarg_dict_arr": [{}]}, ValueError, "num_workers=2, but worker_kwarg_dict_arr has 1 entry"),
        ({"worker_kwarg_dict_arr": [{}, 1]}, TypeError, r"worker_kwarg_dict_arr\[1\] must be a dict"),
        ({"shared_kwarg_dict": {"nam": "a"}}, TypeError, "unexpected keyword argument 'nam'"),
        ({"worker_class_or_func": 3}, TypeError, "must be a class or a function, not 3"),
        ({"worker_class_or_func": square, "shared_kwarg_dict": {"a": 1}}, TypeError, "stateless function"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        StateFullWorkerPool(**{"num_workers": 2, "worker_class_or_func": Echo, **options})


def test_constructor_that_raises_is_told_from_the_first_next() -> None:
    class Broken:
        def __init__(self) -> None:
            raise OSError("no such model")

        def __call__(self, item: int) -> int:
            return item

    with StateFullWorkerPool(1, Broken) as pool:
        results = pool.map([1], is_unordered=False)
        with pytest.raises(errors.WorkerInitError, match="no such model") as caught:
            next(results)
    assert isinstance(caught.value.__cause__, OSError)


def test_star_import_gives_the_predecessors_names() -> None:
    names: dict[str, Any] = {}
    exec("from joblib_stateful.compat.py_stateful_map import *", names)
    assert {"StateFullWorkerPool", "WorkerResultWrapper", "ExceptionBehavior", "ArgumentPassing"} <= names.keys()
