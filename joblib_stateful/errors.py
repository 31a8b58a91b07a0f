"""Every exception of this package.

::

    StatefulError
    ├── WorkerError                   something about one worker
    │   ├── WorkerCrashedError        its process died
    │   ├── ItemTimeoutError          it was killed after ``item_timeout``      (also a TimeoutError)
    │   └── WorkerInitError           it could not build its object
    ├── TransferError                 a value could not be sent or received
    ├── RemoteError                   stands for a worker's exception that can't be rebuilt here
    ├── NoWorkerError                 get_worker() or its kin outside a worker  (also a RuntimeError)
    ├── ShutdownError                 the executor is shut down                 (also a RuntimeError)
    ├── EngineError                   an engine can't be used here              (also a RuntimeError)
    └── NoDeviceError                 there is no GPU for `one_gpu_each`        (also a RuntimeError)

Wrong arguments are ``TypeError`` and ``ValueError`` as everywhere in Python.
"""

from __future__ import annotations

import functools
import signal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "EngineError",
    "ItemTimeoutError",
    "NoDeviceError",
    "NoWorkerError",
    "RemoteError",
    "RemoteTraceback",
    "ShutdownError",
    "StatefulError",
    "TransferError",
    "WorkerCrashedError",
    "WorkerError",
    "WorkerInitError",
]


class StatefulError(Exception):
    """Root of the exceptions of this package."""


class WorkerError(StatefulError):
    """Something happened to one worker.

    Attributes
    ----------
    index : int or None
        Position in the input of the item that pays for it; None where no single item does.
    slot : int
        The worker's slot, counted from 0.
    pid : int or None
        The worker's process id, where it was known.
    """

    index: int | None
    slot: int
    pid: int | None


class WorkerCrashedError(WorkerError):
    """Raised for the item during which a worker's process died.

    Attributes
    ----------
    index, slot, pid
        See `WorkerError`.
    exitcode : int or None
        The process's exit code; negative for a signal, as in `multiprocessing`.
    detail : str
        How often the slot died in a row, if it died without running anything.
    reason : str
        What a cluster tells of its end.
    n_items : int
        How many items the worker had been called with at once (``pass_as="batch"``): any of them may be to blame.
    """

    def __init__(
        self,
        index: int | None,
        slot: int,
        pid: int | None = None,
        exitcode: int | None = None,
        detail: str = "",
        *,
        reason: str = "",
        n_items: int = 1,
    ) -> None:
        self.index, self.slot, self.pid, self.exitcode, self.detail = index, slot, pid, exitcode, detail
        self.reason, self.n_items = reason, n_items
        during, advice = "while it ran a call", "Set retries to run an item again after a crash."
        if n_items > 1:
            during = f"while it ran a call with {n_items} items, item {index} among them"
            advice = "Any of them may be to blame; set retries to have them run again in halves after a crash."
        elif index is not None:
            during = f"while it ran item {index}"
        elif detail:
            during, advice = "while nothing ran on it", ""
        told = f" ({reason})" if reason else ""
        message = f"The worker in slot {slot} (pid {pid}) {how_it_ended(exitcode)} {during}{told}."
        advice = f"The other workers keep their objects. {advice}".rstrip()
        super().__init__(" ".join(filter(None, [message, detail, likely_cause(exitcode), advice])))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the fields, so that the message is built anew."""
        fields = self.index, self.slot, self.pid, self.exitcode, self.detail
        return functools.partial(type(self), reason=self.reason, n_items=self.n_items), fields


class ItemTimeoutError(WorkerError, TimeoutError):
    """Raised for an item that ran longer than ``item_timeout``; its worker was killed, or the item cancelled if it was awaited.

    Attributes
    ----------
    index, slot, pid
        See `WorkerError`.
    timeout : float
        The limit in seconds, for one item.
    n_items : int
        How many items the worker had been called with at once (``pass_as="batch"``): the call's limit was so many times
        that, and any of them may be to blame.
    was_cancelled : bool
        It was awaited and could be cancelled, so that its worker lives on.
    """

    def __init__(
        self,
        index: int | None,
        slot: int,
        pid: int | None,
        timeout: float,
        *,
        n_items: int = 1,
        was_cancelled: bool = False,
    ) -> None:
        self.index, self.slot, self.pid, self.timeout, self.n_items = index, slot, pid, timeout, n_items
        self.was_cancelled = was_cancelled
        which, what, again = "The call" if index is None else f"Item {index}", "item is", "it again"
        limit = f"item_timeout={timeout:g} s"
        if n_items > 1:
            which, what, again = f"A call with {n_items} items, item {index} among them,", "items are", "them in halves"
            limit = f"{n_items} x {limit}"
        end = "so that worker was killed; its object is built again when it is needed"
        if was_cancelled:
            end = "and was cancelled; its worker lives on"
        super().__init__(
            f"{which} ran longer than {limit} in slot {slot} (pid {pid}), {end}. Raise item_timeout if the "
            f"{what} only slow, or set retries to try {again}.",
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the fields, so that the message is built anew."""
        fields = self.index, self.slot, self.pid, self.timeout
        return functools.partial(type(self), n_items=self.n_items, was_cancelled=self.was_cancelled), fields


class WorkerInitError(WorkerError):
    """Raised when a worker's object could not be built.

    The constructor's own exception is the ``__cause__``.

    Attributes
    ----------
    index, slot, pid
        See `WorkerError`; ``index`` is always None.
    kwargs_keys : tuple of str
        Names of the kwargs the object was built with (values may be large or secret).
    reason : str
        What happened, in words.
    """

    def __init__(self, slot: int, kwargs_keys: Sequence[str] = (), reason: str = "", pid: int | None = None) -> None:
        self.index, self.slot, self.pid = None, slot, pid
        self.kwargs_keys, self.reason = tuple(kwargs_keys), reason
        given = ", ".join(self.kwargs_keys) or "none"
        process = "" if pid is None else f" (pid {pid})"
        super().__init__(
            f"The worker in slot {slot}{process} could not build its object (kwargs given: {given}): {reason} "
            "Fix the cause and call again; the next call tries to build it anew.",
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the fields, so that the message is built anew."""
        return type(self), (self.slot, self.kwargs_keys, self.reason, self.pid)


class TransferError(StatefulError):
    """Raised when one value could not be pickled, or not unpickled on the other side.

    The worker and its object live on. The ``__cause__`` is, or tells, the real error.

    Attributes
    ----------
    index : int or None
        Position in the input of the item concerned.
    what : str
        ``"item"``, ``"result"``, or ``"function"`` for what was to be called with the item.
    reason : str
        The real error in words.
    """

    def __init__(self, index: int | None, what: str, reason: str) -> None:
        self.index, self.what, self.reason = index, what, reason
        which = f"The {what} of the call" if index is None else f"The {what} at index {index}"
        if what == "function" and index is not None:
            which = f"The function to be called with the item at index {index}"
        way = "back from its worker" if what == "result" else "to its worker"
        super().__init__(f"{which} could not be sent {way}: {reason} {how_to_send(reason, what)}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the fields, so that the message is built anew."""
        return type(self), (self.index, self.what, self.reason)


class RemoteError(StatefulError):
    """Stands for an exception of a worker's call that could not be pickled or rebuilt.

    Attributes
    ----------
    type_name : str
        Qualified name of the original exception's class.
    message : str
        Its text.
    remote_traceback : str
        The worker's traceback as text.
    """

    def __init__(self, type_name: str, message: str, remote_traceback: str = "") -> None:
        self.type_name, self.message, self.remote_traceback = type_name, message, remote_traceback
        super().__init__(
            f"{type_name}: {message}\n(The worker raised this {type_name}, which could not be pickled or "
            "rebuilt here, so that this RemoteError stands for it. Give the exception picklable attributes, "
            "or a __reduce__ that leaves out the others, to receive it itself.)",
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the fields, so that the message is built anew."""
        return type(self), (self.type_name, self.message, self.remote_traceback)


class RemoteTraceback(Exception):  # noqa: N818 - it is a text shown as a cause, not an error to catch
    """The worker's traceback as text, set as ``__cause__`` of an exception that came from a worker."""

    def __init__(self, text: str) -> None:
        self.text = text
        super().__init__(f'\n"""\n{text}"""')

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the text."""
        return type(self), (self.text,)


class NoWorkerError(StatefulError, RuntimeError):
    """Raised by ``get_worker()`` and its kin where there is no worker."""


class ShutdownError(StatefulError, RuntimeError):
    """Raised when work is given to an executor that was shut down."""


class EngineError(StatefulError, RuntimeError):
    """Raised when an engine can't be used here."""


class NoDeviceError(StatefulError, RuntimeError):
    """Raised when workers are to have a GPU each and there is none."""


def how_it_ended(exitcode: int | None) -> str:
    """Say what an exit code tells of a process's end."""
    if exitcode is None:
        return "died"
    if exitcode >= 0:
        return f"ended with exit code {exitcode}"
    return f"was killed by {_name_of(-exitcode)}"


def likely_cause(exitcode: int | None) -> str:
    """Say what probably led to it, and what to do."""
    if exitcode is None:
        return ""
    if exitcode >= 0:
        return "Likely cause: the code, or a library below it, called os._exit() or exit() in C."
    name = _name_of(-exitcode)
    if name == "SIGKILL":
        return (
            "Likely cause: the operating system's out-of-memory killer (see `dmesg`), or somebody's kill -9. "
            "If it was memory, use fewer or smaller workers."
        )
    if name == "SIGXCPU":
        return "Likely cause: the limit of CPU time (`ulimit -t`) was reached."
    if name in _CRASHES:
        return (
            f"Likely cause: {_CRASHES[name]} in compiled code (its stack was printed to stderr by faulthandler). "
            'Run it alone with engine="inline" under a debugger.'
        )
    return "Likely cause: another process, such as a batch system or a service manager, sent it this signal."


def how_to_send(reason: str, what: str = "item") -> str:
    """Say how a value can be sent that could not be, for what Python said of it."""
    # By the name of the error, which the reason begins with: NumPy, for one, has a MemoryError of its own.
    if reason.partition(":")[0].rstrip(".!?").endswith("MemoryError"):
        less = (
            "Return less at a time (a summary, or the name of a file that the worker has written)"
            if what == "result"
            else "Send less at a time (smaller pieces, or the name of a file that the worker reads)"
        )
        return f"{less}, set a smaller buffer= or fewer workers, or free memory that the program holds."
    if "through inheritance" in reason:
        # What multiprocessing says of its own locks, queues and shared values; only a child that is just being started
        # can be given one.
        return (
            "Locks, queues, events and values of multiprocessing itself can't be sent; those of a manager can, and do the "
            "same: manager = multiprocessing.Manager(), then manager.Lock(), manager.Queue(), manager.Value(...)."
        )
    return (
        "Values travel by cloudpickle; keep locks, connections, generators and open files inside the worker, and see that "
        "classes and functions can be imported on both sides, or have their module sent along with "
        "cloudpickle.register_pickle_by_value()."
    )


def why_condemned(fault: str) -> str:
    """Say why a worker was killed that says what can't be."""
    return (
        f"what it says can't be, so that it was killed: {fault}; likely compiled code in it has written over memory that is "
        "not its own"
    )


def why_not_built(deaths: int, max_restarts: int, exitcode: int | None, reason: str, *, started: bool = False) -> str:
    """Say why a slot whose worker never came to anything was given up."""
    times = f", {deaths} times in a row" if deaths > 1 else ""
    if reason and not started:
        # Python's own words, where a child by spawn runs the script again.
        is_child = "bootstrapping phase" in reason
        cause = (
            "the script starts a process by multiprocessing, which runs the script again in it; put what starts processes "
            'and workers under `if __name__ == "__main__":`.'
            if is_child
            else "a limit on open files, processes or memory (`ulimit -a`); raise it or use fewer workers."
        )
        return f"its process could not be started{times} ({reason}); max_restarts={max_restarts}. Likely cause: {cause}"
    how = f"it {how_it_ended(exitcode)}" + (f": {reason}" if reason else "")
    often, last = (f" {deaths} times in a row", "the last time ") if deaths > 1 else ("", "")
    died = f"its process died{often} without finishing anything, {last}during construction"
    return f"{died} ({how}); max_restarts={max_restarts}. {likely_cause(exitcode)}".rstrip()


_CRASHES = {
    "SIGSEGV": "a bug (an invalid memory access, or endless recursion)",
    "SIGABRT": "a failed check, or std::terminate(),",
    "SIGBUS": "a bug, or a memory-mapped file that was cut short or lies on a full disk,",
    "SIGFPE": "an invalid arithmetic operation",
    "SIGILL": "an instruction that this CPU lacks (a library built for another one)",
}


def _name_of(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
