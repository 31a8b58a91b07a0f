"""Progress in any of the forms in which users ask for it, as one function that takes a number of items."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

from ._words import unknown_option


@runtime_checkable
class Bar(Protocol):
    """What a tqdm bar has and we need."""

    def update(self, n: int) -> Any:
        """Advance by ``n``."""

    def close(self) -> Any:
        """Leave the bar as it is."""


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

    @property
    def is_wanted(self) -> bool:
        """False if there is nothing to show."""
        return self._progress is not None and self._progress is not False

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

    def add(self, n: int) -> None:
        """Show that ``n`` more items are finished."""
        if n and self._update is not None:
            self._update(n)

    def close(self) -> None:
        """Leave the bar as it is, and bring it up to date; only if it was ours to open."""
        bar, self._bar, self._update = self._bar, None, None
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
    from tqdm.auto import tqdm

    return tqdm
