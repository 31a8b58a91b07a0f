"""The engine ``"threads"``: one thread per slot, for code that releases the GIL and for free-threaded Python."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from .._process._safely import full_name_of
from .._transport._transport import ByReference
from .._worker._lanes import Lanes
from .._worker._messages import Run
from .._worker._worker import Worker
from ._base import Engine, Runtime
from ._mailbox import ServedWorker

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .._worker._messages import Death, Message, Reply


class ThreadWorker(ServedWorker):
    """A daemon thread, started with the first message. What it can't end it gives up: that no longer counts."""

    reason: ClassVar[str] = "its thread was given up"

    def __init__(self, slot: int, n_lanes: int = 1) -> None:
        super().__init__(f"joblib_stateful-slot-{slot}", n_lanes)
        self.pid = os.getpid()
        self.here = self._worker = first = Worker(ByReference(), self.progress)
        self._lanes: Lanes | None = None
        if n_lanes > 1:
            self._lanes = Lanes(first, n_lanes, lambda lane: Worker(ByReference(), self.pages[lane], life=first.life))

    def explain(self) -> str:
        """Say why it may still be at work when it counts as gone."""
        return "a thread can't be killed"

    def _answer(self, message: Message) -> Reply | Death:
        return self._answer_by(self._worker, message)

    def _answer_by(self, worker: Worker, message: Message) -> Reply | Death:
        try:
            return worker.handle(message)
        except BaseException as error:  # noqa: BLE001 - nobody else would tell whoever waits
            return self._death(message, full_name_of(type(error)))

    def _answer_elsewhere(self, message: Message) -> bool:
        if self._lanes is None or not isinstance(message, Run):
            return False
        self._lanes.start(
            message.lane, lambda worker: partial(self._deliver, message, self._answer_by(worker, message))
        )
        return True

    def _end(self) -> None:
        if self.was_killed:
            self._worker.life.abandon()
        if self._lanes is not None:
            self._lanes.end()


class ThreadsRuntime(Runtime):
    """Opens such workers."""

    transport = ByReference()

    def open(self, slot: int, env: Mapping[str, str]) -> ThreadWorker:  # noqa: ARG002 - refused before
        """Return a worker for a slot."""
        return ThreadWorker(slot, self.max_concurrency)


class ThreadsEngine(Engine):
    """Workers that are threads of this process."""

    name: ClassVar[str] = "threads"
    is_concurrent: ClassVar[bool] = True

    def make_runtime(self, n_slots: int) -> ThreadsRuntime:  # noqa: ARG002 - however many there are
        """Return a runtime."""
        return ThreadsRuntime(self)


engine_class = ThreadsEngine
