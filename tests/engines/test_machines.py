"""What people's machines are like: containers, limits of CPU time, users without a name or a home."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from programs import NAMELESS, among_mounts, program_text

if TYPE_CHECKING:
    from conftest import RunProgram

_FOUND = """\
[0, 'ItemTimeoutError', 2, 'WorkerCrashedError', 4]
[0.0, 1.0, 2.0, 3.0]
1 [2, 3]
"""


@pytest.mark.parametrize("has_tools", [True, False])
def test_where_no_processes_are_listed_a_worker_is_killed_alone(run_program: RunProgram, *, has_tools: bool) -> None:
    """Linux without /proc, as in a bare chroot: neither psutil nor pgrep sees the worker there that is to be killed."""
    pytest.importorskip("numpy")
    done = run_program(
        program_text("engines/has_workers_die_where_something_is_missing"),
        "with psutil" if has_tools else "without psutil",
        within=among_mounts("mount -t tmpfs tmpfs /proc"),
    )
    assert (done.code, done.out) == (0, _FOUND), done.err
    assert "Traceback" not in done.err
    assert "is killed alone, for this system lists no processes" in done.err


@pytest.mark.parametrize(
    ("home", "without"), [("/nonexistent", {}), (None, {}), (None, {"JOBLIB_STATEFUL_WITHOUT": "memfd"})]
)
def test_a_user_without_a_name_or_a_home_who_may_write_nowhere_can_map(
    run_program: RunProgram, home: str | None, without: dict[str, str]
) -> None:
    """As where a container is run with any user's number."""
    pytest.importorskip("numpy")
    read_only = (
        'for folder in /tmp /var/tmp "$PWD"; do mount --bind $folder $folder; mount -o remount,bind,ro $folder; done'
    )
    unset = "unset USER LOGNAME" + ("" if home else " HOME")
    done = run_program(
        program_text("engines/has_workers_die_where_something_is_missing"),
        "as nobody",
        within=among_mounts(f"{read_only}; cd .; {unset}", user=NAMELESS),
        env={"TMPDIR": "/nonexistent", **({"HOME": home} if home else {}), **without},
    )
    assert (done.code, done.out, done.err) == (0, _FOUND, "")


def _quota(layout: str, quota: str) -> str:
    """Return how files are laid that say how much CPU time a container may have."""
    lines = {
        "v2": f"echo {quota} 100000 > cpu.max",
        "v1": f"mkdir cpu; echo {quota} > cpu/cpu.cfs_quota_us; echo 100000 > cpu/cpu.cfs_period_us",
    }
    return f"mount -t tmpfs tmpfs /sys/fs/cgroup; (cd /sys/fs/cgroup; {lines[layout]})"


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one CPU anyway")
@pytest.mark.parametrize(("layout", "quota"), [("v2", "100000"), ("v2", "50000"), ("v1", "100000")])
def test_a_limit_of_cpu_time_is_that_many_workers_and_threads(run_program: RunProgram, layout: str, quota: str) -> None:
    done = run_program(
        program_text("engines/counts_its_workers_and_threads"),
        within=among_mounts(_quota(layout, quota)),
        env={"LOKY_MAX_CPU_COUNT": str(os.cpu_count())},
    )
    assert (done.code, done.out, done.err) == (0, "1 1\n1\n", "")
