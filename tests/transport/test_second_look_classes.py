"""Classes and functions of a script in workers, where it matters how they are made there and which object is which."""

from __future__ import annotations

import copy
import dataclasses
import textwrap
from typing import TYPE_CHECKING

import pytest

from joblib_stateful import stateful_map

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
    "functions with a cache": """
calls = []
@functools.lru_cache(maxsize=50)
def fibonacci(number):
    return number if number < 2 else fibonacci(number - 1) + fibonacci(number - 2)
def outer():
    @functools.cache
    def factorial(number): return 1 if number < 1 else number * factorial(number - 1)
    return factorial
class Methods:
    @functools.lru_cache(3)
    def plain(self, number): return number + 1
    @staticmethod
    @functools.cache
    def static(number): return number + 2
    @functools.cached_property
    def own(self): return calls.append(1) or len(calls)
compare(fibonacci, range(60))
compare(lambda number: (fibonacci(number), fibonacci.cache_info().maxsize), range(60))
compare(lambda function: (function is fibonacci, function(9)), [fibonacci])
compare(outer(), range(9))
compare(lambda item: (item.plain(1), item.static(1), item.plain.cache_parameters()), [Methods()])
results = list(stateful_map(lambda item: (item.own, item.own, item.own), [Methods()], n_jobs=1))
assert results == [(1, 1, 1)], results
""",
    "a cache does not outlive what it was made from": """
FACTOR = 2
@functools.cache
def scale(number): return FACTOR * number
def use(number): return scale(number)
compare(use, range(3))
FACTOR = 3
scale.cache_clear()
compare(use, range(3))
FACTOR = 4
@functools.cache
def scale(number): return FACTOR * number
compare(use, range(3))
""",
    "a function with a method for each type": """
class Node: pass
@functools.singledispatch
def name(item): return "something"
@name.register
def _(item: int): return "a number"
@name.register(Node)
def _(item): return "a node"
class Namer:
    @functools.singledispatchmethod
    def name(self, item): return "something"
    @name.register
    def _(self, item: int): return "a number"
namer = Namer()
compare(name, [1, "a", Node()])
compare(lambda item: (name(item), namer.name(item)), [1, "a", Node()])
""",
    "enums with more than a value": """
class Planet(enum.Enum):
    EARTH = (6, 2)
    MARS = (3, 4)
    def __init__(self, mass, radius):
        self.mass, self.radius = mass, radius
    @property
    def density(self): return self.mass / self.radius
class Level(str, enum.Enum):
    def __new__(cls, value, weight):
        member = str.__new__(cls, value)
        member._value_, member.weight = value, weight
        return member
    LOW = ("low", 1)
    HIGH = ("high", 5)
def describe(item):
    return item.mass, item.density, Planet.MARS.radius, type(item) is Planet, Planet(item.value) is item
compare(describe, Planet)
compare(lambda item: (item.weight, item + "er", Level("high").weight, item in (Level.LOW, Level.HIGH)), Level)
""",
    "sentinels as items and results": """
MISSING = object()
def look(item, default=MISSING):
    return item is MISSING, item == {1: MISSING}, default is MISSING
compare(look, [MISSING, {1: MISSING}, object(), 3])
compare(lambda item: MISSING if item == 1 else [item, MISSING], range(3))
compare(lambda item: item, [MISSING, [MISSING]])
other, = stateful_map(lambda item: object(), [0], n_jobs=1)
assert type(other) is object and other is not MISSING
""",
    "objects that look into the cache in which they are": """
class Name:
    known = {}
    def __new__(cls, text):
        if text not in cls.known:
            cls.known[text] = super().__new__(cls)
            cls.known[text].text = text
        return cls.known[text]
    def __getnewargs__(self): return (self.text,)
class State:
    states = {}
    def __init__(self, number):
        self.number = number
        State.states[number] = self
    def __setstate__(self, state):
        self.__dict__.update(state)
        State.states.setdefault(self.number, self)
    def next(self): return State.states.get(self.number + 1)
name, states = Name("a"), [State(1), State(2)]
compare(lambda item: (item is Name("a"), item.text, sorted(Name.known)), [name])
compare(lambda item: item.next() and item.next().number, states)
""",
    "a generic named tuple": """
from typing import Generic, NamedTuple, TypeVar
T = TypeVar("T")
class Pair(NamedTuple, Generic[T]):
    first: T
    second: int = 2
compare(lambda item: (item, Pair[int](3), type(item) is Pair), [Pair(1)])
""",
    "weak containers": """
class Node: pass
node = Node()
by_node, by_name, nodes = weakref.WeakKeyDictionary({node: 1}), weakref.WeakValueDictionary(a=node), weakref.WeakSet([node])
compare(lambda _: (by_node[node], by_name["a"] is node, node in nodes, len(by_node)), [0])
""",
    "fields without a default": """
@dataclasses.dataclass
class Point:
    x: int
    y: list = dataclasses.field(default_factory=list)
def derive(number):
    @dataclasses.dataclass
    class Far(Point):
        z: int = 3
    try:
        return Far(), "made without x"
    except TypeError as error:
        return str(error), Far(number).y
compare(lambda item: [field.default is dataclasses.MISSING for field in dataclasses.fields(item)], [Point(1)])
compare(derive, [1])
""",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_map_gives_what_a_loop_gives(name: str, run_program: RunProgram) -> None:
    done = run_program(textwrap.dedent(_BEGINNING) + PROGRAMS[name])
    assert (done.code, done.out) == (0, ""), done.err


def test_a_dataclass_that_another_pickler_has_brought_back_can_travel() -> None:
    @dataclasses.dataclass
    class Point:
        x: float

    for field in dataclasses.fields(Point):
        field.default = copy.copy(dataclasses.MISSING)  # as joblib's results leave it
    (found,) = stateful_map(lambda point: point, [Point(1.0)], n_jobs=1)
    assert found == Point(1.0)
