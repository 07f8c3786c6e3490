"""The simulated service: its rules, its probabilities and its truth, checked by counting."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import rankdata

from workflow.config import CONFIG_FOLDER, SimConfig, load_config
from workflow.data import simulator
from workflow.data.simulator import Context, Truth, simulate
from workflow.data.simulator_policy import PAGE_SIZE, Policy
from workflow.data.simulator_random import generator, rank_in_group, row_dot
from workflow.data.simulator_response import log_watch, mean_watch_s, taste_at
from workflow.data.simulator_sessions import make_pages, plan_sessions
from workflow.data.simulator_world import DAY, DEVICES, KINDS, LOG_END
from workflow.errors import DataError, MissingArtifactError
from workflow.schema import load_contract

CONFIG = SimConfig(num_users=2_000, num_videos=1_500, num_events=200_000, num_days=60, seed=3)


class Dataset:
    """A simulated folder read back: visible events, hidden events, truth, and row numbers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.truth = Truth.load(folder)
        self.events = _columns(folder / "events")
        self.hidden = _columns(folder / "truth" / "events")
        self.user = self.truth.user_rows(self.events["user_id"])
        self.video = self.truth.video_rows(self.events["video_id"])
        self.clicked = self.events["clicked"].astype(bool)

    @property
    def context(self) -> Context:
        device = np.searchsorted(np.sort(DEVICES), self.events["device"].astype(str))
        return Context(
            device=np.argsort(DEVICES)[device],
            position=self.events["position"],
            **{name: self.hidden[name] for name in
               ("intent", "mood", "seen_in_session", "repeats", "watched_before")},
        )  # fmt: skip


def _columns(path: Path) -> dict[str, Any]:
    table = pq.read_table(path)
    return {name: table[name].to_numpy() for name in table.column_names}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("sim")
    simulate(CONFIG, folder)
    return Dataset(folder)


@pytest.fixture(scope="module")
def parts(data: Dataset) -> tuple[Any, Policy, Any]:
    world = data.truth.world
    return world, Policy(world), simulator.event_counts(world)


def auc(label: Any, score: Any) -> float:
    positives = label.sum()
    below = rankdata(score)[label].sum() - positives * (positives + 1) / 2
    return float(below / (positives * (len(label) - positives)))


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


# --- what users do -----------------------------------------------------------------------------
def test_truth_gives_the_probabilities_of_the_log(data: Dataset) -> None:
    asked = (data.user, data.video, data.events["timestamp"], data.context)
    np.testing.assert_allclose(
        data.truth.click_probability(*asked), data.hidden["click_probability"], rtol=2e-5
    )
    np.testing.assert_allclose(
        data.truth.expected_watch_s(*asked), data.hidden["expected_watch_s"], rtol=2e-5
    )


def test_clicks_happen_as_often_as_their_probability_says(data: Dataset) -> None:
    chance = data.hidden["click_probability"].astype(np.float64)
    group = np.digitize(chance, np.quantile(chance, np.linspace(0, 1, 21)[1:-1]))
    gap = np.bincount(group, data.clicked - chance)
    spread = np.sqrt(np.bincount(group, chance * (1 - chance)))
    assert abs(gap / spread).max() < 4.5


def test_expected_watch_time_is_the_mean(data: Dataset) -> None:
    watched = data.events["watch_s"][data.clicked].astype(np.float64)
    gap = watched - data.hidden["expected_watch_s"][data.clicked]
    assert abs(gap.mean()) < 4 * gap.std() / np.sqrt(len(gap))


def test_mean_watch_formula_agrees_with_drawing(data: Dataset) -> None:
    world, one = data.truth.world, np.zeros(1, dtype=np.int64)
    mean = log_watch(world, one, one + 5, one + LOG_END, Context())
    duration = world.videos.duration_s[5]
    noise = generator(1).standard_normal(400_000)
    drawn = np.minimum(np.exp(mean + simulator.WATCH_SPREAD * noise), duration)
    assert mean_watch_s(mean, duration)[0] == pytest.approx(drawn.mean(), rel=0.01)


def test_base_rates_are_those_of_a_video_service(data: Dataset) -> None:
    assert 0.15 < data.clicked.mean() < 0.25
    clicks = np.sort(np.bincount(data.video, data.clicked, minlength=CONFIG.num_videos))[::-1]
    assert 0.58 < clicks[: CONFIG.num_videos // 10].sum() / clicks.sum() < 0.78
    per_user = np.bincount(data.user, minlength=CONFIG.num_users)
    assert np.quantile(per_user, 0.95) > 4 * np.median(per_user)


def test_longer_videos_are_watched_longer_but_less_completely(data: Dataset) -> None:
    kind = data.truth.world.videos.kind[data.video]
    duration = data.truth.world.videos.duration_s[data.video]
    of_kind = [data.clicked & (kind == number) for number in range(len(KINDS))]
    seconds = [data.events["watch_s"][rows].mean() for rows in of_kind]
    part = [(data.events["watch_s"] / duration)[rows].mean() for rows in of_kind]
    assert seconds[0] < seconds[1] < seconds[2]
    assert part[0] > part[1] > part[2]


def test_taste_matters_far_more_than_popularity(data: Dataset) -> None:
    world = data.truth.world
    country = world.users.country[data.user]
    popularity = auc(data.clicked, world.videos.popularity[country, data.video])
    oracle = auc(data.clicked, data.hidden["click_probability"])
    neutral = data.truth.click_probability(data.user, data.video, data.events["timestamp"])
    assert 0.78 < oracle < 0.85
    assert popularity < 0.66
    assert auc(data.clicked, neutral) > popularity + 0.1


def test_tastes_drift(data: Dataset) -> None:
    world, everybody = data.truth.world, np.arange(CONFIG.num_users)
    start, end = (taste_at(world, everybody, everybody * 0 + t) for t in (world.start, LOG_END))
    np.testing.assert_allclose(row_dot(end, end), 1, atol=1e-4)
    assert 0.5 < row_dot(start, end).mean() < 0.97
    late = data.events["timestamp"] > LOG_END - 6 * DAY
    vector, user = world.videos.vector[data.video[late]], data.user[late]
    old, new = (auc(data.clicked[late], row_dot(t[user], vector)) for t in (start, end))
    assert new > old + 0.01


def test_fatigue_and_position_lower_the_chance(data: Dataset) -> None:
    def ask(**changed: Any) -> Any:
        return data.truth.click_probability(3, 5, LOG_END, Context(**changed))

    neutral = ask()
    for worse in ({"position": 5}, {"seen_in_session": 12}, {"repeats": 2}):
        assert ask(**worse) < neutral
    assert ask(repeats=1, watched_before=True) < ask(repeats=1)


# --- Truth as others use it ----------------------------------------------------------------------
def test_truth_broadcasts_users_against_videos(data: Dataset) -> None:
    users, videos = np.arange(4)[:, None], np.arange(700)
    table = data.truth.click_probability(users, videos, LOG_END, Context(device=1))
    assert table.shape == (4, 700)
    assert table[2, 9] == data.truth.click_probability(2, 9, LOG_END, Context(device=1))
    assert data.truth.eligible(users, videos, LOG_END).shape == (4, 700)
    assert data.truth.expected_watch_s(users, videos, LOG_END).min() > 0


def test_truth_works_in_pieces(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = (np.arange(50)[:, None], np.arange(40), LOG_END)
    whole = data.truth.click_probability(*asked)
    monkeypatch.setattr(Truth, "_PAIRS_AT_ONCE", 333)
    assert np.array_equal(data.truth.click_probability(*asked), whole)


def test_unknown_id_and_missing_truth_are_named(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no simulated user 17"):
        data.truth.user_rows([17])
    with pytest.raises(DataError, match="no simulated video 99"):
        data.truth.video_rows(np.array([data.truth.world.videos.video_id[0], 99]))
    with pytest.raises(MissingArtifactError, match="no ground truth"):
        Truth.load(tmp_path)
