"""On Dask, what a client had built goes with the client, however that ends: as Dask's own futures do."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from programs import program_text

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.cluster


def wait_until(what: Callable[[], Any]) -> None:
    """Wait for what happens in another process, of which this one hears nothing."""
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def n_slot_threads() -> int:
    return sum(thread.name == "joblib_stateful-slot" for thread in threading.enumerate())


def start(client: Any, tmp_path: Path, log: Path, how: str) -> subprocess.Popen[str]:
    script = tmp_path / "client.py"
    script.write_text(program_text("engines/dask_client_that_goes"))
    return subprocess.Popen(
        [sys.executable, str(script), client.scheduler.address, str(log), how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("how", ["is killed idle", "is killed in a long batch", "is closed first"])
def test_objects_are_closed_when_their_client(how: str, dask_cluster: Any, tmp_path: Path, log: Path) -> None:
    process = start(dask_cluster, tmp_path, log, how)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    if "killed" in how:
        if "batch" in how:
            wait_until(lambda: Counter(log.read_text().split())["run"] >= 10)
        process.kill()
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    wait_until(lambda: not any(dask_cluster.run(n_slot_threads).values()))
    noted = Counter(log.read_text().split())
    assert noted["closed"] == noted["built"] >= 1
    assert noted["run"] < 10_000, "the rest of a batch was done for nobody"


def test_a_program_that_ends_in_mid_map_says_nothing(dask_cluster: Any, tmp_path: Path, log: Path) -> None:
    process = start(dask_cluster, tmp_path, log, "ends in mid-map")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "ready\n")
    assert "cannot join" not in err
    assert "Traceback" not in err
    wait_until(lambda: not any(dask_cluster.run(n_slot_threads).values()))


def test_a_program_that_ends_while_an_actor_is_waited_for_says_nothing(
    dask_cluster: Any, tmp_path: Path, log: Path
) -> None:
    distributed = pytest.importorskip("distributed")
    may_go_on = distributed.Event("may go on", client=dask_cluster)
    n_threads = sum(dask_cluster.nthreads().values())
    others = dask_cluster.map(lambda _: distributed.Event("may go on").wait(60), range(n_threads), pure=False)
    process = start(dask_cluster, tmp_path, log, "ends while its actor is waited for")
    out, err = process.communicate(timeout=60)
    may_go_on.set()
    distributed.wait(others, timeout=60)
    assert (process.returncode, out) == (0, "ready\n")
    assert "Traceback" not in err
    assert log.read_text() == ""


def test_restarts_are_waited_for_only_when_they_have_begun() -> None:
    """As at the end of a program: one thread has a process restarted while another one waits for all that are."""
    pytest.importorskip("distributed")
    from joblib_stateful.engines import DaskEngine
    from joblib_stateful.engines.dask._engine import DaskRuntime

    class NoWorker:
        def kill_process(self, _: Any) -> None:
            """Have nothing to kill."""

    untyped: Any = NoWorker()
    runtime = DaskRuntime(DaskEngine(), None, 1)
    failures: list[BaseException] = []
    stop = threading.Event()

    def settle() -> None:
        try:
            while not stop.is_set():
                runtime.settle(10)
        except BaseException as error:
            failures.append(error)

    waiting = [threading.Thread(target=settle) for _ in range(2)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in waiting:
            thread.start()
        for _ in range(500):
            runtime.restart(untyped, None)
    finally:
        stop.set()
        for thread in waiting:
            thread.join()
        sys.setswitchinterval(interval)
    runtime.settle(10)
    assert not failures
