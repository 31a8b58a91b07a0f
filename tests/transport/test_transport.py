"""How values travel: packed frames by themselves, and bad pickles on either side as one item's error."""

from __future__ import annotations

import copyreg
import gc
import math
import os
import pickle
import struct
import sys
import threading
from collections import namedtuple
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from joblib_stateful import TaskResult, errors, stateful_map
from joblib_stateful._transport import _reducing
from joblib_stateful._transport._code_pickler import Pickler
from joblib_stateful._transport._defining import ReferringPickler
from joblib_stateful._transport._frames import Packer
from joblib_stateful._transport._shared_memory import SharedMemory
from joblib_stateful._transport._transport import ByReference, Pickled, Transport
from programs import program_text
from scenes import policies

if TYPE_CHECKING:
    from conftest import BuildLog, RunProgram

both = pytest.mark.parametrize("transport", [Pickled(), ByReference()], ids=["pickled", "by reference"])


class Registered:
    pass


class Unpicklable:
    def __reduce__(self) -> Any:
        raise ValueError("stays at home")


class Deep:
    """Recurses without end when it is pickled."""

    def __reduce__(self) -> Any:
        return Deep, (Deep(),)

    def __init__(self, inner: Any = None) -> None:
        pass


def bomb() -> Any:
    raise ValueError("went off")


def sudden_end() -> Any:
    raise SystemExit(5)


class Bomb:
    """Can be sent, but not received."""

    def __reduce__(self) -> Any:
        return bomb, ()


class SuddenEnd:
    def __reduce__(self) -> Any:
        return sudden_end, ()


# --- packing alone --------------------------------------------------------------------------------------

Point = namedtuple("Point", "x y")  # noqa: PYI024 - untyped, as users write it
VALUES: list[list[Any]] = [
    [],
    [1],
    [1, 2.5, "a", b"b", None, True, 1j],
    [[1], {"a": 2}, (3,)],
    [1, [2], 3],
    [Point(1, 2), Path("a"), lambda: 3],
]


@both
@pytest.mark.parametrize("values", VALUES)
def test_what_is_packed_is_unpacked(transport: Transport, values: list[Any]) -> None:
    parcel, faults = transport.pack_all(values)
    assert faults == {}
    assert parcel.n_values == len(values)
    found = unpack(transport, parcel)
    assert len(found) == len(values)
    for value, original in zip(found, values, strict=True):
        assert value() == 3 if callable(original) else value == original


def unpack(transport: Transport, parcel: Any) -> list[Any]:
    values = transport.unpack_joint(parcel)
    return [transport.unpack(frame) for frame in parcel.frames] if values is None else values


@both
@pytest.mark.parametrize("values", VALUES)
def test_some_of_a_parcel_can_be_selected(transport: Transport, values: list[Any]) -> None:
    parcel, _ = transport.pack_all(values)
    for places in ([], [0], list(range(1, len(values))), list(range(len(values)))):
        if places and places[-1] >= len(values):
            continue
        some = transport.select(parcel, places)
        assert some.n_values == len(places)
        found = unpack(transport, some)
        assert [repr(value) for value in found if not callable(value)] == [
            repr(values[place]) for place in places if not callable(values[place])
        ]
        assert len(found) == len(places)


def test_plain_values_share_one_frame() -> None:
    assert Pickled().pack_all([1, "a", None])[0].joint
    assert not Pickled().pack_all([1])[0].joint
    # Of a subclass nothing is known: it may fail, and that must be one item's error.
    for odd in (Point(1, 2), type("Text", (str,), {})("a"), [1], threading.Event):
        assert not Pickled().pack_all([1, odd])[0].joint


def test_values_that_cannot_be_packed_are_left_out_and_named() -> None:
    parcel, faults = Pickled().pack_all([[1], Unpicklable(), [2], threading.Lock(), Deep(), [3]])
    assert sorted(faults) == [1, 3, 4]
    assert repr(faults[1]) == "ValueError('stays at home')"
    assert type(faults[3]) is TypeError
    assert type(faults[4]) is RecursionError
    assert (parcel.n_values, unpack(Pickled(), parcel)) == (3, [[1], [2], [3]])


def test_values_of_one_parcel_share_nothing() -> None:
    shared = [1]
    one, other = unpack(Pickled(), Pickled().pack_all([[shared], [shared]])[0])
    assert one == other == [[1]]
    assert one[0] is not other[0]


class Adds:
    """Makes something longer when it is pickled."""

    def __init__(self, found: bytearray) -> None:
        self.found = found

    def __reduce__(self) -> Any:
        self.found.extend(bytes(1000))
        return str, ("added",)


def test_what_grows_while_it_is_packed_is_as_it_was_before() -> None:
    long = bytearray(100_000)  # which pickle writes out at once
    parcel, faults = Pickled().pack_all([[long, Adds(long), "end"]])
    assert not faults
    assert unpack(Pickled(), parcel) == [[bytearray(100_000), "added", "end"]]


def without_hash() -> Any:
    """Return what pickle itself can't pickle."""

    class NoHash(type):
        def __eq__(cls, other: object) -> bool:
            return cls is other

        __hash__ = None  # type: ignore[assignment]  # that is what is tried

    class WithoutHash(metaclass=NoHash):
        pass

    return WithoutHash()


def make_one(item: Any) -> Any:
    return without_hash() if item == "make one" else item


@pytest.mark.parametrize("first", [1, (1,)], ids=["plain", "not plain"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_an_item_of_a_class_that_has_no_hash(first: Any, batch_size: int) -> None:
    items = [first, without_hash(), 2, without_hash()]
    results = list(stateful_map(make_one, items, n_jobs=1, batch_size=batch_size, on_error="deferred"))
    assert [result.ok for result in results] == [True, False, True, False]
    assert all(isinstance(result.exception, errors.TransferError) for result in results if not result.ok)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_result_of_a_class_that_has_no_hash(batch_size: int) -> None:
    results = list(stateful_map(make_one, [1, "make one", 2], n_jobs=1, batch_size=batch_size, on_error="deferred"))
    assert [result.ok for result in results] == [True, False, True]
    assert isinstance(results[1].exception, errors.TransferError)


def test_a_ctrl_c_while_the_parent_packs_is_no_items_error() -> None:
    class Interrupting:
        def __reduce__(self) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Pickled().pack_all([[1], Interrupting()])
    _, faults = Pickled().pack_all([[1], Interrupting()], catch=BaseException)
    assert type(faults[1]) is KeyboardInterrupt


@pytest.mark.parametrize("transport", [Pickled(), SharedMemory()], ids=["pickled", "shared"])
def test_what_names_something_may_run_code_and_no_float_or_short_integer_does(transport: Pickled) -> None:
    any_byte = b"\x93" * 8
    for value in (0x93, 0x9393, 0x13939393, struct.unpack("d", any_byte)[0], None, "Q", "Question" * 5):
        assert not transport.runs_any_code(transport.pack_all([value])[0])
    for value in (abs, BytesIO, BytesIO(), [[abs]]):
        assert transport.runs_any_code(transport.pack_all([1, value])[0])


@pytest.mark.parametrize("name", ["q", "sh", "abc"])
def test_the_shortest_names_are_names(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType(sys.intern(name))
    exec(f"def {name}(): pass", vars(module))
    monkeypatch.setitem(sys.modules, name, module)
    parcel, _ = Pickled().pack_all([getattr(module, name)])
    assert parcel.nbytes <= 23  # one string for both names
    assert Pickled().runs_any_code(parcel)


def test_a_class_that_is_registered_by_a_number_has_a_name() -> None:
    copyreg.add_extension(Registered.__module__, Registered.__qualname__, 0xF1)
    try:
        packed = pickle.dumps(Registered(), 5)
        assert b"\x93" not in packed
        assert Pickled().runs_code(packed)
    finally:
        copyreg.remove_extension(Registered.__module__, Registered.__qualname__, 0xF1)


@both
def test_weight_is_about_that_of_the_values(transport: Transport) -> None:
    parcel, _ = transport.pack_all([bytes(1_000_000), bytes(2_000_000)])
    assert 3_000_000 <= parcel.nbytes < 3_010_000
    (one,) = [transport.select(parcel, [0])]
    assert 900_000 < one.nbytes < 2_000_000


def test_arrays_weigh_what_they_hold() -> None:
    np = pytest.importorskip("numpy")
    for transport in (Pickled(), ByReference()):
        parcel, _ = transport.pack_all([np.zeros(1000), np.zeros(2000)])
        assert 24_000 <= parcel.nbytes < 25_000


def test_by_reference_nothing_is_copied() -> None:
    value = [1]
    parcel, _ = ByReference().pack_all([value])
    assert parcel.frames[0] is value
    assert ByReference().pack(value) is value


# --- bad pickles among good ones ------------------------------------------------------------------------


class Mine(Exception):  # noqa: N818 - users name theirs as they like
    def __init__(self, message: str, extra: Any = None) -> None:
        super().__init__(message)
        self.extra = extra


class TurnsIntoText(Exception):  # noqa: N818 - users name theirs as they like
    def __reduce__(self) -> Any:
        return str, ("no exception",)


class EndsSuddenly(Exception):  # noqa: N818 - users name theirs as they like
    def __reduce__(self) -> Any:
        return sudden_end, ()


class Does:
    """Does what the item says."""

    def __init__(self, built: BuildLog) -> None:
        built.note()

    def __call__(self, item: Any) -> Any:
        match item:
            case "lock":
                return threading.Lock()
            case "unpicklable":
                return Unpicklable()
            case "deep":
                return Deep()
            case "bomb":
                return Bomb()
            case "sudden end":
                return SuddenEnd()
            case "raise with lock":
                raise Mine("locked", threading.Lock())
            case "raise text":
                raise TurnsIntoText("original text")
            case "raise sudden end":
                raise EndsSuddenly("quick")
            case "raise local":

                class Local(Exception):  # noqa: N818 - users name theirs as they like
                    pass

                raise Local("here")
        return (item, os.getpid())


def with_neighbours(bad: Any, built: BuildLog) -> TaskResult[Any]:
    """Map an item in the middle of a batch, see that its neighbours are unharmed, and return its result."""
    items = [("a",), ("b",), bad, ("c",), ("d",)]
    results = list(
        stateful_map(
            Does,
            [*items, *items[:2]],
            n_jobs=1,
            shared_kwargs={"built": built},
            batch_size=5,
            on_error="deferred",
        )
    )
    assert [result.index for result in results] == list(range(7))
    good = [result.unwrap() for result in results if result.index != 2]
    assert [item for item, _ in good] == [("a",), ("b",), ("c",), ("d",), ("a",), ("b",)]
    assert len({pid for _, pid in good}) == 1
    assert len(built) == 1
    return results[2]


def check_transfer_error(error: BaseException | None, what: str, *words: str) -> errors.TransferError:
    assert type(error) is errors.TransferError
    assert (error.index, error.what) == (2, what)
    for word in words:
        assert word in error.reason
        assert word in str(error)
    assert str(error).startswith(f"The {what} at index 2 could not be sent")
    return error


@pytest.mark.parametrize(
    ("item", "cause"),
    [
        (Unpicklable(), "ValueError: stays at home"),
        (threading.Lock(), "TypeError: cannot pickle '_thread.lock' object"),
        (Deep(), "RecursionError"),
    ],
    ids=["raises", "lock", "deep"],
)
def test_an_item_that_cannot_be_pickled(item: Any, cause: str, built: BuildLog) -> None:
    error = check_transfer_error(with_neighbours(item, built).exception, "item", cause)
    assert error.__cause__ is not None
    assert type(error.__cause__).__name__ in cause  # it is the real one, of this process


@pytest.mark.parametrize(
    ("item", "cause", "where"),
    [(Bomb(), "ValueError: went off", "bomb"), (SuddenEnd(), "SystemExit: 5", "sudden_end")],
    ids=["raises", "exits"],
)
def test_an_item_that_cannot_be_loaded_in_the_worker(item: Any, cause: str, where: str, built: BuildLog) -> None:
    error = check_transfer_error(with_neighbours(item, built).exception, "item", cause)
    assert isinstance(error.__cause__, errors.RemoteTraceback)
    # The function, not its file: what cloudpickle sends by value has a file's name only in some of its versions.
    assert f", in {where}\n" in str(error.__cause__)
    assert "item 2, slot 0, pid " in error.__notes__[0]


@pytest.mark.parametrize(
    ("item", "cause"),
    [
        ("lock", "TypeError: cannot pickle '_thread.lock' object"),
        ("unpicklable", "ValueError: stays at home"),
        ("deep", "RecursionError"),
    ],
)
def test_a_result_that_cannot_be_pickled(item: str, cause: str, built: BuildLog) -> None:
    error = check_transfer_error(with_neighbours(item, built).exception, "result", cause)
    assert isinstance(error.__cause__, errors.RemoteTraceback)


@pytest.mark.parametrize(("item", "cause"), [("bomb", "ValueError: went off"), ("sudden end", "SystemExit: 5")])
def test_a_result_that_cannot_be_loaded_in_the_parent(item: str, cause: str, built: BuildLog) -> None:
    error = check_transfer_error(with_neighbours(item, built).exception, "result", cause)
    assert type(error.__cause__).__name__ in cause


@pytest.mark.parametrize(
    ("item", "type_name", "message"),
    [
        ("raise with lock", "test_transport.Mine", "locked"),
        ("raise text", "test_transport.TurnsIntoText", "original text"),
        ("raise sudden end", "test_transport.EndsSuddenly", "quick"),
    ],
)
def test_an_exception_that_cannot_be_sent(item: str, type_name: str, message: str, built: BuildLog) -> None:
    error = with_neighbours(item, built).exception
    assert type(error) is errors.RemoteError
    assert (error.type_name, error.message) == (type_name, message)
    assert "in __call__" in error.remote_traceback
    assert error.remote_traceback.endswith(f"{type_name}: {message}\n")
    assert f"{type_name}: {message}" in str(error)
    assert "item 2, slot 0, pid " in error.__notes__[0]
    assert str(error.__cause__).strip().endswith('"""')
    assert "in __call__" in str(error.__cause__)


def test_an_exception_of_a_local_class_comes_as_itself(built: BuildLog) -> None:
    error = with_neighbours("raise local", built).exception
    assert type(error).__qualname__.endswith("Local")
    assert str(error) == "here"


@policies
def test_transfer_errors_obey_the_policy(policy: Any) -> None:
    results: Any = stateful_map(lambda item: item, [[1], Bomb(), [2]], n_jobs=1, batch_size=3, on_error=policy)
    if policy == "deferred":
        assert [result.ok for result in results] == [True, False, True]
    else:
        with pytest.raises(errors.TransferError, match="went off"):
            list(results)
        assert list(results) == []


@policies
def test_items_that_cannot_be_pickled_obey_the_policy(policy: Any) -> None:
    results: Any = stateful_map(lambda item: item, [[1], Unpicklable(), [2]], n_jobs=1, batch_size=3, on_error=policy)
    if policy == "deferred":
        assert [result.ok for result in results] == [True, False, True]
    else:
        with pytest.raises(errors.TransferError, match="stays at home"):
            list(results)
        assert list(results) == []


def test_nothing_but_bad_items() -> None:
    results = list(stateful_map(lambda item: item, [Unpicklable()] * 7, n_jobs=2, batch_size=3, on_error="deferred"))
    assert [result.index for result in results] == list(range(7))
    assert {type(result.exception) for result in results} == {errors.TransferError}


def test_errors_of_ours_can_be_pickled() -> None:
    for error in (
        errors.TransferError(2, "item", "why."),
        errors.RemoteError("a.B", "text", "traceback"),
        errors.RemoteTraceback("traceback"),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_a_class_of_the_scripts_main_can_be_caught(run_program: RunProgram) -> None:
    done = run_program(program_text("transport/catches_its_own_exception"))
    assert (done.code, done.err) == (0, "")
    assert done.out == "caught 7\ncaught 7\nTrue\n" * 3


class Temporary:
    """Is made while an object is pickled, and notes its end."""

    notes: ClassVar[list[str]] = []
    picklers: ClassVar[list[int]] = []  # that a garbage collection would come upon at its end

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        self.notes.append("gone")
        self.picklers.extend(id(found) for found in gc.get_objects() if type(found) in (Pickler, ReferringPickler))


class Reduced:
    """Travels as another object."""

    def __reduce__(self) -> Any:
        return Temporary, (1,), {"number": 1, "other": Temporary(2)}


@pytest.mark.unit
@pytest.mark.parametrize("packer", [Packer(), Packer(definer=SharedMemory().definer())], ids=["plain", "referring"])
def test_what_was_made_for_a_pickle_goes_when_nothing_refers_to_it(
    packer: Packer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_reducing, "_MOST_COPIED", math.inf)
    # Else whoever runs at its end, as other threads may, comes upon a memo that is being cleared.
    pickler, notes = packer._pickler, Temporary.notes
    clear = pickler.clear_memo

    def clear_memo() -> None:
        notes.append("clearing")
        clear()
        notes.append("cleared")

    pickler.clear_memo = clear_memo
    for _ in range(2):
        notes.clear()
        packer.pack([Reduced(), "text"])
        assert notes == ["clearing", "cleared", "gone"]
        packer.pack(["text"])


@pytest.mark.unit
@pytest.mark.parametrize("packer", [Packer(), Packer(definer=SharedMemory().definer())], ids=["plain", "referring"])
def test_a_memo_that_would_take_long_to_copy_goes_with_its_pickler(
    packer: Packer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_reducing, "_MOST_COPIED", 0)
    number = id(packer._pickler)
    Temporary.notes.clear()
    Temporary.picklers.clear()
    packer.pack([Reduced(), "text"])
    assert "gone" in Temporary.notes
    assert number not in Temporary.picklers
    assert packer.pack(["text"]) == packer.pack(["text"])
