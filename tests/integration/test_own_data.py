"""Your own files and a contract are enough: no Python, no fixed names, string ids too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

ML_CONTRACT = Path(__file__).parents[2] / "workflow" / "configs" / "examples" / "ml-100k.toml"


def test_movielens_through_the_contract_only(marquee: Any, ml_run: Any, ml_source: Path) -> None:
    films = {}
    for line in (ml_source / "ml-100k.item").read_text(encoding="utf-8").splitlines()[1:]:
        film, title, *_ = line.split("\t")
        films[int(film)] = title
    answer = marquee.json(
        "recommend", "--run", ml_run.folder, "--user", 1, "--top-k", 12, "--in-process"
    )
    assert answer["user_id"] == 1 and answer["status"] == "ok"
    assert len({item["video_id"] for item in answer["items"]}) == 12
    assert all(item["title"] == films[item["video_id"]] for item in answer["items"])
    watched = pq.read_table(ml_run.folder / "data" / "events").to_pandas().query("user_row == 1")
    videos = pq.read_table(ml_run.folder / "data" / "videos.parquet").to_pandas()["video_id"]
    seen = set(videos.to_numpy()[watched["video_row"].to_numpy() - 1])
    assert seen and not seen & {item["video_id"] for item in answer["items"]}


def test_its_run_reports_every_stage(ml_run: Any) -> None:
    stages = {stage["stage"]: stage["summary"] for stage in ml_run.result["stages"]}
    assert stages["validate"]["num_events"] >= 20_000
    assert stages["train_retriever"]["valid_recall@100"] > 0
    assert 0 < stages["train_ranker"]["valid_auc"] < 1
    assert len(ml_run.result["recommendations"]["items"]) == 10
    assert all(item["title"] for item in ml_run.result["recommendations"]["items"])


def test_a_drafted_contract_runs_unedited(marquee: Any, ml_source: Path, tmp_path: Path) -> None:
    """init → validate; the draft has the same events, ids and features as the shipped example."""
    draft = tmp_path / "draft.toml"
    assert marquee.json("init", "--from", ml_source, "--to", draft) == {"contract": str(draft)}
    assert "TODO" in draft.read_text(encoding="utf-8")
    again = marquee("init", "--from", ml_source, "--to", draft)
    assert "exists" in again.error and "--force" in again.error
    run = tmp_path / "run"
    words = ("--run", run, "--source", ml_source, "--contract", draft)
    summary = marquee.json("validate", *words)
    lines = (ml_source / "ml-100k.inter").read_text(encoding="utf-8").splitlines()
    assert summary["num_events"] == len(lines) - 1
    assert summary["dropped"] == {} or not any(summary["dropped"].values())
    assert marquee.json("features", "--run", run)["stages"][0]["summary"]["num_train"] > 0


def test_string_ids_without_users_labels_and_watch_times(marquee: Any, clip_run: Any) -> None:
    stages = {stage["stage"]: stage["summary"] for stage in clip_run.result["stages"]}
    assert stages["validate"]["num_events"] == 9_000
    assert 0 < stages["train_ranker"]["valid_auc"] < 1
    words = ("recommend", "--run", clip_run.folder, "--in-process", "--top-k", 30)
    answer = marquee.json(*words, "--user", "vü-17", "--app", "télé", "--slot", 3)
    assert answer["user_id"] == "vü-17" and answer["status"] == "ok"
    assert len(answer["items"]) == 30
    for item in answer["items"]:
        number = int(item["video_id"].removeprefix("clip ").removesuffix("/é"))
        assert item["title"] == ("" if number % 7 == 0 else f"Clip número {number}")
    assert marquee.json(*words, "--user", "nobody")["status"] == "unknown_user"
    refused = marquee(*words, "--user", "vü-17", "--slot", "late")
    assert "slot" in refused.error and "late" in refused.error


def test_no_artefact_names_this_machine(clip_run: Any, sim_run: Any) -> None:
    """A run folder can be moved: no absolute path in what it serves, no pickle anywhere."""
    for run in (clip_run, sim_run):
        files = [p for p in run.folder.rglob("*") if p.is_file() and "logs" not in p.parts]
        assert not [p for p in files if p.suffix in (".pkl", ".pickle", ".joblib")]
        for path in files:
            if path.suffix in (".json", ".pbtxt", ".onnx", ".npy") and path.name != "endpoint.json":
                assert str(run.folder.parent).encode() not in path.read_bytes(), path
    json.loads((sim_run.folder / "manifest.json").read_text())
