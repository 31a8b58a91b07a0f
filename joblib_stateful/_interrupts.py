"""Ctrl-C: held back while something is done that must not be left half done, and never lost while waiting.

Python raises KeyboardInterrupt between any two steps of the main thread, also while a process is being started or
joblib's books are written. Blocking the signal is not enough: another thread may receive it, and Python still
handles it in the main thread.
"""

from __future__ import annotations

import _thread
import contextlib
import math
import threading
import time

# The functions of `signal` wrap these two, and take 7.8 µs instead of 0.3 for turning numbers into enums and back.
from _signal import getsignal, signal  # type: ignore[import-not-found]  # typeshed has no stub
from signal import SIGINT
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from types import FrameType, TracebackType


# Python looks for a Ctrl-C before a thread lets go of the GIL in order to wait, and not again: one that comes in between
# is not seen until the wait ends. Other threads that run Python code make that milliseconds. So nobody here waits for
# longer than this at a stretch.
STRETCH_SECONDS = 0.5


def wait_for(condition: threading.Condition, predicate: Callable[[], Any], timeout: float | None = None) -> bool:
    """Wait like `threading.Condition.wait_for`, so that no Ctrl-C is lost."""
    end = math.inf if timeout is None else time.monotonic() + timeout
    while True:
        rest = end - time.monotonic()
        if condition.wait_for(predicate, min(rest, STRETCH_SECONDS)):
            return True
        if rest <= STRETCH_SECONDS:
            return False


class Uninterrupted:
    """A context in which Ctrl-C waits until its end; does nothing outside the main thread.

    Parameters
    ----------
    in_finaliser : bool, default False
        Python drops what a finaliser raises, and prints it: a Ctrl-C waits until that has returned, too.

    Examples
    --------
    >>> with Uninterrupted():
    ...     pass
    """

    def __init__(self, *, in_finaliser: bool = False) -> None:
        self._in_finaliser = in_finaliser
        self._previous: Any = None
        self._caught: tuple[int, FrameType | None] | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            handler = getsignal(SIGINT)
            if callable(handler) and not isinstance(getattr(handler, "__self__", None), Uninterrupted):
                signal(SIGINT, self._hold)
                self._previous = handler
                _in_force.append(self)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        previous, self._previous = self._previous, None
        if previous is not None:
            _in_force.remove(self)
            signal(SIGINT, previous)
            if self._caught is None:
                return
            if self._in_finaliser:
                # Not by `threading`, which would wait here until the thread runs.
                with contextlib.suppress(RuntimeError):  # the interpreter is ending, as was wanted
                    _thread.start_new_thread(_press_again, ())
            else:
                previous(*self._caught)

    def _hold(self, signum: int, frame: FrameType | None) -> None:
        self._caught = signum, frame


#: A context that does nothing.
NOTHING = contextlib.nullcontext()
_in_force: list[Uninterrupted] = []


def uninterrupted() -> AbstractContextManager[Any]:
    """Return an `Uninterrupted`, or what does nothing where one is in force: then it holds for this one, too."""
    return NOTHING if _in_force else Uninterrupted()


def _press_again() -> None:
    time.sleep(0.01)  # a finaliser's last steps; if it takes longer, the key is lost as it would have been anyway
    _thread.interrupt_main()
