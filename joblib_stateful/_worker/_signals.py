"""Handlers of signals that users' code sets in a worker: what they raise while no item runs is held until the next one.

Python calls a handler between any two steps of the main thread. An alarm that strikes a user's call is that call's error,
as in any program; between two items it would strike the code here, at a message half sent or a result half noted.

Nothing is done for that while items run, for each step there can be felt. Whether a call runs is seen from the frames
that a signal has interrupted: the functions that call users' code are known here, and have a local variable ``what``
that is "" while they do so.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FrameType

    F = TypeVar("F", bound=Callable[..., Any])

_callers: set[CodeType] = set()
_process: list[int] = []  # the one whose handlers are held back
#: What was raised while no item ran, by number of the signal: the first of each kind.
held: dict[int, BaseException] = {}


def calls_users(function: F) -> F:
    """Mark a function as one that calls users' code while its local variable ``what`` is ""."""
    _callers.add(function.__code__)
    return function


def caller_of(frame: FrameType | None) -> FrameType | None:
    """Return the frame, at or above one, of the latest function that calls users' code."""
    while frame is not None and frame.f_code not in _callers:
        frame = frame.f_back
    return frame


def is_in_users_call(caller: FrameType) -> bool:
    """Tell whether a function that calls users' code is doing so."""
    return bool(caller.f_locals.get("what", "item") == "")


def raising(call: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return what raises what is held, one at a time, before it calls a function."""

    def call_next(item: Any) -> Any:
        if held:
            raise held.pop(next(iter(held)))
        return call(item)

    return call_next


def hold_back() -> None:
    """From now on hold back what handlers raise outside users' calls, in this process, which is a worker."""
    if _process:
        return
    _process.append(os.getpid())
    set_handler, get_handler = signal.signal, signal.getsignal

    @functools.wraps(set_handler)
    def set_held(signalnum: Any, handler: Any) -> Any:
        return _own(set_handler(signalnum, _Holding(handler) if callable(handler) else handler))

    @functools.wraps(get_handler)
    def get_own(signalnum: Any) -> Any:
        return _own(get_handler(signalnum))

    signal.signal, signal.getsignal = set_held, get_own


def report() -> None:
    """Print what is held, because no item will come any more."""
    while held:
        number, error = held.popitem()
        with contextlib.suppress(Exception):  # there is no standard error, or the user's code has closed it
            text = "".join(traceback.format_exception(error))
            sys.stderr.write(f"The handler of signal {number} raised while no item ran:\n{text}")


def _own(handler: Any) -> Any:
    return handler.handler if isinstance(handler, _Holding) else handler


class _Holding:
    """A handler in the place of a user's."""

    def __init__(self, handler: Callable[[int, FrameType | None], Any]) -> None:
        self.handler = handler

    def __call__(self, number: int, frame: FrameType | None) -> None:
        caller = caller_of(frame)
        # A fork's main thread may be another one.
        if os.getpid() not in _process or (caller is not None and is_in_users_call(caller)):
            self.handler(number, frame)
            return
        try:
            self.handler(number, frame)
        except BaseException as error:  # noqa: BLE001 - whatever it is, no call of the user's is there to get it
            if number not in held:
                error.__context__ = None  # what was being handled just then has nothing to do with it
                held[number] = error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)
        if held and caller is not None:
            _cut_short(caller.f_locals)


def _cut_short(message: dict[str, Any]) -> None:
    """Have the rest of the items of a message be sent again, behind the one that is just about to run."""
    # Nothing looks at what is held before each item. But for this there is a number that is looked at anyway.
    seq, worker = message.get("seq"), message.get("self")
    if seq is not None and worker is not None:
        worker.progress.ask_to_stop(seq)
