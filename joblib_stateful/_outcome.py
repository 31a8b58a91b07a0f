"""From a worker's reply to values and exceptions as the caller shall see them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from . import errors
from ._definitions import active
from ._records import Report

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._definitions import Peer
    from ._messages import BuildFailed, Failure, Ran
    from ._slots import Job
    from ._transport import Transport
    from .engines import Engine


def report_of(job: Job | None, reply: Ran, engine: Engine, slot: int, pid: int | None, *, peer: Peer) -> Report:
    """Unpack a reply to a job; without a job (nobody waits for it) only count."""
    with active(peer):
        if reply.definitions:
            peer.receive(reply.definitions, engine.transport.unpack)
        if job is None:
            return Report(reply.n_run, [], {}, reply.seconds)
        return _unpack(job, reply, engine, slot, pid)


def _unpack(job: Job, reply: Ran, engine: Engine, slot: int, pid: int | None) -> Report:
    transport, call = engine.transport, job.call
    faults: dict[int, BaseException] = {
        place: exception_of(failure, transport, call.index(job.positions[place]), slot, pid)
        for place, failure in reply.failures.items()
    }
    values = transport.unpack_joint(reply.values)
    if values is None:
        values, unpack = [], transport.unpacker(reply.values)
        good = [place for place in range(reply.n_run) if place not in reply.failures]
        for place, frame in zip(good, reply.values.frames, strict=True):
            try:
                values.append(unpack(frame))
            except BaseException as error:  # noqa: BLE001 - loading runs users' code; it is this item's error
                values.append(None)
                index = call.index(job.positions[place])
                faults[place] = _transfer_error(index, "result", error)
                _add_origin(faults[place], index, slot, pid)
    if reply.failures:
        found = iter(values)
        values = [None if place in reply.failures else next(found) for place in range(reply.n_run)]
    return Report(reply.n_run, values, faults, reply.seconds, reply.values.nbytes, reply.was_refused)


def exception_of(
    failure: Failure, transport: Transport, index: int | None, slot: int, pid: int | None
) -> BaseException:
    """Return the exception that a worker's call raised, or what has to stand for it."""
    if failure.what == "function":
        # No item is to blame, but each that should have run through it fails.
        return _with_traceback(errors.TransferError(index, "function", _reason(failure)), failure)
    if failure.what and failure.what != "surroundings":
        transfer_error = errors.TransferError(index, failure.what, _reason(failure))
        _add_origin(transfer_error, index, slot, pid)
        return _with_traceback(transfer_error, failure)
    error = _rebuild(failure, transport)
    if error is None:
        error = errors.RemoteError(failure.type_name, failure.message, failure.traceback)
    _add_origin(error, index, slot, pid)
    # Within one process the exception comes with its own traceback and cause.
    return error if error.__traceback__ is not None else _with_traceback(error, failure)


def packing_error_of(error: BaseException, index: int | None) -> errors.TransferError:
    """Return the error of an item that could not be packed in the parent."""
    return _transfer_error(index, "item", error)


def init_error_of(
    slot: int, kwargs: Iterable[str], reply: BuildFailed, engine: Engine, peer: Peer
) -> errors.WorkerInitError:
    """Return the error for a constructor that raised."""
    failure = reply.failure
    reason = _reason(failure)
    if failure.what == "spec":  # before any code of the constructor's
        reason = f"its class or kwargs could not be unpickled there: {reason} {errors.how_to_send(reason)}"
    error = errors.WorkerInitError(slot, tuple(kwargs), reason, reply.pid)
    with active(peer):
        peer.receive(reply.definitions, engine.transport.unpack)
        cause = _rebuild(failure, engine.transport)
    if cause is None:
        cause = errors.RemoteError(failure.type_name, failure.message, failure.traceback)
    error.__cause__ = cause if cause.__traceback__ is not None else _with_traceback(cause, failure)
    return error


def _rebuild(failure: Failure, transport: Transport) -> BaseException | None:
    if failure.packed is None:
        return None
    try:
        error = transport.unpack(failure.packed)
    except BaseException:  # noqa: BLE001 - loading runs users' code, which often doesn't fit its constructor
        return None
    return error if isinstance(error, BaseException) else None


def _transfer_error(index: int | None, what: str, error: BaseException) -> errors.TransferError:
    result = errors.TransferError(index, what, _sentence(type(error).__name__, text_of(error)))
    result.__cause__ = error
    return result


def _reason(failure: Failure) -> str:
    return _sentence(failure.type_name, failure.message)


def _sentence(type_name: str, message: str) -> str:
    text = f"{type_name}: {message}" if message else type_name
    return text if text.endswith((".", "!", "?")) else f"{text}."


def text_of(error: BaseException) -> str:
    """Return the text of an exception, whose ``__str__`` may be hostile."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - see above
        return "(its text could not be formatted)"


def add_note(error: BaseException, text: str) -> None:
    """Add a note of ours to an exception."""
    with contextlib.suppress(Exception):  # a class that forbids attributes, such as a frozen one, goes without
        error.add_note(f"[joblib_stateful: {text}]")


def _add_origin(error: BaseException, index: int | None, slot: int, pid: int | None) -> None:
    add_note(error, f"{'call' if index is None else f'item {index}'}, slot {slot}, pid {pid}")


def _with_traceback(error: BaseException, failure: Failure) -> BaseException:
    # Not by assignment, which frozen classes forbid.
    BaseException.__setattr__(error, "__cause__", errors.RemoteTraceback(failure.traceback))
    return error
