import functools

from _compare import compare


class Node:
    pass


@functools.singledispatch
def name(item):
    return "something"


@name.register
def _(item: int):
    return "a number"


@name.register(Node)
def _(item):
    return "a node"


class Namer:
    @functools.singledispatchmethod
    def name(self, item):
        return "something"

    @name.register
    def _(self, item: int):
        return "a number"


namer = Namer()
compare(name, [1, "a", Node()])
compare(lambda item: (name(item), namer.name(item)), [1, "a", Node()])
