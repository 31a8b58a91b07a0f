"""What an exception of a worker's call does, cell by cell of the table of policies."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from conftest import ENGINES
from joblib_stateful import TaskResult, errors, stateful_map
from joblib_stateful._map import _feeder
from joblib_stateful._map._batches import Inbox
from scenes import Scene, engines, new_scene, orders, parallel_engines, policies

if TYPE_CHECKING:
    from conftest import BuildLog

raising = pytest.mark.parametrize("policy", ["immediate", "wait_others"])


class Mine(Exception):  # noqa: N818 - users name theirs as they like
    """An exception with an attribute."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message, code)
        self.code = code


class Player:
    """Does what each item says, and logs it."""

    def __init__(self, scene: Scene, built: BuildLog | None = None) -> None:
        self.scene = scene
        if built is not None:
            built.note()

    def __call__(self, item: Any) -> Any:
        what, *rest = item if isinstance(item, tuple) else (item,)
        self.scene.log("ran").note(what)
        if what == "raise":
            raise Mine(f"no {rest[0]}", rest[0]) from KeyError("the cause")
        if what == "raise slowly":
            raise LoadedSlowlyError(self.scene)
        if what == "raise after":
            self.scene.gate(rest[0]).wait()
            raise Mine(f"no {rest[0]}", rest[1])
        if what == "wait":
            self.scene.gate(rest[0]).wait()
            return rest[0]
        if what == "meet and wait":
            self.scene.meeting(2).join()
            self.scene.gate(rest[0]).wait()
            return rest[0]
        if what == "meet and raise":
            self.scene.meeting(2).join()
            raise Mine("met", rest[0])
        return what


class LoadedSlowlyError(Exception):
    """An exception that the program has loaded only when its input has been asked for one more item."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self.scene = scene

    def __reduce__(self) -> tuple[Any, ...]:
        return _load_slowly, (self.scene,)


def _load_slowly(scene: Scene) -> LoadedSlowlyError:
    scene.gate("loading").open()
    scene.gate("asked for more").wait()
    return LoadedSlowlyError(scene)


# --- the exception itself -------------------------------------------------------------------------------


@engines
@orders
@raising
@pytest.mark.parametrize("batch_size", [1, 5])
def test_the_original_exception_is_raised(
    *,
    engine: str,
    ordered: bool,
    policy: Any,
    batch_size: int,
    tmp_path: Path,
) -> None:
    results = stateful_map(
        Player,
        ["a", "b", ("raise", 7), "c", "d"],
        n_jobs=1,
        shared_kwargs={"scene": new_scene(tmp_path)},
        on_error=policy,
        ordered=ordered,
        batch_size=batch_size,
        engine=engine,
    )
    with pytest.raises(Mine) as caught:
        list(results)
    check_origin(caught.value, engine, index=2)
    assert list(results) == []


@raising
def test_nothing_begins_behind_an_error_that_is_still_being_loaded(
    policy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = new_scene(tmp_path)

    def items() -> Iterator[str]:
        yield "raise slowly"
        scene.gate("loading").wait()
        yield "begun behind it"
        scene.gate("asked for more").open()
        yield "last"

    monkeypatch.setattr(_feeder, "PULL_SECONDS", 60)  # else it would be taken for a slow input, and asked less
    results = stateful_map(
        Player, items(), n_jobs=1, shared_kwargs={"scene": scene}, on_error=policy, batch_size=1, buffer=8
    )
    with pytest.raises(LoadedSlowlyError):
        list(results)
    assert scene.log("ran").lines == ["raise slowly"]


@engines
@orders
def test_deferred_yields_the_original_exception(*, engine: str, ordered: bool, tmp_path: Path) -> None:
    results = list(
        stateful_map(
            Player,
            ["a", ("raise", 7), "b"],
            n_jobs=2,
            shared_kwargs={"scene": new_scene(tmp_path)},
            on_error="deferred",
            ordered=ordered,
            engine=engine,
        )
    )
    if not ordered:
        results.sort(key=lambda result: result.index)
    assert results[0] == TaskResult(0, "a", None)
    assert results[2] == TaskResult(2, "b", None)
    bad = results[1]
    assert (bad.index, bad.value, bad.ok, results[0].ok) == (1, None, False, True)
    with pytest.raises(Mine) as caught:
        bad.unwrap()
    assert caught.value is bad.exception
    assert results[0].unwrap() == "a"
    check_origin(caught.value, engine, index=1)


def check_origin(error: BaseException, engine: str, index: int) -> None:
    """Look for all that an exception of a worker has to tell."""
    assert type(error) is Mine
    assert (error.code, error.args) == (7, ("no 7", 7))
    (note,) = error.__notes__
    assert f"item {index}, slot " in note
    assert ("pid " in note) is True
    if engine == "loky":
        assert f"pid {os.getpid()}" not in note
        assert isinstance(error.__cause__, errors.RemoteTraceback)
        assert "in __call__" in str(error.__cause__)
        assert "Mine: ('no 7', 7)" in str(error.__cause__)
        assert "KeyError: 'the cause'" in str(error.__cause__)
    else:
        assert f"pid {os.getpid()}" in note
        assert type(error.__cause__) is KeyError
        assert error.__traceback__ is not None


@engines
def test_an_exception_without_a_cause_gets_none_within_a_process(engine: str) -> None:
    def fail(item: int) -> None:
        raise Mine("plain", item)

    with pytest.raises(Mine) as caught:
        list(stateful_map(fail, [1], n_jobs=1, engine=engine))
    assert (caught.value.__cause__ is None) == (engine != "loky")


# --- immediate ------------------------------------------------------------------------------------------


@parallel_engines
@orders
def test_immediate_raises_while_earlier_items_still_run(
    *,
    engine: str,
    ordered: bool,
    tmp_path: Path,
    built: BuildLog,
) -> None:
    scene = new_scene(tmp_path)
    kwargs = {"scene": scene, "built": built}
    items = [("meet and wait", "late"), ("meet and raise", 5), *[("wait", "late")] * 50]
    results = stateful_map(
        Player, items, n_jobs=2, shared_kwargs=kwargs, ordered=ordered, batch_size=1, buffer=20, engine=engine
    )
    with pytest.raises(Mine, match="met"):
        next(results)
    scene.gate("late").open()
    # What ran finished in the background, its object lives on, and nothing that was queued was run.
    assert list(stateful_map(Player, ["x"] * 4, n_jobs=2, shared_kwargs=kwargs, batch_size=1, engine=engine)) == (
        ["x"] * 4
    )
    assert len(built) == 2
    # The slot that raised may have begun one before the consumer knew.
    assert scene.log("ran").lines.count("wait") <= 1


@parallel_engines
def test_immediate_drops_the_results_that_are_there(engine: str, tmp_path: Path) -> None:
    scene = new_scene(tmp_path)
    options: dict[str, Any] = {"n_jobs": 1, "shared_kwargs": {"scene": scene}, "engine": engine, "batch_size": 1}
    results = stateful_map(Player, ["a", "b", ("raise after", "go", 7), "c", "d"], buffer=5, **options)
    assert next(results) == "a"
    scene.gate("go").open()
    # On the only slot, this is run behind the others; so when it is back, the error is known.
    assert list(stateful_map(Player, ["x"], **options)) == ["x"]
    with pytest.raises(Mine):
        next(results)
    assert list(results) == []


@parallel_engines
def test_nothing_is_given_behind_an_error_of_which_no_word_has_come(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, put = new_scene(tmp_path), Inbox.put

    def keep_back(inbox: Inbox, news: Any = None) -> None:
        """Wake the consumer when the outcome with the error is there, as if the thread were switched before it says so."""
        put(inbox, None if isinstance(news, tuple) and news[1].errors else news)

    monkeypatch.setattr(Inbox, "put", keep_back)
    results = stateful_map(
        Player,
        ["a", ("raise after", "go", 7), "b"],
        n_jobs=2,
        shared_kwargs={"scene": scene},
        engine=engine,
        batch_size=3,
        route=lambda item: int(isinstance(item, tuple)),  # so the batch comes back in two parts
    )
    assert next(results) == "a"
    scene.gate("go").open()
    with pytest.raises(Mine):
        next(results)


@parallel_engines
def test_immediate_drops_the_rest_of_a_batch_that_is_being_taken(engine: str, tmp_path: Path) -> None:
    scene = new_scene(tmp_path)
    options: dict[str, Any] = {"n_jobs": 1, "shared_kwargs": {"scene": scene}, "engine": engine, "batch_size": 3}
    results = stateful_map(Player, ["a", "b", "c", ("raise after", "go", 7), "d", "e"], buffer=6, **options)
    assert next(results) == "a"
    scene.gate("go").open()
    # Run behind the others, as above.
    assert list(stateful_map(Player, ["x"], **options)) == ["x"]
    with pytest.raises(Mine):
        next(results)
    assert list(results) == []


@engines
@raising
def test_the_rest_of_a_batch_behind_an_error_is_not_run(engine: str, policy: Any, tmp_path: Path) -> None:
    scene = new_scene(tmp_path)
    items = ["a", ("raise", 7), "b", "c"]
    results = stateful_map(
        Player, items, n_jobs=1, shared_kwargs={"scene": scene}, batch_size=4, on_error=policy, engine=engine
    )
    with pytest.raises(Mine):
        list(results)
    assert scene.log("ran").lines == ["a", "raise"]


@engines
@raising
def test_the_input_is_pulled_no_further_and_closed(engine: str, policy: Any, tmp_path: Path) -> None:
    pulled: list[int] = []
    closed = threading.Event()

    def source() -> Iterator[Any]:
        try:
            for number in range(1000):
                pulled.append(number)
                yield ("raise", 7) if number == 2 else number
        finally:
            closed.set()

    results = stateful_map(
        Player,
        source(),
        n_jobs=1,
        shared_kwargs={"scene": new_scene(tmp_path)},
        batch_size=1,
        buffer=2,
        on_error=policy,
        engine=engine,
    )
    with pytest.raises(Mine):
        list(results)
    assert closed.is_set()
    assert len(pulled) <= 5


# --- wait_others ----------------------------------------------------------------------------------------


@parallel_engines
@orders
def test_wait_others_waits_for_what_runs_and_yields_it(*, engine: str, ordered: bool, tmp_path: Path) -> None:
    scene = new_scene(tmp_path)

    def items() -> Iterator[Any]:
        try:
            yield from [("meet and wait", "late"), ("meet and raise", 5), *[("wait", "late")] * 50]
        finally:  # the error is known, and nothing more is pulled
            scene.gate("late").open()

    results = stateful_map(
        Player,
        items(),
        n_jobs=2,
        shared_kwargs={"scene": scene},
        ordered=ordered,
        batch_size=1,
        buffer=20,
        on_error="wait_others",
        engine=engine,
    )
    found: list[Any] = []
    with pytest.raises(Mine, match="met"):
        found.extend(results)
    n_begun = scene.log("ran").lines.count("wait")
    assert n_begun <= 1
    assert found == ["late"] * (1 + n_begun)
    assert list(results) == []


@parallel_engines
@orders
def test_wait_others_yields_what_is_done_before_it_raises(*, engine: str, ordered: bool, tmp_path: Path) -> None:
    scene = new_scene(tmp_path)
    options: dict[str, Any] = {"n_jobs": 1, "shared_kwargs": {"scene": scene}, "engine": engine, "batch_size": 1}
    items = ["a", "b", ("raise after", "go", 7), "c"]
    results = stateful_map(Player, items, buffer=4, on_error="wait_others", ordered=ordered, **options)
    assert next(results) == "a"
    scene.gate("go").open()
    assert list(stateful_map(Player, ["x"], **options)) == ["x"]  # behind the others: all of them are back now
    found: list[Any] = []
    with pytest.raises(Mine):
        found.extend(results)
    assert found[0] == "b"
    assert found[1:] in ([], ["c"])  # it may have been begun before the consumer came back


@parallel_engines
@orders
def test_wait_others_raises_the_lowest_index_and_notes_the_others(
    *, engine: str, ordered: bool, tmp_path: Path
) -> None:
    scene = new_scene(tmp_path)

    def fail(item: int) -> None:
        scene.meeting(3).join()
        if item == 0:
            scene.gate(1).wait()
        scene.gate(item).open()
        raise Mine(f"item {item}!", item)

    results = stateful_map(
        fail, range(3), n_jobs=3, batch_size=1, on_error="wait_others", ordered=ordered, engine=engine
    )
    with pytest.raises(Mine) as caught:
        list(results)
    assert caught.value.code == 0
    notes = caught.value.__notes__
    assert len(notes) == 3
    assert "item 0, slot" in notes[0]
    assert "item 1 failed too: Mine" in notes[1]
    assert "item 1!" in notes[1]
    assert "item 2 failed too: Mine" in notes[2]


# --- deferred -------------------------------------------------------------------------------------------


@engines
@orders
@pytest.mark.parametrize("batch_size", [1, 4, "auto"])
def test_deferred_goes_on_to_the_end(*, engine: str, ordered: bool, batch_size: Any, built: BuildLog) -> None:
    class Odd:
        def __init__(self, log: BuildLog) -> None:
            log.note()

        def __call__(self, item: int) -> int:
            if item % 3 == 0:
                raise ValueError(item)
            return item * 10

    results = list(
        stateful_map(
            Odd,
            range(40),
            n_jobs=2,
            shared_kwargs={"log": built},
            on_error="deferred",
            ordered=ordered,
            batch_size=batch_size,
            engine=engine,
        )
    )
    assert all(type(result) is TaskResult for result in results)
    by_index = sorted(results, key=lambda result: result.index)
    assert not ordered or by_index == results
    assert [result.index for result in by_index] == list(range(40))
    assert [result.ok for result in by_index] == [index % 3 != 0 for index in range(40)]
    for result in by_index:
        if result.ok:
            assert (result.value, result.exception) == (result.index * 10, None)
        else:
            assert result.value is None
            assert repr(result.exception) == f"ValueError({result.index})"
    assert 1 <= len(built) <= 2


def test_task_result_is_frozen_and_slotted() -> None:
    result: TaskResult[int] = TaskResult(0, 1, None)
    with pytest.raises(AttributeError):
        result.value = 2  # type: ignore[misc]  # that is the point
    assert not hasattr(result, "__dict__")


# --- exceptions that could end an iteration -------------------------------------------------------------

SPECIAL = (StopIteration, SystemExit, KeyboardInterrupt, GeneratorExit, StopAsyncIteration)
special = pytest.mark.parametrize(
    ("engine", "kind"),
    [
        (engine, kind)
        for engine in ENGINES
        for kind in SPECIAL
        if (engine, kind) != ("inline", KeyboardInterrupt)  # there it is the user's Ctrl-C
    ],
)


class RaisesAtOne:
    def __init__(self, kind: type[BaseException], built: BuildLog | None = None) -> None:
        self.kind = kind
        if built is not None:
            built.note()

    def __call__(self, item: int) -> int:
        if item == 1:
            raise self.kind(3)
        return item


@special
def test_deferred_takes_any_exception_for_an_items(engine: str, kind: type[BaseException], built: BuildLog) -> None:
    results = list(
        stateful_map(
            RaisesAtOne,
            range(4),
            n_jobs=1,
            shared_kwargs={"kind": kind, "built": built},
            on_error="deferred",
            batch_size=2,
            engine=engine,
        )
    )
    assert [result.value for result in results] == [0, None, 2, 3]
    assert type(results[1].exception) is kind
    assert results[1].exception.args == (3,)
    assert len(built) == 1


@special
@raising
def test_any_exception_is_raised_and_never_ends_the_loop_early(
    engine: str, kind: type[BaseException], policy: Any
) -> None:
    results = stateful_map(
        RaisesAtOne, range(4), n_jobs=1, shared_kwargs={"kind": kind}, on_error=policy, batch_size=1, engine=engine
    )
    expected = RuntimeError if kind is StopIteration else kind
    with pytest.raises(expected) as caught:
        for _ in results:
            pass
    if kind is StopIteration:
        assert type(caught.value.__cause__) is StopIteration
        assert caught.value.__cause__.value == 3
        assert "item 1" in caught.value.__cause__.__notes__[0]
    else:
        assert "item 1" in caught.value.__notes__[0]


@policies
def test_inline_a_keyboard_interrupt_is_the_users(policy: Any, built: BuildLog) -> None:
    kwargs = {"kind": KeyboardInterrupt, "built": built}
    closed = threading.Event()

    def source() -> Iterator[int]:
        try:
            yield from range(4)
        finally:
            closed.set()

    options: dict[str, Any] = {"n_jobs": 1, "shared_kwargs": kwargs, "engine": "inline", "batch_size": 1}
    results = stateful_map(RaisesAtOne, source(), on_error=policy, **options)
    next(results)
    with pytest.raises(KeyboardInterrupt):
        next(results)
    assert list(results) == []
    assert closed.is_set()
    # The object lives on.
    assert list(stateful_map(RaisesAtOne, [5], **options)) == [5]
    assert len(built) == 1


@engines
@policies
def test_a_returned_exception_is_a_value(engine: str, policy: Any) -> None:
    def give_back(item: Any) -> Exception:
        return ValueError(item)

    results: list[Any] = list(stateful_map(give_back, [1, 2], n_jobs=1, on_error=policy, engine=engine))
    if policy == "deferred":
        assert all(result.ok and result.exception is None for result in results)
        results = [result.unwrap() for result in results]
    assert [repr(result) for result in results] == ["ValueError(1)", "ValueError(2)"]


# --- exceptions that make trouble -----------------------------------------------------------------------


class Frozen(Exception):  # noqa: N818 - users name theirs as they like
    """Forbids attributes, as frozen data classes do."""

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"can't set {name}")


class Mute(Exception):  # noqa: N818 - users name theirs as they like
    def __str__(self) -> str:
        raise ZeroDivisionError


class Falsy(Exception):  # noqa: N818 - users name theirs as they like
    def __bool__(self) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        raise ZeroDivisionError

    __hash__ = None  # type: ignore[assignment]  # an exception class that its author spoiled


@engines
@policies
def test_a_difficult_exception_is_an_items_error_too(engine: str, policy: Any) -> None:
    for kind in (Frozen, Mute, Falsy):
        check_difficult(engine, policy, kind)


def check_difficult(engine: str, policy: Any, kind: type[Exception]) -> None:
    def fail(item: int) -> int:
        if item:
            raise kind(item)
        return item

    results = stateful_map(fail, [0, 1, 1, 0], n_jobs=1, batch_size=4, on_error=policy, engine=engine)
    if policy == "deferred":
        found: list[Any] = list(results)
        assert [type(result.exception) for result in found] == [type(None), kind, kind, type(None)]
        assert [result.ok for result in found] == [True, False, False, True]
        error = found[1].exception
    else:
        with pytest.raises(kind) as caught:
            list(results)
        error = caught.value
    assert isinstance(error.__cause__, errors.RemoteTraceback) == (engine == "loky")


@parallel_engines
@pytest.mark.parametrize("kind", [Frozen, Mute])
def test_difficult_exceptions_are_noted_as_far_as_they_can(engine: str, kind: type[Exception], tmp_path: Path) -> None:
    scene = new_scene(tmp_path)

    def fail(item: int) -> int:
        scene.meeting(2).join()
        raise kind(item)

    with pytest.raises(kind) as caught:
        list(stateful_map(fail, [0, 1], n_jobs=2, batch_size=1, on_error="wait_others", engine=engine))
    assert caught.value.args == (0,)
    if kind is Mute:
        assert "could not be formatted" in caught.value.__notes__[1]


@engines
def test_an_exception_group_keeps_its_members(engine: str) -> None:
    def fail(item: int) -> None:
        raise ExceptionGroup("several", [ValueError(1), KeyError("a")])

    with pytest.raises(ExceptionGroup) as caught:
        list(stateful_map(fail, [0], n_jobs=1, engine=engine))
    assert [repr(error) for error in caught.value.exceptions] == ["ValueError(1)", "KeyError('a')"]


# --- the input's exception ------------------------------------------------------------------------------


class InputError(Exception):
    pass


@engines
@orders
@policies
@pytest.mark.parametrize("batch_size", [1, 3, "auto"])
@pytest.mark.parametrize("n_good", [0, 7])
def test_an_exception_of_the_input_comes_after_the_results_before_it(
    *,
    engine: str,
    ordered: bool,
    policy: Any,
    batch_size: Any,
    n_good: int,
) -> None:
    if engine == "loky" and (batch_size == 1 or n_good == 0 or (batch_size == "auto") != ordered):
        pytest.skip("covered by the other engines; processes take their time")
    error = InputError("broken")

    def source() -> Iterator[int]:
        yield from range(n_good)
        raise error

    results: Any = stateful_map(
        format, source(), n_jobs=2, on_error=policy, ordered=ordered, batch_size=batch_size, engine=engine
    )
    found: list[Any] = []
    with pytest.raises(InputError) as caught:
        for result in results:
            found.append(result.unwrap() if policy == "deferred" else result)  # noqa: PERF401 - it raises
    assert caught.value is error
    assert (caught.value.__cause__, getattr(caught.value, "__notes__", [])) == (None, [])
    assert (found if ordered else sorted(found)) == [str(number) for number in range(n_good)]
    assert list(results) == []


@engines
@policies
def test_an_input_whose_iter_raises(engine: str, policy: Any) -> None:
    class Broken:
        def __iter__(self) -> Iterator[int]:
            raise InputError("at once")

    results = stateful_map(abs, Broken(), n_jobs=1, on_error=policy, engine=engine)
    with pytest.raises(InputError, match="at once"):
        next(results)
    assert list(results) == []


@engines
def test_an_interrupt_of_the_input_is_raised_at_once(engine: str) -> None:
    def source() -> Iterator[int]:
        yield 1
        raise KeyboardInterrupt

    results = stateful_map(abs, source(), n_jobs=1, batch_size=1, buffer=1, engine=engine)
    assert next(results) == 1
    with pytest.raises(KeyboardInterrupt):
        next(results)
    assert list(results) == []


@engines
def test_a_workers_error_comes_before_the_inputs(engine: str) -> None:
    def source() -> Iterator[int]:
        yield 0
        raise InputError

    def fail(item: int) -> None:
        raise Mine("first", item)

    with pytest.raises(Mine):
        list(stateful_map(fail, source(), n_jobs=1, engine=engine))
