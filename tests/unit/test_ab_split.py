"""A/B by a hash of the user, shadow traffic, and the comparison of two bundles' pages."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest

from triton_repo import split as module
from triton_repo.client import Recommendation, Status
from triton_repo.compare_bundles import differences, overlap, rank_correlation
from triton_repo.split import ShadowClient, Shadowed, Split, SplitClient
from workflow.errors import ConfigError, ServingError

USERS = range(20_000)


# --- the split -----------------------------------------------------------------------------------
def test_shares_are_kept() -> None:
    split = Split({"a": 0.1, "b": 0.3}, salt="test")
    names = [split.name_of(user) for user in USERS]
    for name, share in {"a": 0.1, "b": 0.3, None: 0.6}.items():
        spread = (share * (1 - share) / len(USERS)) ** 0.5
        assert names.count(name) / len(USERS) == pytest.approx(share, abs=4 * spread)
    assert Split({"a": 1.0}, salt="test").name_of("x") == "a"
    assert Split({}, salt="test").name_of("x") is None


def test_known_places() -> None:
    """Fixed for good: a change would move users between bundles of a running experiment."""
    split = Split({"candidate": 0.1}, salt="2026-spring")
    assert split.place(1) == split.place("1") == pytest.approx(0.381496097604848, abs=1e-15)
    assert split.place("ü-17") == pytest.approx(0.07684555006474351, abs=1e-15)
    assert (split.name_of(1), split.name_of("ü-17")) == (None, "candidate")


def test_the_same_in_every_process() -> None:
    code = (
        "from triton_repo.split import Split\n"
        "split = Split({'b': 0.3, 'a': 0.2}, 'salt')\n"
        "print(*(split.name_of(user) for user in range(200)))\n"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout
        for seed in ("1", "2")
    }
    ours = Split({"a": 0.2, "b": 0.3}, "salt")
    assert printed == {" ".join(str(ours.name_of(str(user))) for user in range(200)) + "\n"}


def test_a_growing_share_moves_nobody_out() -> None:
    small, large = (Split({"candidate": share}, "salt") for share in (0.1, 0.4))
    before = {user for user in USERS if small.name_of(user)}
    assert before < {user for user in USERS if large.name_of(user)}


def test_salts_are_independent() -> None:
    first, second = (Split({"x": 0.5}, salt) for salt in ("one", "two"))
    both = sum(bool(first.name_of(u)) and bool(second.name_of(u)) for u in USERS)
    assert both / len(USERS) == pytest.approx(0.25, abs=0.015)


@pytest.mark.parametrize("shares", [{"a": 0}, {"a": -0.1}, {"a": 1.1}, {"a": 0.6, "b": 0.6}])
def test_impossible_shares(shares: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="cannot be"):
        Split(shares, "salt")


# --- clients -------------------------------------------------------------------------------------
def page(ids: list[int], scores: list[float], status: Status = Status.ok, version: int = 1) -> Any:
    return Recommendation(np.array(ids), np.array(scores, np.float32), status, version)


class FakeClient:
    """Says its name in the page; the one called "slow" waits, "broken" fails."""

    go = threading.Event()

    def __init__(self, url: str, timeout_s: float = 5.0, *, name: str | None = None) -> None:
        self.name, self.closed = name, False

    def close(self) -> None:
        self.closed = True

    def recommend(self, user_id: int, **options: Any) -> Recommendation:
        if self.name == "slow":
            assert self.go.wait(10)
        if self.name == "broken":
            raise ServingError("no such model")
        assert options == {"top_k": 1}
        version = {None: 1}.get(self.name, 2)
        return page([user_id], [1.0], version=version)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeClient.go.clear()
    monkeypatch.setattr(module, "Client", FakeClient)


@pytest.mark.usefixtures("fake")
def test_the_split_client_asks_the_bundle_of_the_user() -> None:
    split = Split({"candidate": 0.5}, "salt")
    with SplitClient("url", split) as client:
        for user in range(100):
            answer = client.recommend(user, top_k=1)
            assert answer.version == (2 if split.name_of(user) else 1)


@pytest.mark.usefixtures("fake")
def test_a_slow_shadow_holds_nobody_up() -> None:
    seen: list[Shadowed] = []
    with ShadowClient("url", "slow", seen.append, max_waiting=4) as client:
        started = time.monotonic()
        answers = [client.recommend(user, top_k=1) for user in range(10)]
        assert time.monotonic() - started < 5
        assert [answer.version for answer in answers] == [1] * 10
        assert client.dropped == 6 and seen == []
        FakeClient.go.set()
    assert [one.user_id for one in seen] == [0, 1, 2, 3]  # leaving waits for them
    assert all(one.shadow and one.shadow.version == 2 and one.error is None for one in seen)
    assert all(one.answer.version == 1 for one in seen)


@pytest.mark.usefixtures("fake")
def test_a_broken_shadow_is_recorded_and_touches_nothing() -> None:
    seen: list[Shadowed] = []
    with ShadowClient("url", "broken", seen.append) as client:
        assert client.recommend(5, top_k=1).video_ids.tolist() == [5]
    [one] = seen
    assert one.shadow is None and one.error == "no such model."


# --- comparing pages -----------------------------------------------------------------------------
A = page([1, 2, 3, 4], [0.9, 0.8, 0.7, 0.6])


def test_equal_pages() -> None:
    result = differences([(A, A)] * 3, 4)
    assert result == {
        "overlap": {"1": 1.0, "4": 1.0},
        "same_page": 1.0,
        "rank_correlation": pytest.approx(1.0),
        "score_difference": {"mean": 0.0, "max": 0.0},
        "status": {"ok": 3},
    }


def test_planted_differences() -> None:
    turned = page([4, 3, 2, 1], [0.9, 0.8, 0.7, 0.6])
    other = page([1, 9, 3, 8], [0.5, 0.4, 0.3, 0.2], Status.unknown_user)
    assert rank_correlation(A, turned) == pytest.approx(-1)
    assert rank_correlation(A, other) == pytest.approx(1)  # 1 before 3 on both
    assert [overlap(A, turned, k) for k in (1, 2, 3, 4)] == [0, 0, 2 / 3, 1]
    assert overlap(A, other, 4) == 0.5
    result = differences([(A, turned), (A, other)], 4)
    assert result["overlap"] == {"1": 0.5, "4": 0.75}
    assert result["rank_correlation"] == pytest.approx(0)
    assert result["score_difference"]["max"] == pytest.approx(0.4)
    assert result["score_difference"]["mean"] == pytest.approx((0.3 + 0.1 + 0.1 + 0.3 + 0.8) / 6)
    assert result["status"] == {"ok": 1, "ok -> unknown_user": 1}


def test_spearman_is_of_the_common_videos() -> None:
    """Against a brute-force rank correlation of random pages."""
    random = np.random.default_rng(1)
    for _ in range(20):
        first, second = (random.permutation(40)[:20] for _ in range(2))
        common = [video for video in first if video in set(second)]
        ours = rank_correlation(*(page(ids.tolist(), [0.0] * 20) for ids in (first, second)))
        a = [sum(other < place for other in range(len(common))) for place in range(len(common))]
        order = [list(second).index(video) for video in common]
        b = [sum(other < place for other in order) for place in order]
        n = len(common)
        distance = sum((x - y) ** 2 for x, y in zip(a, b, strict=True))
        assert ours == pytest.approx(1 - 6 * distance / (n * (n**2 - 1)))


def test_nothing_in_common() -> None:
    result = differences([(A, page([7, 8], [0.9, 0.8])), (page([], []), page([], []))], 4)
    assert result["overlap"]["4"] == 0.5  # two empty pages are the same
    assert result["rank_correlation"] is None
    assert result["score_difference"] == {"mean": None, "max": None}
