"""Ctrl-C and its like: held back while something is done that must not be left half done, never lost while waiting.

Python raises KeyboardInterrupt between any two steps of the main thread, also while a process is being started or
joblib's books are written. Blocking the signal is not enough: another thread may receive it, and Python still
handles it in the main thread.
"""

from __future__ import annotations

# The functions of `signal` wrap those of this one, and take 7.8 µs instead of 0.3 for turning numbers into enums and back.
import _signal  # type: ignore[import-not-found]  # typeshed has no stub
import _thread
import contextlib
import math
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Self

from ._system import signal_numbers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
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


class Wakeup:
    """What one thread waits for, and any other one wakes it by.

    A `threading.Condition` is made of Python functions: a Ctrl-C at the return of one of them, and before the next step,
    leaves its lock held for good, and everybody else waiting. This has nothing but a lock of the interpreter's own, of which
    it holds none while it looks or returns.

    Examples
    --------
    >>> wakeup, done = Wakeup(), []
    >>> threading.Thread(target=lambda: (done.append(1), wakeup.wake())).start()
    >>> wakeup.wait_for(lambda: done)
    True
    """

    def __init__(self) -> None:
        self._closed = threading.Lock()  # open if there may be something new since the latest look
        self._closed.acquire()

    def wake(self) -> None:
        """Have who waits look again, or look once more who is about to wait."""
        put_off = _here.put_off
        if put_off is not None:
            put_off[self] = None
        else:
            self._wake_now()

    def _wake_now(self) -> None:
        if self._closed.locked():
            with contextlib.suppress(RuntimeError):  # another thread was faster
                self._closed.release()

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> bool:
        """Wait until something is so, or for so many seconds; return whether it is. No Ctrl-C is lost."""
        end = math.inf if timeout is None else time.monotonic() + timeout
        while not predicate():
            rest = end - time.monotonic()
            if rest <= 0:
                return False
            self._closed.acquire(timeout=min(rest, STRETCH_SECONDS))
        return True


class _Here(threading.local):
    """What is the calling thread's own."""

    put_off: dict[Wakeup, None] | None = None


_here = _Here()


def put_off_wakeups() -> None:
    """Have the calling thread wake nobody until `wake_those_put_off`."""
    if _here.put_off is None:
        _here.put_off = {}


def wake_those_put_off() -> None:
    """Wake those that the calling thread would have woken since, and from now on everybody at once."""
    put_off, _here.put_off = _here.put_off, None
    for wakeup in put_off or ():
        wakeup._wake_now()


# Those whose handlers like to raise: to end a program in order, or what takes too long in it.
_HELD = signal_numbers("SIGINT", "SIGTERM", "SIGALRM", "SIGHUP", "SIGUSR1", "SIGUSR2")


class Uninterrupted:
    """A context in which Ctrl-C, and other signals' handlers, wait until its end; only in the main thread.

    Parameters
    ----------
    in_finaliser : bool, default False
        Python drops what a finaliser raises, and prints it: they wait until that has returned, too.

    Examples
    --------
    >>> with Uninterrupted():
    ...     pass
    """

    def __init__(self, *, in_finaliser: bool = False) -> None:
        self.in_finaliser = in_finaliser
        self._previous: dict[int, Any] = {}
        self._caught: dict[int, None] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {}
            try:
                self._take_over()
            except BaseException:  # raised by the handler of one that was not held yet
                self._let_go(list(self._previous))
                raise
            _in_force.append(self)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self in _in_force:
            _in_force.remove(self)
        self._let_go(list(self._previous))
        if self._caught and self.in_finaliser:
            # Not by `threading`, which would wait here until the thread runs.
            with contextlib.suppress(RuntimeError):  # the interpreter is ending, as was wanted
                _thread.start_new_thread(_send_again, (list(self._caught),))
        elif self._caught:
            self._handle()

    def _take_over(self) -> None:
        for number in _HELD:
            handler = _signal.getsignal(number)
            if callable(handler) and not isinstance(getattr(handler, "__self__", None), Uninterrupted):
                self._previous[number] = handler
                _signal.signal(number, self._hold)

    def _hold(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the system's signature
        self._caught[number] = None
        if number == _signal.SIGINT:
            _held_back.came = time.monotonic()

    def _let_go(self, numbers: list[int]) -> None:
        try:
            self._give_back(numbers)
        finally:
            if numbers:  # the handler of one of the others has raised
                self._let_go(numbers)

    def _give_back(self, numbers: list[int]) -> None:
        while numbers:
            _signal.signal(numbers[-1], self._previous[numbers[-1]])
            numbers.pop()

    def _handle(self) -> None:
        number, _ = self._caught.popitem()
        if number == _signal.SIGINT:
            _held_back.handled = time.monotonic()
        try:
            # Not the frame in which it struck, which may have ended: a traceback would keep it, and what it has open.
            self._previous[number](number, sys._getframe())
        finally:
            if self._caught:  # also if that one has raised
                self._handle()


class _HeldBack:
    """When the latest Ctrl-C that was held back struck, and when it was handed on."""

    came = handled = -math.inf


_held_back = _HeldBack()
# Who is interrupted by one begins to end things at once.
_AT_ONCE_SECONDS = 1.0


def seconds_late() -> float:
    """Return how many seconds ago the Ctrl-C struck by which things are being ended now; 0 if it was not held back."""
    now = time.monotonic()
    return now - _held_back.came if now - _held_back.handled < _AT_ONCE_SECONDS else 0.0


#: A context that does nothing.
NOTHING = contextlib.nullcontext()
_in_force: list[Uninterrupted] = []


def uninterrupted() -> AbstractContextManager[Any]:
    """Return an `Uninterrupted`, or what does nothing where one is in force: then it holds for this one, too."""
    return NOTHING if _in_force else Uninterrupted()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C strike users' code within a context in which it waits; also one that has waited since before."""
    held = _in_force[-1] if _in_force and threading.current_thread() is threading.main_thread() else None
    if held is None or held.in_finaliser:  # where it would be lost
        yield
        return
    try:
        held.__exit__(None, None, None)
        yield
    finally:
        held.__enter__()


def _send_again(numbers: list[int]) -> None:
    time.sleep(0.01)  # a finaliser's last steps; if it takes longer, they are lost as they would have been anyway
    for number in numbers:
        _thread.interrupt_main(number)  # type: ignore[arg-type]  # any number will do
