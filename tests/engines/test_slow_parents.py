"""Results whose own code takes long, waits, or finds no memory in the parent: Ctrl-C, the program's end, and other calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from joblib_stateful._process import _system

if TYPE_CHECKING:
    from conftest import RunProgram, StartProgram

_SLOW = """
from concurrent.futures import wait
from joblib_stateful import errors

def load():
    (here / "loads").touch()
    threading.Event().wait()

class Slow:
    def __reduce__(self):
        return load, ()

def make(item):
    return Slow() if item == 150 else item
"""


@pytest.mark.parametrize(
    "use",
    [
        "list(stateful_map(make, range(140, 160), n_jobs=2))",
        "list(stateful_map(make, range(151), n_jobs=1, batch_size=1, buffer=1))",  # which takes its answers itself
        "StatefulExecutor(n_jobs=1).submit(make, 150).result()",
    ],
    ids=["map", "quick map", "submit"],
)
def test_ctrl_c_strikes_while_a_result_is_being_loaded(program: StartProgram, use: str) -> None:
    one = program(f"{_SLOW}\ntry:\n    {use}\nfinally:\n    (here / 'interrupted').touch()\n")
    one.wait_for("loads")
    one.ctrl_c()
    code, _, err = one.ends_within(4)
    assert code != 0
    assert (one.folder / "interrupted").exists()
    if _system.HAS_SIGMASK:  # else it strikes a process that is being born, too
        assert err.count("Traceback") == 1, err
        assert err.rstrip().endswith("KeyboardInterrupt"), err
    one.leaves_nothing()


def test_the_program_ends_while_a_result_is_being_loaded(program: StartProgram) -> None:
    one = program(
        f"""{_SLOW}
results = stateful_map(make, range(149, 160), n_jobs=2, batch_size=1)
assert next(results) == 149
while not (here / "loads").exists():
    time.sleep(0.001)
results.close()
shutdown()
print("at the end")
""",
    )
    one.wait_for("loads")
    code, out, err = one.ends_within(20)
    assert (code, out) == (0, "at the end\n"), err
    one.leaves_nothing()


_NESTED = """
import faulthandler, sys, threading
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
"""


@pytest.mark.parametrize("how", ["submit", "start_map", "build"])
@pytest.mark.parametrize("way", ["map", "submit", "quick"])
def test_a_result_that_makes_calls_as_it_is_loaded(run_program: RunProgram, how: str, way: str) -> None:
    done = run_program(
        f"""{_NESTED}
def there(item):
    import main_like
    return main_like.Nested({how!r}) if item == "nested" else item

import pathlib
pathlib.Path("main_like.py").write_text('''
class Nested:
    def __init__(self, how):
        self.how = how
    def __reduce__(self):
        return load, (self.how,)

def load(how):
    return sys.modules["__main__"].__dict__[how]()

import sys
''')
expected = {{"submit": 7, "start_map": [0, 1, 2], "build": ["0", "1", "2"]}}[{how!r}]
if {way!r} == "submit":
    assert executor.submit(there, "nested").result(timeout=40) == expected
elif {way!r} == "map":
    assert list(stateful_map(there, [0, "nested", 2], n_jobs=1)) == [0, expected, 2]
else:
    items = [*range(150), "nested", *range(3)]
    found = list(stateful_map(there, items, n_jobs=1, batch_size=1, buffer=1))
    assert found == [*range(150), expected, *range(3)]
executor.shutdown()
shutdown()
print("done")
""",
        limit=60,
    )
    assert (done.code, done.out) == (0, "done\n"), done.err[-3000:]


# What a program may use from now on; enough for its own threads and workers' lines.
_SCARCE = """
import faulthandler, os, resource, sys
import joblib_stateful._transport._segments
from joblib_stateful import StatefulExecutor, errors, factory, shutdown, stateful_map
import joblib_stateful.engines.loky._engine, joblib_stateful._map._iterator, joblib_stateful._map._generator, tqdm, traceback, linecache

faulthandler.dump_traceback_later(50, exit=True)
MB = 1 << 20

class Large:
    def __init__(self, size):
        self.data = bytes(size)

def large(item):
    return bytes(400 * MB) if item == 2 else item

def large_object(item):
    return Large(400 * MB) if item == 2 else item

def large_array(item):
    import numpy
    return numpy.zeros(400 * MB, dtype="u1") if item == 2 else item

def limit_memory():
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 250 * MB, resource.RLIM_INFINITY))

def check(error, index):
    assert type(error) is errors.TransferError, error
    assert error.index == index and error.what == "result"
    text = str(error)
    assert "this program had no memory" in text and "4" in text and "keep locks" not in text and "Return less" in text, text

make = globals()[sys.argv[1]]
make_it = factory(lambda: make)
"""


@pytest.mark.parametrize("make", ["large", "large_object", "large_array"])
def test_a_result_that_is_too_large_for_the_parent_is_the_error_of_its_item(run_program: RunProgram, make: str) -> None:
    done = run_program(
        _SCARCE
        + """
with StatefulExecutor(n_jobs=2) as executor:
    executor.warm_up()
    assert [future.result() for future in [executor.submit(make, item) for item in range(2)]] == [0, 1]
    pids = {info.pid for info in executor.workers()}
    limit_memory()
    futures = [executor.submit(make, item) for item in range(5)]
    for item, future in enumerate(futures):
        if item == 2:
            check(future.exception(timeout=40), None)
        else:
            assert future.result(timeout=40) == item
    assert {info.pid for info in executor.workers()} == pids
    assert all(info.n_restarts == 0 for info in executor.workers())
    for future in [executor.submit(make, item) for item in (0, 1)]:
        future.result(timeout=40)
shutdown()
print("done")
""",
        make,
        limit=60,
    )
    assert (done.code, done.out) == (0, "done\n"), done.err[-3000:]


@pytest.mark.parametrize("make", ["large", "large_array"])
def test_a_result_that_is_too_large_for_the_parent_ends_no_map(run_program: RunProgram, make: str) -> None:
    done = run_program(
        _SCARCE
        + """
# Its workers are there before: they have the memory that the program itself has not.
executor = StatefulExecutor(make_it, n_jobs=2)
executor.warm_up()
list(stateful_map(executor, [0, 1], batch_size=1))
limit_memory()
results = list(stateful_map(executor, range(6), batch_size=1, on_error="deferred"))
assert [result.value for result in results] == [0, 1, None, 3, 4, 5]
check(results[2].exception, 2)
executor.shutdown()
print("done")
""",
        make,
        limit=60,
    )
    assert (done.code, done.out) == (0, "done\n"), done.err[-3000:]
