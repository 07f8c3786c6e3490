"""`marquee ui`: a web server in the foreground, over a live Triton or one of its own."""

from __future__ import annotations

import os
import threading
import time
import webbrowser
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from triton_repo.access import is_loopback
from triton_repo.client import Client
from triton_repo.deployment import Deployment
from triton_repo.server import live_server, running_server
from triton_repo.signals import StopSignals
from triton_repo.ui.gateway import Gateway
from triton_repo.ui.source import LiveSource, Served
from triton_repo.ui.web import WebServer
from workflow.console import Output
from workflow.errors import ServingError
from workflow.run import Run
from workflow.schema import Contract


def serve_ui(
    place: Run | Deployment,
    contract: Contract | None,
    host: str,
    port: int,
    output: Output,
    *,
    opens: bool,
) -> None:
    """Serve the web page of a run or a deployment until Ctrl-C or SIGTERM.

    Args:
        opens: show it in the user's browser.
    Raises:
        ServingError: the port is taken, no Triton serves the deployment, or it does not start.
        MissingArtifactError, BundleError: nothing fit to serve was exported.
    """
    with StopSignals() as stop, ExitStack() as stack:
        try:
            with output.stage("Connect to Triton"):
                served = stack.enter_context(_served(place))
            with suppress(KeyboardInterrupt):  # ready: from here on a stop is a good end
                _serve(served, contract, host, port, output, opens)
        finally:
            stop.ignore()
    output.say("The page is closed.")


@contextmanager
def _served(place: Run | Deployment) -> Iterator[Served]:
    if isinstance(place, Run):
        with running_server(place) as server:
            yield Served(str(place), server, run=place)
        return
    place.served_pointer()
    live = live_server(place)
    if live is None:
        raise ServingError(
            f"no server of {place} runs", next_step=f"marquee serve --deployment {place}"
        )
    yield Served(str(place), live, deployment=place)


def _serve(
    served: Served, contract: Contract | None, host: str, port: int, output: Output, opens: bool
) -> None:
    """Until a signal interrupts."""
    server = served.server
    with Client(server.grpc_url, timeout_s=30, credentials=server.credentials) as client:
        source = LiveSource(served, client, contract)
        version = source.newest.version  # also: says now what would fail at the first page
        with WebServer(Gateway(source, host), host, port) as web:
            threading.Thread(target=web.serve_forever, daemon=True).start()
            try:
                url = f"http://{_named(host)}:{web.server_port}/"
                _announce(output, served, url, version, host)
                if opens and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
                    webbrowser.open(url)  # without a display, a text browser would take over
                while True:  # a signal that another thread got is seen when this one wakes up
                    time.sleep(0.5)
            finally:
                web.shutdown()


def _named(host: str) -> str:
    """A name to open in a browser."""
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _announce(output: Output, served: Served, url: str, version: int, host: str) -> None:
    made: dict[str, Any] = {
        "url": url,
        "from": served.name,
        "version": version,
        "grpc_url": served.server.grpc_url,
    }
    output.finish(made, f"{served.name}, bundle {version}, at {url}. Ctrl-C stops it.")
    if not is_loopback(host):
        output.say(
            f"[yellow]Warning[/]: {host} is open to the network, without TLS and without a key: "
            "whoever reaches it may see pages and send watches."
        )
