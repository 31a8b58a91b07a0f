# A base class that keeps its subclasses, by name.
import abc


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
    def __init__(self, side):
        self.side = side

    def area(self):
        return self.side**2


class Triangle(Shape, sides=3):
    def area(self):
        return 1


def make(name):
    class Circle(Shape, sides=0):
        def area(self):
            return 3

    found = sorted(Shape.registry)
    del Shape.registry["Circle"]
    return found, Shape.registry[name] is Square, isinstance(Square(2), Shape)
