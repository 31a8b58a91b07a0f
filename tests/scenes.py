"""What the tests of `stateful_map` share: ways to wait for a moment instead of sleeping through it."""

from __future__ import annotations

import os
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from conftest import ENGINES
from joblib_stateful._scheduling._requests import Outcome

if TYPE_CHECKING:
    from joblib_stateful._map._batching import Batching

engines = pytest.mark.parametrize("engine", ENGINES)
parallel_engines = pytest.mark.parametrize("engine", ["loky", "threads"])
orders = pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "unordered"])
policies = pytest.mark.parametrize("policy", ["immediate", "wait_others", "deferred"])

_PATIENCE = 30.0


def wait_until(path: Path, n_lines: int = 0) -> None:
    """Wait until a file exists and has so many lines; the only way that works between any two processes."""
    deadline = time.monotonic() + _PATIENCE
    while not path.exists() or len(path.read_text().splitlines()) < n_lines:
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody wrote {n_lines} lines to {path}")
        time.sleep(0.002)


@dataclass(frozen=True)
class Gate:
    """Holds up whoever waits for it, in any process, until it is opened."""

    path: Path

    def open(self) -> None:
        self.path.touch()

    def wait(self) -> None:
        wait_until(self.path)


@dataclass(frozen=True)
class Meeting:
    """Holds up workers until so many of them are there: proof that they run at the same time."""

    path: Path
    size: int

    def join(self) -> None:
        with self.path.open("a") as file:
            file.write("here\n")
        wait_until(self.path, self.size)


@dataclass(frozen=True)
class Log:
    """A file to which any process may add a line."""

    path: Path

    def note(self, text: object) -> None:
        with self.path.open("a") as file:
            file.write(f"{text}\n")

    @property
    def lines(self) -> list[str]:
        return self.path.read_text().splitlines() if self.path.exists() else []

    def wait_for(self, n_lines: int) -> None:
        wait_until(self.path, n_lines)


@dataclass(frozen=True)
class Scene:
    """A folder in which gates, meetings and logs are found by name."""

    folder: Path

    def gate(self, name: object = "gate") -> Gate:
        return Gate(self.folder / f"gate-{name}")

    def meeting(self, size: int, name: object = "meeting") -> Meeting:
        return Meeting(self.folder / f"meeting-{name}", size)

    def log(self, name: object = "log") -> Log:
        return Log(self.folder / f"log-{name}")


def new_scene(tmp_path: Path) -> Scene:
    folder = tmp_path / f"scene-{uuid.uuid4().hex}"
    folder.mkdir()
    return Scene(folder)


class CountingCalls:
    """A worker that knows how many calls of it are under way, the most that were, and the thread that it was built in.

    Items that can be called are called with it.
    """

    awaited: ClassVar[int]  # so many calls at once are all

    def __init__(self) -> None:
        self.lock, self.n_here, self.most = threading.Lock(), 0, 0
        self.all_are_here, self.thread = threading.Event(), threading.get_ident()

    def __call__(self, item: Any) -> Any:
        with self.lock:
            self.n_here += 1
            self.most = max(self.most, self.n_here)
            if self.n_here == self.awaited:
                self.all_are_here.set()
        try:
            return item(self) if callable(item) else item
        finally:
            with self.lock:
                self.n_here -= 1


def crash() -> None:
    """End the process as a crash would."""
    os._exit(3)


def note_call(
    sizes: Batching, n_run: int, seconds: float, nbytes: int = 0, *, n_calls: int = 1, n_fit: int = 0
) -> None:
    """Tell sizes of calls that some items have been run, in one call or in several."""
    sizes.note_outcome(
        Outcome(range(n_run), [], n_run=n_run, seconds=seconds, result_bytes=nbytes, n_calls=n_calls, n_fit=n_fit)
    )


def plan_of_calls(source: Any, sizes: Batching, transport: Any, length: int | None = None) -> Any:
    """Return as much of a map's plan as a feeder looks at, of calls with many items."""
    plan = SimpleNamespace(
        iterable=source,
        length=length,
        batching=sizes,
        transport=transport,
        surroundings=lambda: None,
        limits=None,
        pass_as="batch",
        target=None,
        on_error="immediate",
        isolate=True,
    )
    plan.ended = lambda: plan
    return plan
