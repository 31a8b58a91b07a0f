"""The engine ``"loky"``: one process per slot, each under a single-worker loky executor.

Why one executor per slot: a crash breaks a loky executor, so it must not be shared; each gets its own
environment before anything is imported; and one worker can be killed alone. Loky's reusable executor is not
used, because any other user of it in the process would shut ours down.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import multiprocessing.context
import os
import pickle
import queue
import signal
import sys
import threading
import weakref
from functools import partial
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import cloudpickle

from .. import errors
from .._records import Death, Finish, Finished, Message, Ran
from .._segments import Arena
from .._sharing import SharedMemory, copied_out
from .._transport import PROTOCOL, Pickled, Transport
from .._worker import Progress
from ._base import Engine, EngineWorker
from ._buffers import in_line, segments_in
from ._burial import bury, expect, wait_for_burials, wait_for_threads
from ._line import Line
from ._loky_room import check_room, explain
from ._process_tree import kill_tree
from ._shared_numbers import SharedNumbers

# loky, and the copy of it within joblib, register their start methods under the same names when they are imported. The
# last one would start the processes of both, which then report to the wrong resource tracker.
_start_methods = dict(multiprocessing.context._concrete_contexts)  # type: ignore[attr-defined]  # see above
import loky  # noqa: E402 - see above

from . import _loky_child  # noqa: E402 - it imports loky
from ._loky_process import Context  # noqa: E402 - it imports loky

multiprocessing.context._concrete_contexts.update(_start_methods)  # type: ignore[attr-defined]  # see above

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from concurrent.futures import Future

    from .._records import Failure, Reply

    _OnReply: TypeAlias = Callable[[Reply | Death], None]

_log = logging.getLogger("joblib_stateful")

# A message of this size is taken by the system at once, while the worker reads no other; it takes 200 KiB in all.
_AT_ONCE_BYTES = 1 << 16
# What a process has sent before its end is there to be read, and then the end of it, unless a child of it keeps its line
# open. (Linux would let it be read later, too.)
_DRAIN_SECONDS = 0.2
# A process that loky reports as gone is reaped at once; this only guards against one that can't be.
_REAP_SECONDS = 2.0


class LokyWorker(EngineWorker):
    """One worker process.

    loky starts it, and notices its end. What it answers comes by a line of its own, to which a thread listens: through
    loky's queues each message would wake two threads more.
    """

    def __init__(self, transport: Transport, env: Mapping[str, str]) -> None:
        self._transport = transport
        self._env = dict(env)
        self._numbers: SharedNumbers | None = SharedNumbers(Progress.SIZE)
        self.progress = Progress(self._numbers.values)
        self._pool: loky.ProcessPoolExecutor | None = None
        self._manager: Any = None  # loky's thread for the pool
        self._process: Any = None  # loky's Process
        self._lifeline: Connection | None = None  # open as long as the process shall live
        self._line: Line | None = None
        self._listener: threading.Thread | None = None
        self._awaited: tuple[Message, _OnReply] | None = None  # the message under way
        self._killed = False  # or gone by itself: nothing can be sent to it
        self._lock = threading.RLock()  # guards all these; held while the process is started or killed

    def send(self, message: Message, on_reply: _OnReply) -> Death | None:
        """Hand the message to the process, which is started with the first one."""
        try:
            with self._lock:
                if self._killed:
                    return Death(self.pid, reason="it was killed")
                served = self._start() if self._pool is None else None
                self._awaited = message, on_reply
                self._transmit(message)
        except Exception as error:  # noqa: BLE001 - out of processes, threads, memory or file descriptors
            with self._lock:
                self._awaited = None
            death = self._autopsy(message, error)
            self._let_go()
            return death
        if served is not None:
            served.add_done_callback(self._ended)
        return None

    def close(self, message: Finish, on_closed: Callable[[Failure | None], None]) -> None:
        """Have the object closed and the process end; a thread waits for that."""
        thread = threading.Thread(
            target=self._close, args=(message, on_closed), name="joblib_stateful-close", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # the interpreter is ending, and loky's own hook will wait for the process
            self._close_at_exit(message, on_closed)

    def kill(self) -> None:
        """Kill the process and what it started."""
        with self._lock:
            self._killed = True
            if self._process is not None:
                # loky notices, and so the message under way is answered.
                _kill_and_reap(self._process)
            if self._awaited is None:
                self._let_go()

    def disown(self) -> None:
        """Forget the process and the pool, whose ends would reach for the parent's."""
        _not_ours.append((self._pool, self._process))
        # Or multiprocessing would wait for it at exit, and complain that it is no child of this process.
        multiprocessing.process._children.discard(self._process)  # type: ignore[attr-defined]
        self._lock = threading.RLock()
        self._pool = self._process = self._line = None
        self._killed = True

    # --- the process ----------------------------------------------------------------------------------

    def _start(self) -> Future[None]:
        """Start the process; return loky's future of all its service."""
        # A pipe for each worker, because only one process can be signalled for an open file.
        theirs, self._lifeline = multiprocessing.Pipe(duplex=False)
        _lifelines.add(self._lifeline)
        self._line, far_end = Line.pair()
        _start_resource_trackers()  # which ends by unblocking SIGINT, so first
        with theirs, contextlib.closing(far_end), _sigint_blocked():
            pool = loky.ProcessPoolExecutor(
                max_workers=1,
                context=Context(),
                env=self._env,
                initializer=_loky_child.set_up,
                initargs=(theirs, far_end, self._numbers, self._transport),
            )
            served: Future[None] = pool.submit(_loky_child.serve)
        # loky's own asks for psutil or pgrep. Where there is neither, as in slim images, it ends loky's thread.
        pool._executor_manager_thread.kill_workers = partial(_kill_all, pool._processes)
        self._pool = pool
        self._manager = expect(pool)
        assert self._numbers is not None  # noqa: S101 - a worker is started once
        # loky keeps no public handle on its processes, and its errors have neither pid nor exit code.
        (self._process,) = pool._processes.values()
        self.pid = self._process.pid
        # The far ends of both pipes are the worker's alone. If they stayed open here too, its death in the middle of
        # a message would not end that message, and loky's threads would wait for the rest of it for ever.
        pool._call_queue._reader.close()
        pool._result_queue._writer.close()
        listener = threading.Thread(target=self._listen, args=(self._line,), name="joblib_stateful-listen", daemon=True)
        listener.start()
        self._listener = listener
        return served

    def _ended(self, served: Future[None]) -> None:
        """Learn, in loky's thread, that the process is gone, or has served to the end."""
        error = served.exception()
        listener, line = self._listener, self._line
        if listener is None or line is None:  # a fork has been told to forget it
            return
        if error is not None:
            listener.join(_DRAIN_SECONDS)  # it may still be reading the last answer
        line.hang_up()
        listener.join()
        with self._lock:
            awaited, self._awaited = self._awaited, None
            self._killed = True
        death = None if awaited is None else self._autopsy(awaited[0], error)
        if error is not None or death is not None:
            self._let_go()
        if awaited is not None and death is not None:
            awaited[1](death)

    def _autopsy(self, message: Message, error: BaseException | None) -> Death:
        """Return how the process ended, when it is gone."""
        process, exitcode = self._process, None
        if process is not None:
            with contextlib.suppress(Exception):
                process.join(_REAP_SECONDS)
            if process.exitcode is None:  # loky gave it up for another reason
                _kill_and_reap(process)
            exitcode = process.exitcode
        progress = self.progress
        started = progress.seq == message.seq
        reason = explain(error) if process is None and error is not None else ""
        return Death(self.pid, exitcode, started, progress.place, progress.n_finished, reason)

    def _close(self, message: Finish, on_closed: Callable[[Failure | None], None]) -> None:
        answers: queue.SimpleQueue[Reply | Death] = queue.SimpleQueue()
        failure, pool, manager = None, self._pool, self._manager
        try:
            if pool is not None:
                reply = self.send(message, answers.put) or answers.get()
                failure = reply.failure if isinstance(reply, Finished) else None
        finally:
            if pool is not None:
                pool.shutdown(wait=True)
                wait_for_threads(manager)
            del pool, manager
            self._let_go()
            on_closed(failure)

    def _close_at_exit(self, message: Finish, on_closed: Callable[[Failure | None], None]) -> None:
        pool = self._pool

        def closed(reply: Reply | Death) -> None:
            if pool is not None:
                pool.shutdown(wait=False)
            on_closed(reply.failure if isinstance(reply, Finished) else None)

        if pool is None:
            on_closed(None)
        elif (death := self.send(message, closed)) is not None:
            closed(death)

    def _let_go(self) -> None:
        """Hold nothing open for a process that is gone; what it was doing can still be read."""
        with self._lock:
            self._killed = True  # nothing can be sent to it any more
            if self._lifeline is not None:
                self._lifeline.close()
            if self._line is not None:
                self._line.hang_up()
                if self._listener is None:  # else it does
                    self._line.close()
            self.progress = self.progress.copy()
            if self._pool is not None:
                bury(self._pool, self._manager)
            self._pool = self._manager = self._process = self._numbers = self._lifeline = self._line = None

    # --- messages -------------------------------------------------------------------------------------

    def _transmit(self, message: Message) -> None:
        segments = list(segments_in(message))
        data = pickle.dumps(message, PROTOCOL)
        if len(data) > _AT_ONCE_BYTES:
            # A worker that is only being started, or stopped, takes as long as it likes.
            thread = threading.Thread(
                target=self._put, args=(self._line, message, data, segments), name="joblib_stateful-send", daemon=True
            )
            thread.start()
        else:
            self._put(self._line, message, data, segments)

    def _put(self, line: Line | None, message: Message, data: bytes, segments: list[Any]) -> None:
        assert line is not None  # noqa: S101 - the process is started
        with contextlib.suppress(OSError):  # the process is gone, and `_ended` will say so
            if segments:
                with contextlib.suppress(OSError):  # too many files are under way; how many is a limit of the user's
                    line.send(data, [segment.fd for segment in segments])
                    return
                data = pickle.dumps(in_line(message), PROTOCOL)
            line.send(data)

    def _listen(self, line: Line) -> None:
        """Take answers until the process is gone, or is let go."""
        with contextlib.closing(line):
            while True:
                try:
                    data, fds = line.receive()
                    reply: Reply = pickle.loads(data)
                except Exception:  # noqa: BLE001 - it has ended, or the user's code in it has spoilt the line
                    line.hang_up()
                    return
                if isinstance(reply, Ran) and _loky_child.lies_in_arena(reply):
                    reply = _copied_out(reply, fds)
                with self._lock:
                    awaited, self._awaited = self._awaited, None
                if awaited is not None:
                    try:
                        awaited[1](reply)
                    except Exception:  # noqa: BLE001 - the other messages must be answered all the same
                        _log.exception("A worker's answer could not be dealt with:")
                del data, reply, awaited  # hold nothing while waiting


def _copied_out(reply: Ran, fds: list[int | None]) -> Ran:
    """Return a reply with copies of what the worker laid into its arena, which it uses for the next one."""
    fd = fds[0] if fds else None  # without one, reading says so, for each item that needs it
    arena = Arena(-1 if fd is None else fd)
    values = reply.values._replace(frames=tuple(copied_out(frame, arena) for frame in reply.values.frames))
    with contextlib.suppress(OSError):
        arena.trim()
    return reply._replace(values=values)


class LokyEngine(Engine):
    """Opens workers that are processes on this machine."""

    name: ClassVar[str] = "loky"
    has_processes: ClassVar[bool] = True
    takes_env: ClassVar[bool] = True

    def __init__(self) -> None:
        self.transport: Transport = SharedMemory() if Line.carries_files else Pickled()
        # What multiprocessing spawns knows the main script by a name that no worker of ours could import it by.
        main = sys.modules.get("__mp_main__")
        if main is not None and main.__name__ == "__mp_main__":
            cloudpickle.register_pickle_by_value(main)

    def open(self, slot: int, env: Mapping[str, str]) -> LokyWorker:  # noqa: ARG002 - only env tells slots apart
        """Return a worker for a slot."""
        check_room()
        return LokyWorker(self.transport, env)

    def settle(self, seconds: float) -> None:
        """Wait for the pools of workers that are gone."""
        wait_for_burials(seconds)

    def check(self) -> None:
        """Refuse daemonic processes."""
        if multiprocessing.current_process().daemon:
            raise errors.EngineError(
                'engine="loky" starts processes, which Python forbids in a daemonic process (such as a worker of '
                'multiprocessing.Pool). Use engine="threads" here, or start this process with daemon=False.',
            )


engine_class = LokyEngine


# --- ending processes -----------------------------------------------------------------------------------


def _kill_and_reap(process: Any) -> None:
    kill_tree(process)
    # Also if it was gone before: multiprocessing keeps those that nobody joined.
    with contextlib.suppress(Exception):
        process.join(_REAP_SECONDS)


def _kill_all(processes: dict[int, Any], reason: str = "") -> None:  # noqa: ARG001 - loky's signature
    while processes:
        _kill_and_reap(processes.popitem()[1])


# --- starting processes ---------------------------------------------------------------------------------


@contextlib.contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Keep Ctrl-C from processes that are being born: until they ignore it, it would print tracebacks."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_resource_trackers() -> None:
    """Start what the first process would otherwise start, with its signals as they are then."""
    from multiprocessing import resource_tracker as theirs

    from loky.backend import resource_tracker

    resource_tracker.ensure_running()
    if os.name == "posix":
        theirs.ensure_running()


# What a fork inherited: kept, so that it is not collected and does not tidy up after the parent.
_not_ours: list[Any] = []

# Ends that a fork must not keep open, or it would keep its parent's workers alive.
_lifelines: weakref.WeakSet[Connection] = weakref.WeakSet()


def _close_lifelines() -> None:
    for end in _lifelines:
        end.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_lifelines)
