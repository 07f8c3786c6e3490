"""Deployments on the real Triton: kill -9 of the deploying process, or of the server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.deployments import OUTPUT, USERS, Bundles, Load, control_of, served
from triton_repo.client import Client
from triton_repo.deploy import deploy
from triton_repo.deployment import Deployment, Pointer
from workflow.errors import ServingError
from workflow.run import Run

# Where a deploying process kills itself: before this call in triton_repo.deploy or its helpers.
POINTS = {
    "try_out": "loaded in a server of its own",
    "write_front": "loaded beside the old one",
    "point": "the new one already answers, the pointer is old",
    "unload": "the pointer is new, the old one still loaded",
}
SUICIDE = """
import os, signal, sys
from triton_repo import deploy as deploying, swap
from triton_repo.control import ModelControl
from triton_repo.deployment import Deployment
from workflow.console import Output
from workflow.run import Run

def die(*_, **__):
    os.kill({victim}, signal.SIGKILL)
    {then}

point = sys.argv[3]
owners = [owner for owner in (ModelControl, Deployment, swap) if hasattr(owner, point)]
setattr(owners[0], point, die)
deploying.deploy(Deployment(sys.argv[1]), Run(sys.argv[2]), None, Output(True))
"""


def deploy_and_kill(
    place: Deployment, run: Run, point: str, victim: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Deploy in a process that kills itself, or `victim` instead, at `point`."""
    code = SUICIDE.format(
        victim=victim or "os.getpid()",
        then="raise SystemExit(7)" if victim else "",
    )
    words = [sys.executable, "-c", code, str(place.root), str(run.root), point]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("point", POINTS)
def test_kill_9_of_the_deploying_process(
    marquee: Any, bundles: Bundles, tmp_path: Path, point: str
) -> None:
    """The server answers on; a restart serves what the pointer says; the next deploy tidies up."""
    place = Deployment(tmp_path / "deployment")
    place.install(bundles.runs[3].repository)
    place.install(bundles.runs[1].repository)
    place.point(Pointer(1, 3))
    with served(marquee, place) as (_, endpoint), Load(bundles, endpoint["grpc_url"], 2) as load:
        load.wait_for(1)
        killed = deploy_and_kill(place, bundles.runs[2], point)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        expected = 2 if point == "unload" else 1
        assert place.pointer().live == expected
        load.wait_for(2 if point in ("point", "unload") else 1)
        if point in ("write_front", "point"):  # another deploy, on the server as it was left
            deploy(place, bundles.runs[3], None, OUTPUT)
            load.wait_for(3)
            with control_of(place) as control:
                assert set(control.loaded().values()) == {3}
            expected = 3
    assert load.failed == [] and load.mixed == []
    with served(marquee, place) as (_, endpoint), Client(endpoint["grpc_url"]) as client:
        assert bundles.is_of(expected, 0, bundles.ask(client, 0))
        with control_of(place) as control:
            assert set(control.loaded().values()) == {expected}
        assert set(place.versions()) == place.pointer().kept
        assert not list(place.bundles.glob(".*"))


@pytest.mark.parametrize("point", ["write_front", "unload"])
def test_kill_9_of_the_server_during_a_deploy(
    marquee: Any, bundles: Bundles, place: Deployment, point: str
) -> None:
    with served(marquee, place, killed=True) as (process, endpoint):
        done = deploy_and_kill(place, bundles.runs[2], point, victim=endpoint["pid"])
        assert done.returncode == 7, done.stderr
        assert process.wait(timeout=60) != 0  # `marquee serve` says that its server died
    expected = 2 if point == "unload" else 1
    assert place.pointer().live == expected
    with served(marquee, place) as (_, endpoint), Client(endpoint["grpc_url"]) as client:
        for row in range(USERS):
            assert bundles.is_of(expected, row, bundles.ask(client, row))
        with control_of(place) as control:
            assert set(control.loaded().values()) == {expected}


def test_a_server_that_dies_while_loading(
    marquee: Any, bundles: Bundles, place: Deployment
) -> None:
    """The deploying process says so, and the pointer stays."""
    with served(marquee, place, killed=True) as (process, endpoint), ThreadPoolExecutor(1) as pool:
        future = pool.submit(deploy, place, bundles.runs[2], None, OUTPUT)
        deadline = time.monotonic() + 60
        while not (place.repository / "marquee_2").exists():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(endpoint["pid"], signal.SIGKILL)
        with pytest.raises(ServingError, match="the Triton server at"):
            future.result(timeout=120)
        assert process.wait(timeout=60) != 0
    assert place.pointer() == Pointer(1) and place.versions() == [1]
