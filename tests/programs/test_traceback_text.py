"""Tracebacks show the user's lines, wherever the code comes from, and not this package's."""

from __future__ import annotations

import itertools
import linecache
import os
import subprocess
import sys
import traceback
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from contract import on
from joblib_stateful import stateful_map
from programs import program_text

if TYPE_CHECKING:
    from conftest import RunProgram

PACKAGE = f"joblib_stateful{os.sep}_"  # in a name of one of our files, wherever the package lies
ENGINES = ("loky", "threads", "inline")

SCRIPT = program_text("programs/raises_in_workers")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_class_of_a_script(run_program: RunProgram, engine: str) -> None:
    done = run_program(SCRIPT, engine)
    assert done.code == 0, done.err
    for line in (
        'int("x")  # first line',
        'raise KeyError("second") from error  # second line',
        "1 / 0  # line in the group",
        'raise ExceptionGroup("several", [error, TypeError("other")])  # line of the group',
        'eval("1 +")  # line that evaluates',
        "return self.deep()  # line again and again",
        'raise OSError("no model")  # line of the constructor',
    ):
        assert f"    {line}\n" in done.out
    assert done.out.count("  # second line") == 3
    assert "dynamic-code" not in done.out + done.err
    assert 'program.py", line ' in done.out
    assert "~~^~~" in done.out  # under 1 / 0
    assert "Previous line repeated" in done.out
    assert "SyntaxError: invalid syntax" in done.out
    assert len(done.out.splitlines()) < (250 if sys.version_info < (3, 14) else 260)  # which points out more places
    shown = [line for line in done.out.splitlines() if PACKAGE in line]
    # Where the main program waits there may be one of ours, and in an executor's call, which the standard library answers.
    assert all("__next__" in line or engine == "inline" for line in shown), shown
    # warnings, too
    line = 'warnings.warn("careful")  # line of the warning'
    (number,) = (number for number, text in enumerate(SCRIPT.splitlines(), 1) if text.strip() == line)
    assert f"program.py:{number}: UserWarning: careful\n  {line}" in done.err


class Nested(Exception):  # noqa: N818 - only for tests
    pass


def fail(item: int) -> int:
    if item == 1:
        raise Nested(item)
    return item


@on("loky", "threads", "inline", "memory", "example")
@pytest.mark.parametrize("policy", ["immediate", "wait_others"])
def test_what_is_raised_shows_the_loop_and_one_frame_of_ours(engine: Any, policy: Any) -> None:
    def loop() -> None:
        for _ in stateful_map(fail, range(3), n_jobs=1, engine=engine, on_error=policy):
            pass

    with pytest.raises(Nested) as raised:
        loop()
    frames = traceback.extract_tb(raised.value.__traceback__)
    assert [frame.name for frame in frames if PACKAGE in frame.filename] == ["__next__"]
    assert [frame.name for frame in frames][1:3] == ["loop", "__next__"]
    assert raised.traceback[2].ishidden(raised)  # for pytest, and likewise for IPython
    text = "".join(traceback.format_exception(raised.value))
    assert "    raise Nested(item)\n" in text


@on("loky", "threads", "inline")
def test_unwrapping_again_does_not_make_it_longer(engine: Any) -> None:
    _, result = stateful_map(fail, range(2), n_jobs=1, engine=engine, on_error="deferred")
    texts = []
    for _ in range(3):
        with pytest.raises(Nested) as raised:
            result.unwrap()
        texts.append([(frame.name, frame.lineno) for frame in traceback.extract_tb(raised.value.__traceback__)])
    assert texts[0] == texts[1] == texts[2]
    assert [name for name, _ in texts[0] if name == "unwrap"] == ["unwrap"]


def test_an_error_of_the_input_shows_the_inputs_lines() -> None:
    def numbers() -> Any:
        yield 0
        raise OSError("the input broke")

    with pytest.raises(OSError, match="broke") as raised:
        list(stateful_map(fail, numbers(), n_jobs=1, engine="threads"))
    assert [frame.name for frame in traceback.extract_tb(raised.value.__traceback__)][-2:] == ["__next__", "numbers"]


def test_a_wrong_number_of_arguments_has_no_frames_in_the_worker() -> None:
    (result,) = stateful_map(fail, [(1, 2)], n_jobs=1, pass_as="args", on_error="deferred")
    assert result.exception is not None
    assert (
        str(result.exception.__cause__).strip('"\n') == "TypeError: fail() takes 1 positional argument but 2 were given"
    )


CELL = """
def fail_in_a_cell(item):
    items = [item]
    return [
        other / 0  # the line
        for other in items
    ]


def source_of(item):
    import inspect
    return inspect.getsource(fail_in_a_cell)
"""


def test_code_that_is_in_no_file_brings_its_lines() -> None:
    """As in notebooks and REPLs, whose cells `linecache` has."""
    name = f"<cell {next(_numbers)}>"
    linecache.cache[name] = len(CELL), None, CELL.splitlines(keepends=True), name
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(CELL, name, "exec"), namespace)
    (result,) = stateful_map(namespace["fail_in_a_cell"], [3], n_jobs=1, on_error="deferred")
    assert result.exception is not None
    text = str(result.exception.__cause__)
    assert f'File "{name}", line 5, in ' in text
    assert "    other / 0  # the line\n    ~~~~~~^~~\n" in text
    # It is there for all that asks for it, such as compilers.
    (source,) = stateful_map(namespace["source_of"], [0], n_jobs=1)
    assert source == CELL[1:].partition("\n\n\n")[0] + "\n"
    assert linecache.getlines(name) == CELL.splitlines(keepends=True)


_numbers = itertools.count()


@pytest.mark.skipif(not find_spec("IPython"), reason="IPython is not installed")
def test_ipython_shows_the_line_of_a_cell_and_at_most_one_of_our_frames(tmp_path: Path) -> None:
    driver = tmp_path / "driver.py"
    driver.write_text(program_text("programs/runs_cells_in_ipython"))
    command = [sys.executable, str(driver)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=100, cwd=tmp_path)
    assert "return 1 // item  # the line in the cell\n" in done.stdout, done.stderr
    assert "# the user's line" in done.stdout
    assert "ZeroDivisionError" in done.stdout
    # IPython never hides the last frame of all.
    assert done.stdout.count(PACKAGE) == 1
    assert "in StatefulMap.__next__(self)" in done.stdout


@pytest.mark.cluster
@on("dask", "ray")
def test_a_cells_lines_come_from_clusters_too(engine: Any) -> None:
    name = f"<cell {next(_numbers)}>"
    linecache.cache[name] = len(CELL), None, CELL.splitlines(keepends=True), name
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(CELL, name, "exec"), namespace)
    (result,) = stateful_map(namespace["fail_in_a_cell"], [3], n_jobs=1, on_error="deferred", engine=engine)
    assert result.exception is not None
    assert result.exception.__traceback__ is None  # also on Dask, which has tracebacks travel
    assert result.exception.__cause__ is not None
    text = str(result.exception.__cause__)
    assert f'File "{name}", line 5, in ' in text
    assert "    other / 0  # the line\n" in text
    with pytest.raises(Nested) as raised:
        list(stateful_map(fail, range(3), n_jobs=1, engine=engine))
    frames = traceback.extract_tb(raised.value.__traceback__)
    assert [frame.name for frame in frames if PACKAGE in frame.filename] == ["__next__"]
