"""What people's machines are like: containers, limits of CPU time, users without a name or a home."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from programs import NAMELESS, among_mounts

if TYPE_CHECKING:
    from conftest import RunProgram

# A worker, one of its own processes that ends with it, and what else a program does.
_WORKERS = """
    import os, subprocess, sys, threading
    import joblib
    import numpy as np
    from joblib_stateful import StatefulExecutor, stateful_map

    class Worker:
        def __init__(self):
            self.n_calls = 0

        def __call__(self, item):
            self.n_calls += 1
            if not isinstance(item, str):
                return item
            if item == "hang":
                self.child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
                threading.Event().wait()
            os.kill(os.getpid(), 9)

    def run_all():
        found = stateful_map(Worker, [0, "hang", 2, "die", 4], n_jobs=2, item_timeout=1, batch_size=1, on_error="deferred")
        print([result.value if result.ok else type(result.exception).__name__ for result in found])
        arrays = (np.full(300_000, n, float) for n in range(4))
        print([float(array[-1]) for array in stateful_map(Worker, arrays, n_jobs=2)])
        with StatefulExecutor(Worker, 2) as executor, joblib.parallel_config(backend="stateful", n_jobs=2):
            print(executor.submit(abs, -1).result(), joblib.Parallel()(joblib.delayed(abs)(n) for n in [-2, 3]))
"""
_FOUND = """\
[0, 'ItemTimeoutError', 2, 'WorkerCrashedError', 4]
[0.0, 1.0, 2.0, 3.0]
1 [2, 3]
"""


@pytest.mark.parametrize("has_tools", [True, False])
def test_where_no_processes_are_listed(run_program: RunProgram, *, has_tools: bool) -> None:
    """Linux without /proc, as in a bare chroot: neither psutil nor pgrep sees the worker there that is to be killed."""
    pytest.importorskip("numpy")
    hide = "" if has_tools else 'sys.modules["psutil"] = None\n    '
    done = run_program(
        f"""
    import sys
    {hide}{_WORKERS.lstrip()}
    if __name__ == "__main__":
        run_all()
        """,
        within=among_mounts("mount -t tmpfs tmpfs /proc"),
    )
    assert (done.code, done.out) == (0, _FOUND), done.err
    assert "Traceback" not in done.err
    assert "is killed alone, for this system lists no processes" in done.err


@pytest.mark.parametrize(
    ("home", "without"), [("/nonexistent", {}), (None, {}), (None, {"JOBLIB_STATEFUL_WITHOUT": "memfd"})]
)
def test_a_user_without_a_name_or_a_home_who_may_write_nowhere(
    run_program: RunProgram, home: str | None, without: dict[str, str]
) -> None:
    """As where a container is run with any user's number."""
    pytest.importorskip("numpy")
    read_only = (
        'for folder in /tmp /var/tmp "$PWD"; do mount --bind $folder $folder; mount -o remount,bind,ro $folder; done'
    )
    unset = "unset USER LOGNAME" + ("" if home else " HOME")
    done = run_program(
        f"""
    import getpass, tempfile
    {_WORKERS.lstrip()}
    if __name__ == "__main__":
        assert os.getuid() == 12345
        for look in (tempfile.gettempdir, lambda: getpass.getuser(), lambda: open("file", "w")):
            try:
                print(look())
            except (OSError, KeyError):
                pass
        run_all()
        """,
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
        """
        import os
        import joblib
        from joblib_stateful import StatefulExecutor, stateful_map

        class Worker:
            def __call__(self, item):
                return os.environ["OMP_NUM_THREADS"]

        if __name__ == "__main__":
            os.environ.pop("OMP_NUM_THREADS", None)
            with StatefulExecutor(Worker) as executor:
                print(len(executor.workers()), *stateful_map(executor, [1]))
            with joblib.parallel_config(backend="stateful", worker=Worker):
                print(joblib.effective_n_jobs())
        """,
        within=among_mounts(_quota(layout, quota)),
        env={"LOKY_MAX_CPU_COUNT": str(os.cpu_count())},
    )
    assert (done.code, done.out, done.err) == (0, "1 1\n1\n", "")
