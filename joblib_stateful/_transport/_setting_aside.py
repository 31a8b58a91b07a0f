"""Packers that put large buffers elsewhere: what they write is a frame, and what travels beside it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from ._arrays import SUBCLASSES
from ._code import ComparingPickler
from ._contents import contents_of, stays_in_line
from ._frames import ROOM, Packer
from ._memmaps import array_pickler
from ._reducing import is_private
from ._stores import warn_once
from ._transport import THRESHOLD

if TYPE_CHECKING:
    import pickle
    from collections.abc import Callable

    from ._contents import Contents
    from ._defining import Definer
    from ._segments import Pieces
    from ._transport import Sharing


class SharedFrame(NamedTuple):
    """A packed value whose large buffers travel beside it.

    If ``is_long``, so does its pickle: it is the last of these buffers, and the head only how it begins.
    """

    head: bytes
    # Each a `Segment`, which arrives as `Received`; a `Range`, which becomes a copy; or a `Blob`, which does so, too.
    buffers: tuple[Any, ...]
    is_long: bool = False

    def with_buffers(self, change: Callable[[Any], Any]) -> SharedFrame:
        """Return it with what the buffers lie in changed: once, where several are the same."""
        changed = {key: change(buffer) for key, buffer in {id(buffer): buffer for buffer in self.buffers}.items()}
        return self._replace(buffers=tuple(changed[id(buffer)] for buffer in self.buffers))


class ResultPacker(Packer):
    """A pickler for results that go in line, perhaps to another machine."""

    def __init__(self, definer: Definer | None = None) -> None:
        super().__init__(stays_in_line, definer)

    def _make_pickler(self, file: Any, buffer_callback: Any, kind: Any) -> Any:
        return array_pickler(file, buffer_callback, kind, named="none", is_result=True)


class _SettingAside(Packer):
    """A pickler that puts large buffers elsewhere, as long as there is room.

    They are put there at once: what is pickled next may change them, as objects do that share memory to get their state into.
    """

    def __init__(
        self, put: Callable[[Contents, Sharing], Any], sharing: Sharing, definer: Definer | None = None
    ) -> None:
        self.aside: list[Any] = []  # where they are
        self._put, self._sharing = put, sharing
        self._threshold = sys.maxsize if sharing.threshold is None else max(sharing.threshold, 1)
        # Smaller ones, of which there are many, stand for nothing else (`reduce_array`).
        self._least = min(self._threshold, THRESHOLD)
        super().__init__(self._take_buffer, definer)

    def _take_buffer(self, buffer: pickle.PickleBuffer) -> bool:
        """Put a buffer aside if it is large and there is room; return whether it stays in line."""
        if buffer.raw().nbytes < self._least:
            return True
        contents = contents_of(buffer)
        if contents.nbytes >= self._threshold and self._put_aside(contents, self._sharing_of(buffer)):
            return False
        contents.in_memory()  # where the pickler takes it from
        return True

    def _sharing_of(self, buffer: pickle.PickleBuffer) -> Sharing:
        sharing = self._sharing
        return sharing._replace(mode="c") if sharing.mode != "c" and is_private(buffer) else sharing

    def _put_aside(self, contents: Contents, sharing: Sharing) -> bool:
        try:
            self.aside.append(self._put(contents, sharing))
        except OSError as error:
            self._threshold = sys.maxsize
            self._tell(error)
            return False
        return True

    def _forget(self) -> None:
        self.aside.clear()

    def _tell(self, error: OSError) -> None:
        """Take note that there is no room."""


class ComparingPacker(_SettingAside):
    """A pickler whose output is only compared."""

    def _make_pickler(self, file: Any, buffer_callback: Any, kind: Any) -> Any:  # noqa: ARG002 - always the same
        return array_pickler(file, buffer_callback, ComparingPickler, named="all", with_contents=True)


class SharingPacker(_SettingAside):
    """A pickler whose large buffers travel beside the frame."""

    def __init__(
        self,
        put: Callable[[Contents, Sharing], Any],
        put_pickle: Callable[[Pieces, Sharing], Any] | None,
        sharing: Sharing,
        definer: Definer | None,
        *,
        in_worker: bool,
    ) -> None:
        self._put_pickle, self._in_worker = put_pickle, in_worker
        if sharing.mode != "c":
            self._left_out = SUBCLASSES
        super().__init__(put, sharing, definer)

    def _make_pickler(self, file: Any, buffer_callback: Any, kind: Any) -> Any:
        return array_pickler(file, buffer_callback, kind, named=self._sharing.named, is_result=self._in_worker)

    def _frame(self, beginning: bytes, written: list[Any]) -> Any:
        rest = None if self._put_pickle is None else self._laid_aside(self._put_pickle, written)
        head: bytes = beginning if rest is not None else super()._frame(beginning, written)
        if not self.aside:
            return head
        places = tuple(self.aside)
        self.aside.clear()
        self.nbytes += sum(place.size for place in places)
        return SharedFrame(head, places, is_long=rest is not None)

    def _laid_aside(self, put_pickle: Callable[[Pieces, Sharing], Any], written: list[bytes]) -> Any:
        """Return where a pickle lies if it is large and there is room."""
        if sum(map(len, written)) < self._threshold:
            return None
        try:
            place = put_pickle((ROOM, *written), self._sharing)
        except OSError as error:
            self._threshold = sys.maxsize
            self._tell(error)
            return None
        self.aside.append(place)
        return place

    def _tell(self, error: OSError) -> None:
        if not self._in_worker:
            warn_once(error, "they are copied through pipes instead, which is slower")
