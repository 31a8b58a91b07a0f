"""Workers at the far end of something that blocks, such as a cluster: what they have in common.

On this side each has a thread that hands over a message and waits for the answer. What the far end does in the
meantime isn't seen from here: not which item of a batch runs, nor since when.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import threading
import time
from abc import abstractmethod
from collections import deque
from typing import TYPE_CHECKING

from .. import errors
from .._process import _locks
from .._process._safely import name_of, text_of
from .._worker._messages import (
    NO_ROOM,
    Build,
    BuildFailed,
    Built,
    Death,
    Failure,
    Finish,
    Finished,
    Phase,
    Refused,
    Run,
    answer_to,
)
from .._worker._progress_page import Progress
from .._worker._signals import hold_back
from .._worker._worker import CANCEL_SECONDS, Worker, set_process_worker
from ..errors import why_condemned
from ._answers import fault_in
from ._mailbox import ServedWorker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .._transport._transport import Transport
    from .._worker._messages import Message, Reply

__all__ = ["Host", "RemoteWorker"]

# A message may come long before the one that is to be begun before it, which may have large arrays to bring; and how often
# one that waits looks whether anybody still waits for it.
_TURN_SECONDS, _LOOK_SECONDS = 600.0, 2.0
# So many messages are known again if they come again, which is tried at once or never.
_REMEMBERED = 1_000

_AGAIN = "this message has been answered before, and the answer was lost"
_ANEW = "its process was started anew, and the object is lost"


class RemoteWorker(ServedWorker):
    """A worker whose answers are waited for in a thread.

    Subclasses say how a message is exchanged for its answer, and how the far end is ended. The rest of what an engine's
    worker must do is here.

    Parameters
    ----------
    n_lanes : int, default 1
        How many messages the far end takes at a time: its runtime's ``max_concurrency``, if the engine says `Engine.is_concurrent`.

    Examples
    --------
    An engine whose far end is no farther than a call; ``examples/process_engine.py`` is one with processes.

    >>> from joblib_stateful import stateful_map
    >>> from joblib_stateful.engines import Engine, Host, Pickled, Runtime
    >>> class NearWorker(RemoteWorker):
    ...     def __init__(self, transport):
    ...         super().__init__()
    ...         self.host = Host(transport, is_process=False)
    ...     def exchange(self, message):
    ...         return self.host.serve(message)
    ...     def end(self):
    ...         pass
    >>> class NearRuntime(Runtime):
    ...     transport = Pickled()
    ...     def open(self, slot, env):
    ...         return NearWorker(self.transport)
    >>> class NearEngine(Engine):
    ...     name = "near"
    ...     def make_runtime(self, n_slots):
    ...         return NearRuntime(self)
    >>> list(stateful_map(abs, [-1, -2], n_jobs=2, engine=NearEngine()))
    [1, 2]
    """

    def __init__(self, n_lanes: int = 1) -> None:
        super().__init__("joblib_stateful-remote", n_lanes)
        self._is_async = False  # calls of its object are awaited
        self._others: _Threads | None = None
        if n_lanes > 1:
            self._others = _Threads("joblib_stateful-remote-lane", self._exchange_beside)

    @abstractmethod
    def exchange(self, message: Message) -> Reply | Refused | Death:
        """Have the far end answer a message; it is started with the first one, a `Build`.

        Called in one and the same thread each time, which may block for as long as it takes; where there are several lanes,
        for each `Run` in a thread of its own, and the far end begins them in the order that `Run.after` says. An exception
        means that the far end is of no use any more; an `EngineError` during a `Build`, that it can't be had at all.
        """

    @abstractmethod
    def end(self) -> None:
        """End the far end at once, whatever it does.

        Called from any thread, and perhaps again: by the thread of `exchange`, if that was still at work when the far
        end was to be killed.
        """

    def begin(self, message: Message) -> None:
        """Have the time of a message, or of its only item, run from now; to be called again if it had to wait."""
        # By this side's clock, because the far end is idle and takes it at once.
        progress = self._page_of(message)
        if not isinstance(message, Run):
            progress.enter(message.seq, Phase.CLOSING if isinstance(message, Finish) else Phase.BUILDING)
            return
        progress.enter(message.seq, Phase.RUNNING)
        if message.item_timeout is not None and (message.is_async or (self._is_async and message.target_id is None)):
            progress.grant(CANCEL_SECONDS)  # the far end itself cancels what it awaits, and says so
        if message.mode == "batch" or message.parcel.n_values == 1:
            progress.start_call(0, message.parcel.n_values)

    def _page_of(self, message: Message) -> Progress:
        return self.pages[message.lane if isinstance(message, Run) else 0]

    def _begin(self, message: Message) -> None:
        self.begin(message)

    def _answer(self, message: Message) -> Reply | Death:
        reply = self._answer_of(message)
        self._page_of(message).leave()
        return reply

    def _answer_elsewhere(self, message: Message) -> bool:
        if self._others is None or not isinstance(message, Run):
            return False
        try:
            self._others.start(message)
        except RuntimeError as error:  # there are too many threads
            self._deliver(message, self._death(message, str(error)))
        return True

    def _exchange_beside(self, message: Message) -> None:
        self._deliver(message, self._answer(message))

    def _answer_of(self, message: Message) -> Reply | Death:
        try:
            reply = self.exchange(message)
        except errors.EngineError as error:
            if isinstance(message, Build):
                return BuildFailed(message.seq, None, Failure(pickle.dumps(error), "EngineError", str(error), ""))
            return self._death(message, str(error))
        except BaseException as error:  # noqa: BLE001 - whatever it is, the answer won't come
            return self._death(message, f"{name_of(type(error))}: {text_of(error)}")
        if isinstance(reply, Refused):
            return answer_to(message, reply)
        if not isinstance(reply, Death) and (fault := fault_in(message, reply)):
            return self._death(message, why_condemned(fault))
        if isinstance(reply, Built):
            self.pid, self._is_async = reply.pid, reply.is_async
        return reply

    def _end(self) -> None:
        if self._others is not None:
            self._others.end()
        with contextlib.suppress(Exception):  # it is gone already, or nobody can reach it any more
            self.end()


class _Threads:
    """Threads that take one message after the other, and that nobody waits for when the program ends.

    Parameters
    ----------
    name : str
        What they are called.
    work : callable
        What is done with a message.
    """

    def __init__(self, name: str, work: Callable[[Message], None]) -> None:
        self._name, self._work = name, work
        self._lock = _locks.Lock()  # guards the one below
        self._n_idle = 0
        self._todo: queue.SimpleQueue[Message | None] = queue.SimpleQueue()

    def start(self, message: Message) -> None:
        """Have a message taken by a thread that has nothing to do, or by a new one."""
        with self._lock:
            is_there = self._n_idle > 0
            self._n_idle -= is_there
        if not is_there:
            threading.Thread(target=self._serve, name=self._name, daemon=True).start()
        self._todo.put(message)

    def end(self) -> None:
        """Have them end as soon as they have nothing to do."""
        self._todo.put(None)

    def _serve(self) -> None:
        while (message := self._todo.get()) is not None:
            self._work(message)
            del message  # hold nothing while waiting
            with self._lock:
                self._n_idle += 1
        self._todo.put(None)  # for the next one


class Host:
    """The far end: one life of one slot.

    Parameters
    ----------
    transport : Transport
        How values travel; the runtime's own.
    is_process : bool
        It has its process for itself.
    n_lanes : int, default 1
        How many messages it takes at a time.

    Examples
    --------
    See `RemoteWorker`.

    >>> from joblib_stateful.engines import Pickled
    >>> Host(Pickled(), is_process=False)
    <Host>
    """

    def __init__(self, transport: Transport, *, is_process: bool, n_lanes: int = 1) -> None:
        self._pages = Progress.pages(n_lanes)
        self._worker = first = Worker(transport, self._pages[0])
        self._latest = 0
        self.is_finished = False
        self._turns: _Turns | None = None
        self._workers, self._at = {0: first}, {0: 0}  # by their places; and the number of the message that each is at
        if n_lanes > 1:
            self._turns = _Turns()
            first.life.lock = self._turns.lock
        if is_process:
            set_process_worker(self._worker)
            hold_back()

    def serve(self, message: Message) -> Reply:
        """Answer a message; one that comes again, because a cluster tries again what it has lost, is refused.

        Where it takes several at a time, to be called in a thread for each of them.
        """
        if self._turns is not None:
            return self._serve_in_turn(self._turns, message)
        if message.seq <= self._latest:
            raise RuntimeError(_AGAIN)
        if not self._latest and not isinstance(message, Build):
            raise RuntimeError(_ANEW)
        self._latest = self._at[0] = message.seq
        reply = self._worker.handle(message)
        self.is_finished = isinstance(message, Finish)
        return reply

    def _serve_in_turn(self, turns: _Turns, message: Message) -> Reply:
        if not self._latest and not isinstance(message, Build):
            raise RuntimeError(_ANEW)
        lane, after = (message.lane, message.after) if isinstance(message, Run) else (0, 0)
        with turns.take(message.seq, after):
            self._latest, self._at[lane] = max(self._latest, message.seq), message.seq
            worker = self._workers.get(lane)
            if worker is None:
                first = self._worker
                worker = self._workers[lane] = Worker(first.transport, self._pages[lane], life=first.life)
            reply = worker.handle(message)  # which lets others take their turns during users' calls
            self.is_finished |= isinstance(message, Finish)
        return reply

    def refuse(self, seq: int, after: int = 0) -> Refused:
        """Return the answer to a message that there was no memory to take in.

        Parameters
        ----------
        seq : int
            Its number.
        after : int, default 0
            See `Run`.

        Returns
        -------
        Refused
        """
        if self._turns is not None:
            with self._turns.take(seq, after):  # the next one waits for it
                pass
        return Refused(os.getpid(), NO_ROOM)

    def stop(self) -> None:
        """Have what it works on end after the present items, from any thread: nobody waits for it any more."""
        if self._turns is not None:
            self._turns.is_over = True
        for lane, seq in list(self._at.items()):
            self._pages[lane].ask_to_stop(seq)

    def finish(self) -> Failure | None:
        """Close the object because nobody can ask for it any more, if that has not been done; return what went wrong."""
        if self.is_finished:
            return None
        reply = self.serve(Finish(self._latest + 1)) if self._latest else None
        self.is_finished = True
        return reply.failure if isinstance(reply, Finished) else None

    def __repr__(self) -> str:
        return "<Host>"


class _Turns:
    """The order in which messages are begun that come in any order, and from several threads."""

    def __init__(self) -> None:
        #: Held by whoever is at a message, but for users' calls.
        self.lock = threading.Lock()
        #: Nobody waits any more for what comes of those that wait for their turn.
        self.is_over = False
        self._changed = threading.Condition(self.lock)
        self._latest = 0  # that was begun
        self._begun: deque[int] = deque(maxlen=_REMEMBERED)

    @contextlib.contextmanager
    def take(self, seq: int, after: int) -> Iterator[None]:
        """Wait until it is a message's turn, that is when the one before has begun; in the context it has begun."""
        with self._changed:
            if seq in self._begun:
                raise RuntimeError(_AGAIN)
            self._wait_for(after, seq)
            self._latest = seq
            self._begun.append(seq)
            self._changed.notify_all()
            yield

    def _wait_for(self, after: int, seq: int) -> None:
        deadline = time.monotonic() + _TURN_SECONDS
        while after not in (0, self._latest):
            if self.is_over or time.monotonic() > deadline:
                raise RuntimeError(f"message {after}, which was to be begun before message {seq}, has not come")
            self._changed.wait(_LOOK_SECONDS)
