"""What messages are put together from: articles, plurals, and the name that was probably meant.

Imported where a message is written, and so by no worker whose items all end well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection

# What other libraries call our options; by ours.
_SYNONYMS = {
    "batch_size": ("batch", "batchsize", "chunk_size", "chunks", "chunksize"),
    "buffer": ("buffer_size", "max_pending", "pre_dispatch", "prefetch", "queue_size"),
    "engine": ("backend", "executor", "mode", "prefer"),
    "inner_max_num_threads": ("inner_threads", "num_threads", "threads", "threads_per_worker"),
    "init_timeout": ("build_timeout", "setup_timeout", "start_timeout"),
    "item_timeout": ("call_timeout", "task_timeout", "time_limit", "timeout"),
    "max_worker_memory": ("max_memory", "memory_limit", "worker_memory", "worker_memory_limit"),
    "route": ("router", "shard_by", "sharding"),
    "max_tasks_per_worker": ("max_tasks", "max_tasks_per_child", "maxtasksperchild"),
    "n_jobs": (
        "cpus",
        "jobs",
        "max_workers",
        "n_cpus",
        "n_processes",
        "n_workers",
        "ncpus",
        "nprocs",
        "num_cpus",
        "num_jobs",
        "num_proc",
        "num_processes",
        "num_workers",
        "pool_size",
        "processes",
        "workers",
    ),
    "on_error": ("error_policy", "errors", "exception_behavior", "exceptions"),
    "ordered": ("in_order", "keep_order", "order", "preserve_order", "return_as", "sort", "sorted", "unordered"),
    "pass_as": ("argument_passing", "star", "starmap", "unpack"),
    "progress": ("pbar", "progress_bar", "show_progress", "tqdm", "verbose"),
    "shared_kwargs": ("common_kwargs", "init_kwargs", "initargs", "kwargs", "shared"),
    "total": ("iterable_len", "length", "n_items", "n_tasks", "size"),
    "worker": ("cls", "fn", "func", "function", "initializer", "worker_class"),
    "worker_env": ("env", "environ", "environment", "envs"),
    "worker_kwargs": ("kwargs_list", "kwargs_per_worker", "own_kwargs", "slot_kwargs", "worker_kwarg_dict_arr"),
}
# What is a part of a long value's text, which may be an array's or a whole data set's.
_LONGEST = 200
# By their sound, not by their letter.
_WITHOUT_N = ("eu", "one", "uni", "us")


def a(noun: str) -> str:
    """Return a noun with its article, as in "an int"."""
    name = noun.lower()
    return f"{'an' if name[:1] in tuple('aeiou') and not name.startswith(_WITHOUT_N) else 'a'} {noun}"


def count(number: int, noun: str) -> str:
    """Return so many of them, as in "1 worker" or "2 entries"."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {f'{noun[:-1]}ie' if noun[-1:] == 'y' else noun}s"


def items(first: int, last: int, number: int) -> str:
    """Return which items these are, by the indices of the first and the last one, and their number."""
    if number == 1:
        return f"item {first}"
    return f"{'' if number == last - first + 1 else f'{number} of '}items {first} to {last}"


def short(value: Any) -> str:
    """Return a value's text, cut short if it is a long one."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - the value's own code
        text = f"{a(type(value).__name__)} (its text could not be formatted)"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def unknown_option(what: str, unknown: Collection[str], known: Collection[str], *, kind: str = "argument") -> str:
    """Say that something doesn't take some options, and which ones were probably meant."""
    given = ", ".join(map(repr, unknown))
    guesses = [(name, meant) for name in unknown if (meant := _meant(name, known)) is not None]
    if guesses:
        pairs = [meant if len(unknown) == 1 else f"{meant} for {name}" for name, meant in guesses]
        advice = f"Did you mean {', '.join(pairs)}? "
    else:
        advice = ""
    return f"{what} has no {kind} {given}. {advice}It takes {', '.join(known)}."


def _meant(name: str, known: Collection[str]) -> str | None:
    import difflib

    plain = name.lower().replace("-", "_").strip("_")
    for ours, others in _SYNONYMS.items():
        if ours in known and plain in others:
            return ours
    near = difflib.get_close_matches(plain, known, n=1)
    return near[0] if near else None
