"""For code that runs in a worker: which object is mine, and who am I."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import errors
from ._worker._lazy import callers_of_object
from ._worker._worker import current

if TYPE_CHECKING:
    from ._public import WorkerInfo
    from ._worker._worker import Worker

# What is passed on, and so runs in a worker, beside what is called here and now.
_WAYS = {
    "get_worker": (
        "  executor.submit(function, item)                 with executor = StatefulExecutor(YourClass, ...)\n"
        '  with parallel_config(backend="stateful", worker=YourClass, n_jobs=2): Parallel()(delayed(function)(item) ...)\n'
        "  stateful_map(YourClass, items)                  where the object itself is called with each item"
    ),
    "get_worker_info": (
        "  executor.submit(get_worker_info).result()       with executor = StatefulExecutor(YourClass, ...)\n"
        "  executor.workers()                              in the main program: a record of each worker"
    ),
    "call_worker": (
        "  executor.submit(call_worker, item)              not call_worker(item), with executor = StatefulExecutor(YourClass, ...)\n"
        '  with parallel_config(backend="stateful", worker=YourClass, n_jobs=2): Parallel()(delayed(call_worker)(item) ...)\n'
        "  stateful_map(YourClass, items)                  which does it for each item"
    ),
}


def get_worker() -> Any:
    """Return the object of the worker that this code runs in.

    Where joblib runs a call inline (``n_jobs=1`` under ``backend="stateful"``), it is built in this process.

    Returns
    -------
    object

    Raises
    ------
    errors.NoWorkerError
        This code does not run in a worker, or the worker has no object.

    Examples
    --------
    >>> from joblib_stateful import StatefulExecutor, get_worker
    >>> def where():
    ...     return get_worker()["device"]
    >>> with StatefulExecutor(dict, shared_kwargs={"device": "cpu"}, engine="inline") as executor:
    ...     executor.submit(where).result()
    'cpu'
    """
    return _object("get_worker")


def get_worker_info() -> WorkerInfo:
    """Return what this worker is: slot index, number of slots, kwargs.

    Returns
    -------
    WorkerInfo

    Raises
    ------
    errors.NoWorkerError
        This code does not run in a worker.

    Examples
    --------
    >>> from joblib_stateful import StatefulExecutor, get_worker_info
    >>> with StatefulExecutor(n_jobs=1, engine="inline") as executor:
    ...     executor.submit(get_worker_info).result().index
    0
    """
    return _worker("get_worker_info").info


def call_worker(*args: Any, **kwargs: Any) -> Any:
    """Call the object of the worker that this code runs in.

    Parameters
    ----------
    *args, **kwargs
        What to call it with.

    Returns
    -------
    object
        What it returns.

    Raises
    ------
    errors.NoWorkerError
        This code does not run in a worker, or the worker has no object.
    TypeError
        The object can't be called.

    Examples
    --------
    >>> from joblib_stateful import StatefulExecutor, call_worker, factory
    >>> with StatefulExecutor(factory(lambda: str.upper), engine="inline") as executor:
    ...     executor.submit(call_worker, "a").result()
    'A'
    """
    target = _object("call_worker")
    if not callable(target):
        from ._words import a

        raise TypeError(
            f"call_worker() calls the worker's object, and this one is {a(type(target).__name__)}, which can't be called. "
            "Give its class a __call__ method, or submit a function that uses the object: get_worker().method(item).",
        )
    return _worker("call_worker").call_object(args, kwargs)


callers_of_object.add(call_worker.__code__)


def _object(asked: str) -> Any:
    worker = _worker(asked)
    if not worker.has_object:
        raise errors.NoWorkerError(
            f"{asked}(): this worker has no object, because its executor or backend was given no worker class. "
            f"Name it:\n{_WAYS[asked]}",
        )
    return worker.object


def _worker(asked: str) -> Worker:
    worker = current() or _of_inline_call()
    if worker is None:
        raise errors.NoWorkerError(
            f"{asked}() was called outside a worker. It works where a stateful executor or backend runs it:\n"
            f"{_WAYS[asked]}\n{_why_outside()}",
        )
    return worker


def _why_outside() -> str:
    """Say what runs this code, as far as that can be seen."""
    from joblib.parallel import get_active_backend

    from ._joblib._backend import StatefulBackend

    backend, _ = get_active_backend()
    if isinstance(backend, StatefulBackend) and not backend.has_worker:
        return (
            'Cause: the backend "stateful" that is active here was given no worker class, and has run the call in this '
            "process, as joblib does with n_jobs=1."
        )
    return (
        "Likely causes: the call is made in the main program, not by what is passed on; a Parallel was given its own backend "
        'instance with n_jobs=1; or joblib moved the call to its own threads because of require="sharedmem".'
    )


def _of_inline_call() -> Worker | None:
    """Return the worker of a backend whose calls joblib runs inline, building its object if need be."""
    from joblib.parallel import get_active_backend

    from ._joblib._backend import StatefulBackend  # a worker that only calls its object needs no backend

    backend, _ = get_active_backend()
    return backend.inline_worker() if isinstance(backend, StatefulBackend) else None
