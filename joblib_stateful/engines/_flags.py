"""The interpreter's flags, for workers."""

from __future__ import annotations

import functools
import sys
import warnings
from multiprocessing import util


@functools.cache
def interpreter_flags() -> tuple[str, ...]:
    """Return the flags that make another interpreter behave as this one; warn, once, if they can't be told."""
    try:
        flags = list(util._args_from_interpreter_flags())  # type: ignore[attr-defined]  # what multiprocessing uses
    except Exception as error:  # noqa: BLE001 - `sys.warnoptions` may have been changed to anything
        warnings.warn(
            f"Workers run without this program's interpreter flags (-O, -W, -X, ...), which can't be told: "
            f"{type(error).__name__}: {error}. Likely cause: sys.warnoptions or sys._xoptions was changed; set what workers "
            "need by environment variables, such as PYTHONOPTIMIZE or PYTHONWARNINGS.",
            RuntimeWarning,
            stacklevel=2,
        )
        return ()
    # It leaves some out, such as `-X int_max_str_digits` and `-X gil`.
    named = {flags[at + 1].partition("=")[0] for at, flag in enumerate(flags[:-1]) if flag == "-X"}
    for name, value in getattr(sys, "_xoptions", {}).items():
        if name not in named:
            flags += ["-X", name if value is True else f"{name}={value}"]
    return tuple(flags)
