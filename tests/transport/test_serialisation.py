"""What is hard to send: difficult exceptions, results and items cost themselves, and no worker its object.

The packing by itself, and the bad pickles that only need a class, are in `test_transport`.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from joblib_stateful import StatefulExecutor, TaskResult, call_worker, errors, stateful_map
from scenes import policies

if TYPE_CHECKING:
    from conftest import BuildLog


class Refuses(Exception):  # noqa: N818 - users name theirs as they like
    def __reduce__(self) -> Any:
        raise RuntimeError("no pickling, please")


class Connected(Exception):  # noqa: N818 - users name theirs as they like
    """Carries what can't travel, as database errors carry their connection."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.connection = socket.socket()


class FitsItself(Exception):  # noqa: N818 - users name theirs as they like
    """Needs arguments too, and says how it is rebuilt."""

    def __init__(self, status: int, url: str) -> None:
        super().__init__(f"{status} for {url}")
        self.status, self.url = status, url

    def __reduce__(self) -> Any:
        return FitsItself, (self.status, self.url)


class Explodes:
    """Can be sent, but not received."""

    def __setstate__(self, state: Any) -> None:
        raise LookupError("no such thing here")

    def __getstate__(self) -> Any:
        return {"state": 1}


def raise_a_chain(depth: int) -> None:
    error: Exception = OSError("the very first cause")
    for level in range(depth):
        try:
            raise ValueError(f"level {level}") from error
        except ValueError as found:
            error = found
    raise error


def generate() -> Iterator[int]:
    yield 1


class Does:
    """Does what the item says."""

    def __init__(self, built: BuildLog) -> None:
        built.note()
        self.built = built

    def __call__(self, item: Any) -> Any:
        match item:
            case "raise refuses":
                raise Refuses("original text")
            case "raise connected":
                raise Connected("lost it")
            case "raise fits":
                raise FitsItself(404, "/a")
            case "raise group":
                raise ExceptionGroup("several", [ValueError(1), ExceptionGroup("inner", [KeyError("a")])])
            case "raise bad group":
                raise ExceptionGroup("several", [ValueError(1), Refuses("inner text")])
            case "raise chain":
                raise_a_chain(200)
            case "raise own module":
                folder = self.built.path.parent
                (folder / "only_in_the_worker.py").write_text("class Odd(Exception): pass\n")
                sys.path.insert(0, str(folder))
                importlib.invalidate_caches()
                raise importlib.import_module("only_in_the_worker").Odd("strange")
            case "lock":
                return threading.Lock()
            case "explodes":
                return Explodes()
            case "module":
                return {"deep": [sys, threading.current_thread()]}
        return item, os.getpid()


def with_neighbours(bad: Any, built: BuildLog) -> TaskResult[Any]:
    """Map an item in the middle of a batch, see that its neighbours are unharmed, and return its result."""
    items = [("a",), ("b",), bad, ("c",), ("d",)]
    kwargs = {"built": built}
    results = list(stateful_map(Does, items, n_jobs=1, shared_kwargs=kwargs, batch_size=5, on_error="deferred"))
    assert [result.index for result in results] == list(range(5))
    good = [result.unwrap() for result in results if result.index != 2]
    assert [item for item, _ in good] == [("a",), ("b",), ("c",), ("d",)]
    assert len({pid for _, pid in good}) == 1
    assert len(built) == 1
    return results[2]


# --- exceptions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "type_name", "message"),
    [
        ("raise refuses", "test_serialisation.Refuses", "original text"),
        ("raise connected", "test_serialisation.Connected", "lost it"),
        ("raise own module", "only_in_the_worker.Odd", "strange"),
        ("raise bad group", "ExceptionGroup", "several (2 sub-exceptions)"),
    ],
)
def test_an_exception_that_cannot_travel_has_another_stand_for_it(
    item: str, type_name: str, message: str, built: BuildLog
) -> None:
    error = with_neighbours(item, built).exception
    assert type(error) is errors.RemoteError
    assert (error.type_name, error.message) == (type_name, message)
    assert f"{type_name}: {message}" in str(error)
    assert "in __call__" in error.remote_traceback
    assert "item 2, slot 0, pid " in error.__notes__[0]
    if item == "raise bad group":
        assert "Refuses: inner text" in error.remote_traceback


def test_an_exception_with_required_arguments_that_says_how_to_rebuild_it(built: BuildLog) -> None:
    error = with_neighbours("raise fits", built).exception
    assert isinstance(error, FitsItself)
    assert (error.status, error.url, str(error)) == (404, "/a", "404 for /a")


def test_a_group_arrives_with_all_that_is_in_it(built: BuildLog) -> None:
    error = with_neighbours("raise group", built).exception
    assert isinstance(error, ExceptionGroup)
    first, second = error.exceptions
    assert repr(first) == "ValueError(1)"
    assert isinstance(second, ExceptionGroup)
    assert repr(second.exceptions) == "(KeyError('a'),)"
    assert "in __call__" in str(error.__cause__)


def test_a_long_chain_of_causes_is_in_the_traceback(built: BuildLog) -> None:
    error = with_neighbours("raise chain", built).exception
    assert isinstance(error, ValueError)
    assert str(error) == "level 199"
    assert isinstance(error.__cause__, errors.RemoteTraceback)
    text = str(error.__cause__)
    assert text.index("OSError: the very first cause") < text.index("ValueError: level 0")
    assert text.count("direct cause") == 200


@policies
def test_what_stands_for_an_exception_obeys_the_policy(policy: Any, built: BuildLog) -> None:
    results: Any = stateful_map(
        Does, [1, "raise refuses", 2], n_jobs=1, shared_kwargs={"built": built}, batch_size=3, on_error=policy
    )
    if policy == "deferred":
        assert [result.ok for result in results] == [True, False, True]
    else:
        with pytest.raises(errors.RemoteError, match=r"Refuses: original text"):
            list(results)


# --- results --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "cause"),
    [
        ("lock", "cannot pickle '_thread.lock' object"),
        ("explodes", "LookupError: no such thing here"),
        ("module", "TypeError: cannot pickle"),
    ],
)
def test_a_result_that_cannot_travel_is_its_items_error(item: str, cause: str, built: BuildLog) -> None:
    error = with_neighbours(item, built).exception
    assert type(error) is errors.TransferError
    assert (error.index, error.what) == (2, "result")
    assert cause in error.reason
    assert "result at index 2" in str(error)


# --- items ----------------------------------------------------------------------------------------------


@pytest.fixture
def parents_own(tmp_path: Path) -> Iterator[ModuleType]:
    """Return a module that this process has imported, and that no worker can import."""
    path = tmp_path / "elsewhere" / "only_in_the_parent.py"
    path.parent.mkdir()
    path.write_text(
        "class Item:\n"
        "    pass\n"
        "class Worker:\n"
        "    def __init__(self, setting=None):\n"
        "        pass\n"
        "    def __call__(self, item):\n"
        "        return item\n"
        "def work(item):\n"
        "    return item\n"
    )
    spec = importlib.util.spec_from_file_location("only_in_the_parent", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["only_in_the_parent"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["only_in_the_parent"]


REAL = "ModuleNotFoundError: No module named 'only_in_the_parent'"


def test_an_item_whose_class_the_worker_cannot_import(parents_own: ModuleType, built: BuildLog) -> None:
    error = with_neighbours(parents_own.Item(), built).exception
    assert type(error) is errors.TransferError
    assert (error.index, error.what) == (2, "item")
    assert REAL in error.reason
    assert "item at index 2" in str(error)
    assert REAL in str(error.__cause__)


def test_a_generator_as_item(built: BuildLog) -> None:
    error = with_neighbours(generate(), built).exception
    assert type(error) is errors.TransferError
    assert "cannot pickle 'generator' object" in str(error)
    assert isinstance(error.__cause__, TypeError)


def test_a_worker_class_that_the_worker_cannot_import(parents_own: ModuleType) -> None:
    with pytest.raises(errors.WorkerInitError, match=REAL) as caught:
        list(stateful_map(parents_own.Worker, [1], n_jobs=1))
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_a_setting_whose_class_the_worker_cannot_import(parents_own: ModuleType, built: BuildLog) -> None:
    with pytest.raises(errors.WorkerInitError, match=REAL):
        list(stateful_map(Does, [1], n_jobs=1, shared_kwargs={"built": parents_own.Item()}))


def test_a_function_that_the_worker_cannot_import(parents_own: ModuleType) -> None:
    results = list(stateful_map(parents_own.work, range(3), n_jobs=1, batch_size=3, on_error="deferred"))
    assert [type(result.exception) for result in results] == [errors.TransferError] * 3
    for index, result in enumerate(results):
        assert f"function to be called with the item at index {index}" in str(result.exception)
        assert REAL in str(result.exception)


def test_an_argument_of_a_submitted_call_that_the_worker_cannot_import(
    parents_own: ModuleType, built: BuildLog
) -> None:
    with StatefulExecutor(Does, 1, shared_kwargs={"built": built}) as executor:
        bad = executor.submit(call_worker, parents_own.Item())
        good = executor.submit(call_worker, 1)
        error = bad.exception(60)
        assert type(error) is errors.TransferError
        assert error.index is None
        assert REAL in str(error)
        assert good.result(60)[0] == 1
    assert len(built) == 1


def test_functions_of_one_batch_keep_their_own_globals() -> None:
    def functions() -> Iterator[Any]:
        for number in range(40):
            space: dict[str, Any] = {"__name__": f"module_{number}"}
            exec("def name(): return globals()['__name__']", space)
            yield space["name"]

    names = list(stateful_map(lambda function: function(), functions(), n_jobs=1, batch_size=20))
    assert names == [f"module_{number}" for number in range(40)]
