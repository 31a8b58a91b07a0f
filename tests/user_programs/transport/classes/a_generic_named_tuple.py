from typing import Generic, NamedTuple, TypeVar

from _compare import compare

T = TypeVar("T")


class Pair(NamedTuple, Generic[T]):
    first: T
    second: int = 2


compare(lambda item: (item, Pair[int](3), type(item) is Pair), [Pair(1)])
