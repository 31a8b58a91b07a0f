"""Where the time of a map went: `report`, its picture, and the file that ``trace=`` writes."""

from __future__ import annotations

import json
import os
import signal
import threading
import warnings
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from joblib_stateful import StatefulExecutor, stateful_map
from joblib_stateful._map._measures import MapMeasures
from joblib_stateful._map._report import report_of
from joblib_stateful._map._trace import TraceWriter
from joblib_stateful._measuring._measures import MOST_KEPT
from joblib_stateful._scheduling._requests import Record
from needs import needs
from scenes import crash, engines, new_scene, orders, parallel_engines

if TYPE_CHECKING:
    from conftest import RunProgram


# --- what it says, of measurements that are given --------------------------------------------------------


def measured(*records: Record, seconds: float = 10.0, **of_program: float) -> MapMeasures:
    measures = MapMeasures()
    measures.began, measures.ended = 100.0, 100.0 + seconds
    measures.inside = seconds - of_program.pop("consumer", 0.0)
    for name, value in of_program.items():
        setattr(measures, name, value)
    for record in records:
        measures.note(record)
    return measures


def ran(
    slot: int, since: float, until: float, *, work: float | None = None, first: int = 0, n_items: int = 1
) -> Record:
    seconds = until - since if work is None else work
    return Record("ran", slot, 1, 100 + since, 100 + until, seconds, first, n_items, n_items)


@pytest.mark.parametrize(
    ("measures", "advice"),
    [
        (measured(ran(0, 0, 9.8), ran(1, 0, 9.8)), "workers' own code takes 98% of their time"),
        (measured(ran(0, 0, 1), ran(1, 0, 1), input=7.0), "input takes 70% of the time, with its own code"),
        (
            measured(ran(0, 0, 1), ran(1, 0, 1), consumer=8.0),
            "loop over the results takes 80% of the time: workers wait for room",
        ),
        (
            measured(*(Record("built", slot, 1, 100, 106, 5.9) for slot in (0, 1)), ran(0, 6, 8), ran(1, 6, 8)),
            "Building the objects takes 60% of the workers' time",
        ),
        (measured(ran(0, 0, 9, work=2), ran(1, 0, 9, work=2)), "Transport takes 70% of the workers' time"),
        (measured(ran(0, 0, 2), ran(0, 2, 9, first=17), ran(1, 0, 2)), "Item 17 ran alone for 7 s at the end"),
        (measured(ran(0, 0, 2), ran(0, 2, 9), ran(1, 0, 2)), "put long items first, or cut them into smaller ones"),
        (measured(ran(0, 0, 2), ran(1, 0, 9, first=17)), "had nothing to do: cut it into smaller ones"),
        (measured(ran(0, 0, 2), ran(1, 0, 9, n_items=5)), "The last message ran alone for 7 s"),
        (measured(ran(0, 0, 1), ran(0, 1, 4), waiting=10.0), "Nothing stands out"),
        (measured(seconds=1.0, input=0.9), "There was nothing to do"),
    ],
)
@pytest.mark.unit
def test_it_says_what_takes_most_and_what_to_change(measures: MapMeasures, advice: str) -> None:
    report = report_of(measures, n_items=2)
    assert advice in report.advice
    assert report.advice in str(report)


@pytest.mark.unit
def test_of_items_under_way_at_once_it_says_how_many_there_were() -> None:
    measures = measured(*(ran(slot, 0, 9.9) for slot in (0, 1) for _ in range(4)))
    report = report_of(measures, n_items=8, n_at_once=4)
    assert report.busy == pytest.approx(0.99)
    assert "worker 0: 4.0 of 4 under way on average" in str(report)
    assert "worker 1: 4.0 of 4 under way on average" in str(report)
    assert "raise max_concurrency" in report.advice


@pytest.mark.unit
def test_its_numbers_are_those_that_were_measured() -> None:
    records = [
        Record("built", 0, 1, 100, 101, 0.5),
        ran(0, 1, 5, work=3, n_items=4),
        Record("died", 1, 1, 100, 102, n_items=2, detail="died"),
    ]
    report = report_of(measured(*records, input=1.0, waiting=6.0, consumer=2.0), n_items=4)
    assert (report.seconds, report.n_items) == (10.0, 4)
    assert [(each.slot, each.work, each.building, each.transport) for each in report.workers] == [
        (0, 3, 1, 1),
        (1, 2, 0, 0),
    ]
    assert [(each.n_items, each.n_builds, each.n_deaths) for each in report.workers] == [(4, 1, 0), (0, 0, 1)]
    shares = report.busy, report.building, report.transport, report.input, report.waiting, report.consumer
    assert shares == pytest.approx((0.25, 0.05, 0.05, 0.1, 0.6, 0.2))
    text = str(report)
    assert "4 items in 10 s, 0.4 per second, by 2 workers" in text
    assert "25% in their code, 5% building, 5% transport, 65% with nothing to do" in text
    assert "lost 1 time" in text


@pytest.mark.unit
def test_sums_are_of_all_messages_and_only_the_latest_are_kept() -> None:
    measures = measured(*(ran(0, at / 1000, at / 1000 + 0.001) for at in range(MOST_KEPT + 500)), seconds=20.0)
    assert len(measures.records) == MOST_KEPT
    report = report_of(measures, n_items=MOST_KEPT + 500)
    assert report.workers[0].n_items == MOST_KEPT + 500
    assert len(report._repr_html_()) < 20_000, "a picture of so many messages is no larger than what can be seen of it"


# --- of maps that run --------------------------------------------------------------------------------------


@engines
@orders
def test_a_map_reports_before_it_starts_while_it_runs_and_when_it_is_over(engine: str, *, ordered: bool) -> None:
    results = stateful_map(abs, range(-200, 0), n_jobs=2, engine=engine, ordered=ordered)
    assert str(results.report()) == "Nothing has started: the first result was not asked for."
    assert (results.workers(), results._repr_html_().count("<svg")) == ([], 0)
    next(results)
    assert results.report().n_items == 1
    assert len(results.workers()) == 2
    assert len(list(results)) == 199
    report = results.report()
    assert report.n_items == sum(worker.n_items for worker in report.workers) == 200
    assert report.seconds == results.report().seconds > 0, "its clock stands still when it is over"
    picture = ET.fromstring(results._repr_html_())
    assert picture.find("{http://www.w3.org/2000/svg}svg") is not None
    assert str(report).splitlines()[0] in "".join(picture.itertext())


@parallel_engines
def test_what_runs_now_counts(engine: str, tmp_path: Path) -> None:
    scene = new_scene(tmp_path)

    def hold(item: int) -> int:
        if item:
            scene.meeting(2).join()
            scene.gate().wait()
        return item

    results = stateful_map(hold, [0, 1], n_jobs=1, engine=engine, batch_size=1, buffer=2)
    assert next(results) == 0
    before = results.report()
    scene.meeting(2).join()
    now = results.report()
    assert now.workers[0].work > before.workers[0].work
    assert (now.n_items, now.workers[0].n_items) == (1, 1)
    scene.gate().open()
    assert list(results) == [1]
    assert results.report().workers[0].n_items == 2


class Player:
    """Crashes, or returns its item."""

    def __call__(self, item: Any) -> Any:
        return crash() if item == "crash" else item


@orders
def test_a_trace_has_each_item_once_and_what_went_wrong(tmp_path: Path, *, ordered: bool) -> None:
    path = tmp_path / "trace.json"
    items = [*range(50), "crash", *range(50)]
    results = stateful_map(Player, items, n_jobs=2, on_error="deferred", ordered=ordered, trace=path, batch_size=4)
    assert sum(result.ok for result in results) == 100
    events = json.loads(path.read_text())
    rows = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert {"the input", "transport"} <= set(rows.values())  # all may be done before the second worker stands
    done = [event for event in events if event.get("cat") == "ran"]
    assert sum(event["args"]["run"] for event in done) == 100
    assert {rows[event["tid"]] for event in done} <= {"worker 0", "worker 1"}
    assert "items 0 to 3" in {event["name"] for event in done}
    (fault,) = [event for event in events if event["ph"] == "i"]
    assert "died" in fault["name"]
    assert sum(event.get("cat") == "built" for event in events) >= 2
    counters = [event["args"] for event in events if event["ph"] == "C" and event["name"] == "buffer"]
    assert all(0 <= counter["items"] <= len(items) for counter in counters)
    begun = sorted(event["id"] for event in events if event["ph"] == "b")
    assert begun == sorted(event["id"] for event in events if event["ph"] == "e")
    times = [event["ts"] for event in events if event["ph"] == "X"]
    assert max(times) - min(times) < 120e6, "microseconds, of one clock"


@pytest.mark.parametrize("engine", ["loky", "threads"])
def test_a_trace_shows_items_under_way_at_once_as_such(engine: str, tmp_path: Path) -> None:
    async def same(item: int) -> int:
        return item

    path = tmp_path / "trace.json"
    results = stateful_map(same, range(50), n_jobs=2, max_concurrency=4, trace=path, engine=engine)
    assert list(results) == list(range(50))
    events = [event for event in json.loads(path.read_text()) if event.get("cat") == "ran"]
    # In pairs, for the spans of a row may not overlap.
    begins = {event["id"]: event for event in events if event["ph"] == "b"}
    ends = {event["id"]: event for event in events if event["ph"] == "e"}
    assert begins.keys() == ends.keys()
    assert len(begins) + len(ends) == len(events)
    assert sorted(event["name"] for event in begins.values()) == sorted(f"item {item}" for item in range(50))
    assert all(ends[key]["ts"] >= event["ts"] for key, event in begins.items())


def test_a_program_that_dies_leaves_a_trace_of_what_it_has_done(run_program: RunProgram, tmp_path: Path) -> None:
    run_program(
        """
        import os, signal, sys
        from joblib_stateful import stateful_map

        if __name__ == "__main__":
            for n, _ in enumerate(stateful_map(abs, range(10**9), n_jobs=1, batch_size=1, trace=sys.argv[1])):
                if n == 100:
                    sys.stdout.flush()
                    os.kill(os.getpid(), signal.SIGKILL)
        """,
        str(tmp_path / "trace.json"),
    )
    text = (tmp_path / "trace.json").read_text()
    events = json.loads(text[: text.rindex("\n,") if "\n," in text else text.rindex(",\n")] + "]")
    assert sum(event.get("cat") == "ran" for event in events) >= 10


def test_a_trace_where_none_can_be_written_is_refused_at_the_call(tmp_path: Path) -> None:
    def trace(path: Any) -> Any:
        return stateful_map(abs, [1], trace=path)

    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere.*Make it first"):
        trace(tmp_path / "nowhere" / "trace.json")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        trace(tmp_path)
    with pytest.raises(TypeError, match="trace must be the path of a file"):
        trace(7)
    if os.getuid():  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(PermissionError, match="can't be written"):
            trace(tmp_path / "locked" / "trace.json")
    assert not list(tmp_path.glob("*.json")), "nothing is written before the first result is asked for"


def test_notebooks_show_an_executor_as_a_table() -> None:
    with StatefulExecutor(n_jobs=2, engine="threads") as executor:
        executor.run_on_all(int)
        table = ET.fromstring(executor._repr_html_())
    rows = [[cell.text for cell in row] for row in table.iter("tr")]
    assert rows[0][:3] == ["slot", "state", "pid"]
    assert [row[:2] for row in rows[1:]] == [["0", "idle"], ["1", "idle"]]


@engines
def test_a_trace_that_can_not_be_written_ends_nothing(
    engine: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    results = stateful_map(abs, range(-300, 0), n_jobs=2, engine=engine, trace=folder / "trace.json", batch_size=1)
    folder.rmdir()
    assert len(list(results)) == 300
    told = [record.getMessage() for record in caplog.records if "could not be written" in record.getMessage()]
    assert len(told) == 1
    assert "trace.json" in told[0]


def test_of_two_maps_with_one_trace_the_second_goes_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "trace.json"
    first, second = (stateful_map(abs, range(20), n_jobs=2, engine="threads", trace=path) for _ in range(2))
    assert (next(first), next(second)) == (0, 0)
    assert (len(list(first)), len(list(second))) == (19, 19)
    events = json.loads(path.read_text())
    assert sum(event["args"]["run"] for event in events if event.get("cat") == "ran") == 20
    assert sum("another map that runs now writes it" in record.getMessage() for record in caplog.records) == 1


@needs("fork")
def test_a_fork_leaves_the_trace_alone(run_program: RunProgram, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    done = run_program(
        """
        import os, sys, warnings
        from joblib_stateful import stateful_map

        if __name__ == "__main__":
            warnings.simplefilter("ignore")  # Python 3.12 and later warn of each fork beside threads
            results = stateful_map(abs, range(20), n_jobs=2, trace=sys.argv[1], batch_size=1)
            next(results)
            if (pid := os.fork()) == 0:
                sys.exit(0)
            os.waitpid(pid, 0)
            print(len(list(results)))
        """,
        str(path),
    )
    assert (done.code, done.out) == (0, "19\n"), done.err
    assert sum(event.get("cat") == "ran" for event in json.loads(path.read_text())) == 20


@needs("fork")
def test_a_fork_does_not_wait_for_a_thread_of_its_parents_that_writes_a_trace(tmp_path: Path) -> None:
    writer, is_held, may_end = TraceWriter(tmp_path / "trace.json"), threading.Event(), threading.Event()

    def write() -> None:
        with writer._lock:
            is_held.set()
            may_end.wait()

    thread = threading.Thread(target=write)
    thread.start()
    is_held.wait()
    with warnings.catch_warnings(action="ignore"):  # Python 3.12 and later warn of each fork beside threads
        child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)
        writer.flush()
        writer.close()
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    may_end.set()
    thread.join()
    assert status == 0


def test_a_finaliser_that_ends_a_map_while_its_trace_is_written_has_the_end_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, write = TraceWriter(tmp_path / "trace.json"), os.write

    def write_and_collect(fd: int, text: bytes) -> int:
        monkeypatch.undo()
        writer.write_stay("input", 1, 2)
        writer.flush()
        writer.close()
        return write(fd, text)

    writer.write_stay("waiting", 0, 1)
    monkeypatch.setattr(os, "write", write_and_collect)
    writer.flush()
    names = [event["name"] for event in json.loads(writer._path.read_text())]
    assert names.count("waiting") == 1
    assert names[-1] == "process_sort_index"
