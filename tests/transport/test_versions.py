"""Code that was edited: objects are never built from, nor kept of, what it was before."""

from __future__ import annotations

import importlib
import os
import pickle
import sys
import types
import warnings
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from joblib import Parallel, delayed, parallel_config

from contract import on
from joblib_stateful import StatefulExecutor, call_worker, factory, get_worker, shutdown, stateful_map
from programs import program_text
from scenes import engines, new_scene

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import RunProgram
    from scenes import Log

SCRIPT = """
STEP = 1
COUNTS = {"n": 0}

def helper(item):
    return item + STEP

class Base:
    scale = 1

class Model(Base):
    def __init__(self, log):
        log.note("built")
        self.step = helper(0) * self.scale

    def __call__(self, item):
        return item + self.step

def build(log):
    return Model(log)

def call(item):
    return helper(item)
"""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return what stands for a script or notebook: its code travels by value."""
    module = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)
    exec(SCRIPT, module.__dict__)
    yield module
    shutdown()


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return new_scene(tmp_path).log()


def run_again(script: Any, text: str) -> None:
    """Run a cell again, with something else in it."""
    exec(text, script.__dict__)


def edit_a_helper(script: Any) -> None:
    run_again(script, "def helper(item): return item + 10 * STEP")


def edit_a_global(script: Any) -> None:
    script.STEP = 10


def edit_an_attribute(script: Any) -> None:
    script.Base.scale = 10


def edit_a_method(script: Any) -> None:
    def call(self: Any, item: int) -> int:
        return int(item + 10 * self.step)

    call.__module__ = "__main__"
    script.Model.__call__ = call


EDITS = [edit_a_helper, edit_a_global, edit_an_attribute, edit_a_method]


def by_class(script: Any, engine: str, log: Log) -> list[int]:
    return list(stateful_map(script.Model, [1, 2], n_jobs=1, shared_kwargs={"log": log}, engine=engine))


def by_partial(script: Any, engine: str, log: Log) -> list[int]:
    return list(stateful_map(partial(script.Model, log=log), [1, 2], n_jobs=1, engine=engine))


def by_factory(script: Any, engine: str, log: Log) -> list[int]:
    return list(stateful_map(factory(script.build), [1, 2], n_jobs=1, shared_kwargs={"log": log}, engine=engine))


def call_object(item: int) -> Any:
    return get_worker()(item)


def by_backend(script: Any, engine: str, log: Log) -> list[int]:
    options = {"worker": script.Model, "shared_kwargs": {"log": log}, "engine": engine}
    with parallel_config(backend="stateful", n_jobs=2, **options):
        return list(Parallel()(delayed(call_object)(item) for item in (1, 2)))


ways = pytest.mark.parametrize("way", [by_class, by_partial, by_factory, by_backend])


@engines
@ways
def test_an_edit_means_new_objects(
    way: Callable[[Any, str, Log], list[int]], engine: str, script: Any, log: Log
) -> None:
    found = [way(script, engine, log)]
    for edit in EDITS:
        edit(script)
        found.append(way(script, engine, log))
    assert found == [[2, 3], [11, 12], [101, 102], [1001, 1002], [10001, 10002]]


@engines
@ways
def test_code_that_nobody_has_edited_keeps_its_objects(
    way: Callable[[Any, str, Log], list[int]], engine: str, script: Any, log: Log
) -> None:
    way(script, engine, log)
    built = len(log.lines)
    assert all(way(script, engine, log) == [2, 3] for _ in range(3))
    assert len(log.lines) == built or (way is by_backend and len(log.lines) <= 2)  # the second may come later


@pytest.mark.cluster
@on("dask", "ray")
def test_an_edit_means_new_objects_on_clusters(engine: Any, script: Any, log: Log) -> None:
    def run() -> list[int]:
        kwargs = {"log": log}
        return list(stateful_map(script.Model, [1, 2], n_jobs=1, shared_kwargs=kwargs, engine=engine))

    found = [run(), run()]
    for edit in EDITS:
        edit(script)
        found.append(run())
    assert found == [[2, 3], [2, 3], [11, 12], [101, 102], [1001, 1002], [10001, 10002]]
    assert log.lines == ["built"] * 5


@engines
def test_a_stateless_function_is_the_present_one(engine: str, script: Any) -> None:
    def run() -> list[int]:
        return list(stateful_map(script.call, [1, 2], n_jobs=1, engine=engine))

    assert run() == [2, 3]
    edit_a_helper(script)
    assert run() == [11, 12]


@engines
def test_what_workers_count_on_their_own_class_is_no_edit(engine: str, script: Any, log: Log) -> None:
    run_again(
        script,
        """
        class Counting(Model):
            n_built, seen = 0, []
            def __init__(self, log):
                super().__init__(log)
                type(self).n_built += 1
            def __call__(self, item):
                self.seen.append(item)
                COUNTS["n"] += 1
                return super().__call__(item)
        """.replace("\n        ", "\n"),
    )
    script.Model = script.Counting
    for _ in range(3):
        assert list(stateful_map(script.Counting, [1, 2], n_jobs=1, shared_kwargs={"log": log}, engine=engine)) == [
            2,
            3,
        ]
    assert log.lines == ["built"]


@engines
def test_what_python_adds_to_a_class_that_is_used_is_no_edit(engine: str, script: Any, log: Log) -> None:
    def run() -> None:
        assert list(stateful_map(script.Model, [1], n_jobs=1, shared_kwargs={"log": log}, engine=engine)) == [2]

    run_again(script, "class Part: ...\nModel.part = Part()")
    run()
    pickle.dumps(script.Model.part)  # from the first time on the class has a list of its slots
    assert script.Part.__annotations__ == {}
    run()
    assert log.lines == ["built"]


def test_an_edit_means_a_new_object_where_joblib_runs_in_this_process(script: Any, log: Log) -> None:
    with parallel_config(backend="stateful", n_jobs=1, worker=script.Model, shared_kwargs={"log": log}):
        assert Parallel()(delayed(call_object)(item) for item in (1, 2)) == [2, 3]
        edit_a_helper(script)
        assert Parallel()(delayed(call_object)(item) for item in (1, 2)) == [11, 12]
        assert Parallel()(delayed(call_object)(item) for item in (1, 2)) == [11, 12]
    assert log.lines == ["built"] * 2


def test_an_executor_of_ones_own_says_that_its_objects_are_old(script: Any, log: Log) -> None:
    with StatefulExecutor(script.Model, n_jobs=1, shared_kwargs={"log": log}) as executor:
        assert list(stateful_map(executor, [1])) == [2]
        edit_a_helper(script)
        with pytest.warns(RuntimeWarning, match="Model, or something that it uses, has changed") as caught:
            assert list(stateful_map(executor, [1])) == [2]
        assert [warning.filename for warning in caught] == [__file__]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert list(stateful_map(executor, [1])) == [2]  # said once


# --- modules ------------------------------------------------------------------------------------------

MODULE = """
STEP = {step}

class Model:
    def __init__(self):
        self.step = STEP
    def __call__(self, item):
        return item + self.step

def call(item):
    return item + STEP
"""


class Edited:
    """A module that is edited on disk."""

    def __init__(self, folder: Path) -> None:
        self.name = f"edited_{folder.name.replace('-', '_')}"
        self.path = folder / f"{self.name}.py"
        self._time = 1_000_000_000
        self.write(step=1)

    def write(self, step: int) -> None:
        self.path.write_text(MODULE.format(step=step))
        self._time += 10  # else Python may believe what it has compiled of it
        os.utime(self.path, (self._time, self._time))


@pytest.fixture
def edited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Edited]:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = Edited(tmp_path)
    yield found
    shutdown()
    sys.modules.pop(found.name, None)


@engines
@pytest.mark.parametrize("what", ["Model", "call"])
def test_a_module_that_is_reloaded_means_new_workers(what: str, engine: str, edited: Edited) -> None:
    module = importlib.import_module(edited.name)
    for step in (1, 2, 3):
        if step > 1:
            edited.write(step=step)
            importlib.reload(module)
        assert list(stateful_map(getattr(module, what), [0, 10], n_jobs=1, engine=engine)) == [step, 10 + step]


def test_a_parallel_call_never_mixes_old_and_new_code(edited: Edited) -> None:
    module = importlib.import_module(edited.name)
    with parallel_config(backend="stateful", n_jobs=2):
        Parallel()([delayed(module.call)(0)])  # one of two workers has it now
        edited.write(step=2)
        importlib.reload(module)
        assert set(Parallel(batch_size=1)(delayed(module.call)(0) for _ in range(20))) == {2}


def test_an_executor_of_ones_own_says_that_a_module_was_reloaded(edited: Edited) -> None:
    module = importlib.import_module(edited.name)
    with StatefulExecutor(module.Model, n_jobs=1) as executor:
        assert executor.submit(call_worker, 0).result() == 1
        edited.write(step=2)
        importlib.reload(module)
        with pytest.warns(RuntimeWarning, match=f"The module {edited.name} was loaded again") as caught:
            assert executor.submit(call_worker, 0).result() == 1
        assert [warning.filename for warning in caught] == [__file__]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert executor.submit(call_worker, 0).result() == 1


@pytest.mark.skipif(not find_spec("IPython"), reason="IPython is not installed")
def test_autoreload_means_new_workers(run_program: RunProgram) -> None:
    done = run_program(
        program_text("transport/edits_a_module_of_a_notebook"), env={"IPYTHONDIR": ".", "PYTHONWARNINGS": "default"}
    )
    assert "done" in done.out, done.err
