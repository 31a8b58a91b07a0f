"""Feeding joblib's generator mode by hand: only in the consumer's thread, one batch at a time.

joblib by itself pulls the input in callback threads and keeps every result that was not taken yet, so its
memory grows with a slow consumer. Here its callbacks dispatch nothing: each batch is handed over, as one joblib
task, when the consumer has room for it, and joblib's generator is asked only when the next result is there, so
that its 10 ms poll is never waited for. A batch is on its way before joblib hears of it, and the first one before
joblib is even imported: a worker starts meanwhile.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._books import Books
    from ._core import Core
    from ._records import Call


class Feed:
    """Batches on their way through joblib.

    Parameters
    ----------
    core : Core
        What runs them.
    ordered : bool
        Take them back in the order in which they were sent, or as they are settled.
    note_back : callable
        Called with each batch as it is settled, in any thread, one at a time and before waiters are woken.
    note_part : callable
        Likewise with a batch of which some items are finished.
    """

    def __init__(
        self, core: Core, note_back: Callable[[Call], None], note_part: Callable[[Call], None], *, ordered: bool
    ) -> None:
        self._core, self._ordered, self._note_back, self._note_part = core, ordered, note_back, note_part
        self.changed = threading.Condition()
        self.has_news = False  # a batch was settled since somebody has set this to False
        self.pending: dict[Call, None] = {}  # sent and not settled, or not yet in joblib's books
        self._order: deque[Call] = deque()  # sent and not taken; kept only if that is the order of taking
        self._n_back = 0  # settled and not taken
        self._books: Books | None = None
        # What joblib wants to be told of a batch; None: it was settled before joblib heard of it.
        self._callbacks: dict[Call, Callable[[Call], None] | None] = {}

    def send(self, call: Call) -> None:
        """Have a batch run, and joblib know of it."""
        with self._core.protected():
            with self.changed:
                self.pending[call] = None
                if self._ordered:
                    self._order.append(call)
            call.on_settled, call.on_part = self._settled, self._part
            try:
                self._core.accept(call)
            except RuntimeError as error:  # shut down in mid-map
                call.fatal = error
                self._settled(call)
            if self._books is None:
                from ._books import Books

                self._books = Books(self._core.n_jobs, self._attach, ordered=self._ordered)
            self._books.note(call)

    def _part(self, call: Call) -> None:
        with self.changed:
            self._note_part(call)
            self.has_news = True
            self.changed.notify_all()

    def _settled(self, call: Call) -> None:
        with self.changed:
            callback = self._callbacks.pop(call, None)
            if callback is None:
                self._callbacks[call] = None
                return
        self._back(call, callback)

    def _attach(self, call: Call, callback: Callable[[Call], None]) -> None:
        with self.changed:
            if call not in self._callbacks:
                self._callbacks[call] = callback
                return
            del self._callbacks[call]
        self._back(call, callback)

    def _back(self, call: Call, callback: Callable[[Call], None]) -> None:
        callback(call)
        with self.changed:
            self._note_back(call)
            del self.pending[call]
            self._n_back += 1
            self.has_news = True
            self.changed.notify_all()

    def sent(self) -> list[Call]:
        """Return the batches that were sent and are not settled."""
        with self.changed:
            return list(self.pending)

    @property
    def n_running(self) -> int:
        """Batches that were sent and are not settled."""
        return len(self.pending)

    @property
    def is_ready(self) -> bool:
        """True if the next batch to be taken is settled."""
        return self._order[0] not in self.pending if self._order else self._n_back > 0

    def take(self) -> Call:
        """Take the next batch; it is ready."""
        assert self._books is not None  # noqa: S101 - it is in there
        call = self._books.take()
        with self.changed:
            self._n_back -= 1
            if self._ordered:
                self._order.popleft()
        return call

    def end(self) -> None:
        """Let joblib's call end; everything that was sent is settled, or about to be."""
        books, self._books = self._books, None
        if books is not None:
            books.end()

    def abort(self) -> None:
        """End joblib's call at once, whatever state an interrupt left it in; only in the consumer's thread."""
        books, self._books = self._books, None
        if books is not None:
            books.abort()
