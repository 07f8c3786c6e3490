"""Two bundles that serve side by side, compared on real requests of a run."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import numpy as np

from triton_repo.bench import sample_requests
from triton_repo.client import Client, Recommendation
from triton_repo.deployment import LIVE, Deployment
from triton_repo.server import running_process
from workflow.console import Report, no_report
from workflow.errors import ServingError
from workflow.run import Run

Pair = tuple[Recommendation, Recommendation]
_OVERLAP_AT = (1, 5, 10, 20, 50, 100)


def compare_bundles(
    deployment: Deployment,
    run: Run,
    name: str,
    *,
    num_requests: int,
    top_k: int,
    report: Report = no_report,
) -> dict[str, Any]:
    """Ask the live bundle and the one deployed as `name` the same, in turn.

    Returns:
        {"requests", "top_k", "versions": {"live", name}, "overlap": {k: mean share of the first k
        that both have}, "same_page": share, "rank_correlation": mean Spearman of the videos that
        both have, "score_difference": {"mean", "max"} of these, "status": {"ok": n, "ok -> other":
        n}, "latency_ms": {"live", name: {"p50", "p99"}}}.
    Raises:
        ServingError: no live server, no such name, or a request that one of them refuses.
        MissingArtifactError: the run has no events to ask about.
    """
    pointer = deployment.served_pointer()
    versions = {LIVE: pointer.live, name: pointer.version_of(name)}
    server = running_process(deployment)
    if server is None:
        raise ServingError(
            f"no server of {deployment} runs",
            next_step=f"marquee serve --deployment {deployment}",
        )
    url, keys = server.grpc_url, server.credentials
    with (
        Client(url, credentials=keys) as live,
        Client(url, credentials=keys, name=name) as other,
    ):
        requests = [
            _options(row) | {"top_k": top_k}
            for row in sample_requests(run, live.inputs(), num_requests)
        ]
        clients = (live, other)
        for client in clients:  # connections and the first call's set-up are not compared
            client.recommend(**requests[0])
        pairs, seconds = [], []
        for number, request in enumerate(requests):
            report(number, len(requests), "")
            pair, spent = _ask_both(clients, request, swap=bool(number % 2))
            pairs.append(pair)
            seconds.append(spent)
    return {
        "requests": len(requests),
        "top_k": top_k,
        "versions": versions,
        **differences(pairs, top_k),
        "latency_ms": dict(zip((LIVE, name), map(_latency, np.array(seconds).T), strict=True)),
    }


def _options(row: dict[str, list[Any]]) -> dict[str, Any]:
    """A sampled request as arguments of `Client.recommend`."""
    values = {name: value for name, [value] in row.items()}
    user_id, moment = values.pop("user_id"), values.pop("time", None)
    return {"user_id": user_id, "time": moment, "context": values}


def _ask_both(
    clients: tuple[Client, Client], request: dict[str, Any], *, swap: bool
) -> tuple[Pair, tuple[float, float]]:
    """Answers and seconds of both; who is asked first changes, for the caches' sake."""
    answers: dict[Client, Recommendation] = {}
    seconds: dict[Client, float] = {}
    for client in reversed(clients) if swap else clients:
        started = time.perf_counter()
        answers[client] = client.recommend(**request)
        seconds[client] = time.perf_counter() - started
    live, other = clients
    return (answers[live], answers[other]), (seconds[live], seconds[other])


def differences(pairs: list[Pair], top_k: int) -> dict[str, Any]:
    """What `compare_bundles` says of the pages; None where they have too little in common."""
    at = [k for k in _OVERLAP_AT if k < top_k] + [top_k]
    overlaps = {str(k): float(np.mean([overlap(a, b, k) for a, b in pairs])) for k in at}
    same = [a.video_ids.tolist() == b.video_ids.tolist() for a, b in pairs]
    correlations = [c for pair in pairs if (c := rank_correlation(*pair)) is not None]
    gaps = np.concatenate([score_gaps(*pair) for pair in pairs])
    statuses = Counter(
        a.status.name if a.status == b.status else f"{a.status.name} -> {b.status.name}"
        for a, b in pairs
    )
    return {
        "overlap": overlaps,
        "same_page": float(np.mean(same)),
        "rank_correlation": float(np.mean(correlations)) if correlations else None,
        "score_difference": {
            "mean": float(gaps.mean()) if len(gaps) else None,
            "max": float(gaps.max()) if len(gaps) else None,
        },
        "status": dict(sorted(statuses.items())),
    }


def overlap(first: Recommendation, second: Recommendation, k: int) -> float:
    """Share of the first k videos that both pages have; 1 when both are empty."""
    a, b = set(first.video_ids[:k].tolist()), set(second.video_ids[:k].tolist())
    longest = max(len(a), len(b))
    return len(a & b) / longest if longest else 1.0


def rank_correlation(first: Recommendation, second: Recommendation) -> float | None:
    """Spearman's correlation of the order of the videos that both pages have.

    Returns:
        -1 to 1, or None with fewer than two such videos.
    """
    places = _common_places(first, second)
    if len(places) < 2:
        return None
    ranks = np.argsort(np.argsort(places, axis=0), axis=0)
    return float(np.corrcoef(ranks.T)[0, 1])


def score_gaps(first: Recommendation, second: Recommendation) -> Any:
    """|difference| of the scores of each video that both pages have, float [n]."""
    places = _common_places(first, second)
    return np.abs(first.scores[places[:, 0]] - second.scores[places[:, 1]])


def _common_places(first: Recommendation, second: Recommendation) -> Any:
    """Positions on both pages of the videos that both have, int [n, 2]."""
    where = {video: place for place, video in enumerate(second.video_ids.tolist())}
    pairs = [
        (place, where[video])
        for place, video in enumerate(first.video_ids.tolist())
        if video in where
    ]
    return np.array(pairs, np.int64).reshape(-1, 2)


def _latency(seconds: Any) -> dict[str, float]:
    p50, p99 = 1000 * np.quantile(seconds, [0.5, 0.99])
    return {"p50": round(float(p50), 2), "p99": round(float(p99), 2)}
