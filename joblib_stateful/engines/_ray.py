"""The engine ``"ray"``: one Ray actor per slot, on a cluster or on this machine.

Ray places the actors, starts their processes, carries the messages and finds out when one dies; slots, retries, limits
and order are those of every engine. Nothing is ever connected or started by itself: call `ray.init` before.
"""

from __future__ import annotations

import concurrent.futures
import pickle
import time
from typing import TYPE_CHECKING, Any, ClassVar

import ray

from .. import errors
from .._transport._shared_memory import Stored
from .._worker._messages import Death, Finish, Finished, Run
from ._base import Engine, Runtime
from ._buffers import Handle, with_buffers
from ._remote import Host, RemoteWorker

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .._transport._stores import Blob
    from .._transport._transport import Transport
    from .._worker._messages import Message, Refused, Reply

# How often a message under way looks whether the connection is still there: where it is closed meanwhile, Ray wakes nobody.
_LOOK_SECONDS = 2.0
# Ray may keep what an actor asks for as long as the connection lasts, if that is killed while its process is just there and has
# not been told what it is for (2.60). So it is made first. One that takes so long (a second is usual) waits for a place.
_MAKING_SECONDS = 3.0
_CLOSED = "it belonged to a connection to Ray that has been closed"


class _FarEnd:
    """What an actor is; not `Host` itself, because Ray changes the methods."""

    def __init__(self, transport: Transport, n_lanes: int) -> None:
        self._host = Host(transport, is_process=True, n_lanes=n_lanes)

    def serve(self, message: Message) -> Reply | Refused:
        try:
            # Arrays are mapped from Ray's store, not copied.
            message = with_buffers(message, lambda handle: handle.used(ray.get(handle.key)))
        except MemoryError:
            return self._host.refuse(message.seq, message.after if isinstance(message, Run) else 0)
        return self._host.serve(message)


_Actor: Any = ray.remote(_FarEnd)


def _session() -> str:
    """Return what tells this connection from others: each cluster numbers its jobs from 1, and no other has its node."""
    context = ray.get_runtime_context()
    return f"ray {context.get_node_id()} {context.get_job_id()}"


def _put(blob: Blob) -> Handle:
    """Put a buffer into Ray's store, once: it stays as long as the blob."""
    session = _session()
    with blob.lock:
        reference = blob.handles.get(session)
        if reference is None:
            reference = blob.handles[session] = ray.put(pickle.PickleBuffer(blob.data))
    return Handle(reference, blob.mode)


class RayWorker(RemoteWorker):
    """One actor."""

    def __init__(self, runtime: RayRuntime, env: Mapping[str, str]) -> None:
        super().__init__(runtime.max_concurrency)
        self._runtime, self._env = runtime, dict(env)
        self._actor: Any = None
        self._asked = 0.0  # when Ray was asked for it
        self._is_made = False  # by Ray, which has found a place for it
        self._session = ""

    def exchange(self, message: Message) -> Reply | Refused | Death:
        """Have the actor answer; it is made with the first message."""
        if self._actor is None and isinstance(message, Finish):
            return Finished(message.seq, None)
        self._runtime.engine.check()  # or Ray would start a cluster of its own
        if self._actor is None:
            self._session = _session()
            self._asked = time.monotonic()
            self._actor = self._runtime.make_actor(self._env)
            died = self._wait(self._actor.__ray_ready__.remote())
            if isinstance(died, Death):
                return died
            self._is_made = True
            if self.is_gone:  # killed meanwhile: its object must not be built
                raise RuntimeError("it was killed")
        if self._session != _session():
            return Death(self.pid, reason=_CLOSED)
        stored = with_buffers(message, _put)
        self.begin(message)  # it has not waited for its data, nor for its actor
        reply: Reply | Refused | Death = self._wait(self._actor.serve.remote(stored))
        return reply

    def end(self) -> None:
        """Kill the actor; if Ray may just be making it, whoever waits for that does it in a moment."""
        is_waiting = self._actor is not None and time.monotonic() > self._asked + _MAKING_SECONDS
        if (self._is_made or is_waiting) and ray.is_initialized():
            ray.kill(self._actor)

    def explain(self) -> str:
        """Say what it asks for and what there is, as long as Ray has not placed it."""
        return "" if self._is_made else self._runtime.why_not_scheduled()

    def _wait(self, answer: Any) -> Any:
        """Return what Ray is asked for; a `Death` if the connection is closed meanwhile.

        A thread that is in `ray.get` then never comes back, whatever its time limit. What is asked of an actor that is killed raises.
        """
        future = answer.future()
        while not concurrent.futures.wait([future], _LOOK_SECONDS).done:
            if not ray.is_initialized() or self._session != _session():
                return Death(self.pid, reason=_CLOSED)
            if self.is_gone:
                self.end()
        return future.result()


class RayRuntime(Runtime):
    """Opens actors.

    Parameters
    ----------
    engine : RayEngine
        Says what they ask Ray for.
    """

    transport = Stored()
    engine: RayEngine

    def open(self, slot: int, env: Mapping[str, str]) -> RayWorker:  # noqa: ARG002 - only env tells slots apart
        """Return a worker for a slot."""
        return RayWorker(self, env)

    def lacks_room(self) -> bool:
        """Tell whether Ray has no place for another actor just now, on the cluster as a whole."""
        if not ray.is_initialized():
            return False
        free = ray.available_resources()
        return any(free.get(name, 0) < amount for name, amount in self.engine.wanted().items())

    def make_actor(self, env: Mapping[str, str]) -> Any:
        """Return a new actor, which Ray may have to find a place for."""
        n_lanes = self.max_concurrency
        return _Actor.options(**self.engine.options_for(env, n_lanes)).remote(self.transport, n_lanes)

    def why_not_scheduled(self) -> str:
        """Say what an actor asks for, and what the cluster has."""
        if not ray.is_initialized():
            return "the connection to Ray is closed"
        wanted = self.engine.wanted()
        has, free = ray.cluster_resources(), ray.available_resources()
        asked = ", ".join(f"{amount:g} {name}" for name, amount in wanted.items() if amount) or "nothing"
        there = ", ".join(f"{free.get(name, 0):g} of {has.get(name, 0):g} {name}" for name in wanted)
        return f"Ray found no place for its actor, which asks for {asked}; free are {there}"


class RayEngine(Engine):
    """Workers that are Ray actors.

    Parameters
    ----------
    num_cpus : float, default 1
        CPUs that each actor asks Ray for.
    num_gpus : float, optional
        GPUs that each actor asks for; Ray sets ``CUDA_VISIBLE_DEVICES`` in it.
    resources : dict, optional
        Other resources that each actor asks for.
    runtime_env : dict, optional
        Ray's runtime environment of the actors; a slot's ``worker_env`` is laid over its ``env_vars``.
    max_restarts : int, default 0
        How often Ray restarts an actor by itself. An actor that Ray has restarted has lost its object, and is given up
        with the next message, so leave it to the ``max_restarts`` of the map.
    **actor_options
        Any other option of an actor, as `ray.actor.ActorClass.options` takes them (``scheduling_strategy``,
        ``label_selector``, ``memory``, ...).

    Raises
    ------
    ValueError, TypeError
        Ray doesn't know an option, or not that value.

    Examples
    --------
    >>> import ray
    >>> from joblib_stateful import stateful_map
    >>> _ = ray.init(num_cpus=2, include_dashboard=False)  # doctest: +SKIP
    >>> list(stateful_map(abs, [-1, -2], engine=RayEngine(num_cpus=0.5), n_jobs=2))  # doctest: +SKIP
    [1, 2]
    """

    name: ClassVar[str] = "ray"
    has_processes: ClassVar[bool] = True
    takes_env: ClassVar[bool] = True
    is_remote: ClassVar[bool] = True
    is_concurrent: ClassVar[bool] = True

    def __init__(
        self,
        *,
        num_cpus: float = 1,
        num_gpus: float | None = None,
        resources: Mapping[str, float] | None = None,
        runtime_env: Mapping[str, Any] | None = None,
        max_restarts: int = 0,
        **actor_options: Any,
    ) -> None:
        self._runtime_env = dict(runtime_env or {})
        self._options = {
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "resources": None if resources is None else dict(resources),
            "max_restarts": max_restarts,
            **actor_options,
        }
        _Actor.options(**self.options_for({}))  # which checks them

    def make_runtime(self, n_slots: int) -> RayRuntime:  # noqa: ARG002 - Ray finds places for as many as there are
        """Return a runtime."""
        return RayRuntime(self)

    def check(self) -> None:
        """Refuse to start a cluster."""
        if not ray.is_initialized():
            raise errors.EngineError(
                'engine="ray" needs a connection to Ray, and there is none in this process. Call ray.init() for this '
                "machine, or ray.init(address=...) for a cluster, before.",
            )

    def session(self) -> str:
        """Return Ray's number of this connection."""
        self.check()
        return _session()

    def default_n_jobs(self) -> int:
        """Return how many of its actors fit on the cluster, if that were one machine."""
        self.check()
        has = ray.cluster_resources()
        # Not //, by which 2 / 0.1 is 19.
        fits = [int(has.get(name, 0) / amount + 1e-9) for name, amount in self.wanted().items() if amount]
        return max(min(fits, default=1), 1)

    def options_for(self, env: Mapping[str, str], n_lanes: int = 1) -> dict[str, Any]:
        """Return the options of an actor with these environment variables, for so many messages at a time."""
        runtime_env = dict(self._runtime_env)
        if env:
            runtime_env["env_vars"] = {**runtime_env.get("env_vars", {}), **env}
        options = {**self._options, "runtime_env": runtime_env or None}
        if n_lanes > 1:  # a thread for each; users may want more for whatever reason of theirs
            options["max_concurrency"] = max(n_lanes, options.get("max_concurrency") or 1)
        return options

    def wanted(self) -> dict[str, float]:
        """Return what each actor asks for."""
        own = self._options
        return {"CPU": own["num_cpus"] or 0, "GPU": own["num_gpus"] or 0, **(own["resources"] or {})}


engine_class = RayEngine
