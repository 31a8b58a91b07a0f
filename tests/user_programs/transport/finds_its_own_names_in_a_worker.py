# What looks in ``__main__`` for what a name stands for: pickle, `joblib.Memory`, annotations, source, and the script itself.
import dataclasses
import enum
import functools
import inspect
import pickle
import sys
import tempfile
import typing

import joblib

from joblib_stateful import stateful_map

engine, is_nested = sys.argv[1], sys.argv[2] == "nested"
OFFSET = 1


class Model:
    """A model that is saved where it was trained."""

    def __init__(self, weight: "Weight") -> None:
        self.weight = weight

    def predict(self, item):
        return item * self.weight.value + OFFSET


@dataclasses.dataclass
class Weight:
    value: int
    of: "list[Weight] | None" = None


class Colour(enum.Enum):
    RED = 1


class Pair(typing.NamedTuple):
    first: int
    second: int


@functools.lru_cache
def cached(item):
    return item + OFFSET


def plain(item):
    return cached(item) * 2


def kept(function, item):
    return function(item) + 1


def again(found):
    return pickle.loads(pickle.dumps(found))


def look(item):
    model = again(Model(Weight(item)))
    with tempfile.TemporaryDirectory() as folder:
        memory = joblib.Memory(folder, verbose=0)
        remembered = memory.cache(kept)
        saved = f"{folder}/model"
        joblib.dump(model, saved)
        found = [
            type(joblib.load(saved)) is Model,
            *(remembered(plain, item) for _ in range(2)),
            remembered.check_call_in_cache(plain, item),
        ]
    return [
        *found,
        model.predict(3),
        again(plain) is plain,
        again(cached) is cached,
        again(Colour.RED) is Colour.RED,
        again(Pair(item, 2)),
        typing.get_type_hints(Weight)["of"] == list[Weight] | None,
        inspect.getsource(Model.predict),
        inspect.getdoc(Model),
        vars(sys.modules["__main__"])["Model"] is Model,
        sys.modules["__main__"].OFFSET,
        __name__,
    ]


class Nested:
    def __call__(self, item):
        return next(stateful_map(look, [item], n_jobs=1, engine=engine))


if __name__ == "__main__":
    found = list(stateful_map(Nested if is_nested else look, range(3), n_jobs=1, engine=engine))
    for one, other in zip(found, map(look, range(3)), strict=True):
        assert one == other, (one, other)
    print("as in the program")
