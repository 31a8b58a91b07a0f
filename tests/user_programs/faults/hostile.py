# Each class is an exception, or a result, that raises where it is touched. `kinds` has one of each.
# A module of its own, so that they travel by reference, however hostile they are.
import sys


class Trap(BaseException):
    pass


def refuse(*args, **kwargs):
    raise Trap("looked at")


def add(what, name, base=Exception, **members):
    globals()[name] = kinds[what] = type(base)(name, (base,), {"__module__": "hostile", **members})


kinds = {}


class Meta(type):
    def __getattribute__(cls, name):
        if name in ("__name__", "__qualname__", "__module__"):
            refuse()
        return super().__getattribute__(name)


class MetaKind(Exception, metaclass=Meta):
    pass


class Attributes(Exception):
    def __getattribute__(self, name):
        if name not in ("__reduce_ex__", "__reduce__", "__class__", "__dict__", "__setstate__"):
            refuse()
        return super().__getattribute__(name)


class Loaded(Exception):
    def __reduce__(self):
        return refuse, ()


class Quits(Exception):
    def __reduce__(self):
        return sys.exit, (3,)


class Other(Exception):
    def __reduce__(self):
        return int, ()


add("cause", "Cause", __cause__=property(refuse, refuse))
add("context", "Context", __context__=property(refuse, refuse))
add("traceback", "Traceback", __traceback__=property(refuse, refuse))
add("suppress", "Suppress", __suppress_context__=property(refuse, refuse))
add("notes", "Notes", __notes__=property(refuse, refuse))
add("notes of another type", "OddNotes", __notes__=7)
add("add_note", "AddNote", add_note=refuse)
add("with_traceback", "WithTraceback", with_traceback=refuse)
add("setattr", "SetAttr", __setattr__=refuse)
add("delattr", "DelAttr", __delattr__=refuse)
add("class", "Class", __class__=property(refuse))
add("str", "Str", __str__=refuse, __repr__=refuse, __format__=refuse)
add("eq", "Eq", __eq__=refuse, __hash__=refuse, __ne__=refuse)
add("bool", "Bool", __bool__=refuse, __len__=refuse)
add("setstate", "SetState", __setstate__=refuse)
add("exit", "Exit", SystemExit, __cause__=property(refuse, refuse))
add("stop", "Stop", StopIteration, __cause__=property(refuse, refuse), __class__=property(refuse))
kinds.update({"meta": MetaKind, "attributes": Attributes, "loaded": Loaded, "quits": Quits, "other": Other})


class Result:
    def __init__(self, how):
        self.how = how

    def __reduce__(self):
        return how_to[self.how]


class State:
    def __setstate__(self, state):
        refuse()


how_to = {
    "trap": (refuse, ()),
    "exit": (sys.exit, (3,)),
    "interrupt": (eval, ("(_ for _ in ()).throw(KeyboardInterrupt)",)),
    "generator exit": (eval, ("(_ for _ in ()).throw(GeneratorExit)",)),
    "memory": (bytearray, (1 << 60,)),
}

how_to["state"] = (State, (), 1)


class Worker:
    def __call__(self, item):
        what, kind = item
        if what == "raise":
            error = kinds[kind].__new__(kinds[kind], kind)
            raise error
        if what == "return":
            return Result(kind)
        return item


class Broken:
    def __init__(self, kind):
        raise kinds[kind].__new__(kinds[kind], kind)

    def __call__(self, item):
        return item


def use(item):
    return item if isinstance(item, int) else Worker()(item)
