"""A batch of a map, and the inbox in which any thread leaves what becomes of it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from .._process._interrupts import Wakeup
from .._scheduling._requests import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .._executor._pool import WorkerPool
    from .._scheduling._requests import Request


class Inbox:
    """Where other threads leave what concerns a map; whatever they leave wakes its consumer."""

    def __init__(self) -> None:
        #: Outcomes, each with its batch; or what ends the map; or None, to have a look.
        self.news: deque[tuple[Batch, Outcome] | BaseException | None] = deque()
        self._wakeup = Wakeup()
        self._is_closed = False

    def put(self, news: tuple[Batch, Outcome] | BaseException | None = None) -> None:
        """Leave something."""
        if not self._is_closed:
            self.news.append(news)
        self._wakeup.wake()

    def close(self) -> None:
        """Take nothing more, and drop what is there; its batches refer to this, and would live until garbage is collected."""
        self._is_closed = True
        self.news.clear()

    def wait(self, timeout: float | None) -> None:
        """Wait until there is something, or for so many seconds."""
        self._wakeup.wait_for(lambda: self.news, timeout)

    def __repr__(self) -> str:
        return f"<Inbox {len(self.news)} news>"


class Batch:
    """Consecutive items that go out together: one task of joblib's.

    For joblib it is done when something of it has come back, which is all of it unless it was cut short or lost with a worker.

    Parameters
    ----------
    first : int
        Index in the input of its first item.
    size : int
        Number of its items.
    inbox : Inbox
        Where its outcomes are left.
    """

    __slots__ = (
        "_callback",
        "_found",
        "_inbox",
        "_n_taken",
        "first",
        "has_begun",
        "n_calls",
        "n_known",
        "n_open",
        "n_run",
        "outcomes",
        "requests",
        "result_bytes",
        "seconds",
        "size",
    )

    def __init__(self, first: int, size: int, inbox: Inbox) -> None:
        self.first, self.size, self._inbox = first, size, inbox
        # Until it is sent: one, or one for each slot that items of it must run in, or for each call with some of them.
        self.requests: list[Request] = []
        # Messages that workers can be at, and those of them that are not known to be over.
        self.n_calls = self.n_open = 1
        self.outcomes: deque[Outcome] = deque()  # that nobody has taken
        self._callback: list[Callable[[Batch], None]] = []  # joblib's, until it is called
        self._n_taken = 0
        self._found: dict[
            int, tuple[Outcome, int]
        ] = {}  # what came out of turn: by position its outcome, and place in it
        # What the consumer has been told so far:
        self.has_begun = False
        self.n_known = 0  # items of which it knows what became of them
        self.n_run, self.seconds, self.result_bytes = 0, 0.0, 0

    def send(self, pool: WorkerPool, callback: Callable[[Batch], None]) -> None:
        """Have it run."""
        requests, self.requests = self.requests, []
        self._callback.append(callback)
        for request in requests:
            try:
                pool.accept(request)
            except RuntimeError as error:  # shut down in mid-map
                request.deliver(Outcome(range(request.size), [], is_dropped=True, fatal=error))

    def deliver_some(self, positions: Sequence[int], outcome: Outcome) -> None:
        """Note what became of some items of a request that has those at some positions of this; in any thread."""
        self.deliver(
            outcome._replace(
                positions=[positions[position] for position in outcome.positions],
                errors={positions[position]: error for position, error in outcome.errors.items()},
            )
        )

    def deliver(self, outcome: Outcome) -> None:
        """Note what became of some items; in any thread."""
        self.outcomes.append(outcome)
        try:
            callback = self._callback.pop()
        except IndexError:  # joblib has been told
            pass
        else:
            callback(self)
        self._inbox.put((self, outcome))  # last: who finds it there asks joblib for the batch

    @property
    def is_next_there(self) -> bool:
        """True if something is known of the first item that was not taken."""
        while self.outcomes:
            outcome = self.outcomes.popleft()
            for place, position in enumerate(outcome.positions[:1] if self._is_whole(outcome) else outcome.positions):
                self._found[position] = outcome, place
        return self._n_taken in self._found

    def _is_whole(self, outcome: Outcome) -> bool:
        return len(outcome.positions) == self.size

    def take(self) -> Outcome:
        """Take what there is of the first items that were not taken."""
        outcome, _ = self._found[self._n_taken]
        if self._is_whole(outcome):
            self._found.clear()  # the consumer's alone
            self._n_taken = self.size
            return outcome
        values, errors, start = [], {}, self._n_taken
        while self._n_taken in self._found:
            found, place = self._found[self._n_taken]
            if found.is_dropped is not outcome.is_dropped:
                break
            if not found.is_dropped:
                values.append(found.values[place])
                found.values[place] = None  # the consumer's alone
            if self._n_taken in found.errors:
                errors[self._n_taken] = found.errors[self._n_taken]
            del self._found[self._n_taken]
            self._n_taken += 1
        return outcome._replace(positions=range(start, self._n_taken), values=values, errors=errors)

    @property
    def is_known(self) -> bool:
        """True if the consumer has been told what became of all of it.

        Not when it has been told of the last outcome: another thread may still be about to leave an earlier one.
        """
        return self.n_known == self.size

    @property
    def is_taken(self) -> bool:
        """True if all of it was taken in turn."""
        return self._n_taken == self.size

    def __repr__(self) -> str:
        return f"<Batch {self.first} to {self.first + self.size - 1}, {len(self.outcomes)} outcomes to take>"
