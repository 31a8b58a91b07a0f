"""Signals that are kept waiting while a process is born."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

from ..._process import _system

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """Keep Ctrl-C from a process that is being born.

    Until a process ignores it, that would print tracebacks.
    """
    if not _system.HAS_SIGMASK:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGPIPE})
    try:
        yield
    finally:
        if signal.SIGPIPE not in before and _system.HAS_SIGTIMEDWAIT:
            signal.sigtimedwait({signal.SIGPIPE}, 0)  # one that was raised meanwhile was ours
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
