"""Wrong arguments are refused at the call, in words that say what to write instead."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar

import psutil
import pytest

from conftest import ENGINES
from joblib_stateful import StatefulExecutor, factory, stateful_map
from joblib_stateful.testing import MemoryEngine
from scenes import engines

NAN, INF = float("nan"), float("inf")


class Model:
    """What a user's worker looks like."""

    def __init__(self, path: str, *, device: int = 0, lock: Any = None) -> None:
        self.path = path

    def __call__(self, item: int) -> int:
        return item


class NotCallable:
    pass


class StartsNone(MemoryEngine):
    """As engines are whose processes run already, such as Dask's."""

    takes_env: ClassVar[bool] = False


def stateless(item: int) -> int:
    return item


class Untouched:
    """An input that notices when it is touched."""

    def __init__(self) -> None:
        self.touched = False

    def __iter__(self) -> Iterator[int]:
        self.touched = True
        return iter(range(3))


def refused(kind: type[Exception], *words: str, worker: Any = Model, **options: Any) -> None:
    """See that a call is refused, with these words, before anything was started or touched."""
    source = Untouched()
    before = {*threading.enumerate(), *psutil.Process().children()}
    if worker is Model and "shared_kwargs" not in options and "worker_kwargs" not in options:
        options["shared_kwargs"] = {"path": "p"}
    with pytest.raises(kind) as caught:
        stateful_map(worker, source, **options)
    message = str(caught.value)
    for word in words:
        assert word in message, message
    assert type(caught.value) is kind
    assert not source.touched
    # Some of before may have ended meanwhile.
    assert not {*threading.enumerate(), *psutil.Process().children()} - before


# --- n_jobs ---------------------------------------------------------------------------------------------


@engines
def test_n_jobs(engine: str) -> None:
    refused(ValueError, "n_jobs=0", "-1 for all CPUs", n_jobs=0, engine=engine)
    for value in (True, 2.0, "2", [2], NAN):
        refused(TypeError, "n_jobs must be an integer", repr(value), n_jobs=value, engine=engine)


@engines
def test_n_jobs_and_worker_kwargs_that_contradict_each_other(engine: str) -> None:
    two = [{"path": "a"}, {"path": "b"}]
    for n_jobs in (1, 3):
        refused(
            ValueError,
            f"n_jobs={n_jobs}",
            "2 entries",
            "Leave n_jobs out",
            worker_kwargs=two,
            n_jobs=n_jobs,
            engine=engine,
        )


# --- kwargs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [{"path": "p"}, "path", 3, iter([{"path": "p"}])])
def test_worker_kwargs_that_are_no_list(value: Any) -> None:
    refused(TypeError, "worker_kwargs must be a list", type(value).__name__, "shared_kwargs", worker_kwargs=value)


def test_worker_kwargs_that_are_no_dicts() -> None:
    refused(TypeError, "worker_kwargs[1] must be a dict", "'b'", worker_kwargs=[{"path": "a"}, "b"])
    refused(TypeError, "worker_kwargs[0] must be a dict", worker_kwargs=[{1: "a"}])
    refused(ValueError, "worker_kwargs is empty", worker_kwargs=[])


@pytest.mark.parametrize("value", [["path"], "path", 3, {1: 2}])
def test_shared_kwargs_that_are_no_dict(value: Any) -> None:
    refused(TypeError, "shared_kwargs must be a dict", repr(value), shared_kwargs=value)


def test_kwargs_that_the_constructor_cannot_take() -> None:
    signature = "Model(path: 'str', *, device: 'int' = 0"
    refused(TypeError, "'devcie'", "Given: devcie, path", signature, shared_kwargs={"path": "p", "devcie": 1})
    refused(TypeError, "'path'", "missing", "Given: none", signature, shared_kwargs={})
    refused(
        TypeError,
        "worker_kwargs[1]",
        "'nam'",
        signature,
        shared_kwargs={"path": "p"},
        worker_kwargs=[{}, {"nam": 1}],
    )
    refused(TypeError, "'path'", worker=partial(Model, "p"), shared_kwargs={"path": "q"})
    refused(TypeError, "open_model(path", "'x'", worker=factory(open_model), shared_kwargs={"path": "p", "x": 1})


def open_model(path: str) -> Model:
    return Model(path)


@pytest.mark.parametrize(
    ("worker", "name"),
    [(stateless, "stateless"), (len, "len"), (Model("p"), "Model object"), (lambda item: item, "lambda")],
)
def test_kwargs_for_what_is_not_built(worker: Any, name: str) -> None:
    words = (name, "stateless function", "factory(", "functools.partial")
    refused(TypeError, *words, "(path)", worker=worker, shared_kwargs={"path": "p"})
    refused(TypeError, *words, "(a, b)", worker=worker, worker_kwargs=[{"a": 1}, {"b": 1}])


# --- numbers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["batch_size", "buffer"])
def test_sizes(name: str) -> None:
    for value in (0, -1):
        refused(ValueError, f"{name} must be 1 or more", str(value), '"auto"', **{name: value})
    for wrong in (1.5, True, None, "many", "Auto"):
        refused(TypeError, f"{name} must be an integer of 1 or more", repr(wrong), '"auto"', **{name: wrong})


@pytest.mark.parametrize("name", ["item_timeout", "init_timeout"])
def test_seconds(name: str) -> None:
    for value in (0, -1, 0.0, INF, NAN):
        refused(ValueError, f"{name} must be more than 0 seconds", str(value), "None for no limit", **{name: value})
    for wrong in ("1", True, [1]):
        refused(TypeError, f"{name} must be a number of seconds", repr(wrong), **{name: wrong})


@pytest.mark.parametrize("name", ["retries", "max_restarts", "total"])
def test_counts(name: str) -> None:
    refused(ValueError, f"{name} must be 0 or more", "-1", **{name: -1})
    for wrong in (1.5, "1", True):
        refused(TypeError, f"{name} must be an integer of 0 or more", repr(wrong), **{name: wrong})


def test_inner_max_num_threads() -> None:
    refused(ValueError, "inner_max_num_threads must be 1 or more", "0", inner_max_num_threads=0)
    refused(TypeError, "inner_max_num_threads must be an integer", "2.0", inner_max_num_threads=2.0)
    refused(ValueError, "inner_max_num_threads must be an integer", "'2'", '"leave"', inner_max_num_threads="2")


@pytest.mark.parametrize("engine", ["threads", "inline", StartsNone()])
def test_inner_max_num_threads_where_no_process_is_started(engine: Any) -> None:
    name = getattr(engine, "name", engine)
    words = ("inner_max_num_threads=2", f"engine={name!r} starts none", 'engine="loky"', "OMP_NUM_THREADS")
    refused(ValueError, *words, inner_max_num_threads=2, engine=engine)


def test_an_init_timeout_that_nobody_could_keep() -> None:
    refused(ValueError, "init_timeout=5 can't be kept", "'inline'", '"threads"', init_timeout=5, engine="inline")
    with StatefulExecutor(Model, 1, shared_kwargs={"path": "p"}, engine="inline") as executor:
        refused(ValueError, "init_timeout=5 can't be kept", worker=executor, init_timeout=5)


# --- words ----------------------------------------------------------------------------------------------


def test_words() -> None:
    refused(ValueError, "on_error", "'raise'", "'immediate', 'wait_others', 'deferred'", on_error="raise")
    refused(ValueError, "pass_as", "'starargs'", "'item', 'args', 'kwargs'", pass_as="starargs")
    refused(ValueError, "'processes'", "'loky', 'threads', 'inline'", engine="processes")
    refused(TypeError, "engine", "3", "'loky', 'threads', 'inline'", engine=3)
    for wrong in (None, 3, ["item"]):
        refused(ValueError, "pass_as must be one of", repr(wrong), pass_as=wrong)


@pytest.mark.parametrize("engine", ["threads", "inline"])
def test_what_engines_without_processes_cannot_do(engine: str) -> None:
    refused(ValueError, "item_timeout=2.0", repr(engine), 'engine="loky"', item_timeout=2.0, engine=engine)
    refused(ValueError, "worker_env", repr(engine), 'engine="loky"', worker_env=[{}], n_jobs=1, engine=engine)


@pytest.mark.parametrize("progress", [3, "bar", [1], {1: 2}, object()])
def test_progress(progress: Any) -> None:
    refused(TypeError, "progress must be", repr(progress), "callable", progress=progress)


# --- worker_env -----------------------------------------------------------------------------------------


def test_worker_env() -> None:
    refused(ValueError, "worker_env has 1 entry", "n_jobs=2", worker_env=[{}], n_jobs=2)
    refused(TypeError, "worker_env must be a list", "dict", worker_env={"A": "1"}, n_jobs=1)
    refused(TypeError, "worker_env[0] must be a dict", "'A=1'", worker_env=["A=1"], n_jobs=1)
    refused(TypeError, "worker_env[0]", "'A': 1", "Write 'A': \"1\"", worker_env=[{"A": 1}], n_jobs=1)
    refused(TypeError, "worker_env[0]", worker_env=[{1: "A"}], n_jobs=1)


# --- the worker and the input ---------------------------------------------------------------------------


@pytest.mark.parametrize("worker", [3, "Model", [Model], {"worker": Model}])
def test_a_worker_that_cannot_be_called(worker: Any) -> None:
    refused(TypeError, "worker must be a class, factory(function), a callable", repr(worker), worker=worker)


def test_no_worker() -> None:
    refused(TypeError, "worker must be a class", "None", worker=None)


def test_a_factory_of_nothing() -> None:
    with pytest.raises(TypeError, match=r"factory.. takes a function that builds the worker's object, not 3"):
        factory(3)  # type: ignore[arg-type]  # that is the point


@pytest.mark.parametrize("worker", [NotCallable, int, partial(NotCallable), dict])
def test_a_class_whose_objects_cannot_be_called(worker: Any) -> None:
    name = getattr(worker, "func", worker).__name__
    refused(TypeError, f"class {name} can't be called", "__call__", f"lambda item: {name}(item)", worker=worker)


@pytest.mark.parametrize("iterable", [3, None, Model, object(), 2.5])
def test_an_input_that_is_not_iterable(iterable: Any) -> None:
    with pytest.raises(TypeError, match="must be iterable"):
        stateful_map(stateless, iterable)


@pytest.mark.parametrize(
    "option",
    [
        {"n_jobs": 2},
        {"shared_kwargs": {"path": "p"}},
        {"worker_kwargs": [{"path": "p"}]},
        {"worker_env": [{}]},
        {"engine": "threads"},
        {"inner_max_num_threads": 1},
    ],
)
def test_what_an_executor_has_of_its_own(option: dict[str, Any]) -> None:
    with StatefulExecutor(Model, 1, shared_kwargs={"path": "p"}, engine="inline") as executor:
        refused(TypeError, next(iter(option)), "can't be given next to a StatefulExecutor", worker=executor, **option)


def test_several_at_once_are_all_named() -> None:
    with StatefulExecutor(Model, 1, shared_kwargs={"path": "p"}, engine="inline") as executor:
        refused(
            TypeError,
            "n_jobs, shared_kwargs, engine can't",
            worker=executor,
            n_jobs=1,
            shared_kwargs={},
            engine="threads",
        )


def test_an_executor_without_a_worker() -> None:
    with StatefulExecutor(n_jobs=1, engine="inline") as executor:
        refused(TypeError, "without a worker", "StatefulExecutor(YourClass", worker=executor)


def test_an_executor_that_cannot_keep_time() -> None:
    with StatefulExecutor(Model, 1, shared_kwargs={"path": "p"}, engine="threads") as executor:
        refused(ValueError, "item_timeout", "'threads'", worker=executor, item_timeout=1)


# --- what can't be pickled ------------------------------------------------------------------------------


class Unpicklable:
    def __reduce__(self) -> Any:
        raise ValueError("stays at home")


def test_kwargs_that_cannot_be_pickled() -> None:
    cause = ("can't be pickled", "TypeError: cannot pickle '_thread.lock' object", "constructor")
    lock = threading.Lock()
    refused(TypeError, "kwarg 'lock'", *cause, shared_kwargs={"path": "p", "lock": lock})
    refused(TypeError, "worker_kwargs[1]['lock']", *cause, worker_kwargs=[{"path": "p"}, {"path": "p", "lock": lock}])
    refused(TypeError, "kwarg 'lock'", *cause, worker=partial(Model, "p", lock=lock), shared_kwargs={})
    untyped: Any = Model
    refused(TypeError, "fixed by partial", *cause, worker=partial(untyped, lock))
    refused(TypeError, "kwarg 'lock'", "ValueError: stays at home", shared_kwargs={"path": "p", "lock": Unpicklable()})


def test_a_class_that_cannot_be_pickled() -> None:
    lock = threading.Lock()

    class Holder:
        held = lock

        def __call__(self, item: int) -> int:
            return item

    refused(TypeError, "worker", "Holder", "can't be pickled", "cannot pickle '_thread.lock' object", worker=Holder)


def test_a_function_that_cannot_be_pickled() -> None:
    lock = threading.Lock()

    def locked(item: int) -> int:
        with lock:
            return item

    words = ("locked", "can't be pickled", "cannot pickle '_thread.lock' object", "constructor")
    refused(TypeError, *words, worker=locked)
    for engine in ("threads", "inline"):  # nothing is pickled there
        assert list(stateful_map(locked, range(3), n_jobs=1, engine=engine)) == [0, 1, 2]


def test_within_one_process_nothing_needs_to_be_pickled() -> None:
    for engine in ("threads", "inline"):
        kwargs = {"path": "p", "lock": threading.Lock()}
        assert list(stateful_map(Model, [1], n_jobs=1, shared_kwargs=kwargs, engine=engine)) == [1]


def test_the_real_cause_is_chained() -> None:
    with pytest.raises(TypeError) as caught:
        stateful_map(Model, [1], shared_kwargs={"path": Unpicklable()})
    assert repr(caught.value.__cause__) == "ValueError('stays at home')"


# --- items that don't fit pass_as -----------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("pass_as", "good", "bad", "words"),
    [
        ("args", (1, 2), 3, ("int", "not a sequence", "worker(*item)", "tuples")),
        ("args", (1, 2), {"a": 1}, ("dict", "not a sequence")),
        ("args", (1, 2), {1, 2}, ("set", "not a sequence")),
        ("kwargs", {"a": 1, "b": 2}, (1, 2), ("tuple", "not a mapping", "worker(**item)", "dicts")),
        ("kwargs", {"a": 1, "b": 2}, None, ("NoneType", "not a mapping")),
    ],
)
def test_an_item_that_does_not_fit_is_that_items_error(
    engine: str, pass_as: Any, good: Any, bad: Any, words: tuple[str, ...]
) -> None:
    def add(a: int, b: int) -> int:
        return a + b

    results = list(
        stateful_map(
            add, [good, bad, good], n_jobs=1, pass_as=pass_as, on_error="deferred", batch_size=3, engine=engine
        )
    )
    assert [result.value for result in results] == [3, None, 3]
    error = results[1].exception
    assert type(error) is TypeError
    for word in words:
        assert word in str(error)
