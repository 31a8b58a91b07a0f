"""What DESIGN.md promises about dying workers, row by row, each as a program that must end and leave nothing."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import RunProgram

COMMON = """
import ctypes, itertools, os, signal, sys, threading, time
from collections import Counter
from pathlib import Path
from joblib_stateful import StatefulExecutor, errors, get_worker_info, stateful_map
from joblib_stateful.engines.loky import _line

class Worker:
    def __init__(self, slot, **kwargs):
        info = get_worker_info()
        assert (info.index, os.environ["SLOT"]) == (slot, str(slot))
        for former in builds()[slot]:  # the slot's former processes are gone, and not even zombies
            try:
                os.kill(former, 0)
            except ProcessLookupError:
                continue
            raise AssertionError("the former process is still there")
        note("built", slot, os.getpid())
        self.slot = slot

def note(name, *words):
    with open(name, "a") as file:
        print(*words, file=file)

def lines(name):
    return Path(name).read_text().splitlines() if Path(name).exists() else []

def wait_for(name, count):
    deadline = time.monotonic() + 30
    while len(lines(name)) < count:
        assert time.monotonic() < deadline, name
        time.sleep(0.002)

def builds():
    built = {0: [], 1: []}
    for line in lines("built"):
        slot, pid = map(int, line.split())
        built[slot].append(pid)
    return built

def once_each(results, n):
    assert sorted(result.index for result in results) == list(range(n)), results
    return {result.index: result.exception for result in results if not result.ok}

SLOTS = {
    "worker_kwargs": [{"slot": 0}, {"slot": 1}],
    "worker_env": [{"SLOT": "0"}, {"SLOT": "1"}],
    "batch_size": 1,
}
"""


def program(text: str) -> str:
    return COMMON + textwrap.dedent(text)


def says_ok(run_program: RunProgram, text: str, *args: str) -> None:
    done = run_program(program(text), *args)
    assert (done.code, done.out) == (0, "ok\n"), done.err
    assert "Traceback" not in done.err


# --- worker killed, segfault, os._exit ------------------------------------------------------------------

DIES = """
ways = {
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": lambda: ctypes.string_at(0),
    "os._exit": lambda: os._exit(7),
}

class Dies(Worker):
    def __call__(self, item):
        if item == 0:
            wait_for("built", 2)
        if item == 13:
            note("died", self.slot, os.getpid(), time.time())
            ways[sys.argv[1]]()
        if item > 20:
            wait_for("died", 1)
            if self.slot != int(lines("died")[0].split()[0]):
                wait_for("built", 3)  # leave something for the slot that died
        return item

if __name__ == "__main__":
    results = []
    for result in stateful_map(Dies, range(30), ordered=sys.argv[2] == "ordered", on_error="deferred", **SLOTS):
        results.append(result)
        if result.index == 13:
            noticed = time.time()
    (error,) = once_each(results, 30).values()
    slot, pid, died = lines("died")[0].split()
    assert type(error) is errors.WorkerCrashedError
    assert (error.index, error.slot, error.pid) == (13, int(slot), int(pid)), error
    assert error.exitcode == {"SIGKILL": -9, "segfault": -11, "os._exit": 7}[sys.argv[1]], error
    assert noticed - float(died) < 1 or sys.argv[2] == "ordered"
    assert all(result.value == result.index for result in results if result.ok)
    assert len(lines("died")) == 1
    assert {slot: len(pids) for slot, pids in builds().items()} == {error.slot: 2, 1 - error.slot: 1}
    print("ok")
"""


@pytest.mark.parametrize(
    ("way", "order"),
    [("SIGKILL", "ordered"), ("SIGKILL", "unordered"), ("segfault", "unordered"), ("os._exit", "unordered")],
)
def test_a_death(way: str, order: str, run_program: RunProgram) -> None:
    says_ok(run_program, DIES, way, order)


def test_memory_that_runs_out_in_python_is_an_exception(run_program: RunProgram) -> None:
    """Only the kernel's killer makes it a death, by SIGKILL; the message of that one names it."""
    says_ok(
        run_program,
        """
        import resource

        class Hungry(Worker):
            def __call__(self, item):
                if item == 3:
                    resource.setrlimit(resource.RLIMIT_AS, (2**31, resource.RLIM_INFINITY))
                    try:
                        bytearray(2**33)
                    finally:
                        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                return item

        if __name__ == "__main__":
            failed = once_each(list(stateful_map(Hungry, range(6), on_error="deferred", **SLOTS)), 6)
            assert [type(error) for error in failed.values()] == [MemoryError]
            assert max(map(len, builds().values())) == 1
            assert "out of memory" in str(errors.WorkerCrashedError(3, 0, 1, -9)).replace("-", " ")
            print("ok")
        """,
    )


# --- the same item kills every worker that takes it -----------------------------------------------------


@pytest.mark.parametrize("retries", [0, 2])
def test_an_item_that_kills_every_worker(retries: int, run_program: RunProgram) -> None:
    says_ok(
        run_program,
        """
        class Dies(Worker):
            def __call__(self, item):
                if item == 4:
                    note("died", self.slot, os.getpid())
                    os._exit(5)
                return item

        if __name__ == "__main__":
            retries = int(sys.argv[1])
            results = list(stateful_map(
                Dies, range(12), retries=retries, max_restarts=0, on_error="deferred", **SLOTS))
            (error,) = once_each(results, 12).values()
            attempts = [tuple(map(int, line.split())) for line in lines("died")]
            assert len(attempts) == 1 + retries
            assert type(error) is errors.WorkerCrashedError
            assert (error.index, error.slot, error.pid, error.exitcode) == (4, *attempts[-1], 5)
            slots = [slot for slot, _ in attempts]
            assert all(one != other for one, other in itertools.pairwise(slots))
            for slot, pids in builds().items():
                assert len(pids) <= 1 + slots.count(slot)
            print("ok")
        """,
        str(retries),
    )


# --- a slot that keeps dying without finishing anything -------------------------------------------------


@pytest.mark.parametrize("policy", ["immediate", "wait_others", "deferred"])
def test_a_slot_that_always_dies_in_construction(policy: str, run_program: RunProgram) -> None:
    says_ok(
        run_program,
        """
        class Dies(Worker):
            def __init__(self, slot):
                super().__init__(slot)
                if slot == 0:
                    os._exit(5)

            def __call__(self, item):
                return item

        if __name__ == "__main__":
            try:
                for _ in stateful_map(Dies, itertools.count(), max_restarts=2, on_error=sys.argv[1], **SLOTS):
                    pass
            except errors.WorkerInitError as error:
                assert (error.slot, error.pid, error.kwargs_keys) == (0, builds()[0][-1], ("slot",)), error
                assert "died 3 times in a row" in str(error) and "exit code 5" in str(error), error
            assert len(builds()[0]) == 3 and len(builds()[1]) <= 1  # the other may still have been starting
            print("ok")
        """,
        policy,
    )


@pytest.mark.parametrize("policy", ["immediate", "wait_others", "deferred"])
def test_a_slot_that_always_dies_idle(policy: str, run_program: RunProgram) -> None:
    says_ok(
        run_program,
        """
        class Dies(Worker):
            def __init__(self, slot):
                super().__init__(slot)
                if slot == 0:
                    def send_and_die(self, data, fds=(), send=_line.Line.send):
                        send(self, data, fds)
                        os._exit(5)
                    _line.Line.send = send_and_die  # the first message is that the object stands

            def __call__(self, item):
                return item

        if __name__ == "__main__":
            try:
                for _ in stateful_map(Dies, itertools.count(), max_restarts=2, on_error=sys.argv[1], **SLOTS):
                    pass
            except errors.WorkerCrashedError as error:
                pids = builds()[0]
                assert (error.index, error.slot, error.pid, error.exitcode) == (None, 0, pids[-1], 5), error
                assert "lost 3 workers in a row" in str(error), error
            assert len(builds()[0]) == 3 and len(builds()[1]) <= 1  # the other may still have been starting
            print("ok")
        """,
        policy,
    )


def test_deadly_items_alone_give_no_slot_up(run_program: RunProgram) -> None:
    says_ok(
        run_program,
        """
        class Dies(Worker):
            def __call__(self, item):
                os._exit(5)

        if __name__ == "__main__":
            results = list(stateful_map(Dies, range(12), retries=1, max_restarts=0, on_error="deferred", **SLOTS))
            failed = once_each(results, 12)
            assert all(type(error) is errors.WorkerCrashedError for error in failed.values())
            assert [error.index for _, error in sorted(failed.items())] == list(range(12))
            pids = [pid for pids in builds().values() for pid in pids]
            assert len(pids) == 24 and {error.pid for error in failed.values()} < set(pids)
            print("ok")
        """,
    )


def test_batches_whose_last_item_dies_get_somewhere(run_program: RunProgram) -> None:
    """Each worker dies with the results of two items in its hands: they are run again, and nobody gives up."""
    says_ok(
        run_program,
        """
        class Dies(Worker):
            def __call__(self, item):
                if item % 3 == 2 and str(item) not in lines("died"):
                    note("died", item)
                    os._exit(5)
                return item

        if __name__ == "__main__":
            results = list(stateful_map(
                Dies, range(30), max_restarts=0, retries=1, on_error="deferred", **{**SLOTS, "batch_size": 3}))
            assert once_each(results, 30) == {}
            print("ok")
        """,
    )


# --- construction that raises, hangs, or is killed ------------------------------------------------------


@pytest.mark.parametrize("how", ["raises", "hangs"])
@pytest.mark.parametrize("policy", ["immediate", "wait_others", "deferred"])
def test_a_construction_that_fails(how: str, policy: str, run_program: RunProgram) -> None:
    says_ok(
        run_program,
        """
        class Fails(Worker):
            def __init__(self, slot, model="m"):
                super().__init__(slot)
                if slot == 0 and len(builds()[0]) == 1:
                    wait_for("built", 2)
                    if sys.argv[1] == "raises":
                        raise OSError(12, "no memory on this GPU")
                    threading.Event().wait()

            def __call__(self, item):
                return item

        if __name__ == "__main__":
            with StatefulExecutor(Fails, worker_env=SLOTS["worker_env"], worker_kwargs=SLOTS["worker_kwargs"],
                                  shared_kwargs={"model": "m"},
                                  init_timeout=60 if sys.argv[1] == "raises" else 3) as executor:
                try:
                    for _ in stateful_map(executor, itertools.count(), batch_size=1, on_error=sys.argv[2]):
                        pass
                except errors.WorkerInitError as error:
                    assert (error.slot, error.pid, set(error.kwargs_keys)) == (0, builds()[0][0], {"slot", "model"})
                    if sys.argv[1] == "raises":
                        assert error.__cause__.errno == 12 and "no memory on this GPU" in str(error), error
                    else:
                        assert "init_timeout=3" in str(error), error
                wait_for("built", 2)  # the other may still have been starting
                assert {slot: len(pids) for slot, pids in builds().items()} == {0: 1, 1: 1}
                executor.warm_up()  # the next one may try again
                assert list(stateful_map(executor, range(10))) == list(range(10))
            assert {slot: len(pids) for slot, pids in builds().items()} == {0: 2, 1: 1}
            print("ok")
        """,
        how,
        policy,
    )


def test_constructions_that_are_killed_are_made_up_for(run_program: RunProgram) -> None:
    says_ok(
        run_program,
        """
        class Slow(Worker):
            def __init__(self, slot):
                super().__init__(slot)
                if slot == 0 and len(builds()[0]) < 4:
                    note("building", os.getpid())
                    threading.Event().wait()

            def __call__(self, item):
                wait_for("built", 5)  # leave something for the other slot, however late it comes
                return item

        def kill():
            for n in range(3):
                wait_for("building", n + 1)
                os.kill(int(lines("building")[n]), signal.SIGKILL)

        if __name__ == "__main__":
            killer = threading.Thread(target=kill)
            killer.start()
            results = list(stateful_map(Slow, range(30), max_restarts=3, on_error="deferred", **SLOTS))
            killer.join()
            assert once_each(results, 30) == {}
            assert {slot: len(pids) for slot, pids in builds().items()} == {0: 4, 1: 1}
            print("ok")
        """,
    )


# --- exceptions that are none elsewhere -----------------------------------------------------------------


@pytest.mark.parametrize("engine", ["loky", "threads"])
@pytest.mark.parametrize("order", ["ordered", "unordered"])
def test_exceptions_that_end_other_loops(engine: str, order: str, run_program: RunProgram) -> None:
    says_ok(
        run_program,
        """
        class Raises:
            def __init__(self):
                note("made", get_worker_info().index)

            def __call__(self, item):
                if item in (2, 5, 7):
                    raise {2: SystemExit, 5: KeyboardInterrupt, 7: StopIteration}[item](item)
                return item

        if __name__ == "__main__":
            results = list(stateful_map(
                Raises, range(10), n_jobs=2, engine=sys.argv[1], ordered=sys.argv[2] == "ordered", on_error="deferred"))
            failed = {index: (type(error), error.args) for index, error in once_each(results, 10).items()}
            assert failed == {2: (SystemExit, (2,)), 5: (KeyboardInterrupt, (5,)), 7: (StopIteration, (7,))}, failed
            assert max(Counter(lines("made")).values()) == 1
            print("ok")
        """,
        engine,
        order,
    )
