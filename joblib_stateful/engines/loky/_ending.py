"""Threads that end workers, for which the end of the program waits."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_threads: set[threading.Thread] = set()


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


def wait_for_ends(seconds: float) -> None:
    """Wait until all is tidied up, when all workers have been closed or killed."""
    deadline = time.monotonic() + seconds
    for thread in list(_threads):
        with contextlib.suppress(RuntimeError):  # it is only being started
            thread.join(max(0.0, deadline - time.monotonic()))
