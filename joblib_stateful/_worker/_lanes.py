"""The places for messages of a worker that takes several at a time: a thread for each that is in use.

All but users' calls is done by one of them at a time, and messages are begun in the order in which they came, for a later one
may count on what came with an earlier one.
"""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._worker import Worker

    # What is done with a message, while nothing else is but users' calls; returns what is done behind it.
    Work: TypeAlias = Callable[[Worker], Callable[[], object]]


class Lanes:
    """Threads that are at a message each.

    Parameters
    ----------
    first : Worker
        The worker, which has the first place.
    n_lanes : int
        How many places there are.
    another : callable
        Returns the worker of another place, by its number.
    """

    def __init__(self, first: Worker, n_lanes: int, another: Callable[[int], Worker]) -> None:
        #: Held by whoever does anything but users' calls.
        self.lock = first.life.lock = threading.Lock()
        self._workers, self._another = {0: first}, another
        # A thread may be long at what is done behind a message, when its place counts as free. So many may.
        self._room = threading.Semaphore(2 * n_lanes)
        self._idle: list[_Thread] = []
        self._is_over = False

    def start(self, number: int, work: Work) -> None:
        """Have something done in a place; returns when what was started before has come to users' calls, or to its end."""
        self._room.acquire()
        try:
            self.lock.acquire()
            try:
                worker = self._workers.get(number)
                if worker is None:
                    worker = self._workers[number] = self._another(number)
                thread = self._idle_thread() or _Thread(self._serve)
            except BaseException:
                self.lock.release()
                raise
        except BaseException:
            self._room.release()
            raise
        thread.todo.put((worker, work))

    def end(self) -> None:
        """Have the threads end; what is started meanwhile, or later, by another thread is still done."""
        self._is_over = True
        while thread := self._idle_thread():
            thread.todo.put(None)

    def _idle_thread(self) -> _Thread | None:
        """Take an idle thread; whoever takes it gives it something to do, or has it end."""
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _serve(self, thread: _Thread) -> None:
        while (todo := thread.todo.get()) is not None:
            worker, work = todo
            try:
                behind = work(worker)
            finally:
                self.lock.release()
            try:
                behind()
            finally:
                self._room.release()
            del todo, worker, work, behind  # hold nothing while waiting
            self._idle.append(thread)
            if self._is_over:
                try:
                    self._idle.remove(thread)
                except ValueError:  # somebody has taken it
                    continue
                return


class _Thread:
    def __init__(self, serve: Callable[[_Thread], None]) -> None:
        self.todo: queue.SimpleQueue[tuple[Worker, Work] | None] = queue.SimpleQueue()
        threading.Thread(target=serve, args=(self,), name="joblib_stateful-lane", daemon=True).start()
