"""The frontier: configurations and their settings, the Pareto set, budgets, the page."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest

from triton_repo.frontier import (
    Configuration,
    Index,
    Sweep,
    cpu_s,
    grid,
    ndcg,
    p99_ms,
    pareto,
    parse_index,
    parse_layers,
    present_configuration,
    within_budget,
    worth_measuring,
)
from triton_repo.frontier_page import LEFT, RIGHT, Ratios, headline, lines, plot, render_page
from workflow.config import changed_config, load_config
from workflow.errors import ConfigError

FLAT, IVF = Index("flat", 1.0), Index("ivf", 0.9)
PRESENT = Configuration(100, FLAT, "fp32")


# --- configurations ----------------------------------------------------------------------------
def test_words_make_the_configuration() -> None:
    """Applied to the run's settings they give what the configuration says."""
    config = load_config("sim")
    assert PRESENT.words(PRESENT) == []
    wanted = Configuration(50, IVF, "int8", (64, 32))
    changed = changed_config(config, None, wanted.words(PRESENT))
    assert (changed.serving.num_candidates, changed.serving.ranker) == (50, "int8")
    assert (changed.index.kind, changed.index.target_recall) == ("ivf", 0.9)
    assert changed.ranker.top_layers == (64, 32)
    back = changed_config(changed, None, PRESENT.words(wanted)[:2])
    assert (back.serving.num_candidates, back.index.kind) == (100, "flat")


def test_the_present_configuration() -> None:
    config = changed_config(load_config("sim"), None, ["serving.ranker=int8"])
    assert present_configuration(config, "flat") == Configuration(100, FLAT, "int8")
    assert present_configuration(config, "ivf").index == Index("ivf", config.index.target_recall)


def test_grid() -> None:
    tried = grid(PRESENT, [50, 100], [FLAT, IVF], ["fp32", "none"], [(), (8,)])
    assert tried[0] == PRESENT
    assert len({one.name for one in tried}) == len(set(tried)) == len(tried)
    ranked = {(n, i, "fp32", s) for n in (50, 100) for i in (FLAT, IVF) for s in ((), (8,))}
    plain = {(50, index, "none", ()) for index in (FLAT, IVF)}
    found = {(one.num_candidates, one.index, one.ranker, one.layers) for one in tried}
    assert found == ranked | plain


def test_default_grid_stays_within_the_catalogue() -> None:
    for num_videos in (250, 500, 100_000):
        tried = Sweep().configurations(PRESENT, num_videos, top_k=20)
        counts = {one.num_candidates for one in tried}
        assert min(counts) >= 20 and max(counts) <= max(num_videos // 2, 100)
        assert {one.ranker for one in tried} == {"fp32", "int8", "none"}
    with pytest.raises(ConfigError, match="no number of candidates"):
        Sweep(num_candidates=[5, 900]).configurations(PRESENT, 1_000, top_k=20)
    with pytest.raises(ConfigError, match="fp16"):
        Sweep(rankers=["fp16"]).configurations(PRESENT, 1_000, top_k=20)


@pytest.mark.parametrize("text", ["ivf:0", "ivf:2", "ivf:x", "ivf_fp16:2", "flat:0.9", ""])
def test_bad_indexes(text: str) -> None:
    with pytest.raises(ConfigError, match="index"):
        parse_index(text)


def test_words_of_the_command_line() -> None:
    assert [parse_index(text) for text in ("flat", "ivf:0.9", "hnsw")] == [
        FLAT, IVF, Index("hnsw", 0.99)
    ]  # fmt: skip
    assert parse_layers("64,32") == (64, 32)
    for text in ("", "64,", "0", "a"):
        with pytest.raises(ConfigError, match="hidden layers"):
            parse_layers(text)


# --- points ------------------------------------------------------------------------------------
def point(name: str, quality: float, p99: float, cpu: float | None = None, **more: Any) -> Any:
    load = {"p99_ms": p99, "p50_ms": p99 / 2, "cpu_s_per_1000": cpu if cpu is not None else p99}
    return {
        "name": name, "present": False, "words": ["serving.num_candidates=50"],
        "num_candidates": 50, "index": {"kind": "flat", "effort": 0, "recall_vs_exact": 1.0},
        "ranker": "fp32", "layers": [], "load": load, "stages_cpu_ms": p99 / 10,
        "quality": {"mean": quality, "low": quality - 0.01, "high": quality + 0.01},
        "difference": {"difference": 0.0, "low": -0.01, "high": 0.01},
        "best_for_latency": False, "best_for_cpu": False, **more,
    }  # fmt: skip


def random_points(seed: int, count: int = 25) -> list[Any]:
    """On a coarse grid, so that ties come up."""
    rng = np.random.default_rng(seed)
    numbers = rng.integers(1, 9, (count, 3)).tolist()
    return [point(str(n), q / 10, float(p), float(c)) for n, (q, p, c) in enumerate(numbers)]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("cost", [p99_ms, cpu_s])
def test_pareto_set_as_by_definition(seed: int, cost: Any) -> None:
    points = random_points(seed)

    def beats(a: Any, b: Any) -> bool:
        no_worse = cost(a) <= cost(b) and ndcg(a) >= ndcg(b)
        return no_worse and (cost(a), ndcg(a)) != (cost(b), ndcg(b))

    free = {(cost(b), ndcg(b)) for b in points if not any(beats(a, b) for a in points)}
    found = pareto(points, cost)
    assert {(cost(one), ndcg(one)) for one in found} == free and len(found) == len(free)
    for a, b in itertools.pairwise(found):
        assert cost(a) < cost(b) and ndcg(a) < ndcg(b)


@pytest.mark.parametrize("seed", range(8))
def test_budget_buys_the_best_inside(seed: int) -> None:
    points = random_points(seed)
    for budget in (0.5, 1, 3.5, 100):
        bought = within_budget(points, budget)
        inside = [one for one in points if p99_ms(one) <= budget]
        if bought is None:
            assert not inside
            continue
        assert p99_ms(bought) <= budget and ndcg(bought) == max(map(ndcg, inside))
        as_good = [one for one in inside if ndcg(one) == ndcg(bought)]
        assert p99_ms(bought) == min(map(p99_ms, as_good))


def test_what_is_clearly_dearer_and_no_better_is_not_measured() -> None:
    cheap, dear, good = point("a", 0.2, 10), point("b", 0.2, 20), point("c", 0.3, 20)
    close = point("d", 0.2, 11)
    assert worth_measuring([dear, cheap, good, close]) == [cheap, good, close]


# --- the page ----------------------------------------------------------------------------------
def result(budget: dict[str, Any] | None = None) -> dict[str, Any]:
    points = [
        point("100-flat-fp32", 0.2, 10, present=True, words=[]),
        point("50-flat-int8", 0.21, 8, ranker="int8", best_for_latency=True, best_for_cpu=True),
        point("25-ivf@0.9-none", 0.15, 5, ranker="none", best_for_latency=True,
              index={"kind": "ivf", "effort": 4, "recall_vs_exact": 0.91}),
        point("50-flat-fp32-8", 0.1, 0, layers=[8], load=None),
    ]  # fmt: skip
    return {
        "dataset": "sim<b>", "num_videos": 500, "users": 300, "concurrency": 4, "points": points,
        "budget": budget, "machine": {"cpu": "A & B", "cores": 2, "memory_gb": 1.0},
    }  # fmt: skip


BUDGET = {
    "p99_ms": 9.0, "configuration": "50-flat-int8", "as_good_for_less": "25-ivf@0.9-none",
    "fastest_ms": 5.0,
}  # fmt: skip


def test_headline_says_what_the_budget_buys() -> None:
    assert headline(result()) == "The best lists: 50 candidates, exact search, ranker in 8 bits."
    assert headline(result(BUDGET)).startswith("A p99 of 9 ms buys: 50 candidates, exact")
    nothing = BUDGET | {"configuration": None, "as_good_for_less": None, "p99_ms": 1.0}
    assert headline(result(nothing)).startswith("Nothing stays within a p99 of 1 ms; the fastest")
    said = lines(result(BUDGET))
    assert said[0].startswith("Present: ") and "p99 10.0 ms" in said[0]
    assert "62% of its CPU: 50 candidates, IVF (recall 0.91), order of retrieval" in said[2]
    assert len(lines(result(nothing))) == 1


def test_page_holds_every_point_and_its_settings() -> None:
    page = render_page(result(BUDGET))
    assert page.count("<tr class=") == 4 and "sim<b>" not in page and "A &amp; B" in page
    assert "<code>--set serving.num_candidates=50</code>" in page
    assert "1 configurations were judged but not measured" in page
    assert "budget 9 ms" in page and not re.search(r"https?://", page)
    assert render_page(result()).count('class="bought"') == 0


def test_page_says_that_another_ranker_was_trained_once() -> None:
    tried = result()
    assert "trained once" in render_page(tried)
    tried["points"] = tried["points"][:3]
    assert "trained once" not in render_page(tried)


def test_plot_is_to_scale() -> None:
    """Equal ratios of costs are equal distances: here 10, 8, 5 and a budget of 9."""
    points = result()["points"][:3]
    drawn = plot(points, p99_ms, "best_for_latency", BUDGET)
    at = {dot["name"]: dot for dot in drawn["dots"]}
    a, b, c = (at[one["name"]]["x"] for one in points)
    assert (b - c) / (a - c) == pytest.approx(np.log(8 / 5) / np.log(10 / 5), abs=0.01)
    limit = (drawn["limit"] - c) / (a - c)
    assert limit == pytest.approx(np.log(9 / 5) / np.log(10 / 5), abs=0.01)
    assert plot(points, p99_ms, "best_for_latency", BUDGET | {"p99_ms": 1.0})["limit"] is None
    assert at["50-flat-int8"]["y"] < at["100-flat-fp32"]["y"] < at["25-ivf@0.9-none"]["y"]
    assert at["50-flat-int8"]["bought"] and not at["100-flat-fp32"]["bought"]
    corners = re.findall(r"[MHV][\d. ]+", drawn["steps"])
    assert corners[0] == f"M{at['25-ivf@0.9-none']['x']} {at['25-ivf@0.9-none']['y']}"


@pytest.mark.parametrize("costs", [(5.0, 5.0), (1.1, 1.9), (7.0, 160.0), (0.3, 4_000.0)])
def test_ticks_are_few_and_inside(costs: tuple[float, float]) -> None:
    scale = Ratios.of(costs)
    at = [tick["at"] for tick in scale.ticks]
    assert 2 <= len(at) <= 14 and at == sorted(set(at))
    assert at[0] >= LEFT and at[-1] <= RIGHT
    for tick in scale.ticks:
        assert scale.at(float(tick["text"])) == pytest.approx(tick["at"], abs=0.1)


def test_labels_cover_nothing() -> None:
    rng = np.random.default_rng(0)
    points = [
        point(str(n), q, p, best_for_latency=True, num_candidates=100 + n)
        for n, (q, p) in enumerate(zip(rng.random(12), 5 + rng.random(12), strict=True))
    ]
    labels = plot(points, p99_ms, "best_for_latency", None)["labels"]
    assert labels
    boxes = [(one["x"], one["x"] + 6 * len(one["text"]), one["y"] - 10, one["y"]) for one in labels]
    for a, b in itertools.combinations(boxes, 2):
        assert a[1] <= b[0] or b[1] <= a[0] or a[3] <= b[2] or b[3] <= a[2]
