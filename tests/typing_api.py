"""What type checkers see of the public names. Only checked (`mypy`), never run or collected."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, assert_type

from joblib_stateful import (
    Failure,
    StatefulExecutor,
    StatefulMap,
    TaskResult,
    WorkerInfo,
    call_worker,
    factory,
    get_worker,
    get_worker_info,
    shutdown,
    stateful_map,
)


class Model:
    """A worker class with arguments."""

    def __init__(self, path: str, device: int = 0) -> None:
        self.path = path

    def __call__(self, item: str) -> list[float]:
        return [float(item)]

    @classmethod
    def from_pretrained(cls, name: str) -> Model:
        return cls(name)


class Plain:
    """A worker class without a constructor."""

    def __call__(self, item: int) -> str:
        return str(item)


class Batched:
    """A worker class that is called with many items at once."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, items: list[str]) -> list[float]:
        return [float(item) for item in items]


def square_all(numbers: Sequence[int]) -> tuple[int, ...]:
    return tuple(number * number for number in numbers)


def square_each(numbers: list[int]) -> Iterator[int]:
    yield from square_all(numbers)


def invert_all(numbers: list[int]) -> list[float | Failure]:
    return [1 / number if number else Failure(ZeroDivisionError()) for number in numbers]


def embed(texts: list[str]) -> Any:
    """Return an array, whose rows have no type."""


def open_batched() -> Batched:
    return Batched("p")


def square(number: int) -> int:
    return number * number


async def square_later(number: int) -> int:
    return number * number


class LaterSquarer:
    async def __call__(self, number: int) -> int:
        return number * number


def open_model(path: str) -> Model:
    return Model(path)


def open_square() -> Callable[[int], int]:
    return square


# --- what is yielded ------------------------------------------------------------------------------------

assert_type(stateful_map(Model, ["1"]), StatefulMap[list[float]])
assert_type(stateful_map(Plain, [1]), StatefulMap[str])
assert_type(stateful_map(square, [1]), StatefulMap[int])
assert_type(stateful_map(lambda item: str(item), [1]), StatefulMap[str])  # noqa: PLW0108 - a lambda is the point
assert_type(stateful_map(Model("p"), ["1"]), StatefulMap[list[float]])
assert_type(stateful_map(len, ["a"]), StatefulMap[int])
assert_type(stateful_map(factory(open_model), ["1"]), StatefulMap[list[float]])
assert_type(stateful_map(factory(open_square), [1]), StatefulMap[int])
assert_type(stateful_map(factory(Model.from_pretrained), ["1"]), StatefulMap[list[float]])
assert_type(stateful_map(factory(Model), ["1"]), StatefulMap[list[float]])
assert_type(stateful_map(partial(Model, "p"), ["1"]), StatefulMap[list[float]])
assert_type(stateful_map(partial(square), [1]), StatefulMap[int])
assert_type(stateful_map(StatefulExecutor(Model), ["1"]), StatefulMap[Any])

# --- async workers --------------------------------------------------------------------------------------

assert_type(stateful_map(square_later, [1], max_concurrency=20), StatefulMap[int])
assert_type(stateful_map(LaterSquarer, [1]), StatefulMap[int])
assert_type(stateful_map(LaterSquarer, [1], on_error="deferred"), StatefulMap[TaskResult[int]])

# --- policies -------------------------------------------------------------------------------------------

assert_type(stateful_map(Model, ["1"], on_error="immediate"), StatefulMap[list[float]])
assert_type(stateful_map(Model, ["1"], on_error="wait_others"), StatefulMap[list[float]])
assert_type(stateful_map(Model, ["1"], on_error="deferred"), StatefulMap[TaskResult[list[float]]])
assert_type(stateful_map(square, [1], on_error="deferred"), StatefulMap[TaskResult[int]])
assert_type(stateful_map(factory(open_model), [1], on_error="deferred"), StatefulMap[TaskResult[list[float]]])
assert_type(stateful_map(partial(Model, "p"), [1], on_error="deferred"), StatefulMap[TaskResult[list[float]]])
assert_type(stateful_map(StatefulExecutor(Model), [1], on_error="deferred"), StatefulMap[TaskResult[Any]])

# --- calls with many items ------------------------------------------------------------------------------

assert_type(stateful_map(Batched, ["1"], pass_as="batch"), StatefulMap[float])
assert_type(stateful_map(partial(Batched, "p"), ["1"], pass_as="batch"), StatefulMap[float])
assert_type(stateful_map(factory(open_batched), ["1"], pass_as="batch"), StatefulMap[float])
assert_type(stateful_map(Batched("p"), ["1"], pass_as="batch"), StatefulMap[float])
assert_type(stateful_map(square_all, [1], pass_as="batch"), StatefulMap[int])
assert_type(stateful_map(square_each, [1], pass_as="batch"), StatefulMap[int])
assert_type(stateful_map(invert_all, [1], pass_as="batch"), StatefulMap[float])
assert_type(stateful_map(embed, ["a"], pass_as="batch"), StatefulMap[Any])
assert_type(stateful_map(StatefulExecutor(Batched), ["1"], pass_as="batch"), StatefulMap[Any])
assert_type(stateful_map(Batched, ["1"], pass_as="batch", on_error="deferred"), StatefulMap[TaskResult[float]])
assert_type(stateful_map(invert_all, [1], pass_as="batch", on_error="deferred"), StatefulMap[TaskResult[float]])
assert_type(stateful_map(square_all, [1], pass_as="batch", batch_size=8, isolate=False), StatefulMap[int])
stateful_map(square, [1], pass_as="batch")  # type: ignore[call-overload]  # one result for all
Failure("zero")  # type: ignore[arg-type]  # no exception

# --- iterating ------------------------------------------------------------------------------------------

assert_type(list(stateful_map(Model, ["1"])), list[list[float]])
assert_type(next(stateful_map(square, [1])), int)
assert_type(len(stateful_map(square, [1])), int)
iterator: Iterator[int] = stateful_map(square, [1])
iterable: Iterable[int] = stateful_map(square, [1])
with stateful_map(Model, ["1"]) as results:
    assert_type(results, StatefulMap[list[float]])
    for result in results:
        assert_type(result, list[float])
for task in stateful_map(square, [1], on_error="deferred"):
    assert_type(task, TaskResult[int])
    assert_type(task.index, int)
    assert_type(task.value, int | None)
    assert_type(task.exception, BaseException | None)
    assert_type(task.ok, bool)
    assert_type(task.unwrap(), int)

# --- arguments ------------------------------------------------------------------------------------------


class Bar:
    """What a tqdm bar is like."""

    def update(self, n: float | None = 1) -> bool | None: ...

    def close(self) -> None: ...


def note(n: int) -> None: ...


everything = stateful_map(
    Model,
    (str(number) for number in range(3)),
    n_jobs=2,
    shared_kwargs={"path": "p"},
    worker_kwargs=[{"device": 0}, {"device": 1}],
    worker_env=[{"A": "0"}, {"A": "1"}],
    pass_as="item",
    ordered=False,
    on_error="wait_others",
    batch_size="auto",
    buffer=10,
    item_timeout=1.5,
    init_timeout=60,
    retries=1,
    max_restarts=3,
    inner_max_num_threads=1,
    progress=True,
    total=3,
    engine="loky",
)
assert_type(everything, StatefulMap[list[float]])
assert_type(stateful_map(square, [1]).report().input, float)
stateful_map(square, [1], progress=note)
stateful_map(square, [1], progress=Bar())
stateful_map(square, [1], progress=Bar)
stateful_map(square, [1], progress={"desc": "d"})
stateful_map(square, [1], progress=None)

# --- what is wrong --------------------------------------------------------------------------------------

stateful_map(square, [1], pass_as="star")  # type: ignore[call-overload]  # an unknown word
stateful_map(square, [1], on_error="raise")  # type: ignore[call-overload]  # an unknown word
stateful_map(square, 3)  # type: ignore[call-overload]  # no iterable
stateful_map(3, [1])  # type: ignore[call-overload]  # no worker
stateful_map(square, [1], buffer="all")  # type: ignore[call-overload]  # an unknown word
stateful_map(square, [1], chunk_size=1)  # type: ignore[call-overload]  # an unknown option

# --- the rest -------------------------------------------------------------------------------------------

with StatefulExecutor(Model, 2, shared_kwargs={"path": "p"}) as executor:
    assert_type(executor, StatefulExecutor)
    assert_type(executor.submit(square, 2).result(), int)
    assert_type(executor.workers(), list[WorkerInfo])
    assert_type(executor.report().busy, float)
    assert_type(executor.report().input, float | None)
    assert_type(executor.submit(square_later, 2).result(), int)
    assert_type(executor.run_on_all(square_later, 2), list[int | None])
    executor.submit(square, "two")  # type: ignore[call-overload]  # checked like a call
assert_type(get_worker_info(), WorkerInfo)
assert_type(get_worker(), Any)
assert_type(call_worker("1"), Any)
assert_type(TaskResult(0, 1).unwrap(), int)
shutdown()
