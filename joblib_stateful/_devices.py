"""The GPUs of this machine, one for each worker; no library that uses them is imported for it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from . import errors

# A driver that takes longer is broken.
_SECONDS = 30.0
_CUDA, _HIP = "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"
# Where Linux's driver of AMD tells of its devices: those that are GPUs have a number other than 0.
_AMD_NODES = Path("/sys/class/kfd/kfd/topology/nodes")


def one_gpu_each() -> list[dict[str, str]]:
    """Return the environment variables by which each worker sees one GPU of its own, as ``worker_env`` takes them.

    The GPUs are those that this program may use: those of ``CUDA_VISIBLE_DEVICES`` or ``HIP_VISIBLE_DEVICES``, by numbers,
    UUIDs or names of MIG devices alike; without these, all that ``nvidia-smi -L`` or AMD's driver lists, of a GPU that is
    divided each MIG device. In its worker a model's device is ``"cuda:0"`` (or ``"cuda"``) in any case.

    Returns
    -------
    list of dict
        One dict of environment variables per GPU. For two workers on each GPU, write ``2 * one_gpu_each()``.

    Raises
    ------
    errors.NoDeviceError
        There is none, or the driver does not answer; a RuntimeError.

    Examples
    --------
    >>> import os
    >>> from unittest import mock
    >>> from joblib_stateful import one_gpu_each, stateful_map
    >>> class Model:
    ...     def __call__(self, item):
    ...         return os.environ["CUDA_VISIBLE_DEVICES"]
    >>> with mock.patch.dict(os.environ, {"CUDA_VISIBLE_DEVICES": "2,3"}):  # as a scheduler of jobs sets it
    ...     gpus = one_gpu_each()
    ...     list(stateful_map(Model, range(3), worker_env=gpus, route=lambda item: item % 2))
    ['2', '3', '2']
    """
    for name in (_CUDA, _HIP):
        if name in os.environ:
            return _of_variable(name)
    found = _nvidia() or _amd()
    if not found:
        raise errors.NoDeviceError(
            f"one_gpu_each() has found no GPU: neither {_CUDA} nor {_HIP} is set, nvidia-smi "
            f"{'lists none' if shutil.which('nvidia-smi') else 'is not installed'}, and AMD's driver lists none. Likely cause: "
            "this machine has none, or a container was started without them (docker run --gpus all). Leave worker_env out to "
            "run on the CPU."
        )
    return found


def _of_variable(name: str) -> list[dict[str, str]]:
    text = os.environ[name]
    devices: list[str] = []
    for word in text.split(","):
        device = word.strip()
        # CUDA takes none of those behind it either. The names are those by which schedulers of jobs say that there is none.
        if not device or device.startswith("-") or device.lower() in {"nodevfiles", "none", "void"}:
            break
        devices.append(device)
    if not devices:
        raise errors.NoDeviceError(
            f"one_gpu_each() has found no GPU, for {name}={text!r} hides all of them from this program. Unset it, or name "
            f'those to use ({name}="0,1", say); or leave worker_env out to run on the CPU.'
        )
    return [{name: device} for device in dict.fromkeys(devices)]


def _nvidia() -> list[dict[str, str]]:
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    try:
        done = subprocess.run(  # noqa: S603 - the driver's own tool
            [command, "-L"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        told = getattr(error, "stderr", None) or getattr(error, "stdout", None) or ""
        raise errors.NoDeviceError(
            f"one_gpu_each() has asked `nvidia-smi -L` for the GPUs, and that has failed: {error} {told}".rstrip()
            + ". Likely cause: the driver is not loaded, or of another version than its library. Name the GPUs yourself, "
            f'worker_env=[{{"{_CUDA}": "0"}}, ...], or leave worker_env out to run on the CPU.'
        ) from error
    found: list[dict[str, str]] = []
    for line in done.stdout.splitlines():
        if gpu := re.match(r"GPU (\d+):", line):
            # Numbered as nvidia-smi does, and not by speed as CUDA would.
            found.append({"CUDA_DEVICE_ORDER": "PCI_BUS_ID", _CUDA: gpu[1]})
        elif part := re.match(r"\s+MIG .*\(UUID: (MIG-[^)]+)\)", line):
            if found and "CUDA_DEVICE_ORDER" in found[-1]:
                found.pop()  # a GPU that is divided can't be used as a whole
            found.append({_CUDA: part[1]})
    return found


def _amd() -> list[dict[str, str]]:
    n_gpus = 0
    for path in _AMD_NODES.glob("*/gpu_id"):
        try:
            n_gpus += path.read_text().strip() not in ("", "0")
        except OSError:  # one that this program must not use
            continue
    return [{_HIP: str(device)} for device in range(n_gpus)]
