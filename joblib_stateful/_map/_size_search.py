"""The search for the number of items per call that gives the most items per second."""

from __future__ import annotations

import math
from collections import deque
from statistics import fmean, median, variance
from typing import TYPE_CHECKING

from ._batching import OVERTIME

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# All figures are of `benchmarks/calls.py --constants`: per cent of the items per second of the best fixed size.

# Calls grow as long as items per second become so many times as many, by `_FIRST_STEP` at first; then so far that what a call
# costs whatever its size is a quarter (1 / `_ITEMS_TO_CALL`) of what its items cost, as two sizes let one expect. With 2 to 16
# instead of 4 it is level on the whole, and calls are larger. A longest step of 4 has 1 to 2 less; one of 64 has up to 6 more
# in short maps, and up to 14 less of padded texts. A first step of 8 has up to 5 more, and up to 9 less of those.
_WORTH_A_STEP = 1.05
_FIRST_STEP = 4
_ITEMS_TO_CALL = 4.0
_LONGEST_STEP = 16
# The median of so many calls of a size counts: the first ones load things, and other programs take their time. Of one that
# gives so much more that it can't be chance, the first; of one that seems to give no more, `_N_DOUBTED`. What it gives for
# certain, and how far the next step goes, is seen from what is so many standard errors less than measured. Without that a call of
# 64 or 128 texts follows one of 4 short ones: up to 27 less of texts of most different lengths, and up to 7 more of a client.
_BEYOND_DOUBT, _N_MEASURED, _N_DOUBTED = 1.5, 3, 4
_ERRORS_LESS = 2.0
# How much calls of a size differ, as long as one of each says nothing.
_USUAL_SPREAD = 0.02
# Of the size at which growing has ended, and then of half and of twice as many items, so many calls are compared at least and
# at most; so many standard errors apart the better one is known. If one call of each decides, there are up to 3 less.
_FEWEST, _MOST, _ERRORS_APART = 3, 12, 1.5
# Less than such a part of a time is never taken for certain.
_LEAST_ERROR = 0.01
# Then the same sizes are compared again after so many calls, after twice as many, and so on: chance may have misled, and what
# items cost may have come to depend on the size in another way, which single items never show.
_COMPARED_AGAIN = 50
# Where the median of `_N_WATCHED` calls has so many times as many items per second as when the size was settled, or so many times
# fewer, items are no longer what they were, and the search begins anew. Without that a map whose first items are slow has a
# fifth of what it could have; with 2 there are up to 7 less of padded texts.
_N_WATCHED, _CHANGED = 8, 4.0
# What a call costs beside the worker's own time (`benchmarks/calls.py --model none`).
_OVERHEAD_SECONDS = 3e-4
# No call shall take longer: nothing of it is seen, and what is dropped goes on for as long.
_MOST_SECONDS = 2.0


class SizeSearch:
    """The size of calls, from how long those so far took.

    Sizes grow as long as that pays. The last one is then compared with half and with twice as many, with calls of both sizes in
    turn, until one is better beyond chance.

    Parameters
    ----------
    n_first : int
        First calls that say nothing: one for each worker.
    limit : int
        Items that a call has at most.
    """

    def __init__(self, n_first: int, limit: int) -> None:
        self.size, self.limit = 1, limit
        self.is_growing = True
        self._n_first = n_first
        self._best, self._best_size = math.inf, 1  # seconds per item
        self._longest_step = _LONGEST_STEP
        # Seconds per item in the latest calls of those sizes that are looked at.
        self._times: dict[int, deque[float]] = {}
        self._other: int | None = None  # what the best size is compared with
        self._is_compared: set[int] = set()
        self._n_until_again = self._n_before_again = _COMPARED_AGAIN
        self._latest: list[float] = []  # seconds per item of the best size

    def note(self, size: int, seconds: float, n_had: int) -> None:
        """Learn how long a call took.

        Parameters
        ----------
        size : int
            Its items.
        seconds : float
            What it took.
        n_had : int
            Items that a call can have now of those that are wanted: others weigh too much.
        """
        time = (seconds + _OVERHEAD_SECONDS) / size
        if self._n_first:
            self._n_first -= 1
        elif self.is_too_long(seconds) and 1 < size <= self.size:
            self._begin_anew(max(1, int(size * _MOST_SECONDS / seconds)))
        elif self.is_growing:
            self._grow(size, time, n_had)
        elif size != self._best_size or not self._has_changed(time):
            self._look_around(size, time, n_had)

    def is_too_long(self, seconds: float) -> bool:
        """Tell whether a call takes so long that no other one should."""
        return seconds > OVERTIME * _MOST_SECONDS

    def limit_to(self, size: int) -> None:
        """Learn that calls with more items run out of memory."""
        self.limit = min(self.limit, size)
        self.size = self._best_size = min(self.size, size)
        self.is_growing, self._other, self._times = False, None, {}
        self._best, self._latest = math.inf, []

    def _grow(self, size: int, time: float, n_had: int) -> None:
        if n_had < self.size:
            self._shorten(n_had)
        if not self.is_growing:
            return
        times = self._times_of(size)
        times.append(time)  # also of the best size: those that come late make it known better
        if size != self.size:
            return
        time, factor = median(times), size / self._best_size
        gain, least = self._gain(size)
        was_too_far = factor > _FIRST_STEP and gain < factor / _FIRST_STEP
        needed = 1 if least > _BEYOND_DOUBT else _N_MEASURED if gain >= _WORTH_A_STEP or was_too_far else _N_DOUBTED
        if len(times) < needed:
            return
        if was_too_far:
            self._longest_step, self.size = _FIRST_STEP, self._best_size * _FIRST_STEP
            return
        if gain < _WORTH_A_STEP:
            self._settle(self._best_size)
            return
        step = min(_step(least, factor), self._longest_step)
        while step > 1 and time * size * step > _MOST_SECONDS:
            step //= 2
        self._best, self._best_size = time, size
        self.size = min(size * step, self.limit)
        if self.size == size:
            self._settle(size)

    def _gain(self, size: int) -> tuple[float, float]:
        """Return how many times as many items per second a size gives as the best one, and how many for certain."""
        if math.isinf(self._best):
            return math.inf, math.inf
        times, before = self._times[size], self._times[self._best_size]
        gain = median(before) / median(times)
        error = _spread(self._times.values()) * math.sqrt(1 / len(times) + 1 / len(before))
        return gain, gain * math.exp(-_ERRORS_LESS * error)

    def _shorten(self, n_had: int) -> None:
        """Make do with as many items as a call can have, which differs from one to the next."""
        size = 1 << (n_had.bit_length() - 1)
        if size > self._best_size or math.isinf(self._best):
            self.size = size
        else:
            self._settle(self._best_size)

    def _times_of(self, size: int) -> deque[float]:
        return self._times.setdefault(size, deque(maxlen=_MOST))

    def _settle(self, size: int) -> None:
        self.size = self._best_size = size
        self.is_growing = False
        self._latest, self._n_before_again = [], _COMPARED_AGAIN
        self._compare_again()

    def _look_around(self, size: int, time: float, n_had: int) -> None:
        """Compare the best size with others, or wait until that is due."""
        if self._other is None:
            self._n_until_again -= 1
            if self._n_until_again <= 0:
                self._n_before_again *= 2
                self._compare_again()
            return
        if size in self._times:
            self._times[size].append(time)
        self._compare(self._best_size, self._other, is_to_be_had=self.size <= n_had)

    def _compare_again(self) -> None:
        self._times, self._is_compared, self._n_until_again = {}, set(), self._n_before_again
        self._compare_next()

    def _compare_next(self) -> None:
        """Compare the best size with one that it was not compared with yet, if there is such a one."""
        best = self._best_size
        self._other = next((other for other in (best // 2, 2 * best) if self._may_be_better(other)), None)
        self.size = self._other or best
        ours = self._times_of(best)
        self._times = {best: ours}
        self._times_of(self.size)

    def _may_be_better(self, size: int) -> bool:
        is_allowed = 1 <= size <= self.limit and size * self._best <= _MOST_SECONDS
        return is_allowed and size not in self._is_compared

    def _compare(self, best: int, other: int, *, is_to_be_had: bool) -> None:
        ours, theirs = self._times[best], self._times[other]
        is_known = min(len(ours), len(theirs)) >= _MOST or _differ(ours, theirs)
        if is_to_be_had and not is_known:
            self.size = best if len(ours) < len(theirs) else other
            return
        self._is_compared.add(other)
        gain = fmean(ours) / fmean(theirs) if is_known else 0.0
        # Larger calls take more memory, and what is dropped goes on for longer.
        if gain > (_WORTH_A_STEP if other > best else 1):
            self._is_compared.add(best)
            self._best_size, self._best, self._latest = other, median(theirs), []
        self._compare_next()

    def _has_changed(self, time: float) -> bool:
        """Begin anew if items are no longer what they were when the size was found."""
        self._latest.append(time)
        if len(self._latest) == _N_WATCHED:
            now, before = median(self._latest), self._best
            self._latest = []
            if math.isinf(before):  # it was not measured
                self._best = now
            elif not now / _CHANGED < before < now * _CHANGED:
                self._begin_anew(self._best_size)
        return self.is_growing

    def _begin_anew(self, size: int) -> None:
        self.size, self.is_growing = min(size, self.limit), True
        self._best, self._best_size, self._longest_step = math.inf, 1, _LONGEST_STEP
        self._times, self._other = {}, None


def _step(gain: float, factor: float) -> int:
    """Return by what factor calls shall grow, when by another one they have become so much better."""
    if not math.isfinite(gain):
        return _FIRST_STEP
    # With a + b * size for a call, this is a / (b * size).
    call_to_items = max(gain - 1, 0) / (factor - gain) if gain < factor else math.inf
    wanted = min(max(_ITEMS_TO_CALL * call_to_items, 2), _LONGEST_STEP)
    return 1 << round(math.log2(wanted))


def _spread(times: Iterable[Sequence[float]]) -> float:
    """Return how much calls of a size differ, as the standard deviation of the times' logarithms, from those of several sizes."""
    logs = [[math.log(time) for time in of_size] for of_size in times]
    squares = sum(variance(of_size) * (len(of_size) - 1) for of_size in logs if len(of_size) > 1)
    return math.sqrt((squares + _USUAL_SPREAD**2) / (1 + sum(len(of_size) - 1 for of_size in logs)))


def _differ(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    """Tell whether the means of two samples differ beyond chance."""
    if min(len(ours), len(theirs)) < _FEWEST:
        return False
    means = fmean(ours), fmean(theirs)
    error = math.sqrt(variance(ours) / len(ours) + variance(theirs) / len(theirs))
    return abs(means[0] - means[1]) > _ERRORS_APART * max(error, _LEAST_ERROR * min(means))
