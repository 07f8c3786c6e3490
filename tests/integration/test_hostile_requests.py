"""Some thousand malformed and hostile requests: each is answered or refused, nothing breaks."""

from __future__ import annotations

import importlib.util
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from triton_repo.client import Client

COUNT, THREADS, SEED = 1_500, 3, 20
ENDS = {"answered", "refused", "closed"}


def load_hostile() -> Any:
    """tests/hostile.py; tests is no package."""
    file = Path(__file__).parents[1] / "hostile.py"
    spec = importlib.util.spec_from_file_location("hostile", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_hostile_requests(sim_run: Any, sim_server: dict[str, Any]) -> None:
    hostile = load_hostile()
    urls = sim_server["grpc_url"], sim_server["http_url"]
    page = sim_run.result["recommendations"]
    family = {p.pid for p in psutil.Process(sim_server["pid"]).children()}

    def attack(seed: int) -> Counter[tuple[str, str]]:
        attacker = hostile.Hostile(*urls, seed)
        try:
            return Counter(attacker.send() for _ in range(COUNT // THREADS))
        finally:
            attacker.close()

    with Client(sim_server["grpc_url"], timeout_s=20) as client:
        good = client.recommend(page["user_id"], time=page["at"])
        with ThreadPoolExecutor(THREADS) as pool:
            ends = sum(pool.map(attack, range(SEED, SEED + THREADS)), Counter[tuple[str, str]]())
        after = client.recommend(page["user_id"], time=page["at"])
    assert {end for _, end in ends} <= ENDS, ends
    assert ends.total() == COUNT and len({kind for kind, _ in ends}) == 8
    # Both kinds of ends occur: requests that are all refused at the door would test nothing.
    assert ends["tensors", "answered"] > 20 and ends["tensors", "refused"] > 200
    assert after.video_ids.tolist() == good.video_ids.tolist()
    assert after.scores.tolist() == good.scores.tolist()
    assert {p.pid for p in psutil.Process(sim_server["pid"]).children()} == family  # no stage died
