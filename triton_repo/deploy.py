"""Swap what a deployment serves: verify, load beside the old bundle, change over, point, tidy up.

The pointer is the truth. `_settle` makes a live server and the folder agree with it, whatever
state an earlier process was killed in; `marquee serve` starts from the pointer alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from triton_repo.bundle import Bundle, check_compatible, read_bundle, verify
from triton_repo.bundle_models import (
    bundle_model,
    own_models,
    remove_models,
    write_front,
    write_models,
)
from triton_repo.client import front_model
from triton_repo.control import ModelControl
from triton_repo.deployment import Deployment, Pointer, check_name
from triton_repo.ports import free_ports
from triton_repo.process import TritonServer
from triton_repo.server import LOG_NAME, foreground, refuse_second_server, running_process
from triton_repo.tensors import ENSEMBLE
from workflow.console import Output
from workflow.errors import BundleError, ConfigError, MarqueeError, ServingError
from workflow.run import Run

# A request that found the old ensemble takes hold of its stages within microseconds.
_LET_GO_S = 0.5


# --- verbs ---------------------------------------------------------------------------------------
def deploy(deployment: Deployment, run: Run, name: str | None, output: Output) -> dict[str, Any]:
    """Serve the run's bundle: live, or under a name beside the live one.

    With a live server it is swapped without a failed request; without one the bundle is tried in
    a server of its own, and serves from the next `marquee serve --deployment` on.

    Returns:
        {"deployment", "version", "as", "live", "previous", "named", "server", "removed"}.
    Raises:
        ConfigError: the name does not fit.
        BundleError: the bundle is refused; what served before serves on.
        ServingError: the server failed, or another process is at work on the folder.
    """
    check_name(name)
    source = run.require(run.repository, "model repository", "marquee export")
    with deployment.locked():
        before = deployment.pointer()
        if name is not None and before.live is None:
            raise ServingError(
                f"there is no live bundle that {name} could serve beside",
                next_step=f"marquee deploy RUN --deployment {deployment}",
            )
        with output.stage("Verify") as report:
            if before.live is not None:
                check_compatible(read_bundle(source), deployment.bundle(before.live))
            bundle = deployment.install(source, report)
        after = before.deployed(bundle.version, name)
        return _change(deployment, before, after, bundle, name, output)


def rollback(deployment: Deployment, name: str | None, output: Output) -> dict[str, Any]:
    """Serve the previous bundle again, or take the one of that name away.

    Raises:
        ServingError: there is nothing to go back to, or the server failed.
        BundleError: the previous bundle was damaged; what served before serves on.
    """
    with deployment.locked():
        before = deployment.served_pointer()
        after = before.rolled_back(name)
        assert after.live is not None
        with output.stage("Verify") as report:
            bundle = deployment.bundle(after.live)
            verify(bundle, report)
        return _change(deployment, before, after, bundle, name, output)


def serve_deployment(
    folder: Path,
    run: Path | None,
    grpc_port: int,
    http_port: int,
    metrics_port: int,
    output: Output,
    *,
    host: str = "127.0.0.1",
) -> None:
    """Serve what the folder's pointer says until Ctrl-C or SIGTERM; `deploy` swaps it meanwhile.

    Raises:
        ConfigError: a run is given as well, or an address that others reach.
        MissingArtifactError: nothing is deployed.
        BundleError: a bundle that the pointer names is incomplete or was changed.
        ServingError: the server does not start, dies, or the folder is served already.
    """
    deployment = Deployment(folder)
    if run is not None:
        raise ConfigError(
            "--run and --deployment were both given",
            expected="one of them",
            next_step=f"marquee deploy {run} --deployment {deployment}",
        )

    @contextmanager
    def prepared() -> Iterator[TritonServer]:
        with deployment.locked():
            refuse_second_server(deployment)
            pointer = deployment.served_pointer()
            yield TritonServer(
                deployment.repository,
                grpc_port=grpc_port,
                http_port=http_port,
                metrics_port=metrics_port,
                host=host,
                log_file=deployment.logs / LOG_NAME,
                load_models=_written(deployment, pointer),
            )

    foreground(deployment, prepared(), output, f"marquee deploy RUN --deployment {deployment}")


# --- the change ----------------------------------------------------------------------------------
def _change(
    deployment: Deployment,
    before: Pointer,
    after: Pointer,
    bundle: Bundle,
    name: str | None,
    output: Output,
) -> dict[str, Any]:
    """From one pointer to the other; on any failure `before` serves on."""
    server = running_process(deployment)
    try:
        if server is not None:
            with ModelControl(server.grpc_url) as control:
                _change_live(deployment, control, before, after, bundle, output)
        else:
            with output.stage("Try out"):
                _try_alone(deployment, bundle)
            deployment.point(after)
    except BaseException:
        deployment.prune(deployment.pointer())
        raise
    return {
        "deployment": str(deployment),
        "version": bundle.version,
        "as": name,
        "live": after.live,
        "previous": after.previous,
        "named": after.named,
        "server": server.grpc_url if server is not None else None,
        "removed": deployment.prune(after),
    }


def _change_live(
    deployment: Deployment,
    control: ModelControl,
    before: Pointer,
    after: Pointer,
    bundle: Bundle,
    output: Output,
) -> None:
    try:
        _settle(deployment, control, before)
        with output.stage("Load and try out"):
            _load(deployment, control, bundle)
        with output.stage("Swap"):
            _front(deployment, control, after)
            deployment.point(after)
    except BaseException:
        with suppress(MarqueeError):  # the first error is the one to tell
            _settle(deployment, control, before)
        raise
    _settle(deployment, control, after)


def _load(deployment: Deployment, control: ModelControl, bundle: Bundle) -> None:
    """Load a bundle beside what serves, and ask it."""
    own = bundle_model(bundle.version)
    if not own_models(bundle) <= control.loaded().keys():
        write_models(deployment.repository, bundle)
        control.load(own)
    control.try_out(own, bundle)


def _front(deployment: Deployment, control: ModelControl, pointer: Pointer) -> None:
    """Let clients reach the bundles of the pointer; each of them is loaded."""
    loaded = control.loaded()
    for name, version in pointer.serving.items():
        if loaded.get(front_model(name)) != version:
            write_front(deployment.repository, deployment.bundle(version), name)
            control.load(front_model(name))


def _settle(deployment: Deployment, control: ModelControl, pointer: Pointer) -> None:
    """Make the server and its repository hold what the pointer names, and nothing else."""
    wanted = set(map(front_model, pointer.serving))
    for version in set(pointer.serving.values()):
        bundle = deployment.bundle(version)
        wanted |= own_models(bundle)
        if not own_models(bundle) <= control.loaded().keys():
            _load(deployment, control, bundle)
    _front(deployment, control, pointer)
    unwanted = control.loaded().keys() - wanted
    if unwanted:
        time.sleep(_LET_GO_S)
    for model in sorted(unwanted, key=lambda model: not model.startswith(ENSEMBLE)):
        control.unload(model)
    remove_models(deployment.repository, wanted)


def _try_alone(deployment: Deployment, bundle: Bundle) -> None:
    """Load a bundle in a server that nobody else knows of."""
    remove_models(deployment.repository, set())
    write_models(deployment.repository, bundle)
    own = bundle_model(bundle.version)
    grpc_port, http_port, metrics_port = free_ports(3)
    server = TritonServer(
        deployment.repository,
        grpc_port=grpc_port,
        http_port=http_port,
        metrics_port=metrics_port,
        log_file=deployment.logs / "triton-try.log",
        load_models=[own],
    )
    with server, ModelControl(server.grpc_url) as control:
        control.try_out(own, bundle)


def _sound(deployment: Deployment, version: int) -> Bundle:
    """A bundle that the pointer names, every file checked."""
    try:
        bundle = deployment.bundle(version)
        verify(bundle)
    except BundleError as error:
        raise BundleError(
            error.what, found=error.found, next_step=f"marquee rollback --deployment {deployment}"
        ) from None
    return bundle


def _written(deployment: Deployment, pointer: Pointer) -> list[str]:
    """Make the repository anew from the pointer; returns the ensembles that are to be loaded."""
    remove_models(deployment.repository, set())
    for name, version in pointer.serving.items():
        bundle = _sound(deployment, version)
        write_models(deployment.repository, bundle)
        write_front(deployment.repository, bundle, name)
    deployment.prune(pointer)
    own = map(bundle_model, set(pointer.serving.values()))
    return sorted([*map(front_model, pointer.serving), *own])
