"""What real libraries hold travels as it is, at every size: small in its message, large through shared memory."""

from __future__ import annotations

import array
import concurrent.futures
import contextlib
import datetime as dt
import errno
import functools
import gc
import hashlib
import itertools
import operator
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from joblib import Parallel, delayed, parallel_config

from clouds import Cloud, another, as_cloud, make_cloud, reduce_cloud, reduce_masked, reduce_records
from contract import N_JOBS
from joblib_stateful import errors, register_reducer, stateful_map
from joblib_stateful._transport import _segments, _stores
from joblib_stateful._transport._reducers import _found, _registered, find_reducers
from joblib_stateful._transport._setting_aside import SharedFrame
from joblib_stateful._transport._shared_memory import SharedMemory, copied_out

np = pytest.importorskip("numpy")

# In its message; shared, and copied on arrival; mapped.
SIZES = {"1 kB": 1 << 10, "1 MB": 1 << 20, "5 MB": 5 << 20}
LARGE = SIZES["1 MB"]


def digest(data: Any) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


# --- the types --------------------------------------------------------------------------------------------
#
# Each is made of so many bytes, about, and told by what a user could tell of it.


def numbers(size: int) -> Any:
    return np.arange(size // 8)


def frozen(value: Any) -> Any:
    value.flags.writeable = False
    return value


def bfloats(size: int) -> Any:
    return np.arange(size // 2).astype(pytest.importorskip("ml_dtypes").bfloat16)


PLAIN: dict[str, Callable[[int], Any]] = {
    "bytes": lambda size: bytes(range(256)) * (size >> 8),
    "bytearray": lambda size: bytearray(range(256)) * (size >> 8),
    "str": lambda size: "abc\u00e9" * (size >> 2),
    "array.array": lambda size: array.array("d", range(size // 8)),
    "strings": lambda size: [f"{number:09d}" for number in range(size // 64)],
    "bytes in a tuple": lambda size: ("name", bytes(size), {"more": b"x" * size}),
}
ARRAYS: dict[str, Callable[[int], Any]] = {
    "float64": lambda size: numbers(size).astype(float),
    "Fortran order": lambda size: np.asfortranarray(numbers(size).reshape(2, -1)),
    "a column": lambda size: numbers(4 * size).reshape(-1, 4)[:, 1],
    "reversed": lambda size: numbers(size)[::-1],
    "datetime64": lambda size: numbers(size).astype("M8[s]"),
    "timedelta64": lambda size: numbers(size).astype("m8[ms]").reshape(2, -1),
    "datetime64, frozen": lambda size: frozen(numbers(size).astype("M8[s]")),
    "datetime64, Fortran order": lambda size: np.asfortranarray(numbers(size).astype("M8[s]").reshape(2, -1)),
    "datetime64, a column": lambda size: numbers(4 * size).astype("M8[s]").reshape(-1, 4)[:, 1],
    "structured": lambda size: np.zeros(size // 16, [("a", "f8"), ("b", "i8")]),
    "recarray": lambda size: np.zeros(size // 16, [("a", "f8"), ("b", "i8")]).view(np.recarray),
    "matrix": lambda size: np.matrix(numbers(size).reshape(2, -1)),
    "masked": lambda size: np.ma.masked_array(numbers(size), numbers(size) % 3 == 0, fill_value=7),
    "masked, without a mask": lambda size: np.ma.masked_array(numbers(size).astype(float)),
    "objects": lambda size: np.array([dt.date(2000, 1, 1 + day % 28) for day in range(size // 512)], object),
    "big-endian": lambda size: numbers(size).astype(">i8"),
    "axes in another order": lambda size: numbers(size).reshape(-1, 4, 2).transpose(1, 0, 2),
}
TENSORS: dict[str, Callable[[Any, int], Any]] = {
    "tensor": lambda torch, size: torch.arange(size // 8),
    "transposed": lambda torch, size: torch.arange(size // 8).view(2, -1).t(),
    "a row": lambda torch, size: torch.arange(size).view(8, -1)[3],
    "a column of a tensor": lambda torch, size: torch.arange(size // 2).view(-1, 4)[:, 1],
    "expanded": lambda torch, size: torch.arange(4).expand(size // 8, 4),
    "bfloat16 tensor": lambda torch, size: torch.arange(size // 2, dtype=torch.bfloat16),
    "uint16 tensor": lambda torch, size: torch.ones(size // 2, dtype=torch.uint16),
    "a row of uint16": lambda torch, size: torch.ones(size * 2, dtype=torch.uint16).view(8, -1)[2],
    "bool": lambda torch, size: torch.arange(size) % 2 == 0,
    "with gradients": lambda torch, size: torch.arange(size // 4, dtype=torch.float32).requires_grad_(),
    "parameter": lambda torch, size: torch.nn.Parameter(torch.arange(size // 4, dtype=torch.float32)),
    "conjugate": lambda torch, size: torch.zeros(size // 8, dtype=torch.complex64).conj(),
    "sparse": lambda torch, size: torch.eye(size >> 8).to_sparse_coo().coalesce(),
    "without elements": lambda torch, size: torch.zeros(0, size),
    "one number": lambda torch, size: torch.tensor(float(size)),
}


def with_torch(make: Callable[[Any, int], Any], size: int) -> Any:
    return make(pytest.importorskip("torch"), size)


def module_of(torch: Any, size: int) -> Any:
    found = torch.nn.Sequential(torch.nn.Linear(64, size >> 8), torch.nn.ReLU())
    found.register_buffer("mean", torch.zeros(3))
    return found.eval()


def table_of(arrow: Any, size: int) -> Any:
    return arrow.table({"a": range(size // 16), "b": [f"{number:07d}" for number in range(size // 16)]})


def frame_of(polars: Any, size: int) -> Any:
    n = size // 32
    day = dt.date(2000, 1, 1)
    return polars.DataFrame({"a": range(n), "b": [f"{i:07d}" for i in range(n)], "c": [day] * n, "d": [[1, 2]] * n})


ARROW: dict[str, Callable[[int], Any]] = {
    "Arrow table": lambda size: table_of(pytest.importorskip("pyarrow"), size),
    "Arrow slice": lambda size: table_of(pytest.importorskip("pyarrow"), 4 * size).slice(5, size // 16),
    "Arrow column": lambda size: table_of(pytest.importorskip("pyarrow"), 4 * size).column("b").slice(5, size // 16),
    "Arrow array": lambda size: pytest.importorskip("pyarrow").array(range(size))[5 : size // 8],
    "empty Arrow slice": lambda size: pytest.importorskip("pyarrow").array(range(size))[:0],
    "Arrow dictionary slice": lambda size: (
        pytest.importorskip("pyarrow").array(["a", "bb"] * (size // 4)).dictionary_encode()[5 : size // 16]
    ),
    "empty slice of an Arrow table": lambda size: table_of(pytest.importorskip("pyarrow"), size).slice(3, 0),
}
POLARS: dict[str, Callable[[int], Any]] = {
    "polars frame": lambda size: frame_of(pytest.importorskip("polars"), size),
    "polars slice": lambda size: frame_of(pytest.importorskip("polars"), 4 * size)[5 : size // 32],
    "sorted polars series": lambda size: pytest.importorskip("polars").Series("n", range(size // 8)).set_sorted(),
    "polars column without a name": lambda size: pytest.importorskip("polars").DataFrame({"": range(size // 8)}),
    "polars series": lambda size: pytest.importorskip("polars").Series("n", range(size // 8)),
    "polars categories": lambda size: (
        pytest.importorskip("polars")
        .Series("n", ["a", "b"] * (size // 8))
        .cast(pytest.importorskip("polars").Categorical)
    ),
    "polars decimals": lambda size: (
        pytest.importorskip("polars").Series("n", range(size // 16)).cast(pytest.importorskip("polars").Decimal(30, 2))
    ),
    "lazy frame": lambda size: frame_of(pytest.importorskip("polars"), size).lazy().select("a", "b"),
}
OTHERS: dict[str, Callable[[int], Any]] = {
    "bfloat16": bfloats,
    "data frame": lambda size: pytest.importorskip("pandas").DataFrame({"a": numbers(size // 2), "b": "text"}),
    "image": lambda size: pytest.importorskip("PIL.Image").new("RGB", (32, size // 96), (1, 2, 3)),
    "jax": lambda size: pytest.importorskip("jax.numpy").full(size // 4, 3.0),
    "jax bfloat16": lambda size: pytest.importorskip("jax.numpy").zeros(size // 2, "bfloat16"),
}
# Those of one library go to the same workers, for one that imports torch takes longer to start than all of them.
GROUPS: dict[str, dict[str, Callable[[int], Any]]] = {
    "plain": PLAIN,
    "numpy": ARRAYS,
    "torch": {
        **{name: functools.partial(with_torch, make) for name, make in TENSORS.items()},
        "module": lambda size: module_of(pytest.importorskip("torch"), size),
        "state dict": lambda size: module_of(pytest.importorskip("torch"), size).state_dict(),
    },
    "pyarrow": ARROW,
    "polars": POLARS,
    **{name: {name: make} for name, make in OTHERS.items()},
}
MAKERS = {name: make for group in GROUPS.values() for name, make in group.items()}


def tell(value: Any) -> Any:  # noqa: PLR0911 - a case for each library
    """Say all that a user could tell of a value; the same in a worker."""
    kind = type(value)
    home = kind.__module__.partition(".")[0]
    if home == "torch" and hasattr(value, "state_dict"):
        return kind.__name__, value.training, repr(value), {name: tell(one) for name, one in value.state_dict().items()}
    if home == "torch":
        return _tell_tensor(value)
    if isinstance(value, dict):
        return kind.__name__, {name: tell(one) for name, one in value.items()}
    if isinstance(value, np.ndarray):
        return _tell_array(value)
    if home == "polars":
        return _tell_polars(value)
    if home == "pyarrow":
        return _tell_arrow(value)
    if home == "pandas":
        return (
            kind.__name__,
            str(value.dtypes),
            digest(pytest.importorskip("pandas").util.hash_pandas_object(value).to_numpy()),
        )
    if home == "PIL":
        return kind.__name__, value.mode, value.size, digest(value.tobytes())
    if home in ("jax", "jaxlib"):
        return kind.__name__, str(value.dtype), value.weak_type, digest(np.asarray(value).tobytes())
    return kind.__name__, digest(repr(value).encode())


def _tell_array(value: Any) -> Any:
    kind = type(value).__name__
    if kind == "MaskedArray":
        extra = digest(np.ma.getmaskarray(value).tobytes()), str(value.fill_value), digest(value.data.tobytes())
        return kind, str(value.dtype), value.shape, extra
    data = repr(value.tolist()).encode() if value.dtype.hasobject else value.tobytes()
    is_fortran = value.flags.f_contiguous and not value.flags.c_contiguous
    axes = sorted(range(value.ndim), key=value.strides.__getitem__, reverse=True)
    strides = value.strides if value.transpose(axes).flags.c_contiguous and value.ndim > 1 else None
    return kind, str(value.dtype), value.shape, is_fortran, strides, digest(data)


def _tell_tensor(value: Any) -> Any:
    dense = value.to_dense()
    data = dense.detach().resolve_conj().float() if dense.dtype.itemsize == 2 else dense.detach().resolve_conj()
    about = (
        str(value.dtype),
        tuple(value.size()),
        value.requires_grad,
        value.is_leaf,
        value.is_conj(),
        str(value.layout),
    )
    strides = value.stride() if str(value.layout) == "torch.strided" else None
    return type(value).__name__, *about, strides, digest(data.contiguous().numpy().tobytes())


def _tell_arrow(value: Any) -> Any:
    arrow = pytest.importorskip("pyarrow")
    csv = pytest.importorskip("pyarrow.csv")
    is_table = isinstance(value, arrow.Table)
    sink = arrow.BufferOutputStream()
    csv.write_csv(value if is_table else arrow.table({"": value}), sink)
    chunks = [value.column(0).num_chunks] if is_table else getattr(value, "num_chunks", None)
    return type(value).__name__, str(value.schema if is_table else value.type), chunks, digest(sink.getvalue())


def _tell_polars(value: Any) -> Any:
    if type(value).__name__ == "LazyFrame":  # with the data; not by its result, for which polars opens files for good
        return "LazyFrame", digest(value.serialize())
    frame = value.to_frame() if type(value).__name__ == "Series" else value
    is_sorted = [(flags["SORTED_ASC"], flags["SORTED_DESC"]) for flags in frame.flags.values()]
    return type(value).__name__, str(frame.schema), is_sorted, digest(frame.write_json().encode())


def tell_and_return(value: Any) -> Any:
    return tell(value), value


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("group", GROUPS)
def test_the_same_value_arrives_and_comes_back_at_every_size(group: str) -> None:
    for (name, make), (label, size) in itertools.product(GROUPS[group].items(), SIZES.items()):
        if name in ("sparse", "objects") and size > LARGE:
            continue  # they take seconds to be told, and are no larger in their pickle
        value = make(size)
        expected = tell(value)
        for engine in ("loky", "threads", "inline") if label == "1 kB" else ("loky",):  # elsewhere nothing travels
            ((there, back),) = stateful_map(tell_and_return, [value], n_jobs=N_JOBS, engine=engine)
            assert there == expected, (name, label, engine)
            assert tell(back) == expected, (name, label, engine)


# They hold many small objects, or next to nothing.
IN_THE_PICKLE = (
    "objects",
    "one number",
    "without elements",
    "expanded",
    "empty Arrow slice",
    "empty slice of an Arrow table",
)


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("name", [name for name in MAKERS if name not in IN_THE_PICKLE])
def test_what_is_large_does_not_go_through_the_line(name: str) -> None:
    (frame,) = SharedMemory().pack_all([MAKERS[name](4 * LARGE)])[0].frames
    assert isinstance(frame, SharedFrame)
    assert len(frame.head) < LARGE // 8
    # ... nor does it bring along what it doesn't show.
    assert sum(buffer.size for buffer in frame.buffers) <= 16 * LARGE


def change(value: Any) -> Any:
    value[0] = value[1]
    return value


@pytest.mark.parametrize(
    "name",
    [
        "bytearray",
        "array.array",
        "float64",
        "a column",
        "datetime64",
        "datetime64, frozen",
        "bfloat16",
        "tensor",
        "a row",
    ],
)
def test_all_that_can_be_changed_can_be_changed_there_and_here(name: str) -> None:
    for label, size in SIZES.items():
        value = MAKERS[name](size)
        first, second = value[0], value[1]
        for back in stateful_map(change, [value] * 2, n_jobs=1, batch_size=1):
            assert back[0] == second, label
            back[0] = first
        assert value[0] == first, label


# --- tensors that share memory ----------------------------------------------------------------------------


def fill_first(tensors: Any) -> Any:
    tensors[0].fill_(7)
    return tensors, [float(one.detach().float().sum()) for one in tensors]


@pytest.mark.parametrize("n", [64, 1 << 20], ids=["small", "large"])
def test_tensors_of_one_item_that_share_memory_still_do(n: int) -> None:
    torch = pytest.importorskip("torch")
    cases: dict[str, Callable[[Any], Any]] = {
        "a view and its base": lambda base: [base[3:9], base],
        "a base and its view": lambda base: [base, base[3:9]],
        "views that overlap": lambda base: [base[2:9], base[5:12], base[20:22]],
        "a view within another": lambda base: [base[2:9], base[3:4]],
        "a view of another type": lambda base: [base[2:8], base.view(torch.int32)[2:8]],
        "a view and a parameter": lambda base: [base[3:9], torch.nn.Parameter(base)],
        "views of other widths": lambda base: [base.view(torch.uint8)[1:200], base[1:3]],
        "rows": lambda base: list(base.view(8, -1)),
        "columns": lambda base: list(base.view(-1, 8).t()),
    }
    for name, make in cases.items():
        expected = fill_first(make(torch.arange(n, dtype=torch.float32)))
        with torch.no_grad():
            for engine in ("loky", "threads"):
                (found,) = stateful_map(
                    fill_first, [make(torch.arange(n, dtype=torch.float32))], n_jobs=1, engine=engine
                )
                assert found[1] == expected[1], name
                # They share it here, too.
                found[0][0].fill_(9)
                expected[0][0].fill_(9)
                assert all(torch.equal(one, other) for one, other in zip(found[0], expected[0], strict=True)), name


def resized(tensor: Any) -> Any:
    return list(tensor.resize_(10).size()), tensor


def test_a_small_tensor_can_be_resized_there_and_here() -> None:
    torch = pytest.importorskip("torch")
    ((size, back),) = stateful_map(resized, [torch.zeros(3)], n_jobs=1)
    assert size == [10]
    assert list(back.resize_(20).size()) == [20]


def weigh(tensors: Any) -> int:
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values())


def test_no_row_brings_the_other_rows_along() -> None:
    torch = pytest.importorskip("torch")
    base = torch.zeros(100, 10_000)
    whole = base.untyped_storage().nbytes()
    assert list(stateful_map(weigh, [list(base), [base[3]], [base[3], base[4]]], n_jobs=1)) == [
        whole,
        whole // 100,
        whole // 50,
    ]
    assert list(stateful_map(weigh, ([row] for row in base), n_jobs=1)) == [whole // 100] * 100


# --- large values in other places than items -------------------------------------------------------------


class Holder:
    def __init__(self, held: Any) -> None:
        self.held = held

    def __call__(self, item: int) -> float:
        return float(self.held[item])


def closing_over(held: Any) -> Callable[[int], float]:
    return lambda item: float(held[item])


@pytest.mark.parametrize("make", [closing_over, Holder, lambda held: functools.partial(operator.getitem, held)])
@pytest.mark.parametrize("name", ["bytes", "float64", "tensor"])
def test_a_function_may_hold_what_is_large(name: str, make: Any) -> None:
    for (label, size), first in itertools.product(
        SIZES.items(), (1, 2)
    ):  # it may lie in the same place the second time
        held = MAKERS[name](size)
        if name != "bytes":
            held[0] = first
        function = make(held)
        found = list(stateful_map(function, [0, 3, 0], n_jobs=2, batch_size=1))
        assert found == [held[0], held[3], held[0]], (label, first)
        del function, held


def test_a_function_may_hold_views_of_one_tensor() -> None:
    torch = pytest.importorskip("torch")
    base = torch.arange(100_000.0)

    def add(item: int, one: Any = base[:10], other: Any = base[4:12]) -> float:
        one[4] = item
        return float(other[0])

    assert list(stateful_map(add, [1, 2], n_jobs=1)) == [1, 2]


def first_of_each(values: list[Any]) -> list[Any]:
    if any(value[0] == 107 for value in values):
        raise ValueError("the guilty one")
    return [value[0] for value in values]


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("kind", ["bytes", "array", "tuple"])
def test_of_a_call_with_large_items_only_the_guilty_one_fails(kind: str, size: int) -> None:
    def item(first: int) -> Any:
        if kind == "bytes":
            return bytes([first]) * size
        return (first, b"x" * size) if kind == "tuple" else np.full(size // 8, first)

    items = [item(107 if place == 3 else 111) for place in range(7)]
    options: dict[str, Any] = {"n_jobs": 2, "pass_as": "batch", "batch_size": 5, "on_error": "deferred"}
    found = list(stateful_map(first_of_each, items, **options))
    assert [result.ok for result in found] == [place != 3 for place in range(7)]
    assert isinstance(found[3].exception, ValueError)


def raise_with(value: Any) -> None:
    raise ValueError(value, "tail")


@pytest.mark.parametrize("name", ["bytes", "str", "float64", "tensor"])
def test_an_exception_may_hold_what_is_large(name: str) -> None:
    items = [MAKERS[name](size) for size in SIZES.values()]
    for item, found in zip(items, stateful_map(raise_with, items, n_jobs=1, on_error="deferred"), strict=True):
        assert type(found.exception) is ValueError
        assert tell(found.exception.args[0]) == tell(item)


def add_one(value: Any) -> float:
    value += 1
    return float(value[0])


@pytest.mark.parametrize("name", ["tensor", "masked, without a mask"])
def test_what_joblib_shares_no_memory_of_is_each_tasks_own(name: str) -> None:
    value = MAKERS[name](SIZES["5 MB"])
    for mode in ("r", "r+", "c"):
        with parallel_config(backend="stateful", n_jobs=2, mmap_mode=mode):
            found = Parallel()(delayed(add_one)(value) for _ in range(6))
        assert found == [float(value[0]) + 1] * 6, mode


def doubled(value: Any) -> float:
    jax = pytest.importorskip("jax")
    double = jax.jit(lambda array: array * 2, donate_argnums=0)  # which may take its memory for the result
    return float(double(value)[0])


@pytest.mark.parametrize("mode", ["r", "r+", "w+", "c"])
def test_what_jax_may_write_to_is_each_tasks_own(mode: str) -> None:
    value = pytest.importorskip("jax.numpy").full(SIZES["5 MB"] // 4, 3.0)
    with parallel_config(backend="stateful", n_jobs=2, mmap_mode=mode):
        assert Parallel()(delayed(doubled)(value) for _ in range(6)) == [6.0] * 6
    assert set(np.asarray(value)) == {3.0}


def weakly(value: Any) -> tuple[str, bool, Any]:
    return str(value.dtype), value.weak_type, value


def test_jax_arrays_of_all_forms_travel() -> None:
    jnp = pytest.importorskip("jax.numpy")
    n = SIZES["1 MB"] // 4
    arrays = [
        jnp.zeros((0, 3)),
        jnp.float32(3),
        jnp.arange(n).reshape(4, -1).T,
        jnp.arange(n) % 3 == 0,
        jnp.ones(n, jnp.int4),
        jnp.ones(n, jnp.complex64),
        jnp.asarray(2.0) * jnp.ones(()),
        jnp.full((n,), 2),
    ]
    for (dtype, is_weak, back), sent in zip(stateful_map(weakly, arrays, n_jobs=1), arrays, strict=True):
        assert (dtype, is_weak) == (str(sent.dtype), sent.weak_type) == (str(back.dtype), back.weak_type)
        assert back.shape == sent.shape
        assert (np.asarray(back) == np.asarray(sent)).all()


# --- users' own -------------------------------------------------------------------------------------------


@pytest.fixture
def registered() -> Any:
    register_reducer(Cloud, reduce_cloud)
    register_reducer(Cloud, reduce_cloud)  # as by an import that is made again
    yield
    del _found[Cloud], _registered[Cloud]


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_a_reducer_of_the_users_own_holds_in_both_directions(size: int) -> None:
    ((was_anew, back),) = stateful_map(another, [Cloud(bytearray(size))], n_jobs=1)
    assert was_anew
    assert back.is_anew
    assert len(back.points) == size
    assert isinstance(SharedMemory().pack(Cloud(bytearray(size))), bytes) or size >= LARGE


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("points", "said"),
    [
        (b"err", "the reducer of Cloud raised LookupError: no reducer"),
        (b"odd", "the reducer of Cloud returned"),
        (b"bad", "what the reducer of Cloud returned can't be made anew: LookupError: no cloud"),
    ],
)
@pytest.mark.parametrize("direction", ["there", "back"])
def test_a_reducer_that_fails_is_that_items_error(points: bytes, said: str, direction: str) -> None:
    items = [b"one", points, b"two"]
    if direction == "there":
        results = stateful_map(another, map(Cloud, items), n_jobs=1, on_error="deferred")
    else:
        results = stateful_map(as_cloud, items, n_jobs=1, on_error="deferred")
    found = list(results)
    assert [result.exception is None for result in found] == [True, False, True]
    assert isinstance(found[1].exception, errors.TransferError)
    assert said in str(found[1].exception)


@pytest.mark.usefixtures("registered")
def test_a_reducer_may_leave_a_value_to_itself() -> None:
    ((was_anew, _),) = stateful_map(another, [Cloud(b"own")], n_jobs=1)
    assert not was_anew


@contextlib.contextmanager
def registered_for(kind: type, reduce: Callable[[Any], Any]) -> Iterator[None]:
    """Have a reducer of the user's own for a class that has one of ours."""
    before = find_reducers()[kind]
    register_reducer(kind, reduce)
    try:
        yield
    finally:
        del _registered[kind]
        _found[kind] = before


@pytest.mark.parametrize("mode", [None, "r", "r+", "c"])
def test_a_reducer_of_the_users_own_for_a_class_of_numpys_holds_in_each_of_joblibs_modes(mode: str | None) -> None:
    with (
        registered_for(np.ma.MaskedArray, reduce_masked),
        parallel_config(backend="stateful", n_jobs=2, mmap_mode=mode),
    ):
        masked = np.ma.MaskedArray([1, 2], [True, False])
        found = Parallel()(delayed(lambda arrived: hasattr(arrived, "is_anew"))(masked) for _ in range(2))
    assert found == [True, True]


def test_a_class_may_name_a_part_of_its_package_that_nobody_has_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "numpy.rec", raising=False)
    with registered_for(np.recarray, reduce_records):
        records = np.zeros(2, [("a", "f8"), ("b", "i8")]).view(np.recarray)
        ((was_anew, back),) = stateful_map(lambda one: (hasattr(one, "is_anew"), one.copy()), [records], n_jobs=1)
    assert was_anew
    assert back.is_anew
    assert back.a.tolist() == [0.0, 0.0]


@pytest.mark.usefixtures("registered")
def test_bad_reducers_are_refused() -> None:
    class Local:
        pass

    with pytest.raises(TypeError, match=r"its first argument is a class, and not 'Cloud'"):
        register_reducer("Cloud", reduce_cloud)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"its second argument is a function of one value, and not None"):
        register_reducer(Cloud, None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"How a list travels can't be changed"):
        register_reducer(list, reduce_cloud)
    # The last one is in a module that travels by value.
    for kind, reduce in [(Local, reduce_cloud), (Cloud, lambda _: None), (Cloud, tell)]:
        with pytest.raises(ValueError, match=r"can't be imported by others.*Put it into a module"):
            register_reducer(kind, reduce)
    with pytest.raises(ValueError, match=r"Cloud has a reducer already: clouds\.reduce_cloud"):
        register_reducer(Cloud, make_cloud)


# --- memory -----------------------------------------------------------------------------------------------


def test_nothing_of_a_large_pickle_is_kept() -> None:
    transport = SharedMemory()
    parcel, _ = transport.pack_all([bytes(LARGE), bytearray(LARGE), "x" * LARGE])
    segments = [buffer for frame in parcel.frames for buffer in frame.buffers]
    assert len(transport._store._alive) == len(segments) == parcel.n_values
    del parcel, segments
    gc.collect()
    assert not transport._store._alive


# --- bytes that can be changed -----------------------------------------------------------------------------


class Refills:
    """Gives out the same memory again and again, each time with something else in it."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __reduce__(self) -> Any:
        return list, (), None, self._parts()

    def _parts(self) -> Iterator[Any]:
        memory = bytearray(self.size)
        for number in range(3):
            memory[:] = bytes([number]) * self.size
            yield [memory, number]  # the same object, which pickle writes once
        for number in range(3):
            memory[:] = bytes([number]) * self.size
            yield bytes(memory), memory[: self.size // 2]
        memory.clear()


MIXED: dict[str, Callable[[int], Any]] = {
    "one": lambda size: bytearray(b"x") * size,
    "several": lambda size: [bytearray([number]) * (size >> number) for number in range(5)],
    "of one item that changes": Refills,
    # Which lie beside it, and in an arena between its parts.
    "arrays in between": lambda size: [
        np.arange(size // 8),
        bytearray(size),
        np.arange(size // 4),
        "a" * size,
        bytearray(b"y") * size,
        np.ones(3),
        np.arange(size // 8),
        bytearray(3),
    ],
}


@pytest.mark.unit
@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("way", ["out", "back"])
@pytest.mark.parametrize("n_writes", [0, 1, 2, 3, 4, sys.maxsize])
def test_bytes_that_can_be_changed_are_as_they_were_when_it_was_their_turn(
    name: str, way: str, n_writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if there is only room for the beginning."""
    transport, left, write = SharedMemory(), iter(range(n_writes)), _segments._write

    def write_or_not(*args: Any) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(*args)

    monkeypatch.setattr(_stores, "_warned", [True])
    for size in (SIZES["1 kB"], LARGE):
        made = MIXED[name](size)
        expected = pickle.dumps(pickle.loads(pickle.dumps(made, 5)), 5)
        arena = transport.arena = _segments.Arena() if way == "back" else None
        with monkeypatch.context() as patch:
            patch.setattr(_segments, "_write", write_or_not)
            (frame,) = transport.pack_all([made])[0].frames
        transport.arena = None
        found = copied_out(frame, arena) if arena is not None else as_arrived(frame)
        assert pickle.dumps(transport.unpack(found), 5) == expected
        assert isinstance(frame, SharedFrame) == (size >= LARGE and n_writes == sys.maxsize) or n_writes < sys.maxsize


def letters(value: Any) -> int:
    return len(set(value))


def test_bytes_that_another_thread_fills_are_of_one_filling() -> None:
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        pytest.skip("is about the GIL, which this interpreter does without")
    memory, stop = bytearray(b"a" * 8_000_000), threading.Event()
    fillings = itertools.cycle([b"b" * len(memory), b"a" * len(memory)])

    def fill() -> None:
        while not stop.wait(0.001):
            memory[:] = next(fillings)
            memory.extend(b"end")  # nothing holds it
            del memory[-3:]

    with concurrent.futures.ThreadPoolExecutor(1) as other:
        filling = other.submit(fill)
        try:
            found = list(stateful_map(letters, (memory for _ in range(20)), n_jobs=1))
        finally:
            stop.set()
        filling.result()
    assert set(found) <= {1, 4}  # with its end, or without


def as_arrived(frame: Any) -> Any:
    """Return a frame as a worker gets it."""
    if not isinstance(frame, SharedFrame):
        return frame
    return frame.with_buffers(lambda segment: bytearray(segment.view()))
