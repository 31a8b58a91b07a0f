"""Idle workers that hold a place which others need: whoever keeps some registers here, and is asked to let them go.

The workers of `stateful_map` stay for its next call. On a cluster that has no room for more, an executor of the user's own
would wait for theirs until they are let go by themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..engines import Engine, Runtime

#: Called with the engine of which another worker is to be opened, in any thread; they must not wait.
keepers: list[Callable[[Engine], None]] = []


def make_way(runtime: Runtime) -> None:
    """Have idle workers let go that stand where a runtime has no room for another one."""
    if keepers and runtime.lacks_room():
        for let_go in keepers:
            let_go(runtime.engine)
