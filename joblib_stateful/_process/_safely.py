"""Exceptions of users, looked at without running code of theirs; and our log records, which go through code of theirs.

A class may define what an exception's attributes do, and what even its name is: who asks the usual way runs code that may
raise anything, in a thread to which nobody listens. Python's own slots can be read past that.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

# Typed as what they are, which no stub says: descriptors.
_cause: Any = vars(BaseException)["__cause__"]
_traceback: Any = vars(BaseException)["__traceback__"]
_name: Any = vars(type)["__name__"]
_qualified: Any = vars(type)["__qualname__"]
_module: Any = vars(type)["__module__"]


def traceback_of(error: BaseException) -> TracebackType | None:
    """Return an exception's traceback.

    Examples
    --------
    >>> traceback_of(ValueError("never raised")) is None
    True
    """
    found: TracebackType | None = _traceback.__get__(error)
    return found


def cause_of(error: BaseException) -> BaseException | None:
    """Return an exception's cause."""
    found: BaseException | None = _cause.__get__(error)
    return found


def set_cause(error: BaseException, cause: BaseException | None) -> None:
    """Set an exception's cause, also of a class that forbids attributes, such as a frozen one."""
    _cause.__set__(error, cause)


def is_a(error: BaseException | None, kinds: type[BaseException] | tuple[type[BaseException], ...]) -> bool:
    """Tell whether an exception would be caught as one of some kinds; `isinstance` asks its ``__class__``, too.

    Examples
    --------
    >>> is_a(KeyError("key"), LookupError)
    True
    """
    return issubclass(type(error), kinds)


def name_of(kind: type[Any]) -> str:
    """Return the name of a class."""
    return str(_name.__get__(kind))


def module_of(kind: type[Any]) -> str:
    """Return the name of a class's module; "" if it has none."""
    try:
        module = _module.__get__(kind)
    except AttributeError:
        return ""
    return module if type(module) is str else ""


def full_name_of(kind: type[Any]) -> str:
    """Return the name of a class as tracebacks show it, with that of its module.

    Examples
    --------
    >>> full_name_of(KeyError)
    'KeyError'
    """
    name = str(_qualified.__get__(kind))
    module = module_of(kind)
    return name if module in ("builtins", "") else f"{module}.{name}"


def text_of(error: BaseException) -> str:
    """Return the text of an exception, or what stands for it."""
    try:
        return "".join((str(error),))  # no class of the user's that is a str, which the other side may not know
    except BaseException:  # noqa: BLE001 - the user's own code, and it need not say more
        return "(its text could not be formatted)"


def add_note(error: BaseException, text: str) -> None:
    """Add a note to an exception; a class that forbids attributes, such as a frozen one, goes without."""
    with contextlib.suppress(BaseException):  # the user's own code, and it is only a note
        BaseException.add_note(error, text)


def can_be_handled(error: BaseException) -> bool:
    """Tell whether others may treat an exception as all do that pass them on: read and set its traceback.

    Examples
    --------
    >>> can_be_handled(ValueError("as usual"))
    True
    """
    try:
        error.__traceback__ = error.__traceback__
    except BaseException:  # noqa: BLE001 - the user's own code
        return False
    return True


class Log:
    """The package's own logger: what users' handlers and filters raise is printed, and ends nothing.

    Most of what it is told comes from threads without which no call would come to its end. logging's own handlers print
    their errors, too; but some users' let them through, or raise SystemExit on purpose.
    """

    def __init__(self) -> None:
        self._logger = logging.getLogger("joblib_stateful")
        self._handler = logging.NullHandler()

    def info(self, text: str, *args: object) -> None:
        """Log what somebody may want to know."""
        self._log(logging.INFO, text, args, {})

    def warning(self, text: str, *args: object, **extra: Any) -> None:
        """Log a warning."""
        self._log(logging.WARNING, text, args, extra)

    def error(self, text: str, *args: object, **extra: Any) -> None:
        """Log an error."""
        self._log(logging.ERROR, text, args, extra)

    def exception(self, text: str, *args: object) -> None:
        """Log an error with the exception that is being handled."""
        self._log(logging.ERROR, text, args, {"exc_info": True})

    def _log(self, level: int, text: str, args: tuple[object, ...], extra: dict[str, Any]) -> None:
        try:
            self._logger.log(level, text, *args, stacklevel=3, **extra)
        except BaseException as error:
            # Only there Ctrl-C is raised.
            if is_a(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                raise
            with contextlib.suppress(Exception):  # standard error is closed, or the user's
                self._handler.handleError(logging.LogRecord("joblib_stateful", level, "", 0, text, args, None))
