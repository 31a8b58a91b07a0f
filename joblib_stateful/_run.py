"""One run of a map: its loop, its feeding and its end, in the consumer's thread.

Each step first gives the workers what they can use (`_pull`), as far as the buffer has room, then yields the next
result, waiting for it if need be (`_next_batch`). Everything else is policy: what an exception does.
"""

from __future__ import annotations

import operator
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from . import _exit, _locks, _safely
from ._feed import Feed
from ._noticing import Memory
from ._outcome import add_note, packing_error_of
from ._plan import AFTER_ERROR
from ._progress import Progress
from ._records import Call, Group
from .errors import ShutdownError

if TYPE_CHECKING:
    from ._core import Core
    from ._plan import Plan
    from ._surroundings import Surroundings
    from ._transport import Packing

# After Ctrl-C, what runs has this long to end before its worker is killed (a notebook keeps the others).
_INTERRUPT_GRACE = 0.5
# A slow input must not hold results up: a batch is sent as it is when pulling it has taken so long.
_PULL_SECONDS = 0.02
# While a bar is to be shown, a consumer that waits looks this often at what workers have finished of batches that are under
# way. tqdm draws at most ten times a second, and with every second look at this rate.
_SHOW_SECONDS = 0.05
# Always empty: what is to be taken while something must be looked at first.
_NOTHING: list[Any] = []
# Pulling from these runs nobody's code, so several items can be pulled before the first of them is packed.
_AT_REST: tuple[type, ...] = tuple(map(type, map(iter, ([], (), range(0), range(1 << 64)))))


class MapRun:
    """The state of one map.

    Parameters
    ----------
    plan : Plan
        What to do.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.turn = threading.Lock()  # held while the map is advanced or shut
        self.holder: int | None = None  # the thread that does so
        self.is_closed = False  # no more results are wanted
        self.is_shut = False  # everything is let go
        self.n_pulled = 0
        self.n_taken = 0  # of the batches whose turn came
        # The rest of the present batch, last one first: what can be given before anything else has to be done, and what
        # comes after that.
        self.ready: list[Any] = []
        self._later: list[Any] = []
        #: From this any thread takes what comes next: `ready`, or nothing while there is something to look at first.
        self.quick = _NOTHING
        self._has_news = False  # since the latest look
        self.core: Core | None = None
        self._group = Group(on_error=self._on_group_error, n_slots=plan.n_jobs)
        self._progress = Progress(plan.progress, plan.length)
        self.feed: Feed | None = None
        self._give_back: Callable[[], None] | None = None
        self._input: Iterator[Any] | None = None
        self._input_error: Exception | None = None
        self._surroundings: Surroundings | None = None
        self._is_at_rest = False  # the input's items are there already: it is never slow
        self._memory = Memory()
        self._set_back: list[Any] = []  # items of such an input for which the latest batch had no room
        self._is_input_slow = False  # the latest batch took long to pull
        self._n_finished = 0  # settled, as the workers report it
        self._n_shown = 0
        self._fatal: BaseException | None = None
        self._failed: Call | None = None  # a batch with an error, as soon as that is known
        self._is_stopping = False
        self.raised: BaseException | None = None  # an item's error that is being raised

    # --- the loop -------------------------------------------------------------------------------------

    def results(self) -> Generator[Any, None, None]:
        """Yield the results; to be advanced and shut under `turn`."""
        plain = self.plan.on_error != "deferred" and not self.plan.indexed
        if not plain:
            from . import _public  # noqa: F401 - before there are results that would be lost if it failed
        failures: list[tuple[int, BaseException]] = []
        while (taken := self._next_batch()) is not None:
            call, places = taken
            if call.fatal is not None:
                raise call.fatal
            feed = self.feed
            assert feed is not None  # noqa: S101 - the batch came by it
            if not plain or call.errors or call.dropped:
                yield from self._one_by_one(call, places, feed, failures)
                continue
            values = call.values if places is None else call.take(places)
            values.reverse()
            self.n_taken += len(values)
            self._later = values
            while self.ready or self._later:
                self._look(feed)
                with suppress(IndexError):  # another thread was faster
                    yield (self.ready or self._later).pop()
        self._show_progress()
        if self.is_closed:
            return
        if failures:
            raise self._first_of(failures)
        if self._input_error is not None:
            raise self._input_error

    def _one_by_one(
        self, call: Call, places: list[int] | None, feed: Feed, failures: list[tuple[int, BaseException]]
    ) -> Generator[Any, None, None]:
        """Yield what there is to yield of a batch, and collect its errors."""
        deferred = self.plan.on_error == "deferred"
        indexed = deferred or self.plan.indexed
        if indexed:
            from ._public import TaskResult
        first = call.first or 0
        for position in range(call.size) if places is None else places:
            error = call.errors.get(position)
            self.n_taken += 1
            if position in call.dropped:
                self._check_that_we_dropped()
            elif error is not None and not deferred:
                failures.append((first + position, error))
            else:
                value, call.values[position] = call.values[position], None
                yield TaskResult(first + position, value, error) if indexed else value
                del value
            self._look(feed)

    def _check_that_we_dropped(self) -> None:
        if not (self._group.stopping or self._is_stopping or self.is_closed):
            raise ShutdownError(
                "The executor was shut down while a map was under way, with cancel_futures=True or kill_workers=True, so "
                "the rest of its results will never come. End the map first, with close(), or let it run to its end."
            )

    def _next_batch(self) -> tuple[Call, list[int] | None] | None:
        """Return the next batch, and which of its results are there; None at the end."""
        while not self.is_closed:
            self._check()
            self._show_progress()
            feed = self.feed
            if feed is not None and feed.is_ready:
                self._pull_if_starving()
                return feed.take()
            if self._has_room() and self._pull():
                continue
            feed = self.feed
            if feed is None or (feed.n_running == 0 and not feed.is_ready):
                if self._input is None:
                    return None
                continue
            self._wait(feed)
        return None

    @property
    def n_given(self) -> int:
        """Items that the consumer has had, or whose turn came and that failed or were dropped."""
        return self.n_taken - len(self.ready) - len(self._later)

    def _look(self, feed: Feed) -> None:
        """Do what is to be done between two results, and lay out those that can be given before it is done again."""
        self.quick = _NOTHING  # so that nobody takes anything meanwhile
        self._has_news = False  # first: what comes meanwhile is news again
        self._check()
        self._show_progress()
        self._pull_if_starving()
        plan, n_running = self.plan, feed.n_running
        n_jobs = plan.n_jobs
        keep = 0  # of them are not to be given before the next look
        if not (self._input is None or self._is_input_slow or plan.synchronous or n_running >= 2 * n_jobs):
            # That is due when so many have been given that a batch has room.
            room = 1 if n_running < n_jobs else plan.batching.batch
            given = self.n_pulled - plan.batching.buffer + room
            keep = max(0, self.n_taken - given)
        later = self._later
        # Nothing is taken back from `ready`, for another thread may be about to take it.
        self.ready[:0] = later[keep:]
        del later[keep:]
        if len(later) == keep:
            self.quick = self.ready
        if self._has_news or self.is_closed:  # only by now
            self.quick = _NOTHING

    def look_first(self) -> None:
        """Have whoever wants the next result look at what has come before; from any thread."""
        self._has_news = True  # in this order: `_look` takes care of what comes in between
        self.quick = _NOTHING

    def _wait(self, feed: Feed) -> None:
        """Wait until something can be done, or shown."""
        assert self.core is not None  # noqa: S101 - there is a feed
        can_send_more = self._input is not None and self._room > 0
        if can_send_more:
            self._group.sharing = False
        elif not self._group.sharing:
            self.core.share(self._group)
        is_shown = self._progress.is_wanted
        has_changed = partial(self._has_changed, feed)
        feed.wait_for(has_changed, _SHOW_SECONDS if is_shown else None)
        if is_shown and not has_changed():
            self._progress.say(self.core.building(self._group))
            # In this order: what is answered in between is counted at the next look, and not twice now.
            self._show(self._n_finished + self.core.n_behind(self._group))

    def _has_changed(self, feed: Feed) -> bool:
        """Tell whether something can be done, or shown."""
        return (
            feed.is_ready
            or self.is_closed
            or self._fatal is not None
            or (self._failed is not None and self.plan.on_error != "deferred" and not self._is_stopping)
            or (self._n_finished > self._n_shown and self._progress.is_wanted)
            or self._has_room()
        )

    def _check(self) -> None:
        """Raise, or stop feeding, if something went wrong."""
        if self._fatal is not None:
            raise self._fatal
        if self.core is not None and self.core.is_disowned:
            raise ShutdownError(
                "This map began before os.fork(), and its workers are the parent's: what they find goes there. Start a new "
                "map here."
            )
        if self._failed is not None and self.plan.on_error == "immediate":
            raise self._first_of([((self._failed.first or 0) + at, error) for at, error in self._failed.errors.items()])
        if self._failed is not None and self.plan.on_error == "wait_others" and not self._is_stopping:
            self._is_stopping = True
            self._end_input()
            if self.core is not None:
                self.core.stop_after_running(self._group)

    def _first_of(self, failures: Sequence[tuple[int, BaseException]]) -> BaseException:
        self.raised = _first_of(failures)
        return self.raised

    # --- feeding --------------------------------------------------------------------------------------

    @property
    def _room(self) -> int:
        """Items that the buffer has room for."""
        return self.plan.batching.buffer - (self.n_pulled - self.n_given)

    def _has_room(self) -> bool:
        """Tell whether a batch should be pulled now: all of it has room, or a worker has nothing to do."""
        plan, feed = self.plan, self.feed
        if self._input is None and feed is not None:
            return False
        room, running = self._room, 0 if feed is None else feed.n_running
        if plan.synchronous:
            return room > 0 and running == 0
        n_jobs = 1 if self.core is None else plan.n_jobs
        if running >= 2 * n_jobs and plan.batching.is_growing:
            return False
        return room > 0 and (room >= plan.batching.batch or running < n_jobs)

    def _pull_if_starving(self) -> None:
        """Pull one batch if the workers will soon have nothing to do; results that are there go first."""
        if self._input is None or self.feed is None or self.core is None or self.plan.synchronous:
            return
        if self._is_input_slow:  # then what is there goes first, and pulling waits until nothing is
            return
        if self.feed.n_running < 2 * self.plan.n_jobs and self._has_room():
            self._pull()

    def _pull(self) -> bool:
        """Pull a batch and send it; False if the input has ended."""
        if self.n_pulled == 0 and self._input is None:
            self._surroundings = self.plan.surroundings()  # before the input's own code
            self._input = iter(self.plan.iterable)
            self._is_at_rest = isinstance(self._input, _AT_REST)
        if self._input is None or self.is_closed:
            return False
        plan = self.plan
        remaining = None if plan.length is None else max(0, plan.length - self.n_pulled)
        packing = self._take_items(plan.batching.next_batch(self._room, remaining))
        count = packing.count
        if count:
            self._send(packing, count)
        return bool(count)

    def _take_items(self, wanted: int) -> Packing:
        """Pull and pack up to ``wanted`` items; fewer if the input ends, breaks or is slow."""
        assert self._input is not None  # noqa: S101 - the caller looked
        items, max_bytes = self._packing(), self.plan.batching.max_bytes
        try:
            if self._is_at_rest:
                has_more = self._fill(items, wanted, max_bytes)
            else:
                until = time.perf_counter() + _PULL_SECONDS
                has_more = items.pull(self._input, wanted, until=until, max_bytes=max_bytes)
                self._is_input_slow = items.is_late
        except Exception as error:  # noqa: BLE001 - it is raised when the items before it are done with
            self._input_error, has_more = error, False
        if not has_more:
            self._input = None
        return items

    def _packing(self) -> Packing:
        transport = self.plan.transport
        return transport.packing(definer=transport.definer(memory=self._memory))

    def _fill(self, items: Packing, wanted: int, max_bytes: float) -> bool:
        """Pack items that are there already; return whether there may be more."""
        assert self._input is not None  # noqa: S101 - the caller looked
        values = self._set_back[:wanted]
        del self._set_back[:wanted]
        values += islice(self._input, wanted - len(values))
        n_packed = items.fill(values, max_bytes=max_bytes)
        self._set_back[:0] = values[n_packed:]
        return n_packed < len(values) or len(values) == wanted

    def _send(self, items: Packing, count: int) -> None:
        if self.feed is None:
            self._start()
        assert self.core is not None and self.feed is not None  # noqa: S101, PT018 - _start made them
        first = self.n_pulled
        self.n_pulled += count
        parcel, faults = items.finish(), items.faults
        call = Call(
            count,
            self._group,
            self.plan.limits,
            after_error=AFTER_ERROR[self.plan.on_error],
            budget=self.plan.batching.budget,
            first=first,
            mode=self.plan.pass_as,
            target=self.plan.target,
            parcel=parcel,
            unsent=frozenset(faults),
        )
        call.surroundings = self._surroundings
        for position, error in faults.items():
            call.fail(position, packing_error_of(error, first + position))
        if parcel.n_values:
            self.plan.batching.note_sent(parcel.nbytes, parcel.n_values)
        self.feed.send(call)

    def _start(self) -> None:
        if _locks.is_held():
            raise RuntimeError("A map in a finaliser would wait for what the thread is at in which that runs.")
        self.core, self._give_back = self.plan.open()
        self.feed = Feed(self.core, self._note_back, self._note_part, self.look_first, ordered=self.plan.ordered)
        self._progress.open()
        if self.plan.synchronous and self._progress.is_wanted and not self.core.has_objects:
            self._progress.say("building 1 of 1", at_once=True)  # in this thread, which can say nothing meanwhile

    # --- news, in any thread --------------------------------------------------------------------------

    def _note_back(self, call: Call) -> None:
        if call.fatal is not None:
            self._fatal = call.fatal
        self._note_part(call)
        self.plan.batching.note_back(call)

    def _note_part(self, call: Call) -> None:
        if call.errors and call.fatal is None and self._failed is None:
            self._failed = call
        # Another thread may just be dropping items, and then fewer seem to be done.
        before, call.n_counted = call.n_counted, max(call.n_counted, call.n_finished)
        self._n_finished += call.n_counted - before

    def _on_group_error(self, error: BaseException) -> None:
        self._fatal = error
        self.wake()

    def wake(self) -> None:
        """Have a consumer that waits look again."""
        if self.feed is not None:
            self.feed.wake()

    # --- the end --------------------------------------------------------------------------------------

    def _show_progress(self) -> None:
        self._show(self._n_finished)

    def _show(self, n_finished: int) -> None:
        # Less than was shown: what a worker had finished was lost with it, and is being done again.
        if n_finished > self._n_shown:
            new, self._n_shown = n_finished - self._n_shown, n_finished
            self._progress.add(new)

    def _end_input(self) -> None:
        source, self._input = self._input, None
        self._set_back.clear()
        if isinstance(source, Generator):
            source.close()

    def close(self, *, interrupted: bool = False) -> None:
        """Let go of everything, from any thread; whoever advances the map does it, if somebody does."""
        self.is_closed = True
        self.look_first()  # nobody takes anything more
        if not self.turn.acquire(blocking=False):
            self.wake()
            return
        self.holder = threading.get_ident()
        try:
            self.shut(interrupted=interrupted)
        finally:
            self.holder = None
            self.turn.release()

    def close_from_finaliser(self, thread: int | None) -> None:
        """Let go of everything, from a finaliser; a thread has advanced the map last."""
        if self.is_shut or self.core is None:
            return
        # Garbage may be collected at any point of any thread, also while it holds one of our locks.
        _exit.call_from_finaliser(self.close, is_free=thread == threading.get_ident())

    def shut(self, *, interrupted: bool = False) -> None:
        """Let go of everything; what runs finishes in the background."""
        if self.is_shut:
            return
        self.is_shut = self.is_closed = True
        self.look_first()  # or `quick` would still give what was ready
        self.ready, self._later = [], []
        self.raised = None  # its traceback leads back here
        core, feed = self.core, self.feed
        with ExitStack() as rest:  # all of it, also if Ctrl-C is pressed again or the input's end raises
            if self._give_back is not None:
                rest.callback(self._give_back)
            rest.callback(self._progress.close)
            rest.callback(self._end_input)
            if core is not None and feed is not None:
                # In a fork none of it will ever be done.
                rest.callback(feed.abort if interrupted or core.is_disowned else feed.end)
                if interrupted:
                    core.interrupt(self._group, _INTERRUPT_GRACE)
                else:
                    core.drop(self._group)

    def flush(self) -> None:
        """Have the loggers get what the workers have logged, before the consumer hears that this is the end."""
        if self.core is not None and not self.core.is_disowned:
            self.core.engine.flush()


def _first_of(failures: Sequence[tuple[int, BaseException]]) -> BaseException:
    """Return the error of the lowest index, with the others noted on it."""
    (first, error), *others = sorted(failures, key=operator.itemgetter(0))
    for index, other in others:
        add_note(error, f"item {index} failed too: {_safely.name_of(type(other))}: {_safely.text_of(other)}")
    if _safely.is_a(error, StopIteration):
        # Raised from __next__ it would end the caller's loop as if nothing had happened.
        replacement = RuntimeError(
            f"The worker's call raised StopIteration for item {first}, which would end your loop as if all were done; "
            "the worker's own exception is the cause of this one."
        )
        replacement.__cause__ = error
        return replacement
    return error
