"""Peers behind one face: two workers, each with an object that was built from kwargs, called with items.

What a peer has no way of its own for is done as its users do it: objects are kept in a global that an initializer
sets, or that is built when it is first asked for; unordered results of an executor come by `as_completed`. Peers that
keep no pool start one in each call.
"""

import concurrent.futures
import importlib.util
import itertools
import multiprocessing
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, ClassVar

N_JOBS = 2

_kept: dict[Any, Any] = {}


def _set_up(build: Callable[..., Any], kwargs: dict[str, Any]) -> None:
    _kept["object"] = build(**kwargs)


def _call(item: Any) -> Any:
    return _kept["object"](item)


def _build_and_call(build: Callable[..., Any], kwargs: dict[str, Any], item: Any) -> Any:
    if build not in _kept:
        _kept[build] = build(**kwargs)
    return _kept[build](item)


class Peer(ABC):
    """A pool of two workers.

    Parameters
    ----------
    build : callable
        Makes an object from the kwargs, and that is called with the items.
    kwargs : dict
        What it is made from.
    """

    name: ClassVar[str]
    needs: ClassVar[str] = ""  # a package
    keeps: ClassVar[bool] = True  # workers live on from call to call
    orders: ClassVar[tuple[bool, ...]] = (True, False)
    has_unordered_batches: ClassVar[bool] = True  # their size matters also where order does not
    is_limit: ClassVar[bool] = False  # not a peer, but what two processes can do at all
    # Of one that has no batches: its own default, and perhaps how many items may be under way.
    own_settings: ClassVar[tuple[int | None, ...]] = ()

    def __init__(self, build: Callable[..., Any], kwargs: dict[str, Any]) -> None:
        self.build, self.kwargs = build, kwargs

    @abstractmethod
    def map(self, items: Iterable[Any], *, ordered: bool, chunk: int | None) -> Iterator[Any]:
        """Yield the results."""

    def close(self) -> None:  # noqa: B027 - some have nothing to end
        """End the workers."""

    @classmethod
    def settings(cls, sizes: tuple[int, ...]) -> tuple[int | None, ...]:
        """Return what is tried, of sizes of batches; None is the peer's own default."""
        return cls.own_settings or sizes

    @classmethod
    def is_there(cls) -> bool:
        return not cls.needs or importlib.util.find_spec(cls.needs) is not None


class Ours(Peer):
    name = "joblib_stateful"
    needs = "joblib_stateful"

    own_settings = (None,)

    def map(self, items: Iterable[Any], *, ordered: bool, chunk: int | None) -> Iterator[Any]:
        from joblib_stateful import stateful_map

        return stateful_map(
            self.build,
            items,
            n_jobs=N_JOBS,
            shared_kwargs=self.kwargs,
            ordered=ordered,
            batch_size="auto" if chunk is None else chunk,
        )

    def close(self) -> None:
        from joblib_stateful import shutdown

        shutdown()


class Pool(Peer):
    name = "multiprocessing.Pool"
    method: ClassVar[str | None] = None

    def __init__(self, build: Callable[..., Any], kwargs: dict[str, Any]) -> None:
        super().__init__(build, kwargs)
        self.pool = multiprocessing.get_context(self.method).Pool(N_JOBS, _set_up, (build, kwargs))

    def map(self, items: Iterable[Any], *, ordered: bool, chunk: int | None) -> Iterator[Any]:
        imap = self.pool.imap if ordered else self.pool.imap_unordered
        return imap(_call, items, chunk or 1)

    def close(self) -> None:
        self.pool.terminate()
        self.pool.join()


class SpawnedPool(Pool):
    name = "multiprocessing.Pool (spawn)"
    method = "spawn"


class ProcessPool(Peer):
    name = "ProcessPoolExecutor"
    has_unordered_batches = False

    def __init__(self, build: Callable[..., Any], kwargs: dict[str, Any]) -> None:
        super().__init__(build, kwargs)
        self.pool: Any = self.make_pool()

    def make_pool(self) -> Any:
        return concurrent.futures.ProcessPoolExecutor(N_JOBS, initializer=_set_up, initargs=(self.build, self.kwargs))

    def map(self, items: Iterable[Any], *, ordered: bool, chunk: int | None) -> Iterator[Any]:
        if ordered:
            yield from self.pool.map(_call, items, chunksize=chunk or 1)
        else:
            futures = [self.pool.submit(_call, item) for item in items]
            for future in concurrent.futures.as_completed(futures):
                yield future.result()

    def close(self) -> None:
        self.pool.shutdown()


class Loky(ProcessPool):
    name = "loky"
    needs = "loky"

    def make_pool(self) -> Any:
        import loky

        return loky.get_reusable_executor(N_JOBS, initializer=_set_up, initargs=(self.build, self.kwargs))


class Joblib(Peer):
    name = "joblib"
    needs = "joblib"

    @classmethod
    def settings(cls, sizes: tuple[int, ...]) -> tuple[int | None, ...]:
        return sizes if sizes == (1,) else (None, *sizes)

    def map(self, items: Iterable[Any], *, ordered: bool, chunk: int | None) -> Iterator[Any]:
        from joblib import Parallel, delayed

        parallel = Parallel(
            n_jobs=N_JOBS,
            backend="loky",
            return_as="generator" if ordered else "generator_unordered",
            batch_size=chunk or "auto",
            pre_dispatch=f"{2 * (chunk or 1)}*n_jobs",
        )
        return parallel(delayed(_build_and_call)(self.build, self.kwargs, item) for item in items)  # type: ignore[no-any-return]


def _set_up_state(build: Callable[..., Any], kwargs: dict[str, Any], state: dict[str, Any]) -> None:
    state["object"] = build(**kwargs)


def _call_state(state: dict[str, Any], item: Any) -> Any:
    return state["object"](item)


class Mpire(Peer):
    name = "mpire"
    needs = "mpire"

    def __init__(self, build: Callable[..., Any], kwargs: dict[str, Any]) -> None:
        import mpire

        super().__init__(build, kwargs)
        self.pool = mpire.WorkerPool(N_JOBS, use_worker_state=True, keep_alive=True)

    def map(self, items: Iterable[Any], *, ordered: bool, chunk: int | None) -> Iterator[Any]:
        imap = self.pool.imap if ordered else self.pool.imap_unordered
        # A tuple or an array would be taken apart into arguments.
        arguments = ((item,) for item in items)
        set_up = partial(_set_up_state, self.build, self.kwargs)
        found: Iterator[Any] = imap(_call_state, arguments, chunk_size=chunk or 1, worker_init=set_up)
        return found

    def close(self) -> None:
        self.pool.terminate()


class Pqdm(Peer):
    name = "pqdm"
    needs = "pqdm"
    keeps = False
    orders = (True,)
    own_settings = (None,)

    def map(self, items: Iterable[Any], *, ordered: bool, chunk: int | None) -> Iterator[Any]:  # noqa: ARG002 - it has none
        from pqdm.processes import pqdm

        return iter(pqdm(items, partial(_build_and_call, self.build, self.kwargs), n_jobs=N_JOBS, disable=True))


class Mtasklite(Peer):
    name = "mtasklite"
    needs = "mtasklite"
    keeps = False
    own_settings = (None, 1000)

    def map(self, items: Iterable[Any], *, ordered: bool, chunk: int | None) -> Iterator[Any]:
        from mtasklite import Pool
        from mtasklite.delayed_init import ShellObject

        workers = [ShellObject(self.build, **self.kwargs) for _ in range(N_JOBS)]
        with Pool(workers, N_JOBS, is_unordered=not ordered, chunk_size=chunk) as pool:
            yield from pool(items)


class PyStatefulMap(Peer):
    name = "py_stateful_map"
    needs = "py_stateful_map"
    keeps = False
    own_settings = (None, 1000)

    def map(self, items: Iterable[Any], *, ordered: bool, chunk: int | None) -> Iterator[Any]:
        from py_stateful_map import StateFullWorkerPool

        build, kwargs = self.build, self.kwargs
        with StateFullWorkerPool(N_JOBS, build, kwargs, **({"chunk_size": chunk} if chunk else {})) as pool:
            for result in pool.map(items, is_unordered=not ordered):
                yield result.ret_val


class Pebble(Peer):
    name = "pebble"
    needs = "pebble"
    orders = (True,)

    def __init__(self, build: Callable[..., Any], kwargs: dict[str, Any]) -> None:
        import pebble

        super().__init__(build, kwargs)
        self.pool = pebble.ProcessPool(N_JOBS, initializer=_set_up, initargs=(build, kwargs))

    def map(self, items: Iterable[Any], *, ordered: bool, chunk: int | None) -> Iterator[Any]:  # noqa: ARG002 - ordered only
        found: Iterator[Any] = self.pool.map(_call, items, chunksize=chunk or 1).result()
        return found

    def close(self) -> None:
        self.pool.stop()
        self.pool.join()


class TwoProcesses(Peer):
    """Two processes with half of the items each, and nothing in between: what the machine gives at that time.

    Items that are to take so many microseconds are shared out by that, which nobody else knows beforehand.
    """

    name = "two processes"
    is_limit = True
    own_settings = (None,)

    def __init__(self, build: Callable[..., Any], kwargs: dict[str, Any]) -> None:
        super().__init__(build, kwargs)
        context = multiprocessing.get_context("fork")
        self.ends = []
        for _ in range(N_JOBS):
            ours, theirs = context.Pipe()
            context.Process(target=_serve, args=(theirs, build, kwargs), daemon=True).start()
            self.ends.append(ours)

    def map(self, items: Iterable[Any], *, ordered: bool, chunk: int | None) -> Iterator[Any]:  # noqa: ARG002 - neither
        longest_first = sorted(items, reverse=True)
        for number, end in enumerate(self.ends):
            end.send(longest_first[number::N_JOBS])
        for end in self.ends:
            yield from end.recv()


def _serve(end: Any, build: Callable[..., Any], kwargs: dict[str, Any]) -> None:
    held = build(**kwargs)
    while True:
        end.send([held(item) for item in end.recv()])


class Holder:
    """An actor, for clusters: holds the object, and is called with batches."""

    def __init__(self, build: Callable[..., Any], kwargs: dict[str, Any]) -> None:
        self.held = build(**kwargs)

    def run(self, items: list[Any]) -> list[Any]:
        return [self.held(item) for item in items]


class RayActors(Peer):
    name = "Ray ActorPool"
    needs = "ray"

    def __init__(self, build: Callable[..., Any], kwargs: dict[str, Any]) -> None:
        import ray
        from ray.util import ActorPool

        super().__init__(build, kwargs)
        ray.init(num_cpus=N_JOBS, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        self.pool = ActorPool([ray.remote(Holder).remote(build, kwargs) for _ in range(N_JOBS)])

    def map(self, items: Iterable[Any], *, ordered: bool, chunk: int | None) -> Iterator[Any]:
        run = self.pool.map if ordered else self.pool.map_unordered
        for found in run(lambda actor, batch: actor.run.remote(batch), batches(items, chunk or 1)):
            yield from found

    def close(self) -> None:
        import ray

        ray.shutdown()


class DaskActors(Peer):
    name = "Dask actors"
    needs = "distributed"
    orders = (True,)

    def __init__(self, build: Callable[..., Any], kwargs: dict[str, Any]) -> None:
        from distributed import Client

        super().__init__(build, kwargs)
        self.client = Client(n_workers=N_JOBS, threads_per_worker=1, dashboard_address=None)
        futures = [self.client.submit(Holder, build, kwargs, actor=True, pure=False) for _ in range(N_JOBS)]
        self.actors = [future.result() for future in futures]

    def map(self, items: Iterable[Any], *, ordered: bool, chunk: int | None) -> Iterator[Any]:  # noqa: ARG002 - in turn
        under_way: deque[Any] = deque()
        for actor, batch in zip(itertools.cycle(self.actors), batches(items, chunk or 1), strict=False):
            under_way.append(actor.run(batch))
            if len(under_way) > 2 * N_JOBS:
                yield from under_way.popleft().result()
        for future in under_way:
            yield from future.result()

    def close(self) -> None:
        self.client.shutdown()


def batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


OURS = Ours.name
ALL: tuple[type[Peer], ...] = (
    Ours,
    Pool,
    SpawnedPool,
    ProcessPool,
    Loky,
    Joblib,
    Mpire,
    Pqdm,
    Mtasklite,
    PyStatefulMap,
    Pebble,
    RayActors,
    DaskActors,
    TwoProcesses,
)
BY_NAME = {peer.name: peer for peer in ALL}
