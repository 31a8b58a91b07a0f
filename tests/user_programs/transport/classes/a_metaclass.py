from _compare import compare


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

    def __len__(cls):
        return len(cls.fields)


class One(metaclass=Meta, tag="one"):
    fields = "a"


class Two(One, tag="two"):
    fields = "ab"


compare(lambda kind: (kind.tag, len(kind), Meta.made, type(kind) is Meta), [One, Two])
