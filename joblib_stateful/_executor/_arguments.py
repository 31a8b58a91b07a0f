"""Arguments are refused here, at the call, before anything starts.

Each message says what was given, what is allowed and what to write instead.
"""

from __future__ import annotations

import functools
import numbers
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from .._process import _system
from .._words import a, count, short, unknown_option

if TYPE_CHECKING:
    from .._scheduling._requests import Limits
    from ..engines import Engine

P = ParamSpec("P")
T = TypeVar("T")


class _Default(int):
    """A number of its own, so that as a default it can be told from the same number given by the caller."""


RETRIES: int = _Default(0)
MAX_RESTARTS: int = _Default(3)


def names_options(what: str, *hidden: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Return a decorator by which an option that a function doesn't know is refused with the one that was meant.

    Python's own message names only some of them, and not those that others call differently. The function itself keeps its
    signature, so that type checkers and editors see a misspelt option as well.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        code: Any = function.__code__  # it is a plain function
        names = code.co_varnames[code.co_posonlyargcount : code.co_argcount + code.co_kwonlyargcount]
        known = dict.fromkeys(name for name in names if name not in hidden)

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> T:
            if kwargs.keys() - known.keys():
                unknown = [name for name in kwargs if name not in known]
                raise TypeError(unknown_option(what, unknown, known))
            return function(*args, **kwargs)

        return checked

    return decorate


def check_integer(name: str, value: Any, low: int, advice: str = "") -> int:
    """Return an integer that is at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer of {low} or more, not {value!r}.{advice}")
    if value < low:
        raise ValueError(f"{name} must be {low} or more, not {value}.{advice}")
    return int(value)


def check_slot(index: Any, n_slots: int) -> int:
    """Return the number of a slot that there is."""
    if isinstance(index, bool) or not isinstance(index, numbers.Integral):
        raise TypeError(f"index must be the number of a worker, an integer from 0 to {n_slots - 1}, not {index!r}.")
    slot = int(index)
    if not 0 <= slot < n_slots:
        raise IndexError(f"There is no worker {slot}: this executor has {n_slots}, counted from 0.")
    return slot


def check_seconds(name: str, value: Any) -> float | None:
    """Return a time limit: None, or more than 0 seconds."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float, numbers.Real)):
        raise TypeError(f"{name} must be a number of seconds or None for no limit, not {value!r}.")
    seconds = float(value)
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{name} must be more than 0 seconds, not {value}; write None for no limit.")
    return seconds


def check_choice(name: str, value: Any, choices: Sequence[str]) -> Any:
    """Return one of some words; the word itself, for what is equal to it, as an enum's member, may be unknown elsewhere."""
    if value not in choices:
        known = ", ".join(map(repr, choices))
        raise ValueError(f"{name} must be one of {known}, not {value!r}.")
    return choices[choices.index(value)]


def check_limits(
    engine: Engine,
    item_timeout: Any,
    init_timeout: Any,
    retries: Any,
    max_restarts: Any,
    *,
    max_worker_memory: Any = None,
) -> Limits:
    """Return the limits of a call."""
    from .._scheduling._requests import Limits  # importing `stateful_map` needs it for nothing else

    limits = Limits(
        check_seconds("item_timeout", item_timeout),
        check_seconds("init_timeout", init_timeout),
        check_integer("retries", retries, 0, " 0 means that an item runs at most once."),
        check_integer(
            "max_restarts",
            max_restarts,
            0,
            " 0 means that no worker is started again that died without finishing anything.",
        ),
        None if max_worker_memory is None else check_memory(engine, max_worker_memory),
    )
    if limits.item_timeout is not None and not engine.has_processes:
        raise ValueError(
            f"item_timeout={item_timeout!r} can't be kept by engine={engine.name!r}: a thread can't be killed. "
            'Use engine="loky", or leave item_timeout out.',
        )
    if limits.init_timeout is not None and engine.is_synchronous and not engine.has_processes:
        raise ValueError(
            f"init_timeout={init_timeout!r} can't be kept by engine={engine.name!r}: the object is built in the calling "
            'thread, which can\'t be killed. Use engine="loky" or "threads", or leave init_timeout out.',
        )
    return limits


_UNITS = {
    f"{letter}{binary}": base**power
    for power, letter in enumerate("KMGT", 1)
    for binary, base in (("", 1000), ("I", 1024))
}


def check_memory(engine: Engine, value: Any) -> int:
    """Return how many bytes a worker's process may hold."""
    n_bytes = _bytes_of("max_worker_memory", value)
    if not engine.takes_env:
        raise ValueError(
            f"max_worker_memory ends a worker's process that holds more, and engine={engine.name!r} has none of its own to end. "
            'Use engine="loky" or "ray", or leave it out.'
        )
    if not engine.is_remote and not _system.knows_memory():
        raise ValueError(
            "max_worker_memory can't be kept here, for what a process holds can't be told without /proc. Install the package "
            "psutil, or leave it out."
        )
    return n_bytes


def _bytes_of(name: str, value: Any) -> int:
    example = 'Write a number of bytes, or "8GB" or "500MiB", say.'
    number = value
    if isinstance(value, str):
        found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([KMGT]i?)?B?\s*", value, re.IGNORECASE)
        if found is None:
            raise ValueError(f"{name}={value!r} is no amount of memory. {example}")
        number = int(float(found[1]) * _UNITS.get((found[2] or "").upper(), 1))
    if isinstance(number, bool) or not isinstance(number, numbers.Integral):
        raise TypeError(f"{name} must be a whole number of bytes or a text, not {value!r}. {example}")
    if number < 1:
        raise ValueError(f"{name} must be more than 0 bytes, not {value!r}. {example}")
    return int(number)


def check_inner_threads(engine: Engine, inner_max_num_threads: Any) -> None:
    """Refuse a number of inner threads that is none, or that nobody could be told."""
    if inner_max_num_threads is None:
        return
    advice = ' None means CPUs over workers, "leave" that libraries decide.'
    if isinstance(inner_max_num_threads, str):
        if inner_max_num_threads == "leave":  # which is what is done where no process is started
            return
        raise ValueError(
            f"inner_max_num_threads must be an integer of 1 or more, not {inner_max_num_threads!r}.{advice}"
        )
    check_integer("inner_max_num_threads", inner_max_num_threads, 1, advice)
    if not engine.takes_env:
        raise ValueError(
            f"inner_max_num_threads={inner_max_num_threads} is told to libraries by the environment of a worker's "
            f'process, and engine={engine.name!r} starts none. Use engine="loky", or leave inner_max_num_threads out and '
            "set OMP_NUM_THREADS and the like where the program, or the cluster, is started.",
        )


def check_batch_size(engine: Engine, limits: Limits, batch_size: Any) -> Any:
    """Return the batch size, which must be 1 where a time limit could not be kept within a batch."""
    if limits.item_timeout is None or not engine.is_remote or batch_size == 1:
        return batch_size
    if batch_size == "auto":
        return 1
    raise ValueError(
        f"item_timeout={limits.item_timeout:g} can't be kept with batch_size={batch_size} by engine={engine.name!r}: which "
        "item of a batch runs isn't seen from here. Leave batch_size out, or set it to 1.",
    )


def check_concurrency(engine: Engine, value: Any) -> int:
    """Return how many items a worker is at."""
    found = check_integer(
        "max_concurrency",
        value,
        1,
        " It is how many items are under way at once in one worker; 1: one after the other.",
    )
    if found > 1 and not engine.is_concurrent and not engine.is_synchronous:
        raise ValueError(
            f"max_concurrency={found} can't be had by engine={engine.name!r}, whose workers are at one item at a time. Use "
            "one of the library's own engines, or more workers (n_jobs), or leave it out."
        )
    return found


def resolve_n_jobs(
    n_jobs: Any,
    worker_kwargs: Sequence[Any] | None,
    engine: Engine,
    default: int | None = None,
    *,
    worker_env: Any = None,
) -> int:
    """Return the number of slots.

    None: one per dict in ``worker_kwargs``, or else in ``worker_env``, else ``default``, else as many as the engine has room
    for. Negative as in joblib.
    """
    if n_jobs is None:
        own = worker_kwargs if worker_kwargs is not None else worker_env
        n_jobs = len(own) if isinstance(own, (list, tuple)) and own else default
    if n_jobs is None:
        return n_places(engine)
    if isinstance(n_jobs, bool) or not isinstance(n_jobs, numbers.Integral):
        raise TypeError(f"n_jobs must be an integer or None, not {n_jobs!r}.")
    if n_jobs == 0:
        raise ValueError("n_jobs=0 has no meaning. Write the number of workers, or -1 for all CPUs.")
    if n_jobs < 0:
        if worker_kwargs is not None:
            return max(len(worker_kwargs) + 1 + int(n_jobs), 1)
        return max(n_places(engine) + 1 + int(n_jobs), 1)
    if worker_kwargs is not None and len(worker_kwargs) != n_jobs:
        raise ValueError(
            f"n_jobs={n_jobs}, but worker_kwargs has {count(len(worker_kwargs), 'entry')}; there must be one dict per "
            "worker. Leave n_jobs out to take it from worker_kwargs.",
        )
    return int(n_jobs)


def n_places(engine: Engine) -> int:
    """Return how many slots an engine has by default: one per CPU of this machine, or what its cluster has room for."""
    own = engine.default_n_jobs()
    return cpu_count() if own is None else own


def cpu_count() -> int:
    """Return `joblib.cpu_count`."""
    if "joblib" in sys.modules or "JOBLIB_MULTIPROCESSING" in os.environ:
        import joblib

        return int(joblib.cpu_count())
    # joblib's own asks its copy of loky, too. Importing joblib takes longer than the start of a first worker, which
    # shall come before.
    import loky

    return int(loky.cpu_count())


def check_env(worker_env: Any, n_jobs: int | None, engine: Engine) -> list[dict[str, str]]:
    """Return the environment variables of each slot; with ``n_jobs=None`` of those that there are."""
    if worker_env is None:
        return [{} for _ in range(n_jobs or 0)]
    if not engine.takes_env:
        raise ValueError(
            f"worker_env sets environment variables of a worker's process, and engine={engine.name!r} starts none. "
            'Use engine="loky", or pass what differs by worker_kwargs.',
        )
    if isinstance(worker_env, (Mapping, str)) or not isinstance(worker_env, Sequence):
        raise TypeError(f"worker_env must be a list with one dict per worker, not {a(type(worker_env).__name__)}.")
    if n_jobs is not None and len(worker_env) != n_jobs:
        raise ValueError(
            f"worker_env has {count(len(worker_env), 'entry')}, but n_jobs={n_jobs}; give one dict per worker.",
        )
    return [_check_one_env(f"worker_env[{slot}]", env) for slot, env in enumerate(worker_env)]


def _check_one_env(name: str, env: Any) -> dict[str, str]:
    if not isinstance(env, Mapping):
        raise TypeError(f"{name} must be a dict of environment variables, not {env!r}.")
    for key, value in env.items():
        if not isinstance(key, str) or not isinstance(value, (str, os.PathLike)):
            raise TypeError(f'{name} must map names to strings, but has {key!r}: {value!r}. Write {key!r}: "{value}".')
    return {key: os.fspath(value) for key, value in env.items()}


def check_worker(worker: Any) -> None:
    """Refuse None, which elsewhere means workers without an object."""
    if worker is None:
        raise TypeError(
            "worker must be a class, factory(function), a callable or a StatefulExecutor, not None: it is what is "
            "called with each item.",
        )


def check_iterable(iterable: Any) -> None:
    """Refuse what can't be iterated, without beginning to."""
    if not isinstance(iterable, Iterable) and not hasattr(type(iterable), "__getitem__"):
        raise TypeError(
            f"The input must be iterable, but {short(iterable)} is not. Pass a list, a generator or the like."
        )
