import dataclasses

from _compare import compare


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
