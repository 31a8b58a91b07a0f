"""What a worker gives back as it came is not copied: its values are right all the same, and nobody else sees a change of them."""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from joblib import Parallel, delayed, parallel_config

from joblib_stateful import shutdown, stateful_map
from joblib_stateful._process import _system
from joblib_stateful._transport import _unchanged
from joblib_stateful._transport._segments import Segment, spares
from joblib_stateful._transport._setting_aside import SharedFrame
from joblib_stateful._transport._shared_memory import Lost
from joblib_stateful._transport._transport import Parcel
from joblib_stateful._transport._unchanged import Unchanged
from joblib_stateful._worker._messages import Ran
from joblib_stateful.engines.loky._line import encode
from joblib_stateful.engines.loky._receiving import answer_in
from needs import needs

np = pytest.importorskip("numpy")

SIZE = 1 << 20  # of doubles: 8 MiB, which are mapped in the worker and not copied
needs_maps = needs("pagemap", "seals", "sendfds", "memfd")


def mapped_bytes() -> int:
    """Return how much of segments is mapped privately in this process: in the program, what was not copied."""
    total = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        where, flags, *_ = line.split()
        if "memfd:joblib_stateful segment" in line and flags[3] == "p":
            start, end = (int(part, 16) for part in where.split("-"))
            total += end - start
    return total


def give_back(item: Any) -> Any:
    return item


@needs_maps
def test_what_comes_back_as_it_came_is_not_copied() -> None:
    arrays = [np.full(SIZE, float(number)) for number in range(6)]
    for number, back in enumerate(stateful_map(give_back, arrays, n_jobs=2)):
        assert mapped_bytes() >= 8 * SIZE
        assert back.flags.writeable
        assert (back == number).all()
        back[:] = -1
        assert (arrays[number] == number).all()
    del back
    assert not mapped_bytes()


def change(index: int) -> Callable[[Any], Any]:
    def changed(array: Any) -> Any:
        array[index] = -1
        return array

    return changed


@pytest.mark.parametrize("index", [0, 1, SIZE // 2, -1])
def test_one_number_that_has_changed_comes_back(index: int) -> None:
    array = np.arange(float(SIZE))
    expected = array.copy()
    expected[index] = -1
    for back in stateful_map(change(index), [array] * 4, n_jobs=2, batch_size=1):
        np.testing.assert_array_equal(back, expected)
    np.testing.assert_array_equal(array, np.arange(float(SIZE)))


def part_of(how: str) -> Callable[[Any], Any]:
    """Return what makes a part of an array."""
    parts: dict[str, Callable[[Any], Any]] = {
        "most of it": lambda array: array[3:-1000],
        "a page's worth less": lambda array: array[mmap.PAGESIZE // 8 :],
        "a little of it": lambda array: array[SIZE // 2 : SIZE // 2 + SIZE // 4],
        "backwards": lambda array: array[::-1],
        "every second one": lambda array: array[::2],
        "other shape": lambda array: array.reshape(2, -1),
        "other type": lambda array: array.view(np.int64)[1:],
    }
    return parts[how]


@pytest.mark.parametrize(
    "how",
    [
        "most of it",
        "a page's worth less",
        "a little of it",
        "backwards",
        "every second one",
        "other shape",
        "other type",
    ],
)
def test_parts(how: str) -> None:
    array = np.arange(float(SIZE))
    make = part_of(how)
    (back,) = stateful_map(make, [array], n_jobs=1)
    np.testing.assert_array_equal(back, make(array))
    back[:] = 0


@needs_maps
def test_a_small_part_keeps_no_large_segment() -> None:
    (back,) = stateful_map(part_of("a little of it"), [np.arange(float(SIZE))], n_jobs=1)
    assert back[0] == SIZE // 2
    assert not mapped_bytes()


def test_each_of_several_is_one_of_its_own() -> None:
    array = np.zeros(SIZE)
    for one, other in stateful_map(lambda item: (item, item[:]), [array] * 3, n_jobs=2):
        one[:] = 1
        assert not other.any()
        other[:] = -1
        assert (one == 1).all()


class Keeper:
    """Gives back the array before."""

    before: Any = None

    def __call__(self, array: Any) -> Any:
        before, self.before = self.before, array
        return before


@pytest.mark.parametrize("batch_size", [1, 3])
def test_what_a_worker_has_kept_of_an_earlier_item(batch_size: int) -> None:
    arrays = (np.full(SIZE, float(number)) for number in range(9))
    first, *others = stateful_map(Keeper, arrays, n_jobs=1, batch_size=batch_size)
    assert first is None
    assert [(back[0], back[-1]) for back in others] == [(number, number) for number in range(8)]


def test_what_the_program_keeps_stays_as_it_was() -> None:
    def arrays(begin: int) -> Iterator[Any]:
        for number in range(begin, begin + 12):
            yield np.full(SIZE - number, float(number))

    kept = list(stateful_map(give_back, arrays(0), n_jobs=2, batch_size=1))
    more = list(stateful_map(give_back, arrays(12), n_jobs=2, batch_size=2))
    shutdown()
    for number, back in enumerate([*kept, *more]):
        assert (back == number).all()


@needs_maps
def test_memory_of_results_that_are_gone_is_used_again() -> None:
    used: set[int] = set()

    def arrays() -> Iterator[Any]:
        for number in range(30):
            yield np.full(SIZE, float(number))
            used.update(os.fstat(fd).st_ino for fd in spares.fds())

    results = stateful_map(give_back, arrays(), n_jobs=2, batch_size=1, buffer=4)
    assert [float(back[-1]) for back in results] == list(range(30))
    assert 1 <= len(used) <= 8


@needs("fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_what_a_fork_of_the_program_looks_into_stays_as_it_was() -> None:
    (back,) = stateful_map(give_back, [np.full(SIZE, 7.0)], n_jobs=1)
    here, there = multiprocessing.Pipe()
    if not os.fork():
        here.close()
        with contextlib.suppress(EOFError):
            there.recv()
            there.send(bool((back == 7).all()))
        os._exit(0)
    there.close()
    del back
    for _ in stateful_map(np.sum, (np.full(SIZE, float(number)) for number in range(12)), n_jobs=1, batch_size=1):
        pass
    here.send(None)
    assert here.recv()
    here.close()
    os.wait()


class Buffer:
    """Is nothing but memory, of whatever class that comes as."""

    def __init__(self, memory: Any) -> None:
        self.memory = memory

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Buffer, (pickle.PickleBuffer(self.memory),)


def test_memory_is_of_the_same_class_whether_it_is_a_copy_or_not() -> None:
    def changed(item: Buffer) -> Buffer:
        memoryview(item.memory).cast("B")[:1] = b"x"
        return item

    items = [Buffer(np.zeros(8 * SIZE, np.uint8))]
    (unchanged,), (copied,) = (list(stateful_map(worker, items, n_jobs=1)) for worker in (give_back, changed))
    assert type(unchanged.memory) is type(copied.memory)
    assert type(pickle.loads(pickle.dumps(unchanged, 5))) is Buffer


@needs("sendfds")
def test_what_a_worker_has_closed_costs_no_other_result() -> None:
    def closes(item: Any) -> Any:
        other, memory = item
        memory.close()
        return np.ones(SIZE), memory.closed, other

    item = np.zeros(SIZE), pickle.PickleBuffer(np.zeros(8 * SIZE, np.uint8))
    for _ in range(2):
        ((ones, is_closed, other),) = stateful_map(closes, [item], n_jobs=1)
        assert is_closed
        assert ones.all()
        assert not other.any()


@needs_maps
@pytest.mark.unit
def test_what_the_kernel_says_is_about_the_pages_of_this_process() -> None:
    assert _unchanged._can_tell()


@needs_maps
def test_no_more_open_files_than_others_can_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_unchanged, "_MOST_FILES", 2)
    monkeypatch.setattr(_unchanged, "KEEP_NO_FD", {})
    arrays = [np.full(SIZE, float(number)) for number in range(6)]
    kept = list(stateful_map(give_back, arrays, n_jobs=2, batch_size=1))
    assert mapped_bytes() == 2 * 8 * SIZE
    assert [(back[0], back[-1]) for back in kept] == [(number, number) for number in range(6)]


@pytest.mark.parametrize("mode", ["r", "c"])
def test_under_joblib(mode: Any) -> None:
    data = np.arange(float(SIZE))
    with parallel_config(backend="stateful", n_jobs=2, mmap_mode=mode):
        for back in Parallel(return_as="generator", batch_size=1)(delayed(give_back)(data) for _ in range(4)):
            np.testing.assert_array_equal(back, data)
            back[:] = -1
    np.testing.assert_array_equal(data, np.arange(float(SIZE)))


def test_memory_that_all_share_comes_back_as_a_copy() -> None:
    data = np.zeros(SIZE)
    with parallel_config(backend="stateful", n_jobs=2, mmap_mode="r+"):
        first, second = Parallel(batch_size=1)(delayed(change(number))(data) for number in range(2))
    assert first[0] == second[1] == -1
    first[5] = 5
    assert not second[5]


class Asker:
    """Was sent one segment with a message that is under way."""

    def __init__(self, segment: Segment) -> None:
        self.segments = [segment]

    def check(self, reply: Any, kept: Any) -> None:
        """Find it right."""

    def answer_without(self, nbytes: int) -> Any:
        raise AssertionError(nbytes)

    def lent_with(self, seq: int) -> list[Segment]:
        assert seq == 1
        return self.segments


def nothing() -> None:
    pass


@pytest.mark.unit
@pytest.mark.parametrize(
    "where",
    [Unchanged(-1, 0, 8), Unchanged(0, -8, 8), Unchanged(0, 0, -8), Unchanged(0, 0.5, 8), Unchanged("0", 0, 8)],  # type: ignore[arg-type]
)
def test_an_answer_that_cannot_be_is_none(where: Unchanged) -> None:
    asker = Asker(Segment([bytes(8)]))
    data = encode(Ran(1, 1, Parcel((SharedFrame(b"", (where,)),), 1, joint=False, nbytes=8), {}, 0.0))
    with pytest.raises(ValueError, match="a buffer lies at Unchanged"):
        answer_in(asker, (data, []), nothing)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("number", "offset", "size", "mode"),
    [(1, 0, 8, "c"), (0, 1, 8, "c"), (0, 0, 8, "r+"), (0, 0, 0, "c"), (0, 9, 1, "c")],
)
def test_what_lies_in_no_segment_of_the_message_is_lost(number: int, offset: int, size: int, mode: str) -> None:
    segment = Segment([bytes(8)], mode)
    where = Unchanged(segment.number + number, offset, size)
    data = encode(Ran(1, 1, Parcel((SharedFrame(b"", (where,)),), 1, joint=False, nbytes=8), {}, 0.0))
    reply, _ = answer_in(Asker(segment), (data, []), nothing)
    assert isinstance(reply, Ran)
    (frame,) = reply.values.frames
    assert isinstance(frame, Lost)
    assert "where there is none" in str(frame.error)


@pytest.mark.unit
def test_where_it_cannot_be_mapped_it_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_system, "HAS_SEALS", False)
    segment = Segment([b"12345678"])
    found = _unchanged.memory_of(Unchanged(segment.number, 2, 4), [segment])
    assert bytes(found) == b"3456"
    memoryview(found)[:1] = b"_"
    assert bytes(segment.view()) == b"12345678"
    assert not segment.lent
