"""In a notebook: a class defined in a cell, objects that outlive their cell, the stop button, and bars."""

from __future__ import annotations

import json
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from programs import program_text

if TYPE_CHECKING:
    from conftest import RunProgram

pytestmark = pytest.mark.skipif(
    not all(map(find_spec, ("ipykernel", "ipywidgets", "nbclient"))),
    reason="ipykernel, ipywidgets and nbclient are not all installed",
)


def pids_in(cell: Any) -> set[int]:
    assert cell["errors"] == [], cell
    return {int(word) for word in cell["text"].split()}


def is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_a_notebook(run_program: RunProgram, tmp_path: Path) -> None:
    places = {name: str(tmp_path / name) for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR")}
    done = run_program(program_text("programs/drives_a_notebook"), str(tmp_path), limit=100, env=places)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    hung = {int(path.name.split("-")[1]) for path in tmp_path.glob("hangs-*")}
    built = [int(line) for line in (tmp_path / "built").read_text().split()]

    first, after, latest = (pids_in(found[cell]) for cell in ("first", "after", "defined again"))
    assert len(first) == 3, "the class of a cell did not work in three workers"
    assert pids_in(found["again"]) == first, "the next cell did not find the objects"
    assert found["stopped"]["errors"] == ["KeyboardInterrupt"], found["stopped"]
    assert found["stopped"]["seconds"] < 2
    assert "RemoteTraceback" not in found["stopped"]["text"]
    assert len(hung) == 1
    assert after & first == first - hung, "stopping cost more than the object that was busy"
    assert len(after) == 3
    assert not latest & after, "a class that was defined again is another one"
    assert len(built) == len(set(built)) == 3 + 1 + 3, "something was built twice"

    assert found["with a helper"] == {"text": "(1, 1) (2, 1)", "errors": []}
    assert found["with an edited helper"] == {"text": "(10, 10) (20, 10)", "errors": []}
    assert [cell["text"] for cell in found["reloaded"]] == ["2 3", "0 1", "1 2", "1.0 2.0"], found["reloaded"]

    # As many bars as calls, none for what is nested, and no text below them.
    full = [[20, 20, "success"], [30, 30, "success"]]
    assert found["bars"] == {"text": "", "errors": [], "shown": 2, "states": full}

    deadline = time.monotonic() + 3
    (kernel,) = pids_in(found["kernel"])
    while left := [pid for pid in {kernel, *built} if is_alive(pid)]:
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.01)
