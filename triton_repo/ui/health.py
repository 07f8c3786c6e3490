"""The health tab: drift, calibration, coverage, latency, bundle, split."""

from __future__ import annotations

import re
import urllib.request
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from triton_repo.client import front_model
from triton_repo.ui import drift

if TYPE_CHECKING:
    from triton_repo.ui.source import LiveSource

LEAST_PAGES = 50  # from which on drift is judged: videos of one page are much alike
LEAST_TIMINGS = 100  # from which on a p99 is more than the slowest one
_HELPFUL = ("score", "p_positive", "p_watched", "watch_s")


def health(source: LiveSource, known: dict[str, Any]) -> dict[str, Any]:
    """Everything that the tab shows, as JSON.

    Args:
        known: reference.read_log of the source.
    Returns:
        {"bundle", "latency", "triton", "coverage", "split", "calibration", "drift": {"log",
        "requests", "scores"}}; where something cannot be said there is {"missing": why}.
    """
    metrics = _metrics(source)
    return {
        "bundle": _bundle(source),
        "latency": latency(source.seen.latencies()),
        "triton": _triton(source, metrics),
        "coverage": _coverage(source, known),
        "split": _split(source, metrics),
        "calibration": known["calibration"],
        "drift": {
            "log": known["log"],
            "requests": _requests(source, known["requests"]),
            "scores": _scores(source, known["said"]),
        },
    }


def latency(found: dict[str, list[float]]) -> list[dict[str, Any]]:
    """p50 and p99 in milliseconds by stage."""
    return [
        {
            "stage": stage,
            "p50_ms": round(float(np.percentile(ms, 50)), 3),
            "p99_ms": round(float(np.percentile(ms, 99)), 3),
            "count": len(ms),
            "verdict": "ok" if len(ms) >= LEAST_TIMINGS else "too few",
        }
        for stage, ms in found.items()
        if ms
    ]


def _bundle(source: LiveSource) -> dict[str, Any]:
    shelf = source.newest
    return {
        "version": shelf.version,
        "num_videos": shelf.num_videos,
        "num_users": len(shelf.user_id),
        "log_end": source.log_end,
        "diversity": shelf.settings["diversity"],
        "explore_slots": shelf.settings["explore_slots"],
        "server": source.served.server.grpc_url,
        "from": source.served.name,
    }


# --- Triton's own counters -----------------------------------------------------------------------
_STAGE = re.compile(
    r'^marquee_stage_(duration_us|rows)\{ensemble="page",stage="(\w+)",version="(\d+)"\} (\S+)$',
    re.M,
)


def stage_costs(metrics: str) -> list[dict[str, Any]]:
    """Mean milliseconds a user by stage of the page, since Triton started; from its metrics."""
    sums: dict[str, dict[str, float]] = {}
    for what, stage, _, value in _STAGE.findall(metrics):
        known = sums.setdefault(stage, {"duration_us": 0.0, "rows": 0.0})
        known[what] += float(value)
    return [
        {
            "stage": stage,
            "mean_ms": round(one["duration_us"] / one["rows"] / 1000, 3),
            "count": int(one["rows"]),
        }
        for stage, one in sums.items()
        if one["rows"]
    ]


# The version that Triton's metrics give an ensemble is always 1.
_ANSWERED = re.compile(r'^nv_inference_count\{model="(\w+)",version="1"\} (\S+)$', re.M)


def split_shares(metrics: str, live: int, named: dict[str, int]) -> list[dict[str, Any]]:
    """Users answered with a list since Triton's start, live and under each name, and the shares.

    Args:
        metrics: Triton's, as text.
        live: version of the bundle that answers who asks for none.
        named: name -> version of those beside it.
    """
    counts = {model: float(count) for model, count in _ANSWERED.findall(metrics)}
    serving: list[tuple[str | None, int]] = [(None, live), *named.items()]
    users = [counts.get(front_model(name), 0) for name, _ in serving]
    return [
        {
            "name": name or "live",
            "version": version,
            "users": int(count),
            "share": round(count / sum(users), 4) if sum(users) else None,
        }
        for (name, version), count in zip(serving, users, strict=True)
    ]


def _metrics(source: LiveSource) -> str | None:
    """Triton's metrics; None where they do not answer."""
    url = source.served.server.metrics_url
    with suppress(OSError, ValueError), urllib.request.urlopen(url, timeout=2) as answer:
        return str(answer.read().decode())
    return None


def _triton(source: LiveSource, metrics: str | None) -> dict[str, Any]:
    if metrics is None:
        return {"missing": f"Triton's metrics at {source.served.server.metrics_url} do not answer"}
    return {"stages": stage_costs(metrics)}


# --- what was shown ------------------------------------------------------------------------------
def _coverage(source: LiveSource, known: dict[str, Any]) -> dict[str, Any]:
    total, seen = source.newest.num_videos, source.seen
    parts = [("pages of this window", len(seen.pages), len(seen.videos()))]
    if known["shown"]:
        parts.append(("pages of the log's requests", known["pages"], len(known["shown"])))
    return {
        "num_videos": total,
        "parts": [
            {"of": name, "pages": pages, "videos": videos, "share": round(videos / total, 4)}
            for name, pages, videos in parts
        ],
    }


def _split(source: LiveSource, metrics: str | None) -> dict[str, Any]:
    seen, deployment = source.seen.versions(), source.served.deployment
    if deployment is None:
        return {"missing": "A run serves one bundle; a deployment may serve several", "seen": seen}
    pointer = deployment.pointer()
    if pointer.live is None:
        return {"missing": "The deployment serves no bundle", "seen": seen}
    return {
        "live": pointer.live,
        "previous": pointer.previous,
        "serving": split_shares(metrics or "", pointer.live, pointer.named),
        "seen": seen,
        "note": "Who gets which bundle is the calling service's choice (SplitClient); "
        "pages are of the live one",
    }


# --- drift ---------------------------------------------------------------------------------------
def _requests(source: LiveSource, expected: dict[str, list[str]]) -> dict[str, Any]:
    if not expected:
        return {"missing": "The training log is in the run: marquee ui --run RUN"}
    seen = source.seen
    rows = []
    for name, values in expected.items():
        actual = seen.hours() if name == "hour" else seen.context(name)
        rows.append(drift.row(name, values, actual, LEAST_PAGES, numbers=False))
    return {"rows": rows, "least": LEAST_PAGES, "unit": "pages"}


def _scores(source: LiveSource, expected: dict[str, list[float]]) -> dict[str, Any]:
    if not expected:
        return {"missing": "The log's requests are in the run: marquee ui --run RUN"}
    seen, rows = source.seen, []
    for name in filter(expected.get, _HELPFUL):
        value = drift.of_numbers(expected[name], seen.values(name))
        rows.append(drift.judged(name, value, len(seen.pages), LEAST_PAGES))
    return {"rows": rows, "least": LEAST_PAGES, "unit": "pages"}
