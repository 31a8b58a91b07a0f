"""Killing a process together with what it started.

Without pathlib, whose import would take each program 8 ms.
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING, Any

from ..._process._safely import Log
from ..._process._system import HAS_PROC, IS_WINDOWS

if TYPE_CHECKING:
    from collections.abc import Iterator

_log = Log()


def kill_tree(process: Any) -> None:
    """Kill a process of `multiprocessing` and its descendants, as far as they still hang together.

    This needs neither psutil nor pgrep, one of which loky's own way asks for, and misses nothing that is started meanwhile.
    """
    if process.exitcode is not None:
        return  # gone, and its number may be another's
    if IS_WINDOWS:
        from loky.backend.utils import kill_process_tree

        # There may be neither psutil nor taskkill, and the warning of that may be an error here.
        with contextlib.suppress(Exception):
            kill_process_tree(process)
        process.kill()
        return
    try:
        pids = _stop_tree(process.pid)
    except OSError:  # this process has no file descriptor left to look for the others by
        pids = [process.pid]
    for pid in reversed(pids):
        _signal(pid, signal.SIGKILL)


def _stop_tree(root: int) -> list[int]:
    """Stop a process and its descendants, so that they start no more, and return all of them."""
    stopped: dict[int, None] = {}
    new = {root: None}
    while new:
        for pid in new:
            _signal(pid, signal.SIGSTOP)
        stopped |= new
        # Looked for again until there are no others: one may have been born before its parent was stopped.
        new = {pid: None for pid in _descendants(root) if pid not in stopped}
    return list(stopped)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it is gone, or has become another user's
        os.kill(pid, number)


def _descendants(root: int) -> list[int]:
    """Return the children of a process, their children, and so on."""
    children: dict[int, list[int]] = {}
    for pid, parent in _listed_in_proc() if HAS_PROC else _listed_by_ps(root):
        children.setdefault(parent, []).append(pid)
    found = [root]
    for pid in found:  # which grows meanwhile
        found += children.get(pid, ())
    return found[1:]


def _listed_in_proc() -> Iterator[tuple[int, int]]:
    """Yield each process that there is, and its parent."""
    for name in filter(str.isdecimal, os.listdir("/proc")):  # noqa: PTH208 - see above
        # It may end just now.
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as stat:  # noqa: PTH123 - see above
            # "pid (name) state parent ...", and a name may hold blanks and brackets.
            rest = stat.read().rpartition(b")")[2]
            yield int(name), int(rest.split()[1])


def _listed_by_ps(root: int) -> Iterator[tuple[int, int]]:
    """Yield the same as the command says that POSIX asks for; nothing, with a warning, if it says nothing."""
    import subprocess

    command = "ps", "-A", "-o", "pid=", "-o", "ppid="
    lines: list[bytes] = []
    with contextlib.suppress(OSError, RuntimeError):  # there is none, or the interpreter is ending
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)  # noqa: S603 - ours
        lines = done.stdout.splitlines()
    if not lines:
        _log.warning(
            "The worker's process %s is killed alone, for this system lists no processes (is /proc mounted?): what it had "
            "started, if anything, may live on.",
            root,
        )
    for line in lines:
        pid, parent = map(int, line.split())
        yield pid, parent
