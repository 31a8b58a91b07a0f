import abc

from _compare import compare


class Meta(abc.ABCMeta):
    def __new__(meta, name, bases, members, **options):
        return super().__new__(meta, name, bases, members | options)


class Base(metaclass=Meta, number=1):
    @abc.abstractmethod
    def run(self): ...


class Derived(Base, number=2):
    def run(self):
        return self.number


def run(number):
    try:
        Base()
    except TypeError:
        return Derived().run(), isinstance(Derived(), Base)


compare(run, [1])
