"""What a loky worker process does around its `Worker`."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import gc
import logging
import os
import pickle
import signal
import sys
import threading
import traceback
from functools import partial
from multiprocessing import current_process, resource_tracker, spawn, util
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from ..._process import _system
from ..._transport._arrivals import still_mapped
from ..._transport._segments import Arena, Range
from ..._transport._shared_memory import SharedMemory
from ..._worker._debugging import refuse_breakpoints
from ..._worker._log_levels import Levels
from ..._worker._messages import NO_ROOM, Finish, Ran, Refused, Run
from ..._worker._progress_page import Progress
from ..._worker._shortage import lighter
from ..._worker._signals import hold_back, report
from ..._worker._worker import Worker, current, set_process_worker
from .._buffers import arrived_with, places_in, segments_in, without_arena
from ._inheritance import keep_from_children
from ._line import decode, encode
from ._log_channel import ToParent
from ._starting import fill_standard_files

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from multiprocessing.connection import Connection

    from ..._transport._transport import Transport
    from ..._worker._lanes import Lanes
    from ..._worker._messages import Message, Reply
    from ._line import Line
    from ._log_channel import WorkerEnd
    from ._startup import Startup


class Process(BaseProcess):
    """What `multiprocessing.current_process` returns in a worker."""

    _start_method = None  # that of the program, which `Startup` takes over

    @staticmethod
    def _Popen(_: Any) -> Any:  # noqa: N802 - multiprocessing's name
        raise AssertionError("it is started by its parent")


def process_with(state: dict[str, Any]) -> Process:
    """Return what the parent's process is here."""
    for name in state.pop("only_to_start", ()):
        os.environ.pop(name, None)
    process = Process.__new__(Process)
    vars(process).update(state)
    return process


class OpenFile(NamedTuple):
    """A file that was handed down to this process."""

    fd: int

    def detach(self) -> int:
        """Return its number."""
        return self.fd


def main(pipe: BinaryIO, *, collects: bool) -> None:
    """Be the process that a pipe describes, which the parent has made ready for it; garbage is collected from now on or not."""
    fill_standard_files()
    with pipe:
        current_process()._inheriting = True  # type: ignore[attr-defined]  # as multiprocessing's own start does
        try:
            preparation = pickle.load(pipe)
            resource_tracker._resource_tracker._fd = preparation.pop("tracker")  # type: ignore[attr-defined]  # no public name
            spawn.prepare(preparation)
            process = pickle.load(pipe)
        finally:
            del current_process()._inheriting  # type: ignore[attr-defined]  # see above
    gc.freeze()  # all of this stays
    if collects:
        gc.enable()
    sys.exit(process._bootstrap())


def run(lifeline: Connection, line: Line, *args: Any) -> None:
    """Be a worker, to the last message."""
    set_up(lifeline, line, *args)
    serve()


def set_up(  # noqa: PLR0917 - they are handed on by position
    lifeline: Connection,
    line: Line,
    numbers: memoryview[int],
    transport: Transport,
    startup: Startup,
    logs: WorkerEnd | None = None,
) -> None:
    """Make this process a worker; runs before `serve`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    if _system.HAS_SIGMASK:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGPIPE})
    if "PYTHONFAULTHANDLER" not in os.environ and not faulthandler.is_enabled():
        faulthandler.enable(file=2)  # by its number, for there may be no `sys.stderr`
    startup.take_over()
    # Before multiprocessing waits for the children of this process, which it does first.
    util.Finalize(None, _end_pools, exitpriority=100)
    _die_with_parent(lifeline)
    keep_from_children(line.fileno())
    pages = Progress.pages(len(numbers) // Progress.SIZE, numbers)
    first = Worker(transport, pages[0])
    set_process_worker(first)
    hold_back()
    refuse_breakpoints()
    handler = None
    if logs is not None:
        handler = ToParent(logs)
        logging.getLogger().addHandler(handler)
    _kept[:] = lifeline, line, handler, _lanes(first, pages)
    _give_arena(transport)


def _lanes(first: Worker, pages: Sequence[Progress]) -> Lanes | None:
    if len(pages) == 1:
        return None
    from ..._worker._lanes import Lanes  # most workers never need it

    return Lanes(first, len(pages), lambda lane: Worker(_another(first.transport), pages[lane], life=first.life))


def _give_arena(transport: Transport) -> None:
    if isinstance(transport, SharedMemory):
        _renew_arena(transport)
        # What a child lays into it would lie over the results of this process.
        _system.after_fork(lambda: _renew_arena(transport))


def _renew_arena(transport: SharedMemory) -> None:
    transport.arena = Arena()


def _another(transport: Transport) -> Transport:
    """Return a transport for another message at the same time, with an arena of its own."""
    make, args = transport.__reduce__()[:2] if isinstance(transport, SharedMemory) else (lambda: transport, ())
    another: Transport = make(*args)
    _give_arena(another)
    return another


def _end_pools() -> None:
    """Tell pools of loky and concurrent.futures that users' code has made here to end, as the end of a program does.

    An idle pool of joblib's would otherwise keep this process for five minutes.
    """
    for hook in reversed(getattr(threading, "_threading_atexits", [])):
        hook()


_kept: list[Any] = []


def serve() -> None:
    """Answer messages, until the last one or until the parent hangs up."""
    worker, (_, line, logs, lanes) = current(), _kept
    assert worker is not None  # noqa: S101 - set_up ran before
    try:
        _serve_all(worker, line, logs, lanes)
    except EOFError:
        return
    except OSError:  # the user's code has closed it; nobody would ever hear of this worker again
        os._exit(1)
    finally:
        report()
        if logs is not None:
            logs.flush()
        line.hang_up()  # behind the last answer, so that the parent need not guess whether another one comes


def _serve_all(worker: Worker, line: Line, logs: ToParent | None, lanes: Lanes | None) -> None:
    while not _serve_one(worker, line, logs, lanes):
        pass


def _serve_one(worker: Worker, line: Line, logs: ToParent | None, lanes: Lanes | None) -> bool:
    """Wait for a message and answer it, or have it answered; return True if it was the last one."""
    if logs is not None and logs.has_waiting:
        logs.send_until(line)
    received = _receive(line, lanes)
    if received is None:
        return False
    message, fds, levels = received
    del received
    if levels and logs is not None:
        logs.levels.apply(Levels(*levels))
    if lanes is not None and isinstance(message, Run):
        lanes.start(message.lane, partial(_work, line, message, fds))
        return False
    _send(line, worker, *_answer(worker, message, fds))
    return isinstance(message, Finish)


def _work(line: Line, message: Message, fds: Sequence[int | None], worker: Worker) -> Callable[[], None]:
    """Run a message in one of several places."""
    with _fatal():
        return partial(_send_shared, line, worker, *_answer(worker, message, fds))


# Held while an answer is sent by one of several places.
_sending = threading.Lock()


def _send_shared(line: Line, worker: Worker, reply: Reply, kept: Collection[int]) -> None:
    with _fatal(), _sending:
        _send(line, worker, reply, kept)


@contextlib.contextmanager
def _fatal() -> Iterator[None]:
    """End the process if something is raised, as it ends where that happens in its main thread: an answer would never come."""
    try:
        yield
    except BaseException as error:  # noqa: BLE001 - whatever it is
        if not isinstance(error, OSError):  # see `serve`
            traceback.print_exc()
            _flush()
        os._exit(1)


def _answer(worker: Worker, message: Message, fds: Sequence[int | None]) -> tuple[Reply, Collection[int]]:
    """Return the answer to a message, and which of its segments are still looked into."""
    transport = worker.transport
    if fds and isinstance(transport, SharedMemory):
        transport.arrived = arrived_with(message, fds)
        try:
            reply = worker.handle(message)
        finally:
            transport.arrived.close()
            transport.arrived = None
        return reply, still_mapped(segment.number for segment in segments_in(message))
    return worker.handle(message), []


def _send(line: Line, worker: Worker, reply: Reply, kept: Collection[int]) -> None:
    transport = worker.transport
    _flush()
    if isinstance(reply, Ran) and isinstance(transport, SharedMemory) and transport.arena and _lies_in_arena(reply):
        data, encoded = _encode(reply, kept)
        try:
            line.send(data, [transport.arena.fd])
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS:
                raise
            # How many files may be under way is a limit of the user's.
            line.send(_encode(without_arena(encoded, transport.arena), kept)[0])
    else:
        line.send(_encode(reply, kept)[0])
    worker.progress.note_sent(reply.seq)


def _flush() -> None:
    """Print what is no whole line yet, before the answer lets the program go on."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # nobody reads it any more, or it is an object of the user's
            stream.flush()


def _receive(line: Line, lanes: Lanes | None) -> tuple[Message, list[int | None], Any] | None:
    """Return the next message, its open files and what came beside it; None if there is no memory for it, which is answered."""
    fds: list[int | None] = []
    try:
        data, fds = line.receive()
        message: Message
        message, beside = decode(data)
    except MemoryError:
        data = b""
    else:
        return message, fds, beside
    line.skip()
    for fd in fds:
        if fd is not None:
            os.close(fd)
    # With its lock: what came before has been begun, as is seen.
    with contextlib.nullcontext() if lanes is None else lanes.lock, _sending:
        line.send(encode(Refused(os.getpid(), NO_ROOM)))
    return None


def _encode(reply: Any, kept: Collection[int]) -> tuple[bytes, Any]:
    """Return the bytes of an answer, and the answer; without what weighs most if there is no memory for a copy of all."""
    while True:
        try:
            return encode(reply, kept), reply
        except MemoryError:
            less = lighter(reply) if isinstance(reply, Ran) else None
            if less is None:
                raise
        reply = less


def _lies_in_arena(reply: Ran) -> bool:
    """Tell whether the worker's arena belongs to a reply."""
    return any(isinstance(place, Range) for place in places_in(reply))


def _die_with_parent(lifeline: Connection) -> None:
    """End this process when the parent, and with it the other end of the pipe, is gone."""
    try:
        _system.kill_when_closed(lifeline.fileno())
    except OSError:
        # Only Linux lets the kernel do it. Elsewhere a thread does, which code that holds the GIL can delay.
        threading.Thread(target=_wait_for_parent, args=(lifeline,), daemon=True).start()
    else:
        if lifeline.poll():  # it ended before we asked to be told
            os._exit(1)


def _wait_for_parent(lifeline: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv_bytes()
    os._exit(1)
