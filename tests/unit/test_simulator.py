"""The simulated service: its files, its rules and its logging policy, checked by counting."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.simulated import CONFIG, Dataset
from workflow.config import CONFIG_FOLDER, SimConfig, load_config
from workflow.data import simulator
from workflow.data.simulator import simulate
from workflow.data.simulator_policy import PAGE_SIZE, Policy
from workflow.data.simulator_random import generator, rank_in_group
from workflow.data.simulator_sessions import make_pages, plan_sessions
from workflow.data.simulator_world import DAY, LOG_END
from workflow.schema import load_contract


@pytest.fixture(scope="module")
def data(simulated: Dataset) -> Dataset:
    return simulated


@pytest.fixture(scope="module")
def parts(data: Dataset) -> tuple[Any, Policy, Any]:
    world = data.truth.world
    return world, Policy(world), simulator.event_counts(world)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# --- the files -------------------------------------------------------------------------------
def test_files_have_the_contracts_columns_and_nothing_else(data: Dataset) -> None:
    contract = load_contract(CONFIG_FOLDER / "sim.contract.toml")
    arrow = {"int64": pa.int64(), "float32": pa.float32(), "string": pa.string()}
    for table in contract.tables().values():
        schema = pq.read_table(data.folder / table.path).schema
        assert schema.names == [column.name for column in table.columns]
        for column in table.columns:
            kind = schema.field(column.name).type
            assert (kind.value_type if pa.types.is_list(kind) else kind) == arrow[column.dtype]


def test_sizes_are_exactly_those_asked_for(tmp_path: Path) -> None:
    told = []
    config = SimConfig(num_users=2_000, num_videos=500, num_events=12_345, num_days=7)
    summary = simulate(config, tmp_path, lambda done, total, note: told.append((done, total)))
    assert (summary["users"], summary["videos"], summary["events"]) == (2_000, 500, 12_345)
    assert told[-1] == (12_345, 12_345)
    rows = [pq.read_metadata(tmp_path / f).num_rows for f in ("users.parquet", "videos.parquet")]
    assert rows == [2_000, 500]
    assert pq.read_table(tmp_path / "events").num_rows == 12_345


def test_builtin_settings_load() -> None:
    assert load_config("sim").sim == SimConfig()


def test_events_are_ordered_by_user_and_time(data: Dataset) -> None:
    same_user = np.diff(data.user) == 0
    assert np.all(np.diff(data.user) >= 0)
    assert np.all(np.diff(data.events["timestamp"])[same_user] >= 0)


def test_ids_are_ascending_and_no_row_numbers(data: Dataset) -> None:
    for ids in (data.truth.world.users.user_id, data.truth.world.videos.video_id):
        assert np.all(np.diff(ids) > 0)
        assert ids[0] > len(ids)


def test_titles_are_unique_and_genres_are_one_to_three(data: Dataset) -> None:
    videos = pq.read_table(data.folder / "videos.parquet").to_pydict()
    assert len(set(videos["title"])) == CONFIG.num_videos
    assert {len(genres) for genres in videos["genres"]} == {1, 2, 3}
    assert all(len(set(genres)) == len(genres) for genres in videos["genres"])


# --- determinism -----------------------------------------------------------------------------
def test_same_config_gives_the_same_bytes(data: Dataset, tmp_path: Path) -> None:
    simulate(CONFIG, tmp_path)
    assert digests(tmp_path) == digests(data.folder)


def test_seed_changes_everything(tmp_path: Path, data: Dataset) -> None:
    simulate(CONFIG.model_copy(update={"seed": 4}), tmp_path)
    other = digests(tmp_path)
    assert all(other[name] != digest for name, digest in digests(data.folder).items())


def test_rows_do_not_depend_on_the_size_of_files(data: Dataset, tmp_path: Path) -> None:
    summary = simulate(CONFIG, tmp_path, events_per_file=10_000)
    assert summary["files"] > 2
    for folder in ("events", "truth/events"):
        assert len(list((tmp_path / folder).iterdir())) == summary["files"]
        assert pq.read_table(tmp_path / folder).equals(pq.read_table(data.folder / folder))


def test_a_block_is_the_same_whoever_makes_it_and_when(
    data: Dataset, parts: tuple[Any, Policy, Any]
) -> None:
    world, policy, counts = parts
    first, last = list(simulator.blocks(counts))[2]
    visible, _ = simulator.simulate_block(world, policy, counts, 2, first, last)
    begin = counts[:first].sum()
    whole = pq.read_table(data.folder / "events").slice(begin, visible.num_rows)
    assert visible.combine_chunks().equals(whole.combine_chunks())


# --- rules of the service ----------------------------------------------------------------------
def test_only_eligible_videos_are_shown(data: Dataset) -> None:
    time = data.events["timestamp"]
    assert data.truth.eligible(data.user, data.video, time).all()


def test_events_lie_within_the_log_and_after_signup(data: Dataset) -> None:
    time = data.events["timestamp"]
    assert time.min() >= LOG_END - CONFIG.num_days * DAY
    assert time.max() < LOG_END
    assert np.all(time >= data.truth.world.users.signup_time[data.user])


def test_a_page_shows_no_video_twice(data: Dataset) -> None:
    page = data.events["session_id"] * 10 + data.hidden["seen_in_session"] // PAGE_SIZE
    seen = rank_in_group(np.unique(page, return_inverse=True)[1] * CONFIG.num_videos + data.video)
    assert seen.max() == 0
    assert np.array_equal(data.events["position"], data.hidden["seen_in_session"] % PAGE_SIZE)


def test_watch_seconds_belong_to_clicks_and_end_with_the_video(data: Dataset) -> None:
    watched = data.events["watch_s"]
    duration = data.truth.world.videos.duration_s[data.video]
    assert np.all(watched[~data.clicked] == 0)
    assert np.all(watched[data.clicked] > 0)
    assert np.all(watched <= duration)


def test_repeats_and_watched_before_are_what_the_log_says(data: Dataset) -> None:
    pair = data.user * CONFIG.num_videos + data.video
    assert np.array_equal(data.hidden["repeats"], rank_in_group(pair))
    watched: set[int] = set()
    for key, clicked, before in zip(
        pair.tolist(), data.clicked, data.hidden["watched_before"], strict=True
    ):
        assert before == (key in watched)
        if clicked:
            watched.add(key)


# --- the logging policy ------------------------------------------------------------------------
@pytest.fixture(scope="module")
def filled(parts: tuple[Any, Policy, Any]) -> tuple[Any, Any, Any, Any]:
    """Pages of some users, filled: lengths, the policy at them, videos shown, propensities."""
    world, policy, counts = parts
    rng = generator(99)
    plan = plan_sessions(world, rng, 0, counts[:300])
    pages = make_pages(world, policy, rng, plan, 0, 300)
    return plan.page_length, pages, *pages.fill(rng, plan.page_length)


def all_probabilities(pages: Any, rows: Any) -> Any:
    shape = (len(rows), CONFIG.num_videos)
    page, video = (np.broadcast_to(a, shape).ravel() for a in
                   (np.asarray(rows)[:, None], np.arange(CONFIG.num_videos)))  # fmt: skip
    return pages.probability(page, video).reshape(shape)


def test_probabilities_of_a_page_sum_to_one_over_eligible_videos(filled: Any) -> None:
    _, pages, _, _ = filled
    chance = all_probabilities(pages, np.arange(400))
    np.testing.assert_allclose(chance.sum(axis=1), 1, atol=1e-9)
    assert np.array_equal((chance > 0).sum(axis=1), pages.num_eligible[:400])


@pytest.mark.parametrize("place", [0, 4])
def test_videos_are_shown_as_often_as_the_propensity_says(filled: Any, place: int) -> None:
    lengths, pages, shown, propensity = filled
    rows = np.flatnonzero(lengths > place)
    chance = all_probabilities(pages, rows)
    np.put_along_axis(chance, shown[rows, :place].astype(np.int64), 0, axis=1)
    chance /= chance.sum(axis=1, keepdims=True)  # given the places above
    own = chance[np.arange(len(rows)), shown[rows, place]]
    np.testing.assert_allclose(own, propensity[rows, place], rtol=1e-8)
    count = np.bincount(shown[rows, place], minlength=CONFIG.num_videos)
    expected, variance = chance.sum(axis=0), (chance * (1 - chance)).sum(axis=0)
    score = (count - expected) / np.sqrt(np.maximum(variance, 1e-9))
    assert abs(score[variance > 20]).max() < 4.5  # enough to be nearly normal
    assert 0.85 < np.mean(score[variance > 1] ** 2) < 1.15
    assert count[expected == 0].sum() == 0


def test_inverse_propensity_counts_the_eligible_videos(filled: Any) -> None:
    """E[1 / propensity] is the number of videos that could have been there."""
    lengths, pages, shown, propensity = filled
    row, place = np.nonzero(shown >= 0)
    assert len(row) == lengths.sum()
    gap = 1 / propensity[row, place] - (pages.num_eligible[row] - place)
    assert abs(gap.mean()) < 4 * gap.std() / np.sqrt(len(gap))


def test_logged_propensities_are_probabilities(data: Dataset) -> None:
    assert data.events["propensity"].min() > 0
    assert data.events["propensity"].max() <= 1
