"""Does this Python, on this system, have what Marquee needs? One line says what is missing.

Runs before anything is installed: standard library only. Exit status 0 and no output when all
is there.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
from pathlib import Path

MIN_GLIBC = (2, 35)  # the embedded Triton's wheel is built against it
MIN_FREE_GB = 4
PYTHON = f"python{sys.version_info[0]}.{sys.version_info[1]}"
LIBPYTHON = f"lib{PYTHON}.so.1.0"


def problem() -> str | None:
    """The first thing that is missing and how to get it, or None."""
    for check in (_platform_problem, _venv_problem, _libpython_problem):
        text = check()
        if text:
            return text
    return None


def disk_problem(folder: Path, needed_gb: float = MIN_FREE_GB) -> str | None:
    """What to do when the disk of `folder` has less than `needed_gb` (10^9 bytes) free."""
    free_gb = shutil.disk_usage(folder).free / 1e9
    if free_gb >= needed_gb:
        return None
    return (
        f"{needed_gb:g} GB of free disk are needed, {folder} has {free_gb:.1f}."
        " Next: free some space, or clone to another disk"
    )


def _platform_problem() -> str | None:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return (
            f"the embedded Triton runs on Linux on x86-64 only, this is {platform.system()}"
            f" {platform.machine()}. Next: use such a machine or a Linux container on one"
        )
    library, version = _libc()
    if library != "glibc" or version < MIN_GLIBC:
        return (
            f"glibc {MIN_GLIBC[0]}.{MIN_GLIBC[1]} or newer is needed, this system has {library}"
            f" {'.'.join(map(str, version))}. Next: use Debian 12, Ubuntu 22.04 or newer"
        )
    return None


def _libc() -> tuple[str, tuple[int, ...]]:
    try:
        name, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
    except (ValueError, OSError):
        return "another C library", ()
    return name, tuple(int(part) for part in version.split(".")[:2])


def _venv_problem() -> str | None:
    missing = [name for name in ("venv", "ensurepip") if not _is_installed(name)]
    if not missing:
        return None
    return (
        f"{sys.executable} has no module {' and no module '.join(missing)}."
        f" Next: apt-get install {PYTHON}-venv"
    )


def _is_installed(module: str) -> bool:
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None  # None: an empty folder was left


def _libpython_problem() -> str | None:
    """Triton's Python backend loads the libpython of the very build that runs the venv."""
    libdir = Path(sysconfig.get_config_var("LIBDIR") or Path(sys.base_prefix) / "lib")
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    for folder in (libdir, libdir / multiarch, Path(sys.base_prefix) / "lib"):
        if (folder / LIBPYTHON).exists():
            return None
    return (
        f"{sys.executable} has no shared {LIBPYTHON} in {libdir}. Next: apt-get install"
        f" lib{PYTHON} (system Python), or PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install"
        f" --force {platform.python_version()} (pyenv)"
    )


if __name__ == "__main__":
    _problem = problem()
    if _problem:
        print(_problem)
        sys.exit(1)
