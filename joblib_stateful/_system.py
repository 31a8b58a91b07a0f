"""What the system can do, asked in this module alone.

Each of these is missing somewhere: on Windows or macOS, with an old kernel, in a sandbox. Whoever uses one has a way to do
without, and that way is tried on any system by naming what shall be missing in the environment of the program, which its
workers inherit: ``JOBLIB_STATEFUL_WITHOUT=memfd,proc``, or ``all``. (It is there for tests, and for whoever meets a system
that only claims to have one of these.)
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_WITHOUT = frozenset(os.environ.get("JOBLIB_STATEFUL_WITHOUT", "").replace(" ", "").split(","))


def _can(name: str, *, is_there: bool) -> bool:
    return is_there and not _WITHOUT & {name, "all"}


IS_WINDOWS = os.name == "nt"
#: `os.fork`, and hooks around it.
HAS_FORK = _can("fork", is_there=hasattr(os, "register_at_fork"))
#: Files in memory that have no name; else they lie in a folder for temporary ones.
HAS_MEMFD = _can("memfd", is_there=hasattr(os, "memfd_create"))
#: Open files travel by sockets; else large buffers go with the rest of a message.
SENDS_FILES = _can("sendfds", is_there=hasattr(socket, "send_fds") and not IS_WINDOWS)
#: Sockets that keep messages apart, looked into without waiting; else log records stay in the workers.
HAS_SEQPACKET = _can(
    "seqpacket",
    is_there=hasattr(socket, "SOCK_SEQPACKET") and hasattr(socket, "MSG_DONTWAIT") and not IS_WINDOWS,
)
#: Many sockets are waited for at once, and looked into without waiting; else each has a thread of its own.
HAS_POLL = _can("poll", is_there=hasattr(select, "poll") and hasattr(socket, "MSG_DONTWAIT"))
#: A process is a file that says when it has ended; else that is a pipe, which children of it may hold open.
HAS_PIDFD = _can("pidfd", is_there=hasattr(os, "pidfd_open"))
#: Signals can be kept waiting, also in what is started meanwhile.
HAS_SIGMASK = _can("sigmask", is_there=hasattr(signal, "pthread_sigmask"))
#: The kernel kills a process when a pipe closes (Linux); else a thread of that process does it.
HAS_SETSIG = _can("setsig", is_there=sys.platform == "linux")
#: All processes and their children are listed as files, and so is what a process has open.
HAS_PROC = _can("proc", is_there=os.access("/proc/self/stat", os.R_OK))
#: psutil and pgrep, of which loky asks one, see processes. On Linux both look into /proc; without it psutil takes any to be
#: gone, and pgrep finds no children.
TOOLS_SEE_PROCESSES = sys.platform != "linux" or os.access("/proc/self/stat", os.R_OK)
#: A process is started by a command of ours; else by loky's, which hands on fewer of the program's flags.
STARTS_PROCESSES = _can("start", is_there=not IS_WINDOWS)


def after_fork(in_child: Callable[[], None]) -> None:
    """Have a function called in every fork of this process, where there are forks."""
    if HAS_FORK:
        os.register_at_fork(after_in_child=in_child)


def around_fork(call: Callable[[], None]) -> None:
    """Have a function called in this process before and after each fork, where there are forks."""
    if HAS_FORK:
        os.register_at_fork(before=call, after_in_parent=call)


def kill_when_closed(fd: int) -> None:
    """Have the kernel kill this process when the other end of a pipe is closed.

    Raises OSError where it can't.
    """
    if not HAS_SETSIG:
        raise OSError(errno.ENOSYS, "no signal can be chosen for that")
    import fcntl

    fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
