"""Progress in any of the forms in which users ask for it, as one function that takes a number of items."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

from .._process._system import HAS_PROC
from .._words import unknown_option


@runtime_checkable
class Bar(Protocol):
    """What a tqdm bar has and we need."""

    def update(self, n: int) -> Any:
        """Advance by ``n``."""

    def close(self) -> Any:
        """Leave the bar as it is."""


# What takes less is not worth a word, which would only flicker; and its clock shows seconds.
_SAY_SECONDS, _CLOCK_SECONDS = 0.25, 0.5

#: What `stateful_map` takes as ``progress``.
ProgressLike: TypeAlias = bool | Mapping[str, Any] | Callable[[int], Any] | Bar | type | None


class Progress:
    """A bar that is opened when the first item starts.

    Parameters
    ----------
    progress : bool, dict, tqdm class, bar, or callable
        See `stateful_map`.
    total : int or None
        What the bar will reach, if known.
    """

    def __init__(self, progress: ProgressLike, total: int | None) -> None:
        self._progress, self._total = progress, total
        self._bar: Any = None
        self._is_ours = False
        self._update: Callable[[int], Any] | None = None
        self._notes = False  # the bar has a place for words
        self._own_words = ""  # what stands there
        self._since: float | None = None  # there has been something to say
        self._refreshed = 0.0
        self._is_said = False

    @property
    def is_wanted(self) -> bool:
        """False if there is nothing to show."""
        return self._progress is not None and self._progress is not False

    @property
    def has_words(self) -> bool:
        """True if it is open and can say what is waited for."""
        return self._notes

    def open(self) -> None:
        """Show the bar."""
        progress = self._progress
        if not self.is_wanted:
            return
        if progress is True or isinstance(progress, (type, Mapping)):
            make: Any = progress if isinstance(progress, type) else _tqdm()
            kwargs = dict(progress) if isinstance(progress, Mapping) else {}
            kwargs.setdefault("total", self._total)
            self._bar, self._is_ours = make(**kwargs), True
            self._update = self._bar.update
        elif isinstance(progress, Bar):
            self._bar = progress
            self._update = progress.update
        else:
            self._update = progress  # type: ignore[assignment]  # checked by check_progress
        self._notes = all(callable(getattr(self._bar, name, None)) for name in ("set_postfix_str", "refresh"))

    def add(self, n: int) -> None:
        """Show that ``n`` more items are finished."""
        if n and self._update is not None:
            if self._since is not None:
                self.say("")
            self._update(n)

    def say(self, words: str, *, at_once: bool = False) -> None:
        """Show beside the bar what is waited for, its clock moving; without words, that the work has begun.

        From then on the rate is counted, and not from when the bar was opened.
        """
        if not self._notes or (self._since is None and not words):
            return
        bar, now = self._bar, time.monotonic()
        if not words:
            self._since = None
            if callable(getattr(bar, "unpause", None)):
                bar.unpause()
            if self._is_said:
                self._is_said = False
                bar.set_postfix_str(self._own_words, refresh=False)
                bar.refresh()
            return
        if self._since is None:
            self._since, self._own_words = now, getattr(bar, "postfix", None) or ""
        if at_once or (now - self._since >= _SAY_SECONDS and now - self._refreshed >= _CLOCK_SECONDS):
            self._is_said, self._refreshed = True, now
            bar.set_postfix_str(", ".join(filter(None, [self._own_words, words])), refresh=False)
            bar.refresh()

    def close(self) -> None:
        """Leave the bar as it is, and bring it up to date; only if it was ours to open."""
        if self._since is not None:
            self.say("")
        bar, self._bar, self._update, self._notes = self._bar, None, None, False
        if bar is not None and self._is_ours:
            bar.close()
        elif bar is not None and hasattr(bar, "refresh"):
            bar.refresh()


def check_progress(progress: Any) -> None:
    """Refuse what no progress can be shown with."""
    if progress is None or isinstance(progress, (bool, Bar)) or callable(progress):
        return
    if isinstance(progress, Mapping) and all(isinstance(key, str) for key in progress):
        if progress:
            _check_arguments(progress)
        return
    raise TypeError(
        f"progress must be True, False, a dict of tqdm arguments, a tqdm class, a bar, or a callable that takes "
        f"the number of items that newly finished; not {progress!r}.",
    )


def _check_arguments(kwargs: Mapping[str, Any]) -> None:
    """Refuse arguments that tqdm would refuse only when the bar is shown."""
    import inspect

    from tqdm.std import tqdm

    known = [name for name in inspect.signature(tqdm.__init__).parameters if name not in ("self", "iterable", "kwargs")]
    unknown = [name for name in kwargs if name not in (*known, "display")]  # the latter is for notebooks
    if unknown:
        raise TypeError(unknown_option("tqdm, to which progress={...} gives its arguments,", unknown, known))


def _tqdm() -> Any:
    if _is_in_jupyter_console():
        from tqdm import tqdm

        return tqdm
    from tqdm.auto import tqdm

    return tqdm


def _is_in_jupyter_console() -> bool:
    """Tell whether this is the kernel of a `jupyter console`, which can't draw the widget that `tqdm.auto` would choose.

    A kernel isn't told what it draws for, and all answer alike when a widget is opened; but what has started it is known.
    """
    starter = os.environ.get("JPY_PARENT_PID", "")
    if "ipykernel" not in sys.modules or not starter.isdigit() or not HAS_PROC:
        return False
    try:
        line = Path(f"/proc/{starter}/cmdline").read_bytes()
    except OSError:  # it is gone, or another user's
        return False
    # "python -m jupyter_console", "jupyter-console", and "jupyter console", which becomes the latter.
    return any(name in word for word in line.split(b"\0")[:3] for name in (b"jupyter-console", b"jupyter_console"))


class Ticker:
    """Has something done again and again, in a thread of its own, until it is ended.

    For a bar that nobody waits beside: in joblib's calls the consumer's thread is joblib's.
    """

    def __init__(self, tick: Callable[[], None]) -> None:
        self._tick, self._is_over = tick, threading.Event()
        threading.Thread(target=self._run, name="joblib_stateful-bar", daemon=True).start()

    def end(self) -> None:
        """Have it done no more, but for the once that is perhaps under way."""
        self._is_over.set()

    def _run(self) -> None:
        while not self._is_over.wait(_SAY_SECONDS):
            self._tick()
