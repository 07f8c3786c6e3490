"""`marquee serve` in a process of its own, on free ports, for the length of a `with` block."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.runs import Marquee, Result
from triton_repo.ports import free_ports


@dataclass
class Server:
    """A server: its process, what it printed once it was ready, and at last how it ended."""

    process: subprocess.Popen[str]
    line: str
    ended: Result | None = None

    @property
    def endpoint(self) -> dict[str, Any]:
        """Addresses and process of Triton, and the rest of what was printed."""
        endpoint = json.loads(self.line)
        assert isinstance(endpoint, dict)
        return endpoint


@contextmanager
def serving(marquee: Marquee, *words: Any, killed: bool = False) -> Iterator[Server]:
    """`marquee serve` with `words`, ended with Ctrl-C; it must end well unless it is to be killed.

    After the block, the server's `ended` has its status and all it said.
    """
    names = ("--grpc-port", "--http-port", "--metrics-port")
    ports = [word for pair in zip(names, map(str, free_ports(3)), strict=True) for word in pair]
    process = marquee.start("serve", *words, "--json", *ports)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        server = Server(process, line)
        yield server
    finally:
        process.send_signal(signal.SIGINT)
        result = marquee.finish(process, 60)
    server.ended = result
    assert killed or result.status == 0, result.err
