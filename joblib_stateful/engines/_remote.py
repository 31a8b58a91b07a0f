"""Workers at the far end of something that blocks, such as a cluster: what they have in common.

On this side each has a thread that hands over a message and waits for the answer. What the far end does in the
meantime isn't seen from here: not which item of a batch runs, nor since when.
"""

from __future__ import annotations

import contextlib
import pickle
from abc import abstractmethod
from typing import TYPE_CHECKING

from .. import errors
from .._process._safely import name_of, text_of
from .._worker._messages import (
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
from .._worker._worker import Worker, set_process_worker
from ..errors import why_condemned
from ._answers import fault_in
from ._mailbox import ServedWorker

if TYPE_CHECKING:
    from .._transport._transport import Transport
    from .._worker._messages import Message, Reply

__all__ = ["Host", "RemoteWorker"]


class RemoteWorker(ServedWorker):
    """A worker whose answers are waited for in a thread.

    Subclasses say how a message is exchanged for its answer, and how the far end is ended. The rest of what an engine's
    worker must do is here.

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

    def __init__(self) -> None:
        super().__init__("joblib_stateful-remote")

    @abstractmethod
    def exchange(self, message: Message) -> Reply | Refused | Death:
        """Have the far end answer a message; it is started with the first one, a `Build`.

        Called in one and the same thread each time, which may block for as long as it takes. An exception means that
        the far end is of no use any more; an `EngineError` during a `Build`, that it can't be had at all.
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
        is_run, is_last = isinstance(message, Run), isinstance(message, Finish)
        self.progress.enter(message.seq, Phase.RUNNING if is_run else Phase.CLOSING if is_last else Phase.BUILDING)
        if isinstance(message, Run) and (message.mode == "batch" or message.parcel.n_values == 1):
            self.progress.start_call(0, message.parcel.n_values)

    def _begin(self, message: Message) -> None:
        self.begin(message)

    def _answer(self, message: Message) -> Reply | Death:
        reply = self._answer_of(message)
        self.progress.leave()
        return reply

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
            self.pid = reply.pid
        return reply

    def _end(self) -> None:
        with contextlib.suppress(Exception):  # it is gone already, or nobody can reach it any more
            self.end()


class Host:
    """The far end: one life of one slot.

    Parameters
    ----------
    transport : Transport
        How values travel; the runtime's own.
    is_process : bool
        It has its process for itself.

    Examples
    --------
    See `RemoteWorker`.

    >>> from joblib_stateful.engines import Pickled
    >>> Host(Pickled(), is_process=False)
    <Host>
    """

    def __init__(self, transport: Transport, *, is_process: bool) -> None:
        self._worker = Worker(transport, Progress())
        self._latest = 0
        self.is_finished = False
        if is_process:
            set_process_worker(self._worker)
            hold_back()

    def serve(self, message: Message) -> Reply:
        """Answer a message; one that comes again, because a cluster tries again what it has lost, is refused."""
        if message.seq <= self._latest:
            raise RuntimeError("this message has been answered before, and the answer was lost")
        if not self._latest and not isinstance(message, Build):
            raise RuntimeError("its process was started anew, and the object is lost")
        self._latest = message.seq
        reply = self._worker.handle(message)
        self.is_finished = isinstance(message, Finish)
        return reply

    def stop(self) -> None:
        """Have what it works on end after the present item, from any thread: nobody waits for it any more."""
        self._worker.progress.ask_to_stop(self._latest)

    def finish(self) -> Failure | None:
        """Close the object because nobody can ask for it any more, if that has not been done; return what went wrong."""
        if self.is_finished:
            return None
        reply = self.serve(Finish(self._latest + 1)) if self._latest else None
        self.is_finished = True
        return reply.failure if isinstance(reply, Finished) else None

    def __repr__(self) -> str:
        return "<Host>"
