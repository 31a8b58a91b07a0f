"""Debuggers in worker processes, which have no keyboard."""

from __future__ import annotations

import os
import sys
from typing import Any

from .._process._safely import full_name_of, traceback_of

_ADVICE = 'Use engine="inline" to debug: then the worker\'s code runs in your own program, where breakpoint() and pdb work as usual.'


def refuse_breakpoints() -> None:
    """Have `breakpoint` say in this process why it can't stop; what the user has chosen in its place works as ever."""
    if sys.breakpointhook is sys.__breakpointhook__:
        sys.breakpointhook = _refuse


def _refuse(*args: Any, **kwargs: Any) -> Any:
    if os.environ.get("PYTHONBREAKPOINT"):  # it names a debugger that needs no keyboard, or says that none is wanted
        return sys.__breakpointhook__(*args, **kwargs)  # noqa: T100 - the user's own, who has asked for it
    raise RuntimeError(
        "breakpoint() can't stop here: this is a worker process, whose standard input is empty, so that nobody could type. "
        + _ADVICE
    )


def explain_end(error: BaseException) -> None:
    """Note on the bare `BdbQuit` of a debugger that found no keyboard what it means; since Python 3.14 pdb exits instead."""
    name = full_name_of(type(error))
    if name == "bdb.BdbQuit" or (name == "SystemExit" and _is_from_pdb(error)):
        error.add_note(
            "[joblib_stateful: a debugger was started in a worker process, whose standard input is empty, so that nobody "
            f"could type. {_ADVICE}]"
        )


def _is_from_pdb(error: BaseException) -> bool:
    found = traceback_of(error)
    while found is not None and found.tb_next is not None:
        found = found.tb_next
    return found is not None and found.tb_frame.f_globals.get("__name__") == "pdb"
