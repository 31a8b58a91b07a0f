"""How many items go into one message, and how many may be on their way, from what was measured so far."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from .._scheduling._requests import Outcome

# `benchmarks/batching.py` on two cores: batches of 200 ms leave 96 to 99 % of both to the workers' own code (20 ms: 94 to
# 96 %, 80 ms: 95 to 98 %), and a progress bar does not wait for them. Items longer than 10 ms travel alone though they get
# 92 % so, and 98 % in company: none shall wait behind another, or run again for another's crash.
BATCH_SECONDS = 0.2
ALONE_SECONDS = 0.01
# But on a cluster, where a message is longer on its way, those of 12, 20 and 40 ms would get 69, 77 and 87 % so, and get 95 in
# company; those of 80 ms get 93 in either way (`benchmarks/batching.py --engine dask`, and `ray`).
REMOTE_ALONE_SECONDS = 0.05
# A batch grows at most so much over the largest that came back. One odd measurement costs little, for a batch that takes
# too long is cut short; while each message on the way to full size costs both sides a millisecond of CPU time together,
# in caches that the items have emptied (W2 of `python -m benchmarks`: 8 in place of 64 takes four messages more).
GROWTH = 64
# But if it should take no longer than this it may have any size at once: ten times as long would cost little, too.
LEAP_SECONDS = 0.002
# At the end of the input a batch has at most this share of what is left for each worker, so that none ends alone with a
# long one; but it does not shrink below so many seconds. Two thirds, or 2 ms, would make some messages more (W2 of
# `python -m benchmarks`), while a worker that ends early gets a share of what others have. All of it would keep the
# consumer waiting for half of 100,000 tiny items at once (W1).
TAIL_SHARE = 0.85
TAIL_SECONDS = 0.004
# A batch that takes so much longer than it should is cut short, and all workers share what is left of it. With 4 in place
# of 2, items that become a hundred times longer leave 0.04 more of both cores idle (W3 shifting of `python -m benchmarks`).
OVERTIME = 2
# A batch's items must not weigh more than this together: a crash sends them again, and they are packed at once.
BATCH_BYTES = 2**20
# What all items and results on their way may weigh together under buffer="auto".
BUFFER_BYTES = 64 * 2**20
# Under buffer="auto": items per slot if they are few and long, so that one slow item starves nobody soon ...
BUFFER_ITEMS = 16
# ... and batches per slot if they are many and short: one runs, one waits, two are done or being taken.
BUFFER_BATCHES = 4
# How much the latest measurement counts.
_WEIGHT = 0.5


class Batching:
    """Sizes of batches and of the buffer of one map.

    Parameters
    ----------
    n_jobs : int
        Number of slots.
    batch_size, buffer : int or "auto"
        As given to `stateful_map`.
    alone_seconds : float, optional
        Longer items travel alone.
    """

    #: The worker is called with all items of a batch at once, so that they should not go out before there are enough.
    is_of_calls = False
    #: The batches are of several calls, of texts that are alike.
    is_of_alike = False
    #: The latest items are texts.
    are_texts = False

    def __init__(
        self,
        n_jobs: int,
        batch_size: int | Literal["auto"],
        buffer: int | Literal["auto"],
        *,
        alone_seconds: float = ALONE_SECONDS,
    ) -> None:
        self._n_jobs, self._fixed_batch, self._fixed_buffer = n_jobs, batch_size, buffer
        self._alone_seconds = alone_seconds
        self._item_seconds: float | None = None
        self._item_bytes: float | None = None
        self._result_bytes = 0.0
        self._largest = 1  # batch that came back
        self._n_back = 0
        #: Items that the next batch should have.
        self.batch: int
        #: True while batches are smaller than they will soon be: then more of them than workers need are a waste.
        self.is_growing: bool
        #: Items that may be on their way at present: pulled and not yet done with by the consumer.
        self.buffer: int
        self._look_again()

    @property
    def fixed(self) -> int | None:
        """The size that was given; None if it is found here."""
        return None if self._fixed_batch == "auto" else self._fixed_batch

    def note_sent(self, nbytes: int, count: int) -> None:
        """Learn what items weigh."""
        before, self._item_bytes = self._item_bytes, _blend(self._item_bytes, nbytes / count)
        if before != self._item_bytes:
            self._look_again()

    def note_back(
        self,
        size: int,
        n_run: int,
        seconds: float,
        result_bytes: int,
    ) -> None:
        """Learn how long the items of a batch took, as far as they were run, and what their results weigh."""
        if n_run <= 0:
            return
        self._item_seconds = _blend(self._item_seconds, seconds / n_run)
        self._result_bytes = _blend(self._result_bytes or None, result_bytes / n_run)
        self._largest = max(self._largest if n_run > 1 else 1, size)
        self._n_back += n_run
        self._look_again()

    def note_outcome(self, outcome: Outcome, n_together: int = 1) -> None:  # noqa: ARG002 - a matter of calls
        """Learn how long some items took, where they were run in one call, which may be one of several that belong together."""
        self.note_back(len(outcome.positions), outcome.n_run, outcome.seconds, outcome.result_bytes)

    def note_together(self, n_items: int, n_calls: int, seconds: float) -> None:
        """Learn how long calls took that belong together."""

    def _look_again(self) -> None:
        # Once for each message instead of ten times: `benchmarks/items.py`.
        self.batch, self.is_growing = self._find_batch(), self._find_growing()
        self.buffer = self._find_buffer()

    def _find_batch(self) -> int:
        if self._fixed_batch != "auto":
            return self._fixed_batch
        if self._item_seconds is None or self._item_seconds > self._alone_seconds:
            return 1
        size = min(self._aim, self._reach)
        if self._item_bytes:
            size = min(size, BATCH_BYTES / self._item_bytes)
        if self._fixed_buffer != "auto":
            size = min(size, self._fixed_buffer // (2 * self._n_jobs))
        return max(1, int(size))

    @property
    def _aim(self) -> float:
        """Items that take as long as a batch shall take."""
        return BATCH_SECONDS / max(self._item_seconds or 0.0, 1e-7)

    @property
    def _reach(self) -> float:
        """Items that the next batch may have, after those that came back."""
        return max(self._largest * GROWTH, self._aim * LEAP_SECONDS / BATCH_SECONDS)

    def _find_growing(self) -> bool:
        if self._fixed_batch != "auto" or self._item_seconds is None or self._item_seconds > self._alone_seconds:
            return False
        return self._reach < self._aim

    @property
    def budget(self) -> float | None:
        """Seconds that a batch may take before what is left of it is shared out; None: as long as it likes."""
        return OVERTIME * BATCH_SECONDS if self._fixed_batch == "auto" else None

    @property
    def max_bytes(self) -> float:
        """What a batch's items may weigh together, but for the last one."""
        return BATCH_BYTES if self._fixed_batch == "auto" else math.inf

    @property
    def enough(self) -> int:
        """Items for which there must be room before a worker that has nothing to do gets some, as long as the consumer has."""
        return 1

    def next_batch(self, room: int, remaining: int | None) -> int:
        """Items to pull now, given the room in the buffer and, if known, what the input still has."""
        size = self.batch
        if remaining is not None and self._fixed_batch == "auto" and self._item_seconds is not None:
            share = math.ceil(remaining / self._n_jobs * TAIL_SHARE)
            size = min(size, max(share, int(TAIL_SECONDS / max(self._item_seconds, 1e-7)), 1))
        return max(1, min(size, room))

    def n_in_call(self, n_items: int) -> int:
        """Return how many of the items that are pulled together share a message."""
        return n_items

    def _find_usual_buffer(self) -> int:
        return max(BUFFER_ITEMS * self._n_jobs, BUFFER_BATCHES * self._n_jobs * self.batch)

    def _find_buffer(self) -> int:
        if self._fixed_buffer != "auto":
            return self._fixed_buffer
        if self._n_back == 0:  # nothing is known of the results' weight yet
            size = 2 * self._n_jobs * (1 if self._fixed_batch == "auto" else self._fixed_batch)
        else:
            size = self._find_usual_buffer()
        weight = (self._item_bytes or 0.0) + self._result_bytes
        if weight:
            size = min(size, int(BUFFER_BYTES / weight))
        return max(size, self._n_jobs)


def _blend(old: float | None, new: float) -> float:
    return new if old is None else (1 - _WEIGHT) * old + _WEIGHT * new
