"""An item or a result for which a worker has no memory is that item's error: worker, object and the others live on."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

import pytest

from contract import on
from joblib_stateful import StatefulExecutor, call_worker, errors, stateful_map
from needs import needs

_MB = 2**20
_ROOM = 160 * _MB


@pytest.fixture(autouse=True)
def _address_space_is_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """In workers with more than one thread, glibc takes 64 MB of addresses, and no memory, when it is first out of some."""
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")


class Tight:
    """May have so much memory more than its process has when it is built."""

    def __init__(self, room: int = _ROOM) -> None:
        limit = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") + room
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        self.n_calls = 0

    def __call__(self, item: Any) -> Any:
        self.n_calls += 1
        if callable(item):
            return item()
        return len(item), self.n_calls, os.getpid()


def bytes_of(size: int) -> Any:
    return lambda: bytes(size)


def text_of(size: int) -> Any:
    """Return what makes text of which pickle needs a copy of twice its size."""
    return lambda: "\u00e9" * size


def changeable(size: int) -> Any:
    """Return what makes memory of which pickle gets a copy, for it may be changed meanwhile."""
    return lambda: [bytearray(size), "y"]


def array_of(size: int) -> Any:
    def make() -> Any:
        import numpy as np

        return np.zeros(size, dtype=np.uint8)

    return make


def told_at_length(size: int) -> Any:
    def fail() -> None:
        raise ValueError("x" * size)

    return fail


def run(items: list[Any], batch_size: int, policy: Any = "deferred", room: int = _ROOM) -> list[Any]:
    options: dict[str, Any] = {"n_jobs": 1, "batch_size": batch_size, "on_error": policy, "buffer": 64}
    return list(stateful_map(Tight, items, shared_kwargs={"room": room}, **options))


SMALL = b"small"


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize(
    "make",
    [
        lambda: bytes(300 * _MB),
        lambda: bytes(120 * _MB),
        lambda: [bytes(120 * _MB)],
        lambda: list(range(7_000_000)),
    ],
)
def test_an_item_too_large_for_a_worker_is_its_own_error(make: Any, batch_size: int) -> None:
    items = [SMALL, SMALL, make(), SMALL, SMALL]
    found = run(items, batch_size)
    assert [result.ok for result in found] == [True, True, False, True, True]
    error = found[2].exception
    assert isinstance(error, errors.TransferError)
    assert (error.index, error.what) == (2, "item")
    assert "MemoryError" in error.reason
    # No item was run twice, and there was one object all along.
    assert [result.value[1] for result in found if result.ok] == [1, 2, 3, 4]
    assert len({result.value[2] for result in found if result.ok}) == 1


@pytest.mark.parametrize("batch_size", [1, 4])
def test_items_that_fit_one_by_one_only_all_run(batch_size: int) -> None:
    items = [number.to_bytes(1, "big") * (40 * _MB) for number in range(6)]
    found = run(items, batch_size)
    assert [result.value[0] if result.ok else result.exception for result in found] == [40 * _MB] * 6
    assert [result.value[1] for result in found] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("large", [text_of(70 * _MB), changeable(100 * _MB)])
def test_a_result_too_large_for_a_worker_is_its_items_error(large: Any, batch_size: int) -> None:
    found = run([SMALL, large, SMALL, SMALL, SMALL], batch_size)
    assert [result.ok for result in found] == [True, False, True, True, True]
    error = found[1].exception
    assert isinstance(error, errors.TransferError)
    assert (error.index, error.what) == (1, "result")
    assert "MemoryError" in error.reason
    # Those behind it in its batch may run after those that were sent meanwhile.
    assert sorted(result.value[1] for result in found if result.ok) == [1, 3, 4, 5]
    assert len({result.value[2] for result in found if result.ok}) == 1


@needs("sendfds")
@pytest.mark.parametrize("batch_size", [1, 4])
def test_large_bytes_need_no_copy_in_the_worker(batch_size: int) -> None:
    found = run([SMALL, bytes_of(120 * _MB), SMALL, SMALL], batch_size)
    assert [result.ok for result in found] == [True] * 4
    assert len(found[1].value) == 120 * _MB


@needs("sendfds")
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_large_array_needs_no_copy_in_the_worker(batch_size: int) -> None:
    pytest.importorskip("numpy")
    found = run([SMALL, array_of(350 * _MB), SMALL, SMALL], batch_size, room=600 * _MB)  # NumPy is loaded there
    assert [result.ok for result in found] == [True] * 4
    assert found[1].value.nbytes == 350 * _MB


@pytest.mark.parametrize("batch_size", [1, 4])
def test_an_array_that_can_not_be_mapped_is_its_items_error(batch_size: int) -> None:
    np = pytest.importorskip("numpy")
    found = run([SMALL, np.zeros(700 * _MB, dtype=np.uint8), SMALL, SMALL], batch_size, room=600 * _MB)
    assert [result.ok for result in found] == [True, False, True, True]
    assert isinstance(found[1].exception, errors.TransferError)
    assert [result.value[1] for result in found if result.ok] == [1, 2, 3]


def test_an_exception_too_long_for_a_worker_is_still_its_items_error() -> None:
    found = run([SMALL, told_at_length(60 * _MB), SMALL], 3)
    assert [result.ok for result in found] == [True, False, True]
    assert "ValueError" in repr(found[1].exception) or "MemoryError" in repr(found[1].exception)
    assert [result.value[1] for result in found if result.ok] == [1, 3]


@pytest.mark.cluster
@on("dask")
def test_an_item_that_dask_has_no_memory_to_receive_is_that_items_error(engine: Any) -> None:
    """Dask loses the object with it, and would never say that there is no answer."""
    items = [SMALL, bytes(120 * _MB), SMALL, SMALL]
    options: dict[str, Any] = {"n_jobs": 1, "batch_size": 4, "on_error": "deferred", "engine": engine}
    found = list(stateful_map(Tight, items, shared_kwargs={"room": _ROOM}, **options))
    assert [result.ok for result in found] == [True, False, True, True]
    assert "MemoryError" in str(found[1].exception)


@pytest.mark.parametrize("policy", ["immediate", "wait_others"])
def test_want_of_memory_in_a_worker_is_raised_like_any_other_error(policy: Any) -> None:
    for large in (bytes(300 * _MB), text_of(70 * _MB)):
        with pytest.raises(errors.TransferError, match="MemoryError"):
            run([SMALL, large, SMALL], 1, policy)


def test_want_of_memory_in_a_worker_is_a_submitted_calls_error(tmp_path: Path) -> None:
    with StatefulExecutor(Tight, 1) as executor:
        before = executor.submit(call_worker, SMALL).result()
        for function, large in ((call_worker, bytes(300 * _MB)), (call_worker, text_of(70 * _MB))):
            with pytest.raises(errors.TransferError, match="MemoryError"):
                executor.submit(function, large).result()
        assert executor.submit(call_worker, SMALL).result()[2] == before[2]


def test_a_function_that_a_worker_had_no_memory_for_is_sent_again() -> None:
    def make(text: bytes) -> Any:
        return lambda item: len(text) + item

    def limit(room: int) -> int:
        Tight(room)
        return os.getpid()

    (pid,) = stateful_map(limit, [100 * _MB], n_jobs=1)
    large = make(bytes(200 * _MB))
    found = list(stateful_map(large, [1, 2], n_jobs=1, on_error="deferred"))
    assert [type(result.exception) for result in found] == [errors.TransferError] * 2
    small = make(b"x")
    assert list(stateful_map(small, [1, 2], n_jobs=1)) == [2, 3]
    assert list(stateful_map(lambda item: os.getpid(), [1], n_jobs=1)) == [pid]
