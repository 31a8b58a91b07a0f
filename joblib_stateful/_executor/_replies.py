"""From a worker's reply to values and exceptions as the caller shall see them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .. import errors
from .._process import _safely
from .._process._safely import text_of
from .._scheduling._requests import Report
from .._transport._definitions import active
from .._transport._transport import ByReference
from .._words import items
from .._worker._rows import cut

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .._scheduling._jobs import Job
    from .._transport._definitions import Peer
    from .._transport._transport import Transport
    from .._worker._messages import BuildFailed, Failure, Ran
    from ..engines import Runtime
    from ._links import Link


class Origin(NamedTuple):
    """Where an exception comes from: which item, or the first and the last of those that have it, and which worker."""

    first: int | None
    slot: int
    pid: int | None
    last: int | None = None
    n_items: int = 1


class NonsenseError(Exception):
    """Raised for values that can't be what a worker has sent, unless its memory is damaged."""


def report_of(job: Job | None, reply: Ran, transport: Transport, slot: int, pid: int | None, *, peer: Peer) -> Report:
    """Unpack a reply to a job; without a job (nobody waits for it) only count."""
    if job is None:
        return Report(reply.n_run, [], {}, reply.seconds, is_full=reply.n_held > 0)
    with active(peer):
        return _unpack(job, reply, transport, slot, pid)


def _unpack(job: Job, reply: Ran, transport: Transport, slot: int, pid: int | None) -> Report:
    request = job.call.request
    faults = _exceptions_of(job, reply, transport, slot, pid) if reply.failures else {}
    good = _places_of_values(reply)
    values = None
    try:
        values = transport.unpack_joint(reply.values)
    except MemoryError as error:  # none of them can be told from the others
        values = [None] * len(good)
        for place in good:
            index = request.index(job.positions[place])
            faults[place] = _result_error(index, error, reply.values.nbytes, slot, pid)
    except Exception as error:  # nothing of the user's is in there that could have failed
        raise NonsenseError(f"{len(good)} values can't be loaded: {_safely.name_of(type(error))}") from error
    if reply.values.joint and (type(values) is not list or len(values) != len(good)):
        raise NonsenseError(f"{len(good)} values were sent, and are none")
    if values is None:
        values, unpack = [], transport.unpacker(reply.values)
        rows = reply.rows or (0,) * len(good)
        for n_rows, frame in zip(rows, reply.values.frames, strict=True):
            try:
                values += cut(unpack(frame), n_rows) if n_rows else (unpack(frame),)
            except BaseException as error:  # noqa: BLE001 - loading runs users' code; it is this item's error
                for place in good[len(values) : len(values) + max(n_rows, 1)]:
                    index = request.index(job.positions[place])
                    faults[place] = _result_error(index, error, reply.values.nbytes, slot, pid)
                values += [None] * max(n_rows, 1)
    if reply.failures:
        found = iter(values)
        values = [None if place in reply.failures else next(found) for place in range(reply.n_run)]
    return Report(
        reply.n_run,
        values,
        faults,
        reply.seconds,
        reply.values.nbytes,
        was_refused=reply.was_refused,
        is_full=reply.n_held > 0,
        n_calls=reply.n_calls,
        n_fit=reply.n_fit,
        late=_places_over_time(reply) if reply.failures else (),
        slot=slot,
    )


def _places_of_values(reply: Ran) -> Sequence[int]:
    """Return the places of the items that have a result."""
    failures = reply.failures
    return [place for place in range(reply.n_run) if place not in failures] if failures else range(reply.n_run)


def _places_over_time(reply: Ran) -> list[int]:
    return [place for place, failure in reply.failures.items() if failure.what == "time"]


def read_answer(job: Job | None, reply: Ran, runtime: Runtime, slot: int, link: Link) -> Report:
    """Unpack a reply to a job, whatever goes wrong with that; without a job, or if nobody wants it any more, only count.

    Raises NonsenseError if the worker can't have sent that, and on a synchronous engine a Ctrl-C.
    """
    pid = link.worker.pid
    if job is None or job.call.settled:
        return report_of(None, reply, runtime.transport, slot, pid, peer=link.peer)
    try:
        return report_of(job, reply, runtime.transport, slot, pid, peer=link.peer)
    except BaseException as error:
        if isinstance(error, NonsenseError) or (
            runtime.engine.is_synchronous and _safely.is_a(error, KeyboardInterrupt)
        ):
            raise
        return report_without(job, reply, error, slot, pid)


def report_without(job: Job, reply: Ran, error: BaseException, slot: int, pid: int | None) -> Report:
    """Return what can be told of a job whose reply could not be unpacked at all: the same error for each of its items."""
    faults: dict[int, BaseException] = {
        place: _result_error(job.call.request.index(job.positions[place]), error, reply.values.nbytes, slot, pid)
        for place in range(reply.n_run)
    }
    is_full = reply.n_held > 0
    return Report(reply.n_run, [None] * reply.n_run, faults, reply.seconds, is_full=is_full, slot=slot)


def _exceptions_of(job: Job, reply: Ran, transport: Transport, slot: int, pid: int | None) -> dict[int, BaseException]:
    """Return the exceptions of a reply's items, by place."""
    index_of, is_by_reference = job.call.request.index, isinstance(transport, ByReference)
    # Within one process the items of one call may all have the same exception: it is told once which these are.
    places: dict[int, list[int]] = {}
    for place, failure in reply.failures.items():
        is_object = (is_by_reference and failure.packed is not None) or failure.what == "time"
        places.setdefault(id(failure.packed) if is_object else ~place, []).append(place)
    found: dict[int, BaseException] = {}
    for same in places.values():
        first, last = min(same), max(same)
        origin = Origin(index_of(job.positions[first]), slot, pid, index_of(job.positions[last]), len(same))
        failure = reply.failures[first]
        if failure.what == "time":
            n_items = len(same) if job.call.request.is_one_call else 1
            found.update((place, _late(job, place, slot, pid, n_items=n_items)) for place in same)
            continue
        found.update(dict.fromkeys(same, exception_of(failure, transport, origin)))
    return found


def _late(job: Job, place: int, slot: int, pid: int | None, *, n_items: int) -> errors.ItemTimeoutError:
    request = job.call.request
    timeout = request.limits.item_timeout or 0.0
    index = request.index(job.positions[place])
    return errors.ItemTimeoutError(index, slot, pid, timeout, n_items=n_items, was_cancelled=True)


def exception_of(failure: Failure, transport: Transport, origin: Origin) -> BaseException:
    """Return the exception that a worker's call raised, or what has to stand for it."""
    try:
        return _exception_of(failure, transport, origin)
    except BaseException:  # noqa: BLE001 - whatever a class of the user's does, or want of memory: its texts are left
        error = errors.RemoteError(failure.type_name, failure.message, failure.traceback)
        _add_origin(error, origin)
        return error


def _exception_of(failure: Failure, transport: Transport, origin: Origin) -> BaseException:
    if failure.what == "function":
        # No item is to blame, but each that should have run through it fails.
        return _with_traceback(errors.TransferError(origin.first, "function", _reason(failure)), failure)
    if failure.what and failure.what != "surroundings":
        transfer_error = errors.TransferError(origin.first, failure.what, _reason(failure))
        _add_origin(transfer_error, origin)
        return _with_traceback(transfer_error, failure)
    error = _rebuild(failure, transport)
    if error is None:
        error = errors.RemoteError(failure.type_name, failure.message, failure.traceback)
    _add_origin(error, origin)
    # Within one process the exception comes with its own traceback and cause.
    return error if _safely.traceback_of(error) is not None else _with_traceback(error, failure)


def stand_in(error: BaseException) -> errors.RemoteError:
    """Return what stands for an exception that nobody can handle; see `_safely.can_be_handled`."""
    cause = _safely.cause_of(error)
    told = cause.text if isinstance(cause, errors.RemoteTraceback) else ""
    return errors.RemoteError(_safely.full_name_of(type(error)), text_of(error), told)


def packing_error_of(error: BaseException, index: int | None) -> errors.TransferError:
    """Return the error of an item that could not be packed in the parent."""
    return _transfer_error(index, "item", error)


def init_error_of(
    slot: int, kwargs: Iterable[str], reply: BuildFailed, transport: Transport, peer: Peer
) -> errors.WorkerInitError:
    """Return the error for a constructor that raised."""
    failure = reply.failure
    reason = _reason(failure)
    if failure.what == "spec":  # before any code of the constructor's
        reason = f"its class or kwargs could not be unpickled there: {reason} {errors.how_to_send(reason)}"
    error = errors.WorkerInitError(slot, tuple(kwargs), reason, reply.pid)
    with active(peer):
        peer.receive(reply.definitions, transport.unpack)
        cause = _rebuild(failure, transport)
    if cause is None:
        cause = errors.RemoteError(failure.type_name, failure.message, failure.traceback)
    error.__cause__ = cause if _safely.traceback_of(cause) is not None else _with_traceback(cause, failure)
    return error


def _rebuild(failure: Failure, transport: Transport) -> BaseException | None:
    if failure.packed is None:
        return None
    try:
        error = transport.unpack(failure.packed)
    except BaseException:  # noqa: BLE001 - loading runs users' code, which often doesn't fit its constructor
        return None
    # `isinstance` would believe what an object says of itself.
    if not issubclass(type(error), BaseException):
        return None
    if not isinstance(transport, ByReference):
        # Dask has tracebacks be pickled, without what points out the place in a line; the worker has told it as a text.
        BaseException.with_traceback(error, None)
    found: BaseException = error
    return found


def _transfer_error(index: int | None, what: str, error: BaseException) -> errors.TransferError:
    result = errors.TransferError(index, what, _sentence(_safely.name_of(type(error)), text_of(error)))
    result.__cause__ = error
    return result


def _result_error(
    index: int | None, error: BaseException, nbytes: int, slot: int, pid: int | None
) -> errors.TransferError:
    """Return the error of an item whose result could not be loaded."""
    if _safely.is_a(error, MemoryError):
        BaseException.with_traceback(error, None)  # its frames hold what there was no memory for
        said = text_of(error)
        text = f"{said}{':' if said else ''} this program had no memory to take a result of {nbytes:,} bytes"
        result = errors.TransferError(index, "result", _sentence(_safely.name_of(type(error)), text))
        result.__cause__ = error
    else:
        result = _transfer_error(index, "result", error)
    _add_origin(result, Origin(index, slot, pid))
    return result


def _reason(failure: Failure) -> str:
    return _sentence(failure.type_name, failure.message)


def _sentence(type_name: str, message: str) -> str:
    text = f"{type_name}: {message}" if message else type_name
    return text if text.endswith((".", "!", "?")) else f"{text}."


def add_note(error: BaseException, text: str) -> None:
    """Add a note of ours to an exception."""
    _safely.add_note(error, f"[joblib_stateful: {text}]")


def _add_origin(error: BaseException, origin: Origin) -> None:
    index, slot, pid, last, n_items = origin
    which = "call" if index is None else items(index, index if last is None else last, n_items)
    add_note(error, f"{which}, slot {slot}, pid {pid}")


def _with_traceback(error: BaseException, failure: Failure) -> BaseException:
    if failure.traceback:
        _safely.set_cause(error, errors.RemoteTraceback(failure.traceback))
    found: BaseException = error
    return found
