"""Calls with several items at once, ``pass_as="batch"``: the items of a message in one, or in halves if that raises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._process import _safely
from ._lazy import UNUSUAL, OverTimeError, is_own_generator
from ._lazy import run as run_lazy
from ._progress_page import Progress
from ._rows import results_in
from ._shortage import RESULT
from ._signals import calls_users

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .._transport._transport import Packing, Parcel, Transport
    from ._messages import Failure, Run

# What libraries say that have no class of their own for it: CUDA, XLA, TensorFlow, PyTorch on a CPU, ONNX Runtime.
_SHORT = (
    "out of memory",
    "resource_exhausted",
    "oom when allocating",
    "not enough memory",
    "can't allocate memory",
    "failed to allocate memory",
)


class Calls:
    """The calls by which the items of one message are run.

    Parameters
    ----------
    message : Run
        What is to be run.
    transport : Transport
        How its items have come.
    progress : Progress
        Where it is noted what runs.
    values : Packing
        Takes the results.
    failures : dict of int to Failure
        Takes what went wrong, by place.
    describe : callable
        Makes a failure of an exception, and of what could not be packed or unpacked.
    lets_through : tuple of type
        Exceptions that are no item's.
    """

    def __init__(
        self,
        message: Run,
        transport: Transport,
        progress: Progress,
        values: Packing,
        failures: dict[int, Failure],
        *,
        describe: Callable[[BaseException, str], Failure],
        lets_through: tuple[type[BaseException], ...],
    ) -> None:
        self.progress = progress
        self._message, self._transport, self._values, self._failures = message, transport, values, failures
        self._describe, self._lets_through = describe, lets_through
        self._rows: list[int] = []
        #: The places of the items that each value is of.
        self.places: list[list[int]] = []
        self.n_calls = 0
        self._largest = 0  # call that went well
        self._short: list[range] = []  # calls that ran out of memory
        self._too_large: set[int] = set()  # places of items that did so alone

    @property
    def rows(self) -> tuple[int, ...]:
        """For each value how many results it holds; 0: it is one itself. Empty: all are."""
        return tuple(self._rows) if any(self._rows) else ()

    @property
    def n_fit(self) -> int:
        """If a call ran out of memory because it had so many items: how many the largest one had that did not; else 0."""
        is_too_many = any(self._too_large.isdisjoint(part) for part in self._short)
        return max(self._largest, 1) if is_too_many else 0

    def __repr__(self) -> str:
        return f"<Calls of message {self._message.seq}: {self.n_calls} made>"

    @calls_users
    def run(self, call: Callable[[list[Any]], Any], target: Any) -> int:
        """Run the items; return how many of the first ones were."""
        message, seq = self._message, self._message.seq  # the latter is looked for from outside, too
        todo = [range(message.parcel.n_values)]
        what = "item"  # "": the user's call runs, as is seen from outside, too
        while todo:
            part = todo.pop()
            if self._is_to_stop(seq, part.start):
                return self._end(part.start)
            self.progress.start_call(part.start, len(part))
            n_items, has_returned = len(part), False
            value: Any = None
            try:
                places, items = self._load(part)
                if not places:
                    continue
                self.n_calls += 1
                n_items = len(items)
                what = ""
                value = call(items)
                has_returned = not is_own_generator(value, target)
                if type(value) in UNUSUAL:
                    value = run_lazy(value, target)
                    has_returned = True
                results = results_in(value, n_items)
                what = "item"
                del items
                self._largest = max(self._largest, n_items)
                self._keep(places, value, results)
                del results
            except self._lets_through:
                raise
            except BaseException as error:  # noqa: BLE001 - these items' error, whatever it is; the worker lives on
                where, what = what, "item"
                items = results = None  # type: ignore[assignment]  # there may be little room
                if self._is_to_be_halved(error, part, n_items, has_returned=has_returned):
                    middle = part.start + len(part) // 2
                    todo += [range(middle, part.stop), range(part.start, middle)]
                    continue
                failure = self._describe(error, where)
                self._failures.update((place, failure) for place in part if place not in self._failures)
            if message.after_error == "drop" and any(place in self._failures for place in part):
                return self._end(part.stop)
        return message.parcel.n_values

    def _is_to_stop(self, seq: int, place: int) -> bool:
        """Tell whether the items from a place on are to be left, which were in a call already that raised."""
        # Not before the first one is done with, for no answer says that none is. And what has begun is to be finished if the
        # others are waited for.
        is_asked = self.progress.numbers[Progress.STOP] == seq
        return bool(is_asked and place > 0 and self._message.after_error != "finish_running")

    def _is_to_be_halved(self, error: BaseException, part: range, n_items: int, *, has_returned: bool) -> bool:
        if is_out_of_memory(error):
            if n_items > 1:
                self._short.append(part)
            else:
                self._too_large.update(part)
            return n_items > 1
        # What was over its time is run again only where there are retries, as after a worker was killed for it.
        if type(error) is OverTimeError:
            return False
        return n_items > 1 and self._message.isolate and not has_returned

    def _end(self, n_run: int) -> int:
        """Leave out what is known of items behind the first so many."""
        for place in [place for place in self._failures if place >= n_run]:
            del self._failures[place]
        return n_run

    def _load(self, part: Sequence[int]) -> tuple[list[int], list[Any]]:
        """Return the places and the items, anew for each call, of those that can be unpacked."""
        parcel: Parcel = self._message.parcel
        joint = self._transport.unpack_joint(parcel)
        if joint is not None:
            return list(part), [joint[place] for place in part]
        unpack, places, items = self._transport.unpacker(parcel), [], []
        for place in part:
            if place in self._failures:
                continue
            try:
                items.append(unpack(parcel.frames[place]))
            except self._lets_through:
                raise
            except BaseException as error:
                if len(part) > 1 and _safely.is_a(error, MemoryError):
                    raise
                self._failures[place] = self._describe(error, "item")
            else:
                places.append(place)
        return places, items

    def _keep(self, places: list[int], value: Any, results: list[Any] | None) -> None:
        """Pack what a call has returned."""
        if results is None:
            self._add(places, value, len(places))
            return
        for place, result in zip(places, results, strict=True):
            if type(result) in UNUSUAL:
                try:
                    run_lazy(result, None)  # which raises what the item fails with
                except self._lets_through:
                    raise
                except BaseException as error:  # noqa: BLE001 - one item's error
                    self._failures[place] = self._describe(error, "")
            else:
                self._add([place], result, 0)

    def _add(self, places: list[int], value: Any, n_rows: int) -> None:
        fault = self._values.add(value)
        if fault is not None:
            failure = RESULT if isinstance(fault, MemoryError) else self._describe(fault, "result")
            self._failures.update(dict.fromkeys(places, failure))
        else:
            self._rows.append(n_rows)
            self.places.append(places)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception says that there was no room, in memory or on a device."""
    if _safely.is_a(error, MemoryError) or "outofmemory" in type(error).__name__.lower():
        return True
    said = _safely.text_of(error).lower()
    return any(words in said for words in _SHORT)
