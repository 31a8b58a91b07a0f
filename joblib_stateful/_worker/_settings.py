"""Settings that libraries keep for a whole program or thread, and that decide which values come out of the same code.

A program that has asked jax for 64 bits, decimal for five digits or numpy for errors would silently get other values out of a worker.
Only what a program has set is taken over, from those libraries that it has loaded.
"""

from __future__ import annotations

import sys
import threading
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from .._process._imports import when_imported
from .._process._safely import Log

if TYPE_CHECKING:
    from collections.abc import Callable

_log = Log()


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


_USUAL = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}


def _numpy_errors(numpy: Any) -> Any:
    found = numpy.geterr()
    if found == _USUAL:  # it is asked at each `submit`
        return found
    # A function or file of the program's is told of some: there is none in a worker, where code goes on all the same.
    return {error: "warn" if how in ("call", "log") else how for error, how in found.items()}


# As with numpy 2.5, torch 2.13, jax 0.10 and scikit-learn 1.9.
SETTINGS = (
    Setting("decimal", True, lambda decimal: _decimal_of(decimal.getcontext()), _default_of_decimal, _set_decimal),
    Setting(
        "numpy",
        True,
        _numpy_errors,
        lambda _: _USUAL,
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
# What was there before anybody set it, once that is known; and which have been set since: these are told from then on.
_defaults: dict[str, Any] = {}
_set_once: set[str] = set()

Settings = tuple[tuple[int, Any], ...]


def settings() -> Settings:
    """Return what this program has set, by the places of the settings."""
    found = []
    for place, (name, _, read, default, _) in enumerate(SETTINGS):
        module = sys.modules.get(name)
        if type(module) is not ModuleType:  # it isn't there, or is only loaded when somebody looks into it
            continue
        try:
            value = read(module)
            if name not in _defaults:
                _defaults[name] = default(module)
        except Exception:  # noqa: BLE001 - in another version it is kept elsewhere, or the module is half imported
            if name not in _defaults:
                continue
            value = _defaults[name]
        if value != _defaults[name] or name in _set_once:
            _set_once.add(name)
            found.append((place, value))
    return tuple(found)


# --- in a worker ------------------------------------------------------------------------------------------


class _OfThread(threading.local):
    def __init__(self) -> None:
        self.taken: dict[int, Any] = {}


# What has been taken over last, by this process or thread; and what is to be, also by modules that are yet to be imported.
_of_process: dict[int, Any] = {}
_of_thread = _OfThread()
_wanted: dict[int, Any] = {}


def take_over_settings(now: Settings) -> None:
    """Set what the program has set, as far as it has changed since: what this process has set by itself stays.

    A library that isn't there is not imported for that: it is set when somebody imports it.
    """
    for place, value in now:
        name, of_thread, *_ = SETTINGS[place]
        taken = _of_thread.taken if of_thread else _of_process
        if place in taken and taken[place] == value:
            continue
        is_first = place not in _wanted
        _wanted[place] = value
        if name in sys.modules:
            _set(place, sys.modules[name])
        elif is_first:
            when_imported(name, partial(_set, place))


def _set(place: int, module: ModuleType) -> None:
    setting, value = SETTINGS[place], _wanted[place]
    taken = _of_thread.taken if setting.of_thread else _of_process
    try:
        setting.write(module, value)
    except Exception as error:  # noqa: BLE001 - in another version it is kept elsewhere, or the module is half imported
        _log.warning("The program's settings of %s could not be taken over: %s", setting.module, str(error))
    else:
        taken[place] = value
