"""`marquee batch`: what the server answers, for everybody, whatever happens meanwhile."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from triton_repo.batch import Plan, batch
from triton_repo.batch_part import Answering
from triton_repo.client import Client, Status
from triton_repo.local import LocalPipeline, as_tensors
from workflow.errors import ServingError
from workflow.run import Run, read_json

ROUNDING = 1e-5  # of scores: sums in batches of other sizes


def lists(folder: Path) -> dict[Any, dict[str, list[Any]]]:
    """Ranks, video ids, scores and status names by user, in the order of the rows."""
    found: dict[Any, dict[str, list[Any]]] = {}
    for row in pq.read_table(folder).to_pylist():
        of_user = found.setdefault(row.pop("user_id"), {name: [] for name in row})
        for name, value in row.items():
            of_user[name].append(value)
    return found


def check(found: dict[str, list[Any]], ids: list[Any], scores: Any, status: str) -> None:
    assert found["rank"] == list(range(1, len(ids) + 1))
    assert set(found["status"]) == {status}
    np.testing.assert_allclose(found["score"], scores, rtol=0, atol=ROUNDING)
    for at, (ours, theirs) in enumerate(zip(found["video_id"], ids, strict=True)):
        if ours != theirs:  # two of the same score
            assert (
                abs(scores[ids.index(ours)] - scores[at]) < ROUNDING
                if ours in ids
                else (abs(scores[-1] - scores[at]) < ROUNDING)
            )


def raw(user: Any) -> Any:
    return user.encode() if isinstance(user, str) else user


@pytest.fixture(scope="module")
def sim_batch(marquee: Any, sim_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("batch") / "sim"
    words = ("--output", folder, "--workers", 2, "--top-k", 10)
    result = marquee.json("batch", "--run", sim_run.folder, *words)
    return folder, result


def test_everybody_is_there(sim_batch: Any, sim_run: Any) -> None:
    folder, result = sim_batch
    users = pq.read_table(sim_run.folder / "data" / "users.parquet").column("user_id").to_pylist()
    table = pq.read_table(folder)
    assert list(dict.fromkeys(table.column("user_id").to_pylist())) == sorted(users)
    assert result["num_rows"] == len(table) == 10 * len(users)
    assert result["num_users"] == len(users) == sum(result["status"].values())
    assert result["num_parts"] == len(list(folder.glob("part-*.parquet"))) > 1
    assert result["users_per_cpu_s"] > 10


def test_as_served(sim_batch: Any, sim_server: dict[str, Any]) -> None:
    folder, result = sim_batch
    found = lists(folder)
    with Client(sim_server["grpc_url"]) as client:
        for user in list(found)[::23]:
            answer = client.recommend(user, top_k=10, time=result["at"])
            name = answer.status.name
            check(found[user], answer.video_ids.tolist(), answer.scores, name)


def test_as_one_by_one_in_process(sim_batch: Any, sim_run: Any) -> None:
    folder, result = sim_batch
    pipeline = LocalPipeline(Run(sim_run.folder))
    for user, found in list(lists(folder).items())[::7]:
        answer = pipeline.infer(as_tensors(user, top_k=10, time=result["at"]))
        name = Status(int(answer["status"][0, 0])).name
        check(found, answer["video_id"][0].tolist(), answer["score"][0], name)


def test_users_of_a_file_with_text_ids(marquee: Any, clip_run: Any, tmp_path: Path) -> None:
    """Unknown and repeated ones too; at a time before anybody had watched anything."""
    wanted = ["vü-7", "nobody", "vü-3", "vü-7"]
    (tmp_path / "users.txt").write_text("\n".join(wanted))
    words = ("--users", tmp_path / "users.txt", "--at", 1_000, "--top-k", 5)
    output = tmp_path / "out"
    result = marquee.json("batch", "--run", clip_run.folder, *words, "--output", output)
    assert result["status"] == {"empty_history": 2, "unknown_user": 1}
    found = lists(output)
    assert list(found) == ["vü-7", "nobody", "vü-3"]
    pipeline = LocalPipeline(Run(clip_run.folder))
    for user, mine in found.items():
        answer = pipeline.infer(as_tensors(raw(user), top_k=5, time=1_000))
        ids = [one.decode() for one in answer["video_id"][0]]
        check(mine, ids, answer["score"][0], mine["status"][0])


def test_killed_and_resumed(
    marquee: Any, sim_batch: Any, sim_run: Any, tmp_path: Path, wait_for: Any
) -> None:
    folder, _ = sim_batch
    output = tmp_path / "out"
    words = ("batch", "--run", sim_run.folder, "--output", output, "--top-k", 10)
    process = marquee.start(*words, "--workers", 1)
    manifest = tmp_path / "out.unfinished" / "_manifest.json"
    wait_for(lambda: manifest.exists() and bool(read_json(manifest)["parts"]), process)
    process.kill()
    process.wait()
    assert not output.exists()
    done = read_json(manifest)["parts"]
    assert 0 < len(done) < 4
    refused = marquee(*words[:-1], 9, "--resume")
    assert refused.status == 1 and "has another top_k" in refused.error
    result = marquee.json(*words, "--resume", "--workers", 2)
    assert result["parts_kept"] == len(done)
    parts = {path.name: path.read_bytes() for path in folder.glob("part-*")}
    assert {path.name: path.read_bytes() for path in output.glob("part-*")} == parts
    assert not manifest.exists()


def test_workers_end_with_their_parent(
    marquee: Any, sim_run: Any, tmp_path: Path, wait_for: Any
) -> None:
    words = ("batch", "--run", sim_run.folder, "--output", tmp_path / "out", "--workers", 2)
    process = marquee.start(*words)

    wait_for(lambda: len(workers_of(process.pid)) == 2, process)
    left = workers_of(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    gone, alive = psutil.wait_procs(left, timeout=20)
    assert len(gone) == 2 and not alive


@pytest.mark.parametrize("workers", [1, 2])
def test_another_bundle_ends_the_batch(workers: int, sim_run: Any, tmp_path: Path) -> None:
    """As when an export replaces the repository after the plan was made."""
    run = Run(sim_run.folder)
    plan = Plan(np.arange(1_200), Answering("of before", 1_000, 5))
    with pytest.raises(ServingError, match="was replaced during the batch"):
        batch(run, plan, tmp_path / "out", workers=workers)
    assert not list(tmp_path.rglob("part-*"))


def test_a_killed_worker_is_said(marquee: Any, sim_run: Any, tmp_path: Path, wait_for: Any) -> None:
    words = ("batch", "--run", sim_run.folder, "--output", tmp_path / "out", "--workers", 2)
    process = marquee.start(*words)
    wait_for(lambda: len(workers_of(process.pid)) == 2, process)
    workers_of(process.pid)[0].kill()
    assert "was killed" in marquee.finish(process).error
    assert marquee.json(*words, "--resume")["num_users"] == 2_000


def workers_of(pid: int) -> list[psutil.Process]:
    children = psutil.Process(pid).children(recursive=True)
    return [one for one in children if "spawn_main" in " ".join(one.cmdline())]


def test_watches_since_the_export_count(
    marquee: Any, serve: Any, copied: Path, sim_batch: Any, tmp_path: Path
) -> None:
    """Told to a server of the run, they leave the batch's list as they leave the server's."""
    folder, before = sim_batch
    user, found = next(iter(lists(folder).items()))
    video, at = found["video_id"][0], before["at"] + 10
    with serve(copied) as endpoint, Client(endpoint["grpc_url"]) as client:
        client.watched(user, video, time=at - 5)
        answer = client.recommend(user, top_k=10, time=at)
    (tmp_path / "users.txt").write_text(str(user))
    words = ("--users", tmp_path / "users.txt", "--at", at, "--top-k", 10)
    marquee.json("batch", "--run", copied, *words, "--output", tmp_path / "out")
    mine = lists(tmp_path / "out")[user]
    assert video not in mine["video_id"]
    check(mine, answer.video_ids.tolist(), answer.scores, answer.status.name)
