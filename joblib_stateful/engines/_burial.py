"""Pools whose process is gone, kept until loky's threads for them have ended.

Who drops a pool last tidies its semaphores up. If that were one of loky's two threads, which nobody waits for, the
program could end in the middle of it, and leave a semaphore or a complaint of the resource tracker behind. So threads
of ours do it, for which the end of the program waits.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_managers: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
_threads: set[threading.Thread] = set()
_unburied: list[Any] = []
_last_waits: list[Callable[[float], None]] = []  # each takes the seconds that it may take


def expect(pool: Any) -> Any:
    """Note a pool that has been started; return loky's thread that manages it."""
    manager = pool._executor_manager_thread
    _managers.add(manager)
    return manager


def wait_for_threads(manager: Any) -> None:
    """Wait until loky's threads for a pool that is broken or shut down have ended."""
    for _ in range(2):  # the second is there only if the first had something to send
        for thread in _threads_of(manager):
            thread.join()


def bury(pool: Any, manager: Any) -> None:
    """Drop a pool that is broken or shut down, once its threads have ended."""
    if not any(thread.is_alive() for thread in _threads_of(manager)):
        return
    grave = [pool, manager]
    try:
        in_thread("joblib_stateful-burial", _wait_and_drop, grave)
    except RuntimeError:  # the interpreter is ending; it drops them after all threads
        _unburied.append(grave)


def in_thread(name: str, function: Callable[..., None], *args: Any) -> None:
    """Call a function that may be the last to drop a pool, in a thread for which the end of the program waits.

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


def _threads_of(manager: Any) -> list[threading.Thread]:
    """Return loky's thread for a pool, and the one that feeds its queue, for which loky itself never waits."""
    feeder = manager.call_queue._thread
    return [manager] if feeder is None else [manager, feeder]


def wait_for_burials(seconds: float) -> None:
    """Wait until all is tidied up, when all workers have been closed or killed."""
    deadline = time.monotonic() + seconds
    while _last_waits:
        _last_waits.pop()(max(0.0, deadline - time.monotonic()))
    for manager in list(_managers):  # before it ends, it has its pool buried
        manager.join(max(0.0, deadline - time.monotonic()))
    for thread in list(_threads):
        with contextlib.suppress(RuntimeError):  # it is only being started
            thread.join(max(0.0, deadline - time.monotonic()))


def _wait_and_drop(grave: list[Any]) -> None:
    wait_for_threads(grave[1])
    grave.clear()
