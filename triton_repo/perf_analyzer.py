"""Triton's own load generator, perf_analyzer: make it run here, run it, read its report.

The tritonclient wheel carries the program but not two of its shared libraries. The
nvidia-pytriton wheel carries those, under names of its own; links with the names that
perf_analyzer asks for are all that is missing, so nothing is downloaded.
"""

from __future__ import annotations

import csv
import math
import os
import subprocess
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from triton_repo.access import GRPC_PREFIX, NOBODY, Credentials
from triton_repo.embedded import bundled_libraries, cache_folder
from workflow.errors import ServingError
from workflow.run import replaced_folder

# name that perf_analyzer asks for -> pattern of the bundled file
_LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}
_WINDOWS = 3
_REMEDY = "make install; it needs glibc 2.34 and OpenSSL 3 (Debian 12, Ubuntu 22.04 or newer)"


@dataclass(frozen=True)
class Measurement:
    """One load level as the client saw it: latencies in milliseconds."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    requests_per_s: float


def locate() -> list[str]:
    """The words that start perf_analyzer here; its arguments follow them.

    Raises:
        ServingError: it is not installed or does not run on this system.
    """
    folder = _library_folder()
    paths = f"{folder}{os.pathsep}{os.environ.get('LD_LIBRARY_PATH', '')}".rstrip(os.pathsep)
    command = ["env", f"LD_LIBRARY_PATH={paths}", str(_program())]
    trial = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    if trial.returncode != 0:
        reason = (trial.stderr.strip() or trial.stdout.strip()).splitlines()
        raise ServingError(
            "perf_analyzer does not run on this system",
            found=reason[-1] if reason else f"exit status {trial.returncode}",
            next_step=_REMEDY,
        )
    return command


def _program() -> Path:
    try:
        listed = files("tritonclient") or []
    except PackageNotFoundError:
        listed = []
    programs = [Path(str(file.locate())) for file in listed if file.name == "perf_analyzer"]
    if not programs or not programs[0].exists():
        raise ServingError(
            "perf_analyzer is not installed",
            expected="the Linux wheel of tritonclient, which carries it",
            next_step=_REMEDY,
        )
    return programs[0].resolve()


def _library_folder() -> Path:
    """A folder of links to the bundled libraries; made again when they moved."""
    folder = cache_folder("perf_analyzer")
    targets = {name: _bundled(pattern) for name, pattern in _LIBRARIES.items()}
    if any((folder / name).resolve() != target for name, target in targets.items()):
        with replaced_folder(folder) as temporary:
            for name, target in targets.items():
                (temporary / name).symlink_to(target)
    return folder


def _bundled(pattern: str) -> Path:
    found = sorted(bundled_libraries().glob(pattern))
    if not found:
        raise ServingError(
            f"perf_analyzer needs a library that nvidia-pytriton does not carry: {pattern}",
            next_step=_REMEDY,
        )
    return found[0].resolve()


def measure(
    command: list[str],
    *,
    model: str,
    grpc_url: str,
    input_file: Path,
    concurrency: int,
    duration_s: float,
    credentials: Credentials = NOBODY,
) -> Measurement:
    """Send requests for about `duration_s`, `concurrency` at a time.

    Three time windows, all of which count: on a machine that does other work too, waiting for
    agreeing windows never ends.

    Args:
        command: from `locate`.
        input_file: request data in perf_analyzer's JSON format.
        credentials: what the server asks for.
    Raises:
        ServingError: perf_analyzer failed, or the server refused requests.
    """
    window_ms = max(500, math.ceil(duration_s * 1000 / _WINDOWS))
    with tempfile.TemporaryDirectory(prefix="marquee-") as folder:
        report = Path(folder) / "report.csv"
        arguments = {
            "-m": model,
            "-i": "grpc",
            "-u": _certified_url(grpc_url, credentials),
            "--input-data": str(input_file),
            "--concurrency-range": str(concurrency),
            "-p": str(window_ms),
            "-s": "999",
            "-r": str(_WINDOWS),
            "-f": str(report),
        }
        words = [*command, *(word for pair in arguments.items() for word in pair)]
        words += _credential_words(credentials)
        _run(words, timeout_s=20 * _WINDOWS * window_ms / 1000 + 60)
        return _read_report(report)


def _certified_url(grpc_url: str, credentials: Credentials) -> str:
    """perf_analyzer has to connect to the name in the certificate."""
    if credentials.tls_name is None:
        return grpc_url
    return f"{credentials.tls_name}:{grpc_url.rpartition(':')[2]}"


def _credential_words(credentials: Credentials) -> list[str]:
    words = [f"-H{name}:{key}" for name, key in credentials.headers(GRPC_PREFIX).items()]
    if credentials.tls_ca is not None:
        words += ["--ssl-grpc-use-ssl"]
        words += ["--ssl-grpc-root-certifications-file", credentials.tls_ca]
    return words


def _run(words: list[str], timeout_s: float) -> None:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        raise ServingError(
            f"perf_analyzer did not end within {timeout_s:.0f} s",
            next_step="see whether the server answers: marquee recommend",
        ) from None
    if done.returncode != 0:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        reasons = [line for line in lines if "error" in line.lower() or "failed" in line.lower()]
        raise ServingError(
            "perf_analyzer could not measure the server",
            found=" / ".join((reasons or lines)[-2:]) or f"exit status {done.returncode}",
        )


def _read_report(report: Path) -> Measurement:
    """perf_analyzer's CSV: microseconds, one row per load level."""
    rows = list(csv.DictReader(report.read_text().splitlines())) if report.exists() else []
    try:
        row = rows[0]
        return Measurement(
            p50_ms=round(float(row["p50 latency"]) / 1000, 3),
            p95_ms=round(float(row["p95 latency"]) / 1000, 3),
            p99_ms=round(float(row["p99 latency"]) / 1000, 3),
            requests_per_s=round(float(row["Inferences/Second"]), 1),
        )
    except (IndexError, KeyError, ValueError) as error:
        raise ServingError("perf_analyzer's report has no latencies", found=str(error)) from error
