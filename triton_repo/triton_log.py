"""Why a tritonserver failed, from its log."""

from __future__ import annotations

import re
from pathlib import Path

_LOG_LINE = re.compile(r'^[EF]\d{4} \S+ \d+ \S+?] "?(.*)$')
# A machine without a GPU says these things at every start.
_HARMLESS = re.compile(r"CUDA|CudaDriver|NVML|DCGM|pinned|GPU")


def log_error(log_file: Path) -> str | None:
    """The most telling error of a Triton log as one line, or its last line, or None."""
    text = log_file.read_text(encoding="utf-8", errors="replace") if log_file.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [match[1] for line in lines if (match := _LOG_LINE.match(line))]
    errors = [_shortened(error) for error in errors if not _HARMLESS.search(error)]
    # The first error is the cause; what follows from it follows it.
    causes = [error for error in errors if "failed to load" in error]
    plain = [line for line in lines if "error" in line.lower() and not _HARMLESS.search(line)]
    return next(iter([*causes, *errors, *plain[-1:], *lines[-1:]]), None)


def _shortened(message: str) -> str:
    message = message.replace("\\n", "\n").split("\nAt:")[0].rstrip('"')
    return " ".join(message.split())[:400]
