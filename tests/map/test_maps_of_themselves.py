"""Maps that are started while their module is imported, or that map themselves, are refused: no hang, no tree of processes."""

from __future__ import annotations

import os
import textwrap
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from contract import on
from joblib_stateful import StatefulExecutor, errors, stateful_map
from programs import program_text

if TYPE_CHECKING:
    from conftest import RunProgram

pytestmark = pytest.mark.cluster

LIMIT = 60

# What a module does while it is imported.
MAPS = {
    "map": "list(stateful_map(double, range(3), n_jobs=2, engine=ENGINE))",
    "class": "list(stateful_map(Doubler, range(3), n_jobs=2, engine=ENGINE))",
    "factory": "list(stateful_map(factory(Doubler.make), range(3), n_jobs=2, engine=ENGINE))",
    "partial": "list(stateful_map(functools.partial(double, by=2), range(3), n_jobs=2, engine=ENGINE))",
    "executor": "StatefulExecutor(Doubler, 2, engine=ENGINE).submit(abs, 1)",
    "warm_up": "StatefulExecutor(Doubler, 2, engine=ENGINE).warm_up()",
    "executor's map": "list(stateful_map(StatefulExecutor(Doubler, 2, engine=ENGINE), range(3)))",
    "submit": "StatefulExecutor(n_jobs=2, engine=ENGINE).submit(double, 1).result()",
    "backend": "parallel(double)",
    "backend's worker": "parallel(abs, worker=Doubler)",
}

MODULE = """
    import functools, os, sys
    from pathlib import Path
    from joblib import Parallel, delayed, parallel_config
    from joblib_stateful import StatefulExecutor, factory, stateful_map

    ENGINE = os.environ["ENGINE"]
    with Path(os.environ["LOG"]).open("a") as log:
        log.write(f"{os.getpid()}\\n")

    def double(item, by=2):
        return by * item

    class Doubler:
        @classmethod
        def make(cls):
            return cls()
        def __call__(self, item):
            return doubled(item)

    def parallel(function, **options):
        with parallel_config(backend="stateful", n_jobs=2, engine=ENGINE, **options):
            return Parallel()(delayed(function)(item) for item in range(3))

    RESULT = {call}

    def doubled(item):
        return 2 * item
"""

PROGRAM = """
    import sys
    from joblib_stateful import shutdown
    try:
        import {module}
    except Exception as error:
        print(type(error).__name__, error)
    else:
        print("imported", {module}.RESULT)
    shutdown()
"""


def write_module(folder: Path, call: str, name: str = "mapping") -> None:
    path = folder / f"{name.replace('.', '/')}.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(textwrap.dedent(MODULE).replace("{call}", call))


@pytest.mark.parametrize("way", MAPS)
def test_a_map_of_a_module_that_is_being_imported_is_refused(way: str, run_program: RunProgram, tmp_path: Path) -> None:
    write_module(tmp_path, MAPS[way])
    env = {"ENGINE": "loky", "LOG": str(tmp_path / "log")}
    done = run_program(PROGRAM.format(module="mapping"), limit=LIMIT, env=env)
    assert done.code == 0, done.err
    assert done.out.startswith("EngineError")
    assert "its module mapping is still being imported" in done.out
    assert '__name__ == "__main__"' in done.out
    assert len((tmp_path / "log").read_text().split()) == 1  # no worker has imported it


@pytest.mark.parametrize("name", ["loky", "threads"])
def test_an_executor_may_be_made_while_the_module_of_its_class_is_imported(
    name: str, run_program: RunProgram, tmp_path: Path
) -> None:
    write_module(tmp_path, "StatefulExecutor(Doubler, 2, engine=ENGINE)")
    program = """
        import warnings
        from joblib_stateful import call_worker, stateful_map
        import mapping
        warnings.simplefilter("error")
        print(list(stateful_map(mapping.RESULT, range(3))), mapping.RESULT.submit(call_worker, 4).result())
        mapping.RESULT.shutdown()
    """
    done = run_program(program, limit=LIMIT, env={"ENGINE": name, "LOG": str(tmp_path / "log")})
    assert (done.code, done.out) == (0, "[0, 2, 4] 8\n"), done.err
    # Each worker has imported it, and with it made an executor that starts nothing.
    assert len((tmp_path / "log").read_text().split()) <= (3 if name == "loky" else 1)


def test_a_map_in_a_package_that_is_being_imported_is_refused(run_program: RunProgram, tmp_path: Path) -> None:
    write_module(tmp_path, "None", "package.sub")
    (tmp_path / "package" / "__init__.py").write_text(
        "from joblib_stateful import stateful_map\nfrom .sub import double\n"
        "RESULT = list(stateful_map(double, range(3), n_jobs=2))\n"
    )
    env = {"ENGINE": "loky", "LOG": str(tmp_path / "log")}
    done = run_program(PROGRAM.format(module="package"), limit=LIMIT, env=env)
    assert done.code == 0, done.err
    assert done.out.startswith("EngineError")
    assert "its package package is" in done.out


@pytest.mark.parametrize("name", ["threads", "inline"])
@pytest.mark.parametrize("way", ["map", "backend's worker"])
def test_within_one_process_a_map_of_a_module_that_is_being_imported_works(
    way: str, name: str, run_program: RunProgram, tmp_path: Path
) -> None:
    write_module(tmp_path, MAPS[way])
    done = run_program(
        PROGRAM.format(module="mapping"), limit=LIMIT, env={"ENGINE": name, "LOG": str(tmp_path / "log")}
    )
    assert done.code == 0, done.err
    assert done.out.startswith("imported")


@pytest.mark.parametrize(
    ("call", "result"),
    [
        ("list(stateful_map(lambda item: 2 * item, range(3), n_jobs=2))", "[0, 2, 4]"),  # by value
        ("list(stateful_map(abs, range(3), n_jobs=2))", "[0, 1, 2]"),  # somebody else's
    ],
)
def test_a_map_in_a_module_that_is_being_imported_works_if_it_needs_no_such_module(
    call: str, result: str, run_program: RunProgram, tmp_path: Path
) -> None:
    write_module(tmp_path, call)
    env = {"ENGINE": "loky", "LOG": str(tmp_path / "log")}
    done = run_program(PROGRAM.format(module="mapping"), limit=LIMIT, env=env)
    assert done.code == 0, done.err
    assert done.out.split(maxsplit=1) == ["imported", f"{result}\n"]


def test_a_worker_that_imports_a_module_which_starts_workers_says_so(run_program: RunProgram, tmp_path: Path) -> None:
    # The module maps somebody else's function, over objects of its own: so each worker imports it.
    write_module(tmp_path, "list(stateful_map(repr, [Doubler(), Doubler()], n_jobs=2))")
    env = {"ENGINE": "loky", "LOG": str(tmp_path / "log")}
    done = run_program(PROGRAM.format(module="mapping"), limit=LIMIT, env=env)
    assert done.code == 0, done.err
    assert done.out.startswith("TransferError")
    assert "The module mapping starts workers while it is imported" in done.out
    assert len((tmp_path / "log").read_text().split()) <= 5


def test_another_threads_import_is_waited_for(run_program: RunProgram, tmp_path: Path) -> None:
    (tmp_path / "slowly.py").write_text(
        "import __main__\ndef double(item):\n    return 2 * item\n"
        "if hasattr(__main__, 'go_on'):\n    __main__.there.set()\n    __main__.go_on.wait()\n"
    )
    program = """
        import sys, threading
        from joblib_stateful import stateful_map
        there, go_on = threading.Event(), threading.Event()
        if __name__ == "__main__":
            thread = threading.Thread(target=__import__, args=("slowly",))
            thread.start()
            there.wait()
            threading.Timer(0.3, go_on.set).start()  # pickling the function waits for that
            print(list(stateful_map(sys.modules["slowly"].double, [1, 2], n_jobs=1)))
            thread.join()
    """
    done = run_program(program, limit=LIMIT)
    assert done.out == "[2, 4]\n", done.err


# --- maps of themselves ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["direct", "one", "Worker", "submitting", "parallel"])
@pytest.mark.parametrize("name", ["loky", "threads"])
def test_what_maps_itself_is_refused(name: str, way: str, run_program: RunProgram, tmp_path: Path) -> None:
    log = tmp_path / "log"
    done = run_program(program_text("map/maps_itself"), str(log), name, way, limit=LIMIT)
    assert done.code == 0, done.err
    assert done.out.startswith("EngineError"), done.out + done.err
    assert 'engine="inline"' in done.out
    if way == "direct":
        assert "direct maps itself" in done.out
    assert len(log.read_text().split()) <= 1 + 2 + 4 + 8


def squares_within(item: int) -> list[int]:
    return list(stateful_map(lambda number: number**2, range(item), n_jobs=2))


@on("loky", "threads")
def test_a_map_in_a_worker_of_a_map_works(engine: Any) -> None:
    found = list(stateful_map(squares_within, [2, 3], n_jobs=1, engine=engine))
    assert found == [[0, 1], [0, 1, 4]]


def countdown(item: int) -> list[Any]:
    return [item, *stateful_map(countdown, range(item), engine="inline")]


@on("loky", "threads", "inline")
def test_what_maps_itself_inline_ends_by_itself(engine: Any) -> None:
    found: list[Any] = list(stateful_map(countdown, [2], n_jobs=1, engine=engine))
    assert found == [[2, [0], [1, [0]]]]


class Wrapper:
    """A worker that other code is wrapped in, at any level."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __call__(self, item: Any) -> Any:
        return self.function(item)


def test_the_same_class_may_be_used_in_its_workers() -> None:
    def outer(item: int) -> list[int]:
        return list(stateful_map(Wrapper, range(item), n_jobs=1, shared_kwargs={"function": abs}))

    assert list(stateful_map(Wrapper, [1, 2], n_jobs=1, shared_kwargs={"function": outer})) == [[0], [0, 1]]


def test_a_function_may_be_submitted_where_another_one_was_mapped() -> None:
    def use(_: Any) -> list[int]:
        return list(stateful_map(abs, [-1], n_jobs=1))

    with StatefulExecutor(n_jobs=1) as executor:
        assert executor.submit(use, 1).result() == [1]
        assert executor.submit(abs, -1).result() == 1


def test_threads_of_a_worker_count_as_that_worker() -> None:
    def deep(item: int) -> list[Any]:
        found: list[Any] = []

        def work() -> None:
            try:
                found.extend(stateful_map(deep, [item], n_jobs=1))
            except errors.EngineError as error:
                found.append(type(error).__name__)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return [os.getpid() > 0, *found]

    assert list(stateful_map(deep, [1], n_jobs=1)) == [[True, [True, [True, "EngineError"]]]]
