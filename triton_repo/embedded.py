"""The real tritonserver that the PyPI package nvidia-pytriton carries, made ready to run.

It has the Python backend and the ensemble scheduler, nothing else. The wheel keeps one Python
stub per Python version and no run bits, so `embedded_triton` copies what this interpreter
needs into a cache folder, once per version.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from workflow.errors import ServingError
from workflow.run import replaced_folder

PACKAGE = "nvidia-pytriton"
STUB = "triton_python_backend_stub"
# One request is answered by many small steps: more threads only add hand-overs.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class EmbeddedTriton:
    """Where the executable and the backends are, and the environment they need."""

    binary: Path
    backends: Path
    environment: dict[str, str]


def embedded_triton() -> EmbeddedTriton:
    """The tritonserver of this virtual environment, unpacked on first use.

    Raises:
        ServingError: the package or a shared libpython is missing, or the platform is not
            supported.
        StorageError: the cache folder cannot be written.
    """
    package = _package_folder()
    libpython = _libpython_folder()
    folder = _unpacked(package)
    return EmbeddedTriton(
        binary=folder / "bin" / "tritonserver",
        backends=folder / "backends",
        environment=_environment(libpython, bundled_libraries()),
    )


def bundled_libraries() -> Path:
    """The folder of shared libraries that belongs to the package."""
    return _package_folder().parent / "nvidia_pytriton.libs"


def cache_folder(name: str) -> Path:
    """A folder for unpacked tools: in the virtual environment, else in the user's cache."""
    if os.access(sys.prefix, os.W_OK):
        return Path(sys.prefix) / "marquee-cache" / name
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "marquee" / name


def _package_folder() -> Path:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise ServingError(
            "the embedded Triton server runs on Linux x86_64 only",
            found=f"{sys.platform} {platform.machine()}",
            next_step="serve the exported repository from a Triton container",
        )
    spec = find_spec("pytriton")  # finds without importing: the import takes a second
    if spec is None or not spec.submodule_search_locations:
        raise ServingError(
            f"the package {PACKAGE} is not installed",
            found=f"Python environment {sys.prefix}",
            next_step="make install",
        )
    return Path(spec.submodule_search_locations[0])


def _libpython_folder() -> Path:
    """The folder of the shared libpython of this very CPython build (the stub loads it)."""
    name = f"libpython{_python_version()}.so.1.0"
    for folder in _library_folders():
        if (folder / name).exists():
            return folder
    raise ServingError(
        f"Triton's Python backend needs the shared library {name} of this Python",
        found=f"none in {sysconfig.get_config_var('LIBDIR')}",
        next_step=f"apt-get install libpython{_python_version()} (system Python), or rebuild"
        " Python with --enable-shared (pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared)",
    )


def _library_folders() -> list[Path]:
    libdir = Path(sysconfig.get_config_var("LIBDIR") or Path(sys.base_prefix) / "lib")
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    return [libdir, libdir / multiarch, Path(sys.base_prefix) / "lib"]


def _python_version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _unpacked(package: Path) -> Path:
    """The unpacked server; made again when the package's version changed."""
    try:
        release = version(PACKAGE)
    except PackageNotFoundError:
        release = "unknown"
    folder = cache_folder("triton") / f"{release}-py{_python_version()}"
    stub = Path("backends") / "python" / STUB
    if not (folder / stub).exists():
        source = package / "tritonserver"
        with replaced_folder(folder) as temporary:
            shutil.copytree(source / "bin", temporary / "bin")
            shutil.copytree(source / "backends", temporary / "backends")
            shutil.copy(_stub(source), temporary / stub)
            (temporary / stub).chmod(0o755)
            (temporary / "bin" / "tritonserver").chmod(0o755)
    return folder


def _stub(source: Path) -> Path:
    stub = source / "python_backend_stubs" / _python_version() / STUB
    if not stub.exists():
        known = ", ".join(sorted(path.name for path in stub.parent.parent.iterdir()))
        raise ServingError(
            f"{PACKAGE} has no Python backend for Python {_python_version()}",
            expected=f"one of {known}",
            next_step="make the virtual environment with Python 3.11",
        )
    return stub


def _environment(libpython: Path, libraries: Path) -> dict[str, str]:
    environment = dict(os.environ)
    # The stub would start another Python than the one libpython belongs to.
    for name in ("PYTHONHOME", "PYTHONPATH"):
        environment.pop(name, None)
    inherited = environment.get("LD_LIBRARY_PATH")
    folders = [str(libpython), str(libraries), *([inherited] if inherited else [])]
    environment["LD_LIBRARY_PATH"] = os.pathsep.join(folders)
    # The stub finds its packages through the first python3 on PATH.
    environment["PATH"] = f"{Path(sys.prefix) / 'bin'}{os.pathsep}{environment.get('PATH', '')}"
    environment["VIRTUAL_ENV"] = sys.prefix
    for name in THREAD_VARIABLES:
        environment[name] = "1"
    return environment
