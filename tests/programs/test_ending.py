"""One Ctrl-C stops it all; whatever way a program ends, nothing of it stays behind."""

from __future__ import annotations

import os
import signal
import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from joblib_stateful._executor import _exit
from joblib_stateful._process import _system
from needs import needs
from programs import program_text

if TYPE_CHECKING:
    from conftest import RunProgram, StartProgram


def assert_only_the_parent_speaks(err: str) -> None:
    assert err.count("Traceback (most recent call last)") == 1, err
    assert err.rstrip().endswith("KeyboardInterrupt"), err


def test_ctrl_c_while_iterating(program: StartProgram) -> None:
    running = program("list(stateful_map(Worker, ['hang'] * 10, n_jobs=2, batch_size=1))")
    running.wait_for("hangs-*", 2)
    running.ctrl_c()
    code, _, err = running.ends_within(2)
    assert code == -signal.SIGINT
    assert_only_the_parent_speaks(err)
    running.leaves_nothing()


def test_ctrl_c_during_construction(program: StartProgram) -> None:
    running = program("list(stateful_map(Worker, range(10), n_jobs=2, shared_kwargs={'hang': True}))")
    running.wait_for("built-*", 2)
    running.ctrl_c()
    _, _, err = running.ends_within(2)
    assert_only_the_parent_speaks(err)
    running.leaves_nothing()


def test_ctrl_c_in_the_consumers_own_code(program: StartProgram) -> None:
    running = program(
        """
        for pid in stateful_map(Worker, [0, 1, 'hang', 'hang', 'hang'], n_jobs=2, batch_size=1, progress=True):
            (here / 'consuming').touch()
            while len(list(here.glob('hangs-*'))) < 1:
                time.sleep(0.001)
            threading.Event().wait()
        """
    )
    running.wait_for("consuming")
    running.wait_for("hangs-*", 1)
    running.ctrl_c()
    running.ends_within(2)
    running.leaves_nothing()


@pytest.mark.parametrize("milliseconds", [0, 20, 40, 60, 80, 100, 150])
def test_ctrl_c_while_workers_start(program: StartProgram, milliseconds: int) -> None:
    running = program(
        """
        def items():
            (here / 'pulled').touch()
            yield 'hang'
            yield 'hang'
        list(stateful_map(Worker, items(), n_jobs=2))
        """
    )
    running.wait_for("pulled")
    time.sleep(milliseconds / 1000)  # what is tested: each moment of a worker's start
    running.ctrl_c()
    code, _, err = running.ends_within(2)
    assert code == -signal.SIGINT
    if _system.HAS_SIGMASK:  # else it strikes a process that is being born, too
        assert_only_the_parent_speaks(err)
    running.leaves_nothing()


class Ended:
    """Stands for a worker pool, and notes how long its end is waited for."""

    is_awaited = False

    def __init__(self) -> None:
        self.waits: list[float | None] = []

    def kill(self, *, only_busy: bool = False) -> None:
        pass

    def close(self, *, wait: bool = True) -> None:
        pass

    def wait_until_empty(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout)
        return True


@pytest.mark.parametrize(("seconds", "most"), [(0.0, 1.0), (0.2, 0.9), (0.5, 0.75), (1.5, 0.25), (3.0, 0.2)])
def test_what_ctrl_c_has_waited_for_is_a_part_of_the_two_seconds(
    monkeypatch: pytest.MonkeyPatch, seconds: float, most: float
) -> None:
    pool = Ended()
    monkeypatch.setattr(_exit, "_pools", [pool])
    monkeypatch.setattr(_exit, "_kinds", [])
    monkeypatch.setattr(_exit, "_waited", 0.0)
    monkeypatch.setattr(_exit, "time", SimpleNamespace(monotonic=lambda: 0.0))
    monkeypatch.setattr(sys, "last_type", KeyboardInterrupt, raising=False)
    _exit.note_interrupt(seconds)
    _exit._end_in_order()
    assert pool.waits == [pytest.approx(most)]


def test_ctrl_c_costs_busy_workers_only(program: StartProgram) -> None:
    running = program(program_text("programs/is_interrupted_with_one_worker_busy"))
    running.wait_for("hangs-*")
    running.ctrl_c()
    code, out, err = running.ends_within(10)
    assert (code, out.strip()) == (0, "fine"), err
    running.leaves_nothing()


@pytest.mark.parametrize(
    ("ending", "code"),
    [("pass", 0), ("sys.exit(5)", 5), ("raise KeyError('own')", 1), ("results.close()", 0), ("del results", 0)],
)
def test_the_end_of_a_script_with_a_half_consumed_map(program: StartProgram, ending: str, code: int) -> None:
    running = program(
        f"""
        results = stateful_map(Worker, [0, 1, 'hang', 'hang', 'hang'], n_jobs=2, batch_size=1, progress=True)
        next(results)
        while not list(here.glob('hangs-*')):
            time.sleep(0.001)
        (here / 'ending').touch()
        {ending}
        """
    )
    running.wait_for("ending")
    found, _, err = running.ends_within(3)
    assert found == code, err
    assert "Exception ignored" not in err
    assert "Warning" not in err
    running.leaves_nothing()


@pytest.mark.parametrize(("leave", "code"), [("sys.exit(5)", 5), ("os.kill(os.getpid(), signal.SIGTERM)", 7)])
def test_leaving_from_inside_the_loop(program: StartProgram, leave: str, code: int) -> None:
    running = program(
        f"""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
        for pid in stateful_map(Worker, [0, 1, *['hang'] * 9], n_jobs=2, batch_size=1, progress=True):
            while not list(here.glob('hangs-*')):
                time.sleep(0.001)
            (here / 'leaving').touch()
            {leave}
        """
    )
    running.wait_for("leaving")
    found, _, err = running.ends_within(3)
    assert found == code, err
    assert "Traceback" not in err
    assert "Warning" not in err
    running.leaves_nothing()


def test_a_map_that_another_thread_collects(program: StartProgram) -> None:
    running = program(program_text("programs/has_its_map_collected_in_a_thread"))
    code, out, err = running.ends_within(20)
    assert (code, out.strip()) == (0, "fine"), err
    assert "Warning" not in err
    assert "Traceback" not in err
    running.leaves_nothing()


def test_objects_are_closed_at_the_end_of_a_script(program: StartProgram) -> None:
    running = program(
        """
        executor = StatefulExecutor(Worker, 2)
        executor.warm_up()  # an object that is still being built at the end is not waited for
        list(stateful_map(executor, [0, 1, 3, 4], batch_size=1))
        """
    )
    code, _, err = running.ends_within(20)
    assert (code, err) == (0, "")
    built = {path.name.removeprefix("built-") for path in running.folder.glob("built-*")}
    assert {path.name.removeprefix("closed-") for path in running.folder.glob("closed-*")} == built
    running.leaves_nothing()


def test_submitted_calls_are_finished_at_the_end_of_a_script(program: StartProgram) -> None:
    running = program(
        """
        executor = StatefulExecutor(Worker, 1)
        futures = [executor.submit(Path.touch, here / f'done-{n}') for n in range(20)]
        """
    )
    assert running.ends_within(20)[0] == 0
    assert len(list(running.folder.glob("done-*"))) == 20
    running.leaves_nothing()


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
@pytest.mark.parametrize("items", ["['hang'] * 4", "[0, 1]"], ids=["busy", "idle"])
def test_workers_die_with_a_killed_parent(program: StartProgram, items: str, signum: signal.Signals) -> None:
    running = program(
        f"""
        for _ in stateful_map(Worker, {items}, n_jobs=2, batch_size=1):
            pass
        (here / 'idle').touch()
        threading.Event().wait()
        """
    )
    running.wait_for("hangs-*" if "hang" in items else "idle", 2 if "hang" in items else 1)
    running.kill(signum)
    running.leaves_nothing(within=3)


@needs("setsig")
def test_workers_die_with_a_killed_parent_while_c_code_holds_the_gil(program: StartProgram) -> None:
    running = program(
        """
        def spin(item):
            (here / f'hangs-{os.getpid()}').touch()
            pow(3, 10**8)
        list(stateful_map(spin, range(2), n_jobs=2, batch_size=1))
        """
    )
    running.wait_for("hangs-*", 2)
    running.kill()
    running.leaves_nothing(within=3)


@pytest.mark.parametrize("way", ["map", "Parallel"])
def test_a_thread_that_outlives_the_main_one_is_told_why_its_map_ends(program: StartProgram, way: str) -> None:
    running = program(
        """
        from joblib import Parallel, delayed, parallel_config
        from joblib_stateful.errors import ShutdownError

        def run(work=Worker()):
            items = [0, *['hang'] * 4]
            if sys.argv[2] == "map":
                results = stateful_map(work, items, n_jobs=2, batch_size=1)
            else:
                with parallel_config(backend="stateful", n_jobs=2):
                    results = Parallel(return_as="generator")(delayed(work)(item) for item in items)
            next(results)
            begun.set()
            try:
                next(results)
            except ShutdownError as error:
                print(error, flush=True)

        begun = threading.Event()
        threading.Thread(target=run).start()
        begun.wait()
        """,
        way,
    )
    code, out, err = running.ends_within(20)
    assert (code, err) == (0, "")
    assert "the main thread can join() " in out
    running.leaves_nothing()


def test_sigterm_for_the_whole_group(program: StartProgram) -> None:
    """As a service manager or a batch system ends a job: the workers are hit as well."""
    running = program("list(stateful_map(Worker, ['hang'] * 4, n_jobs=2, batch_size=1, retries=9))")
    running.wait_for("hangs-*", 2)
    os.killpg(running.process.pid, signal.SIGTERM)
    code, _, err = running.ends_within(3)
    assert code == -signal.SIGTERM
    assert "Traceback" not in err
    running.leaves_nothing()


def test_shared_arrays_in_flight_go_with_a_killed_parent(program: StartProgram) -> None:
    running = program(program_text("programs/shares_arrays_until_it_is_killed"))
    running.wait_for("got-2")
    running.wait_for("hangs-*", 2)
    running.kill()
    running.leaves_nothing(within=3)


def test_a_second_ctrl_c_before_the_map_begins_to_end(program: StartProgram) -> None:
    """The map is then ended by nobody but the end of the interpreter, when no thread can be started any more."""
    running = program(
        """
        from joblib_stateful import StatefulMap

        def interrupted(results, end=StatefulMap._shut, **options):
            StatefulMap._shut = end
            raise KeyboardInterrupt

        StatefulMap._shut = interrupted
        list(stateful_map(Worker, ['hang'] * 10, n_jobs=2, batch_size=1, progress=True))
        """
    )
    running.wait_for("hangs-*", 2)
    running.ctrl_c()
    code, _, err = running.ends_within(2)
    assert code == -signal.SIGINT
    assert err.count("Traceback (most recent call last)") == 2, err
    running.leaves_nothing()


def test_a_worker_whose_process_can_not_end_does_not_keep_the_program(run_program: RunProgram) -> None:
    done = run_program(program_text("programs/has_a_worker_that_cannot_end"), limit=40)
    assert (done.code, done.out.strip()) == (-signal.SIGINT, "[1, 2, 3]")
    assert "KeyboardInterrupt" in done.err
