"""Little shared memory, no temporary folder, few file descriptors: it works, or says what is used up."""

from __future__ import annotations

import errno
import gc
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from joblib_stateful._transport import _segments
from needs import needs
from programs import among_mounts, program_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import RunProgram


@pytest.fixture
def run_mounted(tmp_path: Path) -> Callable[..., str]:
    """Return a function that runs a program with large arrays among mounts of its own, and returns what it printed."""

    def run(mount: str, *args: str, warnings: str = "error") -> str:
        folder = tmp_path / "mounted"
        folder.mkdir()
        script = tmp_path / "program.py"
        script.write_text(program_text("faults/shares_large_arrays"))
        done = subprocess.run(
            [*among_mounts(mount, str(folder)), sys.executable, "-W", warnings, str(script), *args],
            capture_output=True,
            text=True,
            timeout=90,
            cwd=tmp_path,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


def test_shared_memory_that_is_smaller_than_the_arrays(run_mounted: Callable[..., str]) -> None:
    found = run_mounted("mount -t tmpfs -o size=8m tmpfs /dev/shm", "and fills memory")
    assert found == "fine"


@pytest.mark.parametrize("state", ["full", "read-only"])
def test_workers_need_no_shared_memory_with_a_name(run_mounted: Callable[..., str], state: str) -> None:
    found = run_mounted(
        "mount -t tmpfs -o size=64k tmpfs /dev/shm; "
        + ("cat /dev/zero > /dev/shm/full || true" if state == "full" else "mount -o remount,ro /dev/shm"),
        warnings="ignore",  # joblib warns when it is imported
    )
    assert found == "fine"


@pytest.mark.parametrize("state", ["full", "read-only"])
def test_a_temporary_folder_that_takes_nothing(run_mounted: Callable[..., str], state: str) -> None:
    found = run_mounted(
        'mount -t tmpfs -o size=64k tmpfs "$0"; export TMPDIR="$0" JOBLIB_TEMP_FOLDER="$0"; '
        + ('cat /dev/zero > "$0/full" || true' if state == "full" else 'mount -o remount,ro "$0"'),
    )
    assert found == "fine"


@pytest.mark.parametrize(("limit", "start"), [(256, True), pytest.param(100, False, marks=needs("rlimit"))])
def test_32_workers_among_few_file_descriptors(run_program: RunProgram, limit: int, *, start: bool) -> None:
    pytest.importorskip("resource")
    done = run_program(program_text("faults/starts_32_workers_among_few_files"), str(limit))
    assert done.code == 0, done.err
    first, *rest = done.out.splitlines()
    assert rest == ["20 items"]
    if start:
        assert first == "32 workers"
    else:
        assert f"of the {limit} that this process may have (`ulimit -n`)" in first
    assert done.err == ""


@needs("sendfds", "rlimit")
def test_arrays_under_way_leave_file_descriptors_to_others(run_program: RunProgram) -> None:
    pytest.importorskip("numpy")
    done = run_program(program_text("faults/has_many_arrays_under_way_among_few_files"))
    assert (done.code, done.out, done.err) == (0, "True 1 True\n", "")


def test_files_that_are_kept_make_way_for_a_worker(run_program: RunProgram) -> None:
    done = run_program(program_text("faults/loses_a_worker_among_files_that_are_kept"))
    assert (done.code, done.out, done.err) == (0, "['idle', 'idle']\n", "")


def test_a_constructor_fails_while_no_file_can_be_opened(run_program: RunProgram) -> None:
    """What says so needs none."""
    done = run_program(program_text("faults/fails_in_construction_among_no_files"))
    assert (done.code, done.out) == (0, "WorkerInitError ValueError('no')\n"), done.err


def test_deferred_results_while_no_file_can_be_opened(run_program: RunProgram) -> None:
    done = run_program(program_text("faults/defers_errors_among_no_files"))
    assert (done.code, done.out) == (0, "[1, 2, None, 4]\n"), done.err


def test_where_files_in_memory_are_forbidden(run_program: RunProgram) -> None:
    """As some sandboxes do; then they lie in a folder, without a name."""
    done = run_program(program_text("faults/may_make_no_files_in_memory"))
    assert (done.code, done.out, done.err) == (0, "[0.0, 1.0, 2.0, 3.0]\n", "")


def test_a_segment_that_found_no_room_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_segments, "_write", fail)
    _segments.spares.begin(-1)
    try:
        before = _segments.spares.fds()
        with pytest.raises(OSError, match="No space"):
            _segments.Segment([bytes(1000)])
        gc.collect()
        assert _segments.spares.fds() == before
    finally:
        _segments.spares.end(-1)


def test_where_no_process_can_be_started_that_is_what_is_said(run_program: RunProgram) -> None:
    """Not a bare OSError of the first helper of all; and what needs no process works."""
    done = run_program(program_text("faults/may_start_no_process"))
    assert (done.code, done.out, done.err) == (0, "[1, 2]\nTrue True\n", "")
