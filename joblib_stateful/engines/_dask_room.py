"""What runs in a Dask worker process for the engine ``"dask"``."""

from __future__ import annotations

import asyncio
import os
import pickle
import queue
import signal
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import distributed

from .._messages import NO_ROOM, Refused
from ._buffers import with_buffers
from ._remote import Host

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .._messages import Message, Reply
    from .._transport import Transport


class Room:
    """The actor: a slot's object and the thread that it is used in.

    Not Dask's thread for actors, of which there is one for all that are in a process, whosever they are; and one that
    nobody waits for when the process ends, for it may hang.
    """

    def __init__(self, transport: Transport) -> None:
        self._host = Host(transport, is_process=False)
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="joblib_stateful-slot", daemon=True).start()

    async def serve(self, packed: bytes) -> Reply | Refused:
        """Answer a message."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Reply | Refused] = loop.create_future()
        self._inbox.put(partial(self._serve, packed, distributed.get_worker().data, loop, answer))
        return await answer

    async def die(self) -> None:
        """End this process, if somebody is there who starts it again."""
        if distributed.get_worker().nanny and hasattr(signal, "SIGKILL"):
            os.kill(os.getpid(), signal.SIGKILL)

    def _run(self) -> None:
        while not self._host.is_finished:
            self._inbox.get()()

    def _serve(
        self,
        packed: bytes,
        stored: Mapping[Any, Any],
        loop: asyncio.AbstractEventLoop,
        answer: asyncio.Future[Reply | Refused],
    ) -> None:
        try:
            reply = self._answer(packed, stored)
        except Exception as error:  # noqa: BLE001 - it is raised where the answer is awaited
            loop.call_soon_threadsafe(answer.set_exception, error)
        else:
            loop.call_soon_threadsafe(answer.set_result, reply)

    def _answer(self, packed: bytes, stored: Mapping[Any, Any]) -> Reply | Refused:
        try:
            message: Message = pickle.loads(packed)
            message = with_buffers(message, lambda handle: handle.used(stored[handle.key]))
        except MemoryError:
            return Refused(os.getpid(), NO_ROOM)
        return self._host.serve(message)
