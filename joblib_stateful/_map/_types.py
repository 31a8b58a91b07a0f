"""Types of what `stateful_map` takes, for its overloads."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypedDict, TypeVar

from .._executor._spec import Factory

if TYPE_CHECKING:
    from .. import engines
    from .._executor._thread_limits import InnerThreads
    from ._progress import ProgressLike

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
PassOneAs = Literal["item", "args", "kwargs"]
PassAs = Literal[PassOneAs, "batch"]


class MapOptions(TypedDict, total=False):
    """What `stateful_map` takes whatever it returns, for its overloads."""

    n_jobs: int | None
    shared_kwargs: Mapping[str, Any] | None
    worker_kwargs: Sequence[Mapping[str, Any]] | None
    worker_env: Sequence[Mapping[str, str]] | None
    ordered: bool
    batch_size: int | Literal["auto"]
    buffer: int | Literal["auto"]
    isolate: bool
    route: Callable[[Any], int] | None
    trace: str | os.PathLike[str] | None
    item_timeout: float | None
    init_timeout: float | None
    retries: int
    max_restarts: int
    max_worker_memory: int | str | None
    max_concurrency: int
    inner_max_num_threads: InnerThreads
    progress: ProgressLike
    total: int | None
    engine: str | engines.Engine


class _Object(Protocol[T_co]):
    """What is built in a worker."""

    def __call__(self, *args: Any, **kwargs: Any) -> T_co: ...


class _Partial(Protocol[T_co]):
    """A `functools.partial` of what builds it; that class itself is invariant."""

    @property
    def func(self) -> Callable[..., _Object[T_co]]: ...

    @property
    def keywords(self) -> dict[str, Any]: ...


Builder: TypeAlias = type[_Object[T]] | Factory[_Object[T]] | _Partial[T]
