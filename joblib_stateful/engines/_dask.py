"""The engine ``"dask"``: one Dask worker process per slot, on a cluster or on this machine.

Each slot's object lives in a Dask actor, and Dask's scheduler finds out when the actor's process is gone. No cluster is ever started: make a `distributed.Client` before.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import queue
import signal
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import distributed

from .. import errors
from .._records import Finish, Finished
from .._sharing import Stored
from .._transport import PROTOCOL
from ._base import Engine
from ._buffers import Handle, with_buffers
from ._remote import Host, RemoteWorker

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .._records import Death, Message, Reply
    from .._sharing import Blob
    from .._transport import Transport

_log = logging.getLogger("joblib_stateful")

# How often to look whether the client and the worker are still there, besides being told so.
_LOOK_SECONDS = 5.0
# How long the end of a process may take until the news of it is here, and a restart by Dask.
_DEATH_SECONDS, _RESTART_SECONDS = 2.0, 30.0


class DaskWorker(RemoteWorker):
    """One life of one slot, in a Dask worker process that it shares with no other slot of its executor."""

    def __init__(self, seats: _Seats, slot: int) -> None:
        super().__init__()
        self._seats, self._slot = seats, slot
        self._address: str | None = None
        self._seat: str | None = None  # the same, until it is given back
        self._future: Any = None  # of the actor; it lives as long as this does
        self._room: Any = None  # the actor
        # What happens to the present task: "done" or "lost".
        self._events: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._gone = threading.Event()  # the process
        self._is_idle = True

    def exchange(self, message: Message) -> Reply | Death:
        """Have the worker process answer."""
        if self._address is None:
            if isinstance(message, Finish):
                return Finished(message.seq, None)
            self._address = self._seat = self._seats.take(self, self._slot)
        self._is_idle = False
        reply: Reply = self._ask(self._seats.engine.client(), message)
        self._is_idle = True
        return reply

    def end(self) -> None:
        """Leave the process, or have it killed and started again if it is busy with something of ours."""
        address, self._seat = self._seat, None
        if address is None:
            return
        room, self._room, self._future = self._room, None, None
        if room is None or self._is_idle or self._gone.is_set():
            self._seats.leave(self, address)
        else:  # it takes seconds until the new process is there
            threading.Thread(
                target=self._restart, args=(address, room), name="joblib_stateful-restart", daemon=True
            ).start()

    def explain(self) -> str:
        """Say that no process is free."""
        return "" if self._address is not None else self._seats.why_none_is_free(self._slot)

    def lose(self) -> None:
        """Learn that the process is gone, or that Dask has given it up."""
        self._gone.set()
        self._events.put("lost")

    def _restart(self, address: str, room: Any) -> None:
        try:
            client = self._seats.engine.client()
            if self.was_killed:
                room.die()  # Dask's own way asks first, and takes four seconds over it
            if not self._gone.wait(_DEATH_SECONDS):
                # Where no nanny is there to start it again, or the cluster is closed, it is left to itself.
                client.restart_workers([address], timeout=_RESTART_SECONDS, raise_for_error=False)
        except Exception as error:  # noqa: BLE001 - see above
            _log.debug("The worker process at %s could not be restarted: %r", address, error)
        finally:
            self._seats.leave(self, address)

    def _ask(self, client: Any, message: Message) -> Any:
        if self._room is None:
            # An actor, whose messages go past the scheduler: 1,200 a second instead of 120 as tasks.
            self._future = client.submit(
                _Room,
                self._seats.transport,
                key=f"joblib_stateful-slot-{self._slot}-{uuid.uuid4().hex}",
                workers=[self._address],
                allow_other_workers=False,
                actor=True,
                pure=False,
                retries=0,
                resources=self._seats.engine.resources,
            )
            self._future.add_done_callback(lambda _: self._events.put("done"))
            self._wait()
            with client.as_current():  # or the actor would ask another client of this process
                self._room = self._future.result()
        stored = with_buffers(message, partial(self._scatter, client))
        answer = self._room.serve(pickle.dumps(stored, PROTOCOL))

        async def wait() -> None:
            with contextlib.suppress(Exception):  # it is raised where the answer is asked for
                await answer
            self._events.put("done")

        client.loop.add_callback(wait)
        self._wait()
        return answer.result()

    def _scatter(self, client: Any, blob: Blob) -> Handle:
        """Lay a buffer into the worker process, once: it stays as long as the blob."""
        place = id(client), self._address
        future = blob.handles.get(place)
        if future is None:
            future = blob.handles[place] = client.scatter(blob.data, workers=[self._address], hash=False)
        return Handle(future.key, blob.mode)

    def _wait(self) -> None:
        while not self._gone.is_set():
            try:
                event = self._events.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                self._seats.engine.look_for(self._address)
                continue
            if event == "done":
                return
        raise ConnectionError(f"Dask's scheduler has lost the worker process at {self._address}")


class _Seats(Engine):
    """The worker processes in which one executor's slots are: each slot in one of its own."""

    name: ClassVar[str] = "dask"
    has_processes: ClassVar[bool] = True
    is_remote: ClassVar[bool] = True

    def __init__(self, engine: DaskEngine, n_slots: int) -> None:
        self.engine, self.transport, self._n_slots = engine, engine.transport, n_slots
        self._lock = threading.Lock()
        self._taken: dict[str, DaskWorker] = {}

    def open(self, slot: int, env: Mapping[str, str]) -> DaskWorker:  # noqa: ARG002 - refused before
        """Return a worker for a slot."""
        return DaskWorker(self, slot)

    def check(self) -> None:
        """Refuse to go on without a client."""
        self.engine.check()

    def take(self, worker: DaskWorker, slot: int) -> str:
        """Wait for a worker process in which no other slot is, and return its address."""
        deadline = time.monotonic() + self.engine.worker_timeout
        while not worker.is_gone:
            self.engine.check()
            with self._lock:
                free = [address for address in self.engine.addresses() if address not in self._taken]
                if free:
                    address = self.engine.least_used(free)
                    self._taken[address] = worker
                    self.engine.enter(address, worker)
                    return address
            if time.monotonic() > deadline:
                raise errors.EngineError(
                    f"{self.why_none_is_free(slot)}, for {self.engine.worker_timeout:g} s. Start more worker processes, "
                    "use fewer slots (n_jobs), or wait longer: engine=DaskEngine(worker_timeout=...).",
                )
            time.sleep(0.1)  # Dask tells nobody of processes that come
        raise errors.EngineError("it was given up")

    def leave(self, worker: DaskWorker, address: str) -> None:
        """Have others use a worker process."""
        with self._lock:
            if self._taken.get(address) is worker:
                del self._taken[address]
        self.engine.leave(address, worker)

    def why_none_is_free(self, slot: int) -> str:
        """Say what the cluster has, and what is asked of it."""
        n_there = len(self.engine.addresses())
        return f"slot {slot} of {self._n_slots} found no Dask worker process of its own: the cluster has {n_there}"


class DaskEngine(Engine):
    """Opens workers in the worker processes of a Dask cluster, one slot in each.

    Parameters
    ----------
    client : distributed.Client, optional
        The cluster's client. By default the one that is active when the workers are started.
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
        self.transport = Stored()
        self.resources = None if resources is None else dict(resources)
        self.worker_timeout = worker_timeout
        self._client = client
        self._only = None if workers is None else set(workers)
        self._lock = threading.Lock()
        self._used: Counter[str] = Counter()

    def open(self, slot: int, env: Mapping[str, str]) -> DaskWorker:
        """Return a worker for the only slot of an executor."""
        return _Seats(self, 1).open(slot, env)

    def for_slots(self, n_slots: int) -> Engine:
        """Return an engine whose slots are in different processes."""
        return _Seats(self, n_slots)

    def check(self) -> None:
        """Refuse to start a cluster."""
        self.client()

    def default_n_jobs(self) -> int:
        """Return how many worker processes there are."""
        return max(len(self.addresses()), 1)

    def client(self) -> Any:
        """Return the client; raises `EngineError` if there is none that is connected."""
        client = self._client
        if client is None:
            with contextlib.suppress(ValueError):
                client = distributed.default_client()
        if client is None or client.status != "running":
            state = "there is none in this process" if client is None else f"this one is {client.status}"
            raise errors.EngineError(
                f'engine="dask" needs a client that is connected to a cluster, and {state}. Make one before: '
                "client = distributed.Client() for this machine, or distributed.Client(address) for a cluster.",
            )
        if client.asynchronous:
            raise errors.EngineError('engine="dask" needs a client that was made without asynchronous=True.')
        return client

    def addresses(self) -> list[str]:
        """Return the worker processes that there are at the moment and that may be used."""
        try:
            there = self.client().scheduler_info(n_workers=-1)["workers"]
        except (OSError, errors.EngineError):
            return []
        return [address for address in there if self._only is None or address in self._only]

    def look_for(self, address: str | None) -> None:
        """Raise ConnectionError if a worker process is not there any more."""
        self.client()
        if address not in self.addresses():
            raise ConnectionError(f"Dask's scheduler knows no worker process at {address} any more")

    def least_used(self, addresses: Sequence[str]) -> str:
        """Return the worker process in which the fewest slots of all executors are."""
        with self._lock:
            return min(addresses, key=self._used.__getitem__)

    def enter(self, address: str, worker: DaskWorker) -> None:
        """Have a worker told when its process is gone."""
        with self._lock:
            self._used[address] += 1
        _watch(self.client(), address, worker.lose)

    def leave(self, address: str, worker: DaskWorker) -> None:
        """Undo what `enter` did."""
        with self._lock:
            self._used[address] -= 1
        with contextlib.suppress(errors.EngineError):
            _unwatch(self.client(), address, worker.lose)


engine_class = DaskEngine


# --- who is told when a worker process is gone --------------------------------------------------------------

_watchers: dict[tuple[int, str], list[Callable[[], None]]] = {}
_watchers_lock = threading.Lock()


def _watch(client: Any, address: str, lose: Callable[[], None]) -> None:
    key = id(client), address
    with _watchers_lock:
        first = key not in _watchers
        _watchers.setdefault(key, []).append(lose)

    def note(event: tuple[float, Any]) -> None:
        if isinstance(event[1], dict) and event[1].get("action") == "remove-worker":
            for tell in list(_watchers.get(key, ())):
                tell()

    if first:
        client.subscribe_topic(address, note)


def _unwatch(client: Any, address: str, lose: Callable[[], None]) -> None:
    key = id(client), address
    with _watchers_lock:
        left = _watchers.get(key, [])
        if lose in left:
            left.remove(lose)
        if left or _watchers.pop(key, None) is None:
            return
    with contextlib.suppress(ValueError):
        client.unsubscribe_topic(address)


# --- in the worker process ----------------------------------------------------------------------------------


class _Room:
    """The actor: a slot's object and the thread that it is used in.

    Not Dask's thread for actors, of which there is one for all that are in a process, whosever they are.
    """

    def __init__(self, transport: Transport) -> None:
        self._host = Host(transport, is_process=False)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="joblib_stateful-slot")

    async def serve(self, packed: bytes) -> Reply:
        """Answer a message."""
        stored = distributed.get_worker().data
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._serve, packed, stored)

    async def die(self) -> None:
        """End this process, if somebody is there who starts it again."""
        if distributed.get_worker().nanny and hasattr(signal, "SIGKILL"):
            os.kill(os.getpid(), signal.SIGKILL)

    def _serve(self, packed: bytes, stored: Mapping[Any, Any]) -> Reply:
        message: Message = pickle.loads(packed)
        reply = self._host.serve(with_buffers(message, lambda handle: handle.used(stored[handle.key])))
        if isinstance(message, Finish):
            self._thread.shutdown(wait=False)
        return reply
