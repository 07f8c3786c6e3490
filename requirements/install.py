"""Make or update .venv: exact hashed packages, then this project, editable.

    python3.11 requirements/install.py [--dev]

The variable MARQUEE_STACK names another list of packages than cpu (gpu, container-py310), and
MARQUEE_VENV the folder that they go to.

Only what is missing is done: a stamp in .venv holds a digest of everything an installed layer
depends on. Two calls at once wait for each other. A call that ended while pip was unpacking makes
the next one start over, because a half-installed package can look complete to pip.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import check_system

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / os.environ.get("MARQUEE_VENV", ".venv")
STACK = os.environ.get("MARQUEE_STACK", "cpu")
DOWNLOAD_GB = {"cpu": "0.7", "gpu": "4", "container-py310": "0.8"}
REQUIREMENTS = ROOT / "requirements"
LOG = VENV / "install.log"
UNFINISHED = VENV / ".unfinished"
PIP_OPTIONS = ("--no-deps", "--no-build-isolation", "--no-compile", "--disable-pip-version-check")
UNPACKING = "Installing collected packages"  # from here on pip changes the environment
PROGRESS_STEP = 20  # packages between two lines where there is no terminal


class SetupError(Exception):
    """The environment could not be made; the message is one line."""


def main(arguments: list[str]) -> int:
    """Bring the environment up to date and return the exit status."""
    unknown = [argument for argument in arguments if argument != "--dev"]
    if unknown:
        print(f"Unknown option {unknown[0]}. Next: install.py [--dev]", file=sys.stderr)
        return 2
    try:
        with _locked():
            _bring_up_to_date(dev="--dev" in arguments)
    except (SetupError, OSError) as error:
        print(f"Cannot set up Marquee: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nSet-up interrupted; the next make goes on.", file=sys.stderr)
        return 130
    return 0


def _bring_up_to_date(dev: bool) -> None:
    if UNFINISHED.exists() or not _venv_works():
        _discard_venv()
    python = _digest_of_interpreter()
    runtime = _digest(python, "build.txt", f"{STACK}.txt")
    project = _digest(runtime, "../pyproject.toml")
    layers: list[tuple[str, str, Callable[[], None]]] = [
        ("runtime", runtime, _install_runtime),
        ("project", project, _install_project),
    ]
    if dev:
        layers.insert(1, ("dev", _digest(runtime, "dev.txt"), _install_dev))
    for name, digest, install in layers:
        stamp = VENV / f".installed-{name}"
        if stamp.exists() and stamp.read_text() == digest:
            continue
        install()
        stamp.write_text(digest)
        UNFINISHED.unlink(missing_ok=True)


def _install_runtime() -> None:
    if not (VENV / "bin" / "python").exists():
        problem = check_system.disk_problem(ROOT)
        if problem:
            raise SetupError(problem)
        # Not sys.executable: that is .venv's own python while .venv is activated.
        base = getattr(sys, "_base_executable", sys.executable)
        VENV.mkdir()
        UNFINISHED.touch()
        _run([base, "-m", "venv", str(VENV)], f"making {VENV.name}")
        _pip_requirements("build.txt", "the installer")
        UNFINISHED.unlink()
    what = f"the packages Marquee runs on ({DOWNLOAD_GB[STACK]} GB to download)"
    _pip_requirements(f"{STACK}.txt", what)


def _install_dev() -> None:
    _pip_requirements("dev.txt", "the packages for tests and notebooks")


def _install_project() -> None:
    _run([*_pip(), "--quiet", "--editable", str(ROOT)], "installing Marquee")


def _pip_requirements(file: str, what: str) -> None:
    """Install one hashed file with a progress count, then compile it on all cores."""
    total = len(re.findall(r"^[A-Za-z0-9._-]+==", (REQUIREMENTS / file).read_text(), re.M))
    started = time.monotonic()
    print(f"Installing {what}: {total} packages", file=sys.stderr, flush=True)
    command = [*_pip(), "--require-hashes", "--requirement", str(REQUIREMENTS / file)]
    _run(command, f"installing {file}", _Progress(total))
    # pip compiles on one core; without the bytecode every first import would be slow.
    compile_all = [str(VENV / "bin" / "python"), "-m", "compileall", "-q", "-j", "0"]
    subprocess.run([*compile_all, str(VENV / "lib")], check=False, capture_output=True)
    print(f"  done in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


class _Progress:
    """Counts the packages that pip has begun to collect."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.count = 0

    def __call__(self, line: str) -> None:
        if line.startswith(UNPACKING):
            self._show("unpacking", end=True)
        elif line.startswith(("Collecting ", "Processing ", "Requirement already satisfied: ")):
            self.count += 1
            name = line.split()[3 if line.startswith("Requirement") else 1]
            self._show(re.split("==|-[0-9]", name.rpartition("/")[2])[0])

    def _show(self, name: str, end: bool = False) -> None:
        text = f"  [{self.count}/{self.total}] {name}"
        if sys.stderr.isatty():
            print(f"\r\x1b[K{text}", end="\n" if end else "", file=sys.stderr, flush=True)
        elif end or self.count % PROGRESS_STEP == 0:
            print(text, file=sys.stderr, flush=True)


def _pip() -> list[str]:
    return [str(VENV / "bin" / "python"), "-m", "pip", "install", *PIP_OPTIONS]


def _run(command: list[str], what: str, on_line: Callable[[str], None] | None = None) -> None:
    """Run a command, its output into the log.

    Raises:
        SetupError: it failed; quotes its last error line.
    """
    temporary = VENV / "tmp"  # pip's downloads: on the disk whose space was checked
    temporary.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "TMPDIR": str(temporary)}
    for name in ("PYTHONHOME", "PYTHONPATH", "PIP_REQUIRE_VIRTUALENV", "PIP_USER", "PIP_TARGET"):
        environment.pop(name, None)
    lines: list[str] = []
    with LOG.open("a") as log:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        with _ended(process):
            for line in process.stdout or ():
                log.write(line)
                if line.strip():
                    lines.append(line.strip())
                if line.startswith(UNPACKING):
                    UNFINISHED.touch()
                if on_line:
                    on_line(line)
    shutil.rmtree(temporary, ignore_errors=True)
    if process.returncode:
        errors = [line for line in lines if line.startswith("ERROR:")] or lines[-1:]
        reason = errors[0].removeprefix("ERROR: ") if errors else f"exit {process.returncode}"
        advice = f"Next: check network and disk ({LOG} has it all), then make again"
        raise SetupError(f"{what} failed: {reason.rstrip('.')}. {advice}")


@contextmanager
def _ended(process: subprocess.Popen[str]) -> Iterator[None]:
    """No child outlives this call, Ctrl-C included."""
    try:
        yield
    except BaseException:
        process.terminate()
        raise
    finally:
        process.wait()


@contextmanager
def _locked() -> Iterator[None]:
    """Two `make` at once: the second waits, then finds the work done."""
    descriptor = os.open(REQUIREMENTS, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _venv_works() -> bool:
    """False where .venv is absent, was moved with its folder, or lost its interpreter."""
    python = VENV / "bin" / "python"
    if not python.exists():
        return False
    code = "import sys; print(sys.base_prefix)"
    answer = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    if answer.returncode or answer.stdout.strip() != sys.base_prefix:
        return False
    # Not pyvenv.cfg, which says where it was made only since Python 3.11.
    made_at = rf"VIRTUAL_ENV=[\"']?{re.escape(str(VENV))}[\"']?$"
    return re.search(made_at, (VENV / "bin" / "activate").read_text(), re.M) is not None


def _discard_venv() -> None:
    if VENV.is_symlink():
        VENV.unlink()
    elif VENV.exists():
        print("Replacing an incomplete or moved .venv", file=sys.stderr, flush=True)
        shutil.rmtree(VENV)


def _digest_of_interpreter() -> str:
    return f"{sys.version} {sys.base_prefix}"


def _digest(base: str, *files: str) -> str:
    content = base.encode() + b"".join((REQUIREMENTS / file).read_bytes() for file in files)
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
