"""The gateway on a socket: the standard library's threaded HTTP server, for one machine."""

from __future__ import annotations

import socket
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

from triton_repo.ui.gateway import (
    HEADERS,
    LONGEST_BODY,
    Gateway,
    RefusedError,
    Reply,
    Request,
    failure,
)
from workflow.errors import ServingError

TIMEOUT_S = 30.0  # a connection on which nothing comes is closed


class WebServer(ThreadingHTTPServer):
    """Serves a gateway.

    Args:
        host, port: where to listen; port 0 means a free one.
    Raises:
        ServingError: the address cannot be listened on.
    """

    daemon_threads = True

    def __init__(self, gateway: Gateway, host: str, port: int) -> None:
        self.gateway = gateway
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            self.address_family = found[0][0]
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise ServingError(
                f"cannot listen on {host} port {port}",
                found=str(error),
                next_step="choose another one with --port, or --port 0 for a free one",
            ) from None

    def server_bind(self) -> None:
        """As TCPServer does; HTTPServer would ask the network for this machine's name."""
        TCPServer.server_bind(self)
        host, port, *_ = self.server_address
        self.server_name, self.server_port = str(host), int(port)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: WebServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "marquee", ""
    timeout = TIMEOUT_S

    def do_GET(self) -> None:
        self._answer(b"")

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            self.send_error(HTTPStatus.LENGTH_REQUIRED)
        elif int(length) > LONGEST_BODY:
            self.send_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        else:
            self._answer(self.rfile.read(int(length)))

    def _answer(self, body: bytes) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self._send(self.server.gateway.respond(Request(self.command, self.path, headers, body)))

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What HTTP itself refuses is JSON, too; the rest of the connection is not read."""
        self.close_connection = True
        status = HTTPStatus(code)
        self._send(failure(RefusedError(status, message or status.description or status.phrase)))

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        if self.close_connection:
            self.send_header("Connection", "close")
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", reply.kind)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: the terminal belongs to the verb."""
