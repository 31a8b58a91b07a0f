"""What runs in a worker: build the object, run items on it, catch, report, close.

One `Worker` is one life of one slot, in a process of its own (engine ``loky``), a thread or the caller's
thread. It answers one message at a time and writes what it is doing into its `Progress`, which the parent
reads: for exact blame when the process dies, and for time limits. This module imports almost nothing.
"""

from __future__ import annotations

import os
import threading
import time
from contextvars import ContextVar, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, assert_never

from .._process import _safely, _system
from .._transport._definitions import Peer, active
from .._transport._noticing import Memory
from .._transport._transport import IN_LINE, ByReference
from ._debugging import explain_end
from ._lazy import AWAITED, UNUSUAL, OverTimeError, is_async, is_async_class, may_be_async
from ._lazy import run as run_lazy
from ._memory_limit import MemoryLimit, memory_limit
from ._messages import (
    LATE,
    NOTHING,
    Build,
    BuildFailed,
    Built,
    Failure,
    Finish,
    Finished,
    Message,
    Phase,
    Ran,
    Reply,
    Run,
)
from ._passing import passing, refusing
from ._progress_page import Progress
from ._settings import take_over_settings
from ._shortage import RESULT, UNTOLD
from ._signals import calls_users, held, raising
from ._tracebacks import strip, text_of_traceback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .._public import WorkerInfo
    from .._transport._defining import Definer
    from .._transport._transport import Packing, Transport
    from ._event_loop import EventLoop
    from ._surroundings import Surroundings

#: A call that is awaited, and over its time, is cancelled, and has so long to take that before its worker is killed.
CANCEL_SECONDS = 5.0


class Life:
    """What a worker is, whichever of its messages it is at."""

    def __init__(self) -> None:
        self.object: Any = None
        self.has_object = False
        self.is_async = False  # its calls may be awaited
        self.entered: Any = None  # what is to be left at the end, of an object that is used as by ``async with``
        self.slot, self.n_jobs, self.pid, self.depth = -1, 0, os.getpid(), 0
        self.n_threads: int | None = None  # that it is meant to use; None: its machine's
        self.kwargs: dict[str, Any] = {}
        self.target: tuple[str, Callable[..., Any], bool] | None = (
            None  # a function, by its name, and if it may be async
        )
        self.parent = Peer(is_parent=False)
        self.memory = Memory()
        self.surroundings: Surroundings | None = None  # taken over from the program
        self.held_at_first = 0  # bytes, when its object was built
        self.event_loop: EventLoop | None = None  # once something was awaited
        #: Of a worker that takes several messages at a time: held by whoever is at one, but for users' calls. Who begins a
        #: message has it before the next one is received, so that they are begun in order.
        self.lock: threading.Lock | None = None

    def abandon(self) -> None:
        """End what is awaited: nobody wants it any more."""
        if self.event_loop is not None:
            self.event_loop.abandon()


class Worker:
    """One life of one slot, on the worker's side; or one of the places for messages of a worker that takes several.

    Parameters
    ----------
    transport : Transport
        How values travel.
    progress : Progress
        Where it writes what it is doing.
    interruptible : bool
        It runs in the caller's own thread.
    life : Life, optional
        What it shares with the worker's other places.
    """

    def __init__(
        self, transport: Transport, progress: Progress, *, interruptible: bool = False, life: Life | None = None
    ) -> None:
        self.transport = transport
        self.progress = progress
        self.life = life or Life()
        # In the caller's own thread a KeyboardInterrupt is the user's Ctrl-C and no item's error.
        self._lets_through: tuple[type[BaseException], ...] = (KeyboardInterrupt,) if interruptible else ()
        self._definer: Definer | None = None  # of what the message under way is answered with
        self._limit: MemoryLimit | None = None
        self._seq = 0  # of the message under way
        self._target: Any = None  # what is called by the message under way
        self._most_seconds: float | None = None  # that an item of the message under way may run

    def __repr__(self) -> str:
        life = self.life
        built = type(life.object).__name__ if life.has_object else "no object"
        return f"<Worker slot={life.slot} pid={life.pid}: {built}, {self.progress!r}>"

    @property
    def object(self) -> Any:
        """What was built."""
        return self.life.object

    @property
    def has_object(self) -> bool:
        """True once it is."""
        return self.life.has_object

    @property
    def depth(self) -> int:
        """How many workers are above this one."""
        return self.life.depth

    @property
    def info(self) -> WorkerInfo:
        """What this worker is."""
        from .._public import WorkerInfo

        life = self.life
        n_threads = _system.usable_cpus() if life.n_threads is None else life.n_threads
        return WorkerInfo(life.slot, life.n_jobs, life.kwargs, pid=life.pid, n_threads=n_threads)

    def handle(self, message: Message) -> Reply:
        """Answer one message; raises nothing but a Ctrl-C in the caller's own thread."""
        previous = getattr(_local, "worker", None)
        _local.worker = self
        self._definer = self.transport.definer(self.life.parent, self.life.memory)
        try:
            with active(self.life.parent):
                if isinstance(message, Run):
                    return self._run(message)
                if isinstance(message, Build):
                    return self._build(message)
                if isinstance(message, Finish):
                    return self._finish(message)
                assert_never(message)
        finally:
            _local.worker, self._target = previous, None
            self.progress.leave()

    @calls_users
    def _build(self, message: Build) -> Built | BuildFailed:
        self.progress.enter(message.seq, Phase.BUILDING)
        life = self.life
        life.slot, life.n_jobs, life.depth = message.slot, message.n_jobs, message.depth
        life.n_threads = message.n_threads
        started = time.perf_counter()
        what = "function"
        try:
            try:
                self._take_over(message.surroundings)
            finally:
                self._receive(message.definitions)
            if message.spec is not None:
                what = "spec"
                common, own = message.spec
                build, args, shared = self.transport.unpack(common)
                life.kwargs = {**shared, **({} if own is None else self.transport.unpack(own))}
                what = ""
                if is_async(build) or is_async_class(build):
                    made = self._event_loop().run(lambda: build(*args, **life.kwargs))
                else:
                    made = build(*args, **life.kwargs)
                    if type(made) in AWAITED:  # that of a decorator's, or of a lambda
                        coroutine, made = made, None
                        made = self._event_loop().run(lambda: coroutine)
                life.object = self._enter(made) if may_be_async(made) else made
                made = None
                what = "function"
                life.has_object, life.is_async = True, may_be_async(life.object)
        except self._lets_through:
            raise
        except BaseException as error:  # noqa: BLE001 - a constructor may raise anything, SystemExit too
            where, what = what, "function"  # see `calls_users`
            described = self._describe(error)._replace(what=where if where == "spec" else "")
            return BuildFailed(message.seq, os.getpid(), described, self._definitions())
        seconds = time.perf_counter() - started
        if _system.HAS_PROC:  # else it takes a library, which most workers never need
            life.held_at_first = _system.resident_bytes()
        return Built(message.seq, os.getpid(), seconds, life.is_async)

    @calls_users
    def _run(self, message: Run) -> Ran:
        started = time.perf_counter()
        if message.n_jobs is not None:
            self.life.n_jobs = message.n_jobs
        if message.max_memory is not None or self._limit is not None:
            self._limit = memory_limit(self._limit, message.max_memory, self.life.held_at_first)
        values = self.transport.packing(BaseException, None, self._definer)
        failures: dict[int, Failure] = {}
        what = "surroundings"
        try:
            try:
                try:
                    self._take_over(message.surroundings)
                finally:
                    if message.definitions:  # the parent counts on them
                        self._receive(message.definitions)
                what = "function"
                call = self._callable(message)
            finally:  # not before: what its function imports is no item's doing
                self.progress.enter(message.seq, Phase.RUNNING)
            call = self._outside(call, message)
            what = "item"
            try:
                items = self._items(message)
            except MemoryError:
                if message.parcel.n_values == 1:
                    raise
                return Ran(message.seq, 0, NOTHING, {}, 0.0, was_refused=True)
        except self._lets_through:
            raise
        except BaseException as error:  # noqa: BLE001 - unpacking a function runs users' code
            n_run = message.parcel.n_values
            failures = dict.fromkeys(range(n_run), self._describe(error, what))
        else:
            if items is None:
                return self._run_calls(message, call, values, failures, started)
            n_run = self._run_items(message, call, items, values, failures)
        return self._ran(message.seq, n_run, values, failures, started=started)

    def _run_calls(
        self,
        message: Run,
        call: Callable[[Any], Any],
        values: Packing,
        failures: dict[int, Failure],
        started: float,
    ) -> Ran:
        """Run the items in one call, and in several if that raises."""
        from ._calls import Calls  # most workers never need it

        calls = Calls(
            message,
            self.transport,
            self.progress,
            values,
            failures,
            describe=self._describe,
            lets_through=self._lets_through,
        )
        n_run = calls.run(raising(call) if held else call, self.target_of(message))
        reply = self._ran(message.seq, n_run, values, failures, started=started, places=calls.places)
        return reply._replace(rows=calls.rows, n_calls=calls.n_calls, n_fit=calls.n_fit)

    def _ran(
        self,
        seq: int,
        n_run: int,
        values: Packing,
        failures: dict[int, Failure],
        *,
        started: float,
        places: Sequence[Sequence[int]] | None = None,
    ) -> Ran:
        """Return the answer; ``places`` are those of the items that each value is of, by default of one each."""
        seconds = time.perf_counter() - started
        self.progress.reply(n_run)
        n_faults = len(values.faults)
        parcel = values.finish()
        if len(values.faults) > n_faults:  # there was no memory for all of them in the end
            places = places or [(place,) for place in range(n_run) if place not in failures]
            for at in list(values.faults)[n_faults:]:
                failures.update(dict.fromkeys(places[at], RESULT))
        if parcel.needs:
            parcel = parcel._replace(needs=())
        reply = Ran(seq, n_run, parcel, failures, seconds, self._definitions())
        return reply if self._limit is None else reply._replace(n_held=self._limit.excess())

    def _receive(self, definitions: Sequence[Any]) -> None:
        self.life.parent.receive(definitions, self.transport.unpack, self._lets_through)

    def _definitions(self) -> tuple[Any, ...]:
        """Return what the answer refers to and the parent doesn't have yet."""
        definer = self._definer
        if definer is None or not definer.needs:
            return ()
        # Answers of messages under way at once may overtake each other: none counts on what came with another one.
        return self.life.parent.take(definer.needs.values(), again=self.life.lock is not None)

    def _take_over(self, surroundings: Surroundings | None) -> None:
        if surroundings is not None:
            surroundings.take_over(self.life.surroundings)
            self.life.surroundings = surroundings
        now = self.life.surroundings
        if now is not None and now.settings:
            take_over_settings(now.settings)

    @calls_users
    def _run_items(  # noqa: C901 - one loop, for a call of a function can be felt in it
        self,
        message: Run,
        call: Callable[[Any], Any],
        items: Iterator[Any],
        values: Packing,
        failures: dict[int, Failure],
    ) -> int:
        """Run the items, and pack each value at once: the next one may be the same object with other contents."""
        place, pack, (plain, keep), usual = -1, values.add, values.shortcut(), None
        what = "item"  # "": the user's call runs, as is seen from outside, too
        if held:
            call = raising(call)
        # Each line of this loop can be felt where items are tiny: `benchmarks/items.py`.
        numbers, at, stop, seq, timed = self.progress.numbers, Progress.PLACE, Progress.STOP, message.seq, message.timed
        is_full = None if self._limit is None else self._limit.excess
        for stretch in self.progress.stretches(seq, message.parcel.n_values, message.budget, is_full):
            for place in stretch:
                if numbers[stop] == seq and place:  # never before the first one
                    return place
                if timed:
                    numbers[Progress.SINCE] = time.monotonic_ns()
                numbers[at] = place
                try:
                    item = next(items)
                    what = ""
                    value = call(item)
                    what = "item"
                    item = None  # it may be large, and the next one is about to come
                    kind = type(value)
                    if kind is usual or kind in plain:
                        usual = kind
                        keep(value)
                        continue
                    plain, usual = (), None
                    if kind in UNUSUAL:
                        what = ""
                        value = run_lazy(value, self.target_of(message))
                        what = "item"
                    fault = pack(value)
                    if isinstance(fault, MemoryError):
                        failures[place] = RESULT
                        return place + 1  # what comes next has more room in a message of its own
                    if fault is not None:
                        failures[place] = self._describe(fault, "result")
                except self._lets_through:
                    raise
                except BaseException as error:  # noqa: BLE001 - one item's error, whatever it is; the worker lives on
                    where, what = what, "item"
                    failures[place] = self._describe(error, where)
                    if message.after_error != "go_on":
                        return place + 1
                item = value = None
        return place + 1

    def _items(self, message: Run) -> Iterator[Any] | None:
        """Return an iterator that goes on behind an item that can't be unpacked; None if they are all to be had at once."""
        if message.mode == "batch":
            return None
        parcel = message.parcel
        joint = self.transport.unpack_joint(parcel)
        return map(self.transport.unpacker(parcel), parcel.frames) if joint is None else iter(joint)

    def _callable(self, message: Run) -> Callable[[Any], Any]:
        """Return what is called with each item of a message."""
        life = self.life
        if message.mode == "call":
            return self._call_triple
        if message.target_id is None:
            target = life.object
            if not callable(target):  # an executor's need not be, and a factory may return anything
                return refusing(target)
        else:
            if message.target is not None:
                target = self.transport.unpack(message.target)
                life.target = message.target_id, target, may_be_async(target)
            # There may have been no memory for the message that had it.
            if life.target is None or life.target[0] != message.target_id:
                raise LookupError("the function that is called was lost on its way")
            target = life.target[1]
        self._target = target
        return passing(target, message.mode)

    def _outside(self, call: Callable[[Any], Any], message: Run) -> Callable[[Any], Any]:
        """Return a call that is awaited if it is to be, and during which the worker's other messages go on."""
        life, target = self.life, self._target
        self._seq, self._most_seconds = message.seq, message.item_timeout
        may_be_awaited = life.is_async if message.target_id is None or life.target is None else life.target[2]
        if message.mode != "call" and may_be_awaited:
            plain, is_of_several = call, message.mode == "batch"

            def call(item: Any) -> Any:
                return self._awaited(target, partial(plain, item), len(item) if is_of_several else 1)

        return call if life.lock is None else _unlocked(life.lock, call)

    def _call_triple(self, triple: tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]) -> Any:
        function, args, kwargs = triple
        return self._awaited(function, partial(function, *args, **kwargs))

    def call_object(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the object; in a coroutine that gives what is to be awaited, and else what comes of that."""
        life = self.life
        call = partial(life.object, *args, **kwargs)
        is_in_loop = life.event_loop is not None and life.event_loop.is_here
        return self._awaited(life.object, call) if life.is_async and not is_in_loop else call()

    def _awaited(self, function: Any, call: Callable[[], Any], n_items: int = 1) -> Any:
        """Call something, in the worker's event loop if it is a call of an async function, and return what comes of it."""
        if is_async(function):
            return self.run_in_loop(call, n_items)
        value = call()  # here, for a decorator may await what it wraps itself, by asyncio.run
        if type(value) in AWAITED and may_be_async(function):
            return self.run_in_loop(lambda: value, n_items)
        return value

    def run_in_loop(self, function: Callable[[], Any], n_items: int = 1) -> Any:
        """Call a function in the worker's event loop, and return what it returns, or what comes of that if it is to be awaited."""
        loop, seq, progress = self._event_loop(), self._seq, self.progress
        context = copy_context()
        context.run(_inherited.set, self)
        if getattr(_local, "worker", None) is not self:  # a thread of the user's
            return loop.run(function, context=context)
        most = self._most_seconds
        if most is not None:
            progress.grant(CANCEL_SECONDS)
        return loop.run(
            function,
            None if most is None else most * n_items,
            is_unwanted=lambda: progress.to_be_cancelled == seq,
            context=context,
        )

    def _event_loop(self) -> EventLoop:
        life = self.life
        if life.event_loop is None:
            from ._event_loop import EventLoop  # most workers never need it

            with _making_loops:  # two calls of one worker may be the first at once
                if life.event_loop is None:
                    name = f"the worker in slot {life.slot} (pid {life.pid})"
                    life.event_loop = EventLoop(name, partial(_be, self))
        return life.event_loop

    def _enter(self, made: Any) -> Any:
        """Return an object as ``async with`` would give it, if it can be used by that."""
        if not (hasattr(type(made), "__aenter__") and hasattr(type(made), "__aexit__")):
            return made
        entered = self._event_loop().run(made.__aenter__)
        self.life.entered = made
        return made if entered is None else entered

    def target_of(self, message: Run) -> Any:
        """Return what is called with the items of a message, if it is the same for each of them."""
        if message.mode == "call":
            return None
        return self._target

    def _describe(self, error: BaseException, what: str = "") -> Failure:
        try:
            return LATE if type(error) is OverTimeError else self._described(error, what)
        except MemoryError:
            return UNTOLD

    def _described(self, error: BaseException, what: str) -> Failure:
        kind = type(error)
        strip(error)
        if not isinstance(self.transport, ByReference):
            explain_end(error)
        text = text_of_traceback(error)
        packed = None
        if what in ("", "surroundings"):
            try:
                # What lies in the arena belongs to results.
                packed = self.transport.pack_with(error, self._definer, IN_LINE)
            except BaseException:  # noqa: BLE001 - then its texts have to do
                packed = None
        return Failure(packed, _safely.full_name_of(kind), _safely.text_of(error), text, what)

    @calls_users
    def _finish(self, message: Finish) -> Finished:
        self.progress.enter(message.seq, Phase.CLOSING)
        life = self.life
        worker, life.object, life.has_object = life.object, None, False
        what = ""
        try:
            close = getattr(worker, "close", None)
            if life.entered is not None:
                self._event_loop().run(lambda: life.entered.__aexit__(None, None, None))
            elif callable(close) and is_async(close):
                self._event_loop().run(close)
            elif callable(close):
                close()
            elif hasattr(type(worker), "__exit__"):
                worker.__exit__(None, None, None)
            what = "object"
        except self._lets_through:
            raise
        except BaseException as error:  # noqa: BLE001 - reported, and must not keep the worker from ending
            what = "object"  # noqa: F841 - see `calls_users`
            return Finished(message.seq, self._describe(error))
        finally:
            if life.event_loop is not None:
                life.event_loop.close()
        return Finished(message.seq, None)


_making_loops = threading.Lock()


def _unlocked(lock: threading.Lock, call: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a call during which a lock is not held that the caller holds."""

    def call_unlocked(item: Any) -> Any:
        lock.release()
        try:
            return call(item)
        finally:
            lock.acquire()

    return call_unlocked


# --- who am I ------------------------------------------------------------------------------------------

_local = threading.local()
# Threads that a coroutine starts inherit it, by `asyncio.to_thread` or from a context that is copied.
_inherited: ContextVar[Worker | None] = ContextVar("joblib_stateful worker", default=None)


def _be(worker: Worker) -> None:
    """Have this thread be a worker's, for good."""
    _local.worker = worker


# The worker of a process that is nothing else, so that threads that the user's code starts find it too.
_of_process: list[Worker] = []


def current() -> Worker | None:
    """Return the worker that the calling code runs in, if any."""
    worker: Worker | None = getattr(_local, "worker", None) or _inherited.get()
    if worker is None and _of_process:
        worker = _of_process[-1]
    return worker


def set_process_worker(worker: Worker) -> None:
    """Make this process be a worker for good."""
    _of_process[:] = [worker]
    worker.life.parent.use_process()
