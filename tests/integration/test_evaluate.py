"""`marquee evaluate`: protocols, baselines and the ranker, with two seeds, repeatable."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

PROTOCOLS = {"temporal", "leave_last_out", "rolling"}
BASELINES = {"popularity", "popularity_30_days", "item_knn", "ease", "ials"}
RETRIEVAL = {
    "recall@10", "recall@100", "recall@500", "ndcg@10", "mrr", "coverage@10", "novelty@10",
    "popularity_lift@10",
}  # fmt: skip
RANKER = {"auc", "per_user_auc", "log_loss", "ece", "watch_mae_s", "xauc"}
SEGMENTS = {"new", "light", "heavy", "head", "torso", "tail", "cold"}


def patient(marquee: Any, *words: Any) -> Any:
    """A call that trains three models more and may take minutes on a busy machine."""
    return marquee.finish(marquee.start(*words), timeout_s=900)


@pytest.mark.timeout(1800)
def test_evaluate(marquee: Any, sim_run: Any, contents: Any) -> None:
    before = contents(sim_run.folder)
    words = ("evaluate", "--run", sim_run.folder, "--set", "evaluation.seeds=2")
    result = patient(marquee, *words, "--json").json
    assert result["format"] == 2 and result["seeds"] == [7, 8]
    assert set(result["retrieval"]) == PROTOCOLS
    for part in result["retrieval"].values():
        check_retrieval(part)
    ranker = result["ranker"]
    assert set(ranker["models"]) == {"dlrm", "lightgbm", "bias"}
    assert set(ranker["models"]["dlrm"]) == RANKER and ranker["events"] > 0
    for model in ranker["models"]:
        assert sum(row["count"] for row in ranker["reliability"][model]) == ranker["events"]
    check_values_per_user(sim_run, result)
    saved = json.loads((sim_run.folder / "evaluation" / "metrics.json").read_text())
    assert saved == result
    after = contents(sim_run.folder)
    changed = {name for name in before if after.get(name) != before[name]}
    assert changed <= {"config.json"}  # the number of seeds
    again = patient(marquee, *words, "--json")
    assert again.json == result
    assert "= Train retriever: up to date" in again.err and "epoch" not in again.err


def check_retrieval(part: dict[str, Any]) -> None:
    assert set(part["models"]) == {"two_tower"} | BASELINES and part["users"] > 0
    assert set(part["paired"]) == BASELINES and part["skipped"] == {}
    for model, metrics in part["models"].items():
        assert set(metrics) == RETRIEVAL | {"segments"} and set(metrics["segments"]) == SEGMENTS
        recalls = [metrics[f"recall@{k}"]["mean"] for k in (10, 100, 500)]
        assert recalls == sorted(recalls) and recalls[0] > 0 and recalls[-1] <= 1
        for name in RETRIEVAL:
            entry = metrics[name]
            assert entry["low"] <= entry["mean"] <= entry["high"]
            assert len(entry["per_seed"]) == (2 if model == "two_tower" else 1)
            assert abs(np.mean(entry["per_seed"]) - entry["mean"]) < 1e-9
    for model, differences in part["paired"].items():
        for name, entry in differences.items():
            ours, theirs = (part["models"][m][name]["mean"] for m in ("two_tower", model))
            assert abs(entry["difference"] - (ours - theirs)) < 1e-9
            assert entry["low"] <= entry["difference"] <= entry["high"]


def check_values_per_user(sim_run: Any, result: dict[str, Any]) -> None:
    with np.load(sim_run.folder / "evaluation" / "per_user.npz", allow_pickle=False) as values:
        for protocol, part in result["retrieval"].items():
            assert len(values[f"{protocol}/user_row"]) == part["users"]
            for model, metrics in part["models"].items():
                for name in RETRIEVAL:
                    array = values[f"{protocol}/{model}/{name}"]
                    assert array.shape == (len(metrics[name]["per_seed"]), part["users"])
                    assert abs(array.mean() - metrics[name]["mean"]) < 1e-9
        events = result["ranker"]["events"]
        assert values["ranker/dlrm/p"].shape == (2, events)
        assert len(values["ranker/label"]) == len(values["ranker/user_row"]) == events
