# As whoever fills dataclasses from JSON does; they are text here, and only annotations name some of these classes.
from __future__ import annotations

import dataclasses
import datetime as dt
import sys
import threading
import typing
from decimal import Decimal
from typing import Annotated, Generic, Literal, NewType, TypeVar

from joblib_stateful import StatefulExecutor

T = TypeVar("T")
Name = NewType("Name", str)
Names = list[Name]
Number = int | float
weight = threading.Lock()  # it can't be pickled, and is only a word in what follows


@dataclasses.dataclass
class Part:
    size: Decimal
    until: dt.date | None = None


@dataclasses.dataclass
class Whole:
    name: Name
    parts: list[Part]
    others: Names
    number: Number
    of: Whole | None = None
    kind: Literal["weight"] = "weight"
    about: Annotated[int, "weight"] = 0


class Box(Generic[T]):
    item: T


class Locked:
    lock = threading.Lock()


@dataclasses.dataclass
class Plain:
    size: int
    by: Locked | None = None


def weigh(part: Part, wholes: dict[str, Whole]) -> Decimal | None: ...


def hints(_):
    return [typing.get_type_hints(found, include_extras=True) for found in (Whole, Box, weigh)]


def fill(found, values):
    types = typing.get_type_hints(found)
    return found(
        **{
            name: [fill(typing.get_args(types[name])[0], one) for one in value] if name == "parts" else value
            for name, value in values.items()
        }
    )


def part_of(_):
    return typing.get_args(typing.get_type_hints(Whole)["parts"])[0](size=1)


if __name__ == "__main__":
    with StatefulExecutor(n_jobs=1, engine=sys.argv[1]) as executor:
        assert executor.submit(hints, 0).result() == hints(0)
        values = {"name": "a", "parts": [{"size": 1}], "others": [], "number": 2}
        whole = executor.submit(fill, Whole, values).result()
        assert whole == Whole("a", [Part(1)], [], 2), whole
        assert executor.submit(Plain, 3).result() == Plain(3), "what can't be pickled is only named by an annotation"
        Part = dataclasses.make_dataclass("Part", ["size"], namespace={"is_new": True})  # as when a cell is run again
        assert executor.submit(part_of, 0).result().is_new
    print("as in the program")
