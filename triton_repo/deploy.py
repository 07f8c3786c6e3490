"""Deploy, roll back, serve: what a deployment folder is for.

The pointer is the truth. `settle` makes a live server and the folder agree with it, whatever
state an earlier process was killed in; `marquee serve` starts from the pointer alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from triton_repo.access import Access
from triton_repo.bundle import Bundle, check_compatible, read_bundle, verify
from triton_repo.control import ModelControl
from triton_repo.deployment import Deployment, Pointer, check_name
from triton_repo.process import TritonServer
from triton_repo.server import LOG_NAME, foreground, refuse_second_server, running_process
from triton_repo.state import state_of
from triton_repo.swap import let_answer, load_beside, settle, try_alone, write_repository
from workflow.console import Output
from workflow.errors import ConfigError, MarqueeError, ServingError
from workflow.run import Run


# --- verbs ---------------------------------------------------------------------------------------
def deploy(deployment: Deployment, run: Run, name: str | None, output: Output) -> dict[str, Any]:
    """Serve the run's bundle: live, or under a name beside the live one.

    The bundle is tried in a server of its own first. Then a live server is swapped without a
    failed request; without one it serves from the next `marquee serve --deployment` on.

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
    access: Access | None = None,
    state: str | None = None,
) -> None:
    """Serve what the folder's pointer says until Ctrl-C or SIGTERM; `deploy` swaps it meanwhile.

    What users watch is kept in the folder, or where `state` says: it outlives the bundles.

    Raises:
        ConfigError: a run is given as well.
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
            write_repository(deployment, pointer)
            yield TritonServer(
                deployment.repository,
                grpc_port=grpc_port,
                http_port=http_port,
                metrics_port=metrics_port,
                access=access,
                state=state_of(deployment, state),
                log_file=deployment.logs / LOG_NAME,
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
        if bundle.version not in before.kept:  # those were tried before
            with output.stage("Try alone"):
                try_alone(deployment, bundle)
        if server is not None:
            with ModelControl(server.grpc_url, server.credentials) as control:
                _change_live(deployment, control, before, after, bundle, output)
        else:
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
        settle(deployment, control, before)
        with output.stage("Load"):
            load_beside(deployment, control, bundle)
        with output.stage("Swap"):
            let_answer(deployment, control, after)
            deployment.point(after)
    except BaseException:
        with suppress(MarqueeError):  # the first error is the one to tell
            settle(deployment, control, before)
        raise
    settle(deployment, control, after)
