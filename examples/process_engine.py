"""An engine of your own, from scratch: a plain `multiprocessing.Process` per slot.

    python examples/process_engine.py

Slots, order, retries, time limits, policies, progress and the rest come with it. An engine says what its workers are; a
runtime opens them, for one executor; a worker, how a message gets to its far end and the answer back, and how that is ended.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any, ClassVar

from joblib_stateful import stateful_map
from joblib_stateful.engines import Engine, Host, Pickled, RemoteWorker, Runtime


def serve(connection: Connection, env: Mapping[str, str]) -> None:
    """Answer messages for good; this is the far end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    os.environ.update(env)
    host = Host(Pickled(), is_process=True)
    while True:
        connection.send(host.serve(connection.recv()))


class ProcessWorker(RemoteWorker):
    """One process."""

    def __init__(self, env: Mapping[str, str]) -> None:
        super().__init__()
        self._ours, theirs = multiprocessing.get_context("spawn").Pipe()
        self._theirs: Connection | None = theirs
        self._process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs, env), daemon=True)

    def exchange(self, message: Any) -> Any:
        """Send a message and wait for the answer; if the process dies, reading its pipe raises EOFError."""
        if self._theirs is not None:
            self._process.start()
            self._theirs.close()
            self._theirs = None
        self._ours.send(message)
        return self._ours.recv()

    def end(self) -> None:
        """Kill the process."""
        if self._process.pid is not None:
            self._process.kill()
            self._process.join()
        self._ours.close()


class ProcessRuntime(Runtime):
    """Opens such workers, for one executor."""

    transport = Pickled()

    def open(self, slot: int, env: Mapping[str, str]) -> ProcessWorker:  # noqa: ARG002 - all slots are alike
        """Return a worker for a slot."""
        return ProcessWorker(env)


class ProcessEngine(Engine):
    """What is passed as ``engine=``."""

    name: ClassVar[str] = "process"
    has_processes: ClassVar[bool] = True
    takes_env: ClassVar[bool] = True
    is_remote: ClassVar[bool] = True  # which item of a batch runs isn't seen from here

    def make_runtime(self, n_slots: int) -> ProcessRuntime:  # noqa: ARG002 - however many there are
        """Return a runtime for one executor."""
        return ProcessRuntime(self)


if __name__ == "__main__":
    numbers = stateful_map(abs, range(-5, 5), n_jobs=2, engine=ProcessEngine(), progress=True)
    print(list(numbers))
