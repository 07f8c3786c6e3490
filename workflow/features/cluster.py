"""NVTabular on a Dask cluster: the workers fit the workflows and encode the samples.

The cluster is the user's own: `dask scheduler` and `dask worker`, or dask-cuda's workers on GPUs.
Workers have the same packages and see the run folder under the same path.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from workflow.errors import ConfigError

if TYPE_CHECKING:
    from distributed import Client

CONNECT_TIMEOUT_S = 10


@contextmanager
def dask_cluster(address: str | None) -> Iterator[None]:
    """Within the block, features are made on the cluster whose scheduler is at `address`.

    Args:
        address: such as tcp://10.0.0.5:8786; None for this process alone.
    Raises:
        ConfigError: there is no scheduler, or it has no worker.
    """
    if address is None:
        yield
        return
    from distributed import Client

    try:
        client = Client(address, timeout=CONNECT_TIMEOUT_S)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"no Dask scheduler at {address}",
            expected="an address such as tcp://127.0.0.1:8786",
            found=" ".join(str(error).split())[:200],
            next_step="start one with dask scheduler, and workers with dask worker ADDRESS",
        ) from None
    with client:
        if not client.scheduler_info()["workers"]:
            raise ConfigError(
                f"the Dask scheduler at {address} has no worker",
                next_step=f"start one with dask worker {address}",
            )
        client.run_on_scheduler(prepare_process)
        client.register_worker_callbacks(prepare_process)  # also of workers that come later
        yield


def prepare_process() -> None:
    """The settings of workflow/environment.py, where Dask has read its own before."""
    import workflow.environment  # noqa: F401

    import dask

    dask.config.set({"dataframe.query-planning": False, "dataframe.convert-string": False})


def current_client() -> Client | None:
    """The cluster of the enclosing `dask_cluster`; None without one."""
    from merlin.core.utils import global_dask_client

    return global_dask_client()


def require_shared(folder: Path) -> None:
    """Check that all workers see what is written here.

    Raises:
        ConfigError: some do not.
    """
    client = current_client()
    if client is None:
        return
    blind = [worker for worker, sees in client.run(folder.exists).items() if not sees]
    if blind:
        raise ConfigError(
            f"{len(blind)} Dask workers do not see {folder}",
            expected="a run folder on a disk that all workers mount under the same path",
            found=f"not seen by {blind[0]}",
            next_step="choose another folder with --run",
        )
