"""How values become something that travels, and values again on the other side.

Each value of a batch is a frame of its own, so that a bad pickle is one item's error on either side. Only
values of plain built-in types, which can neither fail to pickle nor to load, share one frame for speed.
An engine's runtimes choose their transport: `ByReference` within a process, `Pickled` between any two, and between those of one
machine `SharedMemory` (in `_shared_memory`).
"""

from __future__ import annotations

import copyreg
import math
import pickle
import sys
import time
from abc import ABC, abstractmethod
from functools import partial
from itertools import compress, islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from . import _code_pickler
from ._code import ComparingPickler
from ._defining import Definer, needs_of
from ._frames import Packer, Unpacker
from ._reducing import PROTOCOL
from ._texts import types_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Iterable, Iterator

    from ._definitions import Definition, Peer
    from ._held import Held
    from ._noticing import Memory

# By the opcode behind the frame's header, if it has one: the length of the pickle of a number alone, whose bytes may be any.
_LENGTHS = {b"": 5, b"M": 15, b"J": 17, b"G": 21}
# Classes that somebody has registered with `copyreg.add_extension`, and by what these are named then.
_extensions: dict[Any, int] = copyreg._extension_registry  # type: ignore[attr-defined]  # typeshed doesn't know it
_EXTENSION_CODES = (b"\x82", b"\x83", b"\x84")
# Exact types only: nothing that users define is run when these are pickled or loaded.
_SIZED: frozenset[type] = frozenset({str, bytes})
_PLAIN: frozenset[type] = frozenset({int, float, complex, bool, str, bytes, type(None)})


def digest(data: bytes | memoryview) -> bytes:
    """Return what stands for some bytes."""
    import hashlib  # which workers never need, and which brings OpenSSL

    return hashlib.sha256(data).digest()


class Parcel(NamedTuple):
    """Several packed values: one frame each, or a single frame for all of them when ``joint``.

    ``needs`` are the definitions that frames refer to; they don't travel with the parcel, but ahead of it. A frame that
    refers to classes by their place among ``names`` begins with the number of those that there were when it was packed.
    """

    frames: tuple[Any, ...]
    n_values: int
    joint: bool
    nbytes: int
    needs: tuple[Definition, ...] = ()
    names: tuple[str, ...] = ()  # of the classes that frames refer to by their place here


# Shared, arrays of 256 KiB go out 1.5 times as fast as in line and come back twice as fast, those of 1 MiB 7 and 3 times
# (`benchmarks/buffers.py`). Smaller ones would gain a little as well, but each takes a file.
THRESHOLD = 1 << 18


class Sharing(NamedTuple):
    """How some calls want large buffers to travel, where a transport can share memory.

    Parameters
    ----------
    threshold : int or None
        Buffers of so many bytes and more are shared; None: none are.
    mode : {"c", "r", "r+", "w+"}
        What workers may do with them, as in `numpy.memmap`: change them for themselves, or only read them, or write to
        what all workers see.
    folder : str or None
        Where they lie instead of in memory.
    held : Held or None
        Takes what was used more than once, for it will be used again.
    named : {"read-only", "all"}
        Which arrays in files travel by the name of their file. Those that can be written to may have other contents when
        they arrive: a generator fills one again and again.
    """

    threshold: int | None = THRESHOLD
    mode: Literal["c", "r", "r+", "w+"] = "c"
    folder: str | None = None
    held: Held | None = None
    named: Literal["read-only", "all"] = "read-only"


#: What travels so brings all of it itself.
IN_LINE = Sharing(threshold=None)


class Packing(ABC):
    """Several values on their way into a parcel."""

    def __init__(self) -> None:
        self.faults: dict[int, BaseException] = {}  # what kept some from being packed, by place
        self.nbytes = 0  # what the values weigh, but for those that a `shortcut` took
        self.is_late = False  # the time for pulling was up before the last value came
        self.shortcut_nbytes = 0  # what text and bytes that a `shortcut` took weigh

    @property
    @abstractmethod
    def count(self) -> int:
        """The number of values so far."""

    @property
    def held(self) -> list[Any] | None:
        """The values so far, if they are only kept until `finish`; None if some are packed."""
        return None

    @abstractmethod
    def add(self, value: Any) -> BaseException | None:
        """Pack one more value; return what kept it from being packed."""

    def shortcut(self) -> tuple[Collection[type], Callable[[Any], Any]]:
        """Return what takes values of some types in the place of `add`, until one of another type has come."""
        return (), self.add

    def pull(self, source: Iterator[Any], wanted: int, *, until: float = math.inf, max_bytes: float = math.inf) -> bool:
        """Pack so many more values as they come, fewer if that takes long or they are heavy.

        Parameters
        ----------
        source : iterator
            Where they come from; what it raises is raised, behind those that came before.
        wanted : int
            How many.
        until : float
            A time of `time.perf_counter` after which no further one is pulled; packing takes no time.
        max_bytes : float
            Weight beyond which no further one is pulled.

        Returns
        -------
        bool
            False if the source has ended.
        """
        (kinds, keep), add = self.shortcut(), self.add
        clock = time.perf_counter if until < math.inf else float  # which is always 0
        before, nbytes = self.count, 0
        # The clock and the weight are looked at each time: the source may become slow, or its values heavy, at any of them.
        for value in islice(source, wanted):
            now = clock()
            is_late = now > until
            kind = type(value)
            try:
                is_plain = kind in kinds
            except TypeError:  # its metaclass has no hash
                is_plain = False
            if is_plain:
                keep(value)
                if kind in _SIZED:
                    nbytes += len(value)
                    self.shortcut_nbytes += len(value)
            else:
                add(value)
                if kinds:
                    kinds, keep = self.shortcut()
                nbytes = self.nbytes
                until += clock() - now
            if is_late or nbytes > max_bytes:
                self.is_late = is_late
                return True
        return self.count - before == wanted

    def extend(self, values: Iterable[Any]) -> None:
        """Pack more values; what iterating over them raises is raised, behind those that came before."""
        self.pull(iter(values), sys.maxsize)

    def fill(self, values: list[Any], *, max_bytes: float) -> int:
        """Pack values that are there already, until they are heavy; return how many were taken."""
        before = self.count
        self.pull(iter(values), len(values), max_bytes=max_bytes)
        return self.count - before

    @abstractmethod
    def finish(self) -> Parcel:
        """Return the packed values, without those in ``faults``; nothing can be added any more."""


class Transport(ABC):
    """Packs and unpacks values; both sides of one engine use the same one."""

    @abstractmethod
    def pack(self, value: Any) -> Any:
        """Pack one value; raises what its pickling raises."""

    def pack_shared(self, value: Any, definer: Definer | None = None) -> Any:
        """Pack one value that several workers get, large buffers shared."""
        return self.pack_with(value, definer)

    def identify(self, value: Any) -> Hashable:
        """Return what is equal for values that hold the same; raises what pickling the value raises."""
        return digest(ComparingPickler.dumps(value))

    def definer(
        self,
        peer: Peer | None = None,  # noqa: ARG002 - a matter of transports that pickle
        memory: Memory | None = None,  # noqa: ARG002 - see above
    ) -> Definer | None:
        """Return what takes the definitions of classes and globals out of values that are packed with it.

        In a worker ``peer`` is the parent. Without a definer each value brings all of it. ``memory`` is that of earlier
        parcels from the same sender.
        """
        return None

    def pack_with(self, value: Any, definer: Definer | None, sharing: Sharing | None = None) -> Any:  # noqa: ARG002 - see above
        """Pack one value, but for its definitions; raises what its pickling raises."""
        return self.pack(value)

    @abstractmethod
    def unpack(self, packed: Any) -> Any:
        """Unpack one value; raises what its loading raises."""

    def runs_code(self, packed: Any) -> bool:  # noqa: ARG002 - for all we know here
        """Tell whether unpacking a value may run users' code; True if that can't be told."""
        return True

    def runs_any_code(self, parcel: Parcel) -> bool:
        """Tell whether unpacking several values may run users' code."""
        return not parcel.joint and any(map(self.runs_code, parcel.frames))

    def sharing_with(self, held: Held) -> Sharing | None:  # noqa: ARG002 - a matter of transports that share memory
        """Return how buffers travel where a call does not say it, and what is used again is held."""
        return None

    @abstractmethod
    def packing(
        self,
        catch: type[BaseException] = Exception,
        sharing: Sharing | None = None,
        definer: Definer | None = None,
    ) -> Packing:
        """Return what packs several values, one by one as they come.

        Values whose packing raises ``catch`` are left out and named. Workers catch everything. The parent does not: a
        Ctrl-C while it pickles is no item's error.
        """

    def pack_all(
        self,
        values: Iterable[Any],
        catch: type[BaseException] = Exception,
        sharing: Sharing | None = None,
        definer: Definer | None = None,
    ) -> tuple[Parcel, dict[int, BaseException]]:
        """Pack several values; those that raise ``catch`` are left out and named by place."""
        packing = self.packing(catch, sharing, definer)
        packing.extend(values)
        return packing.finish(), packing.faults

    def unpacker(self, parcel: Parcel) -> Callable[[Any], Any]:  # noqa: ARG002 - a matter of transports that pickle
        """Return what unpacks each frame of a parcel."""
        return self.unpack

    def unpack_joint(self, parcel: Parcel) -> list[Any] | None:
        """Return all values of a joint parcel, or None: then each frame is unpacked by itself."""
        values: list[Any] | None = self.unpack(parcel.frames[0]) if parcel.joint else None
        return values

    def spread(self, parcel: Parcel) -> Parcel:
        """Return a joint parcel with a frame for each of its values."""
        frames = tuple(map(self.pack, self.unpack(parcel.frames[0])))
        return Parcel(frames, parcel.n_values, joint=False, nbytes=sum(map(len, frames)))

    def select(self, parcel: Parcel, places: Iterable[int]) -> Parcel:
        """Return the parcel of some of the values."""
        chosen = tuple(places)
        if len(chosen) == parcel.n_values:
            return parcel
        if parcel.joint:
            values = self.unpack(parcel.frames[0])
            return self.pack_all([values[place] for place in chosen])[0]
        frames = tuple(parcel.frames[place] for place in chosen)
        nbytes = parcel.nbytes * len(frames) // parcel.n_values
        return Parcel(frames, len(frames), joint=False, nbytes=nbytes, needs=parcel.needs, names=parcel.names)


class Pickled(Transport):
    """cloudpickle in both directions, buffers in line: how values travel between any two processes.

    Examples
    --------
    >>> transport = Pickled()
    >>> transport.unpack(transport.pack(lambda: 3))()
    3
    """

    def pack(self, value: Any) -> bytes:
        """Pack one value."""
        if type(value) in _PLAIN:
            return pickle.dumps(value, PROTOCOL)
        return _code_pickler.dumps(value, PROTOCOL)

    def unpack(self, packed: Any) -> Any:
        """Unpack one value."""
        return pickle.loads(packed)

    def runs_code(self, packed: Any) -> bool:
        """Tell whether unpacking a value may run users' code: none is run without the name of something global."""
        if type(packed) is not bytes:
            return True
        # This byte is behind each, but may also be part of a text or number.
        if b"\x93" in packed:
            return _LENGTHS.get(packed[11:12]) != len(packed)
        return bool(_extensions) and any(code in packed for code in _EXTENSION_CODES)

    def definer(self, peer: Peer | None = None, memory: Memory | None = None) -> Definer:
        """Return what takes definitions out of values."""
        return Definer(self._packer_of_definitions, peer, memory)

    def pack_with(self, value: Any, definer: Definer | None, sharing: Sharing | None = None) -> Any:
        """Pack one value, but for its definitions."""
        return self.pack(value) if definer is None else self._packer(sharing, definer).pack_alone(value)

    def unpacker(self, parcel: Parcel) -> Callable[[Any], Any]:
        """Return what unpacks each frame of a parcel."""
        return Unpacker(parcel.names, self.buffers_of, self.unpack).unpack if parcel.names else self.unpack

    def buffers_of(self, frame: Any) -> tuple[Any, Any]:
        """Return the pickle of a frame, and the buffers that go with it."""
        return frame, None

    def packing(
        self,
        catch: type[BaseException] = Exception,
        sharing: Sharing | None = None,
        definer: Definer | None = None,
    ) -> Packing:
        """Return what packs several values."""
        return _PickledPacking(partial(self._packer, sharing, definer), catch, definer)

    def _packer(self, sharing: Sharing | None, definer: Definer | None = None) -> Packer:  # noqa: ARG002 - a matter of transports that share
        return Packer(definer=definer)

    def _packer_of_definitions(self, definer: Definer) -> Packer:
        return Packer(definer=definer)


def _is_large(value: Any) -> bool:
    return type(value) in _SIZED and len(value) >= THRESHOLD


class _PickledPacking(Packing):
    """Packs each value when it comes, for the next one may be the same object with other contents."""

    def __init__(
        self, make_packer: Callable[[], Packer], catch: type[BaseException], definer: Definer | None = None
    ) -> None:
        super().__init__()
        self._make_packer, self._catch, self._definer = make_packer, catch, definer
        self._plain: list[Any] = []  # all values, as long as they are plain, which nobody can change
        self._frames: list[Any] = []
        self._packer: Packer | None = None
        self._nbytes_before = 0  # that packer

    @property
    def count(self) -> int:
        """The number of values so far."""
        return len(self._plain) if self._packer is None else len(self._frames) + len(self.faults)

    @property
    def held(self) -> list[Any] | None:
        """The values so far, if all are plain."""
        return self._plain if self._packer is None else None

    def add(self, value: Any) -> BaseException | None:
        """Pack one more value."""
        packer = self._packer
        if packer is None:
            if types_of((value,)) <= _PLAIN:
                self._plain.append(value)
                self.shortcut_nbytes += len(value) if type(value) in _SIZED else 0
                return None
            packer = self._packer = self._make_packer()
            self._frames = [packer.pack(plain) for plain in self._plain]
        try:
            self._frames.append(packer.pack(value))
        except self._catch as error:
            self.faults[self.count] = error
            self._nbytes_before += packer.nbytes
            self._packer = self._make_packer()  # the pickler's memo and framing may be half done
            return error
        self.nbytes = self._nbytes_before + packer.nbytes
        return None

    def shortcut(self) -> tuple[Collection[type], Callable[[Any], Any]]:
        """Return the plain types, whose values are only kept: 35 ns less than `add` (`benchmarks/items.py`)."""
        if self._packer is not None:
            return super().shortcut()
        return _PLAIN, self._plain.append

    def fill(self, values: list[Any], *, max_bytes: float) -> int:
        """Pack values that are there already."""
        if self._packer is None and _PLAIN.issuperset(kinds := types_of(values)):
            sized = () if kinds.isdisjoint(_SIZED) else compress(values, map(_SIZED.__contains__, map(type, values)))
            nbytes = sum(map(len, sized))
            if nbytes <= max_bytes:
                self._plain += values
                self.shortcut_nbytes += nbytes
                return len(values)
        return super().fill(values, max_bytes=max_bytes)

    def finish(self) -> Parcel:
        """Return the packed values."""
        if self._packer is None:
            try:
                return self._finish_plain()
            except MemoryError:  # for all of them in one piece
                return self._finish_apart()
        parcel = Parcel(tuple(self._frames), len(self._frames), joint=False, nbytes=self.nbytes)
        definer = self._definer
        if definer is None or not (definer.needs or definer.names):
            return parcel
        return parcel._replace(needs=needs_of(definer), names=tuple(definer.names))

    def _finish_plain(self) -> Parcel:
        """Return the plain values, in one frame unless one of them is large."""
        count, alone = len(self._plain), len(self._plain) == 1
        if not count:
            return Parcel((), 0, joint=False, nbytes=0)
        if alone and _is_large(self._plain[0]):
            return self._finish_large()
        frame = pickle.dumps(self._plain[0] if alone else self._plain, PROTOCOL)
        if self.shortcut_nbytes >= THRESHOLD and any(map(_is_large, self._plain)):
            return self._finish_large()
        return Parcel((frame,), count, joint=not alone, nbytes=len(frame))

    def _finish_large(self) -> Parcel:
        """Return the plain values with a frame for each, which travels as large ones do."""
        packer = self._make_packer()
        frames = tuple(map(packer.pack_alone, self._plain))
        return Parcel(frames, len(frames), joint=False, nbytes=packer.nbytes)

    def _finish_apart(self) -> Parcel:
        """Return the plain values with a frame for each, without those for which there is no room."""
        frames = []
        self._plain.reverse()
        for place in range(len(self._plain)):
            try:
                frames.append(pickle.dumps(self._plain[-1], PROTOCOL))
            except MemoryError as error:
                self.faults[place] = error.with_traceback(None)
            self._plain.pop()  # so that there is room for the next one's frame
        return Parcel(tuple(frames), len(frames), joint=False, nbytes=sum(map(len, frames)))


class ByReference(Transport):
    """Within one process values need not travel at all."""

    def runs_code(self, packed: Any) -> bool:  # noqa: ARG002 - it is there already
        """Return False."""
        return False

    def pack(self, value: Any) -> Any:
        """Return the value."""
        return value

    def unpack(self, packed: Any) -> Any:
        """Return the value."""
        return packed

    def packing(
        self,
        catch: type[BaseException] = Exception,  # noqa: ARG002 - nothing can go wrong here
        sharing: Sharing | None = None,  # noqa: ARG002 - all is shared
        definer: Definer | None = None,  # noqa: ARG002 - all is the same
    ) -> Packing:
        """Return what holds several values together."""
        return _HeldTogether()


class _HeldTogether(Packing):
    def __init__(self) -> None:
        super().__init__()
        self._values: list[Any] = []

    @property
    def count(self) -> int:
        """The number of values so far."""
        return len(self._values)

    @property
    def held(self) -> list[Any]:
        """The values so far."""
        return self._values

    def add(self, value: Any) -> None:
        """Take one more value."""
        self._values.append(value)
        self.nbytes += _weigh(value)

    def fill(self, values: list[Any], *, max_bytes: float) -> int:
        """Take values that are there already."""
        nbytes = sum(map(_weigh, values))
        if self.nbytes + nbytes > max_bytes:
            return super().fill(values, max_bytes=max_bytes)
        self._values += values
        self.nbytes += nbytes
        return len(values)

    def finish(self) -> Parcel:
        """Return the values."""
        return Parcel(tuple(self._values), self.count, joint=False, nbytes=self.nbytes)


def _weigh(value: Any) -> int:
    try:
        nbytes = getattr(value, "nbytes", None)
        return nbytes if isinstance(nbytes, int) else sys.getsizeof(value)
    except Exception:  # noqa: BLE001 - users' own code, and only an estimate
        return 64
