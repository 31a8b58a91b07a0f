"""Tracebacks that show the user's lines, and not ours."""

from __future__ import annotations

import os
import sys
import traceback
from typing import TYPE_CHECKING

from .._process import _safely
from ..errors import RemoteTraceback, StatefulError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

_HERE = os.path.dirname(os.path.dirname(__file__)) + os.sep  # noqa: PTH120 - no pathlib in workers
# The modules that call users' code.
_CALLERS = tuple(os.path.join(_HERE, "_worker", name) for name in ("_worker.py", "_passing.py"))  # noqa: PTH118 - see above


def text_of_traceback(error: BaseException) -> str:
    """Return what Python would print of an exception that was raised in a worker, but for our frames."""
    try:
        found = traceback.TracebackException(type(error), error, _safely.traceback_of(error))
        for each in _all_of(found):
            _hide_ours(each)
        return "".join(found.format())
    except BaseException:  # noqa: BLE001 - a hostile __str__; the type's name is still told
        return f"{_safely.full_name_of(type(error))}: (its traceback could not be formatted)\n"


def _hide_ours(found: traceback.TracebackException) -> None:
    stack: traceback.StackSummary | None = found.stack
    if stack:
        names = [frame.filename for frame in stack]
        stack[:] = [stack[at] for at in _shown(names)]
        if not stack:  # it was not even entered: wrong arguments
            found.stack = None  # type: ignore[assignment]  # then no headline is printed


def _all_of(found: traceback.TracebackException) -> Iterable[traceback.TracebackException]:
    """Return it, its causes and the members of groups, however they refer to each other."""
    todo, seen = [found], {id(found)}
    for each in todo:
        for other in (each.__cause__, each.__context__, *(getattr(each, "exceptions", None) or ())):
            if other is not None and id(other) not in seen:
                seen.add(id(other))
                todo.append(other)
    return todo


def _shown(names: list[str]) -> list[int]:
    """Return which frames to show: not ours, nor those through which joblib and loky have called the user's code."""
    homes = tuple(_homes())
    first = next((at for at, name in enumerate(names) if not name.startswith(homes)), len(names))
    shown = [at for at in range(first, len(names)) if not names[at].startswith(_HERE)]
    if names[-1].startswith(_HERE) and names[-1] not in _CALLERS:  # it was raised there
        shown.append(len(names) - 1)
    return shown


def _homes() -> Iterable[str]:
    yield _HERE
    for name in ("joblib", "loky"):
        file = getattr(sys.modules.get(name), "__file__", None)
        if file:
            yield os.path.dirname(file) + os.sep  # noqa: PTH120 - see above


def behind_ours(found: TracebackType | None) -> TracebackType | None:
    """Return a traceback from the first frame on that is not ours; None if all are."""
    while found is not None and found.tb_frame.f_code.co_filename.startswith(_HERE):
        found = found.tb_next
    return found


def strip(error: BaseException) -> None:
    """Take our frames from the beginning of an exception's traceback, unless there are no others."""
    rest = behind_ours(_safely.traceback_of(error))
    if rest is not None:
        BaseException.with_traceback(error, rest)


def without_our_frames(error: BaseException) -> BaseException:
    """Return an exception that is about to be raised to the user, with only the user's frames in its traceback.

    One of ours that tells of no worker and of no misuse is a fault here, and keeps them.
    """
    rest = behind_ours(_safely.traceback_of(error))
    is_told = _safely.is_a(error, (StatefulError, StopIteration, KeyboardInterrupt))
    if rest is None and not is_told and not _safely.is_a(_safely.cause_of(error), RemoteTraceback):
        return error
    return BaseException.with_traceback(error, rest)
