"""What a slot's worker has been told, and so need not be told again."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from .._process._locks import Lock, make_lock
from .._transport._definitions import Peer, active
from .._worker._messages import Build, Run

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractContextManager

    from .._scheduling._requests import Request
    from .._transport._definitions import Definition
    from .._transport._transport import Parcel, Transport
    from .._worker._messages import Ran
    from .._worker._surroundings import Surroundings
    from ..engines import EngineWorker


class Link:
    """One life of a slot, on the parent's side: its worker, and what that knows and is known of.

    Parameters
    ----------
    life : int
        Which worker of its slot it is.
    worker : EngineWorker
        The worker.
    is_one_at_a_time : bool, default True
        It takes one message after the other.
    """

    def __init__(self, life: int, worker: EngineWorker, *, is_one_at_a_time: bool = True) -> None:
        self.life, self.worker = life, worker
        self.peer = Peer(is_parent=True)
        # Of a worker with several messages under way, which several threads may make at once, and whose answers they may take.
        self._is_one_at_a_time = is_one_at_a_time
        #: Held while a message is made and handed to the worker, so that it gets them in this order.
        self.order: AbstractContextManager[object] = nullcontext() if is_one_at_a_time else make_lock()
        self._receiving: AbstractContextManager[object] = nullcontext() if is_one_at_a_time else Lock()
        #: When the messages that it is at were sent, by their numbers.
        self.sent: dict[int, float] = {}
        self._latest = 0  # message that was made
        self.n_threads: int | None = None  # that it was told
        self._target: str | None = None  # the function that it has
        self._surroundings: Surroundings | None = None  # that it has taken over

    def build(self, message: Build, needs: Iterable[Definition], surroundings: Surroundings | None) -> Build:
        """Return a first message with what the worker must know before."""
        self._surroundings, self._latest, self.n_threads = surroundings, message.seq, message.n_threads
        return message._replace(definitions=self.peer.take(needs), surroundings=surroundings)

    def run(self, seq: int, request: Request, parcel: Parcel, width: int) -> Run:
        """Return the message that has items run, with what the worker does not know yet; with `order`.

        The next one may count on what comes with it, wherever it is on its way by then, and says so.
        """
        message = self._run(seq, request, parcel, width)
        if not self._is_one_at_a_time:
            message = message._replace(after=self._latest)
            self._latest = seq
        return message

    def _run(self, seq: int, request: Request, parcel: Parcel, width: int) -> Run:
        target_id, packed, needs, is_async = request.target or (None, None, (), request.is_async)
        if target_id is not None and target_id == self._target:
            packed, needs = None, ()
        elif target_id is not None:
            self._target = target_id
        surroundings = request.surroundings
        if surroundings is not None and surroundings == self._surroundings:
            surroundings = None
        elif surroundings is not None:
            self._surroundings = surroundings
        definitions = ()
        if needs or parcel.needs or self.peer.has_lost:
            definitions = self.peer.take((*needs, *parcel.needs))
            parcel = parcel._replace(needs=())
        return Run(
            seq,
            request.mode,
            target_id,
            packed,
            parcel,
            request.after_error,
            request.limits.item_timeout is not None,
            request.budget,
            definitions,
            width,
            surroundings,
            request.isolate,
            request.limits.max_worker_memory,
            request.limits.item_timeout,
            is_async=is_async,
        )

    def receive(self, definitions: Iterable[Any], transport: Transport) -> None:
        """Take what an answer refers to."""
        with self._receiving, active(self.peer):  # a class that another thread is just loading is of no use yet
            self.peer.receive(definitions, transport.unpack)

    def note(self, reply: Ran) -> None:
        """Learn from an answer what the worker does not know after all."""
        failures = reply.failures
        if reply.was_refused or (
            failures and any(failure.what in ("function", "surroundings") for failure in failures.values())
        ):
            self._target = self._surroundings = None
        if reply.was_refused:  # with all that came with it
            self.peer.start_anew()
        if reply.was_lost:
            self.peer.has_lost = True

    def __repr__(self) -> str:
        return f"<Link life {self.life}: {self.worker!r}>"
