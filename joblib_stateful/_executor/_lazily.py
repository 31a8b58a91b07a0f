"""`Executor.map` with a ``buffersize``, as the standard library has it from Python 3.14 on."""

from __future__ import annotations

import time
import weakref
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from .. import _words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Executor, Future

T = TypeVar("T")


def map_lazily(
    executor: Executor,
    fn: Callable[..., T],
    iterables: Sequence[Iterable[Any]],
    timeout: float | None,
    buffersize: int,
) -> Iterator[T]:
    """Return the results of a function, in order; so many calls are made at once, and one more for each that is taken."""
    if not isinstance(buffersize, int):
        raise TypeError(f"buffersize must be an integer or None, and is {_words.short(buffersize)}")
    if buffersize < 1:
        raise ValueError(f"buffersize must be None or > 0, and is {buffersize}")
    end = None if timeout is None else time.monotonic() + timeout
    args = zip(*iterables, strict=False)
    under_way = deque(executor.submit(fn, *each) for each in islice(args, buffersize))
    owner = weakref.ref(executor)  # which may go before its results

    def submit_next() -> None:
        executor = owner()
        if executor is not None:
            under_way.extend(executor.submit(fn, *each) for each in islice(args, 1))

    return _results(under_way, submit_next, end)


def _results(under_way: deque[Future[T]], submit_next: Callable[[], None], end: float | None) -> Iterator[T]:
    """Return results in order, and have one more call made for each that is taken; cancel what nobody takes."""
    try:
        yield from _taken(under_way, submit_next, end)
    finally:
        for future in under_way:
            future.cancel()


def _taken(under_way: deque[Future[T]], submit_next: Callable[[], None], end: float | None) -> Iterator[T]:
    while under_way:
        submit_next()
        # The future is let go before its result is taken.
        yield under_way.popleft().result(None if end is None else end - time.monotonic())
