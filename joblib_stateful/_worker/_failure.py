"""What a worker returns to say that it has failed for an item, without raising."""

from __future__ import annotations


class Failure:
    """Stands, among the results of a worker, for one that is none: its item has failed.

    A worker that is called with several items at once (``pass_as="batch"``) returns it in the place of the results of
    those that it could not do, and saves that the call is repeated to find them. A worker that is called item by item
    may return it instead of raising.

    Parameters
    ----------
    exception : BaseException
        What the item has failed with.

    Raises
    ------
    TypeError
        That is no exception.

    Examples
    --------
    >>> from joblib_stateful import Failure, stateful_map
    >>> def invert(numbers):
    ...     return [1 / number if number else Failure(ValueError("zero has no inverse")) for number in numbers]
    >>> results = stateful_map(invert, [2, 0], n_jobs=1, engine="inline", pass_as="batch", on_error="deferred")
    >>> [result.value if result.ok else str(result.exception) for result in results]
    [0.5, 'zero has no inverse']
    """

    __slots__ = ("exception",)

    def __init_subclass__(cls) -> None:
        # It is told by its type, at no cost, among results of all kinds: one of another type would arrive as a value.
        raise TypeError("Failure can't be subclassed: give the exception that it holds what there is to say.")

    def __init__(self, exception: BaseException) -> None:
        if not isinstance(exception, BaseException):
            from .._words import a  # most workers never need it

            raise TypeError(
                f"Failure takes the exception that the item has failed with, not {a(type(exception).__name__)}. "
                "Write Failure(ValueError(...)), say."
            )
        self.exception = exception

    def __repr__(self) -> str:
        return f"Failure({self.exception!r})"
