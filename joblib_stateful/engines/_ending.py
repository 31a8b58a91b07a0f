"""Threads that end workers, for which the end of the program waits."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_threads: set[threading.Thread] = set()
_last_waits: list[Callable[[float], None]] = []  # each takes the seconds that it may take


def in_thread(name: str, function: Callable[..., None], *args: Any) -> None:
    """Call a function in a thread for which the end of the program waits.

    Raises RuntimeError if no thread can be started.
    """

    def call() -> None:
        try:
            function(*args)
        finally:
            _threads.discard(threading.current_thread())

    thread = threading.Thread(target=call, name=name, daemon=True)
    _threads.add(thread)
    try:
        thread.start()
    except RuntimeError:
        _threads.discard(thread)
        raise


def at_the_end(wait: Callable[[float], None]) -> None:
    """Have something that no thread can wait for be waited for at the end of the program, for so many seconds at most."""
    _last_waits.append(wait)


def wait_for_ends(seconds: float) -> None:
    """Wait until all is tidied up, when all workers have been closed or killed."""
    deadline = time.monotonic() + seconds
    while _last_waits:
        _last_waits.pop()(max(0.0, deadline - time.monotonic()))
    for thread in list(_threads):
        with contextlib.suppress(RuntimeError):  # it is only being started
            thread.join(max(0.0, deadline - time.monotonic()))
