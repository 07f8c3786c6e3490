"""Pages from the real server: rows, rules, scrolling, records; and where data declares nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from triton_repo.client import Client
from triton_repo.local import LocalPage, as_tensors
from triton_repo.page_answer import Page, PageStatus
from triton_repo.page_tensors import STEPS
from workflow.errors import ServingError
from workflow.run import Run


@pytest.fixture(scope="module")
def tables(sim_run: Any) -> dict[str, dict[int, dict[str, Any]]]:
    """Validated rows of users and videos by raw id."""
    data, found = Run(sim_run.folder).data, {}
    for name, key in (("users", "user_id"), ("videos", "video_id")):
        rows = pq.read_table(data / f"{name}.parquet").to_pylist()
        found[name] = {row[key]: row for row in rows}
    return found


@pytest.fixture(scope="module")
def moment(sim_run: Any) -> int:
    spec = json.loads((Run(sim_run.folder).features / "spec.json").read_text())
    return int(spec["last_event"]) + 60


def watched_by(sim_run: Any, user: int) -> set[int]:
    features = Run(sim_run.folder).features
    ids = np.load(features / "users" / "user_id.npy")
    row = int(np.searchsorted(ids, user)) + 1
    start = np.load(features / "history" / "start.npy")
    rows = np.load(features / "history" / "video_row.npy")[start[row] : start[row + 1]]
    return set(np.load(features / "videos" / "video_id.npy")[rows - 1].tolist())


RATINGS = ("all", "13+", "18+")


def assert_rules(page: Page, videos: dict[int, Any], country: str, limit: str, at: int) -> None:
    ids = page.video_ids
    assert len(set(ids)) == len(ids)
    for one in ids:
        video = videos[int(one)]
        assert country in video["countries"] and not video["withdrawn"]
        assert RATINGS.index(video["maturity"]) <= RATINGS.index(limit)
        assert video["publish_time"] <= at < (video["available_until"] or np.inf)


def test_pages_keep_the_rules(
    sim_client: Client, sim_run: Any, tables: dict[str, Any], moment: int
) -> None:
    users = list(tables["users"].values())[::150]
    assert len(users) >= 10
    for device, size in (("tv", (40, 20)), ("phone", (15, 10)), ("tablet", (20, 12))):
        for user in users:
            page = sim_client.page(user["user_id"], time=moment, context={"device": device})
            assert_rules(page, tables["videos"], user["country"], user["maturity_limit"], moment)
            assert len(page.rows) <= size[0]
            assert max(len(row.videos) for row in page.rows) <= size[1]
            begun = [row for row in page.rows if row.kind == "continue"]
            again = {video.video_id for row in begun for video in row.videos}
            seen = watched_by(sim_run, user["user_id"])
            assert again <= seen and not seen & (set(page.video_ids) - again)


def test_rows_say_why_they_are_there(
    sim_client: Client, tables: dict[str, Any], moment: int
) -> None:
    kinds = set()
    for user in list(tables["users"].values())[::100]:
        for row in sim_client.page(user["user_id"], time=moment, context={"device": "tv"}).rows:
            kinds.add(row.kind)
            sources = [set(video.sources) for video in row.videos]
            genres = [tables["videos"][int(v.video_id)]["genres"] for v in row.videos]
            if row.kind == "genre":
                assert all(row.title.lower() in one for one in genres)
            if row.kind == "trending":
                assert row.title in (f"Trending now in {user['country']}", "Trending now")
                assert all("trending" in one for one in sources)
            if row.kind == "because":
                assert row.title.startswith("Because you watched ")
                assert all("neighbour" in one for one in sources)
            if row.kind == "new":
                new = [tables["videos"][int(v.video_id)]["publish_time"] for v in row.videos]
                assert min(new) > moment - 30 * 86_400
    assert {"continue", "top", "because", "trending", "new", "genre"} <= kinds


def test_the_server_answers_as_the_stages_do_here(
    sim_client: Client, sim_run: Any, tables: dict[str, Any], moment: int
) -> None:
    local = LocalPage(Run(sim_run.folder))
    for user in list(tables["users"])[::400]:
        context: dict[str, int | bytes] = {"device": b"tv", "country": b"DE"}
        here = local.page(as_tensors(user, time=moment, context=context))
        there = sim_client.page(user, time=moment, context={"device": "tv", "country": "DE"})
        assert there == here and there.rows


def test_many_users_at_once_are_answered_as_each_alone(
    sim_run: Any, tables: dict[str, Any], moment: int
) -> None:
    local = LocalPage(Run(sim_run.folder))
    asked = [as_tensors(user, time=moment) for user in list(tables["users"])[:30]]
    for number, one in enumerate(asked):
        one["want_record"] = np.array([[number % 3]], np.int32)
    sizes, run_steps = [], local.stage.run_steps

    def counting(inputs: dict[str, Any]) -> Any:
        sizes.append(len(inputs["user_id"]))
        return run_steps(inputs)

    local.stage.run_steps = counting
    joined = local.infer({name: np.concatenate([one[name] for one in asked]) for name in asked[0]})
    assert sum(sizes) == len(asked) and 1 < max(sizes) <= 3_200 / local.stage.candidates
    equal = 0
    for number, one in enumerate(asked):
        alone = local.infer(one)
        count = int(alone["row_size"].sum())
        names = ("video_id", "source")
        equal += all((joined[name][number, :count] == alone[name][0]).all() for name in names)
        records = (joined["record"][number, 0], alone["record"][0, 0])
        fields = [set(json.loads(record or b"{}")) for record in records]
        assert fields[0] == fields[1] and ("explained" in fields[0]) == (number % 3 == 2)
    assert equal >= 28  # sums in batches of other sizes are rounded otherwise


def test_scrolling_never_repeats(sim_client: Client, tables: dict[str, Any], moment: int) -> None:
    user = next(iter(tables["users"].values()))
    context: dict[str, Any] = {"device": "phone"}
    page = sim_client.page(user["user_id"], time=moment, context=context)
    seen = list(page.video_ids)
    for _ in range(60):
        if not page.cursor:
            break
        page = sim_client.page(user["user_id"], time=moment, context=context, cursor=page.cursor)
        seen += page.video_ids
        assert not {"continue", "top", "because"} & {row.kind for row in page.rows}
    assert len(seen) > 160 and len(set(seen)) == len(seen)
    assert page.status in (PageStatus.fewer_rows, PageStatus.no_videos) and page.cursor == ""


def test_a_watch_changes_the_next_page(
    sim_client: Client, tables: dict[str, Any], moment: int
) -> None:
    user = list(tables["users"])[7]
    before = sim_client.page(user, time=moment, context={"device": "web"})
    same = sim_client.page(user, time=moment, context={"device": "web"})
    assert same == before
    video = next(row for row in before.rows if row.kind == "top").videos[0].video_id
    sim_client.watched(user, video, time=moment + 1)
    after = sim_client.page(user, time=moment + 2, context={"device": "web"})
    assert video not in after.video_ids
    title = tables["videos"][int(video)]["title"]
    titles = [row.title for row in after.rows if row.kind != "continue"]
    assert titles[:2] == [f"Because you watched {title}", "Top picks"]


def test_what_was_begun_online_goes_on(
    sim_client: Client, tables: dict[str, Any], moment: int
) -> None:
    """A watch that is told with its seconds waits in Continue watching until it is finished."""
    user = list(tables["users"])[11]
    before = sim_client.page(user, time=moment, context={"device": "tv"})
    ids = [video for video in before.video_ids if tables["videos"][int(video)]["duration_s"] > 600]
    whole_s = float(tables["videos"][int(ids[0])]["duration_s"])
    sim_client.watched(user, ids[0], time=moment + 1, watch_s=whole_s / 2)
    after = sim_client.page(user, time=moment + 2, context={"device": "tv"})
    assert after.rows[0].kind == "continue" and after.rows[0].videos[0].video_id == ids[0]
    sim_client.watched(user, ids[0], time=moment + 3, watch_s=whole_s)
    assert ids[0] not in sim_client.page(user, time=moment + 4, context={"device": "tv"}).video_ids


def test_nobody_knows_this_user(sim_client: Client, tables: dict[str, Any], moment: int) -> None:
    """A full page of the mildest rating, of what may be shown in every country."""
    page = sim_client.page(1, time=moment, context={"device": "phone"})
    assert page.status is PageStatus.unknown_user and len(page.rows) == 15
    for country in ("US", "JP"):
        assert_rules(page, tables["videos"], country, "all", moment)
    known = sim_client.page(
        1, time=moment, context={"device": "phone", "country": "JP", "maturity": "13+"}
    )
    assert_rules(known, tables["videos"], "JP", "13+", moment)
    assert any(tables["videos"][int(v)]["maturity"] == "13+" for v in known.video_ids)
    assert "Popular in JP" in " ".join(row.title for row in known.rows) or len(known.rows) == 15


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"cursor": "nonsense"}, "cursor is not one of this server"),
        ({"context": {"planet": "Mars"}}, "no context column planet"),
    ],
)
def test_what_is_refused(sim_client: Client, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ServingError, match=message):
        sim_client.page(1, **asked)


def test_a_page_is_made_again_from_its_record(
    marquee: Any, sim_run: Any, sim_server: dict[str, Any], tables: dict[str, Any], tmp_path: Path
) -> None:
    user, record = list(tables["users"])[3], tmp_path / "record.json"
    words = ["--user", user, "--run", sim_run.folder, "--device", "tv", "--record", record]
    shown = marquee.json("page", *words)
    again = marquee.json("replay", record, "--run", sim_run.folder)
    assert again["identical"] and again["different"] == []
    assert again["rows"] == shown["rows"] and again["version"] == shown["version"]
    logged = json.loads(record.read_text())
    logged["page"]["propensities"][0] = 0.5
    record.write_text(json.dumps(logged))
    assert "is another one" in marquee("replay", record, "--run", sim_run.folder).error


def test_what_the_ranker_says_of_each_video(
    marquee: Any, sim_client: Client, sim_run: Any, tables: dict[str, Any], moment: int,
    tmp_path: Path,
) -> None:  # fmt: skip
    """In the record, for who asks; the page and its replay stay as they are."""
    user, context = list(tables["users"])[12], {"device": "web"}
    plain = sim_client.page(user, time=moment, context=dict(context))
    page = sim_client.page(user, time=moment, context=dict(context), explain=True, timing=True)
    assert plain.stage_us is None and plain == page._replace(record=b"", stage_us=None)
    assert page.stage_us is not None and set(page.stage_us) == set(STEPS)
    assert all(us > 0 for us in page.stage_us.values())
    record = json.loads(page.record)
    told = record["explained"]
    assert set(told) == {"retrieved_row", "p_positive", "p_watched", "watch_s"}
    durations = [tables["videos"][int(one)]["duration_s"] for one in page.video_ids]
    for name in ("p_positive", "p_watched"):
        assert len(told[name]) == len(durations) and 0 < min(told[name]) <= max(told[name]) < 1
    assert all(0 <= s <= d * 1.001 for s, d in zip(told["watch_s"], durations, strict=True))
    assert len(told["retrieved_row"]) == 750
    path = tmp_path / "explained.json"
    path.write_bytes(page.record)
    assert marquee.json("replay", path, "--run", sim_run.folder)["identical"]


def test_the_page_in_the_terminal(marquee: Any, sim_run: Any, tables: dict[str, Any]) -> None:
    user = list(tables["users"])[3]
    words = ["--user", user, "--run", sim_run.folder, "--in-process", "--device", "phone"]
    result = marquee("page", *words)
    assert result.status == 0, result.err
    assert "Top picks (10)" in result.out and "New releases" in result.out
    assert "no 'planet'" in marquee("page", *words, "--planet", "Mars").error


def test_data_that_declares_nothing_for_the_page(
    clip_server: dict[str, Any], clip_run: Any
) -> None:
    """String ids, no users, no countries, ratings or watch times: still a page."""
    with Client(clip_server["grpc_url"]) as client:
        page = client.page("vü-17", context={"app": "télé", "device": "phone"})
        assert page.status is PageStatus.ok
        assert {row.kind for row in page.rows} <= {
            "top",
            "because",
            "trending",
            "new",
            "more",
            "popular",
        }
        assert len(set(page.video_ids)) == len(page.video_ids) >= 100
        assert all(isinstance(one, str) and one.startswith("clip ") for one in page.video_ids)
        more = client.page("vü-17", context={"device": "phone"}, cursor=page.cursor)
        assert not set(more.video_ids) & set(page.video_ids)
