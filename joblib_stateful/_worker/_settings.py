"""Settings that libraries keep for a whole program or thread, and that decide which values come out of the same code.

A program that has asked jax for 64 bits, decimal for five digits or numpy for errors would silently get other values out of a worker.
Only what a program has set is taken over, from those libraries that it has loaded.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable


class Setting(NamedTuple):
    """Something that is set in a module."""

    module: str
    #: Each thread has its own.
    of_thread: bool
    #: Return it as something that can be compared and pickled; what it is before anybody sets it; and set it.
    read: Callable[[Any], Any]
    default: Callable[[Any], Any]
    write: Callable[[Any, Any], Any]


def _decimal_of(context: Any) -> Any:
    found = context.__reduce__()[1]  # all in one step: it is read at each `submit`
    return found[:6], found[7]  # between them is which flags are up


def _set_decimal(decimal: Any, value: Any) -> None:
    numbers, traps = value
    decimal.setcontext(decimal.Context(*numbers, [], traps))


def _default_of_decimal(decimal: Any) -> Any:
    traps = [decimal.InvalidOperation, decimal.DivisionByZero, decimal.Overflow]
    return _decimal_of(decimal.Context(28, decimal.ROUND_HALF_EVEN, -999999, 999999, 1, 0, [], traps))


def _numpy_errors(numpy: Any) -> Any:
    found = numpy.geterr()
    if not _KNOWN_TO_NUMPY.issuperset(found.values()):
        raise ValueError  # by a function or file of the program's
    return found


_KNOWN_TO_NUMPY = frozenset({"ignore", "warn", "raise", "print"})

# As with numpy 2.5, torch 2.13, jax 0.10 and scikit-learn 1.9.
SETTINGS = (
    Setting("decimal", True, lambda decimal: _decimal_of(decimal.getcontext()), _default_of_decimal, _set_decimal),
    Setting(
        "numpy",
        True,
        _numpy_errors,
        lambda _: {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"},
        lambda numpy, value: numpy.seterr(**value),
    ),
    Setting(
        "torch",
        False,
        # By its name: a message that held it would import torch before anything could be said about that.
        lambda torch: str(torch.get_default_dtype()),
        lambda _: "torch.float32",
        lambda torch, value: torch.set_default_dtype(getattr(torch, value.removeprefix("torch."))),
    ),
    Setting(
        "jax",
        False,
        lambda jax: jax.config.jax_enable_x64,
        lambda _: False,
        lambda jax, value: jax.config.update("jax_enable_x64", value),
    ),
    Setting(
        "sklearn",
        True,
        lambda sklearn: sklearn.get_config(),
        lambda sklearn: sklearn._config._global_config.copy(),
        lambda sklearn, value: sklearn.set_config(**value),
    ),
)
# With what was there before anybody set it, once that is known; and which have been set since: these are told from then on.
_defaults: dict[str, Any] = {}
_set_once: set[str] = set()

Settings = tuple[tuple[int, Any], ...]


def settings() -> Settings:
    """Return what this program has set, by the places of the settings."""
    found = []
    for place, (name, _, read, default, _) in enumerate(SETTINGS):
        module = sys.modules.get(name)
        if module is None:
            continue
        try:
            value = read(module)
            if name not in _defaults:
                _defaults[name] = default(module)
        except Exception:  # noqa: BLE001, S112 - in another version it is kept elsewhere, or the module is half imported
            continue
        if value != _defaults[name] or name in _set_once:
            _set_once.add(name)
            found.append((place, value))
    return tuple(found)


def take_over_settings(now: Settings, before: Settings, *, of_thread: bool) -> None:
    """Set what the program has set, in this thread or the process, as far as it differs from before: else what was set here stays."""
    known = dict(before)
    for place, value in now:
        setting = SETTINGS[place]
        if setting.of_thread == of_thread and (place not in known or known[place] != value):
            with contextlib.suppress(Exception):  # see above
                setting.write(importlib.import_module(setting.module), value)
