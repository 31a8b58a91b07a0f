"""What the package offers: names, documentation with examples that run, and an import that starts nothing."""

from __future__ import annotations

import doctest
import importlib
import importlib.metadata
import importlib.resources
import importlib.util
import inspect
import json
import pkgutil
import re
import types
from typing import TYPE_CHECKING, Any

import pytest

import joblib_stateful
import joblib_stateful.compat
from joblib_stateful import engines, errors, testing
from programs import program_text

if TYPE_CHECKING:
    from conftest import RunProgram

_NAMES = {
    "Failure",
    "StatefulMap",
    "TaskResult",
    "stateful_map",
    "StatefulBackend",
    "StatefulExecutor",
    "call_worker",
    "get_worker",
    "get_worker_info",
    "WorkerInfo",
    "engines",
    "errors",
    "factory",
    "one_gpu_each",
    "register_reducer",
    "shutdown",
}


def test_the_public_names_are_those_of_the_contract() -> None:
    assert set(joblib_stateful.__all__) == _NAMES
    assert len(joblib_stateful.__all__) == len(_NAMES)


def test_all_names_what_there_is_and_nothing_else() -> None:
    for name in joblib_stateful.__all__:
        assert getattr(joblib_stateful, name) is not None
    assert set(dir(joblib_stateful)) >= _NAMES
    public = {
        name
        for name, value in vars(joblib_stateful).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    # What the module itself is written with is no offer.
    assert public - _NAMES <= {"annotations", "TYPE_CHECKING", "Any", "register_parallel_backend"}
    namespace: dict[str, Any] = {}
    exec("from joblib_stateful import *", namespace)
    assert set(namespace) - {"__builtins__"} == _NAMES


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'statful_map'"):
        joblib_stateful.statful_map  # noqa: B018 - the access is the test


def test_the_version_is_that_of_the_distribution() -> None:
    assert joblib_stateful.__version__ == importlib.metadata.version("joblib_stateful")


def test_the_package_is_typed() -> None:
    files = importlib.resources.files(joblib_stateful)
    assert (files / "py.typed").is_file()


def test_every_exception_is_named_and_of_one_family() -> None:
    defined = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, BaseException) and value.__module__ == errors.__name__
    }
    assert defined == set(errors.__all__)
    for name in defined - {"RemoteTraceback"}:
        assert issubclass(getattr(errors, name), errors.StatefulError)
    assert issubclass(errors.ItemTimeoutError, TimeoutError)
    for name in ("NoWorkerError", "ShutdownError", "EngineError"):
        assert issubclass(getattr(errors, name), RuntimeError)


# --- documentation ------------------------------------------------------------------------------------

_CLUSTERS = {
    "distributed": ("joblib_stateful.engines.dask.", "DaskEngine"),
    "ray": ("joblib_stateful.engines._ray", "RayEngine"),
}
_MISSING = {name for package, names in _CLUSTERS.items() if not importlib.util.find_spec(package) for name in names}
_MODULES = [
    importlib.import_module(info.name)
    for info in pkgutil.walk_packages(joblib_stateful.__path__, "joblib_stateful.")
    if not info.name.startswith(tuple(_MISSING))
]
# What can't have a docstring of its own: names of engines, and unions of the messages.
_NO_OFFERS = {"NAMES", "Message", "Reply"}
_OFFERS = {
    **{f"joblib_stateful.{name}": getattr(joblib_stateful, name) for name in _NAMES - {"engines", "errors"}},
    **{f"engines.{name}": getattr(engines, name) for name in engines.__all__ if name not in _NO_OFFERS},
    **{f"engines.{name}": getattr(engines, name) for _, name in _CLUSTERS.values() if name not in _MISSING},
    **{f"testing.{name}": getattr(testing, name) for name in testing.__all__},
}
# Nobody makes one of these: the first four are for subclasses, the fifth comes from its engine.
_ABSTRACT = {
    "engines.Engine",
    "engines.EngineWorker",
    "engines.RemoteWorker",
    "engines.Runtime",
    "testing.MemoryWorker",
}
# Are given, not made; or made with what they are sent with.
_MESSAGES = {
    f"engines.{name}"
    for name in ["Build", "BuildFailed", "Built", "Death", "Failure", "Finish", "Finished", "Ran", "Refused", "Run"]
}
_RECORDS = {"joblib_stateful.WorkerInfo"} | _MESSAGES


def sections(thing: Any) -> set[str]:
    return set(re.findall(r"^(\w[\w ]*)\n-{3,}$", inspect.getdoc(thing) or "", re.MULTILINE))


def parameters(thing: Any) -> set[str]:
    return {name for name in inspect.signature(thing).parameters if name not in ("self", "unknown")}


@pytest.mark.parametrize("name", sorted(_OFFERS))
def test_every_offer_has_a_docstring_with_an_example(name: str) -> None:
    thing = _OFFERS[name]
    doc = inspect.getdoc(thing)
    assert doc
    summary = doc.split("\n\n")[0]
    assert summary.endswith((".", ":"))
    if name not in {"engines.Engine", "engines.EngineWorker", "engines.Runtime"} | _RECORDS:
        assert "Examples" in sections(thing)
        assert ">>> " in doc


@pytest.mark.parametrize("name", sorted(name for name in _OFFERS if name not in _ABSTRACT))
def test_every_parameter_is_documented(name: str) -> None:
    thing = _OFFERS[name]
    doc = inspect.getdoc(thing) or ""
    if inspect.isclass(thing) and not {"Parameters", "Attributes"} & sections(thing):
        pytest.skip("made by the package itself")
    for parameter in parameters(thing):
        assert re.search(rf"^[\w\s,*]*\*{{0,2}}\b{parameter}\b.*$", doc, re.MULTILINE), parameter


@pytest.mark.parametrize("name", ["stateful_map", "StatefulExecutor", "StatefulBackend", "factory", "get_worker"])
def test_what_can_be_called_wrongly_says_what_it_raises(name: str) -> None:
    assert "Raises" in sections(getattr(joblib_stateful, name))


@pytest.mark.parametrize("name", ["stateful_map", "factory", "get_worker", "get_worker_info", "call_worker"])
def test_functions_say_what_they_return(name: str) -> None:
    assert "Returns" in sections(getattr(joblib_stateful, name))


@pytest.mark.parametrize("name", ["submit", "shutdown", "warm_up", "workers", "map"])
def test_methods_of_the_executor_are_documented(name: str) -> None:
    assert inspect.getdoc(getattr(joblib_stateful.StatefulExecutor, name))


def _doctests() -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = {}
    for module in [joblib_stateful, *_MODULES]:
        for case in finder.find(module):
            if case.examples:
                found[case.name] = case
    return [found[name] for name in sorted(found)]


def test_there_are_doctests_to_run() -> None:
    names = {case.name.rpartition(".")[2] for case in _doctests()}
    assert _NAMES - {"engines", "errors", "WorkerInfo"} <= names


@pytest.mark.parametrize("case", _doctests(), ids=lambda case: case.name)
def test_doctests(case: doctest.DocTest, capsys: pytest.CaptureFixture[str]) -> None:
    case.globs = {**case.globs, "__name__": "__main__"}
    failed, tried = doctest.DocTestRunner().run(case)
    assert tried
    assert not failed, capsys.readouterr().out


# --- importing ----------------------------------------------------------------------------------------

_LOOK = """
import sys, threading, json, os
{imports}
import psutil
print(json.dumps({{
    "modules": sorted(sys.modules),
    "threads": [thread.name for thread in threading.enumerate()],
    "children": [child.pid for child in psutil.Process().children(recursive=True)],
    "files": len(os.listdir("/proc/self/fd")),
}}))
"""
_HEAVY = {"numpy", "sklearn", "scipy", "pandas", "dask", "distributed", "ray", "tqdm.auto", "tqdm.notebook", "IPython"}


def test_importing_starts_and_loads_nothing(run_program: RunProgram) -> None:
    def look(imports: str) -> dict[str, Any]:
        done = run_program(_LOOK.format(imports=imports))
        assert (done.code, done.err) == (0, "")
        found: dict[str, Any] = json.loads(done.out)
        return found

    before, after = look("import joblib, loky"), look("import joblib_stateful, joblib, loky")
    assert after["threads"] == ["MainThread"]
    assert after["children"] == []
    assert after["files"] <= before["files"]
    new = set(after["modules"]) - set(before["modules"])
    assert not new & _HEAVY
    assert not {name for name in new if name.partition(".")[0] in _HEAVY}


def test_nothing_starts_before_the_first_result_is_asked_for(run_program: RunProgram) -> None:
    """Nor is loky imported, for what the first worker needs gets ready meanwhile."""
    done = run_program(program_text("programs/tells_when_processes_start"))
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out) == [*[[False, 0]] * 9, [1, True]]


def test_importing_registers_the_backend() -> None:
    from joblib.parallel import BACKENDS

    assert isinstance(BACKENDS["stateful"](), joblib_stateful.StatefulBackend)
