"""joblib's own tests of memory-mapped arrays, with the backend ``"stateful"``.

Run are all that could hold for any backend with processes. The others are about files in a folder of joblib's, which
this backend does not write: `test_parallel_isolated_temp_folders`, `test_managed_backend_reuse_temp_folder` and
`test_child_raises_parent_exits_cleanly` ask for their names, `test_memmap_returned_as_regular_array` for a
`numpy.memmap` in the worker (that regular arrays come back is tested in `test_sharing`), and what takes a ``factory`` is
about joblib's own pools.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from joblib import parallel_config
from joblib.test import test_memmapping as theirs


def _popen(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a program of theirs, which can't know that the backend has to be imported."""
    *python, text = command
    return subprocess.Popen([*python, f"import joblib_stateful\n{text}"], **options)


@pytest.mark.parametrize(
    "name",
    [
        "test_permission_error_windows_reference_cycle",
        "test_permission_error_windows_memmap_sent_to_parent",
        "test_many_parallel_calls_on_same_object",
        "test_resource_tracker_silent_when_reference_cycles",
    ],
)
def test_joblibs_tests_of_memmapping_by_name_of_the_backend(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(theirs, "subprocess", SimpleNamespace(Popen=_popen, PIPE=subprocess.PIPE))
    getattr(theirs, name)("stateful")


class _Folder:
    """As much of py.path as they use."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def join(self, name: str) -> str:
        return str(self._path / name)


@pytest.mark.parametrize("name", ["test_direct_mmap", "test_parallel_memmap2d_as_memmap_1d_base"])
def test_joblibs_tests_of_memmapping_with_the_backend_set_around_them(name: str, tmp_path: Path) -> None:
    with parallel_config(backend="stateful"):
        getattr(theirs, name)(_Folder(tmp_path))


@pytest.mark.parametrize("mmap_mode", ["r+", "w+"])
def test_arrays_that_may_be_written_to_use_different_memory(mmap_mode: str) -> None:
    with parallel_config(backend="stateful"):
        theirs.test_numpy_arrays_use_different_memory(mmap_mode)
