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

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]  # tested before use

if TYPE_CHECKING:
    from collections.abc import Callable

_WITHOUT = frozenset(os.environ.get("JOBLIB_STATEFUL_WITHOUT", "").replace(" ", "").split(","))


#: All that is asked for here, and what of it the system lacks, or is taken to lack.
NAMES: set[str] = set()
MISSING: set[str] = set()


def _can(name: str, *, is_there: bool) -> bool:
    NAMES.add(name)
    if is_there and not _WITHOUT & {name, "all"}:
        return True
    MISSING.add(name)
    return False


IS_WINDOWS = os.name == "nt"
#: `os.fork`, and hooks around it.
HAS_FORK = _can("fork", is_there=hasattr(os, "register_at_fork"))
#: Files in memory that have no name; else they lie in a folder for temporary ones.
HAS_MEMFD = _can("memfd", is_there=hasattr(os, "memfd_create"))
#: Such files can be kept from being cut short, and mapped with all their pages; else they are written to by system calls.
HAS_SEALS = _can("seals", is_there=HAS_MEMFD and sys.platform == "linux")
#: The kernel says which pages of a private map have been written to; else all that comes back is copied.
HAS_PAGEMAP = _can("pagemap", is_there=os.access(_PAGEMAP := "/proc/self/pagemap", os.R_OK))
#: Open files travel by sockets; else large buffers go with the rest of a message.
SENDS_FILES = _can("sendfds", is_there=hasattr(socket, "send_fds") and not IS_WINDOWS)
#: A received file is kept from children in the same step; else in the next one.
HAS_CLOEXEC = _can("cloexec", is_there=hasattr(socket, "MSG_CMSG_CLOEXEC"))
#: Sockets that keep messages apart and in order as a connection does; else as datagrams, of which macOS has only these.
HAS_SEQPACKET = _can("seqpacket", is_there=hasattr(socket, "SOCK_SEQPACKET") and sys.platform != "darwin")
#: Many sockets are waited for at once, however high their numbers, and looked into without waiting; else by `select`.
HAS_POLL = _can("poll", is_there=hasattr(select, "poll") and hasattr(socket, "MSG_DONTWAIT"))
#: Sockets of some kind keep messages apart, and are looked into without waiting; else log records stay in the workers.
CARRIES_RECORDS = _can("records", is_there=HAS_POLL and hasattr(socket, "AF_UNIX") and not IS_WINDOWS)
#: A process is a file that says when it has ended; else that is a pipe, which children of it may hold open.
HAS_PIDFD = _can("pidfd", is_there=hasattr(os, "pidfd_open"))
#: Signals can be kept waiting, also in what is started meanwhile.
HAS_SIGMASK = _can("sigmask", is_there=hasattr(signal, "pthread_sigmask"))
#: A signal that is kept waiting can be taken; else (macOS) it strikes later.
HAS_SIGTIMEDWAIT = _can("sigtimedwait", is_there=hasattr(signal, "sigtimedwait"))
#: The kernel kills a process when a pipe closes (Linux); else a thread of that process does it.
HAS_SETSIG = _can("setsig", is_there=sys.platform == "linux")
#: All processes and their parents are listed as files; else by the command `ps`.
HAS_PROC = _can("proc", is_there=os.access("/proc/self/stat", os.R_OK))
#: A process is started by a command of ours; else by loky's, which hands on fewer of the program's flags.
STARTS_PROCESSES = _can("start", is_there=not IS_WINDOWS)
#: A file is read into memory that is there; else what is read is copied to it.
HAS_PREADV = _can("preadv", is_there=hasattr(os, "preadv"))
#: The functions of C are those of this process; else buffers are compared in pieces.
HAS_LIBC = _can("libc", is_there=not IS_WINDOWS)
#: How many files may be open is asked; else it counts as enough.
HAS_RLIMIT = _can("rlimit", is_there=resource is not None)

# Flags of sockets, 0 where there are none.
NO_WAIT = int(getattr(socket, "MSG_DONTWAIT", 0))
CLOEXEC = int(getattr(socket, "MSG_CMSG_CLOEXEC", 0)) if HAS_CLOEXEC else 0
#: A program may have given SIGPIPE back its default action, as command line tools do, and would be killed with a worker.
NO_SIGNAL = int(getattr(socket, "MSG_NOSIGNAL", 0))
_NO_SIGNAL_OPTION: int | None = getattr(socket, "SO_NOSIGPIPE", None)
#: What ends a process without asking it; on Windows the other one does.
KILL: int = getattr(signal, "SIGKILL", signal.SIGTERM)


def raise_no_signal(end: socket.socket) -> None:
    """Have a socket raise no SIGPIPE, where that can't be said of each message (macOS)."""
    if not NO_SIGNAL and _NO_SIGNAL_OPTION is not None:
        end.setsockopt(socket.SOL_SOCKET, _NO_SIGNAL_OPTION, 1)


def signal_numbers(*names: str) -> list[int]:
    """Return the numbers of those signals that there are."""
    return [int(getattr(signal, name)) for name in names if hasattr(signal, name)]


def most_open() -> int:
    """Return how many files this process may have open at a time."""
    if not HAS_RLIMIT:
        return sys.maxsize
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit


def usable_cpus() -> int | None:
    """Return how many CPUs this process may use, or else how many there are; None if that can't be told."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def knows_memory() -> bool:
    """Tell whether `resident_bytes` can tell anything."""
    return resident_bytes() > 0


def resident_bytes() -> int:
    """Return how much memory this process holds at present; 0 if that can't be told."""
    if HAS_PROC:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - workers need no pathlib, and this is asked for often
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    try:
        import psutil
    except ImportError:
        return 0
    return int(psutil.Process().memory_info().rss)


def after_fork(in_child: Callable[[], None]) -> None:
    """Have a function called in every fork of this process, where there are forks."""
    if HAS_FORK:
        os.register_at_fork(after_in_child=in_child)


def around_fork(call: Callable[[], None]) -> None:
    """Have a function called in this process before and after each fork, where there are forks."""
    if HAS_FORK:
        os.register_at_fork(before=call, after_in_parent=call)


def seal(fd: int) -> None:
    """See to it that nobody can cut a file in memory short from now on; raises OSError for another one."""
    import fcntl

    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)


def pages(first: int, end: int) -> bytes:
    """Return what the kernel says of pages of this process, by their numbers, 8 bytes each; less of it if it doesn't."""
    try:
        fd = os.open(_PAGEMAP, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.pread(fd, 8 * (end - first), 8 * first)
    except OSError:
        return b""
    finally:
        os.close(fd)


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
