"""The engine ``"loky"``: one process per slot, each under a single-worker loky executor.

Why one executor per slot: a crash breaks a loky executor, so it must not be shared; each gets its own
environment before anything is imported; and one worker can be killed alone. Loky's reusable executor is not
used, because any other user of it in the process would shut ours down.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import weakref
from functools import partial
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, ClassVar

import loky

from .. import errors
from .._records import Death, Finish, Message
from .._transport import Pickled, Transport
from .._worker import Progress
from . import _loky_child
from ._base import Engine, EngineWorker
from ._process_tree import kill_tree
from ._shared_numbers import SharedNumbers

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
        self._process: Any = None  # loky's Process
        self._lifeline: Connection | None = None  # open as long as the process shall live
        self._is_awaited = False  # a message is under way
        self._killed = False
        self._lock = threading.RLock()  # guards the six above; held while the process is started or killed

    def send(self, message: Message, on_reply: Callable[[Reply | Death], None]) -> Reply | Death | None:
        """Hand the message to the process, which is started with the first one."""
        try:
            with self._lock:
                if self._killed:
                    return Death(self.pid, reason="it was killed")
                send = self._start if self._pool is None else partial(self._pool.submit, _loky_child.serve)
                future = send(message)
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
        self._lock = threading.RLock()
        self._pool = self._process = None
        self._killed = True

    def _start(self, message: Message) -> Future[Reply]:
        # A pipe for each worker, because only one process can be signalled for an open file.
        theirs, self._lifeline = multiprocessing.Pipe(duplex=False)
        _lifelines.add(self._lifeline)
        _start_resource_trackers()  # which ends by unblocking SIGINT, so first
        with theirs, _sigint_blocked():
            pool = loky.ProcessPoolExecutor(
                max_workers=1,
                env=self._env,
                initializer=_loky_child.set_up,
                initargs=(theirs, self._numbers, self._transport),
            )
            future: Future[Reply] = pool.submit(_loky_child.serve, message)
        # loky's own asks for psutil or pgrep. Where there is neither, as in slim images, it ends loky's thread.
        pool._executor_manager_thread.kill_workers = partial(_kill_all, pool._processes)
        self._pool = pool
        assert self._numbers is not None  # noqa: S101 - a worker is started once
        # loky keeps no public handle on its processes, and its errors have neither pid nor exit code.
        (self._process,) = pool._processes.values()
        self.pid = self._process.pid
        self._numbers.seal()
        # The far ends of both pipes are the worker's alone. If they stayed open here too, its death in the middle of
        # a message would not end that message, and loky's threads would wait for the rest of it for ever.
        pool._call_queue._reader.close()
        pool._result_queue._writer.close()
        return future

    def _receive(self, message: Message, on_reply: Callable[[Reply | Death], None], future: Future[Reply]) -> None:
        error = future.exception()
        reply = future.result() if error is None else self._autopsy(message, error)
        with self._lock:
            self._is_awaited = False
            if self._killed or error is not None:
                self._let_go()
        on_reply(reply)

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
        reason = f"{type(error).__name__}: {error}" if process is None else ""
        return Death(self.pid, exitcode, started, progress.place, progress.n_finished, reason)

    def _close(self, message: Finish, on_closed: Callable[[Failure | None], None]) -> None:
        failure, pool = None, self._pool
        with contextlib.suppress(Exception):  # a process that is gone already needs no closing
            if pool is not None and not self._killed:
                failure = pool.submit(_loky_child.serve, message).result().failure
        if pool is not None:
            pool.shutdown(wait=True)
            del pool
        self._let_go()
        on_closed(failure)

    def _let_go(self) -> None:
        """Hold nothing open for a process that is gone; what it was doing can still be read."""
        with self._lock:
            self._killed = True  # nothing can be sent to it any more
            if self._lifeline is not None:
                self._lifeline.close()
            self.progress = self.progress.copy()
            self._pool = self._process = self._numbers = self._lifeline = None

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
                pool.submit(_loky_child.serve, message).add_done_callback(closed)
        except RuntimeError:  # it is gone already
            on_closed(None)


class LokyEngine(Engine):
    """Opens workers that are processes on this machine."""

    name: ClassVar[str] = "loky"
    has_processes: ClassVar[bool] = True

    def __init__(self) -> None:
        self.transport = Pickled()

    def open(self, slot: int, env: Mapping[str, str]) -> LokyWorker:  # noqa: ARG002 - only env tells slots apart
        """Return a worker for a slot."""
        return LokyWorker(self.transport, env)

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
