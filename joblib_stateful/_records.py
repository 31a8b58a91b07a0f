"""The records that travel between the rooms of the parent; frozen where nobody needs to change them.

`WorkerSpec`, `Limits`, `Group` and `Call` go down to the schedule, `Report` comes up to it. What goes to workers and comes
back is in `_messages`, what users are given in `_public`.

Each program makes these classes when it starts: a dataclass takes a millisecond, a named tuple a tenth of that, a plain
class a hundredth.
"""

from __future__ import annotations

import sys
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ._definitions import Definition
    from ._messages import AfterError, Mode
    from ._surroundings import Surroundings
    from ._transport import Parcel


class Limits(NamedTuple):
    """How long and how often; see the arguments of `stateful_map` of the same names."""

    item_timeout: float | None = None
    init_timeout: float | None = None
    retries: int = 0
    max_restarts: int = 3


NO_LIMITS = Limits()


class WorkerSpec(NamedTuple):
    """What to build in each slot: ``build(*args, **kwargs[slot])``; nothing if ``build`` is None."""

    build: Callable[..., Any] | None
    args: tuple[Any, ...]
    shared_kwargs: Mapping[str, Any]
    worker_kwargs: tuple[Mapping[str, Any], ...] | None

    def kwargs(self, slot: int) -> dict[str, Any]:
        """Return the kwargs of one slot."""
        own = {} if self.worker_kwargs is None else self.worker_kwargs[slot]
        return {**self.shared_kwargs, **own}

    def of_first(self, n_slots: int) -> WorkerSpec:
        """Return the spec of the first so many slots."""
        return self if self.worker_kwargs is None else self._replace(worker_kwargs=self.worker_kwargs[:n_slots])


class Target(NamedTuple):
    """A function that is called with items, packed: it goes to each worker once, with what it refers to."""

    id: str
    packed: Any
    needs: tuple[Definition, ...] = ()


class Group:
    """All calls of one map, or of one `joblib.Parallel` call: what fails and is dropped together.

    Parameters
    ----------
    on_error : callable, optional
        Called once, outside all locks, when something ends the whole group.
    n_slots : int, optional
        It runs on the first so many slots only. By default on all.
    """

    error: BaseException | None = None
    stopping = False  # an item failed, and nothing more of the group shall start
    sharing = False  # no more calls can come at present: idle slots shall have a share of those that run

    def __init__(self, on_error: Callable[[BaseException], None] | None = None, n_slots: int = sys.maxsize) -> None:
        self.on_error, self.n_slots = on_error, n_slots


class Call:
    """Work accepted from one caller, for one message if all goes well: one or more items.

    ``values`` has one entry per item; ``errors`` and ``dropped`` say which of them don't count.
    """

    on_settled: Callable[[Call], None] | None = None
    on_part: Callable[[Call], None] | None = None  # some of its items, but not all, are done
    surroundings: Surroundings | None = None  # that its worker shall take over before
    fatal: BaseException | None = None
    seconds = 0.0  # spent in the worker, all attempts together
    result_bytes = 0
    n_counted = 0  # of those that are finished, by whoever shows progress
    claimed = False
    settled = False
    abandoned = False
    stopping = False  # what has not started of it shall not run

    def __init__(
        self,
        size: int,
        group: Group,
        limits: Limits = NO_LIMITS,
        *,
        after_error: AfterError = "go_on",
        budget: float | None = None,
        first: int | None = None,
        mode: Mode = "call",
        target: Target | None = None,
        parcel: Parcel | None = None,
        claim: Callable[[], bool] | None = None,
        unsent: frozenset[int] = frozenset(),
    ) -> None:
        self.size, self.group, self.limits, self.after_error, self.mode = size, group, limits, after_error, mode
        self.budget = budget  # seconds that a message may take before what is left of it is shared out
        self.first = first  # index in the input of the first item; None if there is no such thing
        self.target = target  # None: the worker's object
        self.parcel = parcel
        self.claim = claim  # False: the caller has cancelled it
        self.unsent = unsent  # positions that could not be packed
        self.values: list[Any] = [None] * size
        self.errors: dict[int, BaseException] = {}
        self.dropped: set[int] = set()
        self.news: deque[int] = deque()  # items that are done before the others, for whoever can use them
        self.missing = size

    @property
    def n_finished(self) -> int:
        """How many items have a value or an error."""
        return self.size - self.missing - len(self.dropped)

    def index(self, position: int) -> int | None:
        """Return the index in the input of the item at a position, if there is an input."""
        return None if self.first is None else self.first + position

    def take(self, positions: Sequence[int]) -> list[Any]:
        """Return the values of some items, and keep them no longer."""
        values = [self.values[position] for position in positions]
        for position in positions:
            self.values[position] = None
        return values

    def drop(self, positions: Sequence[int]) -> None:
        """Mark items as not run, because nobody wants them any more."""
        self.dropped.update(positions)
        self.missing -= len(positions)

    def fail(self, position: int, error: BaseException) -> None:
        """Mark an item as failed."""
        self.errors[position] = error
        self.news.append(position)
        self.missing -= 1


class Report(NamedTuple):
    """What a worker's reply says of a job: ``values`` and ``errors`` by place in the job."""

    n_run: int
    values: list[Any]
    errors: dict[int, BaseException]
    seconds: float = 0.0
    result_bytes: int = 0
    was_refused: bool = False  # there was no room for all of these items at once
