"""What code finds around it, so that a worker's finds what it would in the program itself.

`Surroundings` can change in a worker that stands: they go with the first message of each map, call of `submit` or of
`joblib.Parallel`. The environment can't, for libraries read it when they are imported: `environment` is what workers are
started with, to be compared.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import itertools
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

from .._transport._reducers import Registration, registrations, take_over
from ._settings import Settings, settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

# What a worker itself is deep in calls when it runs an item, and some more to report an error by.
_LOWEST_RECURSION_LIMIT = 100
# Changed by themselves, without a meaning for workers: by test runners, terminals and shells, and by the import of joblib,
# scikit-learn, Ray, TensorFlow, Polars and JAX, which set them in a worker as well, when it imports them.
_NOISE = (
    "PYTEST_CURRENT_TEST",
    "PYTEST_VERSION",
    "COLUMNS",
    "LINES",
    "PWD",
    "OLDPWD",
    "SHLVL",
    "_",
    "KMP_INIT_AT_FORK",
    "KMP_DUPLICATE_LIB_OK",
    "RAY_CLIENT_MODE",
    "TF2_BEHAVIOR",
    "_RJEM_MALLOC_CONF",
    "TF_CPP_MIN_LOG_LEVEL",
    "TPU_SKIP_MDS_QUERY",
)


class Surroundings(NamedTuple):
    """Where a program is, where it looks for modules, two limits of its interpreter, and what it has set in libraries."""

    folder: str
    path: tuple[str, ...]
    #: Standard modules that are loaded there, and that a file of the same name hides from who looks for them only now.
    hidden: tuple[str, ...]
    recursion_limit: int
    int_digits: int
    reducers: tuple[Registration, ...]
    settings: Settings

    @classmethod
    def now(cls) -> Surroundings:
        """Return those of this process; the same object as long as they are the same.

        Raises FileNotFoundError if the current folder is gone.
        """
        try:
            folder = os.getcwd()  # noqa: PTH109 - importing pathlib would take each program 4 ms
        except OSError as error:
            raise _gone(error, "The current folder of this program is gone") from error
        limits = sys.getrecursionlimit(), sys.get_int_max_str_digits()
        reducers, set_here = registrations(), settings()
        seen, latest_path, known = _latest[0]
        if known is not None and seen == (folder, *limits, reducers) and latest_path == sys.path:
            if known.settings != set_here:
                known = known._replace(settings=set_here)
                _latest[0] = seen, latest_path, known
            return known
        path: list[Any] = list(sys.path)
        # Anything else in there is passed over by the import system.
        entries = tuple(str(entry) for entry in path if isinstance(entry, str))
        found = cls(folder, entries, tuple(_hidden(entries)), _checked(limits[0]), limits[1], reducers, set_here)
        _latest[0] = (folder, *limits, reducers), path, found
        return found

    def take_over(self, before: Surroundings | None) -> None:
        """Make them those of this process, as far as they are others than those that it took over before.

        What the user's code in this process has changed by itself stays, as long as the program doesn't change it.
        """
        if before is None or self.path != before.path:
            self._load_hidden()
            sys.path[:] = self.path
        if before is None or self.recursion_limit != before.recursion_limit:
            sys.setrecursionlimit(self.recursion_limit)
        if before is None or self.int_digits != before.int_digits:
            sys.set_int_max_str_digits(self.int_digits)
        if self.reducers and (before is None or self.reducers != before.reducers):
            take_over(self.reducers)
        if before is None or self.folder != before.folder:
            try:
                os.chdir(self.folder)
            except OSError as error:
                raise _gone(error, f"The program's current folder can't be entered: {self.folder!r} is gone") from error

    def _load_hidden(self) -> None:
        sys.path[:] = standard_first(self.path)
        for name in self.hidden:
            with contextlib.suppress(Exception):  # who needs it will be told
                importlib.import_module(name)


def standard_first(path: Iterable[Any]) -> list[str]:
    """Return where to look for modules: for standard ones in their own place first.

    A program that has loaded `queue` before a folder with a ``queue.py`` came to its path goes on with the first one.
    """
    found = [entry for entry in path if isinstance(entry, str)]
    return [entry for entry in found if entry in _STANDARD] + [entry for entry in found if entry not in _STANDARD]


def _hidden(path: Iterable[str]) -> Iterator[str]:
    for entry in itertools.takewhile(lambda entry: entry not in _STANDARD, path):
        try:
            names = os.listdir(entry or ".")  # noqa: PTH208 - importing pathlib would take each program 4 ms
        except OSError:  # most entries need not be folders, nor be there
            continue
        for name in {name.partition(".")[0] for name in names} & sys.stdlib_module_names & sys.modules.keys():
            where = getattr(sys.modules[name], "__file__", None) or _HOME
            if where.startswith(_HOME):
                yield name


_HOME = os.path.dirname(os.__file__)  # noqa: PTH120 - importing pathlib would take each program 4 ms
_STANDARD = (_HOME, os.path.join(_HOME, "lib-dynload"))  # noqa: PTH118 - see above
# What was seen, the path that was seen, and the surroundings made of it: in one, for any thread may replace them.
_latest: list[tuple[Any, Any, Surroundings | None]] = [(None, None, None)]


def _gone(error: OSError, what: str) -> OSError:
    if error.errno != errno.ENOENT:
        what = what.removesuffix(" is gone")
    return type(error)(
        error.errno,
        f"{what}, so that relative paths would mean something else in a worker ({error.strerror}). Likely cause: it was "
        "removed, or a temporary folder ended, while the program was in it. Go to one that is there: os.chdir(...)",
    )


def _checked(recursion_limit: int) -> int:
    if recursion_limit >= _LOWEST_RECURSION_LIMIT:
        return recursion_limit
    warnings.warn(
        f"sys.getrecursionlimit() is {recursion_limit} here and {_LOWEST_RECURSION_LIMIT} in workers, which need so much "
        "to report an error. Set the lower limit within the function that needs it.",
        RuntimeWarning,
        stacklevel=2,
    )
    return _LOWEST_RECURSION_LIMIT


class Environment:
    """What the workers of an executor were started with."""

    def __init__(self) -> None:
        self._seen: list[Mapping[Any, Any]] = []
        self._same: Mapping[Any, Any] | None = None  # the latest that was found to be the same
        self.has_warned = False

    def note(self) -> None:
        """Note that a worker is about to be started."""
        if not self._seen or self.changes():
            self._seen.append(dict(_raw()))
            self._same = None

    def forget(self) -> None:
        """Note that no worker is left."""
        self._seen, self._same = [], None

    def changes(self) -> list[str]:
        """Return the names of variables that are others now."""
        now = _raw()
        if not self._seen or now == self._same:
            return []
        if found := sorted({_name(name) for seen in self._seen for name in _different(seen, now)} - {*_NOISE}):
            return found
        self._same = dict(now)
        return []

    def warn_of_changes(self, stacklevel: int) -> None:
        """Warn once, if there are such variables."""
        if self.has_warned or not (names := self.changes()):
            return
        self.has_warned = True
        warnings.warn(
            f"os.environ has changed since the workers of this executor were started ({', '.join(names)}), and they go on "
            "with what it was then: libraries read it when they are imported. Make a new executor for workers that have "
            "the new values, or set them before the first call.",
            RuntimeWarning,
            stacklevel=stacklevel + 1,
        )


def _raw() -> Mapping[Any, Any]:
    # Within `os.environ` are the bytes, which needn't be decoded to be compared: this is done at each `submit`.
    found: Mapping[Any, Any] = getattr(os.environ, "_data", os.environ)
    return found


def _different(one: Mapping[Any, Any], other: Mapping[Any, Any]) -> Iterable[Any]:
    return (name for name in {**one, **other} if one.get(name) != other.get(name))


def _name(name: Any) -> str:
    return os.fsdecode(name)
