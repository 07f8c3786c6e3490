"""`marquee frontier`: judged like `evaluate`, made like `export`, measured once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from triton_repo.bundle import read_bundle
from workflow.job import Job
from workflow.run import Run, read_json

WORDS = (
    "frontier", "--num-candidates", 100, "--ranker", "fp32", "--ranker", "none",
    "--index", "flat", "--duration-s", 0.3, "--concurrency", 2, "--p99-ms", 100_000,
)  # fmt: skip
SERVED, RETRIEVAL = "100-flat-fp32", "100-flat-none"


@pytest.fixture(scope="module")
def folder(sim_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy: other tests look at what a run holds."""
    folder = tmp_path_factory.mktemp("runs") / "frontier"
    shutil.copytree(sim_run.folder, folder, ignore=shutil.ignore_patterns("logs"))
    return folder


@pytest.fixture(scope="module")
def swept(marquee: Any, folder: Path) -> dict[str, Any]:
    return marquee.json(*WORDS, "--run", folder)


def per_user(folder: Path, name: str) -> Any:
    return np.load(folder / "frontier" / "points" / name / "ndcg.npy", allow_pickle=False)


def test_quality_is_that_of_evaluate(swept: Any, folder: Path) -> None:
    """Served and retrieval order, user by user, against the trained models themselves.

    A user's list may differ where the evaluation takes the videos' age at the start of the test
    part and serving that at the request.
    """
    from models.evaluation.end_to_end import ranked_lists
    from models.evaluation.evaluate import held_out
    from models.evaluation.learned import Trained
    from models.evaluation.retrieval import Bench
    from models.watches import Catalogue, Watches

    job = Job.load(Run(folder))
    trained = Trained(job.run, job.config)
    queries = held_out(trained, trained.query_columns)
    counts = Watches.read(trained.store, trained.spec, "train", "valid").counts
    bench = Bench(queries, Catalogue(counts))
    _, candidates = trained.candidates(queries)
    ranked = ranked_lists(candidates, trained.candidate_scores(queries, candidates))
    for name, lists in ((SERVED, ranked), (RETRIEVAL, candidates)):
        expected = bench.judge_lists(lists).values["ndcg@10"]
        found = per_user(folder, name)
        assert len(found) == len(expected) == swept["users"]
        same = np.abs(found - expected) < 1e-9
        assert same.mean() > (0.9 if name == SERVED else 0.99)
        assert found.mean() == pytest.approx(expected.mean(), abs=0.005)
        [point] = [one for one in swept["points"] if one["name"] == name]
        assert point["quality"]["mean"] == pytest.approx(found.mean())
        assert point["quality"]["low"] < found.mean() < point["quality"]["high"]


def test_points_were_measured(swept: Any, folder: Path) -> None:
    served, retrieval = swept["points"]
    assert served["present"] and served["words"] == [] and not retrieval["present"]
    for point in swept["points"]:
        load = point["load"]
        assert 0 < load["p50_ms"] <= load["p99_ms"] < 5_000
        assert 0.1 < load["cpu_s_per_1000"] < 100 and point["stages_cpu_ms"] > 0
    best = max(swept["points"], key=lambda one: one["quality"]["mean"])
    assert swept["budget"]["configuration"] == best["name"]
    saved = read_json(folder / "frontier" / "frontier.json")
    assert saved == {name: value for name, value in swept.items() if name != "run"}
    page = (folder / "frontier" / "frontier.html").read_text()
    assert "A p99 of 100000 ms buys" in page and "--set serving.ranker=none" in page


def contents_of(run: Run) -> dict[str, str]:
    """Digests of what an export holds but for its version, which is the second of the export."""
    bundle = read_bundle(run.repository)
    return {
        name.replace(f"/{bundle.version}/", "/"): digest
        for name, digest in bundle.sha256.items()
        if not name.endswith("config.pbtxt")
    }


def test_the_settings_make_the_configuration(
    marquee: Any, swept: Any, folder: Path, copied: Path
) -> None:
    """An export of a copy of the run with the printed words is the very bundle that was judged."""
    words = [word for one in swept["points"][1]["words"] for word in ("--set", one)]
    marquee.json("export", "--run", copied, *words)
    point = Run(folder / "frontier" / "points" / RETRIEVAL)
    assert contents_of(Run(copied)) == contents_of(point) != contents_of(Run(folder))


def test_done_points_are_not_done_again(marquee: Any, swept: Any, folder: Path) -> None:
    points = folder / "frontier" / "points"
    before = {path: path.stat().st_mtime_ns for path in points.glob("*/*.json")}
    again = marquee.json(*WORDS[:-1], 0.001, "--run", folder)
    assert again["points"] == swept["points"]
    assert again["budget"]["configuration"] is None
    measured = [path for path in before if path.name in ("load.json", "quality.json")]
    assert len(measured) == 4
    assert all(path.stat().st_mtime_ns == before[path] for path in measured)
