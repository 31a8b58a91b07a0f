"""Where the time of an executor's workers went: `StatefulExecutor.report`."""

from __future__ import annotations

import os
import signal
import threading
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from joblib_stateful import StatefulExecutor, call_worker, errors, stateful_map
from joblib_stateful._executor._report import report_of
from joblib_stateful._measuring._measures import MOST_KEPT, Measures
from joblib_stateful._scheduling._requests import Record
from needs import needs
from scenes import Scene, crash, engines, new_scene, parallel_engines

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import RunProgram
    from joblib_stateful._measuring._report import Report

SVG = "{http://www.w3.org/2000/svg}"


class Player:
    """Crashes, or returns its item."""

    def __call__(self, item: Any) -> Any:
        return crash() if item == "crash" else item


def numbers_of(report: Report) -> tuple[int, int, int]:
    """Return how many items, builds and deaths there were in all workers."""
    return (
        sum(worker.n_items for worker in report.workers),
        sum(worker.n_builds for worker in report.workers),
        sum(worker.n_deaths for worker in report.workers),
    )


def rows_in(report: Report) -> list[str]:
    """Return the names of the picture's rows."""
    texts = [text.text or "" for text in ET.fromstring(report._repr_html_()).iter(f"{SVG}text")]
    return [text for text in texts if text.startswith(("worker ", "program"))]


# --- what it says, of measurements that are given --------------------------------------------------------


def ran(slot: int, since: float, until: float, *, work: float | None = None, n_items: int = 1) -> Record:
    return Record(
        "ran", slot, 1, 100 + since, 100 + until, until - since if work is None else work, 0, n_items, n_items
    )


def died(slot: int, since: float, until: float, life: int) -> Record:
    return Record("died", slot, 1, 100 + since, 100 + until, n_items=1, detail="died", life=life)


def reported(*records: Record, seconds: float = 10.0, n_at_once: int = 1) -> Report:
    measures = Measures()
    measures.began, measures.ended = 100.0, 100.0 + seconds
    for record in records:
        measures.note(record)
    return report_of(measures, [], n_at_once=n_at_once)


@pytest.mark.parametrize(
    ("report", "advice"),
    [
        (reported(ran(0, 0, 9.8), ran(1, 0, 9.8)), "workers' own code takes 98% of their time"),
        (reported(ran(0, 0, 1), ran(1, 0, 1)), "workers had nothing to do 90% of the time: submit more calls before"),
        (reported(ran(0, 0, 9), ran(1, 0, 1)), "Worker 0 was busy 90% of the time, and the others much less"),
        (reported(ran(0, 0, 6), ran(1, 0, 4)), "Nothing stands out"),
        (
            reported(*(Record("built", slot, 1, 100, 106, 5.9) for slot in (0, 1)), ran(0, 6, 8), ran(1, 6, 8)),
            "Building the objects takes 60% of the workers' time: keep them for longer",
        ),
        (reported(ran(0, 0, 9, work=2), ran(1, 0, 9, work=2)), "Transport takes 70% of the workers' time"),
        (
            reported(ran(0, 0, 9), ran(1, 0, 5), died(1, 5, 6, 1), died(1, 6, 7, 2), died(0, 9, 10, 1)),
            "Workers were lost 3 times, most of them in slot 1; each takes",
        ),
        (reported(died(1, 0, 9, 1)), "Workers were lost 1 time; each takes"),
        (reported(ran(0, 0, 9.8), ran(0, 0, 9.8), n_at_once=2), "98% are in use on average"),
        (reported(Record("built", 0, 1, 100, 101, 0.5)), "No worker has done anything yet"),
    ],
)
@pytest.mark.unit
def test_it_says_what_takes_most_and_what_to_change(report: Report, advice: str) -> None:
    assert advice in report.advice
    assert report.advice in str(report)


@pytest.mark.unit
def test_of_a_program_it_says_nothing() -> None:
    report = reported(ran(0, 0, 4), ran(1, 0, 4))
    assert (report.input, report.waiting, report.consumer) == (None, None, None)
    assert "program" not in str(report)
    assert rows_in(report) == ["worker 0", "worker 1"]


@pytest.mark.unit
def test_a_worker_that_was_at_several_messages_is_lost_once() -> None:
    report = reported(*(died(0, 0, 4, life=1) for _ in range(5)), died(0, 5, 6, life=2), n_at_once=5)
    assert report.workers[0].n_deaths == 2


@pytest.mark.unit
def test_it_keeps_only_the_latest_messages_and_the_sums_of_all() -> None:
    measures = Measures()
    measures.begin(100.0)
    for at in range(3 * MOST_KEPT):
        measures.note(ran(at % 2, at / 1000, at / 1000 + 0.001))
        assert len(measures._new) + len(measures._records) <= MOST_KEPT + 100
    assert len(measures.records) == MOST_KEPT
    assert [worker.n_items for worker in measures.of_workers()] == [3 * MOST_KEPT // 2] * 2
    report = report_of(measures, [], n_at_once=1)
    assert len(report._repr_html_()) < 20_000


@pytest.mark.unit
def test_who_has_something_to_tell_waits_for_nobody() -> None:
    measures = Measures()

    def tell() -> None:
        for _ in range(500):
            measures.note(ran(0, 0, 1))

    with measures._lock:  # as if a finaliser ran while it is added up
        tell()
        thread = threading.Thread(target=tell)
        thread.start()
        thread.join()
    assert [worker.n_items for worker in measures.of_workers()] == [1000]


# --- of executors that run --------------------------------------------------------------------------------


@engines
def test_all_that_the_workers_do_is_counted(engine: str) -> None:
    n_jobs = 1 if engine == "inline" else 2  # there, one of them does it all
    with StatefulExecutor(Player, n_jobs, engine=engine) as executor:
        assert str(executor.report()) == "Nothing has started: no worker was needed yet."
        assert executor.report()._repr_html_().count("<svg") == 0
        executor.warm_up()
        assert numbers_of(executor.report()) == (0, n_jobs, 0)
        assert executor.report().advice == "No worker has done anything yet."
        assert [executor.submit(call_worker, item).result() for item in range(10)] == [*range(10)]
        assert executor.submit_to(n_jobs - 1, call_worker, 7).result() == 7
        assert executor.run_on_all(abs, -1) == [1] * n_jobs
        with pytest.raises(ZeroDivisionError):
            executor.submit(divmod, 1, 0).result()
        results = stateful_map(executor, range(200))
        assert len(list(results)) == 200
        assert results.report().n_items == 200, "what a map's workers do is in both reports"
        report = executor.report()
        assert numbers_of(report) == (212 + n_jobs, n_jobs, 0)
        assert report.n_items == 212 + n_jobs
        assert sum(info.n_done for info in executor.workers()) == report.n_items
        assert [worker.slot for worker in report.workers] == [*range(n_jobs)]
        assert 0 <= report.busy + report.building + report.transport <= 1.001
    over = executor.report()
    assert numbers_of(over) == numbers_of(report)
    assert over.seconds == executor.report().seconds >= report.seconds > 0, "its clock stands still when it is over"
    assert rows_in(over) == [f"worker {slot}" for slot in range(n_jobs)]
    assert f"{212 + n_jobs} items in" in "".join(ET.fromstring(over._repr_html_()).itertext())


@engines
def test_an_executor_that_never_started_has_nothing_to_report_when_it_is_shut_down(engine: str) -> None:
    executor = StatefulExecutor(n_jobs=2, engine=engine)
    executor.shutdown()
    report = executor.report()
    assert (report.seconds, report.n_items, report.workers) == (0.0, 0, [])


@pytest.mark.parametrize("idle", [False, True], ids=["at work", "idle"])
def test_workers_that_are_lost_are_counted(*, idle: bool) -> None:
    with StatefulExecutor(Player, 1, engine="loky") as executor:
        (pid,) = executor.run_on_all(os.getpid)
        if idle:
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            while executor.workers()[0].state != "empty":
                pass
        else:
            with pytest.raises(errors.WorkerCrashedError):
                executor.submit(call_worker, "crash").result()
        assert executor.submit(call_worker, 1).result() == 1
        report = executor.report()
        assert (report.workers[0].n_builds, report.workers[0].n_deaths) == (2, 1)
        assert executor.workers()[0].n_restarts == 1
        assert "Workers were lost 1 time" in report.advice
        assert "built 2 times, lost 1 time" in str(report)


@parallel_engines
@pytest.mark.parametrize("is_async", [False, True], ids=["threads", "async"])
def test_several_calls_under_way_in_one_worker(engine: str, tmp_path: Path, *, is_async: bool) -> None:
    scene = new_scene(tmp_path)

    def meet(_: int) -> None:
        scene.meeting(4).join()

    async def meet_async(_: int) -> None:
        import asyncio

        await asyncio.to_thread(meet, 0)

    with StatefulExecutor(n_jobs=1, engine=engine, max_concurrency=4) as executor:
        call: Callable[[int], Any] = meet_async if is_async else meet
        for future in [executor.submit(call, item) for item in range(4)]:
            future.result()
        report = executor.report()
    assert numbers_of(report) == (4, 1, 0)
    assert report.busy <= 1
    assert "of 4 under way on average" in str(report)


def test_a_crash_under_several_calls_is_one() -> None:
    with StatefulExecutor(n_jobs=1, max_concurrency=3) as executor:
        executor.warm_up()
        futures = [executor.submit(crash) for _ in range(3)]
        assert all(isinstance(future.exception(), errors.WorkerCrashedError) for future in futures)
        (worker,) = executor.report().workers
        assert worker.n_deaths == executor.workers()[0].n_restarts


@parallel_engines
def test_what_runs_now_counts_and_other_threads_may_ask(engine: str, tmp_path: Path) -> None:
    scene: Scene = new_scene(tmp_path)

    def hold(name: str) -> None:
        scene.meeting(2).join()
        scene.gate(name).wait()

    with StatefulExecutor(n_jobs=2, engine=engine) as executor:
        executor.warm_up()
        before = executor.report()
        futures = [executor.submit(hold, "end") for _ in range(2)]
        scene.meeting(3).join()
        now = executor.report()
        assert numbers_of(now) == (0, 2, 0)
        assert min(worker.work for worker in now.workers) > max(worker.work for worker in before.workers) == 0
        assert "No worker has done anything" not in now.advice
        later = executor.report()
        assert sum(worker.work for worker in later.workers) > sum(worker.work for worker in now.workers)
        assert now._repr_html_().count("#4c9f70") >= 2, "and is in the picture"
        scene.gate("end").open()
        for future in futures:
            future.result()
        assert numbers_of(executor.report()) == (2, 2, 0)


@engines
def test_threads_that_submit_and_ask_at_the_same_time(engine: str) -> None:
    n_threads, n_calls = 4, 60
    failed: list[BaseException] = []

    def use(executor: StatefulExecutor) -> None:
        try:
            for done in range(1, n_calls + 1):
                executor.submit(abs, -1).result()
                report = executor.report()
                assert report.n_items >= done
                ET.fromstring(report._repr_html_())
        except BaseException as error:
            failed.append(error)

    with StatefulExecutor(n_jobs=2, engine=engine) as executor:
        threads = [threading.Thread(target=use, args=(executor,)) for _ in range(n_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed
        assert executor.report().n_items == n_threads * n_calls


@parallel_engines
def test_objects_that_are_built_anew_are_counted(engine: str) -> None:
    with StatefulExecutor(Player, 1, engine=engine, max_tasks_per_worker=2) as executor:
        for item in range(6):
            executor.submit(call_worker, item).result()
    assert numbers_of(executor.report()) == (6, 3, 0)


class Broken:
    """Can't be built."""

    def __init__(self) -> None:
        raise ValueError("no model")


@engines
def test_a_construction_that_fails_is_building_too(engine: str) -> None:
    with StatefulExecutor(Broken, 1, engine=engine) as executor:
        with pytest.raises(errors.WorkerInitError):
            executor.submit(call_worker, 1).result()
        (worker,) = executor.report().workers
        assert (worker.n_items, worker.n_builds, worker.n_deaths, worker.work) == (0, 0, 1, 0)
        assert worker.building > 0


def test_after_workers_were_killed_the_clock_stands_still(tmp_path: Path) -> None:
    scene = new_scene(tmp_path)
    executor = StatefulExecutor(n_jobs=2)
    executor.warm_up()
    executor.submit(scene.gate().wait)
    executor.shutdown(kill_workers=True)
    report = executor.report()
    assert report.seconds == executor.report().seconds
    assert numbers_of(report)[:2] == (0, 2)
    assert numbers_of(report)[2] <= 1, "the idle one was not lost"


@needs("fork")
def test_a_fork_may_ask_what_there_was(run_program: RunProgram) -> None:
    done = run_program(
        """
        import os, sys, warnings
        from joblib_stateful import StatefulExecutor

        if __name__ == "__main__":
            warnings.simplefilter("ignore")  # Python 3.12 and later warn of each fork beside threads
            executor = StatefulExecutor(n_jobs=1)
            executor.submit(abs, -1).result()
            if (pid := os.fork()) == 0:
                os._exit(0 if executor.report().n_items == 1 else 1)
            print(os.waitpid(pid, 0)[1])
            executor.shutdown()
        """
    )
    assert (done.code, done.out) == (0, "0\n"), done.err
