"""Executors that `stateful_map` and the backend share, so that a second call finds its objects built.

An executor is reused as long as what it was made from is the same, whatever the number of slots: who wants fewer uses
the first of those that stand, who wants more has others added. It is let go after 300 idle seconds, or when another
worker is asked for while it is idle (a GPU's memory comes back before the next model loads; but of two that are used in
turn none makes way a second time), or by `shutdown`. One that somebody uses is never taken away.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, NamedTuple

from .._process import _locks, _timers
from .._process._safely import Log
from .._process._system import after_fork
from .._transport import _code
from .._transport._transport import ByReference
from .._worker._worker import current
from . import _exit, _room, _timeouts
from ._making import make_pool
from ._spec import PackedSpec, holds_the_same, spec_key
from ._turns import Turns, name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from .._scheduling._requests import WorkerSpec
    from .._transport._code import Reloads, Source
    from ..engines import Engine, Runtime
    from ._pool import WorkerPool
    from ._spec import SpecKey
    from ._thread_limits import InnerThreads

# joblib's own figure for its idle workers.
IDLE_SECONDS = 300.0

_log = Log()


class _Key(NamedTuple):
    """What tells executors apart: what is the same in all slots, and what each has of its own."""

    common: Hashable
    own: tuple[Hashable, ...]

    def fits(self, other: _Key) -> bool:
        """Tell whether one of them is the other with some more slots."""
        return self.common == other.common and all(map(operator.eq, self.own, other.own))


class _Entry:
    """A shared executor, who uses it, and when it is let go."""

    n_leases = 0
    n_wanted = 0  # slots, by its latest user
    has_left_overs = False  # of an earlier user
    alarm: _timers.Alarm | None = None

    def __init__(self, key: _Key, pool: WorkerPool, spec_id: SpecKey, reloads: Reloads, *, is_stateless: bool) -> None:
        # The pool keeps its engine, so that its identity in the key stays its own.
        self.key, self.pool, self.spec_id, self.is_stateless = key, pool, spec_id, is_stateless
        self.session = pool.engine.session()
        self.name = name_of((key.common, key.own[0]))  # of its first slot, for more of them can come
        self.reloads = reloads  # before its workers started, at any rate
        self.source = self.present_source()

    def makes_way_at_any_rate(self, new: _Entry) -> bool:
        """Tell whether its idle workers make way for new ones, even if the two are used in turn."""
        # On a cluster idle actors hold CPUs, without which the new ones would find no place. Those with old code, or of an
        # environment that has changed, are of no use to anybody.
        is_outdated = self.reloads != new.reloads or self.name == new.name
        return is_outdated or (new.pool.engine.is_remote and self.session == new.session)

    def displaces(self, other: _Entry) -> bool:
        """Tell whether idle workers make way for these."""
        # Those with other objects, for an object; those without, for those without.
        return other.is_stateless is self.is_stateless or other.makes_way_at_any_rate(self)

    def finds_its_like_in(self, other: _Entry) -> bool:
        """Tell whether objects of another one with the same key will do for this one."""
        environment = other.pool.environment
        if environment is not None and environment.changes():  # libraries have read it when they were imported
            return False
        if other.was_edited(self.present_source()):
            return False
        n_slots = min(len(self.key.own), len(other.key.own))
        held, asked = other.pool.packed.spec.of_first(n_slots), self.pool.packed.spec.of_first(n_slots)
        return holds_the_same(held, asked, self.spec_id.of_first(n_slots), self.pool.runtime.transport)

    def present_source(self) -> Source | None:
        """Return what objects would be built from now, where nothing travels."""
        if not isinstance(self.pool.runtime.transport, ByReference):
            return None
        return _code.source_of(self.pool.packed.spec.build)

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

    def __init__(self, entry: _Entry) -> None:
        self.pool = entry.pool
        self._entry = entry
        # In one go: a Ctrl-C strikes at calls, and then it is dropped, and so released.
        self._released = False
        entry.n_leases += 1

    def __del__(self) -> None:
        if not getattr(self, "_released", True) and not self.pool.is_disowned:
            release_from_finaliser(self)

    def __repr__(self) -> str:
        return f"<Lease{' released' * self._released} of {self.pool!r}>"

    def has_left_overs(self) -> bool:
        """Tell, once, whether items that nobody waits for may run where these slots are wanted."""
        found, self._entry.has_left_overs = self._entry.has_left_overs, False
        return found

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
                end = entry in _leaving
                if end:
                    _leaving.remove(entry)
                else:
                    entry.alarm = _timers.call_after(IDLE_SECONDS, lambda: _let_go(entry))
        if end:
            _end([entry], wait=False)


_lock = _locks.make_lock()  # guards the three below and the entries
_entries: list[_Entry] = []
# In use, and for nobody else: ended by their last user. Held here, so that garbage that holds a lease never holds all of the
# executor, too: what is in garbage has lost its weak references and open files when a lease in there is released.
_leaving: list[_Entry] = []
_turns = Turns()


def prepare(
    spec: WorkerSpec,
    n_jobs: int,
    runtime: Runtime,
    envs: Sequence[dict[str, str]],
    inner_max_num_threads: InnerThreads = None,
) -> Callable[[], Lease]:
    """Check that an executor can be had, and return how to take one; nothing is started yet.

    Parameters
    ----------
    spec, n_jobs, envs, inner_max_num_threads
        What it is made from; see `StatefulExecutor`.
    runtime
        What opens its workers, if it is a new one.

    Returns
    -------
    callable
        Returns a `Lease` of the executor that is there for these, or of a new one. It has so many slots, or more: run
        nothing on those.
    """
    # What runs in a worker of this process must not wait for the slots that its like, or it itself, holds.
    inside = current()
    transport, engine = runtime.transport, runtime.engine
    spec_id, session, reloads = spec_key(spec, transport), engine.session(), _code.reloads()
    key = _Key(
        (
            spec_id.common,
            reloads,
            id(engine),
            session,
            inner_max_num_threads,
            inside and id(inside.life),
            runtime.max_concurrency,
        ),
        tuple((spec_id.of_slot(slot), tuple(sorted(env.items()))) for slot, env in enumerate(envs)),
    )
    with _lock:
        # By reference, what the one that is there was made from may hold something else when one is taken.
        found = None if isinstance(transport, ByReference) else _find(key)
    # Not by its key, which says what it will have; and the number first, for another thread may be having it grow.
    has_all = found is not None and (found.pool.n_jobs >= n_jobs or spec.worker_kwargs is None)
    packed = found.pool.packed if found is not None and has_all else PackedSpec(spec, transport)
    pool = make_pool(packed, n_jobs, runtime, envs, inner_max_num_threads=inner_max_num_threads)

    def lease() -> Lease:
        if pool.is_disowned:  # by a fork since
            anew = engine.make_concurrent_runtime(n_jobs, runtime.max_concurrency)
            return prepare(spec, n_jobs, anew, envs, inner_max_num_threads)()
        return _lease(_Entry(key, pool, spec_id, reloads, is_stateless=spec.build is None))

    return lease


def _lease(new: _Entry) -> Lease:
    with _lock:
        there = _find(new.key)
    fits = there is None or new.finds_its_like_in(there)  # not under the lock, for it may pickle
    with _lock:
        found = _take(new) if fits else None
        others, staying = _make_room_for(new, found)
    _end(others, wait=True)
    for entry in staying:  # not under the lock, for handlers are users' code
        _tell(entry, new)
    if found is None:
        with _lock:
            present, replaced = _find(new.key), None
            if present is None or present.pool.is_closed or (present is there and not fits):
                if present is not None:
                    _entries.remove(present)
                    if present.n_leases:
                        _leaving.append(present)
                    else:  # its user has given it back meanwhile
                        replaced = present
                _entries.append(new)
            found = _take(new)  # another thread's, if that was faster
        if replaced is not None:
            _end([replaced], wait=True)
    assert found is not None  # noqa: S101 - it was just put there
    if found.has_left_overs():
        # Without objects nothing is lost with a process that only finishes an item which nobody waits for; who wants another
        # number of them shall not wait for that.
        found.pool.kill(only_busy=True)
    found.pool.grow(new.pool)
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
        free = _unlist(lambda _: True)
        _leaving.extend(_entries)
        _entries.clear()
    _end(free, wait=True)


def release_from_finaliser(lease: Lease) -> None:
    """Release a lease, at any point of any thread."""
    _exit.call_from_finaliser(lease.release)


def _find(key: _Key) -> _Entry | None:
    return next((entry for entry in _entries if entry.key.fits(key)), None)


def _take(new: _Entry) -> Lease | None:
    entry = _find(new.key)
    if entry is None or entry.pool.is_closed:
        return None
    if entry.n_leases == 0 and entry.is_stateless and entry.n_wanted not in (0, new.pool.n_jobs):
        entry.has_left_overs = True
    entry.n_wanted = new.pool.n_jobs
    entry.key = max(entry.key, new.key, key=lambda key: len(key.own))  # what it will have when it has grown
    lease = Lease(entry)
    if entry.alarm is not None:
        entry.alarm.cancel()
        entry.alarm = None
    return lease


def _make_room_for(new: _Entry, found: Lease | None) -> tuple[list[_Entry], list[_Entry]]:
    """Take those out of the list that make way for a new entry, or for what is added to the one that was found.

    Returned are these, and those that stay from now on because the two are used in turn.
    """
    if found is not None:
        is_enough = found.pool.n_jobs >= new.pool.n_jobs
        return ([] if is_enough else _unlist(lambda entry: entry.makes_way_at_any_rate(new))), []
    staying = [entry for entry in _entries if _turns.has(entry.name, new.name) and not entry.makes_way_at_any_rate(new)]
    free = _unlist(lambda entry: new.displaces(entry) and entry not in staying)
    for entry in free:
        _turns.note(entry.name, new.name)
    idle = (entry for entry in staying if entry.n_leases == 0 and new.displaces(entry))
    return free, [entry for entry in idle if _turns.is_news(entry.name, new.name)]


def _tell(entry: _Entry, new: _Entry) -> None:
    one, other = _text_of(entry), _text_of(new)
    if one == other:
        other += " with other kwargs, code or options"
    _log.warning(
        "Workers for %s and workers for %s are used in turn. So far the first ended when the others were needed; from now on both "
        "stay. joblib_stateful.shutdown() frees what they hold; with a StatefulExecutor for each you decide how long its "
        "workers live.",
        one,
        other,
    )


def _text_of(entry: _Entry) -> str:
    build = entry.pool.packed.spec.build
    return "plain functions" if build is None else getattr(build, "__qualname__", None) or repr(build)


def _unlist(which: Callable[[_Entry], bool]) -> list[_Entry]:
    """Take the entries that nobody uses out of the list."""
    free = [entry for entry in _entries if entry.n_leases == 0 and which(entry)]
    for entry in free:
        _entries.remove(entry)
    return free


def _make_way(engine: Engine) -> None:
    """Let go what nobody uses in a cluster that has no room for more."""
    if not engine.is_remote:
        return
    session = engine.session()
    with _lock:
        free = _unlist(lambda entry: entry.session == session)
    _end(free, wait=False)


_room.keepers.append(_make_way)


def _let_go(entry: _Entry) -> None:
    with _lock:
        if entry.n_leases or entry not in _entries:
            return
        _entries.remove(entry)
    _end([entry], wait=False)


def _end(entries: Sequence[_Entry], *, wait: bool) -> None:
    for entry in entries:
        if entry.alarm is not None:
            entry.alarm.cancel()
        entry.pool.kill(only_busy=True)  # nobody uses it: what is busy finishes abandoned items
        entry.pool.close(wait=False)
    for entry in entries if wait else ():
        # What takes too long to close is killed by the pool; this is for a process that not even the system can kill.
        if not entry.pool.wait_until_empty(2 * _timeouts.CLOSE_SECONDS):
            entry.pool.kill()


def _forget() -> None:
    """In a fork: the processes are the parent's, and its locks may be held for ever."""
    global _lock  # noqa: PLW0603 - a fork starts anew
    _lock = _locks.make_lock()
    _entries.clear()
    _leaving.clear()
    _code.start_anew()


after_fork(_forget)
