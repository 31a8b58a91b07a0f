"""What all processes that are started need: flags, standard files, and their standard modules."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import warnings
from multiprocessing import util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


_STANDARD = (0, 1, 2)
_SAFE_PATH = "PYTHONSAFEPATH"


@functools.cache
def interpreter_flags() -> tuple[str, ...]:
    """Return the flags that make another interpreter behave as this one; warn, once, if they can't be told."""
    try:
        with _all_warnoptions():
            flags = list(util._args_from_interpreter_flags())  # type: ignore[attr-defined]  # what multiprocessing uses
        flags += list(_left_out(flags))
    except Exception as error:  # noqa: BLE001 - `sys.warnoptions` may have been changed to anything
        warnings.warn(
            f"Workers run without this program's interpreter flags (-O, -W, -X, ...), which can't be told: "
            f"{type(error).__name__}: {error}. Likely cause: sys.warnoptions or sys._xoptions was changed; set what workers "
            "need by environment variables, such as PYTHONOPTIMIZE or PYTHONWARNINGS.",
            RuntimeWarning,
            stacklevel=2,
        )
        return ()
    return tuple(flags)


def _left_out(flags: list[str]) -> Iterator[str]:
    """Return what multiprocessing leaves out, such as `-X int_max_str_digits` and `-X gil`."""
    named = {flags[at + 1].partition("=")[0] for at, flag in enumerate(flags[:-1]) if flag == "-X"}
    for name, value in sys._xoptions.items():
        if name not in named:
            yield "-X"
            yield name if value is True else f"{name}={value}"


@contextlib.contextmanager
def _all_warnoptions() -> Iterator[None]:
    """Have those there that belong to flags: multiprocessing fails if a program has cleared the list."""
    belong = {
        "error::BytesWarning": sys.flags.bytes_warning > 1,
        "default::BytesWarning": sys.flags.bytes_warning == 1,
        "default": sys.flags.dev_mode,
    }
    missing = [option for option, is_given in belong.items() if is_given and option not in sys.warnoptions]
    sys.warnoptions += missing
    try:
        yield
    finally:
        for option in missing:
            sys.warnoptions.remove(option)


def start(tracker: Any) -> None:
    """Start a resource tracker, multiprocessing's or loky's, if it does not run."""
    first = getattr(tracker.ensure_running.__self__, "_fd", None) is None
    with standard_files(), _all_warnoptions(), _standard_modules_first() if first else contextlib.nullcontext():
        tracker.ensure_running()


@contextlib.contextmanager
def by_lokys_command(process: Any) -> Iterator[None]:
    """Have loky's own command start a process meanwhile, whatever the program's warning options and its current folder."""
    from loky.backend import resource_tracker

    start(resource_tracker)
    if not sys.flags.safe_path and _SAFE_PATH not in {**os.environ, **process.env} and _hides_modules():
        process.env = {**process.env, _SAFE_PATH: "1"}
        process.only_to_start = (_SAFE_PATH,)
    with _all_warnoptions():
        yield


@contextlib.contextmanager
def _standard_modules_first() -> Iterator[None]:
    """Keep what is started meanwhile from taking files of the current folder for standard modules.

    The trackers are started by ``python -c``, which looks there first, and they hand on no flags that others choose. So the
    variable is set, in the system's environment alone and only where there is such a file.
    """
    if sys.flags.safe_path or not _hides_modules():
        yield
        return
    os.putenv(_SAFE_PATH, "1")
    try:
        yield
    finally:
        if (value := os.environ.get(_SAFE_PATH)) is None:
            os.unsetenv(_SAFE_PATH)
        else:
            os.putenv(_SAFE_PATH, value)


def _hides_modules() -> bool:
    try:
        names = os.listdir()  # noqa: PTH208 - importing pathlib would take each program 4 ms
    except OSError:  # the folder is gone, or not to be read
        return False
    return any(name.partition(".")[0] in sys.stdlib_module_names for name in names)


def _take_standard(taken: list[int]) -> None:
    while (fd := os.open(os.devnull, os.O_RDWR)) in _STANDARD:
        os.set_inheritable(fd, True)
        taken.append(fd)
    os.close(fd)


def fill_standard_files() -> None:
    """Have nothing that this process opens take the number of a standard stream that it does not have."""
    with contextlib.suppress(OSError):  # the system has no such file
        _take_standard([])


@contextlib.contextmanager
def standard_files() -> Iterator[None]:
    """Let no file that is opened meanwhile get the number of a standard stream that is closed, as in daemons.

    A process would take it for its output, and print into it.
    """
    taken: list[int] = []
    with contextlib.suppress(OSError):  # the system has no such file
        _take_standard(taken)
    try:
        yield
    finally:
        for fd in taken:
            os.close(fd)
