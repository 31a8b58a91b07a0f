"""Killing a process together with what it started.

Without pathlib, whose import would take each program 8 ms.
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Any

from .._system import HAS_PROC


def kill_tree(process: Any) -> None:
    """Kill a process of `multiprocessing` and its descendants, as far as they still hang together.

    Where the kernel shows all processes as files this needs neither psutil nor pgrep, one of which loky's own way
    asks for, and misses nothing that is started meanwhile.
    """
    if process.exitcode is not None:
        return  # gone, and its number may be another's
    if not HAS_PROC:
        from loky.backend.utils import kill_process_tree

        try:
            kill_process_tree(process)
        except Exception:  # noqa: BLE001 - neither psutil nor pgrep is there, and the warning of that is an error here
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
    for name in filter(str.isdecimal, os.listdir("/proc")):  # noqa: PTH208 - see above
        # It may end just now.
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as stat:  # noqa: PTH123 - see above
            # "pid (name) state parent ...", and a name may hold blanks and brackets.
            rest = stat.read().rpartition(b")")[2]
            children.setdefault(int(rest.split()[1]), []).append(int(name))
    found = [root]
    for pid in found:  # which grows meanwhile
        found += children.get(pid, ())
    return found[1:]
