"""Exceptions arrive as they were, and their constructor is not called a second time.

Python makes an exception anew by a call of its class with `args`: with what the constructor has given to that of `Exception`, and not
with what it was given itself. Clients' errors often take more, by keyword, and a text that was made of them once would be made of
itself.

Where distributed is imported, tblib has said for all classes of exceptions how they are pickled, so that their causes and
tracebacks travel. What classes of C hold besides their arguments is lost by that (the text of a UnicodeDecodeError, the value of a
StopIteration), and causes and tracebacks travel here by themselves.
"""

from __future__ import annotations

import copyreg
from types import FunctionType
from typing import Any

from ._reducing import PROTOCOL

# Py_TPFLAGS_HEAPTYPE: of all classes but those that are compiled into the interpreter or an extension.
_MADE_AT_RUN_TIME = 1 << 9


def reduce_exception(error: BaseException) -> Any:
    """Return how an exception is made anew, or NotImplemented: as it says itself, or others have said of it."""
    kind = type(error)
    said = copyreg.dispatch_table.get(kind)
    if said is not None and not _is_of_tblib(said):
        return NotImplemented
    if not _has_own_constructor(kind):
        # What is made of a class of C's may be one that its author has told tblib of, for it can be made anew in no other way.
        is_of_c = not kind.__flags__ & _MADE_AT_RUN_TIME
        return error.__reduce_ex__(PROTOCOL) if said is not None and is_of_c else NotImplemented
    args = BaseException.args.__get__(error)  # type: ignore[attr-defined]  # for typeshed it is a plain attribute
    return copyreg.__newobj__, (kind, *args), object.__getstate__(error), None, None, restore  # type: ignore[attr-defined]  # typeshed doesn't know them


def restore(error: BaseException, state: Any) -> None:
    """Give an exception what it had, also one that forbids to set its attributes."""
    own, slots = state if type(state) is tuple else (state, None)
    if own:
        object.__getattribute__(error, "__dict__").update(own)
    for name, value in (slots or {}).items():
        BaseException.__setattr__(error, name, value)


def _is_of_tblib(reduce: Any) -> bool:
    return str(getattr(reduce, "__module__", "")).partition(".")[0] == "tblib"


def _has_own_constructor(kind: Any) -> bool:
    """Tell whether a class is made anew as all exceptions are, has a constructor in Python, and nothing besides in C."""
    compiled = (base for base in kind.__mro__ if not base.__flags__ & _MADE_AT_RUN_TIME)
    return (
        max(base.__basicsize__ for base in compiled) == BaseException.__basicsize__
        and isinstance(kind.__init__, FunctionType)
        and not isinstance(kind.__new__, FunctionType)
        and kind.__reduce__ is BaseException.__reduce__
        and kind.__reduce_ex__ is object.__reduce_ex__
        and kind.__setstate__ is BaseException.__setstate__
    )
