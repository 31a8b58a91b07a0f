"""Locks that no Ctrl-C leaves held, those that users' finalisers may come upon, and what is done then.

Garbage may be collected at any point of any thread, also where a thread holds one of our locks; and then users' ``__del__``
runs, which may use an executor. Nothing of that waits for a lock of ours: it might be held by this very thread, or by one
that waits for a lock which this one holds. What is to be done is done by another thread, a moment later.
"""

from __future__ import annotations

import _thread
import contextlib
import sys
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

# By number: all that are alive. Read as a whole, for other threads make some meanwhile.
_alive: dict[int, weakref.ref[Any]] = {}


class Lock(_thread.RLock):  # type: ignore[misc]  # for typeshed it is final, for Python it is not
    """A reentrant lock that is not held any more when a signal's handler raises before the block under it begins.

    Since Python 3.14 ``with`` calls ``__enter__`` as everything else is called, and handlers run at the end of calls: with the
    lock taken, and nobody there to give it back. Ways out are the interpreter's own, before whose end no handler runs.

    Examples
    --------
    >>> with Lock():
    ...     pass
    """

    if sys.version_info >= (3, 14):

        def __enter__(self) -> bool:  # typeshed names the arguments of `acquire`
            try:
                return self.acquire()
            except BaseException:
                try:  # noqa: SIM105 - a context would be entered first, and another handler may run then
                    self.release()
                except RuntimeError:  # it struck while this waited for the lock
                    pass
                raise

    @property
    def is_mine(self) -> bool:
        """True if the calling thread holds it."""
        # No public name says it; `threading.Condition` asks the same way, on each Python.
        return bool(self._is_owned())  # type: ignore[attr-defined]  # typeshed doesn't know it


def make_lock() -> Lock:
    """Return a lock, of which can be told whether the calling thread holds it; it is reentrant for that.

    Examples
    --------
    >>> with make_lock():
    ...     is_held()
    True
    >>> is_held()
    False
    """
    lock = Lock()
    number, forget = (
        id(lock),
        _alive.pop,
    )  # bound here: at the end of the interpreter this module may go before the lock
    _alive[number] = weakref.ref(lock, lambda _: forget(number, None))
    return lock


def is_held() -> bool:
    """Tell whether the calling thread holds one of these locks: then it must wait for nothing that others do."""
    # Asked twice for each message, of some ten locks: by `is_mine` it would take twice as long (`benchmarks/items.py`).
    for ref in list(_alive.values()):
        lock = ref()
        if lock is not None and lock._is_owned():
            return True
    return False


def call_elsewhere(function: Callable[[], Any]) -> None:
    """Call a function in a thread of its own, and don't wait until that runs.

    Raises RuntimeError if there can be none, because the interpreter is ending.
    """
    # Not by `threading`, which waits until the thread has begun.
    _thread.start_new_thread(_call, (function,))


def _call(function: Callable[[], Any]) -> None:
    with contextlib.suppress(RuntimeError):  # it was shut down meanwhile: whom that concerns is told
        function()
