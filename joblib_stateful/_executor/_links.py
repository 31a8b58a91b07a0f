"""What a slot's worker has been told, and so need not be told again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._transport._definitions import Peer
from .._worker._messages import Build, Run

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .._scheduling._requests import Request
    from .._transport._definitions import Definition
    from .._transport._transport import Parcel
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
    """

    def __init__(self, life: int, worker: EngineWorker) -> None:
        self.life, self.worker = life, worker
        self.peer = Peer(is_parent=True)
        #: When the latest message was sent.
        self.sent_at = 0.0
        self._target: str | None = None  # the function that it has
        self._surroundings: Surroundings | None = None  # that it has taken over

    def build(self, message: Build, needs: Iterable[Definition], surroundings: Surroundings | None) -> Build:
        """Return a first message with what the worker must know before."""
        self._surroundings = surroundings
        return message._replace(definitions=self.peer.take(needs), surroundings=surroundings)

    def run(self, seq: int, request: Request, parcel: Parcel, width: int) -> Run:
        """Return the message that has items run, with what the worker does not know yet."""
        target_id, packed, needs = request.target or (None, None, ())
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
        )

    def note(self, reply: Ran) -> None:
        """Learn from an answer what the worker does not know after all."""
        if reply.was_refused or any(
            failure.what in ("function", "surroundings") for failure in reply.failures.values()
        ):
            self._target = self._surroundings = None
        if reply.was_refused:  # with all that came with it
            self.peer.start_anew()
        if reply.was_lost:
            self.peer.has_lost = True

    def __repr__(self) -> str:
        return f"<Link life {self.life}: {self.worker!r}>"
