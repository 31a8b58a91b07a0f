"""What runs in a Dask worker process for the engine ``"dask"``."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import queue
import threading
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import distributed

from ..._process._system import KILL
from .._buffers import with_buffers
from .._remote import Host

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..._transport._transport import Transport
    from ..._worker._messages import Message, Refused, Reply

    _Inbox: TypeAlias = queue.SimpleQueue[Callable[[], None] | None]


_log = logging.getLogger("joblib_stateful")

# How often a message under way looks whether its client is still there; a client that is gone is known to Dask's scheduler
# within some seconds.
_LOOK_SECONDS = 2.0


class Room:
    """The actor: a slot's object and the thread that it is used in.

    Not Dask's thread for actors, of which there is one for all that are in a process, whosever they are; and one that
    nobody waits for when the process ends, for it may hang.

    Dask drops the actor when its future is gone, also with the client that held it: killed, or closed before the slot was.
    Nothing else holds it, the thread least of all, which closes the object then and ends.
    """

    def __init__(self, transport: Transport, n_lanes: int) -> None:
        self._host = Host(transport, is_process=False, n_lanes=n_lanes)
        self._inbox: _Inbox = queue.SimpleQueue()
        self._n_lanes, self._n_threads, self._n_under_way = n_lanes, 0, 0
        weakref.finalize(self, self._inbox.put, None).atexit = False
        self._start_thread()

    def _start_thread(self) -> None:
        self._n_threads += 1
        args = self._host, self._inbox
        threading.Thread(target=_run, args=args, name="joblib_stateful-slot", daemon=True).start()

    async def serve(self, packed: bytes, seq: int, after: int) -> Reply | Refused:
        """Answer a message."""
        loop, worker = asyncio.get_running_loop(), distributed.get_worker()
        answer: asyncio.Future[Reply | Refused] = loop.create_future()
        self._n_under_way += 1
        try:
            if self._n_threads < min(self._n_under_way, self._n_lanes):
                self._start_thread()
            work = partial(_answer, self._host, packed, seq, after, worker.data)
            self._inbox.put(partial(_serve, work, loop, answer))
            return await self._wait_for(answer, worker)
        finally:
            self._n_under_way -= 1

    async def _wait_for(self, answer: asyncio.Future[Reply | Refused], worker: Any) -> Reply | Refused:
        while not (await asyncio.wait([answer], timeout=_LOOK_SECONDS))[0]:
            # While it serves it is not dropped, and the rest of a batch would be done for nobody.
            if not any(actor is self for actor in worker.state.actors.values()):
                self._host.stop()
        return answer.result()

    async def die(self) -> None:
        """End this process, if somebody is there who starts it again."""
        if distributed.get_worker().nanny:
            os.kill(os.getpid(), KILL)


def _run(host: Host, inbox: _Inbox) -> None:
    while not host.is_finished:
        work = inbox.get()
        if work is not None:
            work()
            del work  # hold nothing while waiting
        elif (failure := host.finish()) is not None:
            _log.warning("close() of an object whose client is gone raised:\n%s", failure.traceback)
    inbox.put(None)  # for its other threads


def _serve(
    work: Callable[[], Reply | Refused],
    loop: asyncio.AbstractEventLoop,
    answer: asyncio.Future[Reply | Refused],
) -> None:
    try:
        reply = work()
    except Exception as error:  # noqa: BLE001 - it is raised where the answer is awaited
        loop.call_soon_threadsafe(_give, answer, None, error)
    else:
        loop.call_soon_threadsafe(_give, answer, reply, None)


def _answer(host: Host, packed: bytes, seq: int, after: int, stored: Mapping[Any, Any]) -> Reply | Refused:
    try:
        message: Message = pickle.loads(packed)
        message = with_buffers(message, lambda handle: handle.used(stored[handle.key]))
    except MemoryError:
        return host.refuse(seq, after)
    return host.serve(message)


def _give(answer: asyncio.Future[Reply | Refused], reply: Reply | Refused | None, error: Exception | None) -> None:
    if answer.cancelled():  # the worker process is being closed
        return
    if error is not None:
        answer.set_exception(error)
    elif reply is not None:
        answer.set_result(reply)
