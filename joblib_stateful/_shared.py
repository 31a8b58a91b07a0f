"""Executors that `stateful_map` and the backend share, so that a second call finds its objects built.

An executor is reused as long as what it was made from is the same. It is let go after 300 idle seconds, or
when another worker is asked for while it is idle (a GPU's memory comes back before the next model loads), or
by `shutdown`. One that somebody uses is never taken away.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING, Any

from . import _clock, _code, _exit
from ._executor import make_core
from ._spec import PackedSpec, holds_the_same, spec_key
from ._transport import ByReference
from ._worker import current

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from ._code import Reloads, Source
    from ._core import Core
    from ._records import WorkerSpec
    from .engines import Engine

# joblib's own figure for its idle workers.
IDLE_SECONDS = 300.0
# How long an object that makes way may take to close, before what waits for its place goes on.
_CLOSE_SECONDS = 30.0

_log = logging.getLogger("joblib_stateful")


class _Entry:
    """A shared executor, who uses it, and when it is let go."""

    n_leases = 0
    listed = True  # False: to be ended by its last user
    alarm: _clock.Alarm | None = None

    def __init__(self, core: Core, engine: Engine, spec_id: Hashable, reloads: Reloads, *, is_stateless: bool) -> None:
        self.core, self.spec_id, self.is_stateless = core, spec_id, is_stateless
        self.engine = engine  # kept, so that its identity in the key stays its own
        self.reloads = reloads  # before its workers started, at any rate
        self.source = self.present_source()

    def displaces(self, other: _Entry) -> bool:
        """Tell whether idle workers make way for these."""
        # Those with other objects, for an object; those without, for those without. On a cluster also each for the
        # other: idle actors hold CPUs, without which the new ones would find no place. Those with old code are of no use
        # to anybody.
        return (
            other.is_stateless is self.is_stateless
            or other.reloads != self.reloads
            or (self.engine.is_remote and other.engine is self.engine)
        )

    def finds_its_like_in(self, other: _Entry) -> bool:
        """Tell whether objects of another one with the same key will do for this one."""
        environment = other.core.environment
        if environment is not None and environment.changes():  # libraries have read it when they were imported
            return False
        return not other.was_edited(self.present_source()) and holds_the_same(
            other.core.packed.spec, self.core.packed.spec, self.spec_id, self.engine.transport
        )

    def present_source(self) -> Source | None:
        """Return what objects would be built from now, where nothing travels."""
        return _code.source_of(self.core.packed.spec.build) if isinstance(self.engine.transport, ByReference) else None

    def was_edited(self, present: Source | None) -> bool:
        """Tell whether what its objects were built from is another thing now."""
        # What is new on a class while its objects are at work, such as a count of them, is their own doing.
        is_at_work = self.n_leases > 0
        return (
            self.source is not None
            and present is not None
            and (self.source.code != present.code or (not is_at_work and self.source.data != present.data))
        )


class Lease:
    """The right to use a shared executor, until `release`."""

    def __init__(self, key: Hashable, entry: _Entry) -> None:
        self.core = entry.core
        self._key, self._entry = key, entry
        self._released = False

    def release(self) -> None:
        """Give the executor back; it keeps its objects for the next one who needs them."""
        entry, end = self._entry, False
        source = entry.present_source()  # not under the lock, for it may pickle
        with _lock:
            if self._released:
                return
            self._released = True
            entry.n_leases -= 1
            if entry.n_leases == 0:
                entry.source = source
                end = not entry.listed
                if not end:
                    entry.alarm = _clock.call_after(IDLE_SECONDS, lambda: _let_go(self._key, entry))
        if end:
            _end([entry], wait=False)


_lock = threading.Lock()  # guards the two below and the entries
_entries: dict[Hashable, _Entry] = {}


def prepare(
    spec: WorkerSpec,
    n_jobs: int,
    engine: Engine,
    envs: Sequence[dict[str, str]],
    inner_max_num_threads: int | None = None,
) -> Callable[[], Lease]:
    """Check that an executor can be had, and return how to take one; nothing is started yet.

    Parameters
    ----------
    spec, n_jobs, engine, envs, inner_max_num_threads
        What it is made from; see `StatefulExecutor`.

    Returns
    -------
    callable
        Returns a `Lease` of the executor that is there for these, or of a new one.
    """
    own = tuple(tuple(sorted(env.items())) for env in envs)
    # What runs in a worker of this process must not wait for the slots that its like, or it itself, holds.
    inside = current()
    spec_id, session, reloads = spec_key(spec, engine.transport), engine.session(), _code.reloads()
    key = (spec_id, reloads, n_jobs, id(engine), session, own, inner_max_num_threads, inside and id(inside))
    with _lock:
        # By reference, what the one that is there was made from may hold something else when one is taken.
        found = None if isinstance(engine.transport, ByReference) else _entries.get(key)
    packed = PackedSpec(spec, engine.transport) if found is None else found.core.packed
    core = make_core(packed, n_jobs, engine, envs, inner_max_num_threads=inner_max_num_threads)

    def lease() -> Lease:
        if core.is_disowned:  # by a fork since
            return prepare(spec, n_jobs, engine, envs, inner_max_num_threads)()
        return _lease(key, _Entry(core, engine, spec_id, reloads, is_stateless=spec.build is None))

    return lease


def _lease(key: Hashable, new: _Entry) -> Lease:
    with _lock:
        there = _entries.get(key)
    fits = there is None or new.finds_its_like_in(there)  # not under the lock, for it may pickle
    with _lock:
        found = _take(key) if fits else None
        others = [] if found else _unlist(new.displaces)
    if found is not None:
        return found
    _end(others, wait=True)
    with _lock:
        present, replaced = _entries.get(key), None
        if present is None or present.core.is_closed or (present is there and not fits):
            if present is not None:
                present.listed = False
                replaced = present if present.n_leases == 0 else None  # its user has given it back meanwhile
            _entries[key] = new
        found = _take(key)  # another thread's, if that was faster
    if replaced is not None:
        _end([replaced], wait=True)
    assert found is not None  # noqa: S101 - it was just put there
    return found


def shutdown() -> None:
    """End the shared executors of `stateful_map` and the backend now, and free their objects.

    What only finishes items that nobody waits for is killed. Executors in use end with their last user.
    Executors that you made yourself are yours to shut down.

    Examples
    --------
    >>> import joblib_stateful
    >>> joblib_stateful.shutdown()
    """
    with _lock:
        for entry in _entries.values():
            entry.listed = False
        free = _unlist(lambda _: True)
        _entries.clear()
    _end(free, wait=True)


def release_from_finaliser(lease: Lease) -> None:
    """Release a lease, at any point of any thread."""
    _exit.call_from_finaliser(lease.release, is_free=is_free())


def is_free() -> bool:
    """Tell whether nobody, perhaps the calling thread itself, holds a lock that releasing a lease takes."""
    return not _lock.locked() and _clock.is_free()


def _take(key: Hashable) -> Lease | None:
    entry = _entries.get(key)
    if entry is None or entry.core.is_closed:
        return None
    entry.n_leases += 1
    if entry.alarm is not None:
        entry.alarm.cancel()
        entry.alarm = None
    return Lease(key, entry)


def _unlist(which: Any) -> list[_Entry]:
    """Take the entries that nobody uses out of the list."""
    free = [key for key, entry in _entries.items() if entry.n_leases == 0 and which(entry)]
    return [_entries.pop(key) for key in free]


def _let_go(key: Hashable, entry: _Entry) -> None:
    with _lock:
        if entry.n_leases or _entries.get(key) is not entry:
            return
        del _entries[key]
    _end([entry], wait=False)


def _end(entries: Sequence[_Entry], *, wait: bool) -> None:
    for entry in entries:
        if entry.alarm is not None:
            entry.alarm.cancel()
        entry.core.kill(only_busy=True)  # nobody uses it: what is busy finishes abandoned items
        entry.core.close(wait=False)
    for entry in entries if wait else ():
        if not entry.core.wait_until_empty(_CLOSE_SECONDS):
            _log.warning("close() of a worker took longer than %g s; the worker was killed.", _CLOSE_SECONDS)
            entry.core.kill()


def _forget() -> None:
    """In a fork: the processes are the parent's, and its locks may be held for ever."""
    global _lock  # noqa: PLW0603 - a fork starts anew
    _lock = threading.Lock()
    _entries.clear()
    _code.start_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
