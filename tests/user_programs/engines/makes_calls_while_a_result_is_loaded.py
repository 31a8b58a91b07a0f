import faulthandler
import pathlib
import sys

from joblib_stateful import StatefulExecutor, shutdown, stateful_map

faulthandler.dump_traceback_later(50, exit=True)
executor = StatefulExecutor(n_jobs=1)


def submit():
    return executor.submit(abs, -7).result()


def start_map():
    return list(stateful_map(make, range(3), n_jobs=1))


def build():
    return list(stateful_map(lambda item: str(item), range(3), n_jobs=1))


def make(item):
    return item


def there(item):
    import main_like

    return main_like.Nested(how) if item == "nested" else item


how, way = sys.argv[1:]
pathlib.Path("main_like.py").write_text("""
class Nested:
    def __init__(self, how):
        self.how = how
    def __reduce__(self):
        return load, (self.how,)

def load(how):
    return sys.modules["__main__"].__dict__[how]()

import sys
""")
expected = {"submit": 7, "start_map": [0, 1, 2], "build": ["0", "1", "2"]}[how]
if way == "submit":
    assert executor.submit(there, "nested").result(timeout=40) == expected
elif way == "map":
    assert list(stateful_map(there, [0, "nested", 2], n_jobs=1)) == [0, expected, 2]
else:
    items = [*range(150), "nested", *range(3)]
    found = list(stateful_map(there, items, n_jobs=1, batch_size=1, buffer=1))
    assert found == [*range(150), expected, *range(3)]
executor.shutdown()
shutdown()
print("done")
