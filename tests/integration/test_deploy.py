"""Deployments on the real Triton: swaps under load, names, rollback, the command."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.deployments import MOMENT, OUTPUT, USERS, Bundles, Load, control_of, served
from triton_repo.bundle import read_bundle
from triton_repo.client import Client
from triton_repo.deploy import deploy, rollback
from triton_repo.deployment import Deployment
from triton_repo.page_tensors import FUSED_PAGE, PAGE, PAGE_STAGE
from triton_repo.tensors import ENSEMBLE, EVENTS, FUSED, STAGES
from workflow.errors import ServingError


def stubs_are_of(pid: int, versions: set[int]) -> bool:
    lines = []
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has just ended
            lines.append(" ".join(process.cmdline()))
    stubs = [line.split("/model.py")[0] for line in lines if "/model.py" in line]
    return {int(stub.rsplit("/", 1)[1]) for stub in stubs} == versions


# --- the proof itself ----------------------------------------------------------------------------
def test_every_mixture_of_two_bundles_shows(bundles: Bundles) -> None:
    """Otherwise the tests below would prove nothing."""
    pure = [scores for pages in bundles.expected.values() for _, scores in pages]
    assert len({scores.tobytes() for scores in pure}) == 3 * USERS
    mixed = bundles.local.mixed()
    assert len(mixed) == 3**3 - 3
    for way in mixed:
        for row, (ids, scores) in enumerate(bundles.pages(way)):
            for version in bundles.runs:
                want_ids, want_scores = bundles.expected[version][row]
                gap = np.abs(scores - want_scores).max()
                assert ids != want_ids or gap > 1e-3, (way, version, row)


# --- swaps ---------------------------------------------------------------------------------------
def test_swaps_under_load(marquee: Any, bundles: Bundles, place: Deployment) -> None:
    """No request fails, no answer mixes two bundles, each says which bundle it is of."""
    with served(marquee, place) as (_, endpoint), Load(bundles, endpoint["grpc_url"], 8) as load:
        load.wait_for(1)
        for version in (2, 3):
            result = deploy(place, bundles.runs[version], None, OUTPUT)
            assert (result["live"], result["previous"]) == (version, version - 1)
            load.wait_for(version)
        for version in (2, 3):
            assert rollback(place, None, OUTPUT)["live"] == version
            load.wait_for(version)
        assert deploy(place, bundles.runs[1], None, OUTPUT)["removed"] == [2]
        load.wait_for(1)
        assert rollback(place, None, OUTPUT)["live"] == 3
        load.wait_for(3)
        with control_of(place) as control:
            models = (ENSEMBLE, FUSED, *STAGES, EVENTS, PAGE, FUSED_PAGE, PAGE_STAGE)
            own = {f"{model}_3" for model in models}
            assert control.loaded() == dict.fromkeys(own | {"marquee", "events", "page"}, 3)
        deadline = time.monotonic() + 30
        while not stubs_are_of(endpoint["pid"], {3}):  # the old stages ended
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert load.failed == [] and load.mixed == []
    assert set(load.seen) == {1, 2, 3}
    assert place.versions() == [1, 3]


def test_two_bundles_side_by_side(
    marquee: Any, bundles: Bundles, sim_run: Any, place: Deployment
) -> None:
    with served(marquee, place) as (_, endpoint):
        url = endpoint["grpc_url"]
        words = ["deploy", bundles.runs[2].root, "--deployment", place.root, "--as", "candidate"]
        assert marquee.json(*words)["named"] == {"candidate": 2}
        with Client(url) as live, Client(url, name="candidate") as candidate:
            for row in range(USERS):
                for client, version in ((live, 1), (candidate, 2)):
                    answer = bundles.ask(client, row)
                    assert answer.version == version and bundles.is_of(version, row, answer)
            check_comparison(marquee, sim_run.folder, place)
            words = ["rollback", "--deployment", place.root, "--as", "candidate"]
            assert marquee.json(*words)["named"] == {}
            with pytest.raises(ServingError, match="does not serve the model marquee_candidate"):
                bundles.ask(candidate, 0)
            assert bundles.is_of(1, 0, bundles.ask(live, 0))
    assert place.versions() == [1]


def test_what_users_watch_outlives_the_bundle(
    marquee: Any, bundles: Bundles, place: Deployment
) -> None:
    user = bundles.users[0]
    with served(marquee, place) as (_, endpoint), Client(endpoint["grpc_url"]) as client:
        best = int(client.recommend(user, time=MOMENT + 9).video_ids[0])
        client.watched(user, best, time=MOMENT)
        for version in (2, 3):
            deploy(place, bundles.runs[version], None, OUTPUT)
            assert client.user_events(user) == (1, MOMENT)
            answer = client.recommend(user, time=MOMENT + 9)
            assert answer.version == version and best not in answer.video_ids
    assert place.state_file.exists()


def check_comparison(marquee: Any, run: Path, place: Deployment) -> None:
    """Scores of bundle 2 are about 1 above those of bundle 1, and another order."""
    words = ["compare-bundles", run, "--deployment", place.root, "--requests", 60]
    result = marquee.json(*words, "--top-k", 10)
    assert result["versions"] == {"live": 1, "candidate": 2}
    assert (result["requests"], result["top_k"], sum(result["status"].values())) == (60, 10, 60)
    assert 0 < result["overlap"]["10"] < 1 and result["same_page"] < 1
    assert 0.5 < result["score_difference"]["mean"] < 2
    assert all(0 < ms["p50"] <= ms["p99"] for ms in result["latency_ms"].values())
    shown = marquee(*words).out
    assert "rank correlation" in shown and "overlap@20" in shown
    assert "no bundle is deployed as x" in marquee(*words, "--with", "x", "--json").error


# --- the command ---------------------------------------------------------------------------------
def test_deploy_serve_and_roll_back_by_command(
    marquee: Any, bundles: Bundles, sim_run: Any, tmp_path: Path
) -> None:
    place = Deployment(tmp_path / "deployment")
    where = ("--deployment", place.root)
    assert "nothing is deployed" in marquee("serve", *where, "--json").error
    first = marquee.json("deploy", sim_run.folder, *where)
    version = read_bundle(sim_run.folder / "model_repository").version
    assert first["live"] == first["version"] == version and first["server"] is None
    assert marquee.json("deploy", bundles.runs[2].root, *where)["previous"] == version
    with served(marquee, place) as (_, endpoint), Client(endpoint["grpc_url"]) as client:
        assert bundles.ask(client, 0).version == 2
        assert "is served already" in marquee("serve", *where, "--json").error
        back = marquee("rollback", *where)
        assert f"live {version}" in back.out and endpoint["grpc_url"] in back.out
        assert bundles.ask(client, 0).version == version
        shutil.rmtree(bundles.runs[2].repository / "ranker" / "2" / "__pycache__", True)
    error = marquee("serve", *where, "--run", sim_run.folder, "--json").error
    assert "both given" in error
