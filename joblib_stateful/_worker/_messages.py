"""What passes between the parent and a worker.

Goes out: `Build`, `Run`, `Finish`. Comes back: `Built`, `BuildFailed`, `Ran`, `Finished`; or `Refused`, which becomes one
of those. If nothing can come any more, a `Death` stands for it. Workers import this module, so
that its classes are those that take least time to make.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from .._transport._transport import Parcel

if TYPE_CHECKING:
    from ._surroundings import Surroundings

# How a call's values are handed to what is called: "item", "args", "kwargs", "batch" as in `stateful_map`;
# "call" runs (function, args, kwargs) triples.
Mode: TypeAlias = Literal["item", "args", "kwargs", "batch", "call"]
# What the first error of a call does to the rest of it.
AfterError: TypeAlias = Literal["go_on", "finish_running", "drop"]


# --- goes out to a worker -----------------------------------------------------------------------------


class Build(NamedTuple):
    """Build the object.

    Attributes
    ----------
    seq : int
        The message's number: greater than those of all earlier ones to the same worker.
    slot, n_jobs : int
        Which slot it is, and of how many.
    spec : object
        A packed ``(build, args, shared kwargs)`` and the slot's own kwargs, packed; or None, for no object.
    definitions : tuple
        What the spec refers to, and the worker doesn't have yet.
    surroundings : object
        What of the program is to be taken over first; None for nothing.
    depth : int
        How many workers are above this one, each started in the one before.
    n_threads : int or None
        How many threads it is meant to use; None: as many as its machine has CPUs.
    """

    seq: int
    slot: int
    n_jobs: int
    spec: Any
    definitions: tuple[Any, ...] = ()
    surroundings: Surroundings | None = None
    depth: int = 0
    n_threads: int | None = None


class Run(NamedTuple):
    """Run the values of a parcel, on the object or on the target function.

    Attributes
    ----------
    seq : int
        The message's number.
    mode : {"item", "args", "kwargs", "batch", "call"}
        How a value is handed to what is called; ``"batch"``: all of them in one list.
    target_id : str or None
        Which function is called; None for the object.
    target : object
        That function, packed, or None if the worker has it already.
    parcel : object
        The values, packed; it has ``n_values`` of them.
    after_error : {"go_on", "finish_running", "drop"}
        What the first error does to the rest.
    timed : bool
        Somebody wants to know when each item began.
    budget : float or None
        Seconds after which what has not begun goes back to the parent.
    definitions : tuple
        What target and parcel refer to, and the worker doesn't have yet.
    n_jobs : int or None
        Slots of the call that it belongs to; None: as before.
    surroundings : object
        What of the program is to be taken over first; None if the worker has it already.
    isolate : bool
        A call with several items that raises is repeated in halves, until those are alone that make it raise.
    max_memory : int or None
        Bytes that the worker's process may hold; once it holds more, what has not begun goes back to the parent.
    item_timeout : float or None
        Seconds after which the worker ends an item itself, if it can: one that is awaited in its event loop.
    lane : int
        Which of the places for messages of a worker that takes several at a time; set by its engine.
    is_async : bool
        The function that is called is known to be async.
    after : int
        The number of the message that is to be begun just before this one, which may count on what comes with it; 0 where
        messages come one after the other anyway.
    """

    seq: int
    mode: Mode
    target_id: str | None
    target: Any
    parcel: Parcel
    after_error: AfterError
    timed: bool = True
    budget: float | None = None
    definitions: tuple[Any, ...] = ()
    n_jobs: int | None = None
    surroundings: Surroundings | None = None
    isolate: bool = True
    max_memory: int | None = None
    item_timeout: float | None = None
    lane: int = 0
    is_async: bool = False
    after: int = 0


class Finish(NamedTuple):
    """Close the object; no further message follows.

    Attributes
    ----------
    seq : int
        The message's number.
    """

    seq: int


# --- comes back from a worker -------------------------------------------------------------------------


class Failure(NamedTuple):
    """An exception, as far as it could be packed; the texts serve when it can't be rebuilt.

    Attributes
    ----------
    packed : object
        The exception; None if it could not be packed.
    type_name, message, traceback : str
        What is known of it in any case.
    what : str
        What could not be unpacked or packed: ``"item"``, ``"result"``, ``"function"``, ``"spec"`` (of a worker) or
        ``"surroundings"``; ``"time"`` if the item was ended because it was over its time; empty if the user's code has raised
        it.
    """

    packed: Any
    type_name: str
    message: str
    traceback: str
    what: str = ""


class Built(NamedTuple):
    """The object stands.

    Attributes
    ----------
    seq : int
        The number of the `Build`.
    pid : int
        The worker's process.
    seconds : float
        How long it took.
    is_async : bool
        Its calls are awaited, so that the worker itself can end them.
    """

    seq: int
    pid: int
    seconds: float
    is_async: bool = False


class BuildFailed(NamedTuple):
    """The constructor raised, or (without a pid) the engine had no place for it.

    Attributes
    ----------
    seq : int
        The number of the `Build`.
    pid : int or None
        The worker's process.
    failure : Failure
        What it raised.
    definitions : tuple
        What the failure refers to, and the parent doesn't have yet.
    """

    seq: int
    pid: int | None
    failure: Failure
    definitions: tuple[Any, ...] = ()


class Ran(NamedTuple):
    """Items ``0 .. n_run - 1`` of the message were run.

    Attributes
    ----------
    seq : int
        The number of the `Run`.
    n_run : int
        How many items were run.
    values : object
        A parcel of what those gave that did not fail, in order.
    failures : dict of int to Failure
        Those that did, by their place in the message.
    seconds : float
        How long they took.
    definitions : tuple
        What values and failures refer to, and the parent doesn't have yet.
    was_refused : bool
        There was no memory for all of it; none of it was run.
    was_lost : bool
        There was no memory for the answer, and this stands for it.
    rows : tuple of int
        For each value how many results it holds, one in each of its rows; 0: it is one result itself. Empty: all are.
    n_calls : int
        In how many calls the items were run, where they could be run in one.
    n_fit : int
        If a call ran out of memory: how many items the largest one had that did not; else 0.
    n_held : int
        How many bytes the worker's process holds, if that is more than it may; else 0.
    """

    seq: int
    n_run: int
    values: Parcel
    failures: dict[int, Failure]
    seconds: float
    definitions: tuple[Any, ...] = ()
    was_refused: bool = False
    was_lost: bool = False
    rows: tuple[int, ...] = ()
    n_calls: int = 1
    n_fit: int = 0
    n_held: int = 0


class Finished(NamedTuple):
    """The object is closed.

    Attributes
    ----------
    seq : int
        The number of the `Finish`.
    failure : Failure or None
        What its ``close()`` raised.
    """

    seq: int
    failure: Failure | None


class Refused(NamedTuple):
    """There was no memory to take a message in, so that not even its number is known.

    Attributes
    ----------
    pid : int
        The worker's process.
    reason : str
        What there was no memory for.
    """

    pid: int
    reason: str


class Death(NamedTuple):
    """How a worker ended without being asked to: what a message is answered with for which no answer can come.

    Attributes
    ----------
    pid : int or None
        Its process.
    exitcode : int or None
        How that ended, negative for a signal; None if it isn't known.
    started : bool
        It had begun the message it was sent.
    place : int or None
        Which item of it ran; None: none, its work was done and the reply was under way.
    n_finished : int
        How many items were behind it.
    n_together : int
        How many items ran at once, from that place on.
    reason : str
        What else is known.
    """

    pid: int | None = None
    exitcode: int | None = None
    started: bool = False
    place: int | None = None
    n_finished: int = 0
    reason: str = ""
    n_together: int = 1


Message: TypeAlias = Build | Run | Finish
Reply: TypeAlias = Built | BuildFailed | Ran | Finished


#: Of an item that was over its time, and was ended by its worker.
LATE = Failure(None, "TimeoutError", "", "", "time")

NO_ROOM = "the worker has no memory to take it in"


def answer_to(message: Message, refused: Refused) -> Reply:
    """Return what it means for a message that it was refused."""
    failure = Failure(None, "MemoryError", refused.reason, f"MemoryError: {refused.reason}", "item")
    if isinstance(message, Build):
        return BuildFailed(message.seq, refused.pid, failure)
    if isinstance(message, Finish):
        return Finished(message.seq, failure)
    if message.parcel.n_values == 1:
        return Ran(message.seq, 1, NOTHING, {0: failure}, 0.0, was_refused=True)
    return Ran(message.seq, 0, NOTHING, {}, 0.0, was_refused=True)  # one by one, each has more room


#: No values.
NOTHING = Parcel((), 0, joint=False, nbytes=0)


class Phase(enum.IntEnum):
    """What a worker does at the moment, as its record says."""

    IDLE = 0
    BUILDING = 1
    RUNNING = 2
    REPLYING = 3
    CLOSING = 4
