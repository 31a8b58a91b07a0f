"""Frames: the pickle of one value, which refers to classes by their place among those of its parcel.

Classes that travel by value are named ahead of the values of a parcel. Here the pickle of each of these says only which of
them it means: the class is in the pickler's memo already, and comes into the unpickler's by an extension code, which pickle
looks up by itself. Both take a tenth of what a call of Python's would (`benchmarks/classes.py`).
"""

from __future__ import annotations

import contextlib
import copyreg
import io
import itertools
import pickle
from typing import TYPE_CHECKING, Any

from . import _code_pickler
from ._defining import MOST_PRESETS, ReferringPickler
from ._definitions import find
from ._reducers import find_reducers, registered_reducers, tensors_of
from ._reducing import PROTOCOL, NeedsWholeError, forget, is_soon_copied
from ._texts import joined

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._defining import Definer
    from ._tensors import Tensors

# Pickle's own opcodes: a frame begins with the number of names that it was packed with, as an integer that is dropped. When
# it is unpacked something is put before it, which takes so many of them into the memo where the frame finds them.
_POP, _INT, _EXTENSION, _MEMOIZE, _PROTO = b"0", b"K", b"\x84", b"\x94", b"\x80\x05"
_GETS = ("BINGET", "LONG_BINGET")
_BEGINNINGS = [bytes((count,)) + _POP for count in range(MOST_PRESETS + 1)]
#: What a pickle in memory of its own lies behind, so that it need not be copied when something is put before it.
ROOM = bytes(64)
# Without cloudpickle's own `dump`, a Python method whose wrapper only rewords a RecursionError: 2 µs less per item (0.45
# instead of 2.3 µs for a small tuple, `benchmarks/frames.py`).
_dump = pickle.Pickler.dump


class _Chunks:
    """A file for a pickler, which writes once unless the value is large: a copy less than with a `BytesIO`."""

    def __init__(self) -> None:
        self.written: list[Any] = []
        append = self.written.append

        def write(data: Any) -> None:
            # Large ones that can be changed come as they are, and the user's own code may change them before the end. They are
            # copied with the GIL held, as pickle does: written to shared memory at once they would take half the time, but a
            # thread that fills one meanwhile would find it locked against a change of size, and items came with half of each filling.
            append(data if type(data) is bytes else bytes(pickle.PickleBuffer(data).raw()))

        self.write = write


class Packer:
    """A pickler for one value after the other."""

    #: Classes whose values go as they say themselves, unless users say how.
    _left_out: Sequence[type] = ()

    def __init__(self, buffer_callback: Any = None, definer: Definer | None = None) -> None:
        self.nbytes = 0
        self._buffer_callback, self._definer = buffer_callback, definer
        self._presets = None if definer is None else definer.presets
        self._root, self._is_definition = None, False
        self._begin()

    def _begin(self, *, is_whole: bool = False) -> None:
        """Make the pickler."""
        file = _Chunks()
        self._written = file.written
        kind = _code_pickler.Pickler if self._definer is None else ReferringPickler
        self._pickler = self._make_pickler(file, self._buffer_callback, kind)
        if self._definer is not None:
            pickler = self._pickler
            pickler.definer, pickler.root, pickler.is_definition = self._definer, self._root, self._is_definition
        self._tensors: Tensors | None = None
        if found := find_reducers():
            self._pickler.reducers = reducers = {**self._pickler.reducers, **found}
            for left_out in self._left_out:
                reducers.pop(left_out, None)
            self._tensors = tensors_of(found, is_whole=is_whole)
            if self._tensors is not None:
                reducers.update(self._tensors.reducers)
            reducers.update(registered_reducers())

    def pack(self, value: Any) -> Any:
        """Return the frame of a value; after an error, this packer must not be used again."""
        try:
            beginning = self._dump(value)
        except NeedsWholeError:
            return self._pack_whole(value)
        except BaseException:
            self._forget()  # at once: a pickler and its packer are a cycle, which is collected at some time
            raise
        pickler, written = self._pickler, self._written
        is_light = pickler.has_reduced and is_soon_copied(written)
        frame = self._frame(beginning, written)
        written.clear()
        if not pickler.has_reduced:
            pickler.clear_memo()
        elif is_light:
            forget(pickler)
        else:
            self._begin()
            return frame
        pickler.globals_ref.clear()  # by number of a function's globals, which may be freed and given again
        return frame

    def _pack_whole(self, value: Any) -> Any:
        """Return the frame of a value with tensors of which more must travel than seemed so; users' code runs a second time."""
        self._forget()
        self._begin(is_whole=True)
        frame = self._frame(self._dump(value), self._written)
        self._begin()
        return frame

    def _dump(self, value: Any) -> bytes:
        """Write the pickle of a value; return what it begins with if it refers to names."""
        pickler, presets = self._pickler, self._presets
        if self._tensors is not None:
            self._tensors.begin()
        beginning = b""
        if presets:  # there may be more of them behind it
            beginning, pickler.memo = _BEGINNINGS[len(presets)], presets
        _dump(pickler, joined(value) if type(value) is list else value)
        return beginning

    def _forget(self) -> None:
        """Forget what the beginning of a frame has put elsewhere."""

    def _frame(self, beginning: bytes, written: list[Any]) -> Any:
        """Return the frame of a pickle, of which this much has been written, behind how frames begin that refer to names."""
        packed = b"".join((beginning, *written))
        self.nbytes += len(packed)
        return packed

    def define(self, value: Any, *, is_root: bool) -> Any:
        """Return the frame of a definition."""
        self._root, self._is_definition = value if is_root else None, True
        self._pickler.root, self._pickler.is_definition = self._root, True
        return self.pack_alone(value)

    def pack_alone(self, value: Any) -> Any:
        """Return the frame of a value that is unpacked by itself."""
        self._presets = None
        return self.pack(value)

    def _make_pickler(self, file: Any, buffer_callback: Any, kind: Any) -> Any:
        return kind(file, PROTOCOL, buffer_callback)


class LongPickle:
    """A pickle that has come in memory of its own, with `ROOM` before it.

    Parameters
    ----------
    beginning : bytes
        How the frame begins, if it refers to names.
    memory : object with a buffer
        Where the rest is.
    """

    def __init__(self, beginning: bytes, memory: Any) -> None:
        self.beginning, self._memory = beginning, memoryview(memory)

    def behind(self, start: bytes = b"") -> memoryview:
        """Return all of it, behind what is to be put before it."""
        start += self.beginning
        first = len(ROOM) - len(start)
        if start:
            self._memory[first : len(ROOM)] = start
        return self._memory[first:]


class Unpacker:
    """Unpacks the frames of one parcel, which refer to classes by their place.

    Parameters
    ----------
    names : sequence of str
        The keys of these classes, whose definitions have come.
    buffers_of : callable
        Returns the pickle of a frame and the buffers that go with it; no pickle if that is lost.
    unpack : callable
        Unpacks a frame that is lost, and so says why.
    """

    def __init__(
        self, names: Sequence[str], buffers_of: Callable[[Any], tuple[Any, Any]], unpack: Callable[[Any], Any]
    ) -> None:
        self._names, self._buffers_of, self._unpack = names, buffers_of, unpack
        self._codes: list[int] = []
        self._starts: list[bytes] = []  # by the number of names
        # By their place: what kept classes from being loaded. Frames that don't refer to them can be unpacked all the same.
        self._absent: dict[int, tuple[Exception, Any]] = {}

    def unpack(self, frame: Any) -> Any:
        """Unpack one value."""
        data, buffers = self._buffers_of(frame)
        if data is None:
            return self._unpack(frame)
        if isinstance(data, LongPickle):
            data = data.behind(self._before(data.behind()) if data.beginning else b"")
        elif data[0] != _PROTO[0]:
            data = self._before(data) + data
        return pickle.loads(data, buffers=buffers)

    def _before(self, data: Any) -> bytes:
        """Return what is to be put before a frame; raises what kept a class that it refers to from being had."""
        start: bytes = (self._starts or self._begin())[data[0]]
        if self._absent:
            self._refuse_absent(data[len(_BEGINNINGS[0]) :])
        return start

    def _refuse_absent(self, data: Any) -> None:
        import pickletools  # which few processes ever need

        for opcode, place, _ in pickletools.genops(io.BytesIO(data)):
            if opcode.name in _GETS and place in self._absent:
                error, where = self._absent[place]
                raise error.with_traceback(where)

    def _begin(self) -> list[bytes]:
        codes = [self._register(place, name) for place, name in enumerate(self._names)]
        takes = [_EXTENSION + code.to_bytes(4, "little") + _MEMOIZE + _POP for code in codes]
        self._starts = [_PROTO + b"".join(takes[:count]) + _INT for count in range(len(takes) + 1)]
        return self._starts

    def _register(self, place: int, name: str) -> int:
        found = None
        try:
            found = find(name)
        except Exception as error:  # noqa: BLE001 - users' code; it is raised again for the frames that need the class
            self._absent[place] = error, error.__traceback__
        for code in _codes:
            with contextlib.suppress(ValueError):  # somebody else has this one
                copyreg.add_extension(__name__, _attribute(code), code)
                break
        _classes[_attribute(code)] = found
        self._codes.append(code)
        return code

    def __del__(self) -> None:
        for code in self._codes:
            copyreg.remove_extension(__name__, _attribute(code), code)
            del _classes[_attribute(code)]


# Those of the parcels that are being unpacked. Codes from 256 on are not given out by anyone; the last ones are ours.
_classes: dict[str, Any] = {}
_codes = itertools.cycle(range(0x7000_0000, 0x7FFF_FFFF))


def _attribute(code: int) -> str:
    return f"class_{code}"


def __getattr__(name: str) -> Any:  # pickle looks here for what it does not know yet by its code
    try:
        return _classes[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
