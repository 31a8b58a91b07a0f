"""From the outcome of a request of one item to its future."""

from __future__ import annotations

from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any

from .. import errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._scheduling._requests import Outcome


class Resolver:
    """Sets a future, which is not running until its request is sent, to what became of that.

    Parameters
    ----------
    future : concurrent.futures.Future
        What to set.
    when_dropped : str
        What a call says that had begun and was dropped.
    replace : callable, optional
        Returns the exception that the future gets instead of the call's own.
    """

    def __init__(
        self,
        future: Future[Any],
        when_dropped: str,
        replace: Callable[[BaseException], BaseException] | None = None,
    ) -> None:
        self._future, self._when_dropped, self._replace = future, when_dropped, replace

    def __call__(self, outcome: Outcome) -> None:
        """Set the future."""
        future = self._future
        del self._future  # the result must live no longer than the future
        error = outcome.fatal or outcome.errors.get(0)
        if type(error) is CancelledError and outcome.is_dropped:
            _cancel(future)
            return
        if not future.running():
            if error is None and outcome.is_dropped:
                future.cancel()
            if not future.set_running_or_notify_cancel():
                return
        if error is None and outcome.is_dropped:
            error = errors.ShutdownError(self._when_dropped)
        if error is not None:
            future.set_exception(error if self._replace is None else self._replace(error))
        else:
            future.set_result(outcome.values[0])


def _cancel(future: Future[Any]) -> None:
    """Cancel a future though its call runs, or did a moment ago."""
    with future._condition:
        if future.done():
            return
        # There is no public way to it; `_state` is what every executor outside the standard library has to know.
        future._state = "PENDING"
    future.cancel()
    future.set_running_or_notify_cancel()
