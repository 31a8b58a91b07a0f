"""Progress in every form: it adds up, is shown in the consumer's thread only, and reaches its end."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tqdm import tqdm

from joblib_stateful import stateful_map
from scenes import crash, engines, new_scene, orders, parallel_engines

if TYPE_CHECKING:
    from conftest import RunProgram


def identity(item: Any) -> Any:
    return item


def fail_on_odd(item: int) -> int:
    if item % 2:
        raise ValueError(item)
    return item


class Bar(tqdm):  # type: ignore[misc]  # tqdm is untyped
    """A tqdm class of the user's."""

    made: list[Bar] = []  # noqa: RUF012 - for the test to look at

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, file=io.StringIO(), **kwargs)
        self.is_closed = False
        Bar.made.append(self)

    def close(self) -> None:
        self.is_closed = True
        super().close()


@pytest.fixture(autouse=True)
def _no_bars() -> None:
    Bar.made.clear()


@engines
@orders
def test_counts_add_up_to_the_number_of_items(*, engine: str, ordered: bool) -> None:
    sizes: list[Any] = [1, 7, "auto"]
    for batch_size in sizes:
        counts: list[int] = []
        results = stateful_map(
            fail_on_odd,
            range(100),
            n_jobs=2,
            ordered=ordered,
            batch_size=batch_size,
            on_error="deferred",
            progress=counts.append,
            engine=engine,
        )
        assert sum(result.ok for result in results) == 50
        assert sum(counts) == 100
        assert all(type(count) is int and count > 0 for count in counts)


@engines
def test_a_callable_is_called_in_the_consumers_thread_inside_next_only(engine: str) -> None:
    threads: set[int] = set()
    is_inside = False
    was_outside = []

    def note(n: int) -> None:
        threads.add(threading.get_ident())
        was_outside.append(not is_inside)

    results = stateful_map(identity, range(200), n_jobs=2, progress=note, engine=engine)
    for _ in range(200):
        is_inside = True
        next(results)
        is_inside = False
    is_inside = True
    assert list(results) == []
    assert threads == {threading.get_ident()}
    assert not any(was_outside)


@engines
def test_a_callable_follows_the_consumer_into_another_thread(engine: str) -> None:
    threads: list[int] = []
    results = stateful_map(
        identity, range(50), n_jobs=2, progress=lambda n: threads.append(threading.get_ident()), engine=engine
    )
    thread = threading.Thread(target=lambda: list(results))
    thread.start()
    thread.join()
    assert set(threads) == {thread.ident}


@parallel_engines
def test_progress_moves_while_the_first_result_is_still_to_come(engine: str, tmp_path: Path) -> None:
    scene = new_scene(tmp_path)

    def first_waits(item: int) -> int:
        if item == 0:
            scene.gate().wait()
        return item

    seen = []

    def note(n: int) -> None:
        seen.append(n)
        if sum(seen) == 3:
            scene.gate().open()

    results = stateful_map(first_waits, range(4), n_jobs=2, batch_size=1, buffer=4, progress=note, engine=engine)
    assert list(results) == [0, 1, 2, 3]
    assert sum(seen) == 4


@parallel_engines
@orders
def test_progress_moves_while_a_batch_is_under_way(*, engine: str, ordered: bool, tmp_path: Path) -> None:
    scene = new_scene(tmp_path)

    def last_waits(item: int) -> int:
        if item == 7:
            scene.gate().wait()
        return fail_on_odd(item)

    seen = []

    def note(n: int) -> None:
        seen.append(n)
        if sum(seen) == 7:
            scene.gate().open()

    results = stateful_map(
        last_waits, range(8), n_jobs=2, batch_size=8, ordered=ordered, on_error="deferred", progress=note, engine=engine
    )
    assert sum(result.ok for result in results) == 4
    assert sum(seen) == 8


def test_what_a_dead_worker_had_finished_is_shown_once(tmp_path: Path) -> None:
    scene = new_scene(tmp_path)

    def one_dies(item: int) -> int:
        if item == 5:
            scene.log("runs").note(item)
            scene.gate().wait()
            if len(scene.log("runs").lines) == 1:
                crash()
        return item

    seen = []

    def note(n: int) -> None:
        seen.append(n)
        if sum(seen) == 5:
            scene.gate().open()

    assert list(stateful_map(one_dies, range(8), n_jobs=1, batch_size=8, retries=1, progress=note)) == list(range(8))
    assert sum(seen) == 8


@engines
def test_bars_reach_their_end(engine: str) -> None:
    for form in ("class", "dict", "bar", "bar with less"):
        reach_the_end(engine, form)
        Bar.made.clear()


def reach_the_end(engine: str, form: str) -> None:
    n_items = 50 if form == "bar with less" else 60
    progress: Any
    if form == "class":
        progress = Bar
    elif form == "dict":
        progress = {"desc": "working", "file": io.StringIO()}
    else:
        progress = Bar(total=60, initial=60 - n_items)
    assert len(list(stateful_map(identity, range(n_items), n_jobs=2, progress=progress, engine=engine))) == n_items
    if form == "dict":
        text = progress["file"].getvalue()
        assert "working: 100%" in text
        assert "60/60" in text
        return
    (bar,) = Bar.made
    assert (bar.n, bar.total) == (60, 60)
    assert "60/60" in bar.fp.getvalue()
    assert "100%" in bar.fp.getvalue()
    # A bar of the caller's is left open for more; one of ours is closed.
    assert bar.is_closed == (form == "class")
    bar.close()


@engines
def test_true_shows_a_bar_on_stderr(engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    list(stateful_map(identity, range(30), n_jobs=1, progress=True, engine=engine))
    out, err = capsys.readouterr()
    assert out == ""
    assert "100%" in err
    assert "30/30" in err


@engines
@pytest.mark.parametrize("progress", [False, None])
def test_false_shows_nothing(engine: str, progress: Any, capsys: pytest.CaptureFixture[str]) -> None:
    list(stateful_map(identity, range(30), n_jobs=1, progress=progress, engine=engine))
    assert capsys.readouterr() == ("", "")


def test_an_empty_dict_is_a_bar_too(capsys: pytest.CaptureFixture[str]) -> None:
    list(stateful_map(identity, range(30), n_jobs=1, progress={}, engine="inline"))
    assert "30/30" in capsys.readouterr().err


@engines
def test_the_total_is_the_length_or_what_was_told(engine: str) -> None:
    def total(iterable: Any, **options: Any) -> Any:
        list(stateful_map(identity, iterable, n_jobs=1, engine=engine, **options))
        return Bar.made[-1].total

    assert total(range(5), progress=Bar) == 5
    assert total(iter(range(5)), progress=Bar) is None
    assert total(iter(range(5)), progress=Bar, total=5) == 5
    file = io.StringIO()
    list(stateful_map(identity, range(5), n_jobs=1, engine=engine, progress={"total": 10, "file": file}))
    assert "5/10" in file.getvalue()  # what the dict says counts


@engines
def test_nothing_is_shown_before_the_first_next(engine: str) -> None:
    results = stateful_map(identity, range(5), n_jobs=1, progress=Bar, engine=engine)
    assert Bar.made == []
    next(results)
    assert len(Bar.made) == 1
    results.close()
    assert Bar.made[0].is_closed


@engines
@pytest.mark.parametrize("policy", ["immediate", "wait_others"])
def test_a_bar_is_closed_after_an_error(engine: str, policy: Any) -> None:
    results = stateful_map(
        fail_on_odd, range(50), n_jobs=1, on_error=policy, progress=Bar, batch_size=1, buffer=1, engine=engine
    )
    with pytest.raises(ValueError, match="1"):
        list(results)
    assert Bar.made[0].is_closed
    assert 1 <= Bar.made[0].n <= 2


@engines
def test_an_exception_of_the_callable_is_the_consumers(engine: str) -> None:
    def broken(n: int) -> None:
        raise ZeroDivisionError

    results = stateful_map(identity, range(50), n_jobs=1, progress=broken, engine=engine)
    with pytest.raises(ZeroDivisionError):
        list(results)
    assert list(results) == []


@engines
def test_the_callable_may_end_the_map(engine: str) -> None:
    counts: list[int] = []

    def enough(n: int) -> None:
        counts.append(n)
        if sum(counts) >= 10:
            results.close()

    results = stateful_map(identity, range(1000), n_jobs=1, batch_size=1, buffer=5, progress=enough, engine=engine)
    assert len(list(results)) <= 11
    assert list(results) == []


def test_importing_the_package_imports_no_notebook_code(run_program: RunProgram) -> None:
    done = run_program("""
        import sys
        import joblib_stateful
        from joblib_stateful import stateful_map
        print(sorted(name for name in sys.modules if name.startswith(("tqdm", "ipywidgets", "IPython", "sklearn"))))
    """)
    assert (done.code, done.out, done.err) == (0, "[]\n", "")
