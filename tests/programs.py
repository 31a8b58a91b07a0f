"""Programs of a user: started as a terminal would, ended in every way, and looked at for what they leave behind."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

# The folder beside this file, with what tests run in processes of their own.
USER_PROGRAMS = Path(__file__).with_name("user_programs")


def program_text(name: str) -> str:
    """Return the text of one of the user's programs, such as ``"faults/kills_every_worker"``.

    What it imports from a file beside it whose name begins with an underscore is put in there: the programs that are tested
    have all of it in their ``__main__``, as a script or a notebook has.
    """
    path = USER_PROGRAMS / f"{name}.py"
    lines = path.read_text().splitlines(keepends=True)
    for node in reversed(ast.parse("".join(lines)).body):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("_"):
            beside = path.with_name(f"{node.module}.py")
            if beside.exists():
                lines[node.lineno - 1 : node.end_lineno] = beside.read_text().splitlines(keepends=True)
    return "".join(lines)


WORKER = program_text("programs/_worker_that_hangs")

_SHM = "/dev/shm"


class Program:
    """A script in a session and process group of its own, as a terminal would start it."""

    def __init__(self, folder: Path, text: str, *args: str) -> None:
        self.folder = folder
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        self.last_words = ""
        script = folder / "program.py"
        script.write_text(text if WORKER in text else WORKER + textwrap.dedent(text))
        # Process numbers come round again, and other programs may have been killed without a chance to tidy up.
        self._before = shared_memory()
        self.process = self._start([sys.executable, "-W", "error", str(script), str(folder), *args])

    def _start(self, command: list[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            cwd=self.folder,
            env=self._env,
        )

    @property
    def _env(self) -> dict[str, str]:
        return {**os.environ, "TMPDIR": str(self.temporary), "PYTHON_COLORS": "0"}  # tracebacks as plain text

    def wait_for(self, pattern: str, count: int = 1) -> None:
        """Wait until the program, or its workers, have made some files."""
        deadline = time.monotonic() + 30
        while len(list(self.folder.glob(pattern))) < count:
            assert self.process.poll() is None, self._words()
            assert time.monotonic() < deadline, f"no {pattern}"
            time.sleep(0.002)

    def _words(self) -> str:
        return "\n".join(self.process.communicate(timeout=5))  # whom it has started may have its ends

    def ctrl_c(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    def kill(self, signum: int = signal.SIGKILL) -> None:
        self.process.send_signal(signum)
        _, self.last_words = self.process.communicate(timeout=30)

    def ends_within(self, seconds: float) -> tuple[int, str, str]:
        started = time.monotonic()
        try:
            out, err = self.process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            pytest.fail(f"still there after 30 s\n{self._words()}")
        assert time.monotonic() - started < seconds, f"took {time.monotonic() - started:.1f} s\n{err}"
        return self.process.returncode, out, err

    def leaves_nothing(self, within: float = 3.0) -> None:
        deadline = time.monotonic() + within
        while left := self._left():
            assert time.monotonic() < deadline, f"left behind: {left}\n{self.last_words}"
            time.sleep(0.01)

    def _left(self) -> list[str]:
        left = []
        for process in session(self.process.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                left.append(" ".join(process.cmdline()))
        pids = {self.process.pid, *(int(path.name.split("-")[1]) for path in self.folder.glob("built-*"))}
        left += [name for name in shared_memory() - self._before if pids_in(name) & pids]
        return [*left, *(str(path) for path in self.temporary.iterdir())]

    def end(self) -> None:
        """End what a failing test has left; the resource trackers last, so that they can tidy up."""
        self.process.kill()
        if self.process.stdout is None or not self.process.stdout.closed:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.communicate(timeout=5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        if self.process.stdout is not None and not self.process.stdout.closed:
            self.process.communicate(timeout=5)


class TerminalProgram(Program):
    """A script in the foreground of a terminal of its own: its workers belong to that foreground too."""

    def _start(self, command: list[str]) -> subprocess.Popen[str]:
        self.screen = ""
        self._keyboard, self._line = os.openpty()
        # The terminal that the first process of a session opens becomes its own.
        return subprocess.Popen(
            ["/bin/sh", "-c", 'exec "$@" <"$0" >"$0" 2>&1', os.ttyname(self._line), *command],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            cwd=self.folder,
            env=self._env,
            text=True,
        )

    def _words(self) -> str:
        """Return what the screen shows by now."""
        while select.select([self._keyboard], [], [], 0)[0]:
            self.screen += os.read(self._keyboard, 4096).decode().replace("\r\n", "\n")
        return self.screen

    def ctrl_c(self) -> None:
        """Press the key; whom it hits is the terminal's business."""
        os.write(self._keyboard, b"\x03")

    def ends_within(self, seconds: float) -> tuple[int, str, str]:
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"takes longer than {seconds} s\n{self._words()}"
            self._words()
            time.sleep(0.002)
        return self.process.returncode, "", self._words()

    def end(self) -> None:
        super().end()
        os.close(self._keyboard)
        os.close(self._line)


def session(leader: int) -> list[psutil.Process]:
    """Return the processes of a session that run."""
    found = []
    for pid in psutil.pids():  # of all others no more is read than the session that they belong to
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError, PermissionError):
            if os.getsid(pid) == leader and (process := psutil.Process(pid)).status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def shared_memory() -> set[str]:
    # Without an object for each: called twice for each test, and others' programs may have left ten thousands of files.
    return set(os.listdir(_SHM)) if os.path.isdir(_SHM) else set()  # noqa: PTH112, PTH208


def pids_in(name: str) -> set[int]:
    """Return the numbers that stand by themselves in names such as sem.loky-12-x and joblib_memmapping_folder_12_x."""
    return {int(number) for number in re.findall(r"(?<=[-_])\d+(?=[-_])", name)}


_ROOT = ("--map-root-user",)
NAMELESS = ("--map-user=12345", "--map-group=12345", "--keep-caps")


def among_mounts(mounts: str, zero: str = "sh", user: Sequence[str] = _ROOT) -> list[str]:
    """Return how a command is started among mounts of its own, which lines for the shell make; `zero` is their ``$0``."""
    separate = ["unshare", *user, "--mount", "sh", "-ec"]
    try:
        probe = subprocess.run(
            [*separate, "mount -t tmpfs tmpfs /dev/shm"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("there is no unshare here")
    if probe.returncode:
        pytest.skip(f"mounts of one's own are not permitted: {probe.stderr.strip()}")
    return [*separate, f'{mounts}\nexec "$@"', zero]
