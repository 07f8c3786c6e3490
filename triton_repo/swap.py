"""The steps of a swap: try a bundle alone, load it beside the live one, let it answer, settle.

A bundle whose warm-up fails can crash the whole tritonserver (seen with 2.51, once in a few
times), so a new one is tried in a server of its own before it comes near the live one.
"""

from __future__ import annotations

import shutil
import time

from triton_repo.bundle import Bundle, verify
from triton_repo.bundle_models import (
    bundle_model,
    front_models,
    own_models,
    remove_models,
    top_models,
    write_front,
    write_models,
)
from triton_repo.control import ModelControl
from triton_repo.deployment import Deployment, Pointer
from triton_repo.ports import free_ports
from triton_repo.process import TritonServer
from workflow.errors import BundleError, ServingError

# A request that found the old ensemble takes hold of its stages within microseconds.
_LET_GO_S = 0.5


def load_beside(deployment: Deployment, control: ModelControl, bundle: Bundle) -> None:
    """Load a bundle beside what serves, and ask it."""
    own = bundle_model(bundle.version)
    if not own_models(bundle) <= control.loaded().keys():
        write_models(deployment.repository, bundle)
        for model in top_models(bundle):
            control.load(model)
    control.try_out(own, bundle)


def let_answer(deployment: Deployment, control: ModelControl, pointer: Pointer) -> None:
    """Let clients reach the bundles of the pointer; each of them is loaded."""
    loaded = control.loaded()
    for name, version in pointer.serving.items():
        bundle = deployment.bundle(version)
        fronts = front_models(bundle, name)
        if any(loaded.get(front) != version for front in fronts):
            write_front(deployment.repository, bundle, name)
            for front in fronts:
                control.load(front)


def settle(deployment: Deployment, control: ModelControl, pointer: Pointer) -> None:
    """Make the server and its repository hold what the pointer names, and nothing else."""
    wanted: set[str] = set()
    for name, version in pointer.serving.items():
        bundle = deployment.bundle(version)
        wanted |= {*own_models(bundle), *front_models(bundle, name)}
        if not own_models(bundle) <= control.loaded().keys():
            load_beside(deployment, control, bundle)
    let_answer(deployment, control, pointer)
    unwanted = control.loaded().keys() - wanted
    if unwanted:
        time.sleep(_LET_GO_S)
    for model in sorted(unwanted):
        control.unload(model)
    remove_models(deployment.repository, wanted)


def try_alone(deployment: Deployment, bundle: Bundle) -> None:
    """Load a bundle in a server that nobody else knows of, and ask it.

    Raises:
        BundleError: it does not load, fails its warm-up, or answers badly.
    """
    folder = deployment.root / "trial"
    remove_models(folder, set())
    write_models(folder, bundle)
    grpc_port, http_port, metrics_port = free_ports(3)
    server = TritonServer(
        folder,
        grpc_port=grpc_port,
        http_port=http_port,
        metrics_port=metrics_port,
        log_file=deployment.logs / "triton-trial.log",
    )
    try:
        with server, ModelControl(server.grpc_url, server.credentials) as control:
            control.try_out(bundle_model(bundle.version), bundle)
    except ServingError as error:
        raise BundleError(
            f"bundle {bundle.version} does not load", found=error.found, next_step=error.next_step
        ) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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


def write_repository(deployment: Deployment, pointer: Pointer) -> None:
    """Make the repository anew from the pointer."""
    remove_models(deployment.repository, set())
    for name, version in pointer.serving.items():
        bundle = _sound(deployment, version)
        write_models(deployment.repository, bundle)
        write_front(deployment.repository, bundle, name)
    deployment.prune(pointer)
