"""What a worker's process takes over from the program when it starts."""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
from multiprocessing.reduction import ForkingPickler
from types import FunctionType
from typing import Any, NamedTuple, TypeAlias

import cloudpickle

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
    """Reduce functions and classes that can't be found by their name."""
    if not isinstance(value, (type, FunctionType)) or value.__module__ is None:
        return NotImplemented
    found: Any = sys.modules.get(value.__module__)
    for name in value.__qualname__.split("."):
        found = getattr(found, name, None)
    if found is value and value.__module__ != "__main__":  # which children don't run
        return NotImplemented
    return _load, (cloudpickle.dumps(value),)


def _load(pickled: bytes) -> object:
    # In a child, which may be a new interpreter, too: it sends back what it was sent.
    _send_by_value()
    return cloudpickle.loads(pickled)


def _send_by_value() -> None:
    ForkingPickler.reducer_override = _by_value  # type: ignore[method-assign,assignment]  # as pickle lets subclasses do
