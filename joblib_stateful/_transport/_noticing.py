"""Has a definition changed? A quicker answer than to make it again.

To define a small dataclass takes 0.3 ms, and each message would have to do so again to see that nothing has changed. Here
everything that a class consists of is pickled in one go, by content as far as it can change in place, but for code, which
can't and of which only the identity is noted: a fifth of the time (`benchmarks/classes.py`). Equal prints mean equal
definitions; the other way round need not be.
"""

from __future__ import annotations

import io
import itertools
import math
import pickle
import types
from typing import TYPE_CHECKING, Any

from cloudpickle import cloudpickle

from ._code import resolve_lazy
from ._code_pickler import Pickler
from ._main import main_with
from ._reducing import forget

if TYPE_CHECKING:
    from ._definitions import Definition, Key

_FUNCTION = types.FunctionType
_ABSENT = "absent"
# Code that is known again is kept, and so many pieces of it.
_MOST_CODES = 10_000
# What is remembered, by number and each by bytes.
_MOST_REMEMBERED, _HEAVY = 500, 1 << 20
# After a longer print to copy the memo would take as long as the print itself (`benchmarks/memos.py`).
_LIGHT = 1 << 16


class Memory:
    """What earlier parcels of one sender needed, and what it was then; for use in any threads."""

    def __init__(self) -> None:
        self._found: dict[Key, tuple[bytes, tuple[Definition, ...]]] = {}

    def recall(self, key: Key, found: Any) -> tuple[bytes | None, tuple[Definition, ...] | None]:
        """Return the print of what a key stands for, and what it needed if that is still the same."""
        now = print_of(found)
        then = self._found.get(key)
        return now, then[1] if then is not None and now is not None and then[0] == now else None

    def keep(self, key: Key, print_: bytes | None, needs: tuple[Definition, ...]) -> None:
        """Remember what is needed, if that is not heavy."""
        if print_ is None or len(print_) + sum(_weight_of(need.frame) for need in needs) > _HEAVY:
            return
        if len(self._found) >= _MOST_REMEMBERED:
            self._found.clear()
        self._found[key] = print_, needs


def print_of(found: Any) -> bytes | None:
    """Return what is equal as long as a class or value and all that it uses are; None if that can't be told."""
    try:
        printer = _printers.pop()
    except IndexError:
        printer = _Printer()
    try:
        printed = printer.print(found)
    except Exception:  # noqa: BLE001 - then it is defined again, which says what is wrong
        return None
    if printer.is_light:  # else it is not used again
        _printers.append(printer)
    return printed


def _weight_of(frame: Any) -> float:
    return len(frame) if isinstance(frame, bytes) else math.inf


class _Codes:
    """Numbers of pieces of code, and the names of the globals that each uses."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, int, tuple[str, ...]]] = {}
        self._numbers = itertools.count()

    def look_up(self, code: Any) -> tuple[int, tuple[str, ...]]:
        known = self._known.get(id(code))
        if known is None:  # it is held, so that its address is not given again
            if len(self._known) > _MOST_CODES:
                self._known.clear()
            known = self._known[id(code)] = code, next(self._numbers), tuple(cloudpickle._extract_code_globals(code))
        return known[1:]


_codes = _Codes()


class _Printer(Pickler):
    """A pickler whose output is only compared."""

    def __init__(self) -> None:
        self._file = io.BytesIO()
        self.is_light = True
        super().__init__(self._file, 5)
        # What can be imported, by number; held, so that its number is not given again.
        self._imported: dict[int, tuple[Any, Any]] = {}

    def print(self, found: Any) -> bytes:
        """Return the print of a class or value."""
        pickle.Pickler.dump(self, found)
        printed = self._file.getvalue()
        self.is_light = len(printed) <= _LIGHT
        if self.is_light:
            forget(self)
            self._file.seek(0)
            self._file.truncate()
        return printed

    def reducer_override(self, found: Any) -> Any:
        known = self._imported.get(id(found))
        if known is not None:
            return known[1]
        kind = type(found)
        if kind is not _FUNCTION and not issubclass(kind, type):
            reduce = self.reducers.get(kind)
            return NotImplemented if reduce is None else reduce(found)
        is_special = kind is not _FUNCTION and found in cloudpickle._BUILTIN_TYPE_NAMES
        if not is_special and not cloudpickle._should_pickle_by_reference(found):
            return self._function(found) if kind is _FUNCTION else self._class(found)
        reduced = NotImplemented if found is _Seen else (_Seen, (id(found),))
        self._imported[id(found)] = found, reduced
        return reduced

    def _class(self, found: Any) -> Any:
        _, (*args, _, _), state, *_ = cloudpickle._dynamic_class_reduce(found)
        return _Seen, (cloudpickle._get_or_create_tracker_id(found), main_with(found) is None), (args, state)

    def _function(self, found: Any) -> Any:
        number, names = _codes.look_up(found.__code__)
        globals_, closure = found.__globals__, found.__closure__
        resolve_lazy(globals_, names)
        state = (
            found.__defaults__,
            found.__kwdefaults__,
            closure and tuple(map(cloudpickle._get_cell_contents, closure)),
            found.__dict__,
            found.__annotations__,
            found.__doc__,
            [globals_.get(name, _ABSENT) for name in names],
        )
        return _Seen, (number, found.__module__, found.__qualname__), state


# For use in any threads.
_printers: list[_Printer] = []


class _Seen:
    """Only its name is needed."""
