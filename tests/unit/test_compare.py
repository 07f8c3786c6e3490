"""`marquee compare` on two small planted evaluations."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from models.evaluation.compare import compare_runs, headline, render_comparison
from models.metrics import auc
from tests.fixtures import make_config, make_contract
from workflow.cli import app
from workflow.errors import ConfigError, MissingArtifactError
from workflow.job import Job, save_contract
from workflow.run import Run, write_json

USERS = 400
SPEC = {"valid_from": 10, "test_from": 20, "last_event": 30, "num_users": USERS, "num_videos": 50}


def made(
    folder: Path,
    *,
    gain: float = 0.0,
    users: range = range(1, USERS + 1),
    seeds: tuple[int, ...] = (7, 8),
    spec: dict[str, int] = SPEC,
    events: int = 1,
    first_video: str = "v0",
    **config: Any,
) -> Job:
    """A run as `marquee evaluate` leaves it: recall@100 of user u is base(u) + gain + seed noise.

    Novelty, neither good nor bad, rises with it; mrr is the same in all runs.
    """
    run = Run(folder)
    save_contract(run, make_contract())
    Job(run, make_config(**config)).save()
    write_json(run.features / "spec.json", spec)
    write_json(run.features / "summary.json", {"num_train": 8, "num_valid": 1, "num_test": events})
    for table, ids in (
        ("users/user_id", np.arange(spec["num_users"])),
        ("videos/video_id", np.array([first_video] + [f"v{n}" for n in range(1, 50)])),
    ):
        (run.features / table).parent.mkdir(parents=True, exist_ok=True)
        np.save(run.features / f"{table}.npy", ids)
    row = np.array(users)
    base = np.random.default_rng(0).uniform(0.2, 0.6, USERS + 1)[row]
    noise = np.random.default_rng(len(folder.name)).normal(0, 0.01, (len(seeds), len(row)))
    noise -= noise.mean(axis=0)  # the mean over seeds is exact
    metrics = {
        "recall@100": base + gain + noise,
        "mrr": np.tile(base, (len(seeds), 1)),
        "novelty@10": base + gain + noise,
        "coverage@10": np.tile(0.3 + base - base.mean(), (len(seeds), 1)),
    }
    arrays = {f"temporal/two_tower/{name}": values for name, values in metrics.items()}
    arrays |= ranker_arrays(gain, len(seeds))
    arrays |= {"temporal/user_row": row, "temporal/ease/recall@100": metrics["mrr"]}
    run.evaluation.mkdir(parents=True)
    np.savez(run.evaluation / "per_user.npz", **arrays)
    write_json(
        run.evaluation / "metrics.json",
        {"format": 2, "dataset": "planted", "seeds": list(seeds), "retrieval": {}},
    )
    return Job.load(run)


def ranker_arrays(gain: float, seeds: int) -> dict[str, Any]:
    """Ten events of each of 50 users; with a gain, probabilities follow the labels."""
    rng = np.random.default_rng(1)
    label = (rng.random(500) < 0.4).astype(np.float32)
    p = rng.uniform(0.1, 0.9, 500) + 10 * gain * (label - 0.4)
    return {
        "ranker/label": label,
        "ranker/user_row": np.repeat(np.arange(50), 10),
        "ranker/dlrm/p": np.tile(p.astype(np.float32).clip(0.01, 0.99), (seeds, 1)),
        "ranker/bias/p": np.full((1, 500), 0.4, np.float32),
    }


def test_rankers_are_compared_too(tmp_path: Path) -> None:
    a, b = made(tmp_path / "a"), made(tmp_path / "bb", gain=0.03, seeds=(1, 2, 3))
    part = compare_runs(a, b)["groups"]["ranker"]
    assert part["users"] == 50
    assert set(part["metrics"]) == {"auc", "per_user_auc", "log_loss", "ece"}
    arrays = [ranker_arrays(gain, 1) for gain in (0.0, 0.03)]
    aucs = [auc(values["ranker/label"], values["ranker/dlrm/p"][0]) for values in arrays]
    values = part["metrics"]["auc"]
    assert values["first"]["mean"] == pytest.approx(aucs[0])
    assert values["difference"] == pytest.approx(aucs[1] - aucs[0])
    assert values["verdict"] == "better" and part["metrics"]["log_loss"]["verdict"] == "better"
    assert part["metrics"]["log_loss"]["difference"] < 0


def test_a_planted_gain_is_found(tmp_path: Path) -> None:
    result = compare_runs(made(tmp_path / "a"), made(tmp_path / "bb", gain=0.03))
    assert list(result["groups"]) == ["temporal", "ranker"]
    part = result["groups"]["temporal"]
    assert part["users"] == USERS
    recall = part["metrics"]["recall@100"]
    assert recall["difference"] == pytest.approx(0.03)
    assert recall["low"] == pytest.approx(0.03) == pytest.approx(recall["high"])  # paired exactly
    assert recall["second"]["mean"] - recall["first"]["mean"] == pytest.approx(0.03)
    assert recall["first"]["low"] < recall["first"]["mean"] - 0.005  # alone: spread of users
    assert recall["verdict"] == "better"
    assert part["metrics"]["mrr"]["verdict"] == "none"
    assert part["metrics"]["novelty@10"]["verdict"] is None
    assert list(part["metrics"]) == ["recall@100", "mrr", "coverage@10", "novelty@10"]


def test_swapped_runs_swap_the_verdict(tmp_path: Path) -> None:
    a, b = made(tmp_path / "a"), made(tmp_path / "bb", gain=0.03)
    recall = compare_runs(b, a)["groups"]["temporal"]["metrics"]["recall@100"]
    assert recall["verdict"] == "worse" and recall["difference"] == pytest.approx(-0.03)


def test_a_run_does_not_differ_from_itself(tmp_path: Path) -> None:
    job = made(tmp_path / "a")
    for values in compare_runs(job, job)["groups"]["temporal"]["metrics"].values():
        assert values["difference"] == values["low"] == values["high"] == 0
        assert values["verdict"] in ("none", None)


def test_only_users_of_both_count_and_they_are_matched_by_row(tmp_path: Path) -> None:
    a = made(tmp_path / "a", users=range(1, 301))
    b = made(tmp_path / "bb", users=range(201, USERS + 1), gain=0.01, seeds=(1, 2, 3))
    result = compare_runs(a, b)
    part = result["groups"]["temporal"]
    assert part["users"] == 100 and result["seeds"] == [[7, 8], [1, 2, 3]]
    recall = part["metrics"]["recall@100"]
    assert recall["low"] == pytest.approx(0.01) == pytest.approx(recall["high"])
    assert "coverage@10" not in part["metrics"]  # it belongs to all users of a run together


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"spec": SPEC | {"test_from": 21}}, "test_from 21"),
        ({"spec": SPEC | {"num_users": 401}}, "num_users 401"),
        ({"events": 2}, "num_test 2"),
        ({"first_video": "other"}, "videos"),
        ({"split": {"test_fraction": 0.2}}, "split settings"),
        ({"users": range(301, 303)}, "no temporal user in common"),
    ],
)
def test_other_data_or_splits_are_refused(
    tmp_path: Path, change: dict[str, Any], word: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(word)):
        compare_runs(made(tmp_path / "a", users=range(1, 301)), made(tmp_path / "bb", **change))


def test_other_contracts_are_refused(tmp_path: Path) -> None:
    a, b = made(tmp_path / "a"), made(tmp_path / "bb")
    save_contract(b.run, make_contract(watch_time=False))
    with pytest.raises(ConfigError, match="different contracts"):
        compare_runs(a, Job.load(b.run))


def test_runs_that_were_not_evaluated(tmp_path: Path) -> None:
    a, b = made(tmp_path / "a"), made(tmp_path / "bb")
    write_json(b.run.evaluation / "metrics.json", {"retrieval": {}})
    with pytest.raises(MissingArtifactError, match="another version") as error:
        compare_runs(a, b)
    assert "marquee evaluate" in str(error.value)
    (b.run.evaluation / "metrics.json").unlink()
    with pytest.raises(MissingArtifactError, match="no evaluation in run"):
        compare_runs(a, b)


def invoke(*words: Any) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


def test_command_writes_nothing_unless_asked(tmp_path: Path) -> None:
    a, b = made(tmp_path / "a").run.root, made(tmp_path / "bb", gain=0.03).run.root
    before = sorted(tmp_path.rglob("*"))
    shown = invoke("compare", a, b)
    assert shown.exit_code == 0 and sorted(tmp_path.rglob("*")) == before
    assert "Recall@100" in shown.output and "better" in shown.output
    assert "+0.0300" in shown.output and "no difference shown" in shown.output
    as_json = json.loads(invoke("compare", a, b, "--json").stdout)
    assert as_json == json.loads(json.dumps(compare_runs(Job.load(Run(a)), Job.load(Run(b)))))
    page = tmp_path / "reports" / "ab.html"
    assert invoke("compare", a, b, "--report", page).exit_code == 0
    assert sorted(set(tmp_path.rglob("*")) - set(before)) == [page.parent, page]
    assert page.read_text() == render_comparison(as_json)


def test_page_shows_the_comparison(tmp_path: Path) -> None:
    result = compare_runs(made(tmp_path / "a"), made(tmp_path / "b<b>", gain=0.03))
    html = render_comparison(result)
    shown = [json.loads(v) for v in re.findall(r'<data value="([^"]+)"', html)]
    for values in result["groups"]["temporal"]["metrics"].values():
        for number in (values["difference"], values["low"], values["first"]["mean"]):
            assert number in shown
    assert "b&lt;b&gt;" in html and "<b>" not in html
    assert not re.search(r"https?:|//[a-z]|url\(|<script", re.sub(r"base64,\S+", "", html))
    assert headline(result) in html
    assert "Temporal: better in Recall@100." in html
    del result["groups"]["ranker"]
    assert headline(result) == "Of 3 metrics, the second run is better in 1 and worse in none."
    same = compare_runs(made(tmp_path / "c"), made(tmp_path / "dd"))
    assert headline(same) == "No difference is shown in any of 7 metrics."
