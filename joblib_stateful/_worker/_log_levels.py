"""Which log records somebody in the parent wants: told to workers, so that they send no others.

A worker's loggers get the levels of the parent's, so that `Logger.isEnabledFor` says the same. What no handler there wants,
for all of them have higher levels, is not sent either.
"""

from __future__ import annotations

import logging
import time
from typing import Any, NamedTuple

_NOBODY = 1 << 30
# Loggers are looked through again, at the earliest, after so many times what that has taken. Levels that are set, and
# handlers of the root logger, are noticed at once.
_SELDOM = 200


class Levels(NamedTuple):
    """What a worker is told: per logger its level, the lowest level that is wanted of it, and whether it is switched off."""

    version: int
    disable: int
    loggers: dict[str, tuple[int, int, bool]]


class _Watch:
    """The latest levels of this process."""

    def __init__(self) -> None:
        self.levels: Levels | None = None
        self._mark: Any = None
        self._due = 0.0

    def look(self) -> Levels:
        """Return the levels as they are now; the same object as long as they are the same."""
        root = logging.root
        mark = (root.level, root.manager.disable, [(handler, handler.level) for handler in root.handlers])
        now = time.monotonic()
        # `setLevel` of any logger empties these caches, which `isEnabledFor` fills.
        cache: dict[Any, Any] = getattr(root, "_cache", {})
        if self.levels is None or now > self._due or self not in cache or mark != self._mark:
            self._mark, cache[self] = mark, True
            disable, loggers = root.manager.disable, _read()
            if self.levels is None or (disable, loggers) != self.levels[1:]:
                self.levels = Levels(1 if self.levels is None else self.levels.version + 1, disable, loggers)
            self._due = now + _SELDOM * (time.monotonic() - now)
        return self.levels


watch = _Watch()


def _read() -> dict[str, tuple[int, int, bool]]:
    found = {"": (logging.root.level, _wanted(logging.root), False)}
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if not isinstance(logger, logging.Logger):
            continue
        if logger.level or logger.disabled or logger.handlers or not logger.propagate:
            found[name] = logger.level, _wanted(logger), bool(logger.disabled)
    return found


def _wanted(logger: logging.Logger) -> int:
    """Return the lowest level that a handler wants which gets the logger's records."""
    wanted, has_any, at = _NOBODY, False, logger
    while True:
        for handler in at.handlers:
            has_any = True
            if not isinstance(handler, logging.NullHandler):
                wanted = min(wanted, getattr(handler, "wanted", _zero)(logger.name) or handler.level)
        if not at.propagate or at.parent is None:
            break
        at = at.parent
    if not has_any and logging.lastResort is not None:
        return logging.lastResort.level
    return wanted


def _zero(_: str) -> int:
    return 0


class Applied:
    """Levels that a worker was told, put to its own loggers."""

    def __init__(self) -> None:
        self._told = Levels(0, 0, {"": (logging.WARNING, 0, False)})
        self._wanted: dict[str, int] = {}

    def apply(self, levels: Levels) -> None:
        """Have this process's loggers be as the parent's; what was not changed there keeps what was set here."""
        before, self._told = self._told, levels
        self._wanted = {}
        if levels.disable != before.disable:
            logging.disable(levels.disable)
        for name in {**before.loggers, **levels.loggers}:
            old, new = before.loggers.get(name, _UNSET), levels.loggers.get(name, _UNSET)
            logger = logging.getLogger(name or None)
            if new[0] != old[0] or (name and name not in before.loggers):
                logger.setLevel(new[0])
            if new[2] != old[2]:
                logger.disabled = new[2]

    def wanted(self, name: str) -> int:
        """Return the lowest level that the parent wants of a logger's records."""
        found = self._wanted.get(name)
        if found is None:
            at, loggers = name, self._told.loggers
            while at and at not in loggers:
                at = at.rpartition(".")[0]
            found = self._wanted[name] = loggers[at][1]
        return found


_UNSET = (logging.NOTSET, 0, False)
