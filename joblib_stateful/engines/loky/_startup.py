"""What a worker's process takes over from the program when it starts."""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import sys
import typing
from multiprocessing.reduction import ForkingPickler
from types import FunctionType
from typing import Any, NamedTuple, TypeAlias

from ..._transport import _typing_objects
from ..._transport._code_pickler import CACHED, dumps

_Stream: TypeAlias = tuple[str, str] | None  # encoding, and what is done with characters that it has not


class Startup(NamedTuple):
    """The start method of multiprocessing, and how the standard output and error are written."""

    start_method: str | None
    streams: tuple[_Stream, _Stream]

    @classmethod
    def of_program(cls) -> Startup:
        """Return those of this process."""
        method: str | None = multiprocessing.get_start_method(allow_none=True)
        if method and method.startswith("loky"):  # a worker of joblib's, whose children could not use it
            method = None
        return cls(method, (_stream(sys.stdout, 1), _stream(sys.stderr, 2)))

    def take_over(self) -> None:
        """Make them those of this process; before any of the user's code."""
        # loky has made its own the default here, which neither takes other people's processes nor is known to children.
        with contextlib.suppress(ValueError):  # a method that somebody has added to the program
            multiprocessing.set_start_method(self.start_method, force=True)
        # What came by value can't be imported, neither here nor in children, to which multiprocessing sends it by name.
        _send_by_value()
        for stream, settings in zip((sys.stdout, sys.stderr), self.streams, strict=True):
            encoding, errors = settings or (None, None)
            with contextlib.suppress(AttributeError):  # there is none
                # Whole lines at once, also into a pipe or a file: what a process that is killed has printed is not lost.
                stream.reconfigure(encoding=encoding, errors=errors, line_buffering=True)  # type: ignore[union-attr]


def _stream(stream: Any, number: int) -> _Stream:
    with contextlib.suppress(Exception):  # an object of somebody's, or none: then the worker's own are as they start
        if stream.fileno() == number:
            return str(stream.encoding), str(stream.errors)
    return None


def _by_value(_: ForkingPickler, value: object) -> Any:
    """Reduce functions and classes, and whatever else pickle writes by name, if children can't find it by that."""
    module = getattr(value, "__module__", None) if isinstance(value, _NAMED) else None
    if module is None:
        return NotImplemented
    if module != "__main__":  # which children don't run
        found: Any = sys.modules.get(module)
        for name in getattr(value, "__qualname__", "").split("."):
            found = getattr(found, name, None)
        if found is value or not isinstance(value, (type, FunctionType)):
            return NotImplemented
    return _load, (dumps(value, pickle.HIGHEST_PROTOCOL),)


_NAMED = (type, FunctionType, typing.TypeVar, *_typing_objects.REDUCERS, CACHED)


def _load(pickled: bytes) -> object:
    # In a child, which may be a new interpreter, too: it sends back what it was sent.
    _send_by_value()
    return pickle.loads(pickled)


def _send_by_value() -> None:
    ForkingPickler.reducer_override = _by_value  # type: ignore[method-assign,assignment]  # as pickle lets subclasses do
