"""What not every system has is asked for in one module, and each of these can be missing."""

from __future__ import annotations

import ast
import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import joblib_stateful
from joblib_stateful._process import _system
from programs import program_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import RunProgram

PACKAGE = Path(joblib_stateful.__file__).parent
# Modules whose contents are others on other systems; those of the second kind are missing on some.
OF_THE_SYSTEM = {"os", "signal", "_signal", "socket", "select", "mmap"}
MISSING_ON_SOME = {"fcntl", "resource", "termios", "pwd", "winreg", "msvcrt", "_winapi", "platform"}
MODULES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}


def questions(text: str) -> Iterator[str]:
    """Yield what a module asks the system by itself."""
    tree = ast.parse(text)
    names = {
        alias.asname or alias.name: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    reads_proc_flag = "HAS_PROC" in text
    for node in ast.walk(tree):
        found = ""
        if isinstance(node, ast.Import) and any(alias.name in MISSING_ON_SOME for alias in node.names):
            found = "imports what is missing on some systems"
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module in MISSING_ON_SOME:
            found = "imports from what is missing on some systems"
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module in OF_THE_SYSTEM:
            found = "imports from a module of the system, where nobody sees what may be missing"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
            of = node.args[0]
            if node.func.id in ("hasattr", "getattr") and isinstance(of, ast.Name):
                found = "asks whether there is something" if names.get(of.id) in OF_THE_SYSTEM else ""
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if (names.get(node.value.id), node.attr) in (
                ("os", "name"),
                ("sys", "platform"),
                ("os", "register_at_fork"),
            ):
                found = f"uses {node.value.id}.{node.attr}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("/proc"):
            found = "" if reads_proc_flag else "looks into /proc without having asked for it"
        if found:
            yield f"line {getattr(node, 'lineno', '?')}: {found}"


@pytest.mark.parametrize("name", MODULES)
def test_no_other_module_asks_the_system(name: str) -> None:
    asked = [] if name == "_process/_system.py" else list(questions(MODULES[name].read_text(encoding="utf-8")))
    assert not asked


@pytest.mark.parametrize(
    "text",
    [
        "import os\nhasattr(os, 'fork')",
        "import socket as sockets\ngetattr(sockets, 'MSG_DONTWAIT', 0)",
        "import os\nos.name == 'nt'",
        "import sys\nsys.platform.startswith('win')",
        "import os\nos.register_at_fork(before=print)",
        "from os import fork",
        "import fcntl",
        "def f():\n    import resource",
        "open('/proc/self/stat')",
    ],
)
def test_questions_to_the_system_are_seen_in_code(text: str) -> None:
    assert list(questions(text))


@functools.cache
def lacking() -> set[str]:
    """Return what this system lacks itself, whatever is switched off in the environment."""
    env = {name: value for name, value in os.environ.items() if name != "JOBLIB_STATEFUL_WITHOUT"}
    program = "from joblib_stateful._process import _system; print(*_system.MISSING)"
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_what_is_named_in_the_environment_is_missing() -> None:
    program = "from joblib_stateful._process import _system; print(_system.HAS_FORK, _system.HAS_PROC, sorted(_system.MISSING))"

    def missing(without: str) -> str:
        env = {**os.environ, "JOBLIB_STATEFUL_WITHOUT": without}
        return subprocess.run(
            [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True
        ).stdout

    assert missing("fork, proc").startswith("False False ['fork', 'proc'")
    assert missing("all") == f"False False {sorted(_system.NAMES)}\n"


# What each of these changes is in files that others test, too; this says that one alone can be missing.
@pytest.mark.parametrize("name", [*sorted(_system.NAMES), "all"])
def test_without_something_that_a_system_may_lack_the_same_comes_out(name: str, run_program: RunProgram) -> None:
    pytest.importorskip("numpy")
    done = run_program(program_text("engines/uses_all_that_systems_may_lack"), env={"JOBLIB_STATEFUL_WITHOUT": name})
    assert done.code == 0, done.err
    has_records = not {name, *lacking()} & {"records", "poll", "all"}
    assert done.out == f"records {4 if has_records else 0}\n"
    assert ("item" in done.err) is not has_records, done.err


def test_lokys_own_command_needs_no_streams_nor_options_nor_a_folder_of_its_own(
    run_program: RunProgram, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("types", "queue", "threading"):
        (folder / f"{name}.py").write_text('raise ImportError("not the standard one")')
    done = run_program(
        program_text("engines/works_without_streams"),
        str(folder),
        within=["env", "PYTHONDEVMODE=1"],
        env={"JOBLIB_STATEFUL_WITHOUT": "start"},
    )
    assert (done.code, done.out) == (0, "(0, 'Queue', None) (1, 'Queue', None)\n"), done.err
