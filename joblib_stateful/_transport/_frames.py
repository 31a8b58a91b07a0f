"""Frames: the pickle of one value, which refers to classes by their place among those of its parcel.

Classes that travel by value are named ahead of the values of a parcel. Here the pickle of each of these says only which of
them it means: the class is in the pickler's memo already, and comes into the unpickler's by an extension code, which pickle
looks up by itself. Both take a tenth of what a call of Python's would (`benchmarks/classes.py`).
"""

from __future__ import annotations

import contextlib
import copyreg
import itertools
import pickle
from typing import TYPE_CHECKING, Any

from . import _code_pickler
from ._defining import MOST_PRESETS, ReferringPickler
from ._definitions import find

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._defining import Definer

PROTOCOL = 5
# Pickle's own opcodes: a frame begins with the number of names that it was packed with, as an integer that is dropped. When
# it is unpacked something is put before it, which takes so many of them into the memo where the frame finds them.
_POP, _INT, _EXTENSION, _MEMOIZE, _PROTO = b"0", b"K", b"\x84", b"\x94", b"\x80\x05"
_GETS = ("BINGET", "LONG_BINGET")
_BEGINNINGS = [bytes((count,)) + _POP for count in range(MOST_PRESETS + 1)]
# Without cloudpickle's own `dump`, a Python method whose wrapper only rewords a RecursionError: 2 µs less per item (0.45
# instead of 2.3 µs for a small tuple, `benchmarks/frames.py`).
_dump = pickle.Pickler.dump


class _Chunks:
    """A file for a pickler, which writes once unless the value is large: a copy less than with a `BytesIO`."""

    def __init__(self) -> None:
        self.written: list[Any] = []
        append = self.written.append

        def write(data: Any) -> None:
            # Large ones that can be changed come as they are, and the user's own code may change them before the end.
            append(data if type(data) is bytes else bytes(pickle.PickleBuffer(data).raw()))

        self.write = write


class Packer:
    """A pickler for one value after the other."""

    def __init__(self, buffer_callback: Any = None, definer: Definer | None = None) -> None:
        self.nbytes = 0
        file = _Chunks()
        self._written = file.written
        self._pickler = self._make_pickler(
            file, buffer_callback, _code_pickler.Pickler if definer is None else ReferringPickler
        )
        self._presets: dict[int, tuple[int, Any]] | None = None
        if definer is not None:
            self._pickler.definer, self._presets = definer, definer.presets

    def pack(self, value: Any) -> Any:
        """Return the frame of a value; after an error, this packer must not be used again."""
        pickler, written, presets = self._pickler, self._written, self._presets
        if presets:
            written.append(_BEGINNINGS[len(presets)])
            pickler.memo = presets
        _dump(pickler, value)
        packed = b"".join(written)
        written.clear()
        pickler.clear_memo()
        pickler.globals_ref.clear()  # by number of a function's globals, which may be freed and given again
        self.nbytes += len(packed)
        return packed

    def define(self, value: Any, *, is_root: bool) -> Any:
        """Return the frame of a definition."""
        self._pickler.root, self._pickler.is_definition = value if is_root else None, True
        return self.pack_alone(value)

    def pack_alone(self, value: Any) -> Any:
        """Return the frame of a value that is unpacked by itself."""
        self._presets = None
        return self.pack(value)

    def _make_pickler(self, file: Any, buffer_callback: Any, kind: Any) -> Any:
        return kind(file, PROTOCOL, buffer_callback)


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
        if data[0] != _PROTO[0]:
            start = (self._starts or self._begin())[data[0]]
            if self._absent:
                self._refuse_absent(data[len(_BEGINNINGS[0]) :])
            data = start + data
        return pickle.loads(data, buffers=buffers)

    def _refuse_absent(self, data: Any) -> None:
        import pickletools  # which few processes ever need

        for opcode, place, _ in pickletools.genops(data):
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
