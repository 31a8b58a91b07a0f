"""The records that travel between the rooms of the parent; nobody changes them but for `Group`.

A `Request` goes down to the scheduler, and what becomes of its items comes back as `Outcome`, each item in one of them.
`Report` and `Death` come up to the scheduler from a worker. What goes to workers and comes back is in `_messages`, what users
are given in `_public`.

Each program makes these classes when it starts: a dataclass takes a millisecond, a named tuple a tenth of that, a plain
class a hundredth.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .._transport._definitions import Definition
    from .._transport._transport import Parcel
    from .._worker._messages import AfterError, Mode
    from .._worker._surroundings import Surroundings


class Limits(NamedTuple):
    """How long and how often; see the arguments of `stateful_map` of the same names."""

    item_timeout: float | None = None
    init_timeout: float | None = None
    retries: int = 0
    max_restarts: int = 3
    max_worker_memory: int | None = None


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
    is_async: bool = False


class Group:
    """All requests of one map, or of one `joblib.Parallel` call: what fails and is dropped together.

    Parameters
    ----------
    on_error : callable, optional
        Called once, outside all locks, when something ends the whole group.
    n_slots : int, optional
        It runs on the first so many slots only. By default on all.
    watch : callable, optional
        Called with a `Record` of each message that was sent for it, in any thread.
    """

    error: BaseException | None = None
    stopping = False  # an item failed, and nothing more of the group shall start
    sharing = False  # no more requests can come at present: idle slots shall have a share of those that run
    #: Of a group whose items must run in certain slots, and don't stop the others if they can't: why a slot is of no use.
    broken: dict[int, BaseException] | None = None

    def __init__(
        self,
        on_error: Callable[[BaseException], None] | None = None,
        n_slots: int = sys.maxsize,
        watch: Callable[[Record], None] | None = None,
    ) -> None:
        self.on_error, self.n_slots, self.watch = on_error, n_slots, watch

    def __repr__(self) -> str:
        state = f" failed: {self.error!r}" if self.error is not None else " stopping" if self.stopping else ""
        return f"<Group {id(self):#x}{state}>"


class Request:
    """Work from one caller, for one message if all goes well: one or more items. Never changed.

    Parameters
    ----------
    size : int
        Number of items.
    group : Group
        What it is a part of.
    deliver : callable
        Called with each `Outcome`, outside all locks, in any thread.
    limits : Limits
        How long and how often.
    parcel : Parcel, optional
        The items, packed, but for those in ``faults``.
    faults : dict of int to exception, optional
        Items that could not be packed, by position.
    indices : sequence of int, optional
        Where in the input the items are, or which call it is; None if there is no such thing.
    only : int, optional
        The slot that it must run in. By default in any.
    is_urgent : bool, default False
        Before what else waits for that slot only.
    mode : str
        How the worker calls with an item.
    target : Target, optional
        What is called; None: the worker's object.
    surroundings : Surroundings, optional
        What its worker takes over before.
    after_error : str
        What an item's error does to the others of the group.
    budget : float, optional
        Seconds that a message may take before what is left of it is shared out.
    isolate : bool, default True
        A call with several items that raises is repeated in halves.
    claim : callable, optional
        Asked just before the first item is sent; False: the caller has cancelled it.
    is_async : bool, default False
        The function that the item brings is async.
    """

    __slots__ = (
        "after_error",
        "budget",
        "claim",
        "deliver",
        "faults",
        "group",
        "indices",
        "is_async",
        "is_urgent",
        "isolate",
        "limits",
        "mode",
        "only",
        "parcel",
        "size",
        "surroundings",
        "target",
    )

    def __init__(
        self,
        size: int,
        group: Group,
        deliver: Callable[[Outcome], object],
        limits: Limits = NO_LIMITS,
        *,
        parcel: Parcel | None = None,
        faults: Mapping[int, BaseException] | None = None,
        mode: Mode = "call",
        target: Target | None = None,
        surroundings: Surroundings | None = None,
        after_error: AfterError = "go_on",
        budget: float | None = None,
        isolate: bool = True,
        claim: Callable[[], bool] | None = None,
        indices: Sequence[int] | None = None,
        only: int | None = None,
        is_urgent: bool = False,
        is_async: bool = False,
    ) -> None:
        self.size, self.group, self.deliver, self.limits = size, group, deliver, limits
        self.parcel, self.faults, self.mode, self.target = parcel, faults or {}, mode, target
        self.surroundings, self.after_error, self.budget, self.claim = surroundings, after_error, budget, claim
        self.isolate, self.indices, self.only, self.is_urgent = isolate, indices, only, is_urgent
        self.is_async = is_async

    @property
    def is_one_call(self) -> bool:
        """True if the worker is called with all of its items at once."""
        return self.mode == "batch"

    def index(self, position: int) -> int | None:
        """Return the index in the input of the item at a position, if there is an input."""
        return None if self.indices is None else self.indices[position]

    def emptied(self) -> Request:
        """Return a request that says the same, without what is needed only to run it."""
        return Request(
            self.size,
            self.group,
            self.deliver,
            self.limits,
            indices=self.indices,
            only=self.only,
            mode=self.mode,
            after_error=self.after_error,
            is_async=self.is_async,
        )

    def __repr__(self) -> str:
        return f"<Request {self.size} items{'' if self.indices is None else f' from {self.indices[0]}'}>"


class Outcome(NamedTuple):
    """What became of some items of a request: ``values`` in the order of ``positions``, ``errors`` by position."""

    positions: Sequence[int]
    values: list[Any]  # None for an item with an error
    errors: Mapping[int, BaseException] = {}
    is_last: bool = True  # nothing more comes for this request
    is_dropped: bool = False  # nobody wants them any more, so they were not run
    fatal: BaseException | None = None  # that is why they were not run: something has ended the whole group
    n_run: int = 0  # how many of them a worker has run
    seconds: float = 0.0  # that it took for that
    result_bytes: int = 0
    n_calls: int = 1  # in which they were run, where it could be one
    n_fit: int = 0  # if a call ran out of memory: items of the largest one that did not


class Report(NamedTuple):
    """What a worker's reply says of a job: ``values`` and ``errors`` by place in the job."""

    n_run: int
    values: list[Any]
    errors: dict[int, BaseException]
    seconds: float = 0.0
    result_bytes: int = 0
    was_refused: bool = False  # there was no room for all of these items at once
    is_full: bool = False  # its worker holds more memory than it may
    n_calls: int = 1
    n_fit: int = 0
    late: Sequence[int] = ()  # places of items that were over their time, and were ended by the worker itself
    slot: int | None = None  # where that was


class Record(NamedTuple):
    """What one message has taken, by the clock of `time.perf_counter`; for whoever wants to know where the time went."""

    what: str  # "built", "ran"; "building" and "running" for what is not over; or else what went wrong
    slot: int
    pid: int | None
    sent: float
    received: float
    seconds: float = 0.0  # in the worker
    first: int | None = None  # index in the input of the first item
    n_items: int = 0
    n_run: int = 0
    bytes_back: int = 0
    detail: str = ""
    life: int = 0  # which worker of its slot it was
    last: int | None = None  # index of the last item, between which and the first there may be others
