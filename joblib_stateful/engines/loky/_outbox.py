"""What is on its way to one worker process."""

from __future__ import annotations

import errno
import threading
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from .._buffers import in_line
from ._line import encode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..._worker._log_levels import Levels
    from ..._worker._messages import Message
    from ._line import Line

    # Sends something; returns what sends it otherwise, if it can't be sent so.
    Send: TypeAlias = Callable[[], "Send | None"]

# What the system takes of messages that are not read: so many times what is sent at once, and for each message so much more.
_UNREAD, _OVERHEAD = 4, 1 << 10


class Outbox:
    """What is on its way to one worker: sent at once, or, if that may take long, by a thread; one after the other.

    Its methods are called with the lock of the worker's mailbox.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[Send] | None = None  # behind what a thread is sending; None: none is
        self._unread: dict[int, int] = {}  # bytes that messages under way may still take in the system, by number

    def put(self, line: Line, message: Message, segments: Sequence[Any], levels: Levels | None = None) -> None:
        """Send a message, and which log records are wanted if that is news."""
        data = encode(message) if levels is None else encode(message, tuple(levels))
        send: Send = partial(_put_now, line, message, data, segments, levels)
        room = line.at_once
        if self._unread:
            room = max(0, _UNREAD * room - sum(self._unread.values()))
        self._unread[message.seq] = len(data) + _OVERHEAD
        # A worker that is only being started, or stopped, takes as long as it likes.
        if not self._leave_to_thread(send, is_needed=len(data) > room):
            again = send()
            if again is not None and not self._leave_to_thread(again, is_needed=True):
                again()

    def forget(self, seq: int) -> None:
        """Learn that a message has been answered."""
        self._unread.pop(seq, None)

    def _leave_to_thread(self, send: Send, *, is_needed: bool) -> bool:
        with self._lock:
            if self._waiting is not None:
                self._waiting.append(send)
                return True
            if not is_needed:
                return False
            self._waiting = deque([send])
            thread = threading.Thread(target=self._send_all, name="joblib_stateful-send", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # there is no room for one more thread, or the interpreter is ending
                self._waiting = None
                return False
            return True

    def _send_all(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._waiting = None
                    return
                send: Send | None = self._waiting.popleft()
            while send is not None:
                send = send()


def _put_now(line: Line, message: Message, data: bytes, segments: Sequence[Any], levels: Levels | None) -> Send | None:
    """Send a message; return what sends it otherwise, if it can't be sent so."""
    try:
        line.send(data, [segment.fd for segment in segments])
    except Exception as error:  # noqa: BLE001 - whatever it is, the worker will not answer; if it is gone that is known already
        if isinstance(error, OSError) and error.errno == errno.ETOOMANYREFS:
            # How many files may be under way is a limit of the user's.
            message = in_line(message)
            data = encode(message) if levels is None else encode(message, tuple(levels))
            return partial(_put_now, line, message, data, (), levels)
        line.hang_up()
    return None
