"""A file in the Trace Event Format, which Perfetto and ``chrome://tracing`` show: a row for each worker, and for the program."""

from __future__ import annotations

import contextlib
import json
import os
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._process import _locks, _system
from .._process._safely import Log
from .._words import items

if TYPE_CHECKING:
    from .._scheduling._requests import Record

_log = Log()

# Rows have numbers, and are shown in their order: the program's own first.
_ROWS = {"consumer": 1, "input": 2, "waiting": 3}
_TRANSPORT, _FIRST_WORKER = 4, 10
# So often the program's memory is asked for, which takes four system calls.
_MEMORY_SECONDS = 0.01
_NAMES = {"consumer": "the loop over the results", "input": "the input", "waiting": "waiting for results"}


def check_trace(path: Any) -> Path | None:
    """Return the path of a trace, in a folder that exists and can be written to."""
    if path is None:
        return None
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"trace must be the path of a file to be written, not {path!r}.")
    found = Path(os.fspath(path)).absolute()
    if found.is_dir():
        raise IsADirectoryError(
            f"trace={str(path)!r} is a folder; give the path of a file in it, such as 'trace.json'."
        )
    if not found.parent.is_dir():
        raise FileNotFoundError(
            f"trace={str(path)!r} can't be written: there is no folder {str(found.parent)!r}. Make it first."
        )
    if not os.access(found if found.exists() else found.parent, os.W_OK):
        raise PermissionError(
            f"trace={str(path)!r} can't be written: this program must not. Give the path of another file."
        )
    return found


class TraceWriter:
    """Writes events from any thread; a program that dies leaves a file that can be read all the same.

    What a message has taken is written at once, and with it what the consumer's thread has noted since it came in: each write lets
    another thread have the interpreter, and one for each event took a tenth of the time of a map of tiny items.

    Parameters
    ----------
    path : Path
        The file; one that is there is replaced.
    n_at_once : int
        How many items a worker is at.
    """

    def __init__(self, path: Path, n_at_once: int = 1) -> None:
        self._path, self._n_at_once = path, n_at_once
        self._lock = _locks.Lock()
        self._fd: int | None = None
        self._is_over = self._is_writing = False
        self._pid = os.getpid()
        self._known: set[int] = set()
        self._n_pairs = 0
        self._noted: list[str] = []
        self._asked = 0.0  # when the program's memory was asked for

    def write_record(self, record: Record) -> None:
        """Write what a message has taken: in its worker, and on the way."""
        row = _FIRST_WORKER + record.slot
        self._know(row, f"worker {record.slot}")
        name = _name_of(record)
        details = {"pid": record.pid, "items": record.n_items, "run": record.n_run, "bytes back": record.bytes_back}
        before = max(0.0, record.received - record.sent - record.seconds)
        if record.what == "built":
            self._write(ph="X", tid=row, name="starting", cat="starting", ts=record.sent, dur=before)
            self._write(
                ph="X", tid=row, name=name, cat="built", ts=record.sent + before, dur=record.seconds, args=details
            )
        elif record.what == "ran":
            began = record.sent + before / 2
            if self._n_at_once == 1:
                self._write(ph="X", tid=row, name=name, cat="ran", ts=began, dur=record.seconds, args=details)
            else:  # those of a row may only lie within each other
                self._write_pair(tid=row, name=name, cat="ran", since=began, until=began + record.seconds, args=details)
            self._write_transport(record, before / 2)
        else:
            lasted = record.received - record.sent
            self._write(ph="X", tid=row, name=name, cat=record.what, ts=record.sent, dur=lasted, args=details)
            self._write(ph="i", tid=row, name=record.detail or record.what, cat="fault", ts=record.received, s="t")
        self.flush()

    def _write_transport(self, record: Record, half: float) -> None:
        self._know(_TRANSPORT, "transport")
        for since, what in ((record.sent, "to"), (record.received - half, "from")):
            name = f"{what} worker {record.slot}"
            self._write_pair(tid=_TRANSPORT, name=name, cat="transport", since=since, until=since + half)

    def _write_pair(
        self, *, tid: int, name: str, cat: str, since: float, until: float, args: dict[str, Any] | None = None
    ) -> None:
        """Write what may overlap others of its row."""
        self._n_pairs += 1
        common: dict[str, Any] = {"cat": cat, "id": self._n_pairs, "tid": tid, "name": name}
        self._write(ph="b", ts=since, **common, args=args or {})
        self._write(ph="e", ts=until, **common)

    def write_stay(self, where: str, since: float, until: float) -> None:
        """Write where the consumer's thread was."""
        row = _ROWS[where]
        self._know(row, _NAMES[where])
        self._write(ph="X", tid=row, name=where, cat="program", ts=since, dur=until - since)

    def write_counters(self, at: float, n_buffered: int) -> None:
        """Write how full the buffer is, and how much memory the program holds."""
        self._write(ph="C", tid=0, name="buffer", ts=at, args={"items": n_buffered})
        if _system.HAS_PROC and at >= self._asked + _MEMORY_SECONDS:
            self._asked = at
            with contextlib.suppress(OSError):  # no file can be opened just now
                self._write(ph="C", tid=0, name="memory", ts=at, args={"MB": _system.resident_bytes() // 1_000_000})

    def close(self) -> None:
        """Write the end."""
        if self._pid != os.getpid():  # a fork: the file is the parent's, and the lock may be held for ever
            return
        with self._lock:
            self._is_over = True
            self._write_noted()
            if _writers.get(str(self._path)) is self:
                del _writers[str(self._path)]

    def _know(self, row: int, name: str) -> None:
        if row not in self._known:
            self._known.add(row)
            self._write(ph="M", tid=row, name="thread_name", args={"name": name})
            self._write(ph="M", tid=row, name="thread_sort_index", args={"sort_index": row})

    def _write(
        self,
        *,
        ph: str,
        tid: int,
        name: str,
        cat: str = "",
        ts: float = 0.0,
        dur: float | None = None,
        **more: Any,
    ) -> None:
        # Microseconds; of a clock that all processes of this machine have in common. A `dumps` of all takes five times as long.
        text = f'{{"pid": {self._pid}, "tid": {tid}, "ph": "{ph}", "name": {json.dumps(name)}, "ts": {ts * 1e6:.1f}'
        if cat:
            text += f', "cat": "{cat}"'
        if dur is not None:
            text += f', "dur": {dur * 1e6:.1f}'
        for key, value in more.items():
            text += f', "{key}": {json.dumps(value)}'
        with self._lock:
            if not self._is_over:  # else it is an answer that nobody waits for
                self._noted.append(text + "},\n")

    def flush(self) -> None:
        """Write what has been noted."""
        if self._pid == os.getpid():
            with self._lock:
                self._write_noted()

    def _write_noted(self) -> None:
        if self._is_writing:  # this is a finaliser, which garbage collection runs within a write of this thread's
            return
        self._is_writing = True
        try:
            self._write_texts()
            if self._is_over and self._fd is not None:
                fd, self._fd = self._fd, None
                _write_whole(fd, f"{json.dumps(_END | {'pid': self._pid})}\n]\n".encode())
                self._close()
        except OSError as error:
            self._give_up(error)
        finally:
            self._is_writing = False

    def _write_texts(self) -> None:
        texts, self._noted = self._noted, []
        if texts:
            if self._fd is None:
                self._fd = self._open()
            _write_whole(self._fd, "".join(texts).encode())

    def _open(self) -> int:
        if _writers.setdefault(str(self._path), self) is not self:
            raise FileExistsError("another map that runs now writes it; give each map a file of its own")
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        # Also of a map that nobody ends: at the end of the program it is no mistake of the user's.
        self._close = weakref.finalize(self, os.close, fd)
        _write_whole(fd, f"[\n{json.dumps(_PROGRAM | {'pid': self._pid})},\n".encode())
        return fd

    def _give_up(self, error: OSError) -> None:
        """Write no more: that is no reason for the map to end."""
        self._fd, self._is_over, self._noted = None, True, []
        _log.warning(
            "trace=%r could not be written, and is left as it is; the map goes on. %s: %s",
            str(self._path),
            type(error).__name__,
            str(error),  # a log record that held the error itself would hold all that its traceback leads to
        )

    def __repr__(self) -> str:
        return f"<TraceWriter {self._path}>"


_PROGRAM = {"ph": "M", "name": "process_name", "ts": 0, "tid": 0, "args": {"name": "stateful_map"}}
_END = {"ph": "M", "name": "process_sort_index", "ts": 0, "tid": 0, "args": {"sort_index": 0}}
# Those that have begun, by path, until they are gone.
_writers: weakref.WeakValueDictionary[str, TraceWriter] = weakref.WeakValueDictionary()


def _write_whole(fd: int, text: bytes) -> None:
    while text:  # on a disk that is nearly full a part of it is written
        text = text[os.write(fd, text) :]


def _name_of(record: Record) -> str:
    if record.what == "built" or record.n_items == 0:
        return "building"
    if record.first is None:
        return "a call"
    last = record.first + record.n_items - 1 if record.last is None else record.last
    return items(record.first, last, record.n_items)
