"""Whether an executor's workers were made from code that has been edited since."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from .._transport import _code
from .._transport._transport import ByReference
from ._spec import name_of, version_of

if TYPE_CHECKING:
    from ._pool import WorkerPool


class CodeWatch:
    """Warns, once for each edit, that an executor's workers have what the code was before.

    Parameters
    ----------
    pool : WorkerPool
        The executor's workers.
    """

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool
        self._reloads, self._version = _code.reloads(), version_of(pool.packed.spec, pool.runtime.transport)

    def look(self) -> None:
        """Look at all that the objects are built from; for `stateful_map`."""
        self._look_at(_code.reloads(), 8)
        spec, transport, before = self._pool.packed.spec, self._pool.runtime.transport, self._version
        self._version = version_of(spec, transport)
        # Within one process objects are built from what the class is then.
        if self._version != before and (self._pool.has_started or not isinstance(transport, ByReference)):
            _warn(
                f"{name_of(spec.build)}, or something that it uses, has changed since this executor was made, and its "
                "objects are built from what it was then.",
                7,
            )

    def look_again(self) -> None:
        """Look whether modules that were looked at before have been loaded again, which takes no time; for `submit`."""
        self._look_at(_code.reloads(at_new_ones=False), 6)

    def _look_at(self, present: _code.Reloads, stacklevel: int) -> None:
        before, self._reloads = self._reloads, present
        if present != before and self._pool.has_started:
            _warn(
                f"The module {present.latest} was loaded again, and the workers of this executor still have what it was "
                "before.",
                stacklevel,
            )


def _warn(what: str, stacklevel: int) -> None:
    warnings.warn(
        f"{what} Shut it down and make a new one; a class that is given to stateful_map itself, or to the backend, is "
        "built anew in such a case.",
        RuntimeWarning,
        stacklevel=stacklevel,
    )
