"""The engine ``"loky"``: one process per slot, each under a single-worker loky executor.

Why one executor per slot: a crash breaks a loky executor, so it must not be shared; each gets its own
environment before anything is imported; and one worker can be killed alone. Loky's reusable executor is not
used, because any other user of it in the process would shut ours down.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.context
import os
import signal
import sys
import threading
import weakref
from functools import partial
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, ClassVar

import cloudpickle

from .. import errors
from .._records import Death, Finish, Message, Ran
from .._segments import Arena
from .._sharing import SharedMemory, copied_out
from .._transport import Pickled, Transport
from .._worker import Progress
from ._base import Engine, EngineWorker
from ._buffers import in_line, segments_in
from ._burial import bury, expect, wait_for_burials, wait_for_threads
from ._handover import Handover
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

# A process that loky reports as gone is reaped at once; this only guards against one that can't be.
_REAP_SECONDS = 2.0


class LokyWorker(EngineWorker):
    """One worker process."""

    def __init__(self, transport: Transport, env: Mapping[str, str]) -> None:
        self._transport = transport
        self._env = dict(env)
        self._numbers: SharedNumbers | None = SharedNumbers(Progress.SIZE)
        self.progress = Progress(self._numbers.values)
        self._pool: loky.ProcessPoolExecutor | None = None
        self._manager: Any = None  # loky's thread for the pool
        self._process: Any = None  # loky's Process
        self._lifeline: Connection | None = None  # open as long as the process shall live
        self._handover: Handover | None = None  # by which open files go to it and come back
        self._is_awaited = False  # a message is under way
        self._killed = False
        self._lock = threading.RLock()  # guards the eight above; held while the process is started or killed

    def send(self, message: Message, on_reply: Callable[[Reply | Death], None]) -> Reply | Death | None:
        """Hand the message to the process, which is started with the first one."""
        try:
            with self._lock:
                if self._killed:
                    return Death(self.pid, reason="it was killed")
                future = self._start(message) if self._pool is None else self._submit(self._pool, message)
                self._is_awaited = True
        except Exception as error:  # noqa: BLE001 - out of processes, memory or file descriptors; a broken pool
            death = self._autopsy(message, error)
            self._let_go()
            return death
        future.add_done_callback(partial(self._receive, message, on_reply))
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
                # loky notices, and fails the message under way.
                _kill_and_reap(self._process)
            if not self._is_awaited:  # else the message's failure is still to be looked into
                self._let_go()

    def disown(self) -> None:
        """Forget the process and the pool, whose ends would reach for the parent's."""
        _not_ours.append((self._pool, self._process))
        # Or multiprocessing would wait for it at exit, and complain that it is no child of this process.
        multiprocessing.process._children.discard(self._process)  # type: ignore[attr-defined]
        self._lock = threading.RLock()
        self._pool = self._process = self._handover = None
        self._killed = True

    def _start(self, message: Message) -> Future[Reply]:
        # A pipe for each worker, because only one process can be signalled for an open file.
        theirs, self._lifeline = multiprocessing.Pipe(duplex=False)
        _lifelines.add(self._lifeline)
        self._handover, far_end = Handover.pair() if isinstance(self._transport, SharedMemory) else (None, None)
        _start_resource_trackers()  # which ends by unblocking SIGINT, so first
        with theirs, contextlib.closing(far_end) if far_end else contextlib.nullcontext(), _sigint_blocked():
            pool = loky.ProcessPoolExecutor(
                max_workers=1,
                context=Context(),
                env=self._env,
                initializer=_loky_child.set_up,
                initargs=(theirs, far_end, self._numbers, self._transport),
            )
            future = self._submit(pool, message)
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
        return future

    def _submit(self, pool: loky.ProcessPoolExecutor, message: Message) -> Future[Reply]:
        segments = list(segments_in(message))
        if segments:  # first, so that a message never waits for what could not be sent
            assert self._handover is not None  # noqa: S101 - there are none without it
            try:
                self._handover.send([segment.fd for segment in segments])
            except OSError:  # too many are under way; how many is a limit of the user's
                message, segments = in_line(message), []
        future: Future[Reply] = pool.submit(_loky_child.serve, message, len(segments))
        return future

    def _receive(self, message: Message, on_reply: Callable[[Reply | Death], None], future: Future[Reply]) -> None:
        error = future.exception()
        if error is not None:
            reply: Reply | Death = self._autopsy(message, error)
        else:
            reply = future.result()
            if isinstance(reply, Ran) and _loky_child.lies_in_arena(reply):
                reply = self._copied_out(reply)
        with self._lock:
            self._is_awaited = False
            if self._killed or error is not None:
                self._let_go()
        on_reply(reply)

    def _copied_out(self, reply: Ran) -> Ran:
        """Return a reply with copies of what the worker laid into its arena, which it uses for the next one."""
        fd = None
        with contextlib.suppress(
            OSError, EOFError, AttributeError
        ):  # then reading says so, for each item that needs it
            (fd,) = self._handover.receive(1)  # type: ignore[union-attr]  # None after a fork
        arena = Arena(-1 if fd is None else fd)
        values = reply.values._replace(frames=tuple(copied_out(frame, arena) for frame in reply.values.frames))
        with contextlib.suppress(OSError):
            arena.trim()
        return reply._replace(values=values)

    def _autopsy(self, message: Message, error: BaseException) -> Death:
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
        reason = explain(error) if process is None else ""
        return Death(self.pid, exitcode, started, progress.place, progress.n_finished, reason)

    def _close(self, message: Finish, on_closed: Callable[[Failure | None], None]) -> None:
        failure, pool, manager = None, self._pool, self._manager
        try:
            if pool is not None and not self._killed:
                failure = self._submit(pool, message).result().failure  # type: ignore[union-attr]  # the answer to Finish
        except RuntimeError:
            failure = None  # a process that is gone already needs no closing
        finally:
            if pool is not None:
                pool.shutdown(wait=True)
                wait_for_threads(manager)
            del pool, manager
            self._let_go()
            on_closed(failure)

    def _let_go(self) -> None:
        """Hold nothing open for a process that is gone; what it was doing can still be read."""
        with self._lock:
            self._killed = True  # nothing can be sent to it any more
            if self._lifeline is not None:
                self._lifeline.close()
            if self._handover is not None:
                self._handover.close()
            self.progress = self.progress.copy()
            if self._pool is not None:
                bury(self._pool, self._manager)
            self._pool = self._manager = self._process = self._numbers = self._lifeline = self._handover = None

    def _close_at_exit(self, message: Finish, on_closed: Callable[[Failure | None], None]) -> None:
        pool = self._pool

        def closed(future: Future[Any]) -> None:
            if pool is not None:
                pool.shutdown(wait=False)
            on_closed(None if future.exception() is not None else future.result().failure)

        try:
            if pool is None or self._killed:
                on_closed(None)
            else:
                self._submit(pool, message).add_done_callback(closed)
        except RuntimeError:  # it is gone already
            on_closed(None)


class LokyEngine(Engine):
    """Opens workers that are processes on this machine."""

    name: ClassVar[str] = "loky"
    has_processes: ClassVar[bool] = True
    takes_env: ClassVar[bool] = True

    def __init__(self) -> None:
        self.transport: Transport = SharedMemory() if Handover.is_possible else Pickled()
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
