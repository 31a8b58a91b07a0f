"""What newcomers get wrong is answered by the line that they wanted to write."""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from joblib import Parallel, delayed, parallel_config

from conftest import ENGINES, RunProgram
from joblib_stateful import (
    StatefulBackend,
    StatefulExecutor,
    call_worker,
    errors,
    factory,
    get_worker,
    get_worker_info,
    stateful_map,
)
from joblib_stateful._words import a, count, short
from joblib_stateful.testing import MemoryEngine
from programs import program_text

ALL_ENGINES = pytest.mark.parametrize("engine", [*ENGINES, "memory"])


class Model:
    """Keeps what it is given."""

    def __init__(self, lock: Any = None) -> None:
        self.lock = lock

    def __call__(self, item: Any) -> Any:
        return item


def get(name: str) -> Any:
    return MemoryEngine(auto=True) if name == "memory" else name


# --- misspelt options -----------------------------------------------------------------------------------

MISSPELT = [
    ("shared_kwarg", {}, "shared_kwargs"),
    ("worker_kwarg", [{}], "worker_kwargs"),
    ("num_workers", 2, "n_jobs"),
    ("max_workers", 2, "n_jobs"),
    ("workers", 2, "n_jobs"),
    ("njobs", 2, "n_jobs"),
    ("timeout", 2, "item_timeout"),
    ("retry", 2, "retries"),
]


@pytest.mark.parametrize(("given", "value", "meant"), MISSPELT)
def test_a_misspelt_option_is_answered_by_the_one_that_was_meant(given: str, value: Any, meant: str) -> None:
    message = rf"has no argument '{given}'\. Did you mean {meant}\? It takes .*worker_env"
    option = {given: value}
    with pytest.raises(TypeError, match=rf"^stateful_map {message}"):
        stateful_map(Model, [1], **option)
    with pytest.raises(TypeError, match=rf"^StatefulExecutor {message}"):
        StatefulExecutor(Model, **option)
    with pytest.raises(TypeError, match=rf'^The backend "stateful" {message}'):
        StatefulBackend(worker=Model, **option)
    with pytest.raises(TypeError, match=message):
        parallel_config(backend="stateful", worker=Model, **option)


@pytest.mark.parametrize(
    ("given", "meant"), [("chunksize", "batch_size"), ("unordered", "ordered"), ("Batch_Size", "batch_size")]
)
def test_a_misspelt_option_of_maps_is_answered_by_the_one_that_was_meant(given: str, meant: str) -> None:
    options: dict[str, Any] = {given: 4}
    with pytest.raises(TypeError, match=rf"Did you mean {meant}\?"):
        stateful_map(Model, [1], **options)


def test_several_misspelt_options_and_one_like_none() -> None:
    options: dict[str, Any] = {"num_workers": 2, "shared_kwarg": {}}
    with pytest.raises(
        TypeError, match=r"'num_workers', 'shared_kwarg'\. Did you mean n_jobs for .*, shared_kwargs for"
    ):
        stateful_map(Model, [1], **options)
    options = {"xyzzy": 1}
    with pytest.raises(TypeError, match=r"has no argument 'xyzzy'\. It takes worker, iterable, n_jobs"):
        stateful_map(Model, [1], **options)


def test_the_number_of_jobs_is_not_the_backends() -> None:
    with pytest.raises(TypeError, match=r"n_jobs is joblib's: write parallel_config"):
        StatefulBackend(worker=Model, n_jobs=2)


@pytest.mark.parametrize(("given", "meant"), [("descr", "desc"), ("colors", "colour"), ("min_interval", "mininterval")])
def test_a_misspelt_argument_of_the_bar(given: str, meant: str) -> None:
    with pytest.raises(TypeError, match=rf"^tqdm, .* has no argument '{given}'\. Did you mean {meant}\?"):
        stateful_map(Model, [1], progress={given: "x"})
    with pytest.raises(TypeError, match=rf"Did you mean {meant}\?"):
        StatefulBackend(progress={given: "x"})


# --- the wrong thing in the right place -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["shared_kwargs", "worker_kwargs"])
def test_kwargs_without_a_worker(name: str) -> None:
    value: Any = {"device": 1} if name == "shared_kwargs" else [{"device": 1}]
    message = rf"^{name} \(device\) are what each worker's object is built from.*Write worker=YourClass"
    options: dict[str, Any] = {name: value}
    with pytest.raises(TypeError, match=message):
        StatefulExecutor(**options)
    with pytest.raises(TypeError, match=message):
        StatefulBackend(**options)
    with pytest.raises(TypeError, match=message), parallel_config(backend="stateful", **options):
        pass


@ALL_ENGINES
def test_an_item_is_submitted_instead_of_a_function(engine: str) -> None:
    untyped: Any
    with StatefulExecutor(Model, 1, engine=get(engine)) as untyped:
        with pytest.raises(TypeError, match=r"'item' can't be called.*executor\.submit\(call_worker, 'item'\)"):
            untyped.submit("item")
        with pytest.raises(TypeError, match=r"\[0, 0, .*\.\.\. can't be called") as caught:
            untyped.submit([0] * 100_000)
        assert len(str(caught.value)) < 1000
        with pytest.raises(TypeError, match="None can't be called"):
            untyped.map(None, [1, 2])
        assert untyped.submit(call_worker, "item").result(60) == "item"


# --- inside, outside ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "line"),
    [
        (get_worker, "executor.submit(function, item)"),
        (get_worker_info, "executor.submit(get_worker_info)"),
        (call_worker, "executor.submit(call_worker, item)"),
    ],
)
def test_outside_a_worker_the_function_and_the_cause_are_named(function: Any, line: str) -> None:
    args = ("item",) if function is call_worker else ()
    with pytest.raises(errors.NoWorkerError) as caught:
        function(*args)
    text = str(caught.value)
    assert text.startswith(f"{function.__name__}() was called outside a worker.")
    assert "made in the main program" in text
    assert line in text
    with parallel_config(backend="stateful"), pytest.raises(errors.NoWorkerError) as caught:
        Parallel()(delayed(function)(*args) for _ in range(2))
    assert "was given no worker class" in str(caught.value)


@ALL_ENGINES
def test_call_worker_where_there_is_nothing_to_call(engine: str) -> None:
    with (
        StatefulExecutor(n_jobs=1, engine=get(engine)) as executor,
        pytest.raises(errors.NoWorkerError, match=r"^call_worker\(\): this worker has no object"),
    ):
        executor.submit(call_worker, 1).result(60)
    with (
        StatefulExecutor(dict, 1, engine=get(engine)) as executor,
        pytest.raises(TypeError, match=r"this one is a dict, which can't be called.*get_worker\(\)\.method"),
    ):
        executor.submit(call_worker, 1).result(60)


# --- what can't be sent ---------------------------------------------------------------------------------

MANAGER = r"manager = multiprocessing\.Manager\(\)"


SPAWN = multiprocessing.get_context("spawn")
VALUE = SPAWN.Value("i")  # once: the memory in which it lies stays as long as the process


@pytest.mark.parametrize("kind", ["Lock", "Queue", "Event", "Value"])
def test_a_lock_of_multiprocessings(kind: str) -> None:
    held: Any = VALUE if kind == "Value" else getattr(SPAWN, kind)()
    with pytest.raises(TypeError, match=rf"kwarg 'lock' can't be pickled.*{MANAGER}"):
        stateful_map(Model, [1], n_jobs=1, shared_kwargs={"lock": held})
    with pytest.raises(TypeError, match=rf"worker_kwargs\[0\]\['lock'\] can't be pickled.*{MANAGER}"):
        StatefulExecutor(Model, worker_kwargs=[{"lock": held}])
    with pytest.raises(TypeError, match=MANAGER):
        stateful_map(lambda _: held, [1], n_jobs=1)
    (result,) = stateful_map(Model, [held], n_jobs=1, on_error="deferred")
    with pytest.raises(errors.TransferError, match=MANAGER):
        result.unwrap()


def test_locks_and_queues_of_a_manager_can_be_shared(run_program: RunProgram) -> None:
    done = run_program(program_text("programs/shares_what_a_manager_has"))
    assert (done.code, done.out) == (0, "190 True\nitem\n"), done.err


def test_a_class_that_workers_cannot_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "only_here"
    folder.mkdir()
    (folder / "only_here_module.py").write_text("class Held:\n    pass\n")
    monkeypatch.syspath_prepend(folder)
    held = __import__("only_here_module").Held()
    sys.path.remove(str(folder))
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(folder)])
    with StatefulExecutor(Model, 1, shared_kwargs={"lock": held}) as executor:
        error = executor.submit(call_worker, 1).exception(60)
    assert isinstance(error, errors.WorkerInitError)
    assert isinstance(error.__cause__, ModuleNotFoundError)
    for words in (
        "could not be unpickled there",
        "No module named",
        "register_pickle_by_value",
        "(kwargs given: lock)",
    ):
        assert words in str(error)


def test_a_constructor_that_fails_gets_no_advice_on_pickling() -> None:
    def fail() -> None:
        raise ModuleNotFoundError("No module named 'torch'")

    with StatefulExecutor(factory(fail), 1) as executor:
        error = executor.submit(call_worker, 1).exception(60)
    assert "No module named 'torch'" in str(error)
    assert "pickle" not in str(error)


# --- words ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("noun", "said"),
    [
        ("int", "an int"),
        ("ndarray", "a ndarray"),
        ("str", "a str"),
        ("user", "a user"),
        ("UnicodeError", "a UnicodeError"),
    ],
)
def test_messages_have_the_right_article(noun: str, said: str) -> None:
    assert a(noun) == said


def test_messages_have_the_right_plurals_and_shorten_long_texts() -> None:
    assert [count(number, "entry") for number in (0, 1, 2)] == ["0 entries", "1 entry", "2 entries"]
    assert count(2, "worker") == "2 workers"
    assert short("x") == "'x'"
    assert len(short(np.zeros((100, 100)).tolist())) < 300


def test_messages_use_the_right_plurals() -> None:
    with pytest.raises(ValueError, match="worker_kwargs has 1 entry"):
        stateful_map(Model, [1], n_jobs=2, worker_kwargs=[{}])
    with pytest.raises(ValueError, match="worker_env has 1 entry, but n_jobs=2"):
        stateful_map(Model, [1], n_jobs=2, worker_env=[{}])
    with pytest.raises(TypeError, match=r"this item is an int, not a sequence"):
        list(stateful_map(Model, [1], n_jobs=1, pass_as="args", engine="inline"))
    with pytest.raises(TypeError, match=r"not an int\."):
        stateful_map(Model, [1], worker_kwargs=3)  # type: ignore[call-overload]  # that is the point
    assert "times in a row" not in errors.why_not_built(1, 0, 3, "")
    assert "2 times in a row" in errors.why_not_built(2, 1, 3, "")


def test_a_warning_of_a_changed_environment_points_at_the_line_that_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with StatefulExecutor(Model, 1) as executor:
        assert list(stateful_map(executor, [1])) == [1]
        monkeypatch.setenv("A_VARIABLE_OF_THIS_TEST", "1")
        with pytest.warns(RuntimeWarning, match="A_VARIABLE_OF_THIS_TEST") as caught:
            assert list(stateful_map(executor, [2])) == [2]
    assert [warning.filename for warning in caught] == [__file__]
