"""The set-up: what is missing is said in one line; the pinned files hold what they promise."""

from __future__ import annotations

import re
import venv
from pathlib import Path

import check_system
import install
import pytest

REQUIREMENTS = Path(check_system.__file__).parent
PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)")


def pins(file: str) -> dict[str, str]:
    lines = (REQUIREMENTS / file).read_text(encoding="utf-8").splitlines()
    return {match[1]: match[2] for match in map(PIN.match, lines) if match}


def test_this_system_has_what_is_needed() -> None:
    assert check_system.problem() is None


def test_missing_ensurepip_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_system, "_is_installed", lambda name: name != "ensurepip")
    message = check_system.problem() or ""
    assert "no module ensurepip" in message
    assert message.endswith("apt-get install python3.11-venv")


def test_missing_libpython_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_system, "LIBPYTHON", "libpython3.11.so.absent")
    message = check_system.problem() or ""
    assert "libpython3.11.so.absent" in message
    assert "apt-get install libpython3.11" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("machine", "libc", "expected"),
    [
        ("aarch64", "glibc 2.36", "Linux on x86-64 only"),
        ("x86_64", "glibc 2.31", "glibc 2.35 or newer is needed, this system has glibc 2.31"),
        ("x86_64", "", "this system has another C library"),
    ],
)
def test_other_platforms_are_refused(
    machine: str, libc: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_system.platform, "machine", lambda: machine)
    monkeypatch.setattr(check_system.os, "confstr", lambda _: libc)
    assert expected in (check_system.problem() or "")


def test_a_full_disk_is_noticed_before_anything_is_made(tmp_path: Path) -> None:
    assert check_system.disk_problem(tmp_path, needed_gb=0) is None
    assert "GB of free disk are needed" in (check_system.disk_problem(tmp_path, 1e9) or "")


def test_an_environment_stays_until_it_is_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "made here"
    venv.create(made, symlinks=True)
    monkeypatch.setattr(install, "VENV", made)
    assert install._venv_works()
    monkeypatch.setattr(install, "VENV", made.rename(tmp_path / "moved"))
    assert not install._venv_works()


@pytest.mark.parametrize("file", sorted(path.name for path in REQUIREMENTS.glob("*.txt")))
def test_every_pin_is_hashed_and_no_index_is_named(file: str) -> None:
    text = (REQUIREMENTS / file).read_text(encoding="utf-8")
    blocks = re.split(r"\n(?=[a-zA-Z])", text)[1:]
    assert len(blocks) == len(pins(file)) > 0
    assert all("--hash=sha256:" in block for block in blocks)
    assert not re.search(r"://|^\s*--(?!hash)|^-", text, re.M)


def test_pins_agree_between_the_files() -> None:
    build, cpu, dev = pins("build.txt"), pins("cpu.txt"), pins("dev.txt")
    assert not cpu.keys() & dev.keys()
    assert {name: build[name] for name in build.keys() & cpu.keys()}.items() <= cpu.items()
    assert pins("cpu.in").items() <= cpu.items()
    assert pins("build.in").items() <= build.items()


@pytest.mark.parametrize("name", ["gpu", "container-py310", "container-train", "container-serve"])
def test_lists_hold_what_their_reasons_name(name: str) -> None:
    assert pins(f"{name}.in").items() <= pins(f"{name}.txt").items()


def test_a_gpu_runs_the_same_code() -> None:
    """What is not of CUDA has the versions of the CPU's list."""
    cpu, gpu = pins("cpu.txt"), pins("gpu.txt")
    differ = {name for name in cpu.keys() & gpu.keys() if cpu[name] != gpu[name]}
    assert differ == {"numba", "llvmlite"}  # cuDF 24.12 wants older ones
    assert cpu.keys() - gpu.keys() == {"faiss-cpu", "tensorflow-cpu", "pip"} & cpu.keys()


def test_the_image_that_trains_has_the_tested_versions() -> None:
    tested = pins("container-py310.txt")
    assert pins("container-train.txt").items() <= tested.items()
    assert {"numpy", "faiss-cpu"} <= pins("container-serve.txt").keys()


def test_numpy_stays_below_2() -> None:
    assert pins("cpu.txt")["numpy"].startswith("1.")


def test_progress_counts_packages(capsys: pytest.CaptureFixture[str]) -> None:
    progress = install._Progress(total=3)
    for line in (
        "Collecting numpy==1.26.4 (from -r cpu.txt (line 1))\n",
        "Processing /wheels/attrs-26.1.0-py3-none-any.whl (from -r cpu.txt (line 2))\n",
        "Requirement already satisfied: six==1.17.0 in ./lib\n",
        "Installing collected packages: numpy, attrs\n",
    ):
        progress(line)
    assert capsys.readouterr().err == "  [3/3] unpacking\n"


def test_an_unknown_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert install.main(["--tpu"]) == 2
    assert "--tpu" in capsys.readouterr().err
