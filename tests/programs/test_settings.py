"""Settings that libraries keep for themselves: a worker's code gives the values that it gives in the program."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING

import pytest

from joblib_stateful._worker import _settings
from joblib_stateful._worker._settings import SETTINGS, settings, take_over_settings
from programs import program_text

if TYPE_CHECKING:
    from conftest import RunProgram


def _needing(library: str) -> object:
    is_there = importlib.util.find_spec(library) is not None
    return pytest.param(library, marks=pytest.mark.skipif(not is_there, reason=f"{library} is not installed"))


@pytest.mark.parametrize("library", [_needing(setting.module) for setting in SETTINGS])
def test_what_a_program_has_set_is_set_in_its_workers(library: str, run_program: RunProgram) -> None:
    done = run_program(program_text("programs/has_set_its_libraries"), library, "loky", limit=110)
    assert (done.code, done.out) == (0, "as in the program\n"), done.err


@pytest.mark.parametrize("library", [_needing("numpy")])
def test_no_worker_imports_a_library_for_its_settings(library: str, run_program: RunProgram) -> None:
    done = run_program(program_text("programs/has_set_what_its_worker_imports_late"), library)
    assert (done.code, done.out) == (0, "as in the program\n"), done.err


def test_a_library_that_keeps_its_settings_elsewhere_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("_defaults", "_wanted", "_of_process"):
        monkeypatch.setattr(_settings, name, {})
    monkeypatch.setitem(sys.modules, "torch", sys)
    torch = next(at for at, setting in enumerate(SETTINGS) if setting.module == "torch")
    assert torch not in dict(settings())
    take_over_settings(((torch, "torch.float64"),))
    assert "settings of torch could not be taken over" in caplog.text
