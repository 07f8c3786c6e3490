"""Download one file over HTTP with progress, a checksum and clean retries."""

from __future__ import annotations

import hashlib
import http.client
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path

from workflow.console import Report, no_report
from workflow.errors import DataError

ATTEMPTS = 3
TIMEOUT_S = 30.0
_BLOCK_BYTES = 1 << 18
_REPORTS = 100  # per file; each is a line where output is no terminal
_BROKEN = (urllib.error.URLError, http.client.HTTPException, ConnectionError, ssl.SSLError)


def download(
    url: str,
    target: Path,
    md5: str,
    report: Report = no_report,
    *,
    next_step: str,
    timeout_s: float = TIMEOUT_S,
    pause_s: float = 1.0,
) -> None:
    """Fetch `url` into `target`; a broken connection is tried again from the start.

    On any failure nothing is left at `target`.

    Raises:
        DataError: the server cannot be reached or refuses, or the checksum differs.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            found = _fetch(url, target, report, timeout_s)
            break
        except urllib.error.HTTPError as error:
            reason, final = f"HTTP status {error.code}", error.code < 500
        except _BROKEN as error:
            reason, final = str(getattr(error, "reason", error)), False
        except TimeoutError:
            reason, final = f"no answer within {timeout_s:g} s", False
        target.unlink(missing_ok=True)
        if final or attempt == ATTEMPTS:
            raise DataError(f"cannot download {url}", found=reason, next_step=next_step)
        time.sleep(pause_s * attempt)
    if found != md5:
        target.unlink(missing_ok=True)
        raise DataError(
            f"the download of {url} is corrupt",
            expected=f"MD5 {md5}",
            found=f"MD5 {found}",
            next_step="try again later, or " + next_step,
        )


def _fetch(url: str, target: Path, report: Report, timeout_s: float) -> str:
    """The MD5 of what was written to `target`."""
    digest = hashlib.md5(usedforsecurity=False)
    done = reported = 0
    with urllib.request.urlopen(url, timeout=timeout_s) as response, target.open("wb") as file:
        total = int(response.headers.get("Content-Length") or 0)
        while block := response.read(_BLOCK_BYTES):
            file.write(block)
            digest.update(block)
            done += len(block)
            if done == total or done - reported >= total / _REPORTS:
                report(done, total, f"{done / 1e6:.1f} MB")
                reported = done
    if total and done < total:
        raise ConnectionError(f"the connection ended after {done:,} of {total:,} bytes")
    return digest.hexdigest()
