"""Bar: at 5 times capacity, p99 of accepted requests at most 3 times the p99 at 80% load, and
goodput at least 90% of the maximum.

    .venv/bin/python tests/bench/overload.py RUN [SECONDS] [USERS]

Serves the run by itself. Capacity is the most that callers get who wait for their answer; then
requests come at 80% of it and at 5 times it, whether or not the server keeps up. The bar is about
an overload that lasts; its first second, in which the server finds out, is reported apart. The
load generator takes its share of the same cores, at 5 times capacity more than at capacity: with
several USERS a request (16) it has less to do for the same work of the server. When it cannot
send at the rate itself the result does not count. Also says which `serving.max_waiting` the bar
asks for. Exit status 1 when a bar is missed, 2 when the result does not count.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from load import Load, Outcome, payloads

from triton_repo.server import RunningServer, running_server
from workflow.run import Run

IN_FLIGHT = (8, 16, 32)  # users
KEPT_UP = 0.9
FIRST_S = 1.0
BAR_P99, BAR_GOODPUT = 3.0, 0.9


def figures(outcome: Outcome, cores: float | None = None) -> dict[str, Any]:
    return {
        "sent_per_s": round(outcome.sent / outcome.seconds),
        "good_per_s": round(outcome.per_s, 1),
        "p50_ms": round(outcome.p_ms(50), 2),
        "p99_ms": round(outcome.p_ms(99), 2),
        "refused": len(outcome.refused_s),
        "refused_p50_ms": round(outcome.p_ms(50, refused=True), 2) if outcome.refused_s else None,
        "errors": dict(outcome.errors),
        "server_cores": cores,
    }


def measured(server: RunningServer, phase: Any) -> dict[str, Any]:
    before = server.cpu_seconds()
    outcome: Outcome = phase()
    return figures(outcome, round((server.cpu_seconds() - before) / outcome.seconds, 2))


def main(run: str, seconds: float = 10.0, users: float = 1) -> int:
    with running_server(Run(Path(run))) as server:
        load = Load(server.grpc_url, payloads(Run(Path(run)), server, int(users)))
        load.at_concurrency(1, 2)
        closed = {
            str(c): measured(server, lambda c=c: load.at_concurrency(c, seconds))
            for c in sorted({max(1, int(rows // users)) for rows in IN_FLIGHT})
        }
        capacity = max(one["good_per_s"] for one in closed.values())
        busy = measured(server, lambda: load.at_rate(0.8 * capacity, seconds))
        first, over = map(figures, load.at_lasting_rate(5 * capacity, seconds, FIRST_S))
    result = {
        "users_a_request": int(users),
        "closed": closed,
        "capacity_per_s": capacity,
        "at_80_percent": busy,
        "at_5_times_first_second": first,
        "at_5_times": over,
        "p99_ratio": round(over["p99_ms"] / busy["p99_ms"], 2),
        "goodput_ratio": round(over["good_per_s"] / capacity, 3),
        "max_waiting_for_the_bar": int(BAR_P99 * busy["p99_ms"] / 1000 * capacity * users),
    }
    print(json.dumps(result, indent=2))
    if over["sent_per_s"] < KEPT_UP * 5 * capacity:
        print("the load generator did not keep up: try more USERS a request", file=sys.stderr)
        return 2
    good = result["p99_ratio"] <= BAR_P99 and result["goodput_ratio"] >= BAR_GOODPUT
    return 0 if good and not over["errors"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(float, sys.argv[2:])))
