"""Whether what a worker answers makes sense.

Nothing else is believed: compiled code in a worker may write over its memory, and what is sent from there is anything. A
value that was damaged is its item's error when it can't be loaded; here it is about what the parent counts by.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from .._transport._transport import Parcel
from .._worker._messages import Build, BuildFailed, Built, Failure, Finished, Ran, Refused, Run

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .._worker._messages import Message


def fault_in(message: Message, reply: Any, kept: Any = ()) -> str:
    """Say why something is no answer to a message; "" if it is one.

    Parameters
    ----------
    message : Build, Run or Finish
        What was sent.
    reply : object
        What came.
    kept : object
        What came as the numbers of the segments that are still looked into.
    """
    if type(reply) is Refused:
        return "" if type(reply.pid) is int and type(reply.reason) is str else "its fields are of other types"
    kinds = (Ran,) if isinstance(message, Run) else (Built, BuildFailed) if isinstance(message, Build) else (Finished,)
    if type(reply) not in kinds:
        return f"it is a {type(reply).__name__} in answer to a {type(message).__name__}"
    if type(reply.seq) is not int or reply.seq != message.seq:
        return f"it is for message {reply.seq!r:.50}, and {message.seq} was sent"
    if type(kept) not in (list, tuple) or (kept and not _are(int, kept)):
        return "it names no segments"
    if isinstance(reply, Ran):
        return _fault_in_run(message.parcel.n_values if isinstance(message, Run) else 0, reply)
    if isinstance(reply, Built):
        is_sound = type(reply.pid) is int and _is_time(reply.seconds) and type(reply.is_async) is bool
    elif isinstance(reply, BuildFailed):
        is_sound = (reply.pid is None or type(reply.pid) is int) and _is_failure(reply.failure)
        is_sound = is_sound and _are_definitions(reply.definitions)
    else:
        is_sound = reply.failure is None or _is_failure(reply.failure)
    return "" if is_sound else "its fields are of other types"


def _fault_in_run(n_items: int, reply: Ran) -> str:
    n_run, values, failures = reply.n_run, reply.values, reply.failures
    if type(n_run) is not int or not min(0 if reply.was_refused is True else 1, n_items) <= n_run <= n_items:
        return f"{n_run!r:.50} items were run of {n_items}"
    is_sound = type(failures) is dict and type(values) is Parcel and _is_time(reply.seconds)
    is_sound = is_sound and type(reply.n_calls) is int and reply.n_calls >= 0
    is_sound = is_sound and type(reply.n_fit) is int and 0 <= reply.n_fit <= n_items
    if not is_sound or (reply.definitions and not _are_definitions(reply.definitions)):
        return "its fields are of other types"
    if failures and not (
        _are(int, failures)
        and all(0 <= place < n_run for place in failures)
        and all(map(_is_failure, failures.values()))
    ):
        return "its failures are those of other items"
    n_values = n_run - len(failures)
    if type(values.frames) is not tuple or type(values.n_values) is not int or type(values.nbytes) is not int:
        return "its values are no parcel"
    n_wanted = _n_wanted(reply.rows, n_values)
    n_frames = 1 if values.joint is True else n_wanted
    if values.n_values != n_wanted or len(values.frames) != n_frames or values.nbytes < 0:
        return f"it has {values.n_values!r:.50} values for {n_values} items"
    return ""


def _n_wanted(rows: Any, n_results: int) -> int:
    """Return how many values so many results make, some of which may be rows of one; -1 if that can't be."""
    if type(rows) is not tuple:
        return -1
    if not rows:
        return n_results
    if not _are(int, rows):
        return -1
    return len(rows) if min(rows) >= 0 and sum(n_rows or 1 for n_rows in rows) == n_results else -1


def _are(kind: type, values: Iterable[Any]) -> bool:
    return all(type(value) is kind for value in values)


def _is_time(seconds: Any) -> bool:
    return type(seconds) is float and 0.0 <= seconds < math.inf


def _are_definitions(definitions: Any) -> bool:
    return type(definitions) is tuple and all(
        one is None or type(one) is str or (type(one) is tuple and len(one) == 3 and type(one[1]) is int)  # noqa: PLR2004 - key, version, frame
        for one in definitions
    )


def _is_failure(failure: Any) -> bool:
    return type(failure) is Failure and _are(str, failure[1:5])
