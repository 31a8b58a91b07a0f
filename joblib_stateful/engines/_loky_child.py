"""What a loky worker process does around its `Worker`."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import TYPE_CHECKING

from loky import process_executor

from .._worker import Progress, Worker, current, set_process_worker
from ._loky_process import keep_pipes_from_children

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from .._records import Message, Reply
    from .._transport import Transport

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # tested before use


def set_up(lifeline: Connection, numbers: memoryview[float], transport: Transport) -> None:
    """Make this process a worker; runs before its first message."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    # loky recycles workers that have grown by 300 MB where psutil is installed; an object may be larger.
    process_executor._MAX_MEMORY_LEAK_SIZE = float("inf")
    _die_with_parent(lifeline)
    keep_pipes_from_children()
    set_process_worker(Worker(transport, Progress(numbers)))
    _kept.append(lifeline)


_kept: list[Connection] = []


def serve(message: Message) -> Reply:
    """Answer one message."""
    worker = current()
    assert worker is not None  # noqa: S101 - set_up ran before
    return worker.handle(message)


def _die_with_parent(lifeline: Connection) -> None:
    """End this process when the parent, and with it the other end of the pipe, is gone."""
    try:
        fd = lifeline.fileno()
        fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
    except (AttributeError, OSError):
        # Only Linux lets the kernel do it. Elsewhere a thread does, which code that holds the GIL can delay.
        threading.Thread(target=_wait_for_parent, args=(lifeline,), daemon=True).start()
    else:
        if lifeline.poll():  # it ended before we asked to be told
            os._exit(1)


def _wait_for_parent(lifeline: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv_bytes()
    os._exit(1)
