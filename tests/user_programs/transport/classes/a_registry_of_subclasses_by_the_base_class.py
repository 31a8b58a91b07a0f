from _compare import compare
from _shapes import Shape, make

compare(make, ["Square"])
compare(lambda name: Shape.registry[name](3).area(), ["Square"])
