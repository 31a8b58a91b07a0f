"""The thread that notices when workers' processes end, one for all of them."""

from __future__ import annotations

import contextlib
import threading
from multiprocessing.connection import Connection, Pipe, wait
from typing import TYPE_CHECKING, Any

from .. import _locks, _system

if TYPE_CHECKING:
    from collections.abc import Callable


class _Deaths:
    """Waits for all processes at once, as long as there are any."""

    def __init__(self) -> None:
        self._lock = _locks.Lock()
        # By what shows their end: the process, and whom to tell.
        self._awaited: dict[Any, tuple[Any, Callable[[], None]]] = {}
        self._bell: tuple[Connection, Connection] | None = None  # there as long as the thread is
        self._thread: threading.Thread | None = None

    def watch(self, process: Any, told: Callable[[], None]) -> None:
        """Have a process reaped when it ends, and then somebody told, who must not keep this thread waiting.

        Raises RuntimeError if there is no room for one more thread, and OSError if there is none for open files.
        """
        with self._lock:
            self._awaited[process.sentinel] = process, told
            try:
                if self._bell is None:
                    self._start()
                else:
                    self._bell[1].send_bytes(b"!")
            except BaseException:
                del self._awaited[process.sentinel]
                raise

    def _start(self) -> None:
        self._bell = Pipe(duplex=False)
        args = (self._bell[0],)
        thread = threading.Thread(target=self._notice_all, args=args, name="joblib_stateful-deaths", daemon=True)
        try:
            thread.start()
        except BaseException:
            self._bell = None
            raise
        self._thread = thread

    def _notice_all(self, news: Connection) -> None:
        while (sentinels := self._sentinels()) is not None:
            for ended in wait([news, *sentinels]):
                if ended is news:
                    news.recv_bytes()
                else:
                    self._note(ended)

    def _sentinels(self) -> list[Any] | None:
        """Return what there is to wait for; None if that is nothing, so that the thread shall end."""
        with self._lock:
            if not self._awaited:
                self._bell = None
            return list(self._awaited) or None

    def _note(self, sentinel: Any) -> None:
        process, told = self._awaited[sentinel]
        with contextlib.suppress(Exception):  # somebody else has reaped it
            process.join(0)
        with self._lock:
            del self._awaited[sentinel]
        told()

    def wait_for_all(self, seconds: float) -> None:
        """Wait until all that shall be told has been told, when all processes have been ended."""
        thread = self._thread
        if thread is not None:
            thread.join(seconds)

    def disown(self) -> None:
        """In a fork: they are the parent's processes."""
        # Kept, so that nothing is collected that would tidy up after the parent.
        _not_ours.append((self._awaited, self._bell))
        self.__init__()  # type: ignore[misc]  # the same state as a new one


_not_ours: list[Any] = []
deaths = _Deaths()
_system.after_fork(deaths.disown)
