"""Exceptions arrive as they were raised, whatever their constructors take."""

from __future__ import annotations

import copyreg
import dataclasses
from typing import Any

import pytest

from contract import ALL, on
from joblib_stateful import StatefulExecutor, stateful_map
from joblib_stateful._transport._shared_memory import SharedMemory
from joblib_stateful._transport._transport import Pickled
from scenes import engines


class ByKeyword(Exception):  # noqa: N818 - users name theirs as they like
    """Takes what clients' errors take."""

    def __init__(self, message: str, *, response: dict[str, Any], body: object = None) -> None:
        super().__init__(message)
        self.response, self.body = response, body


class ChangesText(ValueError):  # noqa: N818 - see above
    def __init__(self, text: str) -> None:
        super().__init__(f"broken: {text}")


class OfTwo(KeyError):  # noqa: N818 - see above
    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


class LooksInto(Exception):  # noqa: N818 - see above
    def __init__(self, response: Any) -> None:
        super().__init__(f"status {response.status}")


class Slotted(RuntimeError):  # noqa: N818 - see above
    __slots__ = ("code", "unset")

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code


class SlottedToo(Slotted):
    def __init__(self, code: int, more: str) -> None:
        super().__init__(code)
        self.more = more


@dataclasses.dataclass
class Data(Exception):  # noqa: N818 - see above
    code: int
    words: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class FrozenData(Exception):  # noqa: N818 - see above
    code: int
    where: str = "here"


class OfSeveral(KeyError, AttributeError):  # noqa: N818 - see above
    """Has a name in C, which its second base sets."""

    def __init__(self, text: str) -> None:
        AttributeError.__init__(self, text, name="it")


class HasProperty(Exception):  # noqa: N818 - see above
    """Has an attribute that can't be set behind its constructor."""

    def __init__(self, *, code: int) -> None:
        vars(self)["code"] = code

    @property
    def code(self) -> int:
        found: int = vars(self)["code"]
        return found


class Counted(Exception):  # noqa: N818 - see above
    made = 0

    def __init__(self, text: str) -> None:
        super().__init__(text)
        Counted.made += 1


class Status:
    status = 404


def decode(item: bytes) -> str:
    return item.decode()


MADE: dict[str, Any] = {
    "by keyword": lambda: ByKeyword("429", response={"retry": 3}, body=[1]),
    "changes its text": lambda: ChangesText("it"),
    "of two": lambda: OfTwo("this", "that"),
    "looks into": lambda: LooksInto(Status()),
    "slots": lambda: Slotted(7),
    "slots and attributes": lambda: SlottedToo(7, "more"),
    "data": lambda: Data(1, ["a"]),
    "data by keyword": lambda: Data(code=1),
    "frozen data": lambda: FrozenData(code=2),
    "property": lambda: HasProperty(code=3),
    "of several": lambda: OfSeveral("a"),
    # Whose arguments fit, or that have more in C than others.
    "plain": lambda: ValueError("a", 1),
    "file": lambda: FileNotFoundError(2, "no such file", "name"),
    "stop": lambda: StopIteration(4),
    "exit": lambda: SystemExit(4),
    "unicode": lambda: UnicodeDecodeError("utf-8", b"x", 0, 1, "why"),
    "import": lambda: ImportError("no", name="it", path="there"),
}
both = pytest.mark.parametrize("name", MADE)


def described(error: BaseException) -> tuple[Any, ...]:
    """Return all that can be seen of an exception."""
    slots = {
        name: getattr(error, name)
        for name in ("code", "filename", "name", "value", "reason", "path")
        if hasattr(error, name)
    }
    own = {name: value for name, value in vars(error).items() if name != "__notes__"}
    return type(error).__name__, error.args, str(error), repr(error), own, slots


def sent(transport: Pickled, value: Any) -> Any:
    """Return a value as it arrives."""
    parcel, _ = transport.pack_all([value])
    return transport.unpack(parcel.frames[0])


def raised(name: str) -> Any:
    error = MADE[name]()
    raise error


@both
@pytest.mark.parametrize("transport", [Pickled(), SharedMemory()], ids=["pickled", "shared"])
def test_an_exception_arrives_as_it_was(name: str, transport: Pickled, monkeypatch: pytest.MonkeyPatch) -> None:
    error = MADE[name]()
    # What distributed has tblib say of all classes that there are when another test imports it; see below for that.
    monkeypatch.delitem(copyreg.dispatch_table, type(error), raising=False)
    vars(error)["__notes__"] = ["a note"]  # as `add_note` does, where attributes can be set
    found = sent(transport, error)
    assert found is not error
    assert type(found) is type(error)
    assert described(found) == described(error)
    assert found.__notes__ == ["a note"]


@both
def test_a_workers_exception_is_its_items_as_it_was(name: str) -> None:
    with StatefulExecutor(n_jobs=1) as executor:
        error = executor.submit(raised, name).exception(60)
    assert error is not None
    assert type(error).__name__ == type(MADE[name]()).__name__
    assert described(error) == described(MADE[name]())
    assert "in raised" in str(error.__cause__)


@engines
def test_what_clients_raise_can_be_caught_by_its_class(engine: str) -> None:
    def ask(item: int) -> int:
        if item == 2:
            raise ByKeyword("429", response={"retry": item})
        return item

    with pytest.raises(ByKeyword) as caught:
        list(stateful_map(ask, range(4), n_jobs=1, engine=engine))
    assert caught.value.response == {"retry": 2}
    assert caught.value.body is None


# What has a constructor in Python and more than arguments in C may be made anew by nobody but tblib, which loses some of it.
@pytest.mark.parametrize("name", [name for name in MADE if name != "of several"])
def test_what_dask_has_said_of_exceptions_loses_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = pytest.importorskip("tblib.pickling_support").pickle_exception  # for all classes, if distributed is imported
    error = MADE[name]()
    monkeypatch.setitem(copyreg.dispatch_table, type(error), said)
    assert described(sent(SharedMemory(), error)) == described(error)


class FileTwice(OSError):  # noqa: N818 - see above
    def __init__(self, x: int) -> None:
        super().__init__(2, "no such thing", "here")
        self.x = x


def test_a_class_that_only_tblib_can_make_anew_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As its author has told it, by a decorator."""
    said = pytest.importorskip("tblib.pickling_support").pickle_exception
    monkeypatch.setitem(copyreg.dispatch_table, FileTwice, said)
    found = sent(SharedMemory(), FileTwice(5))
    assert (str(found), found.x, found.filename) == ("[Errno 2] no such thing: 'here'", 5, "here")


def test_what_users_have_said_of_an_exception_goes_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(copyreg.dispatch_table, ChangesText, lambda error: (OfTwo, ("said", error.args[0])))
    assert str(sent(SharedMemory(), ChangesText("it"))) == "'said and broken: it'"


@pytest.mark.cluster
@on(*ALL)
def test_an_exception_of_c_keeps_its_text(engine: str) -> None:
    with pytest.raises(UnicodeDecodeError, match="can't decode byte 0xff in position 0: invalid start byte"):
        list(stateful_map(decode, [b"\xff"], n_jobs=1, engine=engine))


def test_a_constructor_is_called_once() -> None:
    transport = SharedMemory()
    error, before = Counted("x"), Counted.made
    found = sent(transport, error)
    assert str(found) == "x"
    assert Counted.made == before


def test_an_exception_may_refer_to_itself_and_be_in_a_group() -> None:
    transport = SharedMemory()
    error = ByKeyword("429", response={})
    error.response["error"] = error
    group = sent(transport, ExceptionGroup("all", [error, OfTwo("a", "b")]))
    found, other = group.exceptions
    assert found.response["error"] is found
    assert str(other) == "'a and b'"
