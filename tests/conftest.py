"""What all tests share: no test may leave anything behind, and programs run under a wall-clock limit."""

from __future__ import annotations

import contextlib
import gc
import importlib
import multiprocessing.resource_tracker
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

# OpenBLAS starts a thread for each CPU in each process that imports numpy or scipy, which spins for 2**26 cycles before it
# sleeps: CPU time that half of the processes here would take for nothing. With 2**20 its calls are as fast.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")
# Ray (2.60) runs its actors' processes at nice 15: beside four busy programs on two CPUs they got 1 % of the time, and a test
# that takes 15 s took minutes. Read by what `ray.init` starts.
os.environ.setdefault("RAY_worker_niceness", "0")

import cloudpickle
import joblib
import psutil
import pytest
from joblib.externals.loky.backend import resource_tracker as joblibs_tracker
from loky.backend import resource_tracker as lokys_tracker
from tqdm import tqdm

import contract
import joblib_stateful
from joblib_stateful.testing import MemoryEngine
from programs import Program, TerminalProgram, pids_in, session, shared_memory

# Started once per process and kept: their pipes and processes are no leak.
lokys_tracker.ensure_running()
joblibs_tracker.ensure_running()
if os.name == "posix":
    multiprocessing.resource_tracker.ensure_running()
# So is the lock that bars share, made for the first one; where processes aren't forked by default it is a file.
tqdm.get_lock()

ENGINES = ("loky", "threads", "inline")
# What tests run in processes of their own.
collect_ignore = ["user_programs"]
# Threads that tqdm and the test runner keep for themselves.
_KEPT_THREADS = ("tqdm_monitor", "TMonitor", "pytest_timeout")


@pytest.hookimpl(optionalhook=True)  # there may be no xdist
def pytest_xdist_auto_num_workers() -> int:
    """Say how many processes run the tests under ``-n logical`` and ``-n auto``.

    Half as many again as there are CPUs, for many tests wait: for grace periods, time limits, processes that start and end. Two
    CPUs are at work for 90 % of the time by three, and for 75 % by two; by four nothing is over sooner.
    """
    n_cpus: int = joblib.cpu_count()
    return n_cpus + max(1, n_cpus // 2)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Send what tests define by value, as a notebook's cells are sent.

    By reference, each worker would import the test's module, and pytest, joblib and scikit-learn with it: four times
    the start of a worker (0.6 s of CPU time instead of 0.15 s).
    """
    modules = {item.module for item in session.items if isinstance(item, pytest.Function)}
    for module in {
        *modules,
        sys.modules[__name__],
        *filter(None, map(sys.modules.get, ("scenes", "contract"))),
    }:
        cloudpickle.register_pickle_by_value(module)
    # What was imported stays, and is looked through no more: a test that has workers is followed by a collection, which
    # took 65 ms.
    gc.collect()
    gc.freeze()


@dataclass
class _Held:
    """What this process holds that could be left behind."""

    processes: set[int] = field(default_factory=set)
    threads: set[int] = field(default_factory=set)
    files: set[str] = field(default_factory=set)
    shared_memory: set[str] = field(default_factory=set)

    @classmethod
    def now(cls) -> _Held:
        held = cls()
        held.processes = _descendants(os.getpid())
        for thread in threading.enumerate():
            if type(thread).__name__ not in _KEPT_THREADS and not thread.name.startswith(_KEPT_THREADS):
                held.threads.add(thread.ident or 0)
        # Without an object for each, as below: this is looked at twice for each test.
        for fd in os.listdir("/proc/self/fd"):  # noqa: PTH208
            with contextlib.suppress(OSError):  # the one that listed the folder
                held.files.add(f"{fd} -> {os.readlink(f'/proc/self/fd/{fd}')}")  # noqa: PTH115
        mine = f"loky-{os.getpid()}-"
        held.shared_memory = {name for name in shared_memory() if mine in name}
        return held

    def __sub__(self, other: _Held) -> dict[str, list[str]]:
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        extra = {
            "processes": [str(pid) for pid in self.processes - other.processes if _counts(pid)],
            "threads": [names.get(ident, str(ident)) for ident in self.threads - other.threads],
            "files": sorted(self.files - other.files),
            "shared memory": sorted(self.shared_memory - other.shared_memory),
        }
        return {what: left for what, left in extra.items() if left}


def _counts(pid: int) -> bool:
    """Say whether a process runs and is no resource tracker."""
    try:
        process = psutil.Process(pid)
        return "resource_tracker" not in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _descendants(pid: int) -> set[int]:
    """Return the processes below one, as the kernel lists them: psutil reads a file for each process of the machine."""
    if not os.path.exists(f"/proc/{pid}/task/{pid}/children"):  # noqa: PTH110 - see above
        return {child.pid for child in psutil.Process(pid).children(recursive=True)}
    found: set[int] = set()
    new = {pid}
    while new:
        below: set[int] = set()
        for one in new:
            with contextlib.suppress(OSError):  # it has ended
                for thread in os.listdir(f"/proc/{one}/task"):  # noqa: PTH208 - see above
                    with contextlib.suppress(OSError), open(f"/proc/{one}/task/{thread}/children", "rb") as file:  # noqa: PTH123
                        below |= set(map(int, file.read().split()))
        new = below - found
        found |= new
    return found


def _owner(file: str) -> str:
    """Say what holds an open file, as far as that can be seen."""
    number = int(file.split(maxsplit=1)[0])
    trackers = {
        "multiprocessing's": multiprocessing.resource_tracker._resource_tracker,
        "loky's": lokys_tracker._resource_tracker,
        "joblib's": joblibs_tracker._resource_tracker,
    }
    if of := [name for name, tracker in trackers.items() if tracker._fd == number]:
        return f"{file}: {of} resource tracker"
    ends = [held for held in gc.get_objects() if type(held) is Connection and vars(held)["_handle"] == number]
    chain = [file, *(f"a connection, writable: {end.writable}" for end in ends)]
    holders: list[object] = [*ends]
    seen = {id(holders)}
    for _ in range(6):
        seen |= set(map(id, holders))
        holders = [
            held for held in gc.get_referrers(*holders) if id(held) not in seen and not isinstance(held, FrameType)
        ]
        chain.append(", ".join(f"{type(held).__qualname__} {str(held)[:150]}" for held in holders[:20]))
        seen.add(id(holders))
    return "\n  of ".join(chain)


@pytest.fixture(autouse=True)
def _leaves_nothing_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a process, a thread, an open file or shared memory behind."""
    if request.node.get_closest_marker("cluster"):  # which has processes, threads and files as it likes
        yield
        return
    _dask_cluster.close()  # whose threads and files come and go
    before = _Held.now()
    yield
    joblib_stateful.shutdown()
    deadline = time.monotonic() + 10
    while left := _Held.now() - before:
        if time.monotonic() > deadline:
            pytest.fail(f"left behind: {left}\n" + "\n".join(map(_owner, left.get("files", ()))))
        gc.collect()
        time.sleep(0.01)  # for what is ending: polled, because a thread of loky's can't be waited for


@dataclass(frozen=True)
class Finished:
    """How a program ended."""

    code: int
    out: str
    err: str
    seconds: float


RunProgram = Callable[..., Finished]


@pytest.fixture
def run_program(tmp_path: Path) -> Iterator[RunProgram]:
    """Return a function that runs the text of a program as a script, in a session of its own.

    Five seconds after its end no process, shared memory or temporary file of it may be left. It may be started within
    another command, such as that of `among_mounts`.
    """
    # Sockets lie in there, too, whose names must be short.
    temp = Path(tempfile.mkdtemp(prefix="temp"))

    def run(
        text: str, *args: str, limit: float = 60, env: dict[str, str] | None = None, within: Sequence[str] = ()
    ) -> Finished:
        script = tmp_path / "program.py"
        script.write_text(textwrap.dedent(text))
        before = shared_memory()
        started = time.monotonic()
        process = subprocess.Popen(
            [*within, sys.executable, "-W", "error", str(script), *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "TMPDIR": str(temp), **(env or {})},
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=limit)
            done = Finished(process.returncode, out, err, time.monotonic() - started)
            deadline = time.monotonic() + 5
            while left := [*_left_of_session(process.pid, before), *(path.name for path in temp.iterdir())]:
                assert time.monotonic() < deadline, f"left behind: {left}\n{err}"
                time.sleep(0.02)
            return done
        finally:
            for left_over in session(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(left_over.pid, signal.SIGKILL)
            process.wait()

    yield run
    shutil.rmtree(temp, ignore_errors=True)


def _left_of_session(leader: int, before: set[str]) -> list[str]:
    """Return what is left of a program: processes, and new shared memory that has its number in its name."""
    new = shared_memory() - before
    return [*(str(process.pid) for process in session(leader)), *(name for name in new if leader in pids_in(name))]


StartProgram = Callable[..., Program]


@pytest.fixture
def program(tmp_path: Path) -> Iterator[StartProgram]:
    """Return a function that starts the text of a program, behind the lines of `programs.WORKER` if it hasn't got them."""
    started: list[Program] = []

    def start(text: str, *args: str, terminal: bool = False) -> Program:
        started.append((TerminalProgram if terminal else Program)(tmp_path, text, *args))
        return started[-1]

    yield start
    for one in started:
        one.end()


@dataclass(frozen=True)
class BuildLog:
    """A file to which workers write a line each time they are built."""

    path: Path

    def note(self, text: object = "") -> None:
        with self.path.open("a") as file:
            file.write(f"{os.getpid()} {text}\n")

    @property
    def lines(self) -> list[str]:
        return self.path.read_text().splitlines() if self.path.exists() else []

    def __len__(self) -> int:
        return len(self.lines)


@pytest.fixture
def built(tmp_path: Path) -> BuildLog:
    return BuildLog(tmp_path / "built")


# --- engines, and the clusters that two of them need ----------------------------------------------------


class DaskCluster:
    """A cluster that tests use in turn, which takes some seconds to start, until one has left something behind.

    Dask's nannies have been seen not to start a killed process again, and a thread that hangs there is never ended.
    """

    def __init__(self) -> None:
        self._cluster: Any = None
        self._processes: set[int] = set()

    def client(self) -> Any:
        """Return a client of a cluster that is as good as new."""
        distributed = pytest.importorskip("distributed")
        if self._cluster is not None and self._alive() != self._processes:
            self.close()
        if self._cluster is None:
            self._cluster = distributed.LocalCluster(**contract.DASK)
            self._processes = self._alive()
        try:
            return distributed.Client(self._cluster)
        except BaseException:
            self.close()
            raise

    def give_back(self, client: Any) -> None:
        """End the cluster unless it is as it was."""
        deadline, is_idle = time.monotonic() + 2, False
        with contextlib.suppress(Exception):  # whatever is wrong with it
            while not is_idle and time.monotonic() < deadline and self._alive() == self._processes:
                is_idle = not any(client.sync(client._run, _n_busy, callback_timeout=2).values())
        client.close()
        if not is_idle:
            self.close()

    def close(self) -> None:
        if self._cluster is not None:
            self._cluster.close()
            self._cluster = None

    def _alive(self) -> set[int]:
        found = set()
        for nanny in self._cluster.workers.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                if psutil.Process(nanny.pid).status() != psutil.STATUS_ZOMBIE:
                    found.add(nanny.pid)
        return found


def _n_busy(dask_worker: Any) -> int:
    return len(dask_worker.state.tasks) + len(dask_worker.state.actors)


_dask_cluster = DaskCluster()


@pytest.fixture
def dask_cluster() -> Iterator[Any]:
    client = _dask_cluster.client()
    yield client
    _dask_cluster.give_back(client)


def pytest_sessionfinish() -> None:
    """End what tests have used in turn."""
    _dask_cluster.close()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    ray.init(**contract.RAY)
    yield
    ray.shutdown()


@pytest.fixture
def ray_address(ray_cluster: None) -> str:
    """Return where programs connect to Ray.

    They start none of their own: where its raylet takes more than a second to end, Ray (2.60) kills it, and an agent that
    it has started may outlive the program by 23 s.
    """
    import ray

    return str(ray.get_runtime_context().gcs_address)


@pytest.fixture
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return the engine of a test's case, on its cluster if it has one."""
    name: str = request.param
    if name in ("dask", "ray"):
        request.getfixturevalue(f"{name}_cluster")
    if name == "memory":
        yield MemoryEngine(auto=True)
    elif name == "example":
        monkeypatch.syspath_prepend(contract.EXAMPLES)
        yield importlib.import_module("process_engine").ProcessEngine()
    else:
        yield name
    joblib_stateful.shutdown()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log"
    path.touch()
    return path
