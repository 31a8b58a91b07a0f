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


def lighter(reply: Ran) -> Ran | None:
    """Return an answer without what weighs most in it, a value or what was raised; None if there is nothing to leave out."""
    values, failures = reply.values, reply.failures
    told = {place: _words_of(failure) for place, failure in failures.items() if failure not in (RESULT, UNTOLD)}
    sizes = [_size(frame) for frame in values.frames]
    longest = max(told, key=told.__getitem__, default=None)
    if longest is not None and told[longest] >= max(sizes, default=0):
        return reply._replace(failures={**failures, longest: UNTOLD})
    if not sizes:
        return None
    places = [place for place in range(reply.n_run) if place not in failures]
    if values.joint or reply.rows:
        return reply._replace(values=NOTHING, rows=(), failures={**failures, **dict.fromkeys(places, RESULT)})
    at = sizes.index(max(sizes))
    frames = (*values.frames[:at], *values.frames[at + 1 :])
    return reply._replace(
        values=values._replace(frames=frames, n_values=len(frames)), failures={**failures, places[at]: RESULT}
    )


def _words_of(failure: Failure) -> int:
    return _size(failure.packed) + len(failure.message) + len(failure.traceback)


def _size(frame: object) -> int:
    head = getattr(frame, "head", frame)  # what lies beside it is not copied
    return len(head) if isinstance(head, bytes) else 0
