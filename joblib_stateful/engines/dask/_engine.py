"""The engine ``"dask"``: one Dask worker process per slot, on a cluster or on this machine.

Each slot's object lives in a Dask actor, and Dask's scheduler finds out when the actor's process is gone. No cluster is ever started: make a `distributed.Client` before.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import pickle
import queue
import threading
import time
import uuid
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import distributed
from distributed.protocol import to_serialize

from ... import errors
from ..._process import _locks
from ..._transport._reducing import PROTOCOL
from ..._transport._shared_memory import Stored
from ..._worker._messages import Death, Finish, Finished, Run
from .._base import Engine, Runtime
from .._buffers import Handle, with_buffers
from .._remote import RemoteWorker
from ._actor import Room

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

    from ..._transport._stores import Blob
    from ..._worker._messages import Message, Refused, Reply

_log = logging.getLogger("joblib_stateful")

# How often to look whether the client and the worker are still there, besides being told so.
_LOOK_SECONDS = 5.0
# How long the end of a process may take until the news of it is here, and a restart by Dask.
_DEATH_SECONDS, _RESTART_SECONDS = 2.0, 30.0


class DaskWorker(RemoteWorker):
    """One life of one slot, in a Dask worker process that it shares with no other slot of its executor."""

    def __init__(self, runtime: DaskRuntime, slot: int) -> None:
        super().__init__(runtime.max_concurrency)
        self._runtime, self._slot = runtime, slot
        self._address: str | None = None
        self._future: Any = None  # of the actor; it lives as long as this does
        self._room: Any = None  # the actor
        # What happens to what is waited for: "done" or "lost". One for each that waits, by number.
        self._waiting: dict[int, queue.SimpleQueue[str]] = {}
        self._gone = threading.Event()  # the process
        self._at_work: set[int] = set()  # the messages that it was given
        self._is_restarted = self._is_cut_off = False
        self.waits_for = ""

    def exchange(self, message: Message) -> Reply | Refused | Death:
        """Have the worker process answer."""
        if self._address is None:
            if isinstance(message, Finish):
                return Finished(message.seq, None)
            self._move_in(message)
        if self._gone.is_set() or self._runtime.client.status != "running":
            return Death(self.pid, reason=f"the worker process at {self._address} is gone, or out of reach")
        stored = with_buffers(message, self._scatter)
        self.begin(message)  # it has not waited for its data, nor for its process
        seq, after = message.seq, message.after if isinstance(message, Run) else 0
        args = [to_serialize(pickle.dumps(stored, PROTOCOL)), seq, after]
        answers: list[Any] = []
        self._at_work.add(seq)
        with self._news_for(seq) as news:
            self._runtime.client.loop.add_callback(self._ask, self._room, args, answers, news)
            answer = self._wait_for(answers, news)
        self._at_work.discard(seq)
        if isinstance(answer, BaseException):
            self._is_cut_off = True
            raise answer
        reply: Reply | Refused = answer
        return reply

    def _wait_for(self, answers: list[Any], news: queue.SimpleQueue[str]) -> Any:
        while not answers:
            self._wait(news)
        return answers[0]

    async def _ask(self, room: Any, args: list[Any], answers: list[Any], news: queue.SimpleQueue[str]) -> None:
        """Have the actor answer.

        As Dask's own method for it does, whose future never comes if either side has failed to load what it received.
        """
        try:
            rpc = room._worker_rpc
            found = await rpc.actor_execute(function="serve", actor=room.key, args=args, kwargs={})
            answers.append(found["result"] if found["status"] == "OK" else found["exception"])
        except BaseException as error:  # noqa: BLE001 - it is raised where the answer is waited for
            answers.append(error)
        news.put("done")

    def end(self) -> None:
        """Leave the process; if it was killed at work, have the process killed and started again."""
        room, self._room, self._future = self._room, None, None
        if self.was_killed and self._at_work and room is not None and not self._gone.is_set():
            self._is_restarted = True
            self._runtime.restart(self, room)  # it takes seconds until the new process is there
        elif not self._is_restarted:
            self._runtime.leave(self)

    def explain(self) -> str:
        """Say what it waits for, if that is not its own constructor."""
        return self.waits_for

    def lose(self) -> None:
        """Learn that the process is gone, or that Dask has given it up."""
        self._gone.set()
        for news in list(self._waiting.values()):
            news.put("lost")

    def kill_process(self, room: Any) -> None:
        """Have the process killed and started again; returns when that is done."""
        if self._is_cut_off and self._gone.wait(_DEATH_SECONDS):  # by its end, of which the news came later
            return
        room.die()  # Dask's own way asks first, and takes four seconds over it
        if not self._gone.wait(_DEATH_SECONDS):
            # Where no nanny is there to start it again, or the cluster is closed, it is left to itself.
            self._runtime.client.restart_workers([self._address], timeout=_RESTART_SECONDS, raise_for_error=False)

    def _move_in(self, message: Message) -> None:
        """Find a process, and make an actor in it."""
        client = self._runtime.client
        self._address = self._runtime.take(self, self._slot)
        self.waits_for = f"its actor waited for its turn in the worker process at {self._address}"
        self._future = client.submit(
            Room,
            self._runtime.transport,
            self._runtime.max_concurrency,
            key=f"joblib_stateful-slot-{self._slot}-{uuid.uuid4().hex}",
            workers=[self._address],
            allow_other_workers=False,
            actor=True,
            pure=False,
            retries=0,
            resources=self._runtime.engine.resources,
        )
        with self._news_for(message.seq) as news:
            client.loop.add_callback(self._await_room, self._future, news)
            self._wait(news)
        with client.as_current():  # or the actor would ask another client of this process
            self._room = self._future.result()
        if self.is_gone:  # killed meanwhile: its object must not be built
            raise RuntimeError("it was killed")
        self.waits_for = ""
        self.begin(message)

    @staticmethod
    async def _await_room(future: Any, news: queue.SimpleQueue[str]) -> None:
        """Say when the actor is there, or won't be.

        In the client's loop and not by `Future.add_done_callback`, whose own thread takes nothing more while a program ends: Dask prints an error then.
        """
        with contextlib.suppress(BaseException):  # it is raised where the actor is waited for
            await future
        news.put("done")

    def _scatter(self, blob: Blob) -> Handle:
        """Lay a buffer into the worker process, once: it stays as long as the blob."""
        client = self._runtime.client
        place = id(client), self._address
        with blob.lock:
            held = blob.handles.get(place)
            if held is None or held.status != "finished":
                held = blob.handles[place] = client.scatter(blob.data, workers=[self._address], hash=False)
        return Handle(held.key, blob.mode)

    @contextlib.contextmanager
    def _news_for(self, seq: int) -> Iterator[queue.SimpleQueue[str]]:
        """Give a queue for the news of what is waited for."""
        news = self._waiting[seq] = queue.SimpleQueue()
        try:
            yield news
        finally:
            del self._waiting[seq]

    def _wait(self, news: queue.SimpleQueue[str]) -> None:
        while not self._gone.is_set():
            try:
                event = news.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                if self._address not in self._runtime.addresses():
                    break
                if self._room is not None and self._future.status != "finished":
                    raise ConnectionError("Dask has lost the actor") from None
                continue
            if event == "done":
                return
        raise ConnectionError(f"Dask's scheduler has lost the worker process at {self._address}")


class DaskRuntime(Runtime):
    """Puts the slots of one executor into worker processes, each into one of its own.

    Parameters
    ----------
    engine : DaskEngine
        Says which worker processes may be used.
    client : distributed.Client
        The client that was active when the executor was made.
    n_slots : int
        Number of slots.
    """

    transport = Stored()
    engine: DaskEngine

    _restarts_lock: ClassVar[_locks.Lock] = _locks.Lock()
    _restarts: ClassVar[list[threading.Thread]] = []  # those of all runtimes

    def __init__(self, engine: DaskEngine, client: Any, n_slots: int) -> None:
        super().__init__(engine)
        self.client, self._n_slots = client, n_slots
        self._lock = _locks.Lock()  # guards the one below
        self._taken: dict[DaskWorker, str] = {}

    def open(self, slot: int, env: Mapping[str, str]) -> DaskWorker:  # noqa: ARG002 - refused before
        """Return a worker for a slot."""
        self._n_slots = max(self._n_slots, slot + 1)  # they were added later
        return DaskWorker(self, slot)

    @classmethod
    def settle(cls, seconds: float) -> None:
        """Wait for processes that are being killed."""
        deadline = time.monotonic() + seconds
        with cls._restarts_lock:
            restarts = list(cls._restarts)
        for thread in restarts:
            thread.join(max(0.0, deadline - time.monotonic()))

    def addresses(self) -> list[str]:
        """Return the worker processes that there are at the moment and that may be used."""
        return self.engine.addresses(self.client)

    def take(self, worker: DaskWorker, slot: int) -> str:
        """Wait for a worker process in which no other slot is, and return its address."""
        deadline = time.monotonic() + self.engine.worker_timeout
        while True:
            _check_client(self.client)
            there = self.addresses()
            asked = f" that offers {self.engine.resources}" if self.engine.resources else ""
            worker.waits_for = f"slot {slot} of {self._n_slots} found no Dask worker process of its own{asked}: the cluster has {len(there)}"
            with self._lock:
                if worker.is_gone:
                    raise errors.EngineError("it was killed while it waited")
                free = list(itertools.filterfalse(set(self._taken.values()).__contains__, there))
                if free:
                    # Watched first, for that may fail.
                    address = _watchers.least_used(self.client, free)
                    _watchers.add(self.client, address, worker.lose)
                    self._taken[worker] = address
                    return address
            if time.monotonic() > deadline:
                raise errors.EngineError(
                    f"{worker.waits_for}, for {self.engine.worker_timeout:g} s. Start more worker processes, "
                    "use fewer slots (n_jobs), or wait longer: engine=DaskEngine(worker_timeout=...).",
                )
            time.sleep(0.1)  # Dask tells nobody of processes that come

    def leave(self, worker: DaskWorker) -> None:
        """Have others use a worker's process, if it has one."""
        with self._lock:
            address = self._taken.pop(worker, None)
            if address is not None:
                _watchers.remove(self.client, address, worker.lose)

    def restart(self, worker: DaskWorker, room: Any) -> None:
        """Kill a worker's process in the background, and leave it then."""

        def work() -> None:
            try:
                worker.kill_process(room)
            except Exception as error:  # noqa: BLE001 - it has no nanny, or the cluster is closed
                _log.debug("A Dask worker process could not be restarted: %r", error)
            finally:
                self.leave(worker)
                with self._restarts_lock:
                    self._restarts.remove(thread)

        thread = threading.Thread(target=work, name="joblib_stateful-restart", daemon=True)
        with self._restarts_lock:  # who waits for it must not see it before it has started
            thread.start()
            self._restarts.append(thread)


class DaskEngine(Engine):
    """Workers in the worker processes of a Dask cluster, one slot in each.

    Parameters
    ----------
    client : distributed.Client, optional
        The cluster's client. By default the one that is active when the executor or the map is made.
    workers : list of str, optional
        Addresses of the worker processes that may be used. By default all.
    resources : dict, optional
        What a worker process must offer of Dask's abstract resources, as in `distributed.Client.submit`.
    worker_timeout : float, default 30.0
        Seconds that a slot waits for a worker process of its own, for instance while a cluster grows, or while a
        process that died is started again.

    Examples
    --------
    >>> from distributed import Client
    >>> from joblib_stateful import stateful_map
    >>> client = Client(n_workers=2, threads_per_worker=1)  # doctest: +SKIP
    >>> list(stateful_map(abs, [-1, -2], engine=DaskEngine(client)))  # doctest: +SKIP
    [1, 2]
    """

    name: ClassVar[str] = "dask"
    has_processes: ClassVar[bool] = True
    is_remote: ClassVar[bool] = True
    is_concurrent: ClassVar[bool] = True

    def __init__(
        self,
        client: distributed.Client | None = None,
        *,
        workers: Sequence[str] | None = None,
        resources: Mapping[str, float] | None = None,
        worker_timeout: float = 30.0,
    ) -> None:
        if client is not None and not isinstance(client, distributed.Client):
            raise TypeError(f"client must be a distributed.Client, not {client!r}.")
        if isinstance(workers, str):
            raise TypeError(f"workers must be a list of addresses, not one string; write workers=[{workers!r}].")
        self.resources = None if resources is None else dict(resources)
        self.worker_timeout = worker_timeout
        self._client = client
        self._only = None if workers is None else set(workers)

    def make_runtime(self, n_slots: int) -> DaskRuntime:
        """Return a runtime whose slots are in different processes, of the client that is active now."""
        return DaskRuntime(self, self.client(), n_slots)

    def session(self) -> Hashable:
        """Return the client."""
        return self.client()  # type: ignore[no-any-return]  # Dask is typed in part

    def check(self) -> None:
        """Refuse to start a cluster."""
        self.client()

    def default_n_jobs(self) -> int:
        """Return how many worker processes there are."""
        return max(len(self.addresses(self.client())), 1)

    def client(self) -> Any:
        """Return the client; raises `EngineError` if there is none that is connected."""
        client = self._client
        if client is None:
            with contextlib.suppress(ValueError):
                client = distributed.default_client()
        _check_client(client)
        return client

    def addresses(self, client: Any) -> list[str]:
        """Return the worker processes that there are at the moment and that may be used."""
        try:
            there = client.scheduler_info(n_workers=-1)["workers"]
        except (OSError, KeyError, RuntimeError):  # it is just being closed
            return []
        wanted = (self.resources or {}).items()
        return [
            address
            for address, info in there.items()
            if (self._only is None or address in self._only)
            and all(info.get("resources", {}).get(name, 0) >= amount for name, amount in wanted)
        ]


engine_class = DaskEngine


def _check_client(client: Any) -> None:
    if client is None or client.status != "running":
        state = "there is none in this process" if client is None else f"this one is {client.status}"
        raise errors.EngineError(
            f'engine="dask" needs a client that is connected to a cluster, and {state}. Make one before: '
            "client = distributed.Client() for this machine, or distributed.Client(address) for a cluster.",
        )
    if client.asynchronous:
        raise errors.EngineError('engine="dask" needs a client that was made without asynchronous=True.')


# --- who is told when a worker process is gone --------------------------------------------------------------


class _Watchers:
    """Whom to tell, by client and address; a client can have one function only that listens to an address."""

    def __init__(self) -> None:
        self._lock = _locks.Lock()
        self._all: weakref.WeakKeyDictionary[Any, dict[str, list[Callable[[], None]]]] = weakref.WeakKeyDictionary()

    def least_used(self, client: Any, addresses: Sequence[str]) -> str:
        """Return the worker process in which the fewest slots of all executors are."""
        with self._lock:
            used = self._all.get(client, {})
            return min(addresses, key=lambda address: len(used.get(address, ())))

    def add(self, client: Any, address: str, lose: Callable[[], None]) -> None:
        """Have a function called when a process is gone."""
        with self._lock:
            told = self._all.setdefault(client, {}).setdefault(address, [])
            if not told:
                client.subscribe_topic(address, partial(self._note, told))
            told.append(lose)

    def remove(self, client: Any, address: str, lose: Callable[[], None]) -> None:
        """Undo what `add` did."""
        with self._lock:
            told = self._all.get(client, {}).get(address, [])
            if lose in told:
                told.remove(lose)
            if not told and self._all.get(client, {}).pop(address, None) is not None:
                with contextlib.suppress(Exception):  # the client is closed
                    client.unsubscribe_topic(address)

    @staticmethod
    def _note(told: list[Callable[[], None]], event: tuple[float, Any]) -> None:
        if isinstance(event[1], dict) and event[1].get("action") == "remove-worker":
            for lose in list(told):
                lose()


_watchers = _Watchers()
