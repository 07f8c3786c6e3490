"""Bars of MovieLens-1M: time and memory of the run, Recall@100 and AUC on the last 10% of time.

    .venv/bin/python tests/bench/movielens_1m.py [SOURCE]

SOURCE is an unpacked copy of MovieLens-1M; without it the data is downloaded. The run is made
from nothing in a temporary folder. Exit status 1 when a bar is missed.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MARQUEE = str(Path(sys.executable).with_name("marquee"))


def marquee(*arguments: str) -> Any:
    done = subprocess.run(
        [MARQUEE, *arguments, "--json"], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout)


def main(source: list[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="marquee-") as folder:
        started = time.monotonic()
        marquee("run", "--dataset", "movielens-1m", "--run", folder, *source)
        minutes = (time.monotonic() - started) / 60
        memory_gb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
        metrics = marquee("evaluate", "--run", folder)
    print(json.dumps(metrics, indent=2))
    bars = [
        ("minutes", minutes, "at most", 25),
        ("peak memory, GB", memory_gb, "at most", 6),
        (
            "Recall@100",
            metrics["retrieval"]["temporal"]["models"]["two_tower"]["recall@100"]["mean"],
            "at least",
            0.25,
        ),
        ("ranker AUC", metrics["ranker"]["models"]["dlrm"]["auc"]["mean"], "at least", 0.77),
    ]
    missed = 0
    for name, value, kind, bar in bars:
        good = value <= bar if kind == "at most" else value >= bar
        missed += not good
        print(f"{'ok    ' if good else 'MISSED'} {name}: {value:.4g} (bar: {kind} {bar})")
    return min(missed, 1)


if __name__ == "__main__":
    sys.exit(main(["--source", sys.argv[1]] if len(sys.argv) > 1 else []))
