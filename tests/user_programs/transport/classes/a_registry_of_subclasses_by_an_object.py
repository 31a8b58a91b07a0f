from _compare import compare
from _shapes import Shape, Square, make

compare(lambda item: (item.area(), item.sides, type(item).registry["Square"] is type(item)), [Square(2)])
compare(lambda item: (isinstance(item, Shape), type(item) is Square), [Square(2)])
compare(make, ["Square"])
