"""What the health tab computes: drift, calibration, latency; and what the drawer explains."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.pages import DAY, NOW, Catalogue
from triton_repo.ui import drift
from triton_repo.ui.explain import ranks, reason, rules_removed
from triton_repo.ui.health import LEAST_TIMINGS, latency, split_shares, stage_costs
from triton_repo.ui.reference import calibration
from triton_repo.ui.seen import WINDOW, Seen


def test_psi_of_known_shares() -> None:
    """(0.5 - 0.2) log(0.5 / 0.2) + (0.5 - 0.8) log(0.5 / 0.8), up to the smoothing."""
    expected = 0.3 * np.log(2.5) - 0.3 * np.log(0.625)
    assert drift.psi([50_000, 50_000], [20_000, 80_000]) == pytest.approx(expected, rel=1e-3)
    assert drift.psi([10, 20, 30], [10, 20, 30]) == 0
    assert np.isfinite(drift.psi([100, 0], [0, 100]))


def test_numbers_drift_when_they_move() -> None:
    rng = np.random.default_rng(0)
    before, same, moved = rng.normal(size=(3, 5_000))
    assert drift.of_numbers(before, same) < 0.02
    assert drift.of_numbers(before, moved + 1) > drift.DRIFTED
    assert drift.of_numbers(before, np.append(same, np.nan)) < 0.02
    assert drift.of_numbers([1.0] * 50, [1.0] * 80) < 0.01
    assert drift.of_numbers([], [1.0]) == 0


def test_categories_that_were_rare_are_one() -> None:
    before = ["tv"] * 500 + ["web"] * 500 + [f"rare {i}" for i in range(40)]
    assert drift.of_categories(before, before) == 0
    assert drift.of_categories(before, ["tv"] * 300) > drift.DRIFTED
    unknown = drift.of_categories(["tv"] * 500 + ["web"] * 500, ["new"] * 500)
    assert unknown > drift.DRIFTED


@pytest.mark.parametrize(
    ("value", "count", "word"),
    [(3.0, 49, "too few"), (0.05, 50, "steady"), (0.2, 50, "moved"), (0.3, 50, "drifted")],
)
def test_verdicts(value: float, count: int, word: str) -> None:
    assert drift.judged("x", value, count, 50)["verdict"] == word


def test_calibration_of_a_perfect_and_a_shifted_model() -> None:
    rng = np.random.default_rng(1)
    p = rng.random(20_000)
    label = (rng.random(20_000) < p).astype(float)
    good = calibration(p, label)
    assert good["count"] == 20_000 and good["error"] < 0.02
    assert [one["count"] for one in good["bins"]] == [2_000] * 10
    assert calibration(p * 0.5, label)["error"] == pytest.approx(0.25, abs=0.02)


def test_latency_says_when_a_p99_means_nothing() -> None:
    few, many = [1.0, 3.0], [2.0] * LEAST_TIMINGS
    found = latency({"answer": few, "page": many, "ranker": []})
    assert [(one["stage"], one["verdict"]) for one in found] == [
        ("answer", "too few"),
        ("page", "ok"),
    ]
    assert found[0]["p50_ms"] == 2.0


def test_stage_costs_are_read_off_the_metrics_of_the_page_alone() -> None:
    label = '{{ensemble="{0}",stage="ranker",version="{1}"}}'
    lines = [
        "marquee_stage_duration_us" + label.format("page", 1) + " 3000",
        "marquee_stage_rows" + label.format("page", 1) + " 2",
        "marquee_stage_duration_us" + label.format("page", 2) + " 1000",
        "marquee_stage_rows" + label.format("page", 2) + " 2",
        "marquee_stage_duration_us" + label.format("marquee", 1) + " 9000",
        "marquee_stage_rows" + label.format("marquee", 1) + " 1",
        "nv_inference_count 5",
    ]
    assert stage_costs("\n".join(lines)) == [{"stage": "ranker", "mean_ms": 1.0, "count": 4}]


def view(number: int) -> dict[str, Any]:
    said = {"score": float(number), "p_positive": None, "p_watched": 0.5, "watch_s": None}
    videos = [{"id": str(number), **said}, {"id": "both", **said, "score": None}]
    rows = [{"videos": videos}]
    return {"rows": rows, "version": number % 2, "stage_us": {"page": 1_500}}


def test_what_was_seen() -> None:
    seen = Seen()
    for number in range(3):
        seen.add(view(number), at=3_600 * number, context={"device": "tv"}, ms=4.0)
    assert seen.videos() == {"0", "1", "2", "both"} and seen.values("score") == [0, 1, 2]
    assert seen.values("p_positive") == [] and len(seen.values("p_watched")) == 6
    assert seen.hours() == ["0", "1", "2"] and seen.context("device") == ["tv"] * 3
    assert seen.context("country") == [""] * 3 and seen.versions() == {"0": 2, "1": 1}
    assert seen.latencies() == {"answer": [4.0] * 3, "page": [1.5] * 3}
    for number in range(WINDOW):
        seen.add(view(number), at=0, context={}, ms=1.0)
    assert len(seen.pages) == WINDOW


# --- explanations --------------------------------------------------------------------------------
def test_ranks_leave_out_padding_repeats_and_what_was_not_ranked() -> None:
    rows = np.array([7, 3, 0, 3, 9, 5], np.int32)
    scores = np.array([0.1, 0.9, 5.0, 0.8, np.nan, 0.5], np.float32)
    assert ranks(rows, scores) == {3: 1, 5: 2, 7: 3}


def test_reasons() -> None:
    drawn, plain = SimpleNamespace(sources=("fresh", "explore")), SimpleNamespace(sources=())
    said = reason("new", {"fresh_days": 30}, [drawn, plain])
    assert said.startswith("Published in the last 30 days; 1 of these drawn by chance")
    kinds = ("continue", "top", "because", "trending", "new", "genre", "more", "popular")
    assert all(reason(kind, {"fresh_days": 30}, [plain]) for kind in kinds)


def test_each_rule_counts_what_it_took(tmp_path: Path) -> None:
    """Ten proposed videos, one or two for each rule; the first that applies counts."""
    made = Catalogue(num_videos=12)
    made.until[1] = 0
    made.since[2] = NOW + DAY
    made.until[3] = NOW - DAY
    made.allowed[4] = False
    made.rating[5] = 2
    made.until[6], made.rating[6] = 0, 2  # withdrawn comes first
    made.watches[1] = [(7, 0)]
    made.limit[1] = 2
    made.trending[:] = 0
    stage = made.stage(tmp_path)
    viewer = stage.rules.viewer(1, NOW, "DE", None)
    past = stage.history.past(1, 1, np.zeros(0, np.int32), np.zeros(0, np.float32), 0)
    record = {"explained": {"retrieved_row": list(range(11))}}  # 0 is padding
    shelf: Any = SimpleNamespace(page=stage, settings=stage.settings)
    found = rules_removed(record, None, shelf, viewer, past, np.array([8], np.int32))
    assert {one["rule"]: one["count"] for one in found["removed"]} == {
        "withdrawn": 2,
        "not out yet": 1,
        "no longer available": 1,
        "not for this country": 1,
        "above the viewer's maturity limit": 1,
        "watched before": 1,
        "shown further up": 1,
    }
    assert (found["considered"], found["left"]) == (10, 2)


def test_shares_of_a_split_are_those_of_the_names_that_serve() -> None:
    """Not of names that were taken away, of steps, or of pages."""
    lines = [
        f'nv_inference_count{{model="{model}",version="{version}"}} {count}'
        for model, version, count in (
            ("marquee", 1, 30), ("marquee_new", 1, 10), ("page", 1, 70), ("fused_3", 3, 43),
            ("marquee_gone", 1, 9), ("marquee", 2, 0),
        )
    ]  # fmt: skip
    assert split_shares("\n".join(lines), 2, {"new": 3}) == [
        {"name": "live", "version": 2, "users": 30, "share": 0.75},
        {"name": "new", "version": 3, "users": 10, "share": 0.25},
    ]
    [live] = split_shares("", 2, {})
    assert live == {"name": "live", "version": 2, "users": 0, "share": None}
