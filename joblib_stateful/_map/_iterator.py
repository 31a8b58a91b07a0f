"""The iterator that `stateful_map` returns: its loop, its policies and its end, in the consumer's thread.

Each look first takes what other threads have left in the inbox, then gives the workers what they can use (`_pull`), as far as the
buffer has room, and lays out what can be given before that must be done again. Everything else is policy: what an exception
does.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Self, TypeVar

from .._copies import NotCopied
from .._executor import _exit
from .._executor._replies import add_note
from .._measuring._measures import clock
from .._process import _locks, _safely
from .._process._interrupts import uninterrupted
from .._scheduling._requests import Group
from .._words import count
from .._worker._tracebacks import without_our_frames
from ..errors import ShutdownError
from ._alike import AlikeFeeder
from ._batches import Inbox
from ._feeder import Feeder
from ._measures import MapMeasures
from ._plan import explain_batch_size
from ._progress import Progress
from ._results import Results
from ._routing import RoutedFeeder
from ._trace import TraceWriter

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from .._executor._pool import WorkerPool
    from .._public import TaskResult, WorkerInfo
    from .._scheduling._requests import Outcome
    from ._batches import Batch
    from ._plan import Plan
    from ._report import MapReport

T = TypeVar("T")

# After Ctrl-C, what runs has this long to end before its worker is killed (a notebook keeps the others).
_INTERRUPT_GRACE = 0.5
# While a bar is to be shown, a consumer that waits looks this often at what workers have finished of batches that are under
# way. tqdm draws at most ten times a second, and with every second look at this rate.
_SHOW_SECONDS = 0.05
# So many errors are named on the one that is raised: a call may have thousands of items that fail.
_MOST_NAMED = 10


class StatefulMap(NotCopied, Generic[T]):
    """The results of a `stateful_map`: an iterator with a length.

    Nothing starts before its first ``next()``. Leaving it early, by ``break``, `close`, an exception or garbage
    collection, drops what is queued and leaves the workers and their objects alive.

    Examples
    --------
    >>> from joblib_stateful import stateful_map
    >>> with stateful_map(str.upper, ["a", "b"], n_jobs=1, engine="inline") as results:
    ...     len(results), list(results)
    (2, ['A', 'B'])
    """

    _instead = (
        "the copy would share its workers and its input, and end it when it is dropped. Call stateful_map again for a second "
        "map; for the same results in two places, use itertools.tee or make a list of them."
    )

    # Nothing that lives longer refers to it, nor does it refer to itself, so that dropping it ends it at once.

    def __init__(self, plan: Plan) -> None:
        self._pool: WorkerPool | None = None  # first, for `__del__`: a Ctrl-C may strike here, too
        self._plan = plan
        self._turn = _locks.Lock()  # held while the map is advanced or shut
        self._thread: int | None = None  # that advanced it last
        self._is_closed = False  # no more results are wanted
        self._is_shut = False  # everything is let go
        inbox = Inbox()
        self._inbox, self._news = inbox, inbox.news
        self._measures = MapMeasures(
            None if plan.trace is None else TraceWriter(plan.trace, plan.n_places // plan.n_jobs)
        )
        self._group = Group(on_error=inbox.put, n_slots=plan.n_jobs, watch=self._measures.note)
        if plan.route is not None and plan.on_error == "deferred":
            self._group.broken = {}
        self._feeder = _feeder_of(plan)(plan, self._group, inbox)
        self._progress = Progress(plan.progress, plan.length)
        self._give_back: Callable[[], None] | None = None
        self._results: Results | None = None
        # What was taken and not given, last one first: what can be given before the next look, by any thread, and what comes
        # behind that.
        self._ready: list[Any] = []
        self._later: list[Any] = []
        self._n_taken = 0  # items whose turn came
        self._n_finished = 0  # as the workers report it
        self._n_shown = 0
        self._fatal: BaseException | None = None
        self._first_errors: dict[int, BaseException] = {}  # by index: of the outcome that brought the first ones
        self._is_stopping = False
        self._failures: list[tuple[int, BaseException]] = []  # those whose turn came
        self._raised: BaseException | None = None  # an item's error that is being raised

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        # Nearly all items come this way, for which no lock is needed; tiny ones feel each step (`benchmarks/items.py`).
        try:
            if not self._news:
                return self._ready.pop()  # type: ignore[no-any-return]  # T says what a map yields
        except IndexError:  # there is something to do first, or another thread was faster
            pass
        except KeyboardInterrupt:
            self._close(interrupted=True)
            raise
        try:
            return self._advance()
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the caller's
            __tracebackhide__ = True
            raise without_our_frames(error)  # noqa: B904 - the same one

    def _advance(self) -> T:
        if self._turn.is_mine:
            raise ValueError("This map is being advanced already: its own input, or progress, asked it for a result.")
        try:
            with self._turn:
                if not self._is_closed:
                    self._thread = threading.get_ident()
                    self._measures.enter()
                    try:
                        return self._next()  # type: ignore[no-any-return]  # T says what a map yields
                    except KeyboardInterrupt as interrupt:
                        self._shut(interrupted=interrupt is not self._raised)
                        raise
                    except BaseException:  # the end, or an error that is the caller's now
                        self._shut()
                        self._flush()
                        raise
                    finally:
                        self._measures.leave()
        finally:
            if self._is_closed and not self._is_shut:  # by another thread, while it was our turn
                self._close()
        raise StopIteration

    def __len__(self) -> int:
        length = self._plan.length
        if length is None:
            raise TypeError("The length of this map is not known, for its input has none; give total=... to tell it.")
        return length

    def __bool__(self) -> bool:
        # Not by the length, which may not be known: who asks `results or []` is not to be told so.
        return self._plan.length != 0

    def __length_hint__(self) -> int:
        # Asked only where the length is not known.
        try:
            hint = operator.length_hint(self._plan.iterable)
        except Exception:  # noqa: BLE001 - the input's own code
            hint = 0
        return max(0, hint + self._feeder.n_pulled - self._n_given)

    def close(self) -> None:
        """End the map: what is queued is dropped, what runs finishes in the background.

        May be called from any thread, and more than once.
        """
        if _locks.is_held():  # in a finaliser of the user's, and then others wait for this thread
            _exit.call_from_finaliser(self._close)
        else:
            self._close()

    def workers(self) -> list[WorkerInfo]:
        """Return a `WorkerInfo` for each worker of the map; none before its first ``next()``."""
        return [] if self._pool is None else self._pool.infos()[: self._plan.n_jobs]

    def report(self) -> MapReport:
        """Say where the time went: in the workers' code, building, transport, the input, or the loop over the results.

        Returns
        -------
        MapReport
            It prints as a few lines with an advice, and is a timeline in a notebook. Also while the map runs, from any
            thread.

        Examples
        --------
        >>> from joblib_stateful import stateful_map
        >>> results = stateful_map(abs, range(100), n_jobs=2, engine="threads")
        >>> len(list(results))
        100
        >>> results.report().n_items
        100
        """
        from ._report import report_of  # most programs never ask

        pool = self._pool if self._measures.ended is None else None
        return report_of(
            self._measures,
            [] if pool is None else pool.under_way(self._group),
            n_items=self._n_given,
            n_at_once=self._plan.n_places // self._plan.n_jobs,
            is_routed=self._plan.route is not None,
        )

    def _repr_html_(self) -> str:
        return self.report()._repr_html_()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_is_shut", True) or self._pool is None:
            return
        # Garbage may be collected at any point of any thread, also while it holds one of our locks.
        _exit.call_from_finaliser(self._close, is_free=self._thread == threading.get_ident())

    def __repr__(self) -> str:
        state = "closed" if self._is_shut else "not started" if self._pool is None else "running"
        length = "?" if self._plan.length is None else self._plan.length
        return f"<StatefulMap {state}, {self._n_given} of {length} done>"

    # --- the loop -------------------------------------------------------------------------------------

    def _next(self) -> Any:
        """Return the next result; raise what ends the map. Under `_turn`."""
        while not self._is_closed:
            self._look()
            results = self._results
            if self._ready or self._later:
                try:
                    return (self._ready or self._later).pop()
                except IndexError:  # another thread was faster
                    continue
            elif results is not None and results.is_ready:
                self._take(results)
            elif self._has_room() and self._pull():
                continue
            elif results is not None and results.n_running:
                self._wait()
            elif self._feeder.is_over:
                self._end()
        raise StopIteration

    def _end(self) -> NoReturn:
        """Raise what is to be raised when all results have been given."""
        if self._failures:
            raise self._first_of(self._failures)
        if self._feeder.error is not None:
            raise self._feeder.error
        raise StopIteration

    def _look(self) -> None:
        """Do what is to be done between two results, and lay out those that can be given before it is done again."""
        while self._news:
            self._note(self._news.popleft())
        self._check()
        if self._n_finished > self._n_shown:
            self._show(self._n_finished)
        self._pull_if_starving()
        keep = self._n_to_keep() if self._later else 0
        # Nothing is taken back from `_ready`, for another thread may be about to take it.
        self._ready[:0] = self._later[keep:]
        del self._later[keep:]

    def _n_to_keep(self) -> int:
        """Return how many of the results at hand are not to be given before the next look."""
        plan, n_running = self._plan, self._n_running
        if self._feeder.is_over or self._feeder.is_slow or plan.synchronous or n_running >= 2 * plan.n_places:
            return 0
        # That is due when so many have been given that a batch has room.
        room = plan.batching.enough if n_running < plan.n_places else plan.batching.batch
        return max(0, self._n_taken - (self._feeder.n_pulled - plan.batching.buffer + room))

    def _take(self, results: Results) -> None:
        """Take what has come next, and make of it what is to be given."""
        first, outcome = results.take()
        self._n_taken += len(outcome.positions)
        self._note_errors(first, outcome)  # whoever brings it may not have said so yet
        if outcome.is_dropped:
            self._check_that_we_dropped()
            return
        values = outcome.values
        if outcome.errors or self._is_indexed:
            values = self._as_wanted(first, outcome)
        values.reverse()
        self._later = values

    @property
    def _is_indexed(self) -> bool:
        return self._plan.indexed or self._plan.on_error == "deferred"

    def _as_wanted(self, first: int, outcome: Outcome) -> list[Any]:
        """Return what to give of some results, with their indices if that is wanted; collect errors that are not given."""
        found, errors = outcome.values, outcome.errors
        if self._plan.on_error != "deferred" and errors:
            self._failures += [(first + position, error) for position, error in errors.items()]
        if not self._is_indexed:
            return [value for position, value in zip(outcome.positions, found, strict=True) if position not in errors]
        from .._public import TaskResult

        given = self._plan.on_error == "deferred"
        return [
            TaskResult(first + position, value, errors.get(position))
            for position, value in zip(outcome.positions, found, strict=True)
            if given or position not in errors
        ]

    def _check_that_we_dropped(self) -> None:
        if not (self._group.stopping or self._is_closed or self._fatal):
            raise ShutdownError(
                "The executor was shut down while a map was under way, with cancel_futures=True or kill_workers=True, or "
                "the main thread came to its end while another one ran the map, so the rest of its results will never come. "
                "End the map first, with close(), or let it run to its end: the main thread can join() the other one."
            )

    @property
    def _n_given(self) -> int:
        """Items that the consumer has had, or whose turn came and that failed or were dropped."""
        return self._n_taken - len(self._ready) - len(self._later)

    @property
    def _n_running(self) -> int:
        return 0 if self._results is None else self._results.n_running

    def _wait(self) -> None:
        """Wait until something can be done, or shown."""
        assert self._pool is not None  # noqa: S101 - there is something to wait for
        if (self._feeder.is_over or self._room <= 0) and not self._group.sharing:
            self._pool.share(self._group)
        is_shown, since = self._progress.is_wanted, clock()
        self._inbox.wait(_SHOW_SECONDS if is_shown else None)
        self._measures.stay("waiting", since)
        if is_shown and not self._news:
            self._progress.say(self._pool.building(self._group))
            # In this order: what is answered in between is counted at the next look, and not twice now.
            self._show(self._n_finished + self._pool.n_behind(self._group))

    # --- news -----------------------------------------------------------------------------------------

    def _note(self, news: tuple[Batch, Outcome] | BaseException | None) -> None:
        """Learn what another thread has left in the inbox."""
        if isinstance(news, BaseException):
            self._fatal = self._fatal or news
        elif news is not None and self._results is not None:
            self._note_outcome(self._results, *news)

    def _note_outcome(self, results: Results, batch: Batch, outcome: Outcome) -> None:
        results.note(batch, outcome)
        if not outcome.is_dropped:
            self._n_finished += len(outcome.positions)
        self._note_errors(batch.first, outcome)
        if self._plan.batching.is_of_calls:
            self._plan.batching.note_outcome(outcome, batch.n_calls)
            if batch.n_calls > 1 and batch.is_known:
                self._plan.batching.note_together(batch.size, batch.n_calls, batch.seconds)
        elif batch.is_known:
            self._plan.batching.note_back(batch.size, batch.n_run, batch.seconds, batch.result_bytes)

    def _note_errors(self, first: int, outcome: Outcome) -> None:
        self._fatal = self._fatal or outcome.fatal
        if outcome.errors and not self._first_errors:
            self._first_errors = {first + position: error for position, error in outcome.errors.items()}
            explain_batch_size(self._plan, self._first_errors)

    def _check(self) -> None:
        """Raise, or stop feeding, if something went wrong."""
        if self._fatal is not None:
            raise self._fatal
        pool = self._pool
        if pool is not None and pool.is_disowned:
            raise ShutdownError(
                "This map began before os.fork(), and its workers are the parent's: what they find goes there. Start a new "
                "map here."
            )
        if not self._first_errors or self._is_stopping:
            return
        if self._plan.on_error == "immediate":
            raise self._first_of(list(self._first_errors.items()))
        if self._plan.on_error == "wait_others" and self._pool is not None:
            self._is_stopping = True
            self._feeder.end()
            self._pool.stop_after_running(self._group)

    def _first_of(self, failures: Sequence[tuple[int, BaseException]]) -> BaseException:
        self._raised = _first_of(failures)
        return self._raised

    def _show(self, n_finished: int) -> None:
        # Less than was shown: what a worker had finished was lost with it, and is being done again.
        if n_finished > self._n_shown:
            new, self._n_shown = n_finished - self._n_shown, n_finished
            self._progress.add(new)

    # --- feeding --------------------------------------------------------------------------------------

    @property
    def _room(self) -> int:
        """Items that the buffer has room for."""
        return self._plan.batching.buffer - (self._feeder.n_pulled - self._n_given)

    def _has_room(self) -> bool:
        """Tell whether a batch should be pulled now: all of it has room, or a worker has nothing to do and enough of it has."""
        plan, running = self._plan, self._n_running
        if self._feeder.is_over:
            return False
        room = self._room
        if plan.synchronous:
            return room > 0 and running == 0
        n_places = 1 if self._pool is None else plan.n_places
        # Of batches with a route each may wait for the same slot, while others have nothing to do.
        if running >= 2 * n_places and plan.batching.is_growing and plan.route is None:
            return False
        is_enough = room >= plan.batching.enough or not self._has_results
        return room > 0 and (room >= plan.batching.batch or (running < n_places and is_enough))

    @property
    def _has_results(self) -> bool:
        """True if the next result can be given."""
        return bool(self._ready or self._later) or (self._results is not None and self._results.is_ready)

    def _pull_if_starving(self) -> None:
        """Pull one batch if the workers will soon have nothing to do; results that are there go first."""
        results, plan = self._results, self._plan
        if results is None or plan.synchronous:
            return
        if self._feeder.is_slow:  # then what is there goes first, and pulling waits until nothing is
            return
        if results.n_running < 2 * plan.n_places and self._has_room():
            self._pull()

    def _pull(self) -> bool:
        """Pull a batch and send it; False if the input has ended, or nothing of it is wanted any more."""
        if self._is_closed:  # by the progress, a moment ago
            return False
        since = clock()
        batch = self._feeder.next_batch(self._room, is_awaited=self._n_running < self._plan.n_places)
        self._measures.stay("input", since)
        if self._plan.trace is not None:
            self._measures.count(self._feeder.n_pulled, self._n_given)
        if batch is None:
            return self._feeder.has_begun_batch
        results = self._results or self._start()
        with uninterrupted():
            results.send(batch)
        return True

    def _start(self) -> Results:
        if _locks.is_held():
            raise RuntimeError("A map in a finaliser would wait for what the thread is at in which that runs.")
        plan = self._plan
        if self._is_indexed:
            from .. import _public  # noqa: F401 - before there are results that would be lost if it failed
        self._pool, self._give_back = plan.open()
        self._progress.open()
        if plan.synchronous and self._progress.is_wanted and not self._pool.has_objects:
            self._progress.say("building 1 of 1", at_once=True)  # in this thread, which can say nothing meanwhile
        # As many workers as there are batches at first. joblib, whose import takes 0.15 s with numpy's, is loaded while they
        # start (W7 of `python -m benchmarks`).
        n_first = (
            plan.n_jobs if plan.length is None else min(plan.n_jobs, -(-plan.length // (plan.n_places // plan.n_jobs)))
        )
        if plan.route is None:  # else only those are built that items go to
            self._pool.begin(self._group, plan.limits, self._feeder.surroundings, n_first)
        with uninterrupted():  # or a module of joblib's, or numpy's, would be there by half
            from ._generator import BatchGenerator

        self._results = Results(BatchGenerator(self._pool, ordered=plan.ordered), ordered=plan.ordered)
        return self._results

    # --- the end --------------------------------------------------------------------------------------

    def _close(self, *, interrupted: bool = False) -> None:
        """Let go of everything, from any thread; whoever advances the map does it, if somebody does."""
        self._is_closed = True
        self._inbox.put()  # nobody takes anything more without a look
        if self._turn.is_mine:  # within the input's own code
            return
        # A Ctrl-C may strike behind each step, so whether it was taken is asked of the lock alone.
        try:
            if self._turn.acquire(blocking=False):
                self._shut(interrupted=interrupted)
        finally:
            with suppress(RuntimeError):  # another thread has it
                self._turn.release()

    def _shut(self, *, interrupted: bool = False) -> None:
        """Let go of everything; what runs finishes in the background."""
        self._is_closed = True
        # All of it, also if Ctrl-C is pressed again or the input's end raises. Until it is known what that is, there is none: it
        # would be shut, and yet hold its workers.
        with ExitStack() as rest, uninterrupted():
            if self._is_shut:
                return
            self._is_shut = True
            self._n_taken = self._n_given
            self._ready.clear()
            self._later.clear()
            # Their tracebacks lead back here.
            self._raised = self._fatal = self._feeder.error = None
            self._first_errors, self._failures = {}, []
            pool, results, self._results = self._pool, self._results, None
            if self._give_back is not None:
                rest.callback(self._give_back)
                self._give_back = None
            self._plan = self._plan.ended()
            rest.callback(self._measures.end)
            rest.callback(self._progress.close)
            rest.callback(self._feeder.end)
            rest.callback(self._inbox.close)
            if results is not None:
                rest.callback(results.end)
            if pool is not None:  # which may be at work for it before there is a batch
                rest.callback(self._drop, pool, interrupted=interrupted)

    def _drop(self, pool: WorkerPool, *, interrupted: bool) -> None:
        """Have nothing more of the map run."""
        if interrupted:
            pool.interrupt(self._group, _INTERRUPT_GRACE)
        else:
            pool.drop(self._group)

    def _flush(self) -> None:
        """Have the loggers get what the workers have logged, before the consumer hears that this is the end."""
        if self._pool is not None and not self._pool.is_disowned:
            self._pool.runtime.flush()


def with_indices(results: StatefulMap[T]) -> StatefulMap[TaskResult[T]]:
    """Return a map like one that has not started, but that yields a `TaskResult` for each item."""
    return StatefulMap(results._plan._replace(indexed=True))


def _first_of(failures: Sequence[tuple[int, BaseException]]) -> BaseException:
    """Return the error of the lowest index, with the others noted on it."""
    (first, error), *others = sorted(failures, key=operator.itemgetter(0))
    others = [(index, other) for index, other in others if other is not error]  # a call's items may all have the same
    for index, other in others[:_MOST_NAMED]:
        add_note(error, f"item {index} failed too: {_safely.name_of(type(other))}: {_safely.text_of(other)}")
    if len(others) > _MOST_NAMED:
        add_note(error, f"{count(len(others) - _MOST_NAMED, 'more item')} failed")
    if _safely.is_a(error, StopIteration):
        # Raised from __next__ it would end the caller's loop as if nothing had happened.
        replacement = RuntimeError(
            f"The worker's call raised StopIteration for item {first}, which would end your loop as if all were done; "
            "the worker's own exception is the cause of this one."
        )
        replacement.__cause__ = error
        return replacement
    return error


def _feeder_of(plan: Plan) -> type[Feeder]:
    if plan.route is not None:
        return RoutedFeeder
    return AlikeFeeder if plan.batching.is_of_alike else Feeder
