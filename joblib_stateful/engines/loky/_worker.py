"""One worker process, on the parent's side."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.context
import weakref
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from ..._process import _system
from ..._process._safely import Log, name_of, text_of
from ..._transport._segments import numbers, spares
from ..._worker._log_levels import watch as log_levels
from ..._worker._messages import (
    NOTHING,
    Build,
    BuildFailed,
    Built,
    Death,
    Failure,
    Finished,
    Phase,
    Ran,
    Refused,
    Run,
    answer_to,
)
from ..._worker._progress_page import Progress
from ...errors import why_condemned
from .._answers import fault_in
from .._base import EngineWorker
from .._buffers import in_line, segments_in
from .._mailbox import Mailbox
from ._ending import in_thread
from ._line import Line
from ._log_reader import reader
from ._outbox import Outbox
from ._process_tree import kill_tree
from ._shared_numbers import SharedNumbers
from ._starting import standard_files, start

# loky, and the copy of it within joblib, register their start methods under the same names when they are imported. The
# last one would start the processes of both, which then report to the wrong resource tracker.
_start_methods = dict(multiprocessing.context._concrete_contexts)  # type: ignore[attr-defined]  # see above
try:
    from . import _child
    from ._process import WorkerProcess
    from ._signal_masks import signals_blocked
    from ._startup import Startup
finally:
    multiprocessing.context._concrete_contexts.update(_start_methods)  # type: ignore[attr-defined]  # see above

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from ..._transport._segments import Segment
    from ..._transport._transport import Transport
    from ..._worker._log_levels import Levels
    from ..._worker._messages import Finish, Message, Reply
    from .._mailbox import Awaited, OnReply
    from ._log_reader import Channel
    from ._reader import Reader, Source

_log = Log()

# A process that is seen to be gone is reaped at once; this only guards against one that can't be.
_REAP_SECONDS = 2.0
# A process that has given its last answer has so long to end by itself: for exit handlers, which may have data to save.
_END_SECONDS = 10.0
# What a worker has logged by its end is handled before it counts as closed, unless handlers take longer.
_HANDLE_SECONDS = 5.0


class LokyWorker(EngineWorker):
    """One worker process.

    What it answers comes by a line of its own, and is heard by its executor's `Reader`, as is its end.
    """

    def __init__(
        self, transport: Transport, env: Mapping[str, str], reader: Reader, slot: int = 0, n_lanes: int = 1
    ) -> None:
        self._transport, self._reader = transport, reader
        self._env, self._slot = dict(env), slot
        self._logs: Channel | None = None  # by which log records come
        self._told: Levels | None = None  # which of them are wanted
        self._numbers: SharedNumbers | None = SharedNumbers(Progress.SIZE * n_lanes)
        self._pages = Progress.pages(n_lanes, self._numbers.values)
        self.progress = self._pages[0]
        self._process: WorkerProcess | None = None
        self._lifeline: list[Connection] = []  # one that is open as long as the process shall live
        self._line: Line | None = None
        self._source: Source | None = None  # the reader's record of it
        self._lent: dict[int, list[Any]] = {}  # the segments that went with messages under way, by number
        self._number = next(numbers)  # by which it is noted who has what
        self._least: dict[int, int] = {}  # the numbers of the messages that it said it was at before those
        self._outbox = Outbox()
        self._fault = ""  # what it says that can't be
        self._has_finished = False  # the last answer was that to `Finish`
        self._failure: Failure | None = None  # what that said
        self._on_closed: Callable[[Failure | None], None] | None = None  # who is told when it is gone
        # Its lock guards all these, too; it is held while the process is started or killed.
        self._mailbox = Mailbox(n_lanes)

    def send(self, message: Message, on_reply: OnReply) -> Death | None:
        """Hand the message to the process, which is started with the first one."""
        with self._mailbox.lock:
            try:
                placed = self._expect(message, on_reply)
                if placed is None:
                    return Death(self.pid, reason="it was killed")
                if self._process is None:
                    self._start()
                self._transmit(placed)
            except Exception as error:  # noqa: BLE001 - out of processes, threads, memory or file descriptors
                return self._give_up(message, error)
        return None

    def progress_of(self, seq: int) -> Progress:
        """Return what is seen of a message under way."""
        return self._mailbox.page_of(seq, self._pages)

    def close(self, message: Finish, on_closed: Callable[[Failure | None], None]) -> None:
        """Have the object closed and the process end, which is killed if something keeps it."""
        source = self._source
        if source is not None:
            self._reader.make_heard(source)
        with self._mailbox.lock:
            if self._process is not None:
                self._on_closed = on_closed
                self.send(message, self._finished)
            if self._process is None:  # it was never started, is gone, or could not be told to end
                self._on_closed = None
                self._let_go()
            else:
                return
        on_closed(None)

    def _finished(self, reply: Reply | Death) -> None:
        source = self._source
        if isinstance(reply, Finished) and source is not None:
            self._failure = reply.failure
            self._reader.expect_the_end(source, _END_SECONDS)

    def kill(self) -> None:
        """Kill the process and what it started."""
        with self._mailbox.lock:
            self._mailbox.close()
            if self._process is not None:
                self._reader.look_after()
                # Its death is noticed, and so the message under way is answered.
                _kill_and_reap(self._process)
            if not self._mailbox.awaited and self._on_closed is None:
                self._let_go()

    def condemn(self, what: str) -> None:
        """Kill the process, whose memory must be damaged."""
        self._fault = self._fault or what
        self.kill()

    def disown(self) -> None:
        """Forget the process, whose end would reach for the parent's."""
        _not_ours.append(self._process)
        _at_work.discard(self)
        # Or multiprocessing would wait for it at exit, and complain that it is no child of this process.
        multiprocessing.process._children.discard(self._process)  # type: ignore[attr-defined]
        self._mailbox = Mailbox()
        self._mailbox.close()
        self._process = self._line = self._source = None

    # --- the process ----------------------------------------------------------------------------------

    def _start(self) -> None:
        self._reader.look_after()
        with standard_files():
            self._start_process()

    def _start_process(self) -> None:
        # A pipe for each worker, because only one process can be signalled for an open file.
        self._logs = logs = reader.open(self._slot, id(self._reader))
        if logs is not None:  # also if nobody needs this worker any more, and it is collected
            weakref.finalize(self, reader.finish, logs).atexit = False
        theirs, ours = multiprocessing.Pipe(duplex=False)
        _lifelines.add(ours)
        self._lifeline = [ours]
        # Held by this, so that it isn't collected together with the worker: a connection that is closed so doesn't know that,
        # and whoever still gets hold of the worker would close its number again, which is somebody else's by then.
        weakref.finalize(self, _close_once, self._lifeline).atexit = False
        self._line, far_end = Line.pair(is_shared=len(self._pages) > 1)
        if not _system.IS_WINDOWS:
            start(resource_tracker)  # which ends by unblocking SIGINT, so first
        startup, log_end = Startup.of_program(), logs and logs.worker_end
        args = theirs, far_end, self._numbers, self._transport, startup, log_end
        process = WorkerProcess(target=_child.run, args=args, env=self._env)
        with theirs, contextlib.closing(far_end), signals_blocked():
            process.start()
        self._process, self.pid = process, process.pid
        spares.begin(self._number)
        weakref.finalize(self, spares.end, self._number).atexit = False
        self._source = self._reader.watch(self, self._line, process)

    def gone(self) -> None:
        """Learn, in a thread that must not be kept, that the process is gone, and that no answer of it is left."""
        if self._line is None:
            return
        try:
            in_thread("joblib_stateful-end", self._ended)
        except RuntimeError:  # there is no room for one more, or the interpreter is ending
            self._ended()

    def _ended(self) -> None:
        with self._mailbox.lock:
            if self._line is None:  # it was let go before, or a fork has been told to forget it
                return
            self._mailbox.close()
            awaited = self._mailbox.take_all()
            self._not_at_work()
            self._lent.clear()
        exitcode = self._exitcode()
        deaths = [self._autopsy(exitcode, one.message) for one in awaited]
        with self._mailbox.lock:
            self._let_go()
            on_closed, self._on_closed = self._on_closed, None
        if on_closed is not None:
            if self._logs is not None and not reader.is_mine():
                self._logs.done.wait(_HANDLE_SECONDS)
            on_closed(self._failure)
            return
        for one, death in zip(awaited, deaths, strict=True):
            one.on_reply(death)
        if not awaited and self.on_idle_death is not None:
            self.on_idle_death(self._autopsy(exitcode, None))

    def _give_up(self, message: Message, error: BaseException) -> Death:
        """Let go of a process that could not be started, or to which a message could not be sent."""
        with self._mailbox.lock:
            self._mailbox.take(message.seq)
            process = self._process
            if process is not None:
                _kill_and_reap(process)
            exitcode = None if process is None else process.exitcode
            if self._mailbox.awaited:  # others are told when it is noticed that it is gone
                self._mailbox.close()
            else:
                self._not_at_work()
                self._let_go()
        return Death(self.pid, exitcode, reason=f"{name_of(type(error))}: {text_of(error)}")

    def _exitcode(self) -> int | None:
        """Return how the process ended, when it is gone."""
        process = self._process
        if process is None:
            return None
        with contextlib.suppress(Exception):
            process.join(_END_SECONDS if self._has_finished else _REAP_SECONDS)
        if process.exitcode is None:  # somebody else has reaped it, or it stays (which is not seen on Windows)
            _kill_and_reap(process)
        exitcode: int | None = process.exitcode
        return exitcode

    def _autopsy(self, exitcode: int | None, message: Message | None) -> Death:
        """Return what its end means for a message."""
        reason = ""
        if self._fault:  # then the signal was ours
            exitcode = None
            reason = why_condemned(self._fault)
        if message is None:
            return Death(self.pid, exitcode, reason=reason)
        progress = self._pages[message.lane if isinstance(message, Run) else 0]
        size = message.parcel.n_values if isinstance(message, Run) else 0
        is_its_own = len(self._pages) == 1 or progress.seq == message.seq
        if is_its_own and progress.fault(message.seq, size, self._least.get(message.seq, 0)):
            return Death(self.pid, exitcode, started=True, reason=reason)
        started = bool(reason) or progress.seq == message.seq
        return Death(self.pid, exitcode, started, progress.place, progress.n_finished, reason, progress.n_together)

    def _let_go(self) -> None:
        """Hold nothing open for a process that is gone; what it was doing can still be read."""
        with self._mailbox.lock:
            self._mailbox.close()
            _close_once(self._lifeline)
            if self._logs is not None:
                reader.finish(self._logs)
            if self._line is not None:
                self._line.hang_up()
            self._pages = [page.copy() for page in self._pages]
            self.progress = self._pages[0]
            spares.end(self._number)
            _at_work.discard(self)
            self._lent.clear()  # they are not used again, for nobody has said that nobody looks into them
            self._process = self._numbers = self._line = self._source = None

    # --- messages -------------------------------------------------------------------------------------

    def _expect(self, message: Message, on_reply: OnReply) -> Message | None:
        placed = self._mailbox.put(message, on_reply)
        if placed is None:
            return None
        least = self.progress_of(message.seq).seq
        self._least[message.seq] = least if 0 <= least < message.seq else 0
        _at_work.add(self)
        return placed

    def _not_at_work(self) -> None:
        if self._on_closed is None:  # else it is needed until it is gone
            _at_work.discard(self)

    def _transmit(self, message: Message) -> None:
        segments = self._lent[message.seq] = list(segments_in(message))
        for segment in segments:
            segment.lent.add((self._number, message.seq))
        if len(segments) > Line.most_files:
            segments = segments[: Line.most_files]
            message = in_line(message, {segment.number for segment in segments})
        assert self._line is not None  # noqa: S101 - the process is started
        levels, told = log_levels.look(), self._told
        self._told = levels
        self._outbox.put(self._line, message, segments, None if levels is told else levels)

    def check(self, reply: Any, kept: Any) -> None:
        """Raise ValueError for what is no answer to a message under way."""
        awaited = self._answered(reply)
        if awaited is None:
            if self._mailbox.is_closed:  # nobody waits for it any more
                return
            raise ValueError("it sends something, and was asked nothing")
        if fault := fault_in(awaited.message, reply, kept):
            raise ValueError(f"its answer is none: {fault}")

    def _answered(self, reply: Any) -> Awaited | None:
        """Return the message under way that something is the answer to."""
        under_way = self._mailbox.awaited
        if len(under_way) == 1:
            return next(iter(under_way.values()))  # whatever it says
        if type(reply) is Refused:  # of several: the first that has not been begun, for they are begun in order
            return next((one for seq, one in under_way.items() if self._pages[one.lane].seq != seq), None)
        return under_way.get(getattr(reply, "seq", 0))

    def note_fault(self, error: BaseException) -> None:
        """Note that what has come is no answer, for when it is asked how the process has ended."""
        self._fault = self._fault or f"{name_of(type(error))}: {text_of(error)}"

    def lent_with(self, seq: int) -> Sequence[Segment]:
        """Return the segments that went with a message under way."""
        return self._lent.get(seq, ())

    def answer_without(self, nbytes: int) -> Reply:
        """Return the answer to the message under way for which there was no memory here."""
        under_way = list(self._mailbox.awaited.values())
        if (
            len(under_way) > 1
        ):  # those of which the worker says that they are done with; there may be several, then none is
            under_way = [one for one in under_way if self._is_done_with(one)]
        if len(under_way) != 1:
            raise ValueError(
                f"it sends {nbytes:,} bytes, for which this program has no memory, and was asked nothing or several things"
            )
        message, lane = under_way[0].message, under_way[0].lane
        text = f"this program had no memory to receive an answer of {nbytes:,} bytes"
        failure = Failure(None, "MemoryError", text, "", "result")
        if isinstance(message, Run):
            progress = self._pages[lane]
            n_items, n_finished = message.parcel.n_values, progress.n_finished
            n_run = n_finished if progress.seq == message.seq and 1 <= n_finished <= n_items else n_items
            return Ran(message.seq, n_run, NOTHING, dict.fromkeys(range(n_run), failure), 0.0, was_lost=True)
        if isinstance(message, Build):
            return BuildFailed(message.seq, self.pid, failure)
        return Finished(message.seq, None)

    def owes_answer(self, seq: int) -> bool:
        """Tell whether a message of which the worker says that it is done with isn't answered, though somebody listens."""
        source = self._source
        # While something is done with the answer before, this one may wait to be sent.
        return self.progress_of(seq).sent != seq and (source is None or not source.is_busy)

    def _is_done_with(self, awaited: Awaited) -> bool:
        page = self._pages[awaited.lane]
        return page.seq == awaited.message.seq and page.phase is Phase.IDLE

    @property
    def sent(self) -> int:
        """The number of a message under way that the worker says it has answered; 0: none."""
        under_way = list(self._mailbox.awaited.items())
        return next((seq for seq, awaited in under_way if self._pages[awaited.lane].sent == seq), 0)

    def answer_elsewhere(self) -> None:
        """Have further answers taken by another thread than the calling one, which brings one."""
        source = self._source
        if source is not None:
            self._reader.hear_elsewhere(source)

    def note(
        self, reply: Reply | Refused, kept: Collection[int] | None
    ) -> tuple[Reply, Callable[[Reply | Death], None], bool] | None:
        """Count a message under way as answered.

        Return the answer, who is to be called with it, and whether that may run users' code; None if nobody waits for it.

        Parameters
        ----------
        reply : Built, BuildFailed, Ran, Finished or Refused
            The answer.
        kept : collection of int or None
            The numbers of the segments that the worker still looks into; None if they aren't known.
        """
        with self._mailbox.lock:
            awaited = self._answered(reply)
            if awaited is None:
                return None
            message, on_reply, _ = awaited
            if isinstance(reply, Refused):
                reply = answer_to(message, reply)
                self._told = None  # what came with the message is lost, too
            if message.seq != reply.seq:
                raise ValueError(f"an answer to message {reply.seq} has come for {message.seq}")
            self._mailbox.take(reply.seq)
            if not self._mailbox.awaited:
                self._not_at_work()
            self._least.pop(reply.seq, None)
            self._outbox.forget(reply.seq)
            lent = self._lent.pop(reply.seq, [])
        for segment in lent:
            if kept is not None and segment.number not in kept:
                segment.lent.discard((self._number, reply.seq))
        self._has_finished = isinstance(reply, Finished)
        return reply, on_reply, self._runs_code(message, reply)

    def _runs_code(self, message: Message, reply: Reply) -> bool:
        """Tell whether users' code may run when an answer is taken: to load it, or because somebody is called with it."""
        if not isinstance(reply, Ran) or not isinstance(message, Run):
            return not isinstance(reply, Built)
        return message.mode == "call" or bool(reply.failures) or self._transport.runs_any_code(reply.values)

    def overstays(self) -> None:
        """Say that the process is killed, for it should have ended and has not."""
        if self._has_finished:
            _log.warning(
                "The process of a worker (pid %s) was still there %.1f s after its object was done with, and was killed with "
                "all that it had started. Likely cause: it had started a thread or a process that is not daemonic, for which "
                "Python waits at the end. Start it with daemon=True, or end it in the object's close().",
                self.pid,
                _END_SECONDS,
            )

    @property
    def is_damaged(self) -> bool:
        """True if it has said what can't be."""
        return bool(self._fault)

    @property
    def ends_by_itself(self) -> bool:
        """True if its process is let go, or has been told to end."""
        return self._process is None or self._has_finished


# These hold no worker, so that one that nobody needs is collected, and its process ends with its lifeline. One that has
# something to do is needed, also if its executor was dropped: for the answer, or for what it does at its end.
_at_work: set[LokyWorker] = set()


# --- ending processes -----------------------------------------------------------------------------------


def _kill_and_reap(process: Any) -> None:
    kill_tree(process)
    # Also if it was gone before: multiprocessing keeps those that nobody joined.
    with contextlib.suppress(Exception):
        process.join(_REAP_SECONDS)


# --- forks ----------------------------------------------------------------------------------------------

# What a fork inherited: kept, so that it is not collected and does not tidy up after the parent.
_not_ours: list[Any] = []

# Ends that a fork must not keep open, or it would keep its parent's workers alive.
_lifelines: weakref.WeakSet[Connection] = weakref.WeakSet()


def _close_once(ends: list[Connection]) -> None:
    with contextlib.suppress(IndexError):  # another thread has it, or had it
        ends.pop().close()


def _close_lifelines() -> None:
    for end in _lifelines:
        end.close()


_system.after_fork(_close_lifelines)
