"""One Ctrl-C stops it all; whatever way a program ends, nothing of it stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

# A worker that says that it is there, and then hangs on some items.
WORKER = """
import os, signal, sys, time, threading
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from pathlib import Path
from joblib_stateful import StatefulExecutor, call_worker, shutdown, stateful_map

here = Path(sys.argv[1])

class Worker:
    def __init__(self, hang=False):
        (here / f"built-{os.getpid()}").touch()
        if hang:
            threading.Event().wait()
    def __call__(self, item):
        if item == "hang" or item == 2:
            (here / f"hangs-{os.getpid()}").touch()
            threading.Event().wait()
        return os.getpid()
    def close(self):
        (here / f"closed-{os.getpid()}").touch()
"""


class Program:
    """A script in a session and process group of its own, as a terminal would start it."""

    def __init__(self, folder: Path, text: str) -> None:
        self.folder = folder
        self.last_words = ""
        self.started = time.time()
        script = folder / "program.py"
        script.write_text(WORKER + textwrap.dedent(text))
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", str(script), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            cwd=folder,
        )

    def wait_for(self, pattern: str, count: int = 1) -> None:
        """Wait until the program, or its workers, have made some files."""
        deadline = time.monotonic() + 30
        while len(list(self.folder.glob(pattern))) < count:
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, f"no {pattern}"
            time.sleep(0.002)

    def ctrl_c(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    def kill(self) -> None:
        self.process.kill()
        _, self.last_words = self.process.communicate()

    def ends_within(self, seconds: float) -> tuple[int, str, str]:
        started = time.monotonic()
        out, err = self.process.communicate(timeout=30)
        assert time.monotonic() - started < seconds, f"took {time.monotonic() - started:.1f} s\n{err}"
        return self.process.returncode, out, err

    def leaves_nothing(self, within: float = 3.0) -> None:
        deadline = time.monotonic() + within
        while left := self._left():
            assert time.monotonic() < deadline, f"left behind: {left}\n{self.last_words}"
            time.sleep(0.01)

    def _left(self) -> list[str]:
        left = []
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) == self.process.pid and process.status() != psutil.STATUS_ZOMBIE:
                    left.append(" ".join(process.cmdline()))
            except (psutil.NoSuchProcess, ProcessLookupError, PermissionError):
                continue
        shm = Path("/dev/shm")
        pids = {self.process.pid, *(int(path.name.split("-")[1]) for path in self.folder.glob("built-*"))}
        if shm.is_dir():
            mine = [path for path in shm.iterdir() if any(f"-{pid}-" in path.name for pid in pids)]
            left += [path.name for path in mine if _made_since(path, self.started)]
        return left


def _made_since(path: Path, start: float) -> bool:
    """Tell the program's files from those that another one with the same pid left long ago."""
    try:
        return path.stat().st_mtime > start - 1
    except FileNotFoundError:
        return False


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[[str], Program]]:
    started: list[Program] = []

    def start(text: str) -> Program:
        started.append(Program(tmp_path, text))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            os.killpg(one.process.pid, signal.SIGKILL)
        if not one.process.stdout or not one.process.stdout.closed:
            one.process.communicate()


def assert_only_the_parent_speaks(err: str) -> None:
    assert err.count("Traceback (most recent call last)") == 1, err
    assert err.rstrip().endswith("KeyboardInterrupt"), err


def test_ctrl_c_while_iterating(program: Callable[[str], Program]) -> None:
    running = program("list(stateful_map(Worker, ['hang'] * 10, n_jobs=2, batch_size=1))")
    running.wait_for("hangs-*", 2)
    running.ctrl_c()
    code, _, err = running.ends_within(2)
    assert code == -signal.SIGINT
    assert_only_the_parent_speaks(err)
    running.leaves_nothing()


def test_ctrl_c_during_construction(program: Callable[[str], Program]) -> None:
    running = program("list(stateful_map(Worker, range(10), n_jobs=2, shared_kwargs={'hang': True}))")
    running.wait_for("built-*", 2)
    running.ctrl_c()
    _, _, err = running.ends_within(2)
    assert_only_the_parent_speaks(err)
    running.leaves_nothing()


def test_ctrl_c_in_the_consumers_own_code(program: Callable[[str], Program]) -> None:
    running = program(
        """
        for pid in stateful_map(Worker, [0, 1, 'hang', 'hang', 'hang'], n_jobs=2, batch_size=1, progress=True):
            (here / 'consuming').touch()
            while len(list(here.glob('hangs-*'))) < 1:
                time.sleep(0.001)
            threading.Event().wait()
        """
    )
    running.wait_for("consuming")
    running.wait_for("hangs-*", 1)
    running.ctrl_c()
    running.ends_within(2)
    running.leaves_nothing()


@pytest.mark.parametrize("milliseconds", [0, 20, 40, 60, 80, 100, 150])
def test_ctrl_c_while_workers_start(program: Callable[[str], Program], milliseconds: int) -> None:
    running = program(
        """
        def items():
            (here / 'pulled').touch()
            yield 'hang'
            yield 'hang'
        list(stateful_map(Worker, items(), n_jobs=2))
        """
    )
    running.wait_for("pulled")
    time.sleep(milliseconds / 1000)  # what is tested: each moment of a worker's start
    running.ctrl_c()
    _, _, err = running.ends_within(2)
    assert_only_the_parent_speaks(err)
    running.leaves_nothing()


def test_ctrl_c_costs_busy_workers_only(program: Callable[[str], Program]) -> None:
    running = program(
        """
        with StatefulExecutor(Worker, 3) as executor:
            executor.warm_up()
            results = stateful_map(executor, [0, 'hang'], batch_size=1)
            try:
                list(results)
            except KeyboardInterrupt:
                pids = sorted(map(int, {p.name.split('-')[1] for p in here.glob('built-*')}))
                hung = {int(p.name.split('-')[1]) for p in here.glob('hangs-*')}
                alive = {info.pid for info in executor.workers() if info.pid}
                assert alive == set(pids) - hung, (alive, pids, hung)
                assert list(stateful_map(executor, [0, 1, 3]))
                print('fine')
        """
    )
    running.wait_for("hangs-*")
    running.ctrl_c()
    code, out, err = running.ends_within(10)
    assert (code, out.strip()) == (0, "fine"), err
    running.leaves_nothing()


@pytest.mark.parametrize(
    ("ending", "code"),
    [("pass", 0), ("sys.exit(5)", 5), ("raise KeyError('own')", 1), ("results.close()", 0), ("del results", 0)],
)
def test_the_end_of_a_script_with_a_half_consumed_map(
    program: Callable[[str], Program], ending: str, code: int
) -> None:
    running = program(
        f"""
        results = stateful_map(Worker, [0, 1, 'hang', 'hang', 'hang'], n_jobs=2, batch_size=1, progress=True)
        next(results)
        while not list(here.glob('hangs-*')):
            time.sleep(0.001)
        (here / 'ending').touch()
        {ending}
        """
    )
    running.wait_for("ending")
    found, _, err = running.ends_within(3)
    assert found == code, err
    assert "Exception ignored" not in err
    assert "Warning" not in err
    running.leaves_nothing()


def test_objects_are_closed_at_the_end_of_a_script(program: Callable[[str], Program]) -> None:
    running = program(
        """
        executor = StatefulExecutor(Worker, 2)
        executor.warm_up()  # an object that is still being built at the end is not waited for
        list(stateful_map(executor, [0, 1, 3, 4], batch_size=1))
        """
    )
    code, _, err = running.ends_within(20)
    assert (code, err) == (0, "")
    built = {path.name.removeprefix("built-") for path in running.folder.glob("built-*")}
    assert {path.name.removeprefix("closed-") for path in running.folder.glob("closed-*")} == built
    running.leaves_nothing()


def test_submitted_calls_are_finished_at_the_end_of_a_script(program: Callable[[str], Program]) -> None:
    running = program(
        """
        executor = StatefulExecutor(Worker, 1)
        futures = [executor.submit(Path.touch, here / f'done-{n}') for n in range(20)]
        """
    )
    assert running.ends_within(20)[0] == 0
    assert len(list(running.folder.glob("done-*"))) == 20
    running.leaves_nothing()


@pytest.mark.parametrize("items", ["['hang'] * 4", "[0, 1]"], ids=["busy", "idle"])
def test_workers_die_with_a_killed_parent(program: Callable[[str], Program], items: str) -> None:
    running = program(
        f"""
        for _ in stateful_map(Worker, {items}, n_jobs=2, batch_size=1):
            pass
        (here / 'idle').touch()
        threading.Event().wait()
        """
    )
    running.wait_for("hangs-*" if "hang" in items else "idle", 2 if "hang" in items else 1)
    running.kill()
    running.leaves_nothing(within=3)


def test_workers_die_with_a_killed_parent_while_c_code_holds_the_gil(program: Callable[[str], Program]) -> None:
    running = program(
        """
        def spin(item):
            (here / f'hangs-{os.getpid()}').touch()
            pow(3, 10**8)
        list(stateful_map(spin, range(2), n_jobs=2, batch_size=1))
        """
    )
    running.wait_for("hangs-*", 2)
    running.kill()
    running.leaves_nothing(within=3)
