"""Classes and functions of a script in workers, where it matters how they are made there and which object is which."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import RunProgram

# Prints what differs between a loop and a map.
_BEGINNING = """
import abc, collections, dataclasses, enum, functools, weakref
from joblib_stateful import stateful_map

def compare(function, items):
    items = list(items)
    results = list(stateful_map(function, items, n_jobs=1))
    for item, result in zip(items, results, strict=True):
        if result != function(item):
            print(f"{item!r}: {result!r} instead of {function(item)!r}")
"""

_REGISTRY = """
class Shape(abc.ABC):
    registry = {}
    def __init_subclass__(cls, *, sides):
        if "area" not in cls.__dict__:
            raise TypeError("needs an area")
        cls.sides = sides
        Shape.registry[cls.__name__] = cls
    @abc.abstractmethod
    def area(self): ...
class Square(Shape, sides=4):
    def __init__(self, side): self.side = side
    def area(self): return self.side ** 2
class Triangle(Shape, sides=3):
    def area(self): return 1
def make(name):
    class Circle(Shape, sides=0):
        def area(self): return 3
    found = sorted(Shape.registry)
    del Shape.registry["Circle"]
    return found, Shape.registry[name] is Square, isinstance(Square(2), Shape)
"""

PROGRAMS = {
    "a registry of subclasses, by an object": _REGISTRY
    + """
compare(lambda item: (item.area(), item.sides, type(item).registry["Square"] is type(item)), [Square(2)])
compare(lambda item: (isinstance(item, Shape), type(item) is Square), [Square(2)])
compare(make, ["Square"])
""",
    "a registry of subclasses, by the base class": _REGISTRY
    + """
compare(make, ["Square"])
compare(lambda name: Shape.registry[name](3).area(), ["Square"])
""",
    "a metaclass": """
class Meta(type):
    made = []
    def __new__(meta, name, bases, members, *, tag):
        if "fields" not in members:
            raise TypeError("needs fields")
        meta.made.append(name)
        return super().__new__(meta, name, bases, members)
    def __init__(cls, name, bases, members, *, tag):
        super().__init__(name, bases, members)
        cls.tag = tag
    def __len__(cls): return len(cls.fields)
class One(metaclass=Meta, tag="one"): fields = "a"
class Two(One, tag="two"): fields = "ab"
compare(lambda kind: (kind.tag, len(kind), Meta.made, type(kind) is Meta), [One, Two])
""",
    "an abstract metaclass": """
class Meta(abc.ABCMeta):
    def __new__(meta, name, bases, members, **options):
        return super().__new__(meta, name, bases, members | options)
class Base(metaclass=Meta, number=1):
    @abc.abstractmethod
    def run(self): ...
class Derived(Base, number=2):
    def run(self): return self.number
def run(number):
    try:
        Base()
    except TypeError:
        return Derived().run(), isinstance(Derived(), Base)
compare(run, [1])
""",
    "a singleton": """
class Single:
    instance = None
    def __new__(cls):
        if cls.instance is None:
            cls.instance = super().__new__(cls)
            cls.instance.number = 5
        return cls.instance
single = Single()
compare(lambda item: (item is Single(), item.number), [single])
compare(lambda number: (Single() is Single(), Single().number), [1])
""",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_map_gives_what_a_loop_gives(name: str, run_program: RunProgram) -> None:
    done = run_program(textwrap.dedent(_BEGINNING) + PROGRAMS[name])
    assert (done.code, done.out) == (0, ""), done.err
