"""Standard streams and signals: prints arrive, and neither missing streams nor SIGPIPE stop anything."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from joblib_stateful import StatefulExecutor
from programs import program_text

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import RunProgram, StartProgram

posix = pytest.mark.skipif(os.name != "posix", reason="signals and file descriptors of POSIX")


# --- prints ---------------------------------------------------------------------------------------------


def test_a_line_is_there_as_soon_as_it_is_printed(program: StartProgram) -> None:
    started = program(
        """
        def speak(_):
            print("first line")
            (here / "hangs-1").touch()
            threading.Event().wait()

        if __name__ == "__main__":
            with StatefulExecutor(n_jobs=1) as executor:
                executor.submit(speak, 0).result()
        """
    )
    started.wait_for("hangs-1")
    assert started.process.stdout is not None
    assert started.process.stdout.readline() == "first line\n"


@pytest.mark.parametrize("end", ["os._exit(3)", "os.kill(os.getpid(), 9)", "threading.Event().wait()"])
def test_what_was_printed_is_not_lost_with_the_process(run_program: RunProgram, tmp_path: Path, end: str) -> None:
    done = run_program(
        f"""
        import os, sys, threading
        from joblib_stateful import errors, stateful_map

        def speak(item):
            print("line", item)
            print("error", item, file=sys.stderr)
            {end}

        if __name__ == "__main__":
            # Into a file, too.
            os.dup2(os.open({str(tmp_path / "out")!r}, os.O_WRONLY | os.O_CREAT), 1)
            try:
                list(stateful_map(speak, [7], n_jobs=1, item_timeout=0.5))
            except (errors.WorkerCrashedError, errors.ItemTimeoutError):
                sys.exit(5)
        """
    )
    assert done.code == 5, done.err
    assert (tmp_path / "out").read_text() == "line 7\n"
    assert "error 7\n" in done.err


def test_less_than_a_line_is_printed_before_the_answer_comes(run_program: RunProgram) -> None:
    done = run_program(
        """
        import os
        from joblib_stateful import stateful_map

        def speak(item):
            print(item, end=" ")

        if __name__ == "__main__":
            list(stateful_map(speak, "ab", n_jobs=1, batch_size=1))
            os.write(1, b"answered")
        """
    )
    assert (done.code, done.out) == (0, "a b answered"), done.err


def test_lines_are_in_the_programs_encoding(run_program: RunProgram) -> None:
    done = run_program(
        """
        import sys
        from joblib_stateful import stateful_map

        if __name__ == "__main__":
            sys.stdout.reconfigure(encoding="ascii", errors="backslashreplace")
            list(stateful_map(print, ["\\u00e9"], n_jobs=1))
        """
    )
    assert (done.code, done.out) == (0, "\\xe9\n"), done.err


# --- no standard streams --------------------------------------------------------------------------------

_NONE = {
    "None": "sys.stdin = sys.stdout = sys.stderr = None",
    "closed": "sys.stdout.close(); sys.stderr.close()",
    "without flush": "sys.stdout = sys.stderr = types.SimpleNamespace(write=lambda text: None)",
    "closed files": "sys.stdin = sys.stdout = sys.stderr = None; os.close(0); os.close(1); os.close(2)",
    # Such files are not handed on to workers, which then have none in these places.
    "other files": "sys.stdin = sys.stdout = sys.stderr = None; [os.close(fd) for fd in range(3)]; "
    "files = [os.open(os.devnull, os.O_RDWR) for fd in range(3)]",
}


@pytest.mark.parametrize("streams", _NONE.values(), ids=_NONE)
def test_a_program_without_standard_streams(run_program: RunProgram, tmp_path: Path, streams: str) -> None:
    done = run_program(
        f"""
        import os, subprocess, sys, types
        from pathlib import Path
        {streams}
        from joblib_stateful import stateful_map

        def speak(item):
            print("hello")
            if sys.stderr is not None:
                sys.stderr.write("hello")
            os.system("echo hello")
            return -item

        if __name__ == "__main__":
            Path({str(tmp_path / "found")!r}).write_text(str(list(stateful_map(speak, range(4), n_jobs=2))))
        """
    )
    # Python itself complains in the end of an object that has no flush().
    assert done.code in {0, 120}, done.err
    assert (tmp_path / "found").read_text() == "[0, -1, -2, -3]"


# --- SIGPIPE --------------------------------------------------------------------------------------------


@posix
def test_a_command_line_tool_outlives_its_workers(run_program: RunProgram) -> None:
    done = run_program(program_text("programs/loses_many_workers_to_signals"))
    assert (done.code, done.out.strip()) == (0, "fine"), done.err


@posix
def test_signals_are_as_in_any_process_in_a_worker() -> None:
    with StatefulExecutor(n_jobs=1) as executor:
        assert executor.submit(signal.pthread_sigmask, signal.SIG_BLOCK, ()).result() == set()
    assert signal.SIGPIPE not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


# --- files of the current folder that have the names of standard modules ----------------------------------


def test_files_with_names_of_standard_modules_are_not_taken_for_them(run_program: RunProgram, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("types", "queue", "random", "socket", "pickle", "threading", "selectors", "struct"):
        (folder / f"{name}.py").write_text('raise ImportError("not the standard one")')
    done = run_program(program_text("programs/stands_among_files_named_as_standard_modules"), str(folder))
    assert done.code == 0, done.err


def test_a_package_that_is_found_by_the_programs_path_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def twice(item):\n    return 2 * item\n")
    script = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import mine
from joblib_stateful import stateful_map
print(list(stateful_map(mine.twice, range(3), n_jobs=1)))
"""
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[0, 2, 4]"), done.stderr
