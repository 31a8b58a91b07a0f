"""A worker's folder, path, limits, environment and flags are the program's."""

from __future__ import annotations

import gc
import importlib.util
import os
import subprocess
import sys
import warnings
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from joblib import Parallel, delayed, parallel_config

from contract import N_JOBS
from joblib_stateful import StatefulExecutor, errors, get_worker, stateful_map
from joblib_stateful._worker._surroundings import Environment, Surroundings
from joblib_stateful.engines.loky._starting import interpreter_flags
from needs import needs
from programs import program_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import BuildLog, RunProgram

ENGINES = ("loky", "threads", "inline")


def read(name: str) -> str:
    with open(name) as file:  # noqa: PTH123 - as users write it, by a relative path
        return file.read()


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders with a file of the same name each; the program's own comes back afterwards."""
    monkeypatch.chdir(tmp_path)
    found = [tmp_path / name for name in "ab"]
    for folder in found:
        folder.mkdir()
        (folder / "data").write_text(folder.name)
    return found


# --- folder ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_equal_maps_in_a_loop_over_folders_run_in_each(folders: list[Path], engine: str) -> None:
    found: list[Any] = []
    for folder in folders * 2:
        os.chdir(folder)
        found += stateful_map(read, ["data"] * 2, n_jobs=2, engine=engine)
    assert found == ["a", "a", "b", "b"] * 2


class Reader:
    def __init__(self, log: BuildLog) -> None:
        log.note()
        self.first = read("data")

    def __call__(self, name: str) -> tuple[str, str]:
        return self.first, read(name)


def test_an_object_stays_and_is_built_where_the_map_began(folders: list[Path], built: BuildLog) -> None:
    found: list[Any] = []
    for folder in folders:
        os.chdir(folder)
        found += stateful_map(Reader, ["data"], n_jobs=1, shared_kwargs={"log": built})
    assert found == [("a", "a"), ("a", "b")]
    assert len(built) == 1


def test_an_executors_calls_and_maps_run_in_the_folder_of_the_call(folders: list[Path], built: BuildLog) -> None:
    with StatefulExecutor(Reader, 1, shared_kwargs={"log": built}) as executor:
        os.chdir(folders[1])
        executor.warm_up()
        assert executor.submit(lambda: get_worker().first).result() == "b"
        os.chdir(folders[0])
        assert executor.submit(read, "data").result() == "a"
        os.chdir(folders[1])
        assert list(stateful_map(executor, ["data"])) == [("b", "b")]
    assert len(built) == 1


def test_calls_of_parallel_run_in_the_folder_of_the_call(folders: list[Path]) -> None:
    found: list[Any] = []
    with parallel_config(backend="stateful", n_jobs=2):
        for folder in folders:
            os.chdir(folder)
            found += Parallel()(delayed(read)("data") for _ in range(2))
        with Parallel() as parallel:
            for folder in folders:
                os.chdir(folder)
                found += parallel(delayed(read)("data") for _ in range(2))
    assert found == ["a", "a", "b", "b"] * 2


def test_all_of_a_map_is_done_where_it_began(folders: list[Path]) -> None:
    os.chdir(folders[0])
    results = stateful_map(read, ["data"] * 4, n_jobs=1, batch_size=1, buffer=1)
    found = [next(results)]
    os.chdir(folders[1])
    assert [*found, *results] == ["a"] * 4


def test_a_worker_of_a_worker_runs_in_that_ones_folder(folders: list[Path]) -> None:
    def nested(name: str) -> list[str]:
        os.chdir(folders[1])
        return list(stateful_map(read, [name], n_jobs=1))

    os.chdir(folders[0])
    assert list(stateful_map(nested, ["data"], n_jobs=1)) == [["b"]]


def test_what_a_worker_has_changed_itself_stays(folders: list[Path]) -> None:
    os.chdir(folders[0])
    with StatefulExecutor(n_jobs=1) as executor:
        executor.submit(os.chdir, folders[1]).result()
        executor.submit(lambda: sys.path.insert(0, "mine")).result()
        assert executor.submit(read, "data").result() == "b"
        sys.setrecursionlimit(sys.getrecursionlimit() + 1)
        try:
            assert executor.submit(lambda: (read("data"), sys.path[0])).result() == ("b", "mine")
        finally:
            sys.setrecursionlimit(sys.getrecursionlimit() - 1)


def test_a_folder_that_is_gone_is_an_error_at_the_call(folders: list[Path]) -> None:
    with StatefulExecutor(n_jobs=1) as executor, parallel_config(backend="stateful", n_jobs=2):
        os.chdir(folders[0])
        assert executor.submit(read, "data").result() == "a"
        (folders[0] / "data").unlink()
        folders[0].rmdir()
        calls: list[Any] = [
            lambda: executor.submit(abs, -1),
            lambda: next(stateful_map(abs, [-1], n_jobs=1)),
            lambda: Parallel()(delayed(abs)(item) for item in range(2)),
        ]
        for call in calls:
            with pytest.raises(FileNotFoundError, match=r"current folder of this program is gone.*os\.chdir"):
                call()
        os.chdir(folders[1])
        assert executor.submit(read, "data").result() == "b"


def test_a_folder_that_is_gone_for_the_worker_is_its_items_error(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # It can only be that it went between the call and the message.
    before = Surroundings.now()
    gone = before._replace(folder=str(folders[0] / "gone"))
    with StatefulExecutor(n_jobs=1) as executor:
        assert executor.submit(read, "a/data").result() == "a"
        monkeypatch.setattr(Surroundings, "now", lambda: gone)
        for _ in range(2):
            with pytest.raises(FileNotFoundError, match=r"can't be entered: .*gone' is gone.*os\.chdir"):
                executor.submit(read, "a/data").result()
        monkeypatch.setattr(Surroundings, "now", lambda: before)
        assert executor.submit(read, "a/data").result() == "a"
    monkeypatch.setattr(Surroundings, "now", lambda: gone)
    with pytest.raises(errors.WorkerInitError, match="can't be entered"):
        list(stateful_map(Reader, ["data"], n_jobs=1, shared_kwargs={"log": None}))


# --- path and limits ------------------------------------------------------------------------------------


def test_modules_are_found_where_the_program_finds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: int) -> Any:
        return importlib.import_module("found_late").VALUE

    with StatefulExecutor(n_jobs=1) as executor:
        assert executor.submit(abs, -1).result() == 1
        (tmp_path / "found_late.py").write_text("VALUE = 7\n")
        monkeypatch.syspath_prepend(tmp_path)
        assert executor.submit(load, 0).result() == 7
        assert executor.submit(lambda: sys.path).result() == sys.path
    assert list(stateful_map(load, [0], n_jobs=1)) == [7]


def test_other_things_in_the_path_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, None, Path("somewhere"), lambda: None])
    assert list(stateful_map(abs, [-1], n_jobs=1)) == [1]


@pytest.fixture
def _limits() -> Iterator[None]:
    before = sys.getrecursionlimit(), sys.get_int_max_str_digits()
    yield
    sys.setrecursionlimit(before[0])
    sys.set_int_max_str_digits(before[1])


@pytest.mark.usefixtures("_limits")
@pytest.mark.parametrize("engine", ENGINES)
def test_limits_of_the_interpreter_are_the_workers_too(engine: str) -> None:
    def deep(depth: int) -> int:
        return 0 if depth == 0 else 1 + deep(depth - 1)

    with StatefulExecutor(n_jobs=1, engine=engine) as executor:
        sys.setrecursionlimit(1500)
        with pytest.raises(RecursionError):
            executor.submit(deep, 3000).result()
        sys.setrecursionlimit(5000)
        assert executor.submit(deep, 3000).result() == 3000
        with pytest.raises(ValueError, match="4300 digits"):
            executor.submit(lambda: len(str(10**5000))).result()
        sys.set_int_max_str_digits(0)
        assert executor.submit(lambda: len(str(10**5000))).result() == 5001


class Cyclic:
    """Refers to itself."""

    def __init__(self) -> None:
        self.itself = self


def make_garbage(_: int) -> tuple[bool, bool, bool]:
    seen = weakref.ref(Cyclic())
    gc.collect()
    return gc.isenabled(), seen() is None, any(type(found).__name__ == "Cyclic" for found in gc.get_objects())


def test_garbage_of_the_workers_code_is_collected() -> None:
    """Only while a worker starts there is none."""
    assert list(stateful_map(make_garbage, range(4), n_jobs=N_JOBS, batch_size=1)) == [(True, True, False)] * 4


def test_what_the_interpreter_is_told_at_its_start_of_garbage_holds(tmp_path: Path, run_program: RunProgram) -> None:
    (tmp_path / "sitecustomize.py").write_text("import gc\ngc.disable()\n")
    done = run_program(program_text("engines/tells_whether_garbage_is_collected"), env={"PYTHONPATH": str(tmp_path)})
    assert (done.out, done.err) == ("[False]\n", "")


@pytest.mark.usefixtures("_limits")
def test_a_recursion_limit_too_low_for_a_worker_is_one_warning() -> None:
    script = """
import sys
from joblib_stateful import stateful_map, StatefulExecutor
import joblib_stateful._worker._surroundings as surroundings
with StatefulExecutor(n_jobs=1) as executor:
    executor.submit(abs, -1).result()
    sys.setrecursionlimit(99)
    futures = [executor.submit(sys.getrecursionlimit) for _ in range(3)]
    sys.setrecursionlimit(1000)
    print([future.result() for future in futures])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[100, 100, 100]"), done.stderr
    assert done.stderr.count("RuntimeWarning") == 1, done.stderr


# --- environment ----------------------------------------------------------------------------------------


class Asker:
    def __init__(self, log: BuildLog) -> None:
        log.note()
        self.at_start = os.environ.get("ANSWER")

    def __call__(self, _: int) -> str | None:
        return self.at_start


def test_a_changed_environment_means_new_workers(built: BuildLog, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []
    for value in ("1", "1", "2", "2", None):
        if value is None:
            monkeypatch.delenv("ANSWER")
        else:
            monkeypatch.setenv("ANSWER", value)
        found += stateful_map(Asker, [0], n_jobs=1, shared_kwargs={"log": built})
    assert found == ["1", "1", "2", "2", None]
    assert len(built) == 3


def test_a_changed_environment_reaches_calls_of_parallel(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []
    with parallel_config(backend="stateful", n_jobs=2):
        for value in "12":
            monkeypatch.setenv("ANSWER", value)
            found += Parallel()(delayed(os.getenv)("ANSWER") for _ in range(2))
        with Parallel() as parallel:
            for value in "34":
                monkeypatch.setenv("ANSWER", value)
                found += parallel(delayed(os.getenv)("ANSWER") for _ in range(2))
    assert found == list("11223344")


def test_what_changes_by_itself_costs_no_object(built: BuildLog, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in "12":
        for name in ("PYTEST_CURRENT_TEST", "COLUMNS", "KMP_INIT_AT_FORK"):
            monkeypatch.setenv(name, value)
        list(stateful_map(Asker, [0], n_jobs=1, shared_kwargs={"log": built}))
    assert len(built) == 1


@pytest.mark.parametrize("library", ["sklearn", "polars", "jax"])
def test_what_a_library_sets_when_it_is_imported_costs_no_worker(library: str) -> None:
    if importlib.util.find_spec(library) is None:  # imported here, it would set them for the program below as well
        pytest.skip(f"{library} is not installed")
    script = f"""
import os
from joblib_stateful import stateful_map
def pid(_):
    return os.getpid()
before = list(stateful_map(pid, [0], n_jobs=1))
import {library}
print(before == list(stateful_map(pid, [0], n_jobs=1)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr


def test_an_executor_of_the_callers_warns_once(built: BuildLog, monkeypatch: pytest.MonkeyPatch) -> None:
    with StatefulExecutor(Asker, 1, shared_kwargs={"log": built}) as executor:
        monkeypatch.setenv("ANSWER", "1")
        assert list(stateful_map(executor, [0])) == ["1"]
        monkeypatch.setenv("ANSWER", "2")
        with pytest.warns(RuntimeWarning, match=r"os\.environ has changed .*\(ANSWER\).*Make a new executor") as caught:
            assert list(stateful_map(executor, [0])) == ["1"]
            assert executor.submit(abs, -1).result() == 1
            assert list(stateful_map(executor, [0])) == ["1"]
        assert len(caught) == 1
    with StatefulExecutor(Asker, 1, shared_kwargs={"log": built}) as executor:
        executor.warm_up()
        monkeypatch.setenv("ANSWER", "3")
        with pytest.warns(RuntimeWarning, match="ANSWER") as caught:
            executor.submit(abs, -1).result()
        assert caught[0].filename == __file__


def test_workers_that_are_started_later_have_the_present_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with StatefulExecutor(n_jobs=1, idle_timeout=0.01) as executor:
        assert executor.submit(os.getenv, "ANSWER").result() is None
        while executor.workers()[0].state != "empty":
            pass
        monkeypatch.setenv("ANSWER", "1")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert executor.submit(os.getenv, "ANSWER").result() == "1"


def test_an_environment_tells_what_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = Environment()
    monkeypatch.setenv("ANSWER", "1")
    assert environment.changes() == []  # nothing was started
    environment.note()
    assert environment.changes() == []
    monkeypatch.setenv("ANSWER", "2")
    assert environment.changes() == ["ANSWER"]
    environment.note()
    assert environment.changes() == ["ANSWER"]  # of the first worker
    monkeypatch.setenv("ANSWER", "1")
    assert environment.changes() == ["ANSWER"]  # of the second one
    environment.forget()
    assert environment.changes() == []


# --- flags ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        [],
        *(
            pytest.param(given.split(), marks=needs("start"))
            for given in (
                "-O -B -W error::FutureWarning -X dev",
                "-OO -I -b -X int_max_str_digits=5000 -X no_debug_ranges -X utf8",
                "-P -s -E -q -X faulthandler",
            )
        ),
    ],
    ids=" ".join,
)
def test_flags_of_the_interpreter_are_the_workers_too(given: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, *given, "-c", program_text("engines/compares_its_flags_with_its_workers")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


@pytest.mark.parametrize("flag", ["-b", "-bb", "-Xdev"])
def test_workers_start_though_the_program_has_cleared_its_warning_options(flag: str) -> None:
    script = """
import sys
from joblib_stateful import stateful_map
sys.warnoptions.clear()  # though the flag has put one there, which multiprocessing misses
print(*stateful_map(abs, [-1, -2], n_jobs=2), sys.warnoptions)
"""
    done = subprocess.run([sys.executable, flag, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "1 2 []", "")


def test_flags_that_cannot_be_told_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "_xoptions", None)
    with pytest.warns(RuntimeWarning, match="Workers run without this program's interpreter flags.*PYTHONOPTIMIZE"):
        assert interpreter_flags.__wrapped__() == ()
