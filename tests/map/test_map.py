"""What `stateful_map` promises about its arguments, on every engine."""

from __future__ import annotations

import itertools
import operator
import os
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import joblib
import pytest

import joblib_stateful
from joblib_stateful import StatefulExecutor, StatefulMap, call_worker, factory, get_worker_info, stateful_map
from programs import program_text
from scenes import Scene, engines, new_scene, orders, parallel_engines

if TYPE_CHECKING:
    from conftest import BuildLog, RunProgram


class Adder:
    """Adds what it was built with, and says so in a log."""

    def __init__(self, log: BuildLog | None = None, to: int = 0) -> None:
        if log is not None:
            log.note(to)
        self.to = to

    def __call__(self, item: int) -> int:
        return self.to + item

    @classmethod
    def from_text(cls, text: str, log: BuildLog | None = None) -> Adder:
        return cls(log, int(text))


def make_adder(to: int) -> Adder:
    return Adder(to=to)


def add_five(item: int) -> int:
    return item + 5


# --- results --------------------------------------------------------------------------------------------


@engines
@orders
def test_each_item_goes_through_a_worker_once(*, engine: str, ordered: bool) -> None:
    sizes: list[Any] = [1, 3, 1000, "auto"]
    for batch_size in sizes:
        options: dict[str, Any] = {"n_jobs": 2, "ordered": ordered, "batch_size": batch_size, "engine": engine}
        results = list(stateful_map(Adder, range(100), shared_kwargs={"to": 5}, **options))
        assert (results if ordered else sorted(results)) == list(range(5, 105))


@engines
def test_results_are_right_with_any_buffer(engine: str) -> None:
    buffers: list[Any] = [1, 2, 7, 100, "auto"]
    for buffer in buffers:
        assert list(stateful_map(add_five, range(50), n_jobs=2, buffer=buffer, engine=engine)) == list(range(5, 55))


@engines
def test_objects_are_built_once_and_found_again_by_the_next_map(engine: str, built: BuildLog) -> None:
    for _ in range(3):
        results = stateful_map(Adder, range(50), n_jobs=2, shared_kwargs={"log": built}, engine=engine)
        assert list(results) == list(range(50))
    assert 1 <= len(built) <= 2


@parallel_engines
def test_unordered_results_come_as_they_finish(engine: str, tmp_path: Path) -> None:
    scene = new_scene(tmp_path)

    def first_waits(item: int) -> int:
        if item == 0:
            scene.gate().wait()
        return item

    results = stateful_map(first_waits, range(4), n_jobs=2, ordered=False, batch_size=1, buffer=4, engine=engine)
    assert sorted(itertools.islice(results, 3)) == [1, 2, 3]
    scene.gate().open()
    assert list(results) == [0]


@parallel_engines
def test_ordered_results_wait_for_the_first(engine: str, tmp_path: Path) -> None:
    scene = new_scene(tmp_path)

    def first_waits_for_the_last(item: int) -> int:
        if item == 0:
            scene.gate().wait()
        if item == 3:
            scene.gate().open()
        return item

    results = stateful_map(first_waits_for_the_last, range(4), n_jobs=2, batch_size=1, buffer=4, engine=engine)
    assert list(results) == [0, 1, 2, 3]


@engines
def test_none_and_falsy_results_are_results(engine: str) -> None:
    values: list[Any] = [None, 0, "", [], False, Ellipsis]
    assert list(stateful_map(lambda item: item, values, n_jobs=2, engine=engine)) == values


@engines
def test_one_map_may_be_the_input_of_another(engine: str) -> None:
    inner = stateful_map(add_five, range(30), n_jobs=2, engine=engine)
    outer = stateful_map(Adder, inner, n_jobs=2, shared_kwargs={"to": 1}, engine=engine)
    assert list(outer) == list(range(6, 36))
    assert len(outer) == 30


@engines
def test_two_maps_may_be_taken_in_turn(engine: str, built: BuildLog) -> None:
    options: dict[str, Any] = {"n_jobs": 2, "shared_kwargs": {"log": built}, "engine": engine}
    one, other = stateful_map(Adder, range(20), **options), stateful_map(Adder, range(20, 40), **options)
    assert list(zip(one, other, strict=True)) == list(zip(range(20), range(20, 40), strict=True))
    assert len(built) <= 2


# --- worker ---------------------------------------------------------------------------------------------

WORKERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "class": (Adder, {"to": 5}),
    "partial of a class, args": (partial(Adder, None, 5), {}),
    "partial of a class, keywords": (partial(Adder, to=5), {}),
    "partial of a class, keywords laid over": (partial(Adder, to=4), {"to": 5}),
    "factory": (factory(make_adder), {"to": 5}),
    "factory of a class": (factory(Adder), {"to": 5}),
    "factory of a lambda": (factory(lambda to: Adder(to=to)), {"to": 5}),
    "factory of a partial": (factory(partial(make_adder, to=5)), {}),
    "factory of a bound classmethod": (factory(Adder.from_text), {"text": "5"}),
    "factory that returns a builtin": (factory(lambda: (5).__add__), {}),
    "function": (add_five, {}),
    "lambda": (lambda item: item + 5, {}),
    "builtin": (partial(operator.add, 5), {}),
    "method of a builtin": ((5).__add__, {}),
    "callable object": (Adder(to=5), {}),
    "partial of a function": (partial(operator.add, 5), {}),
}


@engines
@pytest.mark.parametrize("kind", WORKERS)
def test_every_kind_of_worker(engine: str, kind: str) -> None:
    worker, kwargs = WORKERS[kind]
    results = stateful_map(worker, range(10), n_jobs=1, shared_kwargs=kwargs or None, engine=engine)
    assert list(results) == list(range(5, 15))


@engines
@pytest.mark.parametrize("how", ["class", "partial", "factory", "bound classmethod"])
def test_whatever_builds_objects_builds_one_per_worker(engine: str, how: str, built: BuildLog) -> None:
    builders: dict[str, tuple[Any, dict[str, Any]]] = {
        "class": (Adder, {"log": built}),
        "partial": (partial(Adder, built), {}),
        "factory": (factory(Adder), {"log": built}),
        "bound classmethod": (factory(Adder.from_text), {"log": built, "text": "0"}),
    }
    worker, kwargs = builders[how]
    for _ in range(2):
        # Adder.from_text is another bound method each time, and still the same builder.
        again: Any = factory(Adder.from_text) if how == "bound classmethod" else worker
        assert list(stateful_map(again, range(30), n_jobs=2, shared_kwargs=kwargs, engine=engine)) == list(range(30))
    if how == "factory":  # which is told by its function, not by the wrapper
        list(stateful_map(factory(Adder), range(3), n_jobs=2, shared_kwargs=kwargs, engine=engine))
    assert 1 <= len(built) <= 2


@engines
def test_a_builtin_function_needs_no_wrapper(engine: str) -> None:
    assert list(stateful_map(str.upper, "abc", n_jobs=2, engine=engine)) == ["A", "B", "C"]
    assert list(stateful_map(abs, [-1, 1], n_jobs=2, engine=engine)) == [1, 1]


@engines
def test_an_executor_of_the_callers_is_used_and_left_running(engine: str, built: BuildLog) -> None:
    with StatefulExecutor(Adder, 2, shared_kwargs={"log": built, "to": 1}, engine=engine) as executor:
        executor.warm_up()
        assert list(stateful_map(executor, range(20))) == list(range(1, 21))
        assert list(stateful_map(executor, range(20), ordered=True, batch_size=3)) == list(range(1, 21))
        assert executor.submit(call_worker, 41).result() == 42
        assert sum(info.n_done for info in executor.workers()) == 41
    assert len(built) == 2


@engines
def test_a_map_over_an_executor_that_is_shut_down_says_so(engine: str) -> None:
    executor = StatefulExecutor(Adder, 1, engine=engine)
    executor.shutdown()
    with pytest.raises(RuntimeError, match="shutdown"):
        list(stateful_map(executor, range(3)))


def test_stateless_callables_share_one_pool() -> None:
    def pid(item: int) -> int:
        return os.getpid()

    pids = set(stateful_map(pid, range(4), n_jobs=1)) | set(stateful_map(lambda item: os.getpid(), range(4), n_jobs=1))
    assert len(pids) == 1
    assert os.getpid() not in pids


# --- n_jobs ---------------------------------------------------------------------------------------------


def slot_count(item: int) -> int:
    return get_worker_info().n_jobs


def n_slots(engine: str, worker: Any = slot_count, **options: Any) -> int:
    (count,) = stateful_map(worker, [0], engine=engine, **options)
    assert isinstance(count, int)
    return count


class SlotCounter:
    def __init__(self, name: str = "") -> None:
        self.name = name

    def __call__(self, item: int) -> int:
        return slot_count(item)


@engines
def test_n_jobs_is_the_number_of_slots(engine: str) -> None:
    assert n_slots(engine, n_jobs=3) == 3


@pytest.mark.parametrize("engine", ["threads", "inline"])
def test_n_jobs_defaults(engine: str) -> None:
    three: Any = [{"name": name} for name in "abc"]
    assert n_slots(engine) == joblib.cpu_count()
    assert n_slots(engine, SlotCounter, worker_kwargs=three) == 3
    with joblib.parallel_config(n_jobs=5):
        assert n_slots(engine) == 5
        assert n_slots(engine, n_jobs=2) == 2
        assert n_slots(engine, SlotCounter, worker_kwargs=three) == 3
    with joblib.parallel_config(n_jobs=-1):
        assert n_slots(engine) == joblib.cpu_count()
    assert n_slots(engine) == joblib.cpu_count()


@pytest.mark.parametrize("engine", ["threads", "inline"])
def test_negative_n_jobs_counts_down_from_the_cpus(engine: str) -> None:
    assert n_slots(engine, n_jobs=-1) == joblib.cpu_count()
    assert n_slots(engine, n_jobs=-2) == max(1, joblib.cpu_count() - 1)
    assert n_slots(engine, n_jobs=-1000) == 1
    assert n_slots(engine, SlotCounter, worker_kwargs=[{}, {}, {}], n_jobs=-1) == 3


@engines
def test_one_slot_is_a_worker_too(engine: str) -> None:
    (where,) = stateful_map(lambda item: (os.getpid(), threading.get_ident()), [0], n_jobs=1, engine=engine)
    assert (where[0] == os.getpid()) == (engine != "loky")
    assert (where == (os.getpid(), threading.get_ident())) == (engine == "inline")


@engines
def test_one_item_for_eight_workers_builds_one_object(engine: str, built: BuildLog) -> None:
    assert list(stateful_map(Adder, [1], n_jobs=8, shared_kwargs={"log": built}, engine=engine)) == [1]
    assert len(built) == 1


def test_inline_uses_as_many_objects_as_slots_in_turn() -> None:
    kwargs = [{"to": 100}, {"to": 200}, {"to": 300}]
    results = list(stateful_map(Adder, [0] * 6, worker_kwargs=kwargs, engine="inline", batch_size=1))
    assert sorted(set(results)) == [100, 200, 300]


# --- kwargs and environment -----------------------------------------------------------------------------


class Tells:
    def __init__(self, meeting: Any, a: str = "a0", b: str = "b0") -> None:
        self.meeting, self.values = meeting, (a, b)

    def __call__(self, item: int) -> tuple[int, str, str]:
        if self.meeting is not None:
            self.meeting.join()
        return (get_worker_info().index, *self.values)


@engines
def test_own_kwargs_are_laid_over_shared_ones(engine: str, tmp_path: Path) -> None:
    meeting = None if engine == "inline" else new_scene(tmp_path).meeting(3)
    results = stateful_map(
        Tells,
        range(3),
        shared_kwargs={"meeting": meeting, "a": "a1", "b": "b1"},
        worker_kwargs=[{}, {"a": "a2"}, {"b": "b2"}],
        engine=engine,
        batch_size=1,
    )
    assert sorted(results) == [(0, "a1", "b1"), (1, "a2", "b1"), (2, "a1", "b2")]


@engines
def test_other_kwargs_are_another_object(engine: str) -> None:
    for to in (1, 2, 1):
        assert list(stateful_map(Adder, [0], n_jobs=1, shared_kwargs={"to": to}, engine=engine)) == [to]


def test_worker_env_is_set_before_any_module_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reads_env.py").write_text(
        "import os\n"
        "VALUE = os.environ.get('JS_DEVICE')\n"
        "class Tells:\n"
        "    def __init__(self, meeting):\n"
        "        self.meeting = meeting\n"
        "    def __call__(self, item):\n"
        "        self.meeting.join()\n"
        "        at_start = open('/proc/self/environ').read().split('\\0')\n"
        "        return VALUE, os.environ['JS_DEVICE'], 'JS_DEVICE=' + VALUE in at_start\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("JS_DEVICE", raising=False)
    import reads_env  # type: ignore[import-not-found]  # written above

    results = stateful_map(
        reads_env.Tells,
        range(2),
        shared_kwargs={"meeting": new_scene(tmp_path).meeting(2)},
        worker_env=[{"JS_DEVICE": "0"}, {"JS_DEVICE": "1"}],
        n_jobs=2,
        batch_size=1,
    )
    assert sorted(results) == [("0", "0", True), ("1", "1", True)]
    assert reads_env.VALUE is None
    assert "JS_DEVICE" not in os.environ


def test_worker_env_reaches_stateless_functions() -> None:
    results = stateful_map(lambda item: os.environ["JS_A"], [0], n_jobs=1, worker_env=[{"JS_A": "x"}])
    assert list(results) == ["x"]


# --- pass_as --------------------------------------------------------------------------------------------


@engines
def test_pass_as(engine: str) -> None:
    def show(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    def run(pass_as: Any, item: Any) -> Any:
        return next(stateful_map(show, [item], n_jobs=1, pass_as=pass_as, engine=engine))

    assert run("item", (1, 2)) == (((1, 2),), {})
    assert run("item", {"a": 1}) == (({"a": 1},), {})
    assert run("args", (1, 2)) == ((1, 2), {})
    assert run("args", [1, [2]]) == ((1, [2]), {})
    assert run("args", ()) == ((), {})
    assert run("kwargs", {"a": 1, "b": 2}) == ((), {"a": 1, "b": 2})
    assert run("kwargs", {}) == ((), {})


@engines
def test_pass_as_args_takes_rows_of_arrays(engine: str) -> None:
    np = pytest.importorskip("numpy")
    assert list(stateful_map(operator.mul, np.array([[1, 2], [3, 4]]), n_jobs=1, pass_as="args", engine=engine)) == [
        2,
        12,
    ]


# --- length ---------------------------------------------------------------------------------------------


def unknown(n: int = 10) -> Iterator[int]:
    yield from range(n)


class Lying:
    """Says one length and has another."""

    def __init__(self, says: int, has: int) -> None:
        self.says, self.has = says, has

    def __len__(self) -> int:
        return self.says

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.has))


@engines
def test_len_is_that_of_the_input_or_total(engine: str) -> None:
    def new(iterable: Any, **options: Any) -> StatefulMap[int]:
        return stateful_map(add_five, iterable, n_jobs=1, engine=engine, **options)

    assert len(new(range(7))) == 7
    assert len(new(unknown(), total=10)) == 10
    results = new(unknown())
    with pytest.raises(TypeError, match=r"total="):
        len(results)
    assert operator.length_hint(results, 99) >= 0
    assert len(list(results)) == 10  # list() asks for the hint
    with pytest.raises(TypeError, match=r"total="):
        len(results)


def test_only_a_map_of_which_it_is_known_that_it_is_empty_is_false() -> None:
    assert stateful_map(add_five, iter([]), n_jobs=1)  # it isn't known
    assert stateful_map(add_five, [1], n_jobs=1)
    assert not stateful_map(add_five, [], n_jobs=1)
    with stateful_map(add_five, [1], n_jobs=1, engine="inline") as results:
        assert list(results) == [6]
        assert results  # as a sequence that was gone through


@engines
def test_a_length_that_is_known_is_the_hint_too(engine: str) -> None:
    results = stateful_map(add_five, range(5), n_jobs=2, engine=engine)
    assert operator.length_hint(results) == 5
    assert list(results) == [5, 6, 7, 8, 9]
    assert (operator.length_hint(results), len(results)) == (5, 5)


@engines
def test_length_hint_of_an_iterator_that_has_one(engine: str) -> None:
    results = stateful_map(add_five, iter([1, 2, 3]), n_jobs=2, engine=engine)
    assert operator.length_hint(results) == 3
    next(results)
    assert operator.length_hint(results) == 2
    with pytest.raises(TypeError):
        len(results)
    assert list(results) == [7, 8]
    assert operator.length_hint(results) == 0


@engines
@pytest.mark.parametrize("batch_size", [1, 7, "auto"])
def test_a_length_that_lies_costs_no_item(engine: str, batch_size: Any) -> None:
    for says, has in [(1000, 20), (3, 50), (0, 50), (5, 0)]:
        shown: list[int] = []
        results = stateful_map(
            add_five, Lying(says, has), n_jobs=2, batch_size=batch_size, progress=shown.append, engine=engine
        )
        assert len(results) == says
        assert [*results] == list(range(5, has + 5))
        assert sum(shown) == has


@engines
def test_a_total_that_is_wrong_costs_no_item(engine: str) -> None:
    for total in (0, 3, 1000):
        results = stateful_map(add_five, unknown(20), n_jobs=2, total=total, engine=engine)
        assert [*results] == list(range(5, 25))


class NoLength:
    """Has `__len__`, as some data sets do, but raises in it."""

    def __init__(self, error: type[Exception]) -> None:
        self.error = error

    def __len__(self) -> int:
        raise self.error("not known")

    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


@pytest.mark.parametrize("error", [TypeError, NotImplementedError, ValueError, AttributeError])
def test_an_input_whose_len_raises_has_none(error: type[Exception]) -> None:
    results = stateful_map(add_five, NoLength(error), n_jobs=1, engine="inline")
    with pytest.raises(TypeError, match="total="):
        len(results)
    assert [*results] == [5, 6, 7]
    assert len(stateful_map(add_five, NoLength(error), n_jobs=1, engine="inline", total=3)) == 3


def test_an_input_that_is_too_long_for_len_has_none() -> None:
    results = stateful_map(add_five, range(10**30), n_jobs=1, engine="inline")
    assert next(results) == 5
    with pytest.raises(TypeError, match="total="):
        len(results)


# --- ends and beginnings --------------------------------------------------------------------------------


@engines
@orders
@pytest.mark.parametrize("policy", ["immediate", "wait_others", "deferred"])
def test_an_empty_input_gives_nothing_and_builds_nothing(
    *,
    engine: str,
    ordered: bool,
    policy: Any,
    built: BuildLog,
) -> None:
    results = stateful_map(
        Adder, [], n_jobs=2, shared_kwargs={"log": built}, ordered=ordered, on_error=policy, engine=engine
    )
    assert (len(results), list(results), list(results)) == (0, [], [])
    assert len(built) == 0


@engines
def test_a_map_that_has_ended_stays_ended(engine: str) -> None:
    results = stateful_map(add_five, range(3), n_jobs=2, engine=engine)
    assert iter(results) is results
    assert list(results) == [5, 6, 7]
    assert list(results) == []
    results.close()
    results.close()
    with pytest.raises(StopIteration):
        next(results)
    assert "3 of 3" in repr(results)


@engines
def test_repr_tells_how_far_it_is(engine: str) -> None:
    results = stateful_map(add_five, unknown(3), n_jobs=1, engine=engine)
    assert repr(results) == "<StatefulMap not started, 0 of ? done>"
    next(results)
    assert "running" in repr(results)
    results.close()
    assert "closed" in repr(results)


@engines
def test_an_object_of_an_engine_serves_as_well_as_its_name(engine: str) -> None:
    from joblib_stateful.engines import get

    assert list(stateful_map(add_five, range(3), n_jobs=1, engine=get(engine))) == [5, 6, 7]


def inner_threads(item: Any) -> str | None:
    return os.environ.get("OMP_NUM_THREADS")


@engines
def test_inner_threads_of_workers(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def value(**options: Any) -> str | None:
        joblib_stateful.shutdown()  # workers that run keep what they had when others are added
        results: list[str | None] = list(stateful_map(inner_threads, [0], engine=engine, **options))
        return results[0]

    if engine == "loky":
        assert value(n_jobs=1) == str(joblib.cpu_count())
        assert value(n_jobs=joblib.cpu_count()) == "1"
        assert value(n_jobs=1000) == "1"
        assert value(n_jobs=1, inner_max_num_threads=7) == "7"
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        assert value(n_jobs=1) == "3"
        assert value(n_jobs=1, inner_max_num_threads=7) == "7"
        assert value(n_jobs=1, worker_env=[{"OMP_NUM_THREADS": "2"}]) == "2"
    else:
        assert value(n_jobs=1) is None


def test_a_script_with_everything_in_main(run_program: RunProgram) -> None:
    done = run_program(program_text("map/defines_everything_in_main"))
    assert (done.code, done.err) == (0, "")
    assert done.out == "[0, 2, 4, 6, 8]\n" * 2


@parallel_engines
def test_maps_in_several_threads_at_once(engine: str, built: BuildLog, tmp_path: Path) -> None:
    scene: Scene = new_scene(tmp_path)
    found: dict[int, list[int]] = {}

    def consume(start: int) -> None:
        scene.meeting(4).join()
        results = stateful_map(
            Adder, range(start, start + 200), n_jobs=2, shared_kwargs={"log": built}, engine=engine, buffer=10
        )
        found[start] = list(results)

    threads = [threading.Thread(target=consume, args=(start,)) for start in (0, 1000, 2000, 3000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {start: list(range(start, start + 200)) for start in (0, 1000, 2000, 3000)}
    assert len(built) <= 2


@parallel_engines
@pytest.mark.parametrize("batch_size", [7, "auto"])
def test_several_threads_share_the_results_of_one_map(engine: str, batch_size: Any) -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # they get in each other's way wherever they can
    try:
        results = stateful_map(abs, range(5000), n_jobs=2, engine=engine, batch_size=batch_size, buffer=500)
        found: list[list[int]] = [[] for _ in range(4)]
        threads = [threading.Thread(target=taken.extend, args=(results,)) for taken in found]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert sorted(itertools.chain(*found)) == list(range(5000))
    assert all(taken == sorted(taken) for taken in found), "each thread gets its results in order"


def test_joblib_is_loaded_by_the_first_result_and_not_in_workers(run_program: RunProgram) -> None:
    done = run_program(program_text("map/tells_when_joblib_is_imported"))
    assert (done.code, done.out, done.err) == (0, "False\n{False} True\n{False}\n", "")


def test_the_records_for_users_are_made_where_one_is_given(run_program: RunProgram) -> None:
    """Making them takes longer than the rest of the messages' module, in the program and in each worker."""
    done = run_program(
        """
        import sys
        from joblib_stateful import get_worker_info, stateful_map

        def look(item):
            before = "joblib_stateful._public" in sys.modules
            return before, get_worker_info().index, "joblib_stateful._public" in sys.modules

        if __name__ == "__main__":
            print(list(stateful_map(look, [0], n_jobs=1)), "joblib_stateful._public" in sys.modules)
            print(list(stateful_map(abs, [-1], n_jobs=1, on_error="deferred")), "joblib_stateful._public" in sys.modules)
        """
    )
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        "[(False, 0, True)] False",
        "[TaskResult(index=0, value=1, exception=None)] True",
    ]


def test_the_records_for_users_are_not_made_under_the_lock(run_program: RunProgram) -> None:
    """Finalisers that run meanwhile may want it, too."""
    done = run_program(program_text("map/looks_at_locks_while_it_imports"))
    assert (done.code, done.out, done.err) == (0, "free: True\nempty\n", "")


def test_the_first_worker_is_started_before_joblib_is_imported(run_program: RunProgram) -> None:
    """Which takes longer than the start, where numpy is installed."""
    done = run_program(program_text("map/tells_what_is_imported_when_a_worker_starts"))
    assert done.code == 0, done.err
    assert done.out.splitlines() == ["started False", "[1]"]


# --- batches that take too long -------------------------------------------------------------------------


def slot_of_long_ones(item: int) -> tuple[int, int | None]:
    if item >= 20_000:
        time.sleep(0.005)
    return item, get_worker_info().index if item >= 20_000 else None


@parallel_engines
def test_items_that_become_long_in_mid_batch_are_shared_by_all_workers(engine: str) -> None:
    # A batch of those before would hold all of these.
    items, shown = (item for item in range(20_300)), list[int]()
    results = list(stateful_map(slot_of_long_ones, items, n_jobs=2, progress=shown.append, engine=engine))
    assert [item for item, _ in results] == list(range(20_300))
    assert {slot for _, slot in results} == {None, 0, 1}
    assert sum(shown) == 20_300
    assert max(shown[-3:]) < 250, "the bar stood still until all of them were done"


def test_a_meeting_of_one_waits_for_nobody(tmp_path: Path) -> None:
    scene = new_scene(tmp_path)
    scene.meeting(1).join()
    scene.gate().open()
    scene.gate().wait()
    assert scene.log().lines == []
