"""`marquee bench`: the real perf_analyzer against the run's live server."""

from __future__ import annotations

import json
from typing import Any

LATENCIES = ("p50_ms", "p95_ms", "p99_ms")


def test_bench(marquee: Any, sim_run: Any, sim_server: dict[str, Any]) -> None:
    words = ("bench", "--run", sim_run.folder, "-c", 1, "-c", 4, "--duration-s", 1.5)
    result = marquee.json(*words)
    assert [entry["concurrency"] for entry in result["results"]] == [1, 4]
    for entry in result["results"]:
        assert set(entry) == {
            "concurrency", *LATENCIES, "requests_per_s", "server_cpu_ms_per_request",
        }  # fmt: skip
        p50, p95, p99 = (entry[name] for name in LATENCIES)
        assert 0 < p50 <= p95 <= p99 < 5_000
        assert entry["requests_per_s"] > 5
        assert 0.1 < entry["server_cpu_ms_per_request"] < 100
        # What one caller waits and how many answers there are belong together (Little's law).
        assert entry["requests_per_s"] * p50 / 1000 <= 1.5 * entry["concurrency"]
    assert (result["num_videos"], result["num_candidates"]) == (500, 100)
    assert result["recall_vs_exact"] == 1.0
    assert json.loads((sim_run.folder / "benchmark" / "bench.json").read_text()) == result


def test_bench_of_string_ids_with_a_server_of_its_own(marquee: Any, clip_run: Any) -> None:
    words = ("bench", "--run", clip_run.folder, "--concurrency", 2, "--duration-s", 1)
    [entry] = marquee.json(*words)["results"]
    assert entry["concurrency"] == 2 and entry["requests_per_s"] > 5
    assert 0.1 < entry["server_cpu_ms_per_request"] < 100
