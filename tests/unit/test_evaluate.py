"""The evaluation of a small trained run: what is measured, on whom, and the served list."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from models.evaluation.evaluate import Evaluation, evaluate
from models.evaluation.learned import Trained
from models.index import build_index
from models.metrics import top_k
from models.queries import held_out_queries
from models.ranker import train_ranker
from models.retriever import train_retriever
from tests.fixtures import make_config, make_contract, make_tables, write_run
from workflow.errors import DataError
from workflow.features.build import build_features

CONTRACT = make_contract()
NUM_VIDEOS = 40


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    weights = {"watch_time": 1.0}  # there is little to learn here
    config = make_config(
        retriever={"max_epochs": 1},
        ranker={"max_epochs": 1, "score_weights": weights},
        serving={"num_candidates": 15},
    )
    tables = make_tables(num_users=40, num_videos=NUM_VIDEOS, num_events=3000)
    run = write_run(tmp_path_factory.mktemp("evaluate") / "run", CONTRACT, tables)
    build_features(run, config, CONTRACT)
    train_retriever(run, config)
    train_ranker(run, config)
    build_index(run, config)
    return Trained(run, config)


@pytest.fixture(scope="module")
def evaluation(trained: Trained) -> Evaluation:
    """Two "seeds" that are the same run."""
    return evaluate([trained, trained], [])


def test_candidates(trained: Trained) -> None:
    """A flat index finds what exact search finds, without what was watched."""
    queries = held_out_queries(trained.store, "test", trained.query_columns)
    exact, approximate = trained.candidates(queries)
    vectors = trained.query_vectors(queries)
    expected = top_k(vectors, trained.candidate_vectors, queries.excluded, 15)
    np.testing.assert_array_equal(exact, expected)
    np.testing.assert_array_equal(approximate, expected)
    for at in range(len(queries)):
        assert not set(approximate[at]) & set(queries.excluded[at])


def test_what_is_measured(trained: Trained, evaluation: Evaluation) -> None:
    result = evaluation.result
    assert set(result["retrieval"]) == {"temporal", "rolling"}  # no leave-last-out was trained
    held_out = held_out_queries(trained.store, "test", trained.query_columns)
    known = held_out.user_row[held_out.has_history]
    np.testing.assert_array_equal(evaluation.per_user["temporal/user_row"], known)
    assert result["retrieval"]["temporal"]["users"] == len(known)
    for name in ("dlrm", "lightgbm"):
        assert {"watch_mae_s", "xauc"} <= set(result["ranker"]["models"][name])
    both = evaluation.per_user["temporal/two_tower/recall@10"]
    assert both.shape == (2, len(known)) and np.array_equal(both[0], both[1])
    json.dumps(result, allow_nan=False)


def test_served_list(evaluation: Evaluation) -> None:
    result = evaluation.result["end_to_end"]
    assert result["num_candidates"] == 15
    assert result["approximate_loss"] == {"mean": 0, "low": 0, "high": 0}
    temporal = evaluation.result["retrieval"]["temporal"]["models"]
    for metric in ("recall@10", "ndcg@10"):
        for ours, theirs in (("retriever", "two_tower"), ("ease", "ease")):
            got, expected = result["metrics"][ours][metric], temporal[theirs][metric]
            assert got["mean"] == pytest.approx(expected["mean"])
    served, retriever = (
        result["metrics"][name]["ndcg@10"]["mean"] for name in ("served", "retriever")
    )
    assert result["ranker_lift"]["mean"] == pytest.approx(served - retriever)
    assert served != retriever
    by_user = evaluation.per_user["end_to_end/served/ndcg@10"]
    assert by_user.shape == (2, len(evaluation.per_user["end_to_end/user_row"]))
    assert by_user.mean() == pytest.approx(served)


def test_the_ranker_orders_the_served_list(trained: Trained, evaluation: Evaluation) -> None:
    queries = held_out_queries(trained.store, "test", trained.query_columns)
    queries = queries.take(np.flatnonzero(queries.has_history))
    _, rows = trained.candidates(queries)
    scores = trained.candidate_scores(queries, rows)
    found = []
    for at in range(len(queries)):
        pairs = zip(scores[at], rows[at], strict=True)
        ranked = [row for _, row in sorted(pairs, reverse=True) if row > 0][:10]
        wanted = set(queries.relevant[at])
        found.append(len(wanted & set(ranked)) / len(wanted))
    np.testing.assert_allclose(evaluation.per_user["end_to_end/served/recall@10"][0], found)


def test_a_part_without_known_users(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(*_: Any) -> Any:
        return held_out_queries(trained.store, "test", []).take(np.zeros(0, np.int64))

    monkeypatch.setattr("models.evaluation.evaluate.held_out_queries", nobody)
    monkeypatch.setattr("models.evaluation.evaluate.candidates", dict)
    with pytest.raises(DataError, match="nothing to evaluate retrieval on"):
        evaluate([trained], [])
