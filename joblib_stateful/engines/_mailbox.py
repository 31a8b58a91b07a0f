"""The messages that a worker is at work with, each answered once; and workers that have a thread to answer theirs.

Whatever a worker runs on, it has one message at a time, or so many as it takes. Several may want to answer one: the worker
itself, whoever notices its death, whoever kills it. Who takes it out of the mailbox does, and nobody else.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, NamedTuple, TypeAlias

from .._process import _locks
from .._worker._messages import Death, Finished, Run
from .._worker._progress_page import Progress
from ._base import EngineWorker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .._worker._messages import Failure, Finish, Message, Reply

    OnReply: TypeAlias = Callable[[Reply | Death], None]


class Awaited(NamedTuple):
    """A message, in which of the worker's places it is, and who is to be called with its answer."""

    message: Message
    on_reply: OnReply
    lane: int


class Mailbox:
    """What a worker is asked, for use in any threads.

    Parameters
    ----------
    n_lanes : int
        How many messages it takes at a time.
    """

    def __init__(self, n_lanes: int = 1) -> None:
        #: Guards this; also what belongs to the worker and must agree with it.
        self.lock = _locks.Lock()
        #: The messages under way that nobody has taken yet to answer them, by number, in the order of sending.
        self.awaited: dict[int, Awaited] = {}
        #: Takes no more.
        self.is_closed = False
        self._lanes = list(reversed(range(n_lanes)))  # those that are free, the next one last

    def put(self, message: Message, on_reply: OnReply) -> Message | None:
        """Note that a message is under way, and return it with its place; None if the worker takes none any more.

        Raises RuntimeError if there is no place for it.
        """
        with self.lock:
            if self.is_closed:
                return None
            if not self._lanes:
                raise RuntimeError(f"one more message before one of those before is answered: {message!r}")
            lane = self._lanes.pop()
            if lane and isinstance(message, Run):
                message = message._replace(lane=lane)
            self.awaited[message.seq] = Awaited(message, on_reply, lane)
            return message

    def take(self, seq: int) -> Awaited | None:
        """Return a message under way, which the caller must see answered; None if it has been taken."""
        with self.lock:
            awaited = self.awaited.pop(seq, None)
            if awaited is not None:
                self._lanes.append(awaited.lane)
            return awaited

    def take_all(self) -> list[Awaited]:
        """Return all messages under way, which the caller must see answered."""
        with self.lock:
            taken = [*self.awaited.values()]
            self._lanes += [awaited.lane for awaited in taken]
            self.awaited.clear()
            return taken

    def page_of(self, seq: int, pages: Sequence[Progress]) -> Progress:
        """Return that one of the worker's pages on which is seen what becomes of a message."""
        awaited = self.awaited.get(seq)
        if awaited is not None:
            return pages[awaited.lane]
        # It is answered. Where there are several places, its own may be another message's by now.
        return pages[0] if len(pages) == 1 else Progress()

    def close(self) -> None:
        """Take no more messages; one that is under way is still to be taken, and answered."""
        with self.lock:
            self.is_closed = True


class ServedWorker(EngineWorker):
    """A worker with a thread, in which one message after the other is answered."""

    #: Why it takes no message when it is gone.
    reason: ClassVar[str] = "it was killed"

    def __init__(self, thread: str, n_lanes: int = 1) -> None:
        self.pages = Progress.pages(n_lanes)
        self.progress = self.pages[0]
        self.was_killed = False
        self._mailbox = Mailbox(n_lanes)
        # None wakes the thread to see that it is over.
        self._inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._thread_name = thread

    @property
    def is_gone(self) -> bool:
        """True once it takes no more messages."""
        return self._mailbox.is_closed

    @abstractmethod
    def _answer(self, message: Message) -> Reply | Death:
        """Return the answer to a message; must not raise."""

    def _begin(self, message: Message) -> None:
        """Note that a message is about to be answered."""

    def _end(self) -> None:
        """End what has answered, if it doesn't end by itself; must not raise."""

    def explain(self) -> str:
        """Say what it is waiting for, if that is of interest to whom it took too long."""
        return ""

    def send(self, message: Message, on_reply: OnReply) -> Reply | Death | None:
        """Hand the message to the thread."""
        placed = self._mailbox.put(message, on_reply)
        if placed is None:
            return Death(self.pid, reason=self.reason)
        message = placed
        self._begin(message)
        self._inbox.put(message)
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name=self._thread_name, daemon=True)
            self._thread.start()
        return None

    def close(self, message: Finish, on_closed: Callable[[Failure | None], None]) -> None:
        """Have the object closed, and the thread end."""

        def finished(reply: Reply | Death) -> None:
            on_closed(reply.failure if isinstance(reply, Finished) else None)

        if self._thread is None or self.send(message, finished) is not None:
            on_closed(None)

    def kill(self) -> None:
        """End what answers, or give it up; messages under way are answered with a `Death`."""
        with self._mailbox.lock:
            if self.is_gone:
                return
            self._mailbox.close()
            self.was_killed = True
            awaited = self._mailbox.take_all()
        explanation = ""
        with contextlib.suppress(Exception):  # the cluster is just being closed
            explanation = self.explain()
        self._bury(awaited, explanation)

    def _bury(self, awaited: list[Awaited], reason: str) -> None:
        """End what answers, and answer what is under way with a `Death`."""
        # Before the thread hears of the end, and notes that nothing runs any more.
        deaths = [self._death(one.message, reason) for one in awaited]
        self._end()
        self._inbox.put(None)
        for one, death in zip(awaited, deaths, strict=True):
            one.on_reply(death)

    def disown(self) -> None:
        """Leave it to the process that this one was forked from."""
        self._mailbox = Mailbox()
        self._mailbox.close()
        self._thread = None

    def _serve(self) -> None:
        while (message := self._inbox.get()) is not None:
            if not self._answer_elsewhere(message) and self._deliver(message, self._answer(message)):
                return
            del message  # hold nothing while waiting

    def _answer_elsewhere(self, message: Message) -> bool:  # noqa: ARG002 - for those that take several at a time
        """Have a message answered by another thread, if this worker has one for it; False if not."""
        return False

    def _deliver(self, message: Message, reply: Reply | Death) -> bool:
        """Hand on an answer; return True if there is nothing more to come."""
        is_over = isinstance(reply, (Death, Finished))
        awaited = self._mailbox.take(message.seq)
        if awaited is None:
            self._end()  # what it may have started after it was killed
            return True
        if is_over:
            with self._mailbox.lock:
                self._mailbox.close()
                others = self._mailbox.take_all()
                self.was_killed |= bool(others)  # what it may still be at is to be ended
            self._bury(others, reply.reason if isinstance(reply, Death) else "")
        awaited.on_reply(reply)
        return is_over

    def progress_of(self, seq: int) -> Progress:
        """Return what is seen of a message under way."""
        return self._mailbox.page_of(seq, self.pages)

    def _death(self, message: Message, reason: str) -> Death:
        if not isinstance(message, Run):
            return Death(self.pid, started=True, reason=reason)
        progress = self.pages[message.lane]
        return Death(self.pid, started=True, place=progress.place, reason=reason, n_together=progress.n_together)
