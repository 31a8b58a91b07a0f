"""`pass_as="batch"`: what a call with several items may return, what its failure costs, and what travels with it."""

from __future__ import annotations

import os
from collections import Counter, UserList, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from joblib_stateful import Failure, StatefulExecutor, TaskResult, call_worker, errors, stateful_map
from joblib_stateful._worker._calls import is_out_of_memory
from scenes import Log, Scene, engines, new_scene, orders, parallel_engines

if TYPE_CHECKING:
    from conftest import BuildLog


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return new_scene(tmp_path)


@pytest.fixture
def calls(scene: Scene) -> Log:
    """Return where workers note what they are called with."""
    return scene.log("calls")


def words(items: Sequence[Any]) -> str:
    return " ".join(map(str, items))


def runs(calls: Log) -> Counter[str]:
    """Return how often each item was run."""
    return Counter(" ".join(calls.lines).split())


def one_call(worker: Any, items: Sequence[Any], engine: Any, **options: Any) -> list[TaskResult[Any]]:
    """Have a single worker called with all items at once; return what became of each."""
    options = {"n_jobs": 1, "batch_size": len(items), "buffer": 100, **options}
    return list(stateful_map(worker, items, pass_as="batch", on_error="deferred", engine=engine, **options))


def values(results: Sequence[TaskResult[Any]]) -> list[Any]:
    return [result.value for result in results]


def failed(results: Sequence[TaskResult[Any]]) -> list[int]:
    return [result.index for result in results if not result.ok]


# --- one result per item --------------------------------------------------------------------------------


class Sized:
    """Is no sequence by its class, and yet like one."""

    def __init__(self, results: list[Any]) -> None:
        self.results = results

    def __len__(self) -> int:
        return len(self.results)

    def __getitem__(self, at: int) -> Any:
        return self.results[at]


@engines
@pytest.mark.parametrize("kind", [list, tuple, deque, UserList, Sized])
def test_a_worker_gets_a_list_and_returns_a_result_for_each_item(engine: str, kind: Any) -> None:
    def double(items: list[int]) -> Any:
        assert type(items) is list
        return kind([item * 2 for item in items])

    found = list(stateful_map(double, range(20), n_jobs=2, pass_as="batch", batch_size=6, engine=engine))
    assert found == [item * 2 for item in range(20)]


@engines
def test_a_generator_function_yields_a_result_for_each_item(engine: str) -> None:
    def double(items: list[int]) -> Iterator[int]:
        for item in items:
            yield item * 2

    found = list(stateful_map(double, range(20), n_jobs=2, pass_as="batch", batch_size=6, engine=engine))
    assert found == [item * 2 for item in range(20)]


class Adds:
    """Is built once, and called with lists."""

    def __init__(self, built: BuildLog, number: int) -> None:
        built.note()
        self.number = number

    def __call__(self, items: list[int]) -> list[int]:
        return [item + self.number for item in items]


@engines
@orders
@pytest.mark.parametrize("batch_size", [1, 7, 1000, "auto"])
def test_every_item_has_its_own_result(*, engine: str, ordered: bool, batch_size: Any, built: BuildLog) -> None:
    options: dict[str, Any] = {"n_jobs": 1, "shared_kwargs": {"built": built, "number": 1}, "engine": engine}
    results = stateful_map(Adds, range(100), pass_as="batch", batch_size=batch_size, ordered=ordered, **options)
    assert len(results) == 100
    found = list(results)
    assert (found if ordered else sorted(found)) == [item + 1 for item in range(100)]
    assert len(built) == 1


@engines
def test_a_call_has_no_more_items_than_was_said(engine: str, calls: Log) -> None:
    def note(items: list[int]) -> list[int]:
        calls.note(words(items))
        return items

    assert list(stateful_map(note, range(20), n_jobs=1, pass_as="batch", batch_size=8, engine=engine)) == [*range(20)]
    assert calls.lines == [words(range(8)), words(range(8, 16)), words(range(16, 20))]


@engines
def test_a_worker_may_use_up_its_list(engine: str) -> None:
    def take(items: list[int]) -> list[int]:
        return [items.pop() for _ in range(len(items))]

    assert values(one_call(take, range(4), engine)) == [3, 2, 1, 0]


@engines
def test_lists_among_the_results_are_results(engine: str) -> None:
    assert values(one_call(lambda items: [[item] * 2 for item in items], range(3), engine)) == [[0, 0], [1, 1], [2, 2]]


def test_an_executor_of_ones_own_may_be_called_with_many(built: BuildLog) -> None:
    with StatefulExecutor(Adds, 2, shared_kwargs={"built": built, "number": 1}) as executor:
        assert list(stateful_map(executor, range(50), pass_as="batch", batch_size=8)) == [*range(1, 51)]
        assert executor.submit(call_worker, [1, 2]).result() == [2, 3]
    assert len(built) <= 2


def test_an_object_is_built_anew_after_so_many_items_not_calls(built: BuildLog) -> None:
    options: dict[str, Any] = {"shared_kwargs": {"built": built, "number": 0}, "max_tasks_per_worker": 4}
    with StatefulExecutor(Adds, 1, **options) as executor:
        assert list(stateful_map(executor, range(12), pass_as="batch", batch_size=2)) == [*range(12)]
    assert len(built) == 3


# --- what is no result per item -------------------------------------------------------------------------


@engines
@pytest.mark.parametrize("n_results", [0, 2, 5])
def test_another_number_of_results_is_an_error_that_says_both(engine: str, n_results: int, calls: Log) -> None:
    def give(items: list[int]) -> list[int]:
        calls.note(words(items))
        return [7] * (n_results if 0 in items else len(items))

    found = one_call(give, range(6), engine, batch_size=3)
    assert failed(found) == [0, 1, 2]
    assert values(found[3:]) == [7] * 3
    for result in found[:3]:
        assert type(result.exception) is ValueError
        assert f"with 3 items, and it returned a list with {n_results} results" in str(result.exception)
    assert calls.lines == ["0 1 2", "3 4 5"], "it would return the same again"


WRONG: dict[str, Callable[[], Any]] = {
    "str": lambda: "ab",
    "bytes": lambda: b"ab",
    "bytearray": lambda: bytearray(b"ab"),
    "memoryview": lambda: memoryview(b"ab"),
    "dict": lambda: {0: 1, 1: 2},
    "dict_values": lambda: {0: 1, 1: 2}.values(),  # noqa: PLW0108 - as the others
    "set": lambda: {0, 1},
    "frozenset": lambda: frozenset({0, 1}),
    "int": lambda: 2,
    "NoneType": lambda: None,
}


@engines
def test_what_holds_no_results_is_an_error_that_says_what_to_return(engine: str, calls: Log) -> None:
    kinds = list(WRONG)

    def give(items: list[int]) -> Any:
        calls.note(words(items))
        return WRONG[kinds[items[0] // 2]]()

    found = one_call(give, range(2 * len(kinds)), engine, batch_size=2)
    for result in found:
        assert type(result.exception) is TypeError
        told, kind = str(result.exception), kinds[result.index // 2]
        assert 'pass_as="batch" calls worker([item, ...])' in told
        assert "one result per item: a list, say" in told
        assert f"Called with 2 items, it returned {'an' if kind == 'int' else 'a'} {kind}." in told
    assert len(calls.lines) == len(kinds), "none is called again"


async def fetch(items: list[int]) -> list[int]:
    return items


def not_run(items: Any) -> Any:
    return (item for item in [items])


def never_awaited(items: Any) -> Any:
    return fetch(items)


@engines
@pytest.mark.parametrize("worker", [not_run, never_awaited])
def test_what_has_not_run_is_the_error_that_it_is_for_single_items(engine: str, worker: Any) -> None:
    many = one_call(worker, [0, 1], engine)
    (single,) = stateful_map(worker, [0], n_jobs=1, on_error="deferred", engine=engine)
    assert [type(result.exception) for result in many] == [TypeError] * 2
    assert {str(result.exception) for result in many} == {str(single.exception)}


@engines
def test_of_a_result_that_has_not_run_only_its_item_fails(engine: str) -> None:
    def some(items: list[int]) -> list[Any]:
        return [0, (item for item in items), fetch(items), 3]

    def yielded(items: list[int]) -> Iterator[Any]:
        yield from some(items)

    for worker in (some, yielded):
        found = one_call(worker, range(4), engine)
        assert failed(found) == [1, 2]
        assert "a generator" in str(found[1].exception)
        assert "a coroutine" in str(found[2].exception)
        assert (found[0].value, found[3].value) == (0, 3)


# --- a call that raises ---------------------------------------------------------------------------------


class Checks:
    """Raises if one of those items is among its own that it can't do."""

    def __init__(self, calls: Log, guilty: set[int]) -> None:
        self.calls, self.guilty = calls, guilty

    def __call__(self, items: list[int]) -> list[int]:
        self.calls.note(words(items))
        if bad := sorted(self.guilty & set(items)):
            raise LookupError(f"no {bad[0]}", len(items))
        return [item * 10 for item in items]


class ChecksOneByOne(Checks):
    """Does the same at the items' turn."""

    def __call__(self, items: list[int]) -> Iterator[int]:  # type: ignore[override]  # that is the point
        self.calls.note(words(items))
        for item in items:
            if item in self.guilty:
                raise LookupError(f"no {item}", len(items))
            yield item * 10


@engines
@pytest.mark.parametrize("kind", [Checks, ChecksOneByOne])
@pytest.mark.parametrize("guilty", [{0}, {5}, {7}, {1, 4, 5}, set(range(8))], ids=words)
def test_a_call_that_raises_is_repeated_in_halves_until_the_guilty_are_alone(
    engine: str, kind: Any, guilty: set[int], calls: Log
) -> None:
    options = {"shared_kwargs": {"calls": calls, "guilty": guilty}, "batch_size": 8}
    found = one_call(kind, range(16), engine, **options)
    assert failed(found) == sorted(guilty)
    for result in found:
        if result.index in guilty:
            assert type(result.exception) is LookupError
            assert result.exception.args == (f"no {result.index}", 1), "it was alone"
            assert f"item {result.index}, slot 0" in result.exception.__notes__[0]
        else:
            assert result.value == result.index * 10
    n_runs = runs(calls)
    assert set(n_runs) == set(map(str, range(16)))
    assert all(1 <= n_runs[str(item)] <= 4 for item in range(8)), "1 + log2(8)"
    assert all(n_runs[str(item)] == 1 for item in range(8, 16)), "their call went well"


@engines
@pytest.mark.parametrize("n_items", [2, 3, 5, 100])
def test_no_item_is_run_more_often_than_halves_can_be_halved(engine: str, n_items: int, calls: Log) -> None:
    last = n_items - 1
    found = one_call(Checks, range(n_items), engine, shared_kwargs={"calls": calls, "guilty": {last}})
    assert failed(found) == [last]
    assert max(runs(calls).values()) <= 1 + (n_items - 1).bit_length()


@engines
def test_without_isolation_all_items_of_the_call_fail_and_none_is_run_twice(engine: str, calls: Log) -> None:
    options = {"shared_kwargs": {"calls": calls, "guilty": {5}}, "batch_size": 4, "isolate": False}
    found = one_call(Checks, range(12), engine, **options)
    assert failed(found) == [4, 5, 6, 7]
    assert {str(result.exception) for result in found[4:8]} == {str(LookupError("no 5", 4))}
    assert values([*found[:4], *found[8:]]) == [0, 10, 20, 30, 80, 90, 100, 110]
    assert set(runs(calls).values()) == {1}


@pytest.mark.parametrize("wrong", [None, 0, 1, "no", []])
def test_isolate_is_true_or_false(wrong: Any) -> None:
    with pytest.raises(TypeError, match="isolate must be True or False, not"):
        stateful_map(list, [], pass_as="batch", isolate=wrong)


@engines
@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, StopIteration, GeneratorExit])
def test_whatever_is_raised_is_the_items(engine: str, kind: type[BaseException]) -> None:
    if (engine, kind) == ("inline", KeyboardInterrupt):
        pytest.skip("there it is the user's Ctrl-C")

    def work(items: list[int]) -> list[int]:
        if 2 in items:
            raise kind(2)
        return items

    found = one_call(work, range(4), engine)
    assert failed(found) == [2]
    assert type(found[2].exception) is kind


def test_inline_a_keyboard_interrupt_is_the_users_and_nothing_is_repeated(calls: Log) -> None:
    def work(items: list[int]) -> list[int]:
        calls.note(words(items))
        raise KeyboardInterrupt

    results = stateful_map(work, range(8), n_jobs=1, pass_as="batch", batch_size=4, engine="inline")
    with pytest.raises(KeyboardInterrupt):
        list(results)
    assert calls.lines == ["0 1 2 3"]


def test_a_repeated_call_gets_the_items_as_they_were() -> None:
    def spoil(items: list[list[int]]) -> list[int]:
        for item in items:
            item.append(1)
        if len(items) > 1:
            raise ValueError(len(items))
        return [len(item) for item in items]

    assert values(one_call(spoil, [[], [], []], "loky")) == [1, 1, 1]


@parallel_engines
def test_a_map_that_is_left_while_a_call_is_repeated_leaves_the_worker_its_object(
    engine: str, scene: Scene, built: BuildLog
) -> None:
    class Works:
        def __init__(self) -> None:
            built.note()

        def __call__(self, items: list[int]) -> list[int]:
            if 4 in items and len(items) > 1:
                scene.log("begun").note(words(items))
                scene.gate().wait()
                raise ValueError(len(items))
            return items

    options: dict[str, Any] = {"n_jobs": 1, "pass_as": "batch", "batch_size": 4, "engine": engine}
    results = stateful_map(Works, range(8), on_error="deferred", **options)
    assert next(results).value == 0
    scene.log("begun").wait_for(1)
    results.close()
    scene.gate().open()
    assert list(stateful_map(Works, [1, 2], **options)) == [1, 2]
    assert len(built) == 1
    assert scene.log("begun").lines[0] == "4 5 6 7"


# --- failures that are returned -------------------------------------------------------------------------


@engines
@pytest.mark.parametrize("kind", [list, tuple, deque])
def test_a_failure_among_the_results_is_the_error_of_its_item(engine: str, kind: Any, calls: Log) -> None:
    def invert(items: list[int]) -> Any:
        calls.note(words(items))
        return kind([1 / item if item else Failure(LookupError("zero", 3)) for item in items])

    found = one_call(invert, [1, 0, 2, 0], engine)
    assert failed(found) == [1, 3]
    assert values(found) == [1.0, None, 0.5, None]
    for index in (1, 3):
        error = found[index].exception
        assert type(error) is LookupError
        assert error.args == ("zero", 3)
        assert error.__notes__[0].startswith(f"[joblib_stateful: item {index}, slot 0, pid ")
    assert calls.lines == ["1 0 2 0"], "who can tell saves that the call is repeated"


@engines
def test_a_generator_may_yield_failures(engine: str, calls: Log) -> None:
    def invert(items: list[int]) -> Iterator[Any]:
        calls.note(words(items))
        for item in items:
            yield 1 / item if item else Failure(LookupError("zero"))

    found = one_call(invert, [1, 0, 2], engine)
    assert values(found) == [1.0, None, 0.5]
    assert repr(found[1].exception) == "LookupError('zero')"
    assert calls.lines == ["1 0 2"]


@engines
def test_one_failure_for_a_call_is_that_of_all_its_items(engine: str, calls: Log) -> None:
    def refuse(items: list[int]) -> Any:
        calls.note(words(items))
        return Failure(ConnectionError("closed"))

    found = one_call(refuse, range(4), engine)
    assert [repr(result.exception) for result in found] == ["ConnectionError('closed')"] * 4
    assert calls.lines == ["0 1 2 3"]


@engines
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_worker_that_is_called_item_by_item_may_return_a_failure_too(engine: str, batch_size: int) -> None:
    def invert(item: int) -> Any:
        return 1 / item if item else Failure(LookupError("zero"))

    options: dict[str, Any] = {"n_jobs": 1, "batch_size": batch_size, "engine": engine}
    found = list(stateful_map(invert, [1, 0, 2], on_error="deferred", **options))
    assert values(found) == [1.0, None, 0.5]
    assert repr(found[1].exception) == "LookupError('zero')"
    with pytest.raises(LookupError, match="zero") as caught:
        list(stateful_map(invert, [1, 0, 2], **options))
    assert "item 1, slot 0" in caught.value.__notes__[0]


def test_a_returned_exception_is_a_value() -> None:
    found = one_call(lambda items: [ValueError(item) for item in items], range(2), "loky")
    assert [repr(result.value) for result in found] == ["ValueError(0)", "ValueError(1)"]


@pytest.mark.unit
@pytest.mark.parametrize("wrong", ["no such file", None, ValueError, 3])
def test_a_failure_takes_an_exception(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"Failure takes the exception .* not .* Write Failure\(ValueError\(...\)\)"):
        Failure(wrong)
    assert repr(Failure(KeyError(1))) == "Failure(KeyError(1))"


def test_a_failure_is_told_by_its_type_alone() -> None:
    with pytest.raises(TypeError, match="Failure can't be subclassed"):
        type("Skipped", (Failure,), {})


class Untold(Exception):  # noqa: N818 - users name theirs as they like
    def __reduce__(self) -> Any:
        raise TypeError("this can't travel")


def test_of_a_failure_that_cannot_travel_its_text_does() -> None:
    found = one_call(lambda items: [Failure(Untold("no disk")), 1], range(2), "loky")
    error = found[0].exception
    assert isinstance(error, errors.RemoteError)
    assert error.type_name.endswith("Untold")
    assert "no disk" in str(error)
    assert found[1].value == 1


@parallel_engines
def test_a_call_that_is_submitted_may_return_a_failure(engine: str) -> None:
    class Inverts:
        def __call__(self, item: int) -> Any:
            return 1 / item if item else Failure(LookupError("zero"))

    with StatefulExecutor(Inverts, 1, engine=engine) as executor:
        assert executor.submit(call_worker, 2).result() == 0.5
        with pytest.raises(LookupError, match="zero"):
            executor.submit(call_worker, 0).result()


@engines
def test_a_failure_of_what_is_no_exception_is_an_error_of_the_call_that_makes_it(engine: str) -> None:
    def wrong(items: list[int]) -> list[Any]:
        return [Failure("zero") if item == 0 else item for item in items]  # type: ignore[arg-type]  # the point

    found = one_call(wrong, range(4), engine)
    assert failed(found) == [0]
    assert "Failure takes the exception" in str(found[0].exception)


# --- the policies ---------------------------------------------------------------------------------------


def policy_options(calls: Log, engine: str, **options: Any) -> dict[str, Any]:
    kwargs = {"calls": calls, "guilty": {5}}
    return {"shared_kwargs": kwargs, "pass_as": "batch", "batch_size": 4, "engine": engine, **options}


@engines
@orders
def test_immediate_raises_the_guilty_items_error_and_runs_nothing_more(
    *, engine: str, ordered: bool, calls: Log
) -> None:
    results = stateful_map(Checks, range(100), n_jobs=1, ordered=ordered, **policy_options(calls, engine))
    found: list[int] = []
    with pytest.raises(LookupError, match="no 5") as caught:
        found.extend(results)
    assert caught.value.args == ("no 5", 1)
    assert "item 5, slot 0" in caught.value.__notes__[0]
    assert list(results) == []
    assert set(found) <= {0, 10, 20, 30}
    assert calls.lines == ["0 1 2 3", "4 5 6 7", "4 5", "4", "5"]


@engines
@orders
def test_wait_others_yields_the_others_of_the_same_call_first(*, engine: str, ordered: bool, calls: Log) -> None:
    options = policy_options(calls, engine, on_error="wait_others")
    results = stateful_map(Checks, range(8), n_jobs=1, ordered=ordered, **options)
    found: list[int] = []
    with pytest.raises(LookupError, match="no 5"):
        found.extend(results)
    assert (found if ordered else sorted(found)) == [0, 10, 20, 30, 40, 60, 70]
    assert list(results) == []


class Meets:
    """Two calls meet: one raises at once, and the other when the consumer knows of that."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def __call__(self, items: list[int]) -> list[int]:
        if len(items) == 4:
            self.scene.meeting(2).join()
            if 4 in items:
                self.scene.gate().wait()
        if {1, 6} & set(items):
            raise LookupError(f"no {1 if 1 in items else 6}")
        return items


@parallel_engines
@orders
def test_wait_others_yields_what_other_calls_had_begun_though_they_raise_too(
    *, engine: str, ordered: bool, scene: Scene
) -> None:
    results = stateful_map(
        Meets,
        range(8),
        n_jobs=2,
        shared_kwargs={"scene": scene},
        pass_as="batch",
        batch_size=4,
        ordered=ordered,
        on_error="wait_others",
        progress=lambda n: scene.gate().open(),  # by then the others have been told to stop
        engine=engine,
    )
    found: list[int] = []
    with pytest.raises(LookupError, match="no 1") as caught:
        found.extend(results)
    assert (found if ordered else sorted(found)) == [0, 2, 3, 4, 5, 7]
    first, second = caught.value.__notes__
    assert "item 1, slot" in first
    assert "item 6 failed too: LookupError: no 6" in second


@engines
@orders
def test_deferred_gives_a_task_result_for_each_item(*, engine: str, ordered: bool, calls: Log) -> None:
    options = policy_options(calls, engine, on_error="deferred")
    found = list(stateful_map(Checks, range(40), n_jobs=2, ordered=ordered, **options))
    assert all(type(result) is TaskResult for result in found)
    by_index = sorted(found, key=lambda result: result.index)
    assert not ordered or by_index == found
    assert values(by_index) == [None if item == 5 else item * 10 for item in range(40)]
    assert failed(by_index) == [5]


@engines
def test_of_many_items_that_fail_together_few_are_named(engine: str) -> None:
    def refuse(items: list[int]) -> None:
        raise LookupError("none")

    options: dict[str, Any] = {"pass_as": "batch", "batch_size": 50, "isolate": False, "engine": engine}
    with pytest.raises(LookupError, match="none") as caught:
        list(stateful_map(refuse, range(50), n_jobs=1, on_error="wait_others", **options))
    notes = caught.value.__notes__
    if engine == "loky":
        assert "item 0, slot 0" in notes[0]
        assert "item 10 failed too: LookupError: none" in notes[10]
        assert notes[11:] == ["[joblib_stateful: 39 more items failed]"]
    else:  # they all have the same exception
        assert len(notes) == 1
        assert "items 0 to 49, slot 0" in notes[0]


# --- what can't travel ----------------------------------------------------------------------------------


class Unpicklable:
    def __reduce__(self) -> Any:
        raise TypeError("this can't travel")


def load_in(pid: int) -> int:
    if os.getpid() != pid:
        raise ValueError("this can't be loaded here")
    return pid


class LoadedAtHomeOnly:
    """Can't be unpickled in another process than the one that made it."""

    def __init__(self) -> None:
        self.pid = os.getpid()

    def __reduce__(self) -> Any:
        return load_in, (self.pid,)


def test_what_cannot_travel_is_the_error_of_its_item_alone(calls: Log) -> None:
    def give(items: list[Any]) -> list[Any]:
        calls.note(len(items))
        return [item() if callable(item) else item for item in items]

    items = [0, Unpicklable(), LoadedAtHomeOnly(), Unpicklable, LoadedAtHomeOnly, 5]
    found = one_call(give, items, "loky")
    assert [result.value for result in found if result.ok] == [0, 5]
    failures = [result.exception for result in found if not result.ok]
    assert [type(error) for error in failures] == [errors.TransferError] * 4
    assert [(error.index, error.what) for error in failures if isinstance(error, errors.TransferError)] == [
        (1, "item"),
        (2, "item"),
        (3, "result"),
        (4, "result"),
    ]
    assert calls.lines == ["4"], "those that have come are run in one call"


def test_an_item_whose_neighbours_have_not_come_is_not_repeated_alone(calls: Log) -> None:
    def refuse(items: list[Any]) -> None:
        calls.note(len(items))
        raise ValueError("no")

    found = one_call(refuse, [*(LoadedAtHomeOnly() for _ in range(7)), 7], "loky")
    assert [type(result.exception).__name__ for result in found] == ["TransferError"] * 7 + ["ValueError"]
    assert calls.lines == ["1"]


# --- what helps -----------------------------------------------------------------------------------------


def sum_up(items: Any) -> Any:
    return [sum(items)]


def notes_of(worker: Callable[..., Any], items: Sequence[Any], **options: Any) -> str:
    found = list(stateful_map(worker, items, n_jobs=1, on_error="deferred", engine="inline", **options))
    (error,) = {id(result.exception): result.exception for result in found if not result.ok}.values()
    assert error is not None
    return " ".join(error.__notes__)


def fail_with_key_error(item: Any) -> None:
    raise KeyError(item)


def test_who_has_set_a_batch_size_and_expects_lists_is_told_how_to_get_them() -> None:
    note = notes_of(sum_up, [1], batch_size=4)
    assert "batch_size=4 says how many items travel in one message" in note
    assert 'write pass_as="batch"' in note


@pytest.mark.parametrize(
    ("worker", "items", "options"),
    [
        (sum_up, [1], {"batch_size": 1}),
        (sum_up, [1], {"batch_size": "auto"}),
        (sum_up, [1], {}),
        (sum_up, [[1], 1], {"batch_size": 4}),
        (fail_with_key_error, [1], {"batch_size": 4}),
        (sum_up, ["a"], {"batch_size": 4, "pass_as": "batch"}),
    ],
    ids=["one", "auto", "default", "a later item", "another error", "batch"],
)
def test_nobody_else_is_told(worker: Any, items: Any, options: Any) -> None:
    assert "batch_size" not in notes_of(worker, items, **options)


@pytest.mark.unit
@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, "many", None])
def test_a_wrong_batch_size_is_refused_at_the_call(wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="batch_size"):
        stateful_map(sum_up, [], pass_as="batch", batch_size=wrong)


@pytest.mark.unit
@pytest.mark.parametrize("wrong", ["batches", "Batch", ["batch"], None])
def test_a_wrong_way_to_pass_items_is_told_of_batches(wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="'batch'"):
        stateful_map(sum_up, [], pass_as=wrong)


# --- what says that there is no memory ------------------------------------------------------------------


class OutOfMemoryError(RuntimeError):
    """As PyTorch's."""


class Hostile(Exception):  # noqa: N818 - users name theirs as they like
    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.unit
@pytest.mark.parametrize(
    ("error", "is_so"),
    [
        (MemoryError(), True),
        (OutOfMemoryError("Tried to allocate 20.00 MiB"), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"), True),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate"), True),
        (OSError("OOM when allocating tensor"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("memory"), False),
        (Hostile(), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_it_is_told_from_other_errors(error: BaseException, *, is_so: bool) -> None:
    assert is_out_of_memory(error) is is_so
