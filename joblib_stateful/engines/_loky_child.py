"""What a loky worker process does around its `Worker`."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from multiprocessing import util
from typing import TYPE_CHECKING, Any

from loky import process_executor

from .._records import Ran
from .._segments import Arena
from .._sharing import SharedMemory, segments_of
from .._worker import Progress, Worker, current, set_process_worker
from ._buffers import segments_in
from ._loky_process import keep_pipes_from_children

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from .._records import Message, Reply
    from .._transport import Transport
    from ._handover import Handover

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # tested before use


def set_up(lifeline: Connection, handover: Handover | None, numbers: memoryview[float], transport: Transport) -> None:
    """Make this process a worker; runs before its first message."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    # loky recycles workers that have grown by 300 MB where psutil is installed; an object may be larger.
    process_executor._MAX_MEMORY_LEAK_SIZE = float("inf")
    # Before multiprocessing waits for the children of this process, which it does first.
    util.Finalize(None, _end_pools, exitpriority=100)
    _die_with_parent(lifeline)
    keep_pipes_from_children()
    set_process_worker(Worker(transport, Progress(numbers)))
    _kept.append(lifeline)
    if handover is not None:
        assert isinstance(transport, SharedMemory)  # noqa: S101 - the only one with open files to hand over
        transport.arena = Arena()
        _kept.append(handover)


def _end_pools() -> None:
    """Tell pools of loky and concurrent.futures that users' code has made here to end, as the end of a program does.

    An idle pool of joblib's would otherwise keep this process for five minutes.
    """
    for hook in reversed(getattr(threading, "_threading_atexits", [])):
        hook()


_kept: list[Any] = []


def serve(message: Message, n_segments: int) -> Reply:
    """Answer one message, with which so many open files have come."""
    worker = current()
    assert worker is not None  # noqa: S101 - set_up ran before
    maps = _map_segments(message, n_segments) if n_segments else ()
    try:
        reply = worker.handle(message)
    finally:
        del maps  # what no value refers to is unmapped
    if lies_in_arena(reply):
        transport = worker.transport
        assert isinstance(transport, SharedMemory) and transport.arena is not None  # noqa: S101, PT018 - set_up gave it
        _kept[1].send([transport.arena.fd])
    return reply


def lies_in_arena(reply: Reply) -> bool:
    """Tell whether the worker's arena belongs to a reply."""
    return isinstance(reply, Ran) and not reply.values.joint and any(True for _ in segments_of(reply.values.frames))


def _map_segments(message: Message, count: int) -> list[object]:
    handover: Handover = _kept[1]
    maps = []
    for received, fd in zip(segments_in(message), handover.receive(count), strict=True):
        if fd is None:
            continue
        with contextlib.suppress(OSError, ValueError):  # no room: then the value that needs it can't be loaded
            maps.append(received.map(fd))
    return maps


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
