"""Pools whose process is gone, kept until loky's thread for them has ended.

Who drops a pool last tidies its semaphores up. If that were loky's thread, which nobody waits for, the program could
end in the middle of it, and leave a semaphore or a complaint of the resource tracker behind. So a thread of ours does
it, for which the end of the program waits.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from typing import Any

_managers: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
_threads: set[threading.Thread] = set()
_unburied: list[Any] = []


def expect(pool: Any) -> None:
    """Note a pool that has been started."""
    _managers.add(pool._executor_manager_thread)


def bury(pool: Any) -> None:
    """Drop a pool that is broken or shut down, once its thread has ended."""
    manager = pool._executor_manager_thread
    if manager is None or not manager.is_alive():
        return
    grave = [pool, manager]
    thread = threading.Thread(target=_wait_and_drop, args=(grave,), name="joblib_stateful-burial", daemon=True)
    _threads.add(thread)
    try:
        thread.start()
    except RuntimeError:  # the interpreter is ending; it drops them after all threads
        _threads.discard(thread)
        _unburied.append(grave)


def wait_for_burials(seconds: float) -> None:
    """Wait until all is tidied up, when all workers have been closed or killed."""
    deadline = time.monotonic() + seconds
    for manager in list(_managers):  # before it ends, it has its pool buried
        manager.join(max(0.0, deadline - time.monotonic()))
    for thread in list(_threads):
        with contextlib.suppress(RuntimeError):  # it is only being started
            thread.join(max(0.0, deadline - time.monotonic()))


def _wait_and_drop(grave: list[Any]) -> None:
    grave[1].join()
    grave.clear()
    _threads.discard(threading.current_thread())
