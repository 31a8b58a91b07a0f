import weakref

from _compare import compare


class Node:
    pass


node = Node()
by_node, by_name, nodes = (
    weakref.WeakKeyDictionary({node: 1}),
    weakref.WeakValueDictionary(a=node),
    weakref.WeakSet([node]),
)
compare(lambda _: (by_node[node], by_name["a"] is node, node in nodes, len(by_node)), [0])
