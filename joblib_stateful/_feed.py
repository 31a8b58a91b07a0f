"""Feeding joblib's generator mode by hand: only in the consumer's thread, one batch at a time.

joblib by itself pulls the input in callback threads and keeps every result that was not taken yet, so its
memory grows with a slow consumer. Here its callbacks dispatch nothing: each batch is sent when the consumer has room for
it, and joblib is told of several as one task of its own. Its generator is asked only when a task is done with, so that
its 10 ms poll is never waited for.

A program that has not imported joblib does without it: its import, which with numpy's takes 0.15 s and 20 MB, was half of a
map of 100,000 tiny items, and a quarter of the memory of one with a slow consumer (`python -m benchmarks`, W1, W5).
"""

from __future__ import annotations

import sys
from collections import deque
from typing import TYPE_CHECKING, Any

from . import _locks
from ._interrupts import Wakeup, uninterrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._books import Books
    from ._core import Core
    from ._records import Call

# So many batches are one task for joblib, whose books, told of each, are a third of what a batch costs the consumer's
# thread (`python -m benchmarks`, W1, one in a message).
TASK_CALLS = 16


class Task:
    """What joblib knows of some batches that were sent one after the other."""

    __slots__ = ("callback", "n_calls", "n_open", "n_taken")

    def __init__(self) -> None:
        self.n_calls = self.n_taken = 0
        self.n_open = 0  # sent and not settled
        self.callback: Callable[[Task], None] | None = None  # joblib's, to be called when none is open


class Parts:
    """What was taken of a batch that is done with in parts."""

    __slots__ = ("_done", "_news", "_size", "_taken")

    def __init__(self, call: Call) -> None:
        self._size, self._news = call.size, call.news
        self._done: set[int] = set()  # and not taken
        self._taken: set[int] = set()

    def in_turn(self) -> list[int]:
        """Take those that are done, as far as all before them are."""
        self._look()
        first = place = len(self._taken)
        while place in self._done:
            place += 1
        return self._take(range(first, place))

    def any(self) -> list[int]:
        """Take those that are done."""
        self._look()
        return self._take(sorted(self._done))

    def rest(self) -> list[int]:
        """Take all others."""
        return [place for place in range(self._size) if place not in self._taken]

    @property
    def has_next(self) -> bool:
        """True if the first one that was not taken is done."""
        self._look()
        return len(self._taken) in self._done

    def _look(self) -> None:
        while self._news:  # others only add to it
            self._done.add(self._news.popleft())

    def _take(self, places: Sequence[int]) -> list[int]:
        self._taken.update(places)
        self._done.difference_update(places)
        return list(places)


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
    on_news : callable
        Called after either of them, and when a consumer that waits shall look again; in any thread, before that is woken.
    """

    def __init__(
        self,
        core: Core,
        note_back: Callable[[Call], None],
        note_part: Callable[[Call], None],
        on_news: Callable[[], None],
        *,
        ordered: bool,
    ) -> None:
        self._core, self._ordered = core, ordered
        self._note_back, self._note_part, self._on_news = note_back, note_part, on_news
        self._lock = _locks.Lock()
        self._wakeup = Wakeup()
        self.pending: dict[Call, None] = {}  # sent and not settled
        # To be taken: all that were sent, or if order does not matter those of which something is done.
        self._next: deque[Call] = deque()
        self._parts: dict[Call, Parts] = {}  # of those that were, or can be, taken in parts
        self._task = Task()
        self._task_of: dict[Call, Task] = {}  # of those that were not taken
        self._books: Books | None = None
        self._keeps_books = "joblib" in sys.modules

    def send(self, call: Call) -> None:
        """Have a batch run, and joblib know of it."""
        with uninterrupted():
            with self._lock:
                self.pending[call] = None
                if self._ordered:
                    self._next.append(call)
                task = self._task_of[call] = self._task
                task.n_calls += 1
                task.n_open += 1
            call.on_settled, call.on_part = self._settled, self._part
            try:
                self._core.accept(call)
            except RuntimeError as error:  # shut down in mid-map
                call.fatal = error
                self._settled(call)
            if task.n_calls == TASK_CALLS:
                self._task = Task()
                if self._keeps_books:
                    self._tell(task)

    def _tell(self, task: Task) -> None:
        if self._books is None:
            from ._books import Books

            self._books = Books(self._core.n_jobs, self._attach, ordered=self._ordered)
        self._books.note(task)

    def _attach(self, task: Task, callback: Callable[[Task], None]) -> None:
        with self._lock:
            task.callback = callback
            is_done = task.n_open == 0
        if is_done:
            callback(task)

    def _part(self, call: Call) -> None:
        with self._lock:
            self._note_part(call)
            if call.news and call in self.pending:  # or another thread has settled it meanwhile
                self._parts.setdefault(call, Parts(call))
                if not self._ordered and call not in self._next:
                    self._next.append(call)
        self.wake()

    def _settled(self, call: Call) -> None:
        with self._lock:
            task = self._task_of[call]
            task.n_open -= 1
            callback = task.callback if task.n_open == 0 else None
        if callback is not None:  # first: whoever takes the last batch of a task asks joblib for it
            callback(task)
        with self._lock:
            self._note_back(call)
            del self.pending[call]
            if not self._ordered and (call not in self._parts or call not in self._next):
                self._next.append(call)
        self.wake()

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> None:
        """Wait, in the consumer's thread, until something is so, or for so many seconds."""
        self._wakeup.wait_for(predicate, timeout)

    def wake(self) -> None:
        """Have a consumer that waits look again."""
        self._on_news()
        self._wakeup.wake()

    def sent(self) -> list[Call]:
        """Return the batches that were sent and are not settled."""
        with self._lock:
            return list(self.pending)

    @property
    def n_running(self) -> int:
        """Batches that were sent and are not settled."""
        return len(self.pending)

    @property
    def is_ready(self) -> bool:
        """True if there is something to be taken: the next batch is settled, or begun and its next item done."""
        if not self._next:
            return False
        call = self._next[0]
        if call not in self.pending or not self._ordered:
            return True
        return call in self._parts and self._parts[call].has_next

    def take(self) -> tuple[Call, list[int] | None]:
        """Take what is ready of the next batch: its items' places, or None for all of it."""
        with self._lock:
            call = self._next[0]
            is_settled, parts = call not in self.pending, self._parts.get(call)
            if is_settled or not self._ordered:
                self._next.popleft()
            if not is_settled:
                assert parts is not None  # noqa: S101 - it is ready, or was queued, for the sake of these
                return call, parts.in_turn() if self._ordered else parts.any()
            places = None if parts is None else self._parts.pop(call).rest()
            task = self._task_of.pop(call)
            task.n_taken += 1
        if task.n_taken == TASK_CALLS and self._books is not None:
            self._books.take()
        return call, places

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
