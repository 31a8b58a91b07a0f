"""The engine ``"inline"``: every call runs in the thread that makes it. For debugging."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar

from .._process._interrupts import interruptible
from .._transport._transport import ByReference
from .._worker._progress_page import Progress
from .._worker._worker import Worker
from ._base import Engine, EngineWorker, Runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .._worker._messages import Death, Failure, Finish, Message, Reply


class InlineWorker(EngineWorker):
    """An object that is used by whoever comes, one at a time."""

    local: Worker

    def __init__(self) -> None:
        self.progress = Progress()
        self.pid = os.getpid()
        self.here = self.local = Worker(ByReference(), self.progress, interruptible=True)

    def send(self, message: Message, on_reply: Callable[[Reply | Death], None]) -> Reply | Death | None:  # noqa: ARG002 - answers itself
        """Answer at once."""
        with interruptible():
            return self.local.handle(message)

    def close(self, message: Finish, on_closed: Callable[[Failure | None], None]) -> None:
        """Close the object."""
        failure = None
        try:
            with interruptible():
                failure = getattr(self.local.handle(message), "failure", None)
        finally:  # also after a Ctrl-C in it
            on_closed(failure)

    def kill(self) -> None:
        """Do nothing: a thread can't be killed."""


class InlineRuntime(Runtime):
    """Opens such workers."""

    transport = ByReference()

    def open(self, slot: int, env: Mapping[str, str]) -> InlineWorker:  # noqa: ARG002 - slots don't differ here
        """Return a worker for a slot."""
        return InlineWorker()


class InlineEngine(Engine):
    """Workers that run in the calling thread."""

    name: ClassVar[str] = "inline"
    is_synchronous: ClassVar[bool] = True

    def make_runtime(self, n_slots: int) -> InlineRuntime:  # noqa: ARG002 - however many there are
        """Return a runtime."""
        return InlineRuntime(self)


engine_class = InlineEngine
