"""Large arrays travel through shared memory: once, never stale, and nothing of them stays."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from joblib import Parallel, delayed, parallel_config

import joblib_stateful
from joblib_stateful import StatefulExecutor, call_worker, get_worker, shutdown, stateful_map
from joblib_stateful._transport._held import Held
from joblib_stateful._transport._segments import Segment, Spare, _Spares, spares
from joblib_stateful._transport._setting_aside import SharedFrame
from joblib_stateful._transport._shared_memory import SharedMemory, Stored
from joblib_stateful._transport._transport import Sharing
from joblib_stateful.engines.loky._shared_numbers import SharedNumbers
from needs import needs
from programs import program_text

if TYPE_CHECKING:
    from conftest import RunProgram

np = pytest.importorskip("numpy")

SIZE = 1 << 18  # of doubles: 2 MiB, beyond the threshold
MAPPED = 1 << 20  # 8 MiB: too much to be copied on arrival
# Arrays that lie in files which say by their names what they are can be counted.
in_memfds = needs("sendfds", "memfd")
CAN_COUNT = not in_memfds.args[0]


def open_segments(pid: int | str = "self") -> set[int]:
    """Return the shared memory that a process has open, however often, without that which waits to be used again."""
    found = set()
    spare = spares.fds() if pid == "self" else set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        if int(fd.name) in spare:
            continue
        try:
            if "memfd:joblib_stateful segment" in str(fd.readlink()):
                found.add(fd.stat().st_ino)
        except OSError:
            continue  # closed meanwhile
    return found


def open_inodes() -> set[int]:
    """Return what this process has open."""
    found = set()
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            found.add(fd.stat().st_ino)
    return found


def mapped_bytes() -> int:
    """Return how much shared memory of ours this process has mapped."""
    total = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "memfd:joblib_stateful segment" in line:
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            total += end - start
    return total


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


class Summing:
    def __init__(self, weights: Any = None) -> None:
        self.weights = weights

    def __call__(self, array: Any) -> Any:
        return array.flags.writeable, float(array.sum()), type(array).__name__


def test_items_and_results_can_be_written_to() -> None:
    arrays = [np.full(SIZE, float(number)) for number in range(5)]
    assert list(stateful_map(Summing, arrays, n_jobs=2)) == [(True, SIZE * float(n), "ndarray") for n in range(5)]
    for number, result in enumerate(stateful_map(np.negative, arrays, n_jobs=2)):
        assert result.flags.writeable
        assert (result == -number).all()


def test_a_buffer_that_is_filled_again_and_again_is_never_stale() -> None:
    buffer = np.zeros(SIZE)
    sizes: list[Any] = [1, 3, "auto"]

    def refill() -> Iterator[Any]:
        for number in range(12):
            buffer[:] = number
            yield buffer

    for batch_size in sizes:
        results = list(stateful_map(lambda array: (array[0], array[-1]), refill(), n_jobs=2, batch_size=batch_size))
        assert results == [(number, number) for number in range(12)]


@pytest.mark.parametrize("size", [10, SIZE])
def test_a_result_that_is_filled_again_and_again_is_never_stale(size: int) -> None:
    class Filler:
        def __init__(self) -> None:
            self.buffer = np.zeros(size)

        def __call__(self, number: int) -> Any:
            self.buffer[:] = number
            return self.buffer

    sizes: list[Any] = [1, 10, "auto"]
    for batch_size in sizes:
        results = stateful_map(Filler, range(60), n_jobs=2, batch_size=batch_size)
        assert [(result[0], result[-1]) for result in results] == [(number, number) for number in range(60)]


class FromScratch:
    """Gets its state into memory that all of its kind use for it."""

    scratch: Any = None

    def __init__(self, number: int) -> None:
        self.number = number

    def __getstate__(self) -> Any:
        self.scratch[:] = self.number
        return self.scratch[:]

    def __setstate__(self, state: Any) -> None:
        self.number = int(state[0])


@pytest.mark.parametrize("size", [1 << 10, 1 << 17, 1 << 20], ids=["small", "in line", "shared"])
def test_memory_that_several_objects_of_one_item_use_in_turn(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FromScratch, "scratch", np.zeros(size, np.uint8))
    items = [[FromScratch(number) for number in range(5)] for _ in range(2)]
    results = stateful_map(lambda item: ([found.number for found in item], item), items, n_jobs=1, batch_size=2)
    for arrived, back in results:
        assert arrived == [found.number for found in back] == list(range(5))
    identify = SharedMemory().identify
    keys = {identify([FromScratch(number), FromScratch(2)]) for number in range(3)}
    assert len(keys) == 3


@in_memfds
def test_many_references_to_one_array_are_one_segment() -> None:
    array = np.arange(float(MAPPED))
    views = [array[:] for _ in range(300)]  # more than files go with a message
    ((shared, total),) = stateful_map(lambda item: (mapped_bytes(), sum(view[1] for view in item)), [views], n_jobs=1)
    assert (shared, total) == (8 * MAPPED, 300.0)


def test_more_arrays_in_a_message_than_one_system_call_takes() -> None:
    arrays = [np.full(150_000, float(number)) for number in range(300)]
    (found,) = stateful_map(lambda item: [array[7] for array in item], [arrays], n_jobs=1)
    assert found == list(range(300))


def test_what_is_used_again_is_held_only_while_it_exists() -> None:
    def pairs() -> Iterator[Any]:
        for number in range(20):
            array = np.full(SIZE, float(number))
            yield delayed(np.sum)(array)
            yield delayed(np.sum)(array)

    with parallel_config(backend="stateful", n_jobs=2):
        most = 0
        results = Parallel(return_as="generator", batch_size=1, pre_dispatch=4)(pairs())
        for number, result in enumerate(results):
            assert result == (number // 2) * SIZE
            most = max(most, len(open_segments()))
        assert most <= 8


def test_a_copy_of_ones_own_is_not_the_next_tasks() -> None:
    data = np.zeros(SIZE)
    kept: list[Any] = []

    def change(array: Any) -> float:
        array += 1
        kept.append(array)
        return float(array.max())

    with parallel_config(backend="stateful", n_jobs=2, mmap_mode="c"):
        assert Parallel(batch_size=1)(delayed(change)(data) for _ in range(8)) == [1.0] * 8


class Keeper:
    """Keeps every third array, in its own way, and says what all that it has kept looks like now."""

    def __init__(self, how: str) -> None:
        self.how, self.kept, self.n_seen = how, list[Any](), 0

    def __call__(self, array: Any) -> list[float]:
        self.n_seen += 1
        if self.n_seen % 3 == 1:
            self.kept.append(self.keep(array))
        return [look() for look in self.kept]

    def keep(self, array: Any) -> Callable[[], float]:
        if self.how == "view":
            part = array[-3:]
            return lambda: float(part[0])
        if self.how == "cycle":
            cycle: list[Any] = [array]
            cycle.append(cycle)
            return lambda: float(array[-1])
        if self.how == "memory":
            memory = memoryview(array).cast("B")[-8:]
            return lambda: float(np.frombuffer(memory)[0])
        return ask_a_fork(array)


def ask_a_fork(array: Any) -> Callable[[], float]:
    """Return what asks a fork of this process for the last number of its array."""
    here, there = multiprocessing.Pipe()
    if not os.fork():
        here.close()
        with contextlib.suppress(EOFError):
            while True:
                there.recv()
                there.send(float(array[-1]))
        os._exit(0)
    there.close()

    def ask() -> float:
        here.send(None)
        found: float = here.recv()
        return found

    return ask


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("how", ["view", "cycle", "memory", pytest.param("fork", marks=needs("fork"))])
def test_what_a_worker_keeps_stays_as_it_was(how: str) -> None:
    # The pages of those that it does not keep are written to again.
    arrays = (np.full(MAPPED, float(number)) for number in range(40))
    results = list(stateful_map(Keeper, arrays, n_jobs=1, shared_kwargs={"how": how}, batch_size=1, buffer=2))
    assert results[-1] == [float(number) for number in range(0, 40, 3)]


@needs("sendfds")
def test_pages_of_arrays_that_nobody_keeps_are_used_again_as_long_as_there_are_workers() -> None:
    used: set[int] = set()

    def arrays() -> Iterator[Any]:
        for number in range(40):
            yield np.full(SIZE - number, 1.0)
            used.update(os.fstat(fd).st_ino for fd in spares.fds())

    assert len(list(stateful_map(Summing, arrays(), n_jobs=2, batch_size=1, buffer=4))) == 40
    assert 1 <= len(used) <= 8
    assert spares.fds()
    shutdown()
    assert not spares.fds()


def test_all_kinds_of_arrays_come_and_go_unchanged() -> None:
    values = {
        "Fortran": np.asfortranarray(np.arange(SIZE * 2.0).reshape(2, SIZE)),
        "strided": np.arange(SIZE * 4.0)[::2],
        "slice": np.arange(SIZE * 2.0).reshape(2, SIZE)[:, 5:-5],
        "empty": np.zeros((0, 7)),
        "records": np.zeros(SIZE, dtype=[("a", "i4"), ("b", "f8")]),
        "objects": np.array([{"a": 1}, None], dtype=object),
        "nested": (np.ones(SIZE), {"more": [np.arange(SIZE), "text", np.zeros(3)]}),
        "bytes": bytes(3_000_000),
        "bytearray": bytearray(3_000_000),
    }
    results = stateful_map(lambda item: item, values.values(), n_jobs=1, batch_size=1)
    for (name, value), back in zip(values.items(), results, strict=True):
        np.testing.assert_equal(back, value, err_msg=name)
        assert type(back) is type(value), name


@in_memfds
def test_frames_of_pandas_are_shared_too() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(np.arange(MAPPED * 2.0).reshape(MAPPED, 2), columns=["a", "b"])
    ((total, shared),) = stateful_map(lambda item: (item["b"].sum(), mapped_bytes()), [frame], n_jobs=1)
    assert total == frame["b"].sum()
    assert shared >= 16 * MAPPED


@in_memfds
def test_what_every_task_gets_is_written_once_and_freed_in_the_end() -> None:
    data = np.ones(SIZE)

    def look(array: Any, number: int) -> tuple[int, int, float]:
        return number, mapped_bytes(), float(array[number])

    with parallel_config(backend="stateful", n_jobs=2):
        results = Parallel(return_as="generator", batch_size=1)(delayed(look)(data, n) for n in range(50))
        for number, mapped, value in results:
            assert (mapped, value) == (8 * SIZE, 1.0)
            assert len(open_segments()) <= 1, number
        wait_for(lambda: not open_segments())
        (left, *_) = Parallel()(delayed(mapped_bytes)() for _ in range(2))
        assert left == 0


class CannotBePacked:
    def __reduce__(self) -> Any:
        raise ZeroDivisionError


@pytest.mark.unit
def test_an_item_that_cannot_be_packed_keeps_no_memory() -> None:
    transport = SharedMemory()
    gc.disable()
    try:
        for _ in range(3):
            faults = transport.pack_all([[np.ones(SIZE), CannotBePacked()]])[1]
            assert type(faults[0]) is ZeroDivisionError
        assert not transport._store._alive
    finally:
        gc.enable()


def test_what_changes_between_two_calls_arrives_changed() -> None:
    data = np.ones(SIZE)
    with parallel_config(backend="stateful", n_jobs=2):
        assert set(Parallel()(delayed(np.sum)(data) for _ in range(4))) == {SIZE}
        data[:] = 3
        assert set(Parallel()(delayed(np.sum)(data) for _ in range(4))) == {3 * SIZE}
        with Parallel() as parallel:
            for number in range(3):
                data[:] = number
                assert set(parallel(delayed(np.sum)(data) for _ in range(4))) == {number * SIZE}


@pytest.mark.parametrize(
    ("options", "writable", "shared"),
    [
        ({}, False, True),
        ({"mmap_mode": "r"}, False, True),
        ({"mmap_mode": "c"}, True, True),
        ({"mmap_mode": "r+"}, True, True),
        ({"mmap_mode": "w+"}, True, True),
        ({"mmap_mode": None}, True, False),
        ({"max_nbytes": None}, True, False),
        ({"max_nbytes": "9M"}, True, False),
        ({"max_nbytes": 1000}, False, True),
    ],
)
def test_joblibs_own_arguments_hold(*, options: dict[str, Any], writable: bool, shared: bool) -> None:
    data = np.ones(MAPPED)

    def look(array: Any) -> tuple[bool, bool]:
        found = array.flags.writeable, mapped_bytes() > 0
        if array.flags.writeable:
            array[:] = 0
        return found

    with parallel_config(backend="stateful", n_jobs=2):
        assert set(Parallel(**options)(delayed(look)(data) for _ in range(4))) == {(writable, shared and CAN_COUNT)}
    assert data.all()


@pytest.mark.parametrize("make", [lambda: np.zeros(SIZE), lambda: np.zeros((SIZE, 2))[:, 1]], ids=["array", "column"])
@pytest.mark.parametrize("mode", ["r+", "w+"])
def test_what_tasks_may_write_to_is_the_same_for_all_of_a_call(mode: Any, make: Callable[[], Any]) -> None:
    data = make()

    def add(array: Any, number: int) -> float:
        array[number] = 1
        return float(array.sum())

    with parallel_config(backend="stateful", n_jobs=2, mmap_mode=mode):
        for _ in range(2):  # each call begins with what the program has
            # No more than two at a time: the others have written before.
            found = Parallel(batch_size=1, pre_dispatch=1)(delayed(add)(data, number) for number in range(6))
            assert all(total >= number for number, total in enumerate(found))
            assert max(found) == 6
    assert not data.any()


def test_what_tasks_may_write_to_is_nobody_elses() -> None:
    def add(array: Any, number: int) -> float:
        array[number] = 1
        return float(array.sum())

    def tasks() -> Iterator[Any]:  # of an array that is gone, the next one has the place
        for number in range(20):
            yield delayed(add)(np.zeros(SIZE), number)

    with parallel_config(backend="stateful", n_jobs=2, mmap_mode="r+"):
        assert Parallel(batch_size=1)(tasks()) == [1.0] * 20


def count(array: Any) -> float:
    array[0] += 1
    return float(array[0])


def test_what_tasks_may_write_to_stays_while_parts_of_another_array_are_sent() -> None:
    one, other = np.zeros(SIZE), np.zeros(SIZE)
    arrays = [one, other[:-8], other[8:], one, other[:-8]]

    def add(array: Any, number: int) -> float:
        array[number] = 1
        return float(array.sum())

    with parallel_config(backend="stateful", n_jobs=2, mmap_mode="r+"):
        tasks = (delayed(add)(array, number) for number, array in enumerate(arrays))
        found = Parallel(batch_size=1, pre_dispatch=1)(tasks)
    # Whichever of two is the later one.
    assert (max(found[0], found[3]), max(found[1], found[4]), found[2]) == (2, 2, 1)


def test_what_tasks_may_write_to_is_not_another_calls() -> None:
    data = np.zeros(SIZE)
    with parallel_config(backend="stateful", n_jobs=2, mmap_mode="r+"):
        first = Parallel(return_as="generator", batch_size=1)(delayed(count)(data) for _ in range(3))
        assert next(first) >= 1
        assert Parallel(batch_size=1)([delayed(count)(data)]) == [1]
        assert len(list(first)) == 2


@pytest.mark.unit
def test_what_is_held_leaves_files_to_others() -> None:
    arrays, sharing = [np.zeros(1 << 15) for _ in range(70)], Sharing(1 << 10, "c", held=Held())
    transport = SharedMemory(sharing)
    for array in arrays:
        for _ in range(2):
            frame = transport.pack_all([array], sharing=sharing)[0].frames[0]
            assert isinstance(frame, SharedFrame)
    del frame
    assert sharing.held is not None
    assert 1 <= len(sharing.held.segments) <= 64


@pytest.mark.unit
def test_what_the_program_has_changed_meanwhile_is_sent_anew_though_tasks_may_write_to_it() -> None:
    data, sharing = np.zeros(SIZE), Sharing(1 << 20, "r+", held=Held())
    transport = SharedMemory(sharing)

    def segment() -> Any:
        (found,) = transport.pack_all([data], sharing=sharing)[0].frames[0].buffers
        return found

    first = segment()
    os.pwrite(first.fd, b"written by a task", 0)
    assert segment() is first
    data[-1] = 1
    assert segment() is not first


@needs("sendfds")
def test_arrays_lie_in_the_folder_that_is_named(tmp_path: Path) -> None:
    data = np.ones(SIZE)

    def look(array: Any) -> list[str]:
        maps = Path("/proc/self/maps").read_text().splitlines()
        return [line.split(maxsplit=5)[-1] for line in maps if str(tmp_path) in line]

    with parallel_config(backend="stateful", n_jobs=2, temp_folder=str(tmp_path)):
        found = Parallel()(delayed(look)(data) for _ in range(2))
    assert all(len(names) == 1 and names[0].endswith("(deleted)") for names in found)
    assert list(tmp_path.iterdir()) == []


def test_memory_maps_travel_by_the_name_of_their_file(tmp_path: Path) -> None:
    whole = np.memmap(tmp_path / "data", dtype=float, mode="w+", shape=(1000, 500))
    whole[:] = np.arange(500_000).reshape(1000, 500)
    whole.flush()

    def look(array: Any) -> Any:
        return str(getattr(array, "filename", None)), array.flags.writeable, array.sum(), array.shape, mapped_bytes()

    with parallel_config(backend="stateful", n_jobs=2):
        by_name = (whole, whole[10:20], whole[:, 7], whole.T, np.asarray(whole), whole[5:, ::3])
        results = Parallel()(delayed(look)(view) for view in by_name)
    for view, found in zip(by_name, results, strict=True):
        assert found == (str(tmp_path / "data"), True, view.sum(), view.shape, 0)
    private = np.memmap(tmp_path / "data", dtype=float, mode="c", shape=(1000, 500))
    private[0, 0] = -1
    for other in (private, whole[::-1], whole[:0]):
        (found,) = stateful_map(look, [other], n_jobs=1)
        assert (found[0], found[2], found[3]) == ("None", other.sum(), other.shape)


@in_memfds
def test_large_kwargs_are_mapped_by_all_workers() -> None:
    weights = np.ones(SIZE)

    def look() -> tuple[bool, int]:
        return get_worker().weights.flags.writeable, mapped_bytes()

    with StatefulExecutor(Summing, 2, shared_kwargs={"weights": weights}) as executor:
        executor.warm_up()
        assert {executor.submit(look).result(60) for _ in range(4)} == {(True, 8 * SIZE)}


@in_memfds
def test_kwargs_that_are_equal_to_those_that_are_there_are_not_copied_again() -> None:
    def use() -> set[int]:
        (found,) = stateful_map(Summing, [np.ones(3)], n_jobs=1, shared_kwargs={"weights": np.ones(SIZE)})
        assert found[1] == 3
        return open_segments()

    before = use()
    assert before
    assert [use() for _ in range(3)] == [before] * 3


def test_a_retry_finds_the_array_still_there(tmp_path: Path) -> None:
    def die_once(array: Any) -> float:
        if array[0] == 2 and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return float(array.sum())

    arrays = (np.full(SIZE, float(number)) for number in range(6))
    results = list(stateful_map(die_once, arrays, n_jobs=2, retries=1, batch_size=2))
    assert results == [SIZE * float(number) for number in range(6)]


def test_results_of_many_workers_and_sizes_are_their_own() -> None:
    class Maker:
        def __call__(self, number: int) -> Any:
            return [np.full((number % 5) * 100_000 + 10, number), np.full(SIZE, -number)]

    for number, (first, second) in enumerate(stateful_map(Maker, range(40), n_jobs=3)):
        assert (first == number).all()
        assert (second == -number).all()
        assert (len(first), len(second)) == ((number % 5) * 100_000 + 10, SIZE)


def test_nothing_is_kept_open() -> None:
    with StatefulExecutor(Summing, 1) as executor:
        executor.submit(call_worker, np.ones(SIZE)).result(60)
        (worker,) = executor.workers()
        wait_for(lambda: not open_segments())  # the thread that brought the result lets go of it a moment later
        # Where large results lie has not been needed yet.
        assert open_segments(worker.pid or 0) == set()
    joblib_stateful.shutdown()


@needs("sendfds")
def test_without_room_arrays_are_copied_and_one_warning_says_so(run_program: RunProgram) -> None:
    done = run_program(program_text("transport/has_no_room_for_arrays"))
    assert (done.code, done.err) == (0, "")
    assert done.out.count("can't be shared") == 1
    assert "temp_folder" in done.out


@needs("sendfds")
def test_a_folder_that_is_not_there_is_made_up_for_by_memory(run_program: RunProgram) -> None:
    done = run_program(program_text("transport/names_a_folder_that_is_not_there"))
    assert (done.code, done.err) == (0, "")
    assert done.out.count("they lie in memory instead") == 1


def test_without_numpy_nothing_is_missed(run_program: RunProgram) -> None:
    done = run_program(
        """
        import sys
        sys.modules["numpy"] = None
        from joblib_stateful import StatefulExecutor, call_worker
        class Echo:
            def __call__(self, item):
                return item
        with StatefulExecutor(Echo, 1) as executor:
            print(len(executor.submit(call_worker, bytearray(3_000_000)).result(60)))
        """
    )
    assert (done.code, done.out, done.err) == (0, "3000000\n", "")


def test_joblibs_own_workers_report_to_joblibs_own_tracker(run_program: RunProgram) -> None:
    # When loky is imported after joblib, it takes joblib's place as the start method "loky".
    done = run_program(
        """
        import joblib
        import numpy as np
        from joblib import Parallel, delayed, parallel_config
        from joblib_stateful import stateful_map

        data = np.ones(1 << 18)
        print(list(stateful_map(np.sum, [data], n_jobs=1)))
        print(Parallel(n_jobs=2, backend="loky")(delayed(np.sum)(data) for _ in range(5)))
        joblib.externals.loky.get_reusable_executor().shutdown()
        """
    )
    assert (done.code, done.err) == (0, "")


def test_the_default_folder_for_temporary_files_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One of its own, for other tests that run meanwhile may use it.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    list(stateful_map(np.sum, [np.ones(SIZE)] * 3, n_jobs=2))
    assert not [path for path in tmp_path.iterdir() if "joblib" in path.name]


# --- what is found again, and what must not be ---------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@needs("fork")
def test_a_fork_does_not_find_its_parents_segments_which_that_will_write_to() -> None:
    array, transport = np.zeros(SIZE), SharedMemory()
    (segment,) = transport.pack_shared(array).buffers
    pid = os.fork()
    if not pid:
        (own,) = transport.pack_shared(array).buffers
        key: Any = transport.identify(array)
        os._exit(own is segment or segment in key)
    assert os.waitpid(pid, 0)[1] == 0
    assert transport.pack_shared(array).buffers == (segment,)


RECORD = [("a", "i1"), ("b", "f8")]
# Arrays with gaps, or of which numpy hands out no buffer, made of an array that stays.
ODD: dict[str, Callable[[Any], Any]] = {
    "contiguous": lambda base: base,
    "Fortran order": lambda base: base.reshape(-1, 8).T,
    "a column": lambda base: base.reshape(-1, 2)[:, 0],
    "few columns": lambda base: base.reshape(-1, 8)[:, 2:5],
    "part of Fortran order": lambda base: base.reshape(-1, 8).T[:, ::2],
    "reversed": lambda base: base[::-1],
    "reversed along two axes": lambda base: base.reshape(-1, 4, 4)[:, ::-1, ::-2],
    "axes in another order": lambda base: base.reshape(-1, 4, 4).transpose(1, 2, 0)[::-1],
    "repeated": lambda base: np.broadcast_to(base[: SIZE >> 2], (3, SIZE >> 2)),
    "one number, repeated": lambda base: np.broadcast_to(base[:1], (SIZE,)),
    "dates": lambda base: base.view("M8[s]"),
    "frozen dates": lambda base: np.lib.stride_tricks.as_strided(base.view("M8[s]"), writeable=False),
    "dates in Fortran order": lambda base: base.view("M8[s]").reshape(-1, 8).T,
    "axes of dates in another order": lambda base: base.view("M8[s]").reshape(-1, 4, 4).transpose(1, 0, 2),
    "a column of durations": lambda base: base.view("m8[ms]").reshape(-1, 2)[:, 1],
    "big-endian": lambda base: base.view(">f8")[::3],
    "records": lambda base: base.view([("a", "i4"), ("b", "i4"), ("c", "f8")])[::2],
    "records with padding": lambda base: base.view(np.dtype(RECORD, align=True))[::2],
    "a field": lambda base: base.view([("a", "i4"), ("b", "f4")])["b"],
    "text": lambda base: np.ndarray(SIZE, "S7", base)[::2],
    "bfloat16": lambda base: base.view(pytest.importorskip("ml_dtypes").bfloat16),
    "a column of bfloat16": lambda base: base.view(pytest.importorskip("ml_dtypes").bfloat16).reshape(-1, 4)[:, 2],
}
every_odd = pytest.mark.parametrize("make", ODD.values(), ids=ODD)


def assert_travels(transport: SharedMemory, array: Any) -> None:
    arrived = transport.unpack(as_arrived(transport.pack_shared(array)))
    assert (arrived.dtype, arrived.shape, arrived.flags.writeable) == (array.dtype, array.shape, True)
    # Bytes of others make numbers that are not equal to themselves.
    plain = f"V{array.itemsize}"
    assert arrived.view(plain).tobytes() == array.view(plain).tobytes()


def as_arrived(frame: Any) -> Any:
    """Return a frame as it is in a worker."""
    return frame.with_buffers(lambda one: bytearray(one.view())) if isinstance(frame, SharedFrame) else frame


@every_odd
def test_an_array_is_written_once_as_long_as_it_does_not_change(make: Callable[[Any], Any]) -> None:
    base, transport = np.arange(float(SIZE)), SharedMemory()
    (first,) = (kept := transport.pack_shared(make(base))).buffers
    scratch = np.ones(2 * SIZE)  # so that copies lie elsewhere
    assert transport.pack_shared(make(base)).buffers == (first,)
    assert first in cast("Any", transport.identify(make(base)))
    assert_travels(transport, make(base))
    base[:] = base[::-1].copy()
    assert transport.pack_shared(make(base)).buffers != (first,)
    assert first not in cast("Any", transport.identify(make(base)))
    assert_travels(transport, make(base))
    del kept, scratch


@every_odd
def test_what_is_used_again_is_held_as_long_as_what_it_looks_into(make: Callable[[Any], Any]) -> None:
    held = Held()
    base, transport = np.arange(float(SIZE)), SharedMemory(Sharing(mode="r", held=held))
    before = open_segments()
    for _ in range(3):
        frame = transport.pack_shared(make(base))
        assert (transport.pack_shared(make(base)).buffers, len(held.segments)) == (frame.buffers, 1)
        del frame
    assert len(open_segments() - before) == CAN_COUNT
    del base
    assert not held.segments
    wait_for(lambda: not open_segments() - before)


@pytest.mark.parametrize("axis", [0, 1], ids=["rows", "columns"])
def test_of_the_windows_of_one_array_no_more_is_held_than_it_weighs(axis: int) -> None:
    held = Held()
    base, transport = np.arange(2.0 * SIZE).reshape(512, -1), SharedMemory(Sharing(mode="r", held=held))
    width = base.shape[axis] // 4
    for start in range(base.shape[axis] - width):
        window = base[start : start + width] if axis == 0 else base[:, start : start + width]
        frame = transport.pack_shared(window)
        assert transport.pack_shared(window).buffers == frame.buffers
        assert frame.buffers[0] in [segment for segment, _ in held.segments.values()]
        assert sum(segment.size for segment, _ in held.segments.values()) <= base.nbytes
    del frame
    assert len(held.segments) == 4


def test_parts_of_one_array_are_not_taken_for_each_other() -> None:
    base, transport = np.zeros(8 * SIZE), SharedMemory()
    base[::3] = 1  # which some of them see
    parts = [base[::2], base[1::2], base[::4], base[: 4 * SIZE : 2], base[::-2], base.reshape(-1, 2)[:, :1], base]
    frames = [transport.pack_shared(part) for part in parts]
    for part, frame in zip(parts, frames, strict=True):
        np.testing.assert_array_equal(np.frombuffer(frame.buffers[0].view()), part.ravel())
    again = [transport.pack_shared(part).buffers for part in parts]
    assert again == [frame.buffers for frame in frames]


def test_an_array_that_lies_where_another_lay_is_not_taken_for_that() -> None:
    transport, memory = SharedMemory(), bytearray(16 * SIZE)
    frames = []
    for number in range(4):
        array = np.frombuffer(memory)
        array[:] = number
        frames.append(transport.pack_shared(array[::2]))
        del array
    assert len({frame.buffers for frame in frames}) == 4
    assert [np.frombuffer(frame.buffers[0].view())[-1] for frame in frames] == [0, 1, 2, 3]


def test_the_smallest_difference_of_arrays_with_gaps_is_seen() -> None:
    base, transport = np.zeros(16 * SIZE, np.uint8), SharedMemory()
    frame = transport.pack_shared(base[::2])
    for place in (0, 8 * SIZE, 16 * SIZE - 2):
        base[place] = 1
        assert transport.pack_shared(base[::2]).buffers != frame.buffers
        base[place] = 0
    base[1] = 1  # in a gap
    (segment,) = transport.pack_shared(base[::2]).buffers
    assert not np.frombuffer(segment.view(), np.uint8).any()


def test_an_array_with_gaps_that_there_is_no_room_for_goes_in_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise OSError("no room")

    monkeypatch.setattr("joblib_stateful._transport._stores._make_segment", refuse)
    monkeypatch.setattr("joblib_stateful._transport._stores._warned", [True])
    transport, array = SharedMemory(), np.arange(4.0 * SIZE)[::-2]
    frame = transport.pack_shared([array, array[::2]])
    assert isinstance(frame, bytes)
    np.testing.assert_equal(transport.unpack(frame), [array, array[::2]])
    assert transport.identify(array) == transport.identify(array.copy()[::1].repeat(2)[::2])
    assert transport.identify(array) != transport.identify(array + 1)


@pytest.mark.parametrize("threshold", [None, 1 << 30, 1 << 10, 1])
@pytest.mark.parametrize("size", [0, 1, 100, SIZE])
def test_arrays_with_gaps_are_unchanged_whatever_is_shared(size: int, threshold: int | None) -> None:
    base = np.arange(4.0 * size)
    parts = [base[::2], base.reshape(-1, 4)[:, 1:3], base[::-1], np.broadcast_to(3.0, (size,)), np.array(5.0)[...]]
    for transport in (SharedMemory(Sharing(threshold)), Stored(Sharing(threshold)), Stored(is_far=True)):
        np.testing.assert_equal(transport.unpack(as_arrived(transport.pack_shared(parts))), parts)


@in_memfds
@pytest.mark.parametrize("mmap_mode", ["r", "c", "r+"])
def test_an_array_with_gaps_that_every_task_gets_is_written_once(mmap_mode: str) -> None:
    base = np.ones(2 * MAPPED)
    column = base.reshape(-1, 2)[:, 0]
    before, seen = open_segments(), set[int]()

    def tasks() -> Iterator[Any]:
        for number in range(20):
            seen.update(open_segments() - before)
            yield delayed(look)(column, number)

    def look(array: Any, number: int) -> float:
        return float(array[number])

    with parallel_config(backend="stateful", n_jobs=2, mmap_mode=mmap_mode):
        assert Parallel(batch_size=1)(tasks()) == [1.0] * 20
        assert len(seen) == 1
        column[:] = 2
        assert Parallel(batch_size=1)(tasks()) == [2.0] * 20


def test_a_view_with_gaps_of_a_buffer_that_is_filled_again_and_again_is_never_stale() -> None:
    buffer = np.zeros(2 * SIZE)
    column = buffer[::2]

    def refill() -> Iterator[Any]:
        for number in range(12):
            buffer[:] = number // 2
            yield column

    for batch_size in (1, 3):
        results = stateful_map(lambda array: (array[0], array[-1]), refill(), n_jobs=2, batch_size=batch_size)
        assert list(results) == [(number // 2, number // 2) for number in range(12)]


def test_equal_arrays_of_several_threads_are_the_same_to_all() -> None:
    transport = SharedMemory()
    for number in range(20):
        together, keys = threading.Barrier(4), list[Any]()

        def identify(
            array: Any, together: threading.Barrier = together, found: Callable[[Any], None] = keys.append
        ) -> None:
            together.wait()
            found(transport.identify(array))

        threads = [threading.Thread(target=identify, args=(np.full(SIZE, float(number)),)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(keys)) == 1


def test_what_was_looked_into_can_be_resized() -> None:
    class Buffer:
        def __init__(self) -> None:
            self.data = bytearray(8 * SIZE)

        def __reduce_ex__(self, _: Any) -> Any:
            return bytes, (pickle.PickleBuffer(self.data),)

    buffer = Buffer()
    SharedMemory().identify(buffer)
    buffer.data.append(1)


def test_files_with_equal_contents_are_not_the_same_kwargs(tmp_path: Path) -> None:
    class Writer:
        def __init__(self, out: Any) -> None:
            self.out = out

        def __call__(self, item: int) -> None:
            self.out[item] = item + 1
            self.out.flush()

    for name in ("a", "b"):
        out = np.memmap(tmp_path / name, dtype=float, mode="w+", shape=(SIZE,))
        list(stateful_map(Writer, [0, 1], n_jobs=1, shared_kwargs={"out": out}))
        assert list(out[:3]) == [1, 2, 0]
        out[:2] = 0


def test_what_a_crash_leaves_of_an_item_is_freed_at_once() -> None:
    def crash(_: Any) -> None:
        os._exit(1)

    with StatefulExecutor(n_jobs=1, max_restarts=0) as executor:
        assert executor.submit(crash, np.zeros(SIZE)).exception(60)
        wait_for(lambda: not open_segments())


def test_spare_files_are_of_about_the_size_that_is_wanted_and_the_oldest_goes_first() -> None:
    spares = _Spares()
    fds = [os.memfd_create("spare") for _ in range(3)]
    inodes = [os.fstat(fd).st_ino for fd in fds]
    spares.begin(1)
    for fd, capacity in zip(fds, (1000, 5000, 40 << 20), strict=True):
        spares.give(Spare(fd, capacity))
    assert spares.take(1001) is None, "more than twice too large, or too small"
    assert spares.take(2500) == Spare(fds[1], 5000)
    spares.give(Spare(fds[1], 40 << 20))  # too many bytes together
    assert spares.fds() == {fds[1]}
    spares.end(1)
    assert not spares.fds()
    assert not open_inodes().intersection(inodes)


# --- files that are just being closed -------------------------------------------------------------------


def name_of(fd: int) -> str:
    return str(Path(f"/proc/self/fd/{fd}").readlink())


@pytest.fixture
def while_closing(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """Return a list of functions, each of which is called once, when a file is just about to be closed.

    That is when another thread could come in between: what goes on there is what it would see.
    """
    todo: list[Callable[[], object]] = []
    close = os.close

    def close_in_two_steps(fd: int) -> None:
        while todo:
            todo.pop()()
        close(fd)

    monkeypatch.setattr(os, "close", close_in_two_steps)
    return todo


@needs("memfd")
def test_a_page_of_numbers_that_is_being_closed_is_not_found_again(while_closing: list[Callable[[], object]]) -> None:
    found: list[SharedNumbers] = []
    numbers = SharedNumbers(4)
    while_closing.append(lambda: found.append(SharedNumbers(4)))
    del numbers
    assert "progress" in name_of(found[0]._page.fd)


@needs("memfd")
def test_a_segment_that_is_being_closed_is_not_found_again(while_closing: list[Callable[[], object]]) -> None:
    found: list[Any] = []
    array, transport = np.zeros(SIZE), SharedMemory()
    frame = transport.pack_shared(array)
    while_closing.append(lambda: found.append(transport.pack_shared(array)))
    del frame
    (segment,) = found[0].buffers
    assert "segment" in name_of(segment.fd)
    np.testing.assert_array_equal(np.frombuffer(segment.view()), array)


@needs("fork")
def test_a_child_that_comes_back_from_a_call_writes_into_no_result() -> None:
    def forks(item: int) -> Any:
        child = os.fork()
        if child:
            os.waitpid(child, 0)  # which ends when it has no line to answer by
        return np.full(SIZE, -1.0 if child == 0 else item)

    for item, result in enumerate(stateful_map(forks, range(8), n_jobs=1, batch_size=4)):
        np.testing.assert_array_equal(result, np.full(SIZE, item))


@needs("seals")
def test_a_segment_that_is_written_to_through_a_map_can_not_be_cut_short() -> None:
    # Whoever has its file could end this process with SIGBUS.
    spares.begin(-1)
    try:
        for number in range(4):
            contents = bytes([number]) * (2 << 20)
            segment = Segment([memoryview(contents)])
            assert segment.view() == contents
            is_mapped = segment._kept is not None
            assert is_mapped is (number >= 2), "what is used once more is written to through a map"
            if is_mapped:
                with pytest.raises(PermissionError):
                    os.ftruncate(segment.fd, 0)
            del segment
    finally:
        spares.end(-1)


def test_what_has_been_given_back_of_an_arena_is_written_anew() -> None:
    # Large results are read, and the worker's memory for them is cut off, in between others.
    sizes = [3, 40, 2, 3, 40, 3, 1, 50, 1, 2, 3, 2]
    with StatefulExecutor(Adder, n_jobs=1) as executor:
        arrays = (np.full(size << 17, number, float) for number, size in enumerate(sizes))
        for number, (found, size) in enumerate(zip(stateful_map(executor, arrays, batch_size=1), sizes, strict=True)):
            assert found.shape == (size << 17,)
            assert (found == number + 1).all()
        pairs = [[np.full(1 << 18, number, float) for number in range(first, first + 5)] for first in range(6)]
        for first, row in enumerate(stateful_map(executor, pairs, batch_size=3)):
            assert [float(found.max()) for found in row] == [number + 1 for number in range(first, first + 5)]


class Adder:
    """Adds one to an array, or to each of some."""

    def __call__(self, item: Any) -> Any:
        return [each + 1 for each in item] if isinstance(item, list) else item + 1
