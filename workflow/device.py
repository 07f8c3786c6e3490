"""Where features are computed and models are trained: one GPU, or the CPU.

The code is the same. NVTabular takes cuDF where it finds a GPU, TensorFlow its CUDA kernels; on
`cpu` the GPU is hidden from both. To be called before either is imported.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec

from workflow.errors import ConfigError

VISIBLE = "CUDA_VISIBLE_DEVICES"  # what CUDA, and so everything that uses it, may see
PACKAGES = ("cudf", "cupy")  # what NVTabular needs on a GPU


@dataclass(frozen=True)
class Device:
    """What was chosen: `kind` is cpu or gpu, `found` says what there is, for the user."""

    kind: str
    found: str


def choose_device(wanted: str) -> Device:
    """Settle on a device for this process and those that it starts.

    Args:
        wanted: gpu, cpu, or auto, which is a GPU where it can be used.
    Raises:
        ConfigError: a GPU is wanted that is not there, or that the installed packages cannot use.
    """
    gpus = [] if wanted == "cpu" else visible_gpus()
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if wanted == "gpu":
        _require(gpus, missing)
    if gpus and not missing:
        return Device("gpu", gpus[0])
    os.environ[VISIBLE] = ""
    if wanted == "cpu":
        return Device("cpu", "as asked for")
    if gpus:
        return Device("cpu", f"{gpus[0]} is not used: {_without(missing)}, see make gpu")
    return Device("cpu", "no NVIDIA GPU was found")


def visible_gpus() -> list[str]:
    """Names and memory of the GPUs that CUDA may use in this process."""
    allowed = os.environ.get(VISIBLE)
    gpus = _gpus()
    if allowed is None:
        return gpus
    numbers = [part.strip() for part in allowed.split(",")]
    if not all(number.isdigit() for number in numbers if number):
        return gpus  # named by UUID
    return [gpus[int(number)] for number in numbers if number and int(number) < len(gpus)]


def _gpus() -> list[str]:
    """Those that NVIDIA's driver has; none where there is no driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return [_described(pynvml, handle) for handle in handles]
    finally:
        pynvml.nvmlShutdown()


def _described(pynvml: object, handle: object) -> str:
    name = pynvml.nvmlDeviceGetName(handle)  # type: ignore[attr-defined]
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle).total / 2**30  # type: ignore[attr-defined]
    return f"{name.decode() if isinstance(name, bytes) else name} with {memory:.0f} GiB"


def _require(gpus: list[str], missing: list[str]) -> None:
    if not gpus:
        hidden = "" if os.environ.get(VISIBLE) is None else f", {VISIBLE}={os.environ[VISIBLE]!r}"
        raise ConfigError(
            "--device gpu: no NVIDIA GPU was found",
            expected="one that nvidia-smi lists",
            found=f"none{hidden}",
            next_step="install NVIDIA's driver (in a container: --gpus all), or --device cpu",
        )
    if missing:
        raise ConfigError(
            f"--device gpu: the installed packages cannot use {gpus[0]}",
            expected=", ".join(PACKAGES),
            found=_without(missing),
            next_step="make gpu, then .venv-gpu/bin/marquee; or --device cpu",
        )


def _without(missing: list[str]) -> str:
    return f"no {' and no '.join(missing)}"
