"""An engine in memory, for tests: no process, no thread, and nothing happens before the test says so.

With it the whole of an executor, a map or a backend runs except for processes, so that a crash, a slow item or
a reply that comes too late can be played exactly, in microseconds and the same way each time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ._process._interrupts import interruptible
from ._transport._transport import Pickled
from ._worker._messages import Death, Finish, Finished, Phase, Run
from ._worker._progress_page import Progress
from ._worker._worker import Worker
from .engines import Engine, EngineWorker, Runtime
from .engines._mailbox import Mailbox

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ._worker._messages import Failure, Message, Reply
    from .engines._mailbox import OnReply

__all__ = ["MemoryEngine", "MemoryWorker"]

# Higher than any that a system gives out, so that a test that sends a signal to one hits nobody.
_FIRST_PID = 10_000_001
_SIGKILL = -9


class MemoryWorker(EngineWorker):
    """One life of one slot of a `MemoryEngine`: it keeps what it is sent until the test decides.

    Attributes
    ----------
    slot : int
        The slot it was opened for.
    env : dict
        Environment variables that a real worker's process would have.
    life : int
        Which worker of its slot it is, counted from 1.
    pid : int
        A number that no process has.
    pending : Build, Run or None
        The message that waits for an answer.
    is_gone : bool
        It crashed, was killed or was closed.

    Examples
    --------
    >>> from joblib_stateful import StatefulExecutor
    >>> engine = MemoryEngine()
    >>> with StatefulExecutor(n_jobs=1, engine=engine) as executor:
    ...     future = executor.submit(abs, -1)
    ...     engine.worker(0).answer()  # its object is built, so that it is sent the call
    ...     engine.worker(0)
    ...     engine.worker(0).crash()
    ...     print(type(future.exception()).__name__)
    <MemoryWorker slot=0 life=1: Run of 1 pending>
    WorkerCrashedError
    """

    def __init__(self, slot: int, env: Mapping[str, str], life: int, pid: int, *, auto: bool = False) -> None:
        self.slot, self.env, self.life, self.pid = slot, dict(env), life, pid
        self.progress = Progress()
        self._worker = Worker(Pickled(), self.progress)
        self.local = self._worker if auto else None
        self._exitcode = 0
        self._mailbox = Mailbox()  # time limits kill from another thread than the test's

    @property
    def pending(self) -> Message | None:
        """The message that waits for an answer."""
        return next((awaited.message for awaited in self._mailbox.awaited.copy().values()), None)

    @property
    def is_gone(self) -> bool:
        """It crashed, was killed or was closed."""
        return self._mailbox.is_closed

    def send(self, message: Message, on_reply: OnReply) -> Reply | Death | None:
        """Keep a message until it is answered, or answer at once if the engine is ``auto``."""
        if self.local is not None and not self.is_gone:
            with interruptible():
                return self.local.handle(message)
        if self.pending is not None:
            raise RuntimeError(f"{self!r} was sent a second message before it answered the first: {message!r}")
        return None if self._mailbox.put(message, on_reply) else Death(self.pid, self._exitcode)

    def begin(self, place: int = 0) -> None:
        """Show the pending message as under way: time limits run from here, and a kill finds it at work.

        Parameters
        ----------
        place : int, default 0
            Which item of the message runs. Nothing is really run, neither it nor those before it.
        """
        message = self._require_pending()
        if isinstance(message, Run):
            _check_place(message, place)
            self.progress.enter(message.seq, Phase.RUNNING)
            self.progress.start_item(place)
        else:
            self.progress.enter(message.seq, Phase.BUILDING)

    def answer(self) -> None:
        """Handle the pending message as a worker process would, and deliver its reply."""
        message = self._require_pending()
        # Before it is delivered: the answer may bring the next message.
        awaited = self._mailbox.take(message.seq)
        if awaited is not None:
            awaited.on_reply(self._worker.handle(awaited.message))

    def crash(self, exitcode: int = _SIGKILL, place: int | None = 0, *, started: bool = True) -> None:
        """Die. A pending message is answered with a `Death`; if there is none, the next one will be.

        Parameters
        ----------
        exitcode : int, default -9
            The process's exit code; negative for a signal.
        place : int or None, default 0
            Which item of the pending message ran; those before it were done. None: all of them were done, and
            the reply was under way. Of no meaning while the object is built.
        started : bool, default True
            False: it had not begun the message.
        """
        message = self.pending
        if message is not None and started:
            self.begin(place or 0)
            if place is None and isinstance(message, Run):
                self.progress.reply(message.parcel.n_values)
        self._die(exitcode)

    def close(self, message: Finish, on_closed: Callable[[Failure | None], None]) -> None:
        """Close the object at once."""
        if self.pending is not None:
            raise RuntimeError(f"{self!r} was to be closed before it answered its message.")
        failure = None
        if not self.is_gone:
            reply = self._worker.handle(message)
            failure = reply.failure if isinstance(reply, Finished) else None
        self._mailbox.close()
        on_closed(failure)

    def kill(self) -> None:
        """Die of SIGKILL, with whatever is pending."""
        if not self.is_gone:
            self._die(_SIGKILL)

    def _die(self, exitcode: int) -> None:
        self._exitcode = exitcode
        self._mailbox.close()
        for awaited in self._mailbox.take_all():
            progress = self.progress
            started = progress.seq == awaited.message.seq and progress.phase is not Phase.IDLE
            place, n_finished = (progress.place, progress.n_finished) if started else (None, 0)
            awaited.on_reply(Death(self.pid, exitcode, started, place, n_finished))

    def _require_pending(self) -> Message:
        if self.pending is None:
            raise RuntimeError(f"{self!r} has no message to answer.")
        return self.pending

    def __repr__(self) -> str:
        state = "gone" if self.is_gone else "waiting"
        if self.pending is not None:
            size = f" of {self.pending.parcel.n_values}" if isinstance(self.pending, Run) else ""
            state = f"{type(self.pending).__name__}{size} pending"
        return f"<MemoryWorker slot={self.slot} life={self.life}: {state}>"


class _MemoryRuntime(Runtime):
    """Opens workers, and leaves them to the engine, which is what the test holds."""

    transport = Pickled()
    engine: MemoryEngine

    def open(self, slot: int, env: Mapping[str, str]) -> MemoryWorker:
        """Return a worker for a slot."""
        workers = self.engine.workers
        life = 1 + sum(worker.slot == slot for worker in workers)
        worker = MemoryWorker(slot, env, life, _FIRST_PID + len(workers), auto=self.engine.is_synchronous)
        workers.append(worker)
        return worker


class MemoryEngine(Engine):
    """Workers that live in the test's own memory; see `MemoryWorker`.

    Messages are packed and unpacked as between processes, and handled by the same code as in a real worker.
    What ends an executor (``shutdown()``, the end of a ``with`` block) waits for what is pending, so answer it
    before, or pass ``kill_workers=True``.

    Parameters
    ----------
    auto : bool, default False
        Answer each message at once, in the thread that sends it: a synchronous engine, for tests to which it
        does not matter when things happen.

    Attributes
    ----------
    workers : list of MemoryWorker
        All that were opened, in that order, those that are gone too.

    Examples
    --------
    >>> from joblib_stateful import StatefulExecutor
    >>> engine = MemoryEngine()
    >>> with StatefulExecutor(n_jobs=2, engine=engine) as executor:
    ...     future = executor.submit(divmod, 7, 2)
    ...     print(engine, engine.workers)
    ...     engine.answer_all()
    ...     print(future.result())
    <MemoryEngine 1 worker opened, 1 pending> [<MemoryWorker slot=0 life=1: Build pending>]
    (3, 1)
    """

    name: ClassVar[str] = "memory"
    has_processes: ClassVar[bool] = True
    takes_env: ClassVar[bool] = True
    is_synchronous: bool  # type: ignore[misc]  # of other engines it is the class that says so

    def __init__(self, *, auto: bool = False) -> None:
        self.is_synchronous = auto
        self.workers: list[MemoryWorker] = []

    def make_runtime(self, n_slots: int) -> Runtime:  # noqa: ARG002 - however many there are
        """Return a runtime, whose workers come to be listed here."""
        return _MemoryRuntime(self)

    @property
    def pending(self) -> list[MemoryWorker]:
        """The workers with a message to answer, in the order in which they were opened."""
        return [worker for worker in self.workers if worker.pending is not None]

    def worker(self, slot: int) -> MemoryWorker:
        """Return the latest worker of a slot.

        Parameters
        ----------
        slot : int
            The slot, counted from 0.

        Returns
        -------
        MemoryWorker

        Raises
        ------
        LookupError
            None was opened for that slot yet.
        """
        for worker in reversed(self.workers):
            if worker.slot == slot:
                return worker
        raise LookupError(f"No worker was opened for slot {slot} yet; there are {self.workers}.")

    def answer_all(self) -> None:
        """Have all workers answer until nothing is pending, in the order in which they were opened."""
        while waiting := self.pending:
            for worker in waiting:
                if worker.pending is not None:
                    worker.answer()

    def __repr__(self) -> str:
        n_opened = len(self.workers)
        return f"<MemoryEngine {n_opened} worker{'s' * (n_opened != 1)} opened, {len(self.pending)} pending>"


def _check_place(message: Run, place: int) -> None:
    n_items = message.parcel.n_values
    if not 0 <= place < n_items:
        raise ValueError(f"place must be one of the message's {n_items} items, counted from 0, not {place}.")
