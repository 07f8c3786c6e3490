"""--device: what is chosen, said and refused, with and without a GPU."""

from __future__ import annotations

import os

import pytest

from workflow import device
from workflow.device import choose_device, visible_gpus
from workflow.errors import ConfigError

GPU = "NVIDIA H100 with 80 GiB"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """One with a GPU and the packages for it."""
    monkeypatch.delenv(device.VISIBLE, raising=False)
    monkeypatch.setattr(device, "_gpus", lambda: [GPU, "another"])
    monkeypatch.setattr(device, "find_spec", lambda name: name)
    return monkeypatch


def test_a_gpu_that_can_be_used_is_used(machine: pytest.MonkeyPatch) -> None:
    assert choose_device("auto") == choose_device("gpu") == device.Device("gpu", GPU)
    assert device.VISIBLE not in os.environ


def test_cpu_hides_the_gpu_from_every_library(machine: pytest.MonkeyPatch) -> None:
    assert choose_device("cpu").kind == "cpu"
    assert os.environ[device.VISIBLE] == ""
    machine.setattr(device, "_gpus", lambda: pytest.fail("nobody may look"))
    assert choose_device("cpu").found == "as asked for"


def test_without_a_gpu(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(device, "_gpus", list)
    assert choose_device("auto") == device.Device("cpu", "no NVIDIA GPU was found")
    machine.delenv(device.VISIBLE)
    with pytest.raises(ConfigError, match=r"no NVIDIA GPU.*Found: none\. Next: .*--device cpu"):
        choose_device("gpu")


def test_a_hidden_gpu_is_named_as_such(machine: pytest.MonkeyPatch) -> None:
    machine.setenv(device.VISIBLE, "")
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES=''"):
        choose_device("gpu")


def test_without_the_packages(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(device, "find_spec", lambda name: None if name == "cudf" else name)
    with pytest.raises(ConfigError, match=r"cannot use NVIDIA H100.*no cudf.*make gpu"):
        choose_device("gpu")
    chosen = choose_device("auto")
    assert chosen.kind == "cpu" and "no cudf" in chosen.found
    assert os.environ[device.VISIBLE] == ""


@pytest.mark.parametrize(
    ("visible", "expected"),
    [(None, [GPU, "another"]), ("", []), ("1", ["another"]), ("1,0", ["another", GPU]),
     ("7", []), ("GPU-3f", [GPU, "another"])],
)  # fmt: skip
def test_visible_gpus(
    machine: pytest.MonkeyPatch, visible: str | None, expected: list[str]
) -> None:
    if visible is not None:
        machine.setenv(device.VISIBLE, visible)
    assert visible_gpus() == expected


def test_a_machine_without_a_driver_has_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml

    def no_driver() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", no_driver)
    assert device._gpus() == []
