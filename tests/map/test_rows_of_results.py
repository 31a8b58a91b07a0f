"""Results that are the rows of one array, tensor or frame: they are as if each had been cut out by hand, on every engine."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from joblib_stateful import Failure, errors, stateful_map
from joblib_stateful._transport._segments import _ALIGNMENT
from scenes import engines

ROW = 3  # numbers in a row


def numpy_numbers(items: Sequence[int]) -> Any:
    import numpy as np

    return np.array(items, np.int32) * 2


def numpy_rows(items: Sequence[int]) -> Any:
    import numpy as np

    return np.outer(items, np.arange(ROW)).astype(np.float32)


def numpy_blocks(items: Sequence[int]) -> Any:
    import numpy as np

    return np.ones((len(items), 2, ROW)) * np.array(items)[:, None, None]


def numpy_records(items: Sequence[int]) -> Any:
    import numpy as np

    return np.array([(item, item / 2) for item in items], [("a", np.int16), ("b", np.float64)])


def numpy_texts(items: Sequence[int]) -> Any:
    import numpy as np

    return np.array([f"item {item:04}" for item in items])


def numpy_dates(items: Sequence[int]) -> Any:
    import numpy as np

    return np.array(items, "datetime64[D]")


def numpy_objects(items: Sequence[int]) -> Any:
    import numpy as np

    found = np.empty(len(items), object)
    found[:] = [{"item": item} for item in items]
    return found


def torch_numbers(items: Sequence[int]) -> Any:
    import torch

    return torch.tensor(items, dtype=torch.int16)


def torch_rows(items: Sequence[int]) -> Any:
    import torch

    return torch.tensor(items)[:, None] * torch.arange(ROW, dtype=torch.float64)


def pandas_numbers(items: Sequence[int]) -> Any:
    pd = importlib.import_module("pandas")

    return pd.Series(items, dtype="int32")


def pandas_texts(items: Sequence[int]) -> Any:
    pd = importlib.import_module("pandas")

    return pd.Series([str(item) for item in items])


def pandas_frame(items: Sequence[int]) -> Any:
    pd = importlib.import_module("pandas")

    return pd.DataFrame({"number": items, "half": [i / 2 for i in items], "text": [str(i) for i in items]}, index=items)


def polars_numbers(items: Sequence[int]) -> Any:
    pl = importlib.import_module("polars")

    return pl.Series(items)


def polars_frame(items: Sequence[int]) -> Any:
    pl = importlib.import_module("polars")

    return pl.DataFrame({"number": items, "text": [str(item) for item in items]})


def pyarrow_numbers(items: Sequence[int]) -> Any:
    pa = importlib.import_module("pyarrow")

    return pa.array(items)


def pyarrow_chunks(items: Sequence[int]) -> Any:
    pa = importlib.import_module("pyarrow")

    return pa.chunked_array([items[:1], items[1:]], pa.int64())


def pyarrow_table(items: Sequence[int]) -> Any:
    pa = importlib.import_module("pyarrow")

    return pa.table({"number": items, "text": [str(item) for item in items]})


def pyarrow_records(items: Sequence[int]) -> Any:
    pa = importlib.import_module("pyarrow")

    return pa.record_batch({"number": items, "text": [str(item) for item in items]})


MAKERS: list[Callable[[Sequence[int]], Any]] = [
    numpy_numbers,
    numpy_rows,
    numpy_blocks,
    numpy_records,
    numpy_texts,
    numpy_dates,
    numpy_objects,
    torch_numbers,
    torch_rows,
    pandas_numbers,
    pandas_texts,
    pandas_frame,
    polars_numbers,
    polars_frame,
    pyarrow_numbers,
    pyarrow_chunks,
    pyarrow_table,
    pyarrow_records,
]
FRAMES = (pandas_frame, polars_frame, pyarrow_table, pyarrow_records)


def row_of(make: Any, item: int) -> Any:
    """Return what the result for an item is to be: a row, and of a frame a frame with that row."""
    alone = make([item])
    if make in FRAMES:
        return alone
    return alone.iloc[0] if hasattr(alone, "iloc") else alone[0]


def check_same(found: Any, expected: Any) -> None:
    """Fail unless both are of one type and have the same in them."""
    assert type(found) is type(expected)
    if hasattr(expected, "iloc"):
        pytest.importorskip("pandas.testing").assert_frame_equal(found, expected)
    elif hasattr(expected, "dtype"):
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert found.tolist() == expected.tolist()
    elif hasattr(expected, "equals"):
        assert found.equals(expected)
    else:
        assert found == expected


def need(make: Any) -> None:
    package = make.__name__.partition("_")[0]
    pytest.importorskip(package, reason=f"is about rows of what {package} has, which is not installed")


@engines
@pytest.mark.parametrize("make", MAKERS)
def test_each_item_has_its_row(engine: str, make: Any) -> None:
    need(make)
    found = list(stateful_map(make, range(7), n_jobs=1, pass_as="batch", batch_size=5, engine=engine))
    assert len(found) == 7
    for item, row in enumerate(found):
        check_same(row, row_of(make, item))


@engines
@pytest.mark.parametrize("make", [numpy_numbers, numpy_rows, torch_rows, pandas_frame])
def test_another_number_of_rows_is_an_error_that_says_both(engine: str, make: Any) -> None:
    need(make)

    def lose_one(items: list[int]) -> Any:
        return make(items)[1:]

    found = list(
        stateful_map(lose_one, range(3), n_jobs=1, pass_as="batch", batch_size=3, on_error="deferred", engine=engine)
    )
    for result in found:
        assert type(result.exception) is ValueError
        assert "with 3 items, and it returned a" in str(result.exception)
        assert "with 2 results" in str(result.exception)


@engines
def test_an_array_without_an_axis_has_no_rows(engine: str) -> None:
    np = pytest.importorskip("numpy")
    for kind in (np.zeros, lambda _: np.float64(3)):
        results = stateful_map(
            lambda items, kind=kind: kind(()), range(2), n_jobs=1, pass_as="batch", batch_size=2, engine=engine
        )
        with pytest.raises(TypeError, match=r'pass_as="batch" .* one result per item'):
            next(results)


# --- without copies -------------------------------------------------------------------------------------


def owner(array: Any) -> Any:
    """Return the array whose memory it is."""
    while type(array.base) is type(array):
        array = array.base
    return array


@pytest.mark.parametrize("width", [8, 100_000], ids=["small", "through shared memory"])
def test_the_rows_of_one_array_come_as_one_buffer_that_can_be_written_to(width: int) -> None:
    np = pytest.importorskip("numpy")

    def make(items: list[int]) -> Any:
        return np.ones((len(items), width)) * np.array(items)[:, None]

    rows = list(stateful_map(make, range(8), n_jobs=1, pass_as="batch", batch_size=4))
    owners = [owner(row) for row in rows]
    assert len(set(map(id, owners[:4]))) == 1
    assert len(set(map(id, owners[4:]))) == 1
    assert owners[0] is not owners[4], "they are of two calls"
    alignment = 0 if width == 8 else _ALIGNMENT  # what is copied out of shared memory begins at a multiple of that
    assert owners[0].nbytes == 4 * width * 8 + alignment
    rows[1][:] = -1.0
    assert [row[-1] for row in rows] == [0.0, -1.0, *range(2, 8)]


def test_the_rows_of_one_tensor_come_as_one_buffer() -> None:
    torch = pytest.importorskip("torch")
    rows = list(stateful_map(torch_rows, range(4), n_jobs=1, pass_as="batch", batch_size=4))
    assert len({row.untyped_storage().data_ptr() for row in rows}) == 1
    rows[1][:] = -1
    assert [row[1].item() for row in rows] == [0, -1, 2, 3]
    assert torch.equal(rows[3], torch.tensor([0.0, 3.0, 6.0], dtype=torch.float64))


# --- rows, errors and other results among them ----------------------------------------------------------


@engines
def test_rows_find_their_items_among_others_that_fail(engine: str) -> None:
    np = pytest.importorskip("numpy")

    def work(items: list[int]) -> Any:
        if {2, 6, 7} & set(items):
            raise LookupError(len(items))
        found = np.array(items) * [[10], [1]]
        return [int(number) for number in found[0]] if len(items) == 1 else found.T

    found = list(
        stateful_map(work, range(12), n_jobs=1, pass_as="batch", batch_size=12, on_error="deferred", engine=engine)
    )
    assert [result.index for result in found if not result.ok] == [2, 6, 7]
    for result in found:
        if result.ok:
            rows: Any = result.value
            assert (
                rows == result.index * 10
                if isinstance(rows, int)
                else rows.tolist() == [result.index * 10, result.index]
            )
    assert {type(result.value) for result in found} == {int, np.ndarray, type(None)}


@engines
@pytest.mark.parametrize("kind", ["array", "series"])
def test_a_failure_among_objects_is_an_error(engine: str, kind: str) -> None:
    package = "numpy" if kind == "array" else "pandas"
    pytest.importorskip(package)

    def invert(items: list[int]) -> Any:
        import numpy as np

        found = np.empty(len(items), object)
        found[:] = [1 / item if item else Failure(LookupError("zero")) for item in items]
        if kind == "array":
            return found
        pd = importlib.import_module("pandas")

        return pd.Series(found)

    found = list(
        stateful_map(invert, [1, 0, 2], n_jobs=1, pass_as="batch", batch_size=3, on_error="deferred", engine=engine)
    )
    assert [result.value for result in found] == [1.0, None, 0.5]
    assert repr(found[1].exception) == "LookupError('zero')"


class Odd:
    """Has rows, and can be unpickled, if at all, by the process that made it."""

    def __init__(self, n_rows: int, *, travels: bool) -> None:
        self.shape, self.travels = (n_rows,), travels

    def __getitem__(self, at: int) -> int:
        return at

    def __reduce__(self) -> Any:
        if not self.travels:
            raise TypeError("this can't travel")
        return load_in, (os.getpid(),)


def load_in(pid: int) -> None:
    raise ValueError(f"process {os.getpid()} can't load what {pid} made")


@pytest.mark.parametrize("travels", [False, True])
def test_rows_that_cannot_travel_cost_the_items_of_their_call(*, travels: bool) -> None:
    def make(items: list[int]) -> Any:
        return Odd(len(items), travels=travels) if 4 in items else items

    found = list(stateful_map(make, range(9), n_jobs=1, pass_as="batch", batch_size=3, on_error="deferred"))
    lost = [result.exception for result in found if not result.ok]
    assert [(error.index, error.what) for error in lost if isinstance(error, errors.TransferError)] == [
        (3, "result"),
        (4, "result"),
        (5, "result"),
    ]
    assert [result.value for result in found if result.ok] == [0, 1, 2, 6, 7, 8]


class LoadedAtHomeOnly:
    def __reduce__(self) -> Any:
        return load_in, (os.getpid(),)


def test_rows_skip_the_items_that_have_not_come() -> None:
    pytest.importorskip("numpy")
    items = [0, LoadedAtHomeOnly(), 2, LoadedAtHomeOnly(), 4]
    found = list(stateful_map(numpy_rows, items, n_jobs=1, pass_as="batch", batch_size=5, on_error="deferred"))
    assert [result.index for result in found if not result.ok] == [1, 3]
    assert [result.unwrap().tolist() for result in found if result.ok] == [[0, 0, 0], [0, 2, 4], [0, 4, 8]]
