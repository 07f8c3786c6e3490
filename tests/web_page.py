"""`marquee ui` for the length of a `with` block, requests to it, and a browser."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, sync_playwright


@contextmanager
def showing(marquee: Any, *words: Any) -> Iterator[dict[str, Any]]:
    """`marquee ui` until the block ends; yields what it printed, and its process id."""
    process = marquee.start("ui", *words, "--port", 0, "--json")
    try:
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        yield {**json.loads(line), "pid": process.pid}
    finally:
        process.send_signal(signal.SIGINT)
        result = marquee.finish(process, 60)
    assert result.status == 0, result.err


def ask(
    announced: dict[str, Any], method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, dict[str, Any]]:
    """Without a browser: (status, JSON)."""
    connection = http.client.HTTPConnection(urlsplit(announced["url"]).netloc, timeout=30)
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, None if body is None else json.dumps(body), names)
    answer = connection.getresponse()
    value = json.loads(answer.read())
    connection.close()
    return answer.status, value


@contextmanager
def chromium() -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.fail("no chromium on PATH. Next: apt-get install chromium", pytrace=False)
    words = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=words)
        yield browser
        browser.close()
