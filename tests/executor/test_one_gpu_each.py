"""One GPU for each worker; a stand-in for ``nvidia-smi`` lists what this machine does not have."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from joblib_stateful import StatefulExecutor, _devices, errors, one_gpu_each, stateful_map

if TYPE_CHECKING:
    from collections.abc import Callable

# As nvidia-smi -L writes it: one whole GPU, one that is divided into two MIG devices, and another whole one.
_THREE = """\
GPU 0: NVIDIA H200 (UUID: GPU-11111111-2222-3333-4444-555555555555)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-66666666-7777-8888-9999-000000000000)
  MIG 3g.20gb     Device  0: (UUID: MIG-aaaaaaaa-0000-5000-8000-000000000001)
  MIG 3g.20gb     Device  1: (UUID: MIG-bbbbbbbb-0000-5000-8000-000000000002)
GPU 2: NVIDIA H200 (UUID: GPU-99999999-2222-3333-4444-555555555555)
"""


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Return what puts a stand-in for nvidia-smi on the path, which says something and ends with a code."""
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(_devices, "_AMD_NODES", tmp_path / "nodes")
    monkeypatch.setenv("PATH", str(tmp_path))

    def install(says: str, code: int = 0) -> None:
        command = tmp_path / "nvidia-smi"
        command.write_text(
            f"#!{sys.executable}\nimport sys\nassert sys.argv[1:] == ['-L']\nprint({says!r}, end='')\nsys.exit({code})\n"
        )
        command.chmod(0o755)

    return install


def test_each_whole_gpu_and_each_part_of_a_divided_one_that_nvidia_smi_lists(nvidia_smi: Callable[..., None]) -> None:
    nvidia_smi(_THREE)
    assert one_gpu_each() == [
        {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "0"},
        {"CUDA_VISIBLE_DEVICES": "MIG-aaaaaaaa-0000-5000-8000-000000000001"},
        {"CUDA_VISIBLE_DEVICES": "MIG-bbbbbbbb-0000-5000-8000-000000000002"},
        {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "2"},
    ]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("0", ["0"]),
        (" 3, 1 ", ["3", "1"]),
        (
            "GPU-11111111,MIG-bbbbbbbb-0000-5000-8000-000000000002",
            ["GPU-11111111", "MIG-bbbbbbbb-0000-5000-8000-000000000002"],
        ),
        ("0,-1,2", ["0"]),  # as CUDA takes it
        ("1,1", ["1"]),
    ],
)
@pytest.mark.parametrize("name", ["CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"])
def test_those_that_the_program_may_see_and_no_others(
    nvidia_smi: Callable[..., None], monkeypatch: pytest.MonkeyPatch, name: str, visible: str, expected: list[str]
) -> None:
    nvidia_smi("", 1)  # is not asked
    monkeypatch.setenv(name, visible)
    assert one_gpu_each() == [{name: device} for device in expected]


@pytest.mark.parametrize("visible", ["", "-1", " "])
def test_a_program_from_which_all_gpus_are_hidden_is_told_so(monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(errors.NoDeviceError, match=r"CUDA_VISIBLE_DEVICES=.* hides all of them .* Unset it"):
        one_gpu_each()


def test_amds_driver_is_asked_where_there_is_no_nvidia_smi(nvidia_smi: Callable[..., None], tmp_path: Path) -> None:
    for node, number in enumerate(["0", "51234", "7"]):  # the first one is the CPU
        (tmp_path / "nodes" / str(node)).mkdir(parents=True)
        (tmp_path / "nodes" / str(node) / "gpu_id").write_text(f"{number}\n")
    assert one_gpu_each() == [{"HIP_VISIBLE_DEVICES": "0"}, {"HIP_VISIBLE_DEVICES": "1"}]


def test_a_machine_without_any_is_told_what_to_do(nvidia_smi: Callable[..., None]) -> None:
    with pytest.raises(
        errors.NoDeviceError, match=r"nvidia-smi is not installed.*Leave worker_env out to run on the CPU"
    ):
        one_gpu_each()
    nvidia_smi("No devices found.\n")
    with pytest.raises(RuntimeError, match=r"nvidia-smi lists none"):
        one_gpu_each()


def test_a_driver_that_is_broken_is_told_of(nvidia_smi: Callable[..., None]) -> None:
    nvidia_smi("Failed to initialize NVML: Driver/library version mismatch\n", 18)
    with pytest.raises(errors.NoDeviceError, match=r"Driver/library version mismatch.*Name the GPUs yourself"):
        one_gpu_each()


class Model:
    """Says which GPU it would use."""

    def __call__(self, item: int) -> str | None:
        return os.environ.get("CUDA_VISIBLE_DEVICES")


def test_there_are_as_many_workers_as_gpus_and_each_sees_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    with StatefulExecutor(Model, worker_env=one_gpu_each()) as executor:
        assert executor.run_on_all(os.getenv, "CUDA_VISIBLE_DEVICES") == ["5", "7"]
    found = stateful_map(Model, range(4), worker_env=one_gpu_each(), route=lambda item: item % 2)
    assert list(found) == ["5", "7", "5", "7"]
