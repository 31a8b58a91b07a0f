"""The event loop of one worker, for calls that are awaited.

It runs in a thread of its own as long as the worker lives, also while no message is there: connections are kept alive, and
tasks that the object has started go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
import traceback
from functools import partial
from pathlib import Path
from types import AsyncGeneratorType
from typing import TYPE_CHECKING, Any

from .._process._safely import Log
from ._lazy import OverTimeError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextvars import Context

_log = Log()

# Code that has not let the loop go on for so long is said to block it.
_BLOCKING_SECONDS = 1.0
# How often it is looked whether anybody still wants what is awaited, and whether the loop goes on.
_LOOK_SECONDS = 0.25
# Tasks that the object has started are cancelled at its end, and have so long to take it.
_END_SECONDS = 5.0


class EventLoop:
    """An event loop, and its thread.

    Parameters
    ----------
    name : str
        Whose it is, for messages.
    begin : callable
        Called first in the thread.
    """

    def __init__(self, name: str, begin: Callable[[], object]) -> None:
        self._name, self._begin = name, begin
        self._loop = asyncio.new_event_loop()
        self._asked: float | None = None  # when the loop was asked for a sign of life that has not come
        self._has_warned = self._is_over = False
        self._thread = threading.Thread(target=self._serve, name="joblib_stateful-event-loop", daemon=True)
        self._thread.start()

    def run(
        self,
        function: Callable[[], Any],
        seconds: float | None = None,
        *,
        is_unwanted: Callable[[], bool] = bool,
        context: Context | None = None,
    ) -> Any:
        """Call a function in the loop's thread, and return what it returns, or what comes of that if it is to be awaited.

        Raises what it raises, and OverTimeError if it was cancelled because it took more than so many seconds. It is
        cancelled, too, when nobody wants it any more.
        """
        call = _Call(function, seconds)
        self._call_soon(partial(self._start, call), context)
        try:
            self._wait_for(call, is_unwanted)
        except BaseException:  # a Ctrl-C, or what a handler of the user's has raised
            with contextlib.suppress(RuntimeError):  # it is closed
                self._loop.call_soon_threadsafe(call.cancel)
            raise
        return call.result()

    def _wait_for(self, call: _Call, is_unwanted: Callable[[], bool]) -> None:
        while not call.done.wait(_LOOK_SECONDS):
            if is_unwanted():
                self._loop.call_soon_threadsafe(call.cancel)
                is_unwanted = bool  # once is enough
            if self._thread.is_alive():
                self._look()
            elif not call.done.is_set():
                call.fail(_ended())

    def _call_soon(self, function: Callable[[], None], context: Context | None) -> None:
        try:
            self._loop.call_soon_threadsafe(function, context=context)
        except RuntimeError:
            raise _ended() from None

    def _start(self, call: _Call) -> None:
        if self._is_over:  # nobody would see to a task that begins now
            call.fail(_ended())
        else:
            call.start(lambda: self._is_over)

    @property
    def is_here(self) -> bool:
        """True in the loop's thread."""
        return threading.current_thread() is self._thread

    def close(self) -> None:
        """Cancel what still runs, and end the loop."""
        self.abandon()
        self._thread.join(2 * _END_SECONDS)

    def abandon(self) -> None:
        """Have what runs cancelled and the loop ended, and don't wait for that."""
        with contextlib.suppress(RuntimeError):  # it is closed
            self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        if not self._is_over:  # else what is being cancelled would be cut off
            self._is_over = True
            self._loop.stop()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._begin()
        try:
            self._loop.run_forever()
            self._is_over = True
            self._loop.run_until_complete(self._cancel_all())
        finally:
            self._loop.close()

    async def _cancel_all(self) -> None:
        tasks = asyncio.all_tasks(self._loop) - {asyncio.current_task()}
        for task in tasks:
            _cancel(task)
        if tasks:
            await asyncio.wait(tasks, timeout=_END_SECONDS)
        await self._loop.shutdown_asyncgens()

    # --- code that blocks it --------------------------------------------------------------------------

    def _look(self) -> None:
        """Warn, once, of code that doesn't let the loop go on; by any thread that waits for a call."""
        asked, now = self._asked, time.monotonic()
        if self._has_warned:
            return
        if asked is None:
            self._asked = now
            self._loop.call_soon_threadsafe(self._give_sign)
        elif now - asked > _BLOCKING_SECONDS:
            self._has_warned = True
            _log.warning(
                "The event loop of %s has been blocked for %.1f s or more, and nothing else of it goes on meanwhile, by %s. "
                "Likely cause: a call that is not awaited, such as time.sleep or requests.get. Await what is made for asyncio "
                "instead, or write: await asyncio.to_thread(function, ...).",
                self._name,
                now - asked,
                self._where(),
            )

    def _give_sign(self) -> None:
        self._asked = None

    def _where(self) -> str:
        frame = sys._current_frames().get(self._thread.ident or 0)  # the only way to see where another thread is
        ours = (str(Path(__file__)), str(Path(asyncio.__file__).parent))
        found = [entry for entry in traceback.extract_stack(frame) if not entry.filename.startswith(ours)]
        found = [entry for entry in found if entry.filename != threading.__file__]
        if not found:
            return "code that can't be seen"
        return ", by ".join(f"{entry.filename}, line {entry.lineno}, in {entry.name}" for entry in reversed(found[-4:]))


class _Call:
    """One call, from another thread."""

    def __init__(self, function: Callable[[], Any], seconds: float | None) -> None:
        self._function, self._seconds = function, seconds
        self.done = threading.Event()
        self._task: asyncio.Task[None] | None = None
        self._value: Any = None
        self._error: BaseException | None = None

    def start(self, has_ended: Callable[[], bool]) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(has_ended))

        def end(_: object) -> None:
            if not self.done.is_set():  # it was cancelled before it came to anything
                self.fail(_ended() if has_ended() else asyncio.CancelledError())

        self._task.add_done_callback(end)

    def fail(self, error: BaseException) -> None:
        self._error = error
        self.done.set()

    def cancel(self) -> None:
        if self._task is not None:
            _cancel(self._task)

    def result(self) -> Any:
        try:
            if self._error is not None:
                raise self._error
            return self._value
        finally:
            self._error = None  # or it would hold its own traceback

    async def _run(self, has_ended: Callable[[], bool]) -> None:
        # Nothing is raised: a task that ends with SystemExit would end the loop.
        try:
            self._value = await self._bounded()
        except BaseException as error:  # noqa: BLE001 - it is raised where the call is waited for
            self._error = error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)
            if has_ended() and isinstance(error, asyncio.CancelledError):
                self._error = _ended()
        self.done.set()

    async def _bounded(self) -> Any:
        if self._seconds is None:
            return await _outcome(self._function)
        try:
            async with asyncio.timeout(self._seconds) as limit:
                value = await _outcome(self._function)
        except BaseException:
            if limit.expired():
                raise OverTimeError from None
            raise
        if limit.expired():
            raise OverTimeError
        return value


def _cancel(task: asyncio.Task[Any]) -> None:
    """Cancel a task once: what it does at its end is not to be cut off."""
    if not task.cancelling():
        task.cancel()


def _ended() -> RuntimeError:
    return RuntimeError(
        "The event loop of this worker has ended. Likely cause: code in it has called loop.stop(), or loop.close()."
    )


async def _outcome(function: Callable[[], Any]) -> Any:
    value: Any | Awaitable[Any] = function()
    if isinstance(value, AsyncGeneratorType):
        return [item async for item in value]
    if hasattr(type(value), "__await__"):
        return await value
    return value
