"""For code that runs in a worker: which object is mine, and who am I."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import errors
from ._worker import current

if TYPE_CHECKING:
    from ._public import WorkerInfo
    from ._worker import Worker

_WAYS = (
    "  executor.submit(function, item)                 with executor = StatefulExecutor(YourClass, ...)\n"
    '  with parallel_config(backend="stateful", worker=YourClass, n_jobs=2): Parallel()(...)\n'
    "  stateful_map(YourClass, items)                  where the object itself is called with each item"
)


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
    worker = _worker("get_worker()")
    if not worker.has_object:
        raise errors.NoWorkerError(
            "get_worker(): this worker has no object, because its executor or backend was given no worker class. "
            f"Name it:\n{_WAYS}",
        )
    return worker.object


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
    return _worker("get_worker_info()").info


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

    Examples
    --------
    >>> from joblib_stateful import StatefulExecutor, call_worker, factory
    >>> with StatefulExecutor(factory(lambda: str.upper), engine="inline") as executor:
    ...     executor.submit(call_worker, "a").result()
    'A'
    """
    return get_worker()(*args, **kwargs)


def _worker(asked: str) -> Worker:
    worker = current() or _of_inline_call()
    if worker is None:
        raise errors.NoWorkerError(
            f"{asked} was called outside a worker. It works in functions that a stateful executor or backend runs:\n"
            f"{_WAYS}\n"
            "Likely causes: the call is made in the main program; a backend without a worker class ran it in this "
            "process, as joblib does with n_jobs=1; a Parallel was given its own backend instance with n_jobs=1; or "
            'joblib moved the call to its own threads because of require="sharedmem".',
        )
    return worker


def _of_inline_call() -> Worker | None:
    """Return the worker of a backend whose calls joblib runs inline, building its object if need be."""
    from joblib.parallel import get_active_backend

    from ._backend import StatefulBackend  # a worker that only calls its object needs no backend

    backend, _ = get_active_backend()
    return backend.inline_worker() if isinstance(backend, StatefulBackend) else None
