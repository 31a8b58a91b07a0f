"""Whether there is room for one more process, told before anything of it is started.

Without file descriptors it would fail halfway, with an error that hides the cause.
"""

from __future__ import annotations

import errno
import gc
import os

from ..._process._system import most_open
from ..._transport._segments import spares

# Measured: a worker keeps 3 file descriptors open in its parent, which needs 9 at once while it starts one, and for the first
# one 16. The rest is for what other threads open meanwhile.
_KEPT, _TO_START = 3, 20


def check_room() -> None:
    """Raise an OSError that says what is used up, if another process could not be started."""
    limit = most_open()
    if _n_open(limit) + _TO_START <= limit:
        return
    spares.clear()
    gc.collect()  # workers that nobody needs keep some of theirs until then
    if (n_open := _n_open(limit)) + _TO_START > limit:
        raise OSError(
            errno.EMFILE,
            f"too many open files: {n_open} of the {limit} that this process may have (`ulimit -n`), and a worker "
            f"needs {_TO_START} to start and {_KEPT} to live. Raise the limit, or have fewer workers",
        )


def _n_open(limit: int) -> int:
    try:
        return len(os.listdir("/dev/fd"))  # noqa: PTH208 - a pathlib object for each would be slow
    except OSError as error:  # none is left, or there is no such folder on this system
        return limit if error.errno == errno.EMFILE else 0
