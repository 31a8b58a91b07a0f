import enum

from _compare import compare


class Planet(enum.Enum):
    EARTH = (6, 2)
    MARS = (3, 4)

    def __init__(self, mass, radius):
        self.mass, self.radius = mass, radius

    @property
    def density(self):
        return self.mass / self.radius


class Level(str, enum.Enum):  # noqa: UP042 - as many have it
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
