"""`marquee evaluate`: both protocols, the ranker, popularity beside them."""

from __future__ import annotations

import json
from typing import Any

RETRIEVAL = ("recall@10", "recall@100", "ndcg@10", "coverage@10")


def test_evaluate(marquee: Any, sim_run: Any, contents: Any) -> None:
    before = contents(sim_run.folder)
    result = marquee.json("evaluate", "--run", sim_run.folder)
    assert set(result["retrieval"]) == {"temporal", "leave_last_out"}
    for metrics in result["retrieval"].values():
        assert all(0 <= metrics[name] <= 1 for name in RETRIEVAL)
        assert 0 < metrics["recall@10"] <= metrics["recall@100"]
        assert metrics["users"] > 0
    assert 0 < result["ranker"]["auc"] < 1 and result["ranker"]["log_loss"] > 0
    saved = json.loads((sim_run.folder / "evaluation" / "metrics.json").read_text())
    assert saved == result
    after = contents(sim_run.folder)
    assert {name: after.get(name) for name in before} == before
    again = marquee("evaluate", "--run", sim_run.folder, "--json")
    assert again.json == result
    assert "= Train retriever: up to date" in again.err
