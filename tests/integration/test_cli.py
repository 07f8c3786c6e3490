"""The verbs of the real command: shapes that scripts depend on, and bad input."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from triton_repo.bundle import read_bundle

STAGES = ["validate", "features", "train_retriever", "train_ranker", "index", "export"]
ML_CONTRACT = Path(__file__).parents[2] / "workflow" / "configs" / "examples" / "ml-100k.toml"


# --- shapes --------------------------------------------------------------------------------------
def test_run(sim_run: Any) -> None:
    result = sim_run.result
    assert result["run"] == str(sim_run.folder) and result["seconds"] > 0
    assert [stage["stage"] for stage in result["stages"]] == STAGES
    assert not any(stage["skipped"] for stage in result["stages"])
    assert 200 < result["peak_memory_mb"] < 6_000
    check_answer(result["recommendations"], 10)


def check_answer(answer: dict[str, Any], count: int, status: str = "ok") -> None:
    assert {"user_id", "status", "items"} <= set(answer)
    assert answer["status"] == status
    assert len(answer["items"]) == count
    assert all(set(item) == {"video_id", "score", "title"} for item in answer["items"])
    scores = [item["score"] for item in answer["items"]]
    assert scores == sorted(scores, reverse=True)
    assert len({item["video_id"] for item in answer["items"]}) == count


def test_finished_stages_are_skipped(marquee: Any, sim_run: Any, contents: Any) -> None:
    """One call for all; each verb by itself says the same about its own stages."""
    before = contents(sim_run.folder)
    validated = marquee.json("validate", "--run", sim_run.folder)
    assert validated["skipped"] and validated["num_events"] == 40_000
    assert {column["result"] for column in validated["columns"]} == {"PASS"}
    for verb, names in {
        "features": ["features"],
        "train": ["train_retriever", "train_ranker"],
        "index": ["index"],
        "export": ["export"],
    }.items():
        result = marquee.json(verb, "--run", sim_run.folder)
        assert set(result) == {"run", "stages"}
        assert [(one["stage"], one["skipped"]) for one in result["stages"]] == [
            (name, True) for name in names
        ]
    assert contents(sim_run.folder) == before


def test_force_does_it_again_with_the_same_result(
    marquee: Any, copied: Path, contents: Any
) -> None:
    """All but the version number."""
    before = read_bundle(copied / "model_repository")
    [stage] = marquee.json("export", "--run", copied, "--force")["stages"]
    assert not stage["skipped"]
    after = read_bundle(copied / "model_repository")
    assert after.version == stage["summary"]["version"] > before.version
    same = {name.replace(str(before.version), "N") for name in before.sha256}
    assert {name.replace(str(after.version), "N") for name in after.sha256} == same
    for name, digest in before.sha256.items():
        if not name.endswith("config.pbtxt"):
            assert after.sha256[name.replace(str(before.version), str(after.version))] == digest


def test_progress_goes_to_standard_error(marquee: Any, sim_run: Any) -> None:
    user = sim_run.result["recommendations"]["user_id"]
    words = ("recommend", "--run", sim_run.folder, "--user", user, "--in-process")
    as_json = marquee(*words, "--json")
    assert as_json.out.count("\n") == 1 and json.loads(as_json.out)
    assert "Recommend for user" in as_json.err
    table = marquee(*words, "--top-k", 3)
    assert table.status == 0 and "Recommend for user" not in table.out
    for item in json.loads(as_json.out)["items"][:3]:
        assert item["title"] in table.out and str(item["video_id"]) in table.out
    assert "Next: marquee bench" in table.out


def test_recommend(marquee: Any, sim_run: Any, sim_server: dict[str, Any]) -> None:
    """The server's answer and the one in process are the same; options change it."""
    user = sim_run.result["recommendations"]["user_id"]
    words = ("recommend", "--run", sim_run.folder, "--user", user, "--top-k", 17)
    served = marquee.json(*words)
    check_answer(served, 17)
    assert served["user_id"] == user
    assert served["items"][:10] == sim_run.result["recommendations"]["items"]
    assert same(served, marquee.json(*words, "--in-process"))
    tv = marquee.json(*words, "--device", "tv")
    assert not same(tv, served)
    assert same(tv, marquee.json(*words, "--device=tv", "--in-process"))
    unknown = marquee.json("recommend", "--run", sim_run.folder, "--user", 5, "--top-k", 200)
    check_answer(unknown, 100, "unknown_user")


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    scores = [[item.pop("score") for item in answer["items"]] for answer in (one, other)]
    for answer, values in zip((one, other), scores, strict=True):
        for item, value in zip(answer["items"], values, strict=True):
            item["score"] = round(value, 5)
    return one == other


def test_forms_of_time(marquee: Any, sim_run: Any, sim_server: dict[str, Any]) -> None:
    user = sim_run.result["recommendations"]["user_id"]
    words = ("recommend", "--run", sim_run.folder, "--user", user, "--at")
    at = sim_run.result["recommendations"]["at"] - 3 * 86_400
    iso = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at))
    seconds = marquee.json(*words, at)
    assert seconds["at"] == at
    assert marquee.json(*words, iso) == seconds
    assert abs(marquee.json(*words, "now")["at"] - time.time()) < 60
    early = marquee.json(*words, "2001-01-01")
    assert early["status"] == "empty_history"
    assert "yesterday" in marquee(*words, "yesterday").error


def test_every_verb_has_help(marquee: Any) -> None:
    verbs = "validate features train index export serve recommend bench evaluate run init".split()
    overview = marquee("--help").out
    assert all(verb in overview for verb in verbs)
    assert "--resume" in marquee("run", "--help").out


# --- bad input -----------------------------------------------------------------------------------
ASK = ["recommend", "--run", "{run}", "--in-process"]
BAD_CALLS = {
    "unknown run": (["evaluate", "--run", "{tmp}/none"], "none"),
    "unknown dataset": (["run", "--run", "{tmp}/r", "--dataset", "netflix"], "sim"),
    "unknown key": (["features", "--run", "{run}", "--set", "features.colour=1"], "colour"),
    "bad value": (["features", "--run", "{run}", "--set", "seed=red"], "seed"),
    "no equals sign": (["features", "--run", "{run}", "--set", "seed"], "section.key=value"),
    "out of range": (["index", "--run", "{run}", "--set", "index.target_recall=2"], "recall"),
    "no contract": (["run", "--run", "{tmp}/r", "--source", "{tmp}", "--contract", "{tmp}/c"], "c"),
    "no contract, old run": (["run", "--run", "{run}", "--contract", "{tmp}/c.toml"], "--source"),
    "no source": (["run", "--run", "{run}", "--contract", ML_CONTRACT, "--source", "/x"], "/x"),
    "no config": (["run", "--run", "{run}", "--dataset", "sim", "--config", "{tmp}/c"], "c"),
    "no model": (["train", "--run", "{run}", "--model", "bert"], "retriever, ranker or both"),
    "no user number": (["recommend", "--run", "{run}", "--user", "me", "--in-process"], "me"),
    "no context": (["recommend", "--run", "{run}", "--user", "1", "--colour", "red"], "device"),
    "half an option": (["recommend", "--run", "{run}", "--user", "1", "--device"], "--device"),
    "top_k 0": ([*ASK, "--user", "1", "--top-k", "0"], "at least 1"),
    "negative top_k": ([*ASK, "--user", "1", "--top-k", "-3"], "at least 1"),
    "huge top_k": ([*ASK, "--user", "1", "--top-k", "9" * 12], "999"),
    "huge id": ([*ASK, "--user", "9" * 30], "999"),
    "huge time": ([*ASK, "--user", "1", "--at", "9" * 25], "999"),
    "before 1970": ([*ASK, "--user", "1", "--at", "1960-01-01"], "1960"),
    "nothing to recommend from": (["recommend", "--run", "{tmp}/none", "--user", "1"], "none"),
    "nothing to serve": (["serve", "--run", "{tmp}/none"], "none"),
    "nothing to bench": (["bench", "--run", "{tmp}/none"], "none"),
    "concurrency 0": (["bench", "--run", "{run}", "-c", "0"], "concurrency"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_call(marquee: Any, sim_run: Any, tmp_path: Path, contents: Any, name: str) -> None:
    words, part = BAD_CALLS[name]
    filled = [str(word).format(tmp=tmp_path, run=sim_run.folder) for word in words]
    before = contents(sim_run.folder)
    result = marquee(*filled, "--json")
    assert part in result.error
    assert contents(sim_run.folder) == before
    assert not (tmp_path / "none").exists()


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# file -> verb that reads it
DAMAGE = {
    "config.json": "index --force",
    "contract.json": "features --force",
    "model_repository/ranker/*/ranker.onnx": "recommend --user 1 --in-process",
    "model_repository/query_tower/*/user_id.npy": "recommend --user 1",
    "model_repository/retrieval/*/index.faiss": "recommend --user 1",
}
DAMAGE_OF_MODELS = {
    "data/events/part-00000.parquet": "features --force",
    "features/spec.json": "index --force",
    "features/train/part-00000.parquet": "train --force",
    "features/history/time.npy": "index --force",
    "models/retriever/weights.npz": "index --force",
    "models/retriever/candidate_vectors.npy": "index --force",
    "models/ranker/weights.npz": "export --force",
}


@pytest.mark.parametrize("file", DAMAGE)
def test_damaged_artefact(marquee: Any, copied: Path, contents: Any, file: str) -> None:
    """Half a file is refused in one line, and nothing else is touched."""
    [path] = copied.glob(file)
    shorten(path)
    before = contents(copied)
    verb, *rest = DAMAGE[file].split()
    assert marquee(verb, "--run", copied, *rest, "--json").error
    assert contents(copied) == before


def test_damaged_data_and_models(copied: Path, contents: Any, tmp_path: Path) -> None:
    runs = [tmp_path / str(number) for number in range(len(DAMAGE_OF_MODELS))]
    for run, file in zip(runs, DAMAGE_OF_MODELS, strict=True):
        shutil.copytree(copied, run)
        shorten(run / file)
    before = [contents(run) for run in runs]
    verbs = DAMAGE_OF_MODELS.values()
    errors = errors_of(
        [f"{verb} --run {run} --json" for verb, run in zip(verbs, runs, strict=True)]
    )
    for file, run, error in zip(DAMAGE_OF_MODELS, runs, errors, strict=True):
        assert "Next: " in error, (file, error)
        if file.endswith((".npz", "time.npy")):
            assert str(run / file) in error and "--force" in error
    assert [contents(run) for run in runs] == before


# Several verbs in one process: importing TensorFlow takes longer than the stages.
VERBS = """
import sys
from workflow import cli
for words in (line.split() for line in sys.argv[1].splitlines()):
    sys.argv = ["marquee", *words]
    try:
        cli.main()
    except SystemExit as end:
        sys.stderr.write(f"status {end.code}\\n")
"""


def errors_of(verbs: list[str], **options: Any) -> list[str]:
    """The one line with which each of these calls fails."""
    words = [sys.executable, "-c", VERBS, "\n".join(verbs)]
    done = subprocess.run(
        words, capture_output=True, check=False, text=True, timeout=240, **options
    )
    assert done.stdout == "" and "Traceback" not in done.stderr, done.stdout + done.stderr
    ended = [line for line in done.stderr.splitlines() if not line.startswith(("•", "✓", "  "))]
    assert ended[1::2] == ["status 1"] * len(verbs), done.stderr
    return ended[0::2]


def test_a_damaged_manifest_only_costs_time(marquee: Any, copied: Path) -> None:
    shorten(copied / "manifest.json")
    assert "validate" in marquee("features", "--run", copied, "--json").error
    assert marquee.json("validate", "--run", copied)["num_events"] == 40_000


def test_one_process_at_a_time(marquee: Any, copied: Path, contents: Any) -> None:
    before = contents(copied)
    with (copied / ".lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write("4321")
        lock.flush()
        error = marquee("index", "--run", copied, "--force", "--json").error
    assert "process 4321" in error
    assert contents(copied) == before


def test_bad_source_leaves_the_old_run_whole(
    marquee: Any, copied: Path, clip_source: Path, tmp_path: Path, contents: Any
) -> None:
    """Settings that lead nowhere are not kept either: the next verb still knows the old ones."""
    source = tmp_path / "source"
    shutil.copytree(clip_source, source)
    table = pq.read_table(source / "log" / "0.parquet")
    pq.write_table(table.drop_columns(["viewer"]), source / "log" / "0.parquet")
    before = contents(copied)
    words = ("--source", source, "--contract", source / "contract.toml", "--json")
    assert "viewer" in marquee("run", "--run", copied, *words).error
    assert contents(copied) == before


# --- ports ---------------------------------------------------------------------------------------
def test_serve_with_a_taken_port(marquee: Any, copied: Path, sim_server: dict[str, Any]) -> None:
    port = sim_server["grpc_url"].rpartition(":")[2]
    error = marquee("serve", "--run", copied, "--grpc-port", port, "--json").error
    assert port in error and "--grpc-port" in error
    assert not (copied / "endpoint.json").exists()


def test_serve_twice(marquee: Any, sim_run: Any, sim_server: dict[str, Any]) -> None:
    error = marquee("serve", "--run", sim_run.folder, "--json").error
    assert sim_server["grpc_url"] in error


# --- a full disk ---------------------------------------------------------------------------------
@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path | None]:
    """A small file system, or None where mounting is not permitted."""
    libc = ctypes.CDLL(None, use_errno=True)
    target = tmp_path / "small"
    target.mkdir()
    if libc.mount(b"none", os.fsencode(target), b"tmpfs", 0, b"size=64m") != 0:
        yield None
        return
    yield target
    libc.umount2(os.fsencode(target), 2)


def _limit_files() -> None:
    """No file may grow above 12 kB: writing more fails as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))


def test_full_disk(
    copied: Path, small_disk: Path | None, contents: Any, leftovers: Callable[[Path], list[str]]
) -> None:
    run = copied
    if small_disk is not None:
        run = small_disk / "run"
        shutil.copytree(copied, run)
        free = shutil.disk_usage(run).free
        (small_disk / "filler").write_bytes(bytes(free - 60_000))
    before = contents(run)
    verbs = ["validate", "features", "train --model retriever", "train --model ranker"]
    verbs += ["index", "export"]
    limit = {} if small_disk else {"preexec_fn": _limit_files}
    for line in errors_of([f"{verb} --run {run} --force --json" for verb in verbs], **limit):
        assert line.startswith("StorageError: cannot write"), line
        assert str(run) in line and "Next:" in line
    assert contents(run) == before
    assert [name for name in leftovers(run) if not name.startswith("checkpoints")] == []
