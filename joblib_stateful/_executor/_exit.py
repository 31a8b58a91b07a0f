"""The end of the interpreter: no worker may outlive it, and what callers still wait for is finished first.

`atexit` runs too late: only after loky has waited for all running tasks. `threading` has an internal hook
that `concurrent.futures` uses too; hooks run last in, first out, so ours goes in after loky's.

A process that multiprocessing or another loky started (joblib's own workers) ends in another order: it waits for its
children before it comes to those hooks, but calls multiprocessing's finalisers first.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import weakref
from functools import partial
from multiprocessing import util
from typing import TYPE_CHECKING, Any, Protocol

from .._process import _locks
from .._process._interrupts import Uninterrupted
from .._process._system import after_fork

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..engines import Runtime

# After Ctrl-C, objects have this long to close, less half of the time that has gone by since then; a script shall be gone within
# two seconds.
_GRACE_AFTER_INTERRUPT = 1.0
_LEAST_GRACE = 0.2
_GRACE = 10.0
# What is waited for takes milliseconds, and is only missed in a complaint of a resource tracker.
_SETTLE_SECONDS = 0.5


class Ending(Protocol):
    """What has workers, and ends them when it is told to; see `WorkerPool`, whose methods these are."""

    @property
    def runtime(self) -> Runtime:
        """What has opened them."""

    @property
    def is_awaited(self) -> bool:
        """True if somebody waits for something that it was given by itself."""

    def finish(self) -> None:
        """Return when all that is done with."""

    def close(self, *, wait: bool = True) -> None:
        """End the workers when they are idle."""

    def wait_until_empty(self, timeout: float | None = None) -> bool:
        """Wait until none is left; False if some still are."""

    def kill(self, *, only_busy: bool = False) -> None:
        """End them at once."""

    def kill_unended(self, seconds: float) -> None:
        """End at once those that had so long to end, with a warning."""

    def disown(self) -> None:
        """Forget them, in a fork."""


_pools: weakref.WeakSet[Ending] = weakref.WeakSet()
_kinds: weakref.WeakSet[type[Runtime]] = weakref.WeakSet()  # also of pools that are gone
_waited = 0.0  # seconds since the latest Ctrl-C, when what ran had ended
_finalizer_of: int | None = None  # the process whose finaliser is ours: children of multiprocessing forget them


def watch(pool: Ending) -> None:
    """See to it that a pool's workers end with the interpreter."""
    _pools.add(pool)
    _kinds.add(type(pool.runtime))


def note_interrupt(seconds: float) -> None:
    """Note how long ago a Ctrl-C struck when what ran has ended: that is a part of what it may take."""
    global _waited  # noqa: PLW0603 - one for the process
    _waited = seconds


def register() -> None:
    """Put the hooks in last; to be called after each start of a worker, for loky puts its own in each time."""
    global _finalizer_of  # noqa: PLW0603 - one for the process
    if _finalizer_of != os.getpid():
        _finalizer_of = os.getpid()
        # Any priority from 0 up is called before children are waited for.
        util.Finalize(None, _at_exit, exitpriority=100)
    hooks: list[Any] | None = getattr(threading, "_threading_atexits", None)
    if hooks is None or getattr(threading, "_SHUTTING_DOWN", False):
        return
    earlier = [hook for hook in hooks if getattr(hook, "func", None) is _at_exit]
    # Not by `threading._register_atexit`, which from Python 3.13 on hides in a lambda what it was given.
    hooks.append(partial(_at_exit))
    # Only now, so that there is one at any moment; one by one, for other threads add theirs meanwhile.
    for hook in earlier:
        with contextlib.suppress(ValueError):  # another thread was faster
            hooks.remove(hook)


def call_from_finaliser(function: Callable[[], None], *, is_free: bool = True) -> None:
    """Call a function from a finaliser, which may run at any point of any thread.

    If the thread holds one of our locks, or ``is_free`` is False, another one calls it. Once the interpreter tears its
    modules down nobody does: the workers have been ended, and a thread that was started now would never run.
    """
    if sys.is_finalizing():
        return
    if is_free and not _locks.is_held():
        with Uninterrupted(in_finaliser=True):
            function()
    else:
        with contextlib.suppress(RuntimeError):  # the interpreter has begun to end; the hook here ends the workers
            threading.Thread(target=function, name="joblib_stateful-close", daemon=True).start()


def _at_exit() -> None:
    try:
        _end_in_order()
    except KeyboardInterrupt:
        # Who presses Ctrl-C now waits for no one. Raised from here, it would keep Python from calling loky's hook, and
        # multiprocessing would then wait for workers that nobody has told to end.
        with Uninterrupted():
            for pool in list(_pools):
                pool.kill()
            _settle()


def _end_in_order() -> None:
    interrupted = getattr(sys, "last_type", None) is KeyboardInterrupt
    pools = list(_pools)
    for pool in pools:
        if not interrupted and pool.is_awaited:
            pool.finish()
    for pool in pools:
        pool.kill(only_busy=True)
        pool.close(wait=False)
    grace = max(_LEAST_GRACE, _GRACE_AFTER_INTERRUPT - _waited / 2) if interrupted else _GRACE
    deadline = time.monotonic() + grace
    for pool in pools:
        if pool.wait_until_empty(max(0.0, deadline - time.monotonic())):
            continue
        if interrupted:
            pool.kill()
        else:
            pool.kill_unended(grace)
    _settle(deadline)


def _settle(deadline: float = 0.0) -> None:
    deadline = max(deadline, time.monotonic() + _SETTLE_SECONDS)
    for kind in list(_kinds):
        kind.settle(max(0.0, deadline - time.monotonic()))


def _forget() -> None:
    """In a fork: the workers are the parent's, and so is their end."""
    for pool in list(_pools):
        pool.disown()
    _pools.clear()
    _kinds.clear()


after_fork(_forget)
