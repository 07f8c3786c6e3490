"""Watch events on the real Triton: the next answer knows them, and they outlive every kill."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.redis_server import RedisServer
from triton_repo.client import Client, Status
from triton_repo.local import LocalPipeline, as_tensors
from triton_repo.ports import free_ports
from triton_repo.process import TritonServer
from workflow.errors import ServingError, StateUnavailableError
from workflow.features.encoded import FeatureStore
from workflow.job import Job
from workflow.run import Run

NEWCOMER = 1  # no user of the data
TOP_K = 20


@dataclass
class Served:
    """A run of a test's own, its server and a client."""

    run: Run
    server: TritonServer
    client: Client
    users: list[int]  # with a past each
    last: int  # second of the log's last event

    def page(self, user: int, **options: Any) -> Any:
        return self.client.recommend(user, top_k=TOP_K, **options)


@contextmanager
def served(folder: Path, state: str) -> Iterator[Served]:
    run = Run(folder)
    store = FeatureStore(run)
    histories = store.histories()
    some = np.flatnonzero(np.diff(histories.start)[1:] > 5)
    users = [int(store.user("user_id")[row]) for row in some[:40]]
    grpc_port, http_port, metrics_port = free_ports(3)
    server = TritonServer(
        run.repository, grpc_port=grpc_port, http_port=http_port, metrics_port=metrics_port,
        log_file=run.logs / "triton.log", state=state,
    )  # fmt: skip
    with server, Client(server.grpc_url, timeout_s=10) as client:
        yield Served(run, server, client, users, int(histories.time.max()))


def copy_of(run: Path, folder: Path) -> Path:
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("logs", "state", "source"))
    return folder


@pytest.fixture(scope="module")
def case(sim_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = copy_of(sim_run.folder, tmp_path_factory.mktemp("state") / "run")
    with served(folder, str(Run(folder).state_file)) as case:
        yield case


def test_an_event_changes_the_next_answer(case: Served) -> None:
    """Sent and asked at once, both for now."""
    user, other = case.users[:2]
    before, others = case.page(user), case.page(other)
    video = int(before.video_ids[0])
    kept = case.client.watched(user, video)
    after = case.page(user)
    assert kept.num_events == 1 and time.time() - 60 < kept.last_time <= time.time()
    assert before.status is after.status is Status.ok
    assert video in before.video_ids and video not in after.video_ids
    shared = set(before.video_ids) & set(after.video_ids)
    assert score_of(before, shared) != score_of(after, shared)
    assert case.page(other).video_ids.tolist() == others.video_ids.tolist()
    # Before the event nothing has changed: point in time.
    earlier = case.page(user, time=kept.last_time)
    assert video in earlier.video_ids
    assert video not in case.page(user, time=kept.last_time + 1).video_ids


def score_of(page: Any, videos: set[int]) -> dict[int, float]:
    pairs = zip(page.video_ids.tolist(), page.scores.tolist(), strict=True)
    return {video: score for video, score in pairs if video in videos}


def test_statuses_follow_what_is_known(case: Served) -> None:
    video, unknown_video = int(case.page(case.users[0]).video_ids[0]), 7
    assert case.page(NEWCOMER).status is Status.unknown_user
    case.client.watched(NEWCOMER, unknown_video)
    assert case.page(NEWCOMER).status is Status.unknown_user
    case.client.watched(NEWCOMER, video, time=case.last)
    page = case.page(NEWCOMER)
    assert page.status is Status.ok and video not in page.video_ids
    assert case.page(NEWCOMER, time=case.last).status is Status.unknown_user
    assert case.client.user_events(NEWCOMER).num_events == 2
    user = case.users[3]
    assert case.page(user, time=1_000).status is Status.empty_history
    case.client.watched(user, video, time=999)
    assert case.page(user, time=1_000).status is Status.ok


def test_what_is_served_equals_the_offline_pipeline_with_the_events_baked_in(
    case: Served, tmp_path: Path
) -> None:
    """NVTabular, TensorFlow and FAISS over histories that hold the events."""
    users, random = case.users[10:16], np.random.default_rng(2)
    catalogue = FeatureStore(case.run).video("video_id")
    events = []
    for user in users:
        moments = np.sort(case.last + random.integers(-5 * 86_400, 600, 6))
        rows = random.choice(len(catalogue), 6, replace=False)
        events += [(user, int(row) + 1, int(t)) for row, t in zip(rows, moments, strict=True)]
    for user, row, moment in events:
        case.client.watched(user, int(catalogue[row - 1]), time=moment, label=1, watch_s=30.0)
    baked = copy_of(case.run.root, tmp_path / "baked")
    bake(Run(baked), events)
    job = Job.load(Run(baked))
    from models.offline import OfflineRecommender

    offline = OfflineRecommender(job.run, job.config, job.contract)
    for moment in (case.last - 86_400, case.last + 30, case.last + 3_600):
        times = np.full(len(users), moment)
        context = {"device": np.array(["tv"] * len(users), object)}
        expected = offline.recommend(np.array(users), times, context, TOP_K)
        for at, user in enumerate(users):
            page = case.page(user, time=moment, context={"device": "tv"})
            np.testing.assert_allclose(page.scores, expected.scores[at], rtol=0, atol=1e-5)
            assert set(page.video_ids) == set(expected.video_ids[at])


def bake(run: Run, events: list[tuple[int, int, int]]) -> None:
    """Put watches into a run's histories, as the features stage would have."""
    from workflow.features.encoded import save_array
    from workflow.features.history import session_starts
    from workflow.features.spec import FeatureSpec

    store = FeatureStore(run)
    histories = store.histories()
    row_of = {user: row for row, user in enumerate(store.user("user_id").tolist(), start=1)}
    owner = np.repeat(np.arange(len(histories.start) - 1), np.diff(histories.start))
    user = np.r_[owner, [row_of[one] for one, _, _ in events]]
    video = np.r_[histories.video_row, np.array([row for _, row, _ in events], np.int32)]
    moment = np.r_[histories.time, [t for *_, t in events]]
    order = np.lexsort((moment, user))
    user, video, moment = user[order], video[order], moment[order]
    gap_s = FeatureSpec.load(store.root / "spec.json").session_gap_s
    arrays = {
        "video_row": video.astype(np.int32),
        "time": moment.astype(np.int64),
        "start": np.searchsorted(user, np.arange(len(histories.start))).astype(np.int64),
        "session_start": session_starts(user, moment, gap_s),
    }
    for name, values in arrays.items():
        save_array(run.features / "history" / f"{name}.npy", values)


def test_ids_that_are_text(clip_run: Any, clip_server: dict[str, Any]) -> None:
    """A user whom nobody else asks for: the other tests of this server see nothing of it."""
    user = "vü online/1"
    with Client(clip_server["grpc_url"], timeout_s=10) as client:
        assert client.recommend(user).status is Status.unknown_user
        video = client.recommend(user).video_ids[0]
        assert client.watched(user, video).num_events == 1
        page = client.recommend(user)
        assert page.status is Status.ok and video not in page.video_ids
        with pytest.raises(ServingError, match="video_id has 1 to 1024 bytes"):
            client.watched(user, "")
        with pytest.raises(ServingError, match="no input label"):
            client.watched(user, video, label=1)  # this data has none
    assert Run(clip_run.folder).state_file.exists()


def test_refused_events(case: Served) -> None:
    user, video = case.users[20], int(case.page(case.users[20]).video_ids[0])
    for options, message in (
        ({"label": 0}, "is no watch"),
        ({"label": 5}, "label is 0 or 1"),
        ({"watch_s": -1.0}, "watch_s is a number of seconds"),
        ({"time": int(time.time()) * 1000}, "unix seconds"),
    ):
        with pytest.raises(ServingError, match=message):
            case.client.watched(user, video, **options)
    assert case.client.user_events(user) == (0, 0)
    assert video in case.page(user).video_ids


def test_many_writers_and_readers(case: Served) -> None:
    """Every acknowledged event is there, whatever else the server does."""
    user = case.users[25]
    catalogue = FeatureStore(case.run).video("video_id")[:60].tolist()

    def send(n: int) -> Status:
        case.client.watched(user, catalogue[n], time=case.last + n)
        status: Status = case.page(case.users[26 + n % 5]).status
        return status

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(send, range(60))) == {Status.ok}
    assert case.client.user_events(user) == (60, case.last + 59)
    assert not set(catalogue) & set(case.page(user).video_ids)


def test_kill_9_of_the_server(sim_run: Any, tmp_path: Path) -> None:
    folder = copy_of(sim_run.folder, tmp_path / "run")
    state = str(Run(folder).state_file)
    with served(folder, state) as case:
        user = case.users[0]
        video = int(case.page(user).video_ids[0])
        case.client.watched(user, video)
        after = case.page(user)
        os.killpg(case.server.pid, signal.SIGKILL)  # Triton and the Python of all its models
    with served(folder, state) as case:
        assert case.client.user_events(user).num_events == 1
        page = case.page(user)
        assert video not in page.video_ids and page.status is Status.ok
        assert set(page.video_ids) == set(after.video_ids)


def test_the_commands(marquee: Any, sim_run: Any, tmp_path: Path) -> None:
    """watch, then recommend: by default each comes a second after what was before."""
    folder = copy_of(sim_run.folder, tmp_path / "run")
    user = int(FeatureStore(Run(folder)).user("user_id")[50])
    first = marquee.json("recommend", "--run", folder, "--user", user, "--in-process")
    video = first["items"][0]["video_id"]
    kept = marquee.json("watch", "--run", folder, "--user", user, "--video", video)
    assert kept == {
        "user_id": user, "video_id": video, "at": first["at"], "num_events": 1,
        "in_catalogue": True,
    }  # fmt: skip
    second = marquee.json("recommend", "--run", folder, "--user", user, "--in-process")
    assert second["at"] == first["at"] + 1
    assert video not in [item["video_id"] for item in second["items"]]
    error = marquee("serve", "--run", folder, "--state", "mysql://x", "--json").error
    assert "state mysql:// is not understood" in error


# --- Redis ---------------------------------------------------------------------------------------
@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis")
    yield server
    server.kill()


def test_redis_for_a_fleet(sim_run: Any, redis: RedisServer) -> None:
    """Two servers, one state. Without Redis: the last known profile, and a status that says so."""
    with served(sim_run.folder, redis.url) as case:
        user, other = case.users[:2]
        video = int(case.page(user).video_ids[0])
        case.client.watched(user, video, time=case.last)
        known = case.page(user, time=case.last + 1)
        assert known.status is Status.ok and video not in known.video_ids
        fellow = LocalPipeline(case.run, redis.url)  # another member of the fleet
        answer = fellow.infer(as_tensors(user, top_k=TOP_K, time=case.last + 1))
        assert set(answer["video_id"][0]) == set(known.video_ids)

        for stop, go_on in ((redis.kill, redis.start), (redis.pause, redis.go_on)):
            stop()
            for _ in range(3):
                page = case.page(user, time=case.last + 1)
                assert page.status is Status.state_unavailable
                assert page.video_ids.tolist() == known.video_ids.tolist()
            assert case.page(other).status is Status.state_unavailable
            assert len(case.page(NEWCOMER).video_ids) == TOP_K
            with pytest.raises(StateUnavailableError):
                case.client.watched(other, video)
            go_on()
            until(lambda: case.page(user).status is Status.ok)
            until(lambda: can_ask(case, user))
            assert case.client.user_events(user) == (1, case.last)
            assert video not in case.page(user).video_ids
        case.client.watched(other, video)
        assert video not in case.page(other).video_ids


def can_ask(case: Served, user: int) -> bool:
    try:
        case.client.user_events(user)
    except StateUnavailableError:
        return False
    return True


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def test_a_server_that_starts_without_its_redis(sim_run: Any, redis: RedisServer) -> None:
    redis.kill()
    with served(sim_run.folder, redis.url) as case:
        page = case.page(case.users[0])
        assert page.status is Status.state_unavailable and len(page.video_ids) == TOP_K
        redis.start()
        until(lambda: case.page(case.users[0]).status is Status.ok)
