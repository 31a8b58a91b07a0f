"""Classes that travel by value: they go once per worker and version, and what comes back is the caller's own."""

from __future__ import annotations

import abc
import collections
import copyreg
import dataclasses
import enum
import itertools
import os
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import pytest

from contract import on
from joblib_stateful import StatefulExecutor, errors, get_worker, stateful_map
from joblib_stateful._transport import _frames
from joblib_stateful._transport._definitions import Peer
from joblib_stateful._transport._noticing import Memory
from joblib_stateful._transport._transport import Pickled
from programs import program_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import RunProgram
    from joblib_stateful.engines import Engine

T = TypeVar("T")
MISSING = object()
SEEN: list[int] = []


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.5


class Row(NamedTuple):
    number: int
    text: str = ""


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Slotted:
    __slots__ = ("color", "number")

    def __init__(self, number: int) -> None:
        self.number, self.color = number, Color.RED


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    number: int


class Outer:
    class Inner:
        def __init__(self, number: int) -> None:
            self.number = number

    def __init__(self, number: int) -> None:
        self.inner = Outer.Inner(number)


class Box(Generic[T]):
    def __init__(self, content: T) -> None:
        self.content = content


class IntBox(Box[int]):
    pass


class Shape(abc.ABC):
    @abc.abstractmethod
    def area(self) -> int: ...


class Square(Shape):
    def __init__(self, side: int) -> None:
        self.side = side

    def area(self) -> int:
        return self.side**2


class Meta(type):
    def __len__(cls) -> int:
        return 3


class Made(metaclass=Meta):
    def __init__(self, number: int) -> None:
        self.number = number


class Trouble(ValueError):  # noqa: N818 - users name theirs as they like
    pass


Record = collections.namedtuple("Record", ["number"])  # noqa: PYI024 - this is what libraries make

KINDS = (Point, Row, Slotted, Frozen, Outer, Box, IntBox, Square, Made, Trouble, Record)


class Echo:
    def __call__(self, item: Any) -> Any:
        return item


class Teller:
    """Says what its own code makes of an item's class."""

    def __call__(self, item: Any) -> Any:
        return isinstance(item, KINDS), [kind.__name__ for kind in KINDS if type(item) is kind]


def test_objects_come_back_as_the_callers_own() -> None:
    kind: Any
    for kind in KINDS:
        results = list(stateful_map(Echo, map(kind, range(20)), n_jobs=2, batch_size=3))
        assert [type(result) for result in results] == [kind] * 20
    for kind in KINDS:
        assert list(stateful_map(Teller, map(kind, range(3)), n_jobs=1)) == [(True, [kind.__name__])] * 3


@on("loky", "memory", "example")
def test_on_every_engine_objects_come_back_as_the_callers_own(engine: Engine) -> None:
    results = list(stateful_map(Echo, (Point(i) for i in range(10)), n_jobs=2, engine=engine))
    assert results == [Point(i) for i in range(10)]
    assert {type(result) for result in results} == {Point}


@on("dask")
@pytest.mark.cluster
def test_on_dask_definitions_travel_with_what_needs_them(engine: Engine) -> None:
    assert list(stateful_map(Teller, [Point(1), Trouble(2)], n_jobs=2, engine=engine)) == [
        (True, ["Point"]),
        (True, ["Trouble"]),
    ]
    assert type(next(iter(stateful_map(Echo, [Slotted(1)], n_jobs=1, engine=engine)))) is Slotted


@on("ray")
@pytest.mark.cluster
def test_on_ray_definitions_travel_with_what_needs_them(engine: Engine) -> None:
    assert list(stateful_map(Teller, [Point(1), Trouble(2)], n_jobs=2, engine=engine)) == [
        (True, ["Point"]),
        (True, ["Trouble"]),
    ]
    assert type(next(iter(stateful_map(Echo, [Slotted(1)], n_jobs=1, engine=engine)))) is Slotted


def test_members_of_an_enum_are_themselves() -> None:
    results = list(stateful_map(Echo, [Color.RED, Color.BLUE, Slotted(1)], n_jobs=1))
    assert results[0] is Color.RED
    assert results[1] is Color.BLUE
    assert results[2].color is Color.RED


def test_a_counter_of_a_class_goes_on() -> None:
    class Job:
        ids = itertools.count()

        def __init__(self) -> None:
            self.number = next(Job.ids)

    results = list(stateful_map(Echo, (Job() for _ in range(200)), n_jobs=2))
    assert [result.number for result in results] == list(range(200))
    assert next(Job.ids) == 200


def test_a_method_that_was_replaced_meanwhile_stays_so() -> None:
    class Job:
        def name(self) -> str:
            return "old"

    results = stateful_map(Echo, (Job() for _ in range(20)), n_jobs=1, batch_size=1, buffer=2)
    next(results)
    Job.name = lambda self: "new"  # type: ignore[method-assign]
    assert {result.name() for result in results} == {"new"}
    assert Job().name() == "new"


def test_a_class_that_changes_in_mid_map_is_sent_again() -> None:
    class Job:
        factor = 1

        def __init__(self, number: int) -> None:
            self.number = number

        def value(self) -> int:
            return self.number * self.factor

    def jobs() -> Iterator[Job]:
        yield Job(1)
        Job.factor = 10
        yield Job(2)
        Job.value = lambda self: -self.number  # type: ignore[method-assign]
        yield Job(3)
        del Job.factor
        yield Job(4)

    def look(job: Job) -> Any:
        return job.value(), hasattr(job, "factor")

    results = stateful_map(look, jobs(), n_jobs=1, batch_size=1, buffer=1)
    assert list(results) == [(1, True), (20, True), (-3, True), (-4, False)]


def test_what_a_worker_keeps_on_a_class_stays() -> None:
    class Job:
        seen = 0
        factor = 1

    class Counter:
        def __call__(self, job: Job) -> tuple[int, int]:
            Job.seen += 1
            return Job.seen, Job.factor

    def jobs() -> Iterator[Job]:
        for factor in (1, 1, 2, 3):
            Job.factor = factor
            yield Job()

    results = list(stateful_map(Counter, jobs(), n_jobs=1, batch_size=1, buffer=1))
    assert results == [(1, 1), (2, 1), (3, 2), (4, 3)]
    assert Job.seen == 0


def is_missing(value: Any = MISSING) -> bool:
    return value is MISSING


def remember(number: int) -> int:
    SEEN.append(number)
    return len(SEEN)


class Rememberer:
    def remember(self, number: int) -> int:
        return remember(number)


class Globals:
    def __call__(self, item: Rememberer) -> Any:
        return is_missing(), is_missing(MISSING), is_missing(3), item.remember(1), remember(2), len(SEEN)


def test_the_code_of_a_worker_shares_its_globals() -> None:
    results = list(stateful_map(Globals, (Rememberer() for _ in range(2)), n_jobs=1, batch_size=1))
    assert results == [(True, True, False, 1, 2, 2), (True, True, False, 3, 4, 4)]
    assert not SEEN
    with StatefulExecutor(n_jobs=1) as executor:
        assert executor.submit(is_missing, MISSING).result()
        assert [executor.submit(remember, 1).result() for _ in range(2)] == [1, 2]


def test_globals_that_come_ahead_of_a_function_leave_it_the_name_of_its_module() -> None:
    def name_module(_: int) -> str:
        class Made(Trouble):
            pass

        return Made.__module__

    assert list(stateful_map(name_module, [1], n_jobs=1)) == [__name__]


def test_functions_as_items_and_within_results() -> None:
    by = 3
    functions = [lambda x: x * by, remember, Point, Rememberer().remember]
    results = list(stateful_map(lambda function: (function, function(2)), functions, n_jobs=1))
    assert [value for _, value in results] == [6, 1, Point(2), 2]
    assert results[0][0](5) == 15
    assert results[2][0] is Point


def raise_it(error: Exception) -> None:
    raise error


@on("loky", "memory", "example")
def test_exceptions_can_be_caught(engine: Engine) -> None:
    with pytest.raises(Trouble):
        list(stateful_map(raise_it, [Trouble("no")], n_jobs=1, engine=engine))


def test_an_exception_of_a_constructor() -> None:
    class Broken:
        def __init__(self) -> None:
            raise Trouble("no")

        def __call__(self, item: int) -> int:
            return item

    with pytest.raises(errors.WorkerInitError) as caught:
        list(stateful_map(Broken, [1], n_jobs=1))
    assert type(caught.value.__cause__) is Trouble


class Maker:
    """Makes classes in the worker."""

    def __init__(self) -> None:
        self.kept = dataclasses.make_dataclass("Kept", ["pid", "number"])

    def __call__(self, how: str) -> Any:
        if how == "kept":
            return self.kept(os.getpid(), 1)
        fresh: Any = collections.namedtuple("fresh", ["number"])  # noqa: PYI024 - see above
        return fresh(2)


@on("loky", "example")
def test_classes_that_a_worker_has_made(engine: Engine) -> None:
    results = list(stateful_map(Maker, ["kept"] * 6 + ["fresh"] * 3, n_jobs=2, batch_size=1, engine=engine))
    kept = {result.pid: type(result) for result in results[:6]}
    assert all(type(result) is kept[result.pid] for result in results[:6])
    assert [result.number for result in results] == [1] * 6 + [2] * 3
    assert len({type(result) for result in results[6:]}) == 3
    again = list(stateful_map(Echo, results, n_jobs=2, engine=engine))
    assert [type(result) for result in again] == [type(result) for result in results]


def test_a_class_that_a_worker_has_made_comes_to_it_as_its_own() -> None:
    class Keeper:
        def __call__(self, item: Any) -> Any:
            if item is None:
                self.made = dataclasses.make_dataclass("Own", ["number"])
                return self.made(1)
            return type(item) is self.made

    with StatefulExecutor(Keeper, n_jobs=1) as executor:
        (own,) = stateful_map(executor, [None])
        assert list(stateful_map(executor, [own])) == [True]


def test_the_rows_of_a_frame() -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"a": range(100), "b": 0.5})
    results = list(stateful_map(Echo, frame.itertuples(), n_jobs=2))
    assert [(row.Index, row.a, row.b) for row in results] == [(i, i, 0.5) for i in range(100)]
    assert len({type(row) for row in results}) == 1


def test_a_class_for_each_item() -> None:
    made = (dataclasses.make_dataclass(f"C{i}", ["number"])(i) for i in range(1500))
    results = list(stateful_map(Echo, made, n_jobs=1))
    assert [(type(result).__name__, result.number) for result in results] == [(f"C{i}", i) for i in range(1500)]


def kill_me(item: Point) -> Point:
    if item.x == 2 and item.y == 0.5:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def test_a_new_worker_is_told_again() -> None:
    results = list(stateful_map(kill_me, map(Point, range(8)), n_jobs=1, batch_size=4, on_error="deferred"))
    assert [result.ok for result in results] == [True, True, False, True, True, True, True, True]
    assert isinstance(results[2].exception, errors.WorkerCrashedError)
    assert [result.value for result in results if result.ok] == [Point(i) for i in range(8) if i != 2]


class OnceDeadly:
    def __call__(self, item: tuple[Point, Any]) -> Point:
        point, path = item
        if not path.exists():
            path.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return point


def test_a_retry_in_another_worker(tmp_path: Any) -> None:
    items = [(Point(i), tmp_path / "died") for i in range(6)]
    assert list(stateful_map(OnceDeadly, items, n_jobs=2, retries=1, batch_size=3)) == [Point(i) for i in range(6)]


def test_two_executors_and_a_nested_one() -> None:
    def nested(point: Point) -> tuple[Point, bool]:
        (inner,) = stateful_map(Echo, [point], n_jobs=1)
        return inner, type(inner) is Point

    with StatefulExecutor(Echo, n_jobs=1) as one, StatefulExecutor(Echo, n_jobs=1) as two:
        for executor in (one, two, one):
            assert [type(item) for item in stateful_map(executor, [Point(1), Trouble()])] == [Point, Trouble]
    assert list(stateful_map(nested, [Point(3)], n_jobs=1)) == [(Point(3), True)]


def test_several_threads_pack_at_once() -> None:
    found: list[Any] = []

    def work() -> None:
        found.extend(stateful_map(Echo, map(Point, range(50)), n_jobs=1))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(point.x for point in found) == sorted([*range(50)] * 3)
    assert {type(point) for point in found} == {Point}


def through_the_worker(item: Any) -> Any:
    return get_worker()(item)


def test_parallel_and_submit() -> None:
    from joblib import Parallel, delayed, parallel_config

    with parallel_config("stateful", n_jobs=2):
        results = Parallel()(delayed(Echo())(kind(1)) for kind in KINDS)
    assert [type(result) for result in results] == list(KINDS)
    with StatefulExecutor(Echo, n_jobs=1) as executor:
        results = [executor.submit(through_the_worker, kind(1)).result() for kind in KINDS]
    assert [type(result) for result in results] == list(KINDS)


# --- what can't be pickled ---------------------------------------------------------------------------------

LOCK = threading.Lock()


class Locked:
    lock = LOCK


class UsesLock:
    def __call__(self, item: Any) -> Any:
        with LOCK:
            return item


class HasDefault:
    def wait(self, on: Any = threading.Lock()) -> Any:  # noqa: B008 - what users write
        return on


class Connects:
    end = None

    def __call__(self, item: Any) -> Any:
        return self.end, item


@pytest.mark.parametrize(
    ("item", "named"),
    [
        (Locked, ("attribute 'lock' of class Locked", "cannot pickle '_thread.lock' object")),
        (
            UsesLock,
            ("global 'LOCK', which UsesLock.__call__ uses", "class UsesLock", "cannot pickle '_thread.lock' object"),
        ),
        (HasDefault, ("class HasDefault", "attribute 'wait'", "cannot pickle '_thread.lock' object")),
    ],
)
def test_an_item_whose_class_cannot_be_pickled(item: Any, named: tuple[str, ...]) -> None:
    results = list(stateful_map(Echo, [Point(1), item(), Point(2), item()], n_jobs=1, on_error="deferred"))
    assert [result.ok for result in results] == [True, False, True, False]
    for place in (1, 3):
        assert isinstance(results[place].exception, errors.TransferError)
        for text in named:
            assert text in str(results[place].exception)


def test_a_worker_whose_class_cannot_be_pickled() -> None:
    with pytest.raises(TypeError, match=r"global 'LOCK', which UsesLock.__call__ uses \(for class UsesLock\)"):
        stateful_map(UsesLock, [1], n_jobs=1)
    with socket.socket() as end:
        Connects.end = end  # type: ignore[assignment]
        try:
            with pytest.raises(TypeError, match="attribute 'end' of class Connects"):
                stateful_map(Connects, [1], n_jobs=1)
        finally:
            Connects.end = None
    with pytest.raises(TypeError, match="global 'LOCK'"):
        stateful_map(lambda item: (LOCK, item), [1], n_jobs=1)


def test_a_definition_that_cannot_be_loaded_is_its_items_error(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_in_the_parent.py").write_text("class Thing: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    import only_in_the_parent  # type: ignore[import-not-found]

    class Holder:
        thing = only_in_the_parent.Thing()

    (tmp_path / "only_in_the_parent.py").unlink()
    # Also the class itself, and behind others that have named it for all.
    items = [Point(1), Holder(), Point(2), Holder, [Holder], Holder(), Point]
    results = list(stateful_map(Echo, items, n_jobs=1, on_error="deferred", batch_size=len(items)))
    assert [result.ok for result in results] == [True, False, True, False, False, False, True]
    for result in results:
        assert result.ok or "only_in_the_parent" in str(result.exception)


def test_extension_codes_of_the_users_own_are_left_alone() -> None:
    code = next(_frames._codes) + 1  # which would come next
    copyreg.add_extension(__name__, "Echo", code)
    try:
        assert list(stateful_map(lambda item: item, [Point(1), Point(2), Row(3, "4")], n_jobs=1, batch_size=3)) == [
            Point(1),
            Point(2),
            Row(3, "4"),
        ]
    finally:
        copyreg.remove_extension(__name__, "Echo", code)


# --- by itself -----------------------------------------------------------------------------------------------


def sent_to(peer: Peer, *values: Any, memory: Memory | None = None) -> tuple[Any, ...]:
    transport = Pickled()
    return peer.take(transport.pack_all(values, definer=transport.definer(memory=memory))[0].needs)


@pytest.mark.parametrize("memory", [None, Memory()])
def test_what_is_known_is_not_sent_again(memory: Memory | None) -> None:
    peer = Peer(is_parent=True)
    first = sent_to(peer, Point(1), memory=memory)
    assert any(definition[0] == "x" or len(definition) == 3 for definition in first)
    assert sent_to(peer, Point(2), Point(3), memory=memory) == ()
    assert sent_to(Peer(is_parent=True), Point(2), memory=memory)


def test_what_may_be_overtaken_is_sent_again() -> None:
    peer, transport = Peer(is_parent=True), Pickled()
    needs = transport.pack_all([Point(1)], definer=transport.definer())[0].needs
    first = peer.take(needs)
    assert first
    assert peer.take(needs, again=True) == first
    assert peer.take(needs) == ()


def test_values_that_have_no_such_class_need_nothing() -> None:
    assert sent_to(Peer(is_parent=True), 1, "text", (1, [2]), {3: socket.AF_INET}) == ()


def test_a_change_in_what_a_class_uses_is_seen() -> None:
    settings = {"scale": 1}

    class Scaled:
        def scale(self) -> int:
            return settings["scale"]

    peer, memory = Peer(is_parent=True), Memory()
    assert sent_to(peer, Scaled(), memory=memory)
    assert not sent_to(peer, Scaled(), memory=memory)
    settings["scale"] = 2
    assert sent_to(peer, Scaled(), memory=memory)


# --- scripts and notebooks --------------------------------------------------------------------------------------


def test_a_scripts_own_classes_exceptions_and_globals(run_program: RunProgram) -> None:
    done = run_program(program_text("transport/has_classes_and_globals"))
    assert (done.code, done.out) == (0, "True 14\n"), done.err


def test_cells_of_a_notebook() -> None:
    cells: dict[str, Any] = {"__name__": "__main__"}
    code = "class Cell:\n    def name(self):\n        return helper()\ndef helper():\n    return 'one'\n"
    exec(code, cells)

    def name(item: Any) -> str:
        return str(item.name())

    with StatefulExecutor(n_jobs=1) as executor:
        assert executor.submit(name, cells["Cell"]()).result() == "one"
        exec("def helper():\n    return 'two'\n", cells)
        assert executor.submit(name, cells["Cell"]()).result() == "two"
        old = cells["Cell"]()
        exec(code, cells)
        assert type(executor.submit(lambda item: item, old).result()) is type(old)
        assert type(executor.submit(lambda item: item, cells["Cell"]()).result()) is cells["Cell"]


_SHADOWED = """
def count(item):
    return len(item)
def limit(item):
    try:
        return LIMIT
    except NameError:
        return None
class Counter:
    def __call__(self, item):
        return count(item), limit(item)
"""


@on("loky", "memory", "example")
def test_globals_that_the_program_has_deleted_are_not_found_by_its_code(engine: Engine) -> None:
    cells: dict[str, Any] = {"__name__": "__main__"}
    exec(_SHADOWED, cells)

    def ask() -> list[Any]:
        calls = [executor.submit(cells[name], "abc") for name in ("count", "limit")]
        return [*[call.result() for call in calls], executor.submit(cells["Counter"](), "abc").result()]

    with StatefulExecutor(n_jobs=1, engine=engine) as executor:
        assert ask() == [3, None, (3, None)]
        exec("LIMIT = 5\ndef len(item):\n    return 'own'", cells)
        assert ask() == ["own", 5, ("own", 5)]
        exec("del LIMIT, len", cells)
        assert ask() == [3, None, (3, None)]
        exec("LIMIT = 6", cells)
        assert ask() == [3, 6, (3, 6)]


def test_what_a_workers_code_makes_of_its_globals_stays_when_others_are_deleted() -> None:
    cells: dict[str, Any] = {"__name__": "__main__"}
    exec("OTHER = 1\ndef remember(item):\n    global SEEN\n    SEEN = item\ndef recall(_):\n    return SEEN", cells)
    exec("def other(_):\n    return 'OTHER' in globals(), SEEN\ndef uses(_):\n    return OTHER", cells)
    with StatefulExecutor(n_jobs=1) as executor:
        uses = cells["uses"]
        assert executor.submit(uses, 0).result() == 1
        executor.submit(cells["remember"], 7).result()
        del cells["OTHER"]
        with pytest.raises(NameError):
            executor.submit(uses, 0).result()
        assert executor.submit(cells["other"], 0).result() == (False, 7)
        assert executor.submit(cells["recall"], 0).result() == 7


@pytest.mark.skipif(sys.version_info < (3, 15), reason="there are no lazy imports before Python 3.15")
def test_lazy_imports_travel_as_what_they_stand_for(run_program: RunProgram) -> None:
    """Nor does their first use count as an edit, for which objects would be built anew."""
    done = run_program("""
        lazy import json
        lazy from collections import OrderedDict as Ordered
        import os
        from joblib_stateful import stateful_map

        class Worker:
            def __call__(self, item):
                return json.dumps([item]), list(Ordered(a=item)), os.getpid()

        if __name__ == "__main__":
            found = list(stateful_map(Worker, [1], n_jobs=1))
            json.dumps([1]), Ordered(a=1)
            found += stateful_map(Worker, [2], n_jobs=1)
            print([row[:2] for row in found], len({row[2] for row in found}))
    """)
    assert (done.code, done.out, done.err) == (0, "[('[1]', ['a']), ('[2]', ['a'])] 1\n", "")
