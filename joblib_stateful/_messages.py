"""What passes between the parent and a worker.

Goes out: `Build`, `Run`, `Finish`. Comes back: `Built`, `BuildFailed`, `Ran`, `Finished`; or `Refused`, which becomes one
of those. Workers import this module, so
that its classes are those that take least time to make.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from ._transport import Parcel

if TYPE_CHECKING:
    from ._surroundings import Surroundings

# How a call's values are handed to what is called: "item", "args", "kwargs" as in `stateful_map`;
# "call" runs (function, args, kwargs) triples.
Mode: TypeAlias = Literal["item", "args", "kwargs", "call"]
# What the first error of a call does to the rest of it.
AfterError: TypeAlias = Literal["go_on", "finish_running", "drop"]


# --- goes out to a worker -----------------------------------------------------------------------------


class Build(NamedTuple):
    """Build the object. ``spec`` is a packed ``(build, args, shared kwargs)`` and the slot's own, packed, or None."""

    seq: int
    slot: int
    n_jobs: int
    spec: Any
    definitions: tuple[Any, ...] = ()  # what the spec refers to, and the worker doesn't have yet
    surroundings: Surroundings | None = None
    depth: int = 0  # how many workers are above this one, each started in the one before


class Run(NamedTuple):
    """Run the values of a parcel, on the object or on the target function."""

    seq: int
    mode: Mode
    target_id: str | None
    target: Any  # the packed function, or None if the worker has it already
    parcel: Parcel
    after_error: AfterError
    timed: bool = True  # somebody wants to know when each item began
    budget: float | None = None  # seconds after which what has not begun goes back to the parent
    definitions: tuple[Any, ...] = ()  # what target and parcel refer to, and the worker doesn't have yet
    n_jobs: int | None = None  # of the call that it belongs to; None: as before
    surroundings: Surroundings | None = None  # to be taken over first; None if the worker has them already


class Finish(NamedTuple):
    """Close the object; no further message follows."""

    seq: int


# --- comes back from a worker -------------------------------------------------------------------------


class Failure(NamedTuple):
    """An exception, as far as it could be packed; the texts serve when it can't be rebuilt."""

    packed: Any
    type_name: str
    message: str
    traceback: str
    # What could not be unpacked or packed: "item", "result", "function" or "spec" (of a worker); or "surroundings".
    what: str = ""


class Built(NamedTuple):
    """The object stands."""

    seq: int
    pid: int
    seconds: float


class BuildFailed(NamedTuple):
    """The constructor raised, or (without a pid) the engine had no place for it."""

    seq: int
    pid: int | None
    failure: Failure
    definitions: tuple[Any, ...] = ()


class Ran(NamedTuple):
    """Items ``0 .. n_run - 1`` of the message were run; ``values`` has those that did not fail, in order."""

    seq: int
    n_run: int
    values: Parcel
    failures: dict[int, Failure]
    seconds: float
    definitions: tuple[Any, ...] = ()  # what values and failures refer to, and the parent doesn't have yet
    was_refused: bool = False  # there was no memory for all of it; none of it was run
    was_lost: bool = False  # there was no memory for the answer, and this stands for it


class Finished(NamedTuple):
    """The object is closed; ``failure`` if its ``close()`` raised."""

    seq: int
    failure: Failure | None


class Refused(NamedTuple):
    """There was no memory to take a message in, so that not even its number is known."""

    pid: int
    reason: str


Message: TypeAlias = Build | Run | Finish
Reply: TypeAlias = Built | BuildFailed | Ran | Finished


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
