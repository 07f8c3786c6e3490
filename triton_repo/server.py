"""Serve a run: in the foreground for `marquee serve`, or for as long as another verb needs it.

What concerns the foreground and the endpoint file is the same for a run and for a deployment
folder; both are a `Place`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from triton_repo.access import NOBODY, Access, Credentials
from triton_repo.bundle import verified_bundle
from triton_repo.ports import free_ports
from triton_repo.process import TritonServer, http_ready, tree_cpu_seconds
from triton_repo.signals import StopSignals
from triton_repo.state import state_of
from triton_repo.supervision import StageWatch
from workflow.console import Output
from workflow.errors import ServingError
from workflow.run import Run, read_json, write_json

__all__ = ["RunningServer", "TritonServer", "find_server", "free_ports", "running_server", "serve"]

LOG_NAME = "triton.log"


class Place(Protocol):
    """A folder that is served: a run or a deployment."""

    @property
    def root(self) -> Path: ...
    @property
    def repository(self) -> Path: ...
    @property
    def endpoint_file(self) -> Path: ...
    @property
    def logs(self) -> Path: ...


@dataclass(frozen=True)
class RunningServer:
    """A ready server."""

    grpc_url: str
    http_url: str
    metrics_url: str
    pid: int
    credentials: Credentials = field(default=NOBODY, repr=False)

    def cpu_seconds(self) -> float:
        """User and system CPU seconds so far of the server and its Python stubs."""
        return tree_cpu_seconds(self.pid)


def serve(
    run: Run,
    grpc_port: int,
    http_port: int,
    metrics_port: int,
    output: Output,
    *,
    access: Access | None = None,
    state: str | None = None,
) -> None:
    """Serve the run's repository until Ctrl-C or SIGTERM, then stop cleanly.

    While the server is ready, `run.endpoint_file` says where it is and holds the keys of it;
    with --json the same object without the keys is printed once it is ready. A stage whose
    process dies is loaded again.

    Args:
        state: where users' events are kept; None: where `triton_repo.state` says.
    Raises:
        ConfigError: no such kind of state.
        MissingArtifactError: nothing was exported.
        BundleError: what was exported is incomplete or was changed.
        ServingError: the server does not start, dies, or the run is served already.
        KeyboardInterrupt: stopped before it was ready.
    """
    repository = _repository(run)
    refuse_second_server(run)
    verified_bundle(repository)
    server = TritonServer(
        repository,
        grpc_port=grpc_port,
        http_port=http_port,
        metrics_port=metrics_port,
        access=access,
        state=state_of(run, state),
        log_file=run.logs / LOG_NAME,
    )
    foreground(run, nullcontext(server), output, f"marquee recommend --run {run} --user ID")


def foreground(
    place: Place, prepared: AbstractContextManager[TritonServer], output: Output, next_step: str
) -> None:
    """Start the server that `prepared` yields, announce it, and wait for a stop signal.

    `prepared` ends as soon as the endpoint file is written.
    """
    server: TritonServer | None = None
    with StopSignals() as stop:
        try:
            with output.stage("Start Triton"), prepared as server:
                key = _repository_key(place.repository)
                server.start()
                endpoint = _publish(place, server, key)
            with suppress(KeyboardInterrupt):  # ready: from here on a stop is a good end
                stop.take_note()
                _announce(place, output, endpoint, next_step)
                _warn(server.access, output)
                _watch(server, stop.came, output)
        finally:
            stop.ignore()
            if server is not None:
                place.endpoint_file.unlink(missing_ok=True)
                server.stop()
    output.say("Triton stopped.")


def find_server(run: Run) -> str | None:
    """gRPC address of the live server of this run's current repository, or None.

    A server that was started before the last export is not counted: its answers are old.
    """
    found = live_server(run)
    return found.grpc_url if found is not None and _is_current(run) else None


@contextmanager
def running_server(run: Run) -> Iterator[RunningServer]:
    """The live server of this run, or one of its own on free ports that ends with the block.

    Raises:
        MissingArtifactError: nothing was exported.
        BundleError: what was exported is incomplete or was changed.
        ServingError: the server does not start.
    """
    repository = _repository(run)
    found = live_server(run)
    if found is not None and _is_current(run):
        yield found
        return
    verified_bundle(repository)
    grpc_port, http_port, metrics_port = free_ports(3)
    with TritonServer(
        repository,
        grpc_port=grpc_port,
        http_port=http_port,
        metrics_port=metrics_port,
        state=state_of(run),
        # The log of a live server of an older export stays as it is.
        log_file=run.logs / (LOG_NAME if found is None else "triton-temporary.log"),
    ) as server:
        yield RunningServer(
            server.grpc_url, server.http_url, server.metrics_url, server.pid, server.credentials
        )


def _repository(run: Run) -> Path:
    return run.require(run.repository, "model repository", "marquee export")


def _repository_key(repository: Path) -> str:
    """Changes when the exporter replaces the folder."""
    stat = repository.stat()
    return f"{stat.st_ino}-{stat.st_mtime_ns}"


def _is_current(run: Run) -> bool:
    if not run.repository.exists():
        return False
    return bool(_endpoint(run).get("repository_key") == _repository_key(run.repository))


# --- the endpoint file ---------------------------------------------------------------------------
def _endpoint(place: Place) -> dict[str, Any]:
    try:
        endpoint = read_json(place.endpoint_file)
    except (OSError, ValueError):
        return {}
    return endpoint if isinstance(endpoint, dict) else {}


def _publish(place: Place, server: TritonServer, repository_key: str) -> dict[str, Any]:
    import psutil

    endpoint = {
        "pid": server.pid,
        "started_at": psutil.Process(server.pid).create_time(),
        "grpc_url": server.grpc_url,
        "http_url": server.http_url,
        "metrics_url": server.metrics_url,
        "repository_key": repository_key,
        "folder": place.root.stat().st_ino,
    }
    keys = {"credentials": asdict(server.credentials)}
    write_json(place.endpoint_file, endpoint | keys, private=True)
    return endpoint


def live_server(place: Place) -> RunningServer | None:
    """What the endpoint file names, if that very process still runs and is ready."""
    server = running_process(place)
    return server if server is not None and http_ready(server.http_url) else None


def running_process(place: Place) -> RunningServer | None:
    """What the endpoint file names, if that very process still runs, ready or not."""
    endpoint = _endpoint(place)
    try:
        urls = {name: endpoint[name] for name in ("grpc_url", "http_url", "metrics_url")}
        credentials = Credentials(**endpoint["credentials"])
        server = RunningServer(**urls, pid=endpoint["pid"], credentials=credentials)
        # The file may have been copied along with the run; then another folder is served.
        ours = endpoint["folder"] == place.root.stat().st_ino
        alive = ours and _is_process(server.pid, endpoint["started_at"])
    except (KeyError, TypeError):
        return None
    return server if alive else None


def _is_process(pid: int, started_at: float) -> bool:
    import psutil

    try:
        return bool(abs(psutil.Process(pid).create_time() - started_at) < 1.0)
    except psutil.Error:
        return False


def refuse_second_server(place: Place) -> None:
    """Raises ServingError when the place has a live server."""
    live = live_server(place)
    if live is not None:
        raise ServingError(
            f"{place} is served already",
            found=f"gRPC at {live.grpc_url} (process {live.pid})",
            next_step="stop that `marquee serve` first",
        )


# --- the foreground ------------------------------------------------------------------------------
def _announce(place: Place, output: Output, endpoint: dict[str, Any], next_step: str) -> None:
    output.finish(
        {**endpoint, "serve_pid": os.getpid()},
        made=f"Serving {place}: gRPC {endpoint['grpc_url']}, HTTP {endpoint['http_url']}, "
        f"metrics {endpoint['metrics_url']}. Ctrl-C stops it.",
        next_step=next_step,
    )


def _warn(access: Access, output: Output) -> None:
    for text in access.warnings():
        output.say(f"[yellow]Warning[/]: {text}.")


def _watch(server: TritonServer, stop: threading.Event, output: Output) -> None:
    """Load stages again whose process died, until `stop` is set.

    Beside the main thread: a load may take long, and a stop is not to wait for it.

    Raises:
        ServingError: the server died.
    """
    watch = StageWatch(server.pid, server.grpc_url, server.credentials)

    def revive() -> None:
        while not stop.wait(0.2):
            for name in watch.revive():
                output.say(f"[yellow]Warning[/]: the process of {name} died; it was loaded again.")

    threading.Thread(target=revive, name="stage watch", daemon=True).start()
    while not stop.wait(0.2):
        if not server.is_alive():
            stop.set()
            raise server.failure("the Triton server died")
