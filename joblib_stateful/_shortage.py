"""What a worker answers when it has no memory for its answer.

All of it was made before, or takes next to nothing: where there is no room for a copy of a result, there may be none for
a traceback either.
"""

from __future__ import annotations

from ._messages import NOTHING, Failure, Ran

_WHY = "the worker has no memory for a copy of it, by which it travels"

#: Stands for a result that could not be packed or sent.
RESULT = Failure(None, "MemoryError", _WHY, f"MemoryError: {_WHY}", "result")
#: Stands for an exception that could not be described.
UNTOLD = Failure(None, "MemoryError", "the worker has no memory to describe what was raised", "", "")


def is_told(failure: Failure) -> bool:
    """Tell whether a failure is one of the worker's own words, which may be many."""
    return failure not in (RESULT, UNTOLD)


def lighter(reply: Ran) -> Ran:
    """Return an answer without its largest value; if it has none any more, without what was raised."""
    values, failures = reply.values, dict(reply.failures)
    if not values.n_values:
        return reply._replace(failures=dict.fromkeys(failures, UNTOLD))
    places = [place for place in range(reply.n_run) if place not in failures]
    if values.joint:
        return reply._replace(values=NOTHING, failures={**failures, **dict.fromkeys(places, RESULT)})
    sizes = [_size(frame) for frame in values.frames]
    at = sizes.index(max(sizes))
    failures[places[at]] = RESULT
    frames = (*values.frames[:at], *values.frames[at + 1 :])
    return reply._replace(values=values._replace(frames=frames, n_values=len(frames)), failures=failures)


def _size(frame: object) -> int:
    head = getattr(frame, "head", frame)  # what lies beside it is not copied
    return len(head) if isinstance(head, bytes) else 0
