# As cells of a notebook do, and scripts that are run within it by ``%run``.
import runpy
import sys
from pathlib import Path

from joblib_stateful import StatefulExecutor, stateful_map

CELL = """
import pickle, sys

class Thing:
    number = {number}

LIMIT = {number}

def ask(item):
    try:
        found = pickle.loads(pickle.dumps(item)).number
    except pickle.PicklingError:
        found = None
    return found, LIMIT, sys.modules["__main__"].LIMIT

def looked_up(_):
    try:
        return Thing
    except NameError:
        return None
"""

SCRIPT = CELL.format(number=10) + "FOUND = executor.submit(ask, Thing()).result()\n"


# What a package does that wants pickles of its own scripts to be loaded anywhere.
OTHERS = """
import pickle, sys

class Vocabulary:
    words = ["a", "b"]

class Model:
    def __init__(self):
        sys.modules["__main__"].Vocabulary = Vocabulary

    def __call__(self, document):
        return pickle.loads(b"c__main__\\nVocabulary\\n.").words[document.number]
"""


class Document:
    def __init__(self, number):
        self.number = number


class Renamed:
    pass


Renamed.__name__, limit = "limit", 10


def below(kind, item):
    return item < limit


def run(number):
    exec(CELL.format(number=number), globals())


Thing = ask = looked_up = None  # what `run` makes anew

if __name__ == "__main__":
    Path("script.py").write_text(SCRIPT)
    with StatefulExecutor(n_jobs=1, engine=sys.argv[1]) as executor:

        def answer(*names):
            return [executor.submit(globals()[name], globals()["Thing"]()).result() for name in names]

        run(1)
        assert answer("ask") == [(1, 1, 1)]
        old, old_ask = Thing(), ask
        run(2)
        assert answer("ask") == [(2, 2, 2)]
        assert executor.submit(old_ask, old).result() == (None, 2, 2), "it is no longer what its name stands for"
        first_ask = ask
        run(3)
        assert executor.submit(looked_up, None).result() is Thing
        assert runpy.run_path("script.py", {"executor": executor}, "__main__")["FOUND"] == (10, 10, 10)
        assert executor.submit(first_ask, Thing()).result()[1] == 3, "one script's globals are no other's"
        run(4)
        assert answer("ask") == [(4, 4, 4)]
        del Thing
        assert executor.submit(looked_up, None).result() is None
        Thing = 5
        assert executor.submit(looked_up, None).result() == 5
        assert executor.submit(below, Renamed, 9).result()
    Path("others_module.py").write_text(OTHERS)
    import others_module

    assert list(stateful_map(others_module.Model, [Document(1)], n_jobs=1, engine=sys.argv[1])) == ["b"]
    print("as in the program")
