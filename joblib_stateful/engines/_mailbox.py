"""The message that a worker is at work with, answered once; and workers that have a thread to answer theirs.

Whatever a worker runs on, it has one message at a time. Several may want to answer that: the worker itself, whoever notices
its death, whoever kills it. Who takes it out of the mailbox does, and nobody else.
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
    from collections.abc import Callable

    from .._worker._messages import Failure, Finish, Message, Reply

    OnReply: TypeAlias = Callable[[Reply | Death], None]


class Awaited(NamedTuple):
    """A message, and who is to be called with its answer."""

    message: Message
    on_reply: OnReply


class Mailbox:
    """What a worker is asked, for use in any threads."""

    def __init__(self) -> None:
        #: Guards this; also what belongs to the worker and must agree with it.
        self.lock = _locks.Lock()
        #: The message under way; None if there is none, or somebody has taken it to answer it.
        self.awaited: Awaited | None = None
        #: Takes no more.
        self.is_closed = False

    def put(self, message: Message, on_reply: OnReply) -> bool:
        """Note that a message is under way; False if the worker takes none any more.

        Raises RuntimeError if the one before is not answered.
        """
        with self.lock:
            if self.is_closed:
                return False
            if self.awaited is not None:
                raise RuntimeError(f"a second message before the first is answered: {message!r}")
            self.awaited = Awaited(message, on_reply)
            return True

    def take(self) -> Awaited | None:
        """Return the message under way, which the caller must see answered; None if there is none, or it has been taken."""
        with self.lock:
            awaited, self.awaited = self.awaited, None
            return awaited

    def close(self) -> None:
        """Take no more messages; one that is under way is still to be taken, and answered."""
        with self.lock:
            self.is_closed = True


class ServedWorker(EngineWorker):
    """A worker with a thread, in which one message after the other is answered."""

    #: Why it takes no message when it is gone.
    reason: ClassVar[str] = "it was killed"

    def __init__(self, thread: str) -> None:
        self.progress = Progress()
        self.was_killed = False
        self._mailbox = Mailbox()
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
        if not self._mailbox.put(message, on_reply):
            return Death(self.pid, reason=self.reason)
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
        """End what answers, or give it up; the message under way is answered with a `Death`."""
        with self._mailbox.lock:
            if self.is_gone:
                return
            self._mailbox.close()
            self.was_killed = True
            awaited = self._mailbox.take()
        explanation = ""
        with contextlib.suppress(Exception):  # the cluster is just being closed
            explanation = self.explain()
        # Before the thread hears of the end, and notes that nothing runs any more.
        death = None if awaited is None else self._death(awaited.message, explanation)
        self._end()
        self._inbox.put(None)
        if awaited is not None and death is not None:
            awaited.on_reply(death)

    def disown(self) -> None:
        """Leave it to the process that this one was forked from."""
        self._mailbox = Mailbox()
        self._mailbox.close()
        self._thread = None

    def _serve(self) -> None:
        while (message := self._inbox.get()) is not None:
            reply = self._answer(message)
            is_over = isinstance(reply, (Death, Finished))
            awaited = self._mailbox.take()
            if awaited is None:
                self._end()  # what it may have started after it was killed
                return
            if is_over:
                self._mailbox.close()
                self._end()
            awaited.on_reply(reply)
            if is_over:
                return
            del message, reply, awaited  # hold nothing while waiting

    def _death(self, message: Message, reason: str) -> Death:
        if not isinstance(message, Run):
            return Death(self.pid, started=True, reason=reason)
        progress = self.progress
        return Death(self.pid, started=True, place=progress.place, reason=reason, n_together=progress.n_together)
