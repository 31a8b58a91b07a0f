"""What the tests of all engines share: the engines, and an object that tells what becomes of it."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

ALL = ("loky", "threads", "inline", "memory", "example", "dask", "ray")
PROCESSES = ("loky", "example", "dask", "ray")
EXAMPLES = Path(__file__).parent.parent / "examples"
N_JOBS = 2
# Of each cluster, for tests.
DASK = {"n_workers": N_JOBS, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0", "host": "127.0.0.1"}
RAY = {"num_cpus": N_JOBS, "include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}


def on(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("engine", names, indirect=True)


class Model:
    """Notes in a file when it is built and closed, and does what an item says."""

    def __init__(self, log: Path, tag: str = "", *, fails: bool = False) -> None:
        if fails:
            raise ValueError(f"no model for {tag!r}")
        self.log, self.tag = log, tag
        self.thread = threading.get_ident()
        self._note("built")

    def _note(self, what: str) -> None:
        with self.log.open("a") as file:
            file.write(f"{what} {os.getpid()}\n")

    def __call__(self, item: Any) -> Any:
        assert self.thread == threading.get_ident(), "an object is used in the thread that it was built in"
        return item() if callable(item) else (self.tag, item)

    def close(self) -> None:
        self._note("closed")


def count(log: Path, what: str) -> int:
    return log.read_text().split().count(what)


def kill_oneself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    threading.Event().wait()


def values(results: Any) -> list[Any]:
    return [result.value for result in results]
