"""The evaluation of a run: every protocol, every baseline, the ranker, the served list.

Baselines are tuned on validation data (tuning.py) and refitted on train + validation; the test
part is read once, at the end. All is measured on the full catalogue by exact search, without the
videos that a user had watched before.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from models.evaluation.baselines import Baseline, candidates, too_large
from models.evaluation.biases import Biases
from models.evaluation.end_to_end import SERVED, Served, end_to_end, ranked_lists
from models.evaluation.learned import Trained
from models.evaluation.ranker_metrics import Events, Predictions, ranker_values, reliability
from models.evaluation.results import Values, arrays, summarise
from models.evaluation.retrieval import Bench, segment_means, stacked
from models.evaluation.trees import Trees, read_events
from models.evaluation.tuning import baseline_scorer, best_on_validation
from models.queries import Queries, held_out_queries, rolling_queries
from models.watches import Catalogue, Watches
from workflow.console import Report, no_report
from workflow.errors import DataError
from workflow.run import Run, write_bytes, write_json

FORMAT = 2
MAX_SCORES = 2_000_000_000  # (query, video) pairs that one model is asked for: about a minute
MAX_VALID_QUERIES = 5_000
TUNING_WATCHES = 2_000_000  # settings of baselines are chosen on users with about that many
TWO_TOWER, DLRM = "two_tower", "dlrm"


@dataclass
class Evaluation:
    """What is written: metrics.json and, for paired tests between runs, values per user."""

    result: dict[str, Any]
    per_user: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    def save(self, run: Run) -> None:
        """Write metrics.json and per_user.npz into the run's evaluation folder."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **self.per_user)
        write_bytes(run.evaluation / "per_user.npz", buffer.getvalue())
        write_json(run.evaluation / "metrics.json", self.result)


def evaluate(
    seeds: Sequence[Trained], last_out: Sequence[Trained], report: Report = no_report
) -> Evaluation:
    """Evaluate the models of one or more seeds; the first seed is the run itself.

    In the rolling protocol only the histories advance: models and baselines stay as they were at
    the end of validation.

    Args:
        seeds: trained on the run's own split.
        last_out: retrievers trained without each user's last watches, one per seed; none where
            that is the run's own split.
    Raises:
        DataError: the test part has no new watch of a user with a history.
    """
    config = seeds[0].config
    result: dict[str, Any] = {
        "format": FORMAT,
        "dataset": config.dataset,
        "seeds": [trained.config.seed for trained in seeds],
        "retrieval": {},
        "ranker": None,
        "off_policy": None,
    }
    evaluation = Evaluation(result)
    own = Protocol.fit(seeds, report)
    bench = own.bench(held_out(seeds[0], seeds[0].query_columns))
    values = own.judge(config.split.protocol, bench, evaluation)
    if config.split.protocol == "temporal":
        own.judge("rolling", own.bench(_rolling(seeds[0])), evaluation)
    if last_out:
        other = Protocol.fit(last_out, report)
        queries = held_out(last_out[0], last_out[0].query_columns)
        other.judge("leave_last_out", other.bench(queries), evaluation)
    _judge_rankers(seeds, evaluation, report)
    report(0, 1, "served lists")
    served = [_served(trained, bench.queries) for trained in seeds]
    baselines = {name: values[name] for name in values if name != TWO_TOWER}
    result["end_to_end"] = end_to_end(bench, served, baselines)
    lists = stacked([bench.judge_lists(one.ranked) for one in served])
    evaluation.per_user |= arrays("end_to_end", {SERVED: lists})
    evaluation.per_user["end_to_end/user_row"] = bench.user_row
    return evaluation


def held_out(trained: Trained, columns: list[str]) -> Queries:
    """The test part's queries with these sample columns, sampled as configured."""
    queries = held_out_queries(trained.store, "test", columns)
    return queries.sample(_max_queries(trained), trained.config.seed)


def _rolling(trained: Trained) -> Queries:
    return rolling_queries(
        trained.store,
        trained.query_columns,
        per_user=trained.config.evaluation.rolling_per_user,
        max_queries=_max_queries(trained),
        seed=trained.config.seed,
    )


def _max_queries(trained: Trained) -> int:
    """As configured, fewer where the catalogue is large: each query is scored against all."""
    return min(trained.config.evaluation.max_queries, MAX_SCORES // trained.spec.num_videos + 100)


# --- retrieval -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Protocol:
    """Retrievers of all seeds and tuned baselines, trained on the same split."""

    seeds: Sequence[Trained]
    baselines: dict[str, Baseline]
    skipped: dict[str, str]
    catalogue: Catalogue

    @classmethod
    def fit(cls, seeds: Sequence[Trained], report: Report) -> Protocol:
        """Tune the baselines on validation data and refit them on train + validation."""
        store, spec, config = seeds[0].store, seeds[0].spec, seeds[0].config
        train = Watches.read(store, spec, "train").of_some_users(TUNING_WATCHES)
        both = Watches.read(store, spec, "train", "valid")
        valid = held_out_queries(store, "valid", [])
        valid = valid.sample(min(MAX_VALID_QUERIES, _max_queries(seeds[0])), config.seed)
        skipped = too_large(both)
        baselines = {}
        tried = candidates()
        for number, (name, settings) in enumerate(tried.items()):
            if name not in skipped:
                report(number, len(tried), f"tuning {name}")
                baselines[name] = best_on_validation(settings, train, valid).fit(both)
        return cls(seeds, baselines, skipped, Catalogue(both.counts))

    def bench(self, queries: Queries) -> Bench:
        if not queries.has_history.any():
            raise DataError(
                "the test part has nothing to evaluate retrieval on",
                expected="users with a history who watch something new",
                found=f"{len(queries)} users with new watches, none with a history",
                next_step="use more data, or raise split.test_fraction",
            )
        return Bench(queries, self.catalogue)

    def judge(self, name: str, bench: Bench, evaluation: Evaluation) -> Values:
        """Judge all models on `bench`; adds to the evaluation and returns values per user."""
        num_videos = self.catalogue.num_videos
        judged = {TWO_TOWER: [bench.judge(one.two_tower(bench.queries)) for one in self.seeds]}
        for baseline, fitted in self.baselines.items():
            scorer = baseline_scorer(fitted, bench.queries, num_videos)
            judged[baseline] = [bench.judge(scorer)]
        values = {model: stacked(results) for model, results in judged.items()}
        metrics, paired = summarise(values, TWO_TOWER)
        for model, results in judged.items():
            metrics[model]["segments"] = segment_means(results)
        evaluation.result["retrieval"][name] = {
            "users": len(bench.user_row),
            "queries": int(bench.queries.has_history.sum()),
            "models": metrics,
            "paired": paired,
            "settings": {name: repr(fitted) for name, fitted in self.baselines.items()},
            "skipped": self.skipped,
        }
        evaluation.per_user |= arrays(name, values) | {f"{name}/user_row": bench.user_row}
        return values


# --- ranker --------------------------------------------------------------------------------------
def _judge_rankers(seeds: Sequence[Trained], evaluation: Evaluation, report: Report) -> None:
    """DLRM of all seeds, boosted trees and biases on the samples of the test part.

    Data that only says what was watched has no negatives to judge a ranker on by itself.
    """
    store, spec = seeds[0].store, seeds[0].spec
    events = read_events(store, spec, "test")
    if not 0 < events.label.mean() < 1:
        return
    report(0, 1, "ranker baselines")
    biases = Biases(store).fit()
    predictions = {
        DLRM: [trained.dlrm("test") for trained in seeds],
        "lightgbm": [Predictions(*Trees(store, spec, biases).fit().predict("test"))],
        "bias": [Predictions(biases.predict("test"))],
    }
    values: Values = {}
    for model, by_seed in predictions.items():
        judged = [ranker_values(events, one) for one in by_seed]
        values[model] = {m: np.stack([one[m] for one in judged]) for m in judged[0]}
    metrics, paired = summarise(values, DLRM)
    evaluation.result["ranker"] = {
        "events": len(events.label),
        "users": len(np.unique(events.user_row)),
        "models": metrics,
        "paired": paired,
        "reliability": {m: _reliability(events, by_seed) for m, by_seed in predictions.items()},
    }
    evaluation.per_user |= {"ranker/label": events.label, "ranker/user_row": events.user_row}
    for model, by_seed in predictions.items():
        evaluation.per_user[f"ranker/{model}/p"] = np.stack([one.p for one in by_seed])


def _reliability(events: Events, by_seed: list[Predictions]) -> list[dict[str, float]]:
    """Reliability of the first seed: averaging probabilities would show another model."""
    return reliability(events.label, by_seed[0].p)


# --- end to end ----------------------------------------------------------------------------------
def _served(trained: Trained, queries: Queries) -> Served:
    exact, approximate = trained.candidates(queries)
    scores = trained.candidate_scores(queries, approximate)
    return Served(exact, approximate, ranked_lists(approximate, scores))
