"""The engine ``"threads"``: one thread per slot, for code that releases the GIL and for free-threaded Python."""

from __future__ import annotations

import os
import queue
import threading
from typing import TYPE_CHECKING, ClassVar

from .. import _locks
from .._messages import Finish
from .._records import Death
from .._safely import full_name_of
from .._transport import ByReference
from .._worker import Progress, Worker
from ._base import Engine, EngineWorker

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .._messages import Failure, Message, Reply


class ThreadWorker(EngineWorker):
    """A daemon thread, started with the first message."""

    def __init__(self, slot: int) -> None:
        self.progress = Progress()
        self.pid = os.getpid()
        self._worker = Worker(ByReference(), self.progress)
        # None wakes the thread to see that it was given up.
        self._inbox: queue.SimpleQueue[tuple[Message, Callable[[Reply | Death], None]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._slot = slot
        self._lock = _locks.Lock()  # guards _thread, _under_way and _killed
        self._under_way: Callable[[Reply | Death], None] | None = None
        self._killed = False

    def send(self, message: Message, on_reply: Callable[[Reply | Death], None]) -> Reply | Death | None:
        """Hand the message to the thread."""
        with self._lock:
            if self._killed:
                return Death(self.pid, reason="its thread was given up")
            self._under_way = on_reply
            self._inbox.put((message, on_reply))
            if self._thread is None:
                name = f"joblib_stateful-slot-{self._slot}"
                self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
                self._thread.start()
        return None

    def close(self, message: Finish, on_closed: Callable[[Failure | None], None]) -> None:
        """Have the thread close the object and end."""
        if self.send(message, lambda reply: on_closed(getattr(reply, "failure", None))) is not None:
            on_closed(None)

    def kill(self) -> None:
        """Give the thread up: it can't be killed, but what it does no longer counts, and it ends after it."""
        with self._lock:
            self._killed = True
            on_reply, self._under_way = self._under_way, None
        self._inbox.put(None)
        if on_reply is not None:
            on_reply(Death(self.pid, started=True, place=self.progress.place, reason="a thread can't be killed"))

    def _handle(self, message: Message) -> Reply | Death:
        try:
            return self._worker.handle(message)
        except BaseException as error:  # noqa: BLE001 - nobody else would tell whoever waits
            return Death(self.pid, started=True, place=self.progress.place, reason=full_name_of(type(error)))

    def _serve(self) -> None:
        while not self._killed and (received := self._inbox.get()) is not None:
            message, on_reply = received
            reply = self._handle(message)
            with self._lock:
                counts, self._under_way = not self._killed, None
            if counts:
                on_reply(reply)
            if isinstance(message, Finish):
                return
            del message, on_reply, reply, received  # hold nothing while waiting


class ThreadsEngine(Engine):
    """Opens workers that are threads of this process."""

    name: ClassVar[str] = "threads"

    def __init__(self) -> None:
        self.transport = ByReference()

    def open(self, slot: int, env: Mapping[str, str]) -> ThreadWorker:  # noqa: ARG002 - refused before
        """Return a worker for a slot."""
        return ThreadWorker(slot)


engine_class = ThreadsEngine
