"""The seam between the executor and what its workers run on.

An engine is what users name, and says what its workers are; a runtime is what one executor opens its workers with; a worker
takes one message at a time, or several, and can be closed or killed. That is all: retries, limits, order and the rest are
the executor's and the same on every engine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from .._transport._transport import Transport
    from .._worker._messages import Death, Failure, Finish, Message, Reply
    from .._worker._progress_page import Progress
    from .._worker._surroundings import Surroundings
    from .._worker._worker import Worker

__all__ = ["Engine", "EngineWorker", "Runtime"]


class EngineWorker(ABC):
    """One life of one slot, on the parent's side. Its methods may be called from any thread."""

    #: What the worker is doing; read by the parent at any time. Of one that takes several messages at a time, in the first of
    #: their places.
    progress: Progress
    #: Its process, as soon as that is known.
    pid: int | None = None
    #: The worker itself, if it is in this process.
    here: Worker | None = None
    #: The same, if it can be used from any thread (engine ``inline``).
    local: Worker | None = None
    #: Set by the executor: to be called, from any thread, if the worker is found dead with no message under way. An engine
    #: that doesn't notice need not; then the next message is answered with that death.
    on_idle_death: Callable[[Death], None] | None = None

    @abstractmethod
    def send(self, message: Message, on_reply: Callable[[Reply | Death], None]) -> Reply | Death | None:
        """Have the worker answer a message; it is started if need be.

        Parameters
        ----------
        message : Build, Run or Finish
            What is asked of it. The one before has been answered, unless both are a `Run`, and its runtime's
            ``max_concurrency`` is more than 1.
        on_reply : callable
            To be called with the answer, once and from any thread, unless that is returned.

        Returns
        -------
        Built, BuildFailed, Ran, Finished, Death or None
            The answer; None if ``on_reply`` will be called with it. A worker whose process is gone, or that could not be
            started, answers with a `Death`, once it is really gone.
        """

    def progress_of(self, seq: int) -> Progress:  # noqa: ARG002 - for those that take several at a time
        """Return what is seen of a message under way.

        Parameters
        ----------
        seq : int
            The message's number.

        Returns
        -------
        Progress
        """
        return self.progress

    def owes_answer(self, seq: int) -> bool:  # noqa: ARG002 - most engines don't see it
        """Tell whether a message of which the worker says that it is done with isn't answered, though somebody listens.

        Parameters
        ----------
        seq : int
            The message's number.

        Returns
        -------
        bool
        """
        return False

    def condemn(self, what: str) -> None:  # noqa: ARG002 - for engines that can pass it on
        """End a worker at once whose memory must be damaged, for what it says can't be.

        A message under way is answered with a `Death`.

        Parameters
        ----------
        what : str
            What can't be.
        """
        self.kill()

    def answer_elsewhere(self) -> None:  # noqa: B027 - some engines can't, and others have no need
        """Have further answers taken by another thread: the calling one brings one, and may wait for others."""

    @abstractmethod
    def close(self, message: Finish, on_closed: Callable[[Failure | None], None]) -> None:
        """End the worker in an orderly way; it is idle.

        Parameters
        ----------
        message : Finish
            What has its object closed.
        on_closed : callable
            To be called once the worker is gone, from any thread: with what closing the object raised, or None.
        """

    @abstractmethod
    def kill(self) -> None:
        """End the worker at once; a message under way is answered with a `Death`.

        Returns when it is gone, or, on a cluster, when it is sure to go.
        """

    def disown(self) -> None:  # noqa: B027 - most workers need nothing here
        """Forget, in a fork, what belongs to the parent: this object will be collected, and must harm nothing."""


class Runtime(ABC):
    """What one executor opens its workers with: what there is of an engine while it is at work.

    Each executor has one of its own, which its engine makes for it; what its workers have in common is here.

    Parameters
    ----------
    engine : Engine
        The engine that has made it.
    """

    #: How values travel to and from the workers. All runtimes of an engine must have the same one, or one that loads what
    #: those of others have packed: what was packed for one executor may go to another one's workers.
    transport: Transport
    #: How many messages its workers take at a time: more than 1 only if its engine says `Engine.is_concurrent`. Set, by whoever
    #: has it made, before it opens the first.
    max_concurrency: int = 1

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @abstractmethod
    def open(self, slot: int, env: Mapping[str, str]) -> EngineWorker:
        """Return a worker for a slot; it need not be started before the first message. Must not block.

        Parameters
        ----------
        slot : int
            Which slot, counted from 0.
        env : mapping
            Environment variables for its process; only those of engines with ``takes_env`` are given any.

        Returns
        -------
        EngineWorker

        Raises
        ------
        OSError
            There is no room for one more.
        """

    def get_ready(self) -> None:  # noqa: B027 - most are
        """Load what workers need; called before each of them is opened."""

    def lacks_room(self) -> bool:
        """Tell whether another worker would have to wait until one that stands is gone."""
        return False

    def surroundings(self) -> Surroundings | None:
        """Return what workers shall take over from this process; None if they share it with it, or are elsewhere."""
        return None

    def flush(self) -> None:  # noqa: B027 - most have nothing that comes beside the answers
        """Wait, for a moment at most, until the loggers have had what workers have logged."""

    @classmethod  # noqa: B027 - most leave nothing
    def settle(cls, seconds: float) -> None:
        """Wait, at most so long, until nothing of the workers that are gone is left to be tidied up.

        Called at the end of the program, for all runtimes of the class, since some may be gone before what is left of their
        workers.

        Parameters
        ----------
        seconds : float
            How long.
        """

    def __repr__(self) -> str:
        return f"<runtime of {self.engine!r}>"


class Engine(ABC):
    """What users name or make to say what their workers are; it has no state, and serves any number of executors.

    What it says of the workers is known before there are any. Each executor has it make a `Runtime`, which opens them.
    """

    #: How users name it.
    name: ClassVar[str]
    #: Workers live in processes of their own, so that they can be killed.
    has_processes: ClassVar[bool] = False
    #: Workers take ``worker_env``, because their processes are started for them.
    takes_env: ClassVar[bool] = False
    #: Workers are elsewhere: this machine's CPUs are not theirs, and which item of a batch they run isn't seen.
    is_remote: ClassVar[bool] = False
    #: `EngineWorker.send` answers itself, in the caller's thread.
    is_synchronous: ClassVar[bool] = False
    #: Workers can take several messages at a time.
    is_concurrent: ClassVar[bool] = False

    @abstractmethod
    def make_runtime(self, n_slots: int) -> Runtime:
        """Return a runtime for one executor. Must not block, and must start nothing: it may never be used.

        Parameters
        ----------
        n_slots : int
            How many workers it opens at a time; it may be asked for more later.

        Returns
        -------
        Runtime

        Raises
        ------
        EngineError
            This engine can't be used in this process.
        """

    def make_concurrent_runtime(self, n_slots: int, max_concurrency: int) -> Runtime:
        """Return a runtime whose workers take so many messages at a time; one after the other, if they can't.

        Parameters
        ----------
        n_slots : int
            See `make_runtime`.
        max_concurrency : int
            How many.

        Returns
        -------
        Runtime
        """
        runtime = self.make_runtime(n_slots)
        if self.is_concurrent:
            runtime.max_concurrency = max_concurrency
        return runtime

    def check(self) -> None:  # noqa: B027 - most engines can be used everywhere
        """Raise `EngineError` if this engine can't be used in this process."""

    def default_n_jobs(self) -> int | None:
        """Return how many slots there are where nobody says it, and for ``n_jobs=-1``; None: one per CPU."""
        return None

    def session(self) -> Hashable:
        """Return what tells one connection from another, for engines that have one: workers belong to theirs."""
        return None

    def __repr__(self) -> str:
        return f"<engine {self.name!r}>"
