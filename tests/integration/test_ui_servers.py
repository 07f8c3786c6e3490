"""The web page of other data and of deployments, and what it cannot show."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Browser, expect

from tests.bundles import variant
from tests.web_page import ask, chromium, showing
from triton_repo.split import Split, SplitClient
from workflow.run import Run


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


def test_data_that_declares_nothing_for_the_page(
    marquee: Any, clip_run: Any, clip_server: dict[str, Any]
) -> None:
    """String ids, neither users nor labels nor watch times."""
    with showing(marquee, "--run", clip_run.folder) as announced:
        _, setup = ask(announced, "GET", "/api/setup")
        names = {one["name"] for one in setup["context"]}
        assert names == {"device", "app", "slot"} and setup["label"] is None
        _, found = ask(announced, "GET", "/api/users")
        user = found["users"][2]
        assert user["id"].startswith("vü-") and user["watches"] > 0 and user["country"] is None
        query = urlencode({"user": user["id"], "device": "phone", "app": "télé", "slot": 3})
        status, page = ask(announced, "GET", f"/api/page?{query}")
        shown = [video for row in page["rows"] for video in row["videos"]]
        assert status == 200 and len({one["id"] for one in shown}) == len(shown) >= 100
        assert all(one["p_positive"] is None and one["watch_s"] is None for one in shown)
        assert all(0 < one["p_watched"] < 1 for one in shown)
        query = urlencode({"id": shown[0]["id"]})
        assert ask(announced, "GET", f"/api/video?{query}")[1]["title"]
        body = {"user": user["id"], "video": shown[0]["id"], "watch_s": 5, "label": 1}
        kind = {"Content_Type": "application/json"}
        status, kept = ask(announced, "POST", "/api/watch", body, **kind)
        assert status == 200 and kept["num_events"] >= 1
        status, health = ask(announced, "GET", "/api/health")
        assert status == 200 and "no label" in health["calibration"]["missing"]


def test_a_deployment_says_what_it_serves(
    marquee: Any, sim_run: Any, serve_deployment: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "deployment"
    marquee.json("deploy", sim_run.folder, "--deployment", folder)
    assert "no server of" in marquee("ui", "--deployment", folder, "--port", 0, "--no-open").error
    with serve_deployment(folder), showing(marquee, "--deployment", folder) as announced:
        _, found = ask(announced, "GET", "/api/users")
        user = found["users"][1]["id"]
        status, page = ask(announced, "GET", f"/api/page?user={user}&device=web")
        assert status == 200 and len(page["rows"]) > 10 and page["version"] == announced["version"]
        _, health = ask(announced, "GET", "/api/health")
        assert health["split"]["live"] == announced["version"]
        assert health["split"]["seen"] == {str(announced["version"]): 1}
        assert "in the run" in health["drift"]["log"]["missing"]


def test_shares_of_a_split(
    marquee: Any, sim_run: Any, serve_deployment: Any, browser: Browser, tmp_path: Path
) -> None:
    """Two bundles, users by a split of 30%: the tab says how many each one answered."""
    folder, other = tmp_path / "deployment", Run(tmp_path / "other")
    marquee.json("deploy", sim_run.folder, "--deployment", folder)
    variant(Run(sim_run.folder).repository, other.repository, version=7)
    split, asked = Split({"wider": 0.3}, "rows"), [f"{n}" for n in range(200)]
    named = sum(split.name_of(user) == "wider" for user in asked)
    with serve_deployment(folder) as endpoint:
        marquee.json("deploy", other.root, "--deployment", folder, "--as", "wider")
        with SplitClient(endpoint["grpc_url"], split) as client:
            for user in asked:
                client.recommend(user, top_k=1)
        with showing(marquee, "--deployment", folder) as announced:
            _, health = ask(announced, "GET", "/api/health")
            live, wider = health["split"]["serving"]
            assert (live["users"], wider["users"]) == (200 - named, named) and named > 40
            assert wider["version"] == 7 and wider["share"] == round(named / 200, 4)
            page = browser.new_page()
            page.goto(announced["url"])
            page.get_by_role("tab", name="Health").click()
            heading = page.get_by_role("heading", name="A/B split", exact=True)
            row = page.locator(".card", has=heading).locator("tr", has_text="wider")
            expect(row).to_contain_text(f"{named / 2:.1f}%", timeout=30_000)
            page.close()


def test_what_cannot_be_shown(marquee: Any, sim_run: Any, tmp_path: Any) -> None:
    words = ["--no-open", "--port", 0]
    assert "were both given" in marquee("ui", "--run", "a", "--deployment", "b", *words).error
    assert "nothing is deployed" in marquee("ui", "--deployment", tmp_path, *words).error
    assert "no run" in marquee("ui", "--run", tmp_path / "none", *words).error
