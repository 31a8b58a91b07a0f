"""Exceptions and results whose own code raises when the parent looks at them: no call is ever left without an outcome."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import RunProgram

# Each class is an exception, or a result, that raises where it is touched. `kinds` has one of each.
_KINDS = '''
import pathlib
# In a module of their own, so that they travel by reference, however hostile they are.
pathlib.Path("hostile.py").write_text("""
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
""")

import faulthandler, sys
from joblib import Parallel, delayed, parallel_config
from joblib_stateful import StatefulExecutor, errors, shutdown, stateful_map
from joblib_stateful.testing import MemoryEngine
from hostile import Broken, Result, Worker, how_to, kinds, use

faulthandler.dump_traceback_later(90, exit=True)

def make_engine():
    return MemoryEngine(auto=True) if sys.argv[1] == "memory" else sys.argv[1]
'''


def _run(run_program: RunProgram, engine: str, text: str) -> None:
    done = run_program(_KINDS + text + '\nshutdown()\nprint("done")\n', engine, limit=100)
    assert done.code == 0, done.err[-4000:]
    assert done.out == "done\n", done.out


ENGINES = ("loky", "threads", "inline", "memory")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_hostile_exception_is_the_error_of_its_item_in_a_map(run_program: RunProgram, engine: str) -> None:
    _run(
        run_program,
        engine,
        """
engine = make_engine()
for kind in kinds:
    items = [("give", 0), ("raise", kind), ("give", 2), ("give", 3)]
    for ordered in (True, False):
        for batch_size in (1, 4):
            options = dict(n_jobs=2, ordered=ordered, batch_size=batch_size, engine=engine)
            results = sorted(stateful_map(Worker, items, on_error="deferred", **options), key=lambda found: found.index)
            assert [found.index for found in results] == [0, 1, 2, 3], (kind, results)
            assert [found.value for found in results] == [("give", 0), None, ("give", 2), ("give", 3)], kind
            assert [found.exception is None for found in results] == [True, False, True, True], kind
            for policy in ("immediate", "wait_others"):
                seen = []
                try:
                    seen += stateful_map(Worker, items, on_error=policy, **options)
                except BaseException as error:
                    caught = type(error)
                else:
                    raise AssertionError((kind, policy, seen))
                fits = {kinds[kind], errors.RemoteError, RuntimeError}  # the last one for StopIteration
                assert caught in fits, (kind, caught)
""",
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_a_hostile_exception_is_the_error_of_its_call(run_program: RunProgram, engine: str) -> None:
    _run(
        run_program,
        engine,
        """
from joblib_stateful import call_worker
with StatefulExecutor(Worker, n_jobs=1, engine=make_engine()) as executor:
    items = [item for kind in kinds for item in [("raise", kind), ("give", kind)]]
    futures = [executor.submit(call_worker, item) for item in items]
    for (what, kind), future in zip(items, futures):
        if what == "raise":
            assert future.exception(timeout=60) is not None, kind
        else:
            assert future.result(timeout=60) == ("give", kind)
    assert executor.workers()[0].n_restarts == 0
""",
    )


@pytest.mark.parametrize("engine", ["loky", "threads"])
def test_a_hostile_exception_ends_its_parallel_call(run_program: RunProgram, engine: str) -> None:
    _run(
        run_program,
        engine,
        """
for kind in kinds:
    tasks = [delayed(use)(item) for item in [("give", 0), ("raise", kind), ("give", 2)]]
    for return_as in ("list", "generator", "generator_unordered"):
        try:
            with parallel_config("stateful", n_jobs=2, engine=make_engine()):
                list(Parallel(return_as=return_as)(tasks))
        except BaseException as error:
            caught = type(error)
        else:
            raise AssertionError(kind)
        assert caught in {kinds[kind], errors.RemoteError, RuntimeError}, (kind, caught)
""",
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_a_hostile_exception_of_a_constructor_is_its_error(run_program: RunProgram, engine: str) -> None:
    _run(
        run_program,
        engine,
        """
for kind in ("cause", "traceback", "attributes", "meta", "setstate", "quits"):  # each takes new processes
    try:
        list(stateful_map(Broken, [1, 2], n_jobs=2, shared_kwargs={"kind": kind}, engine=make_engine()))
    except errors.WorkerInitError as error:
        assert type(error.__cause__) in {kinds[kind], errors.RemoteError}, (kind, error.__cause__)
    else:
        raise AssertionError(kind)
    with StatefulExecutor(Broken, n_jobs=1, shared_kwargs={"kind": kind}, engine=make_engine()) as executor:
        assert type(executor.submit(len, "a").exception(timeout=20)) is errors.WorkerInitError
""",
    )


@pytest.mark.parametrize("engine", ["loky", "memory"])
def test_whatever_loading_a_result_raises_is_the_error_of_its_item(run_program: RunProgram, engine: str) -> None:
    _run(
        run_program,
        engine,
        """
engine = make_engine()
for how in how_to:
    items = [("give", 0), ("return", how), ("give", 2)]
    for batch_size in (1, 3):
        results = list(stateful_map(Worker, items, n_jobs=2, on_error="deferred", batch_size=batch_size, engine=engine))
        assert [found.value for found in results] == [("give", 0), None, ("give", 2)], how
        error = results[1].exception
        assert type(error) is errors.TransferError and error.index == 1 and error.what == "result", (how, error)
        assert ("keep locks" in str(error)) == (how != "memory"), error
        assert ("memory" in str(error)) == (how == "memory"), error
    # So many of them that the consumer would take the answers itself.
    many = [("return", how) if index % 50 == 49 else index for index in range(200)]
    results = list(stateful_map(use, many, n_jobs=1, on_error="deferred", batch_size=1, engine=engine))
    assert [found.ok for found in results] == [index % 50 != 49 for index in range(200)], how
""",
    )


_CLUSTERS = """
import warnings
warnings.simplefilter("default")  # Dask's and Ray's own

def try_all(engine):
    from joblib_stateful import call_worker
    for batch_size in (1, 50):
        items = [item for kind in kinds for item in [("raise", kind), ("give", kind)]]
        items += [item for how in how_to for item in [("return", how), ("give", how)]]
        options = dict(n_jobs=2, on_error="deferred", batch_size=batch_size, engine=engine)
        found = list(stateful_map(Worker, items, **options))
        assert [result.index for result in found] == list(range(len(items)))
        assert [result.ok for result in found] == [what == "give" for what, _ in items]
    with StatefulExecutor(Worker, n_jobs=1, engine=engine) as executor:
        futures = [executor.submit(call_worker, item) for item in items]
        for (what, kind), future in zip(items, futures):
            assert (future.exception(timeout=60) is None) == (what == "give"), (what, kind)
        assert executor.workers()[0].n_restarts == 0
    with StatefulExecutor(Broken, n_jobs=1, shared_kwargs={"kind": "attributes"}, engine=engine) as executor:
        assert type(executor.submit(len, "a").exception(timeout=60)) is errors.WorkerInitError

if __name__ == "__main__":
    if sys.argv[1] == "dask":
        from distributed import Client, LocalCluster
        options = dict(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", host="127.0.0.1")
        with LocalCluster(**options) as cluster, Client(cluster):
            try_all("dask")
            shutdown()
    else:
        import ray
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        try_all("ray")
        shutdown()
        ray.shutdown()
    print("done")
"""


@pytest.mark.cluster
@pytest.mark.parametrize(("engine", "package"), [("dask", "distributed"), ("ray", "ray")])
def test_on_clusters_each_is_the_error_of_its_item_too(run_program: RunProgram, engine: str, package: str) -> None:
    pytest.importorskip(package)
    env = {"TMPDIR": tempfile.gettempdir()}  # they leave their logs there
    done = run_program(_KINDS + _CLUSTERS, engine, limit=100, env=env)
    assert done.code == 0, done.err[-4000:]
    assert done.out == "done\n", done.out
