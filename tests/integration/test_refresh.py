"""`marquee refresh` on the real Triton: videos come and go while the same bundle's rest stays.

New videos are near-copies, in content, of the most watched ones; withdrawn ones are those that
are shown most and some at random.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from triton_repo.bundle import read_bundle, verify
from triton_repo.catalogue import Catalogue
from triton_repo.client import Client
from triton_repo.local import LocalPipeline
from workflow.run import Run, read_json

COUNT, USERS, TOP_K = 50, 80, 100  # TOP_K: all candidates, so that pages can be compared whole
Pages = dict[int, dict[int, float]]  # user -> {video: score}, best first


@dataclass
class World:
    """A run to refresh, its deployment, and what was done to it."""

    run: Run
    place: Path
    users: list[int]
    moment: int
    new: list[int] = field(default_factory=list)
    gone: list[int] = field(default_factory=list)

    def pages(self, client: Client) -> Pages:
        """Every user's whole list of candidates from the server."""
        answers = {user: client.recommend(user, top_k=TOP_K, time=self.moment)
                   for user in self.users}  # fmt: skip
        return {
            user: dict(zip(answer.video_ids.tolist(), answer.scores.tolist(), strict=True))
            for user, answer in answers.items()
        }

    def local_pages(self) -> Pages:
        """The same from the run's exported stages, without a server."""
        users = np.array(self.users)[:, None]
        answer = LocalPipeline(self.run).infer(
            {
                "user_id": users,
                "top_k": np.full((len(users), 1), TOP_K, np.int32),
                "time": np.full((len(users), 1), self.moment),
            }
        )
        rows = zip(self.users, answer["video_id"].tolist(), answer["score"].tolist(), strict=True)
        return {
            user: {video: score for video, score in zip(ids, scores, strict=True) if video >= 0}
            for user, ids, scores in rows
        }


@pytest.fixture(scope="module")
def world(sim_run: Any, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("refresh")
    shutil.copytree(sim_run.folder, folder / "run", ignore=shutil.ignore_patterns("logs"))
    run = Run(folder / "run")
    users = np.load(run.features / "users" / "user_id.npy")
    moment = read_json(run.features / "spec.json")["last_event"] + 1
    chosen = users[:: len(users) // USERS][:USERS].tolist()
    return World(run, folder / "deployment", chosen, moment)


def write_new(world: World, path: Path) -> None:
    """Near-copies of the most watched videos, by new ids between the old ones."""
    raw = pq.read_table(world.run.source / "videos.parquet")
    watched = np.load(world.run.features / "history" / "video_row.npy")
    popular = np.argsort(-np.bincount(watched, minlength=raw.num_rows + 1)[1:])[:COUNT]
    old = np.load(world.run.features / "videos" / "video_id.npy")
    at = {video: row for row, video in enumerate(raw["video_id"].to_pylist())}
    copied = raw.take(pa.array([at[video] for video in old[popular].tolist()]))
    free = np.setdiff1d(np.arange(old[0] - 60, old[0] + 2_000), old)
    world.new = free[:: len(free) // COUNT][:COUNT].tolist()
    titles = [f"New: {title}" for title in copied["title"].to_pylist()]
    for name, values in (("video_id", world.new), ("title", titles)):
        at_column = copied.column_names.index(name)
        copied = copied.set_column(at_column, name, pa.array(values))
    pq.write_table(copied, path)


def write_gone(world: World, before: Pages, path: Path) -> None:
    shown = Counter(video for page in before.values() for video in list(page)[:10])
    most = [video for video, _ in shown.most_common(COUNT // 2)]
    ids = np.load(world.run.features / "videos" / "video_id.npy")
    others = np.setdiff1d(ids, most)
    drawn = np.random.default_rng(2).permutation(others)[: COUNT - len(most)]
    world.gone = [*most, *drawn.tolist()]
    path.write_text("\n".join(map(str, world.gone)) + "\n")


def check_changed(world: World, before: Pages, after: Pages) -> None:
    """Nothing but what came and went differs."""
    new, gone = set(world.new), set(world.gone)
    assert any(gone & page.keys() for page in before.values())  # otherwise it proves nothing
    assert not any(gone & page.keys() for page in after.values())
    assert np.mean([bool(new & page.keys()) for page in after.values()]) > 0.25  # who gets one
    for user, page in after.items():
        old = before[user]
        pushed_out = old.keys() - gone - page.keys()
        assert len(pushed_out) <= len(new & page.keys())
        assert len(page) == len(old)
        kept = [video for video in page if video in old]
        assert kept == [video for video in old if video in page]
        for video in kept:
            assert page[video] == pytest.approx(old[video], abs=1e-5)


def test_refresh_of_a_live_server(
    marquee: Any, serve_deployment: Any, world: World, contents: Any, tmp_path: Path
) -> None:
    """Deploy, refresh, deploy, watch a new video, roll back."""
    run, where = world.run, ("--deployment", world.place)
    first = marquee.json("deploy", run.root, *where)["live"]
    made = ("data", "features", "models", "index", "source")
    kept = {name: contents(run.root / name) for name in made}
    with (
        serve_deployment(world.place) as endpoint,
        Client(endpoint["grpc_url"], timeout_s=60) as client,
    ):
        before = world.pages(client)
        write_new(world, tmp_path / "new.parquet")
        write_gone(world, before, tmp_path / "gone.txt")
        files = ("--videos", tmp_path / "new.parquet", "--withdrawn", tmp_path / "gone.txt")
        result = marquee.json("refresh", "--run", run.root, *files)
        assert (result["added"], result["withdrawn"], result["known"]) == (COUNT, COUNT, 0)
        assert result["previous"] == first < result["version"]
        assert result["index"]["recall_vs_exact"] >= 0.99
        assert result["index"]["num_videos"] == result["num_videos"] == len(Catalogue.of(run).known)
        verify(read_bundle(run.repository))
        assert {name: contents(run.root / name) for name in made} == kept
        assert world.pages(client) == before  # nothing is served before it is deployed
        live = marquee.json("deploy", run.root, *where)
        assert (live["live"], live["previous"]) == (result["version"], first)
        after = world.pages(client)
        check_changed(world, before, after)
        for user, page in world.local_pages().items():
            assert list(page) == list(after[user])
        watch_a_new_video(world, client, after)
        assert marquee.json("rollback", *where)["live"] == first
        again = {user: before[user] for user in world.users[1:]}
        assert {user: page for user, page in world.pages(client).items() if user in again} == again


def watch_a_new_video(world: World, client: Client, pages: Pages) -> None:
    user = world.users[0]
    ranked = [video for video in pages[user] if video in world.new] or world.new
    kept = client.watched(user, ranked[0], time=world.moment)
    assert kept.num_events == 1
    answer = client.recommend(user, top_k=TOP_K, time=world.moment + 5)
    ids = answer.video_ids.tolist()
    assert ranked[0] not in ids and ids != list(pages[user])
    unwatched = client.recommend(user, top_k=TOP_K, time=world.moment)
    assert unwatched.video_ids.tolist() == list(pages[user])


def test_the_commands_about_a_new_video(marquee: Any, world: World) -> None:
    """Titles of new videos; words for people."""
    page = world.local_pages()
    user, video = next((u, v) for u, ids in page.items() for v in list(ids) if v in world.new)
    words = ("recommend", "--run", world.run.root, "--user", user, "--in-process")
    items = marquee.json(*words, "--at", world.moment, "--top-k", TOP_K)["items"]
    [title] = [one["title"] for one in items if one["video_id"] == video]
    assert title.startswith("New: ")
    assert "neither" not in marquee("refresh", "--run", world.run.root, "--json").error


def test_refreshes_compose_and_what_was_withdrawn_returns(
    marquee: Any, world: World, tmp_path: Path
) -> None:
    run, before = world.run, world.local_pages()
    raw = pq.read_table(run.source / "videos.parquet")
    back = set(world.gone[:10])
    mask = pa.array([video in back for video in raw["video_id"].to_pylist()])
    pq.write_table(raw.filter(mask), tmp_path / "back.parquet")
    (tmp_path / "gone.txt").write_text("\n".join(map(str, world.new[:5] + world.gone[20:22])))
    files = ("--videos", tmp_path / "back.parquet", "--withdrawn", tmp_path / "gone.txt")
    shown = marquee("refresh", "--run", run.root, *files)
    assert shown.status == 0 and f"Next: marquee deploy {run.root}" in shown.out
    assert "returned after having been withdrawn" in shown.out
    world.gone = [*world.gone[10:], *world.new[:5]]
    catalogue = Catalogue.of(run)
    assert sorted(catalogue.withdrawn.tolist()) == sorted(world.gone)
    assert [path.name for path in run.catalogue.iterdir()] == [
        str(read_bundle(run.repository).version)
    ]
    after = world.local_pages()
    assert not any(set(world.gone) & page.keys() for page in after.values())
    assert any(back & page.keys() for page in after.values())
    common = [(u, v) for u in world.users for v in after[u].keys() & before[u].keys()]
    for user, video in common:
        assert after[user][video] == pytest.approx(before[user][video], abs=1e-5)


def test_an_export_keeps_what_was_added_and_withdrawn(marquee: Any, world: World) -> None:
    before, version = world.local_pages(), read_bundle(world.run.repository).version
    marquee.json("export", "--run", world.run.root, "--force")
    assert read_bundle(world.run.repository).version > version
    for user, page in world.local_pages().items():
        assert page == pytest.approx(before[user], abs=1e-5)
        assert list(page) == list(before[user])


def test_nothing_to_change_and_mistakes(marquee: Any, world: World, tmp_path: Path) -> None:
    run, gone = ("--run", world.run.root), tmp_path / "gone"
    victim = int(Catalogue.of(world.run).known[7])
    gone.write_text(f"{victim}\n")
    marquee.json("refresh", *run, "--withdrawn", gone)
    world.gone.append(victim)
    seal = read_bundle(world.run.repository).seal
    result = marquee.json("refresh", *run, "--withdrawn", gone)
    assert result["withdrawn_before"] == 1 and result["index"] is None
    assert result["version"] == result["previous"]
    gone.write_text("17\n")
    error = marquee("refresh", *run, "--withdrawn", gone).error
    assert "video 17 that the run does not know" in error
    raw = pq.read_table(world.run.source / "videos.parquet")
    pq.write_table(raw.slice(0, 0), tmp_path / "none.parquet")
    assert "is empty" in marquee("refresh", *run, "--videos", tmp_path / "none.parquet").error
    assert "--videos FILE, --withdrawn FILE" in marquee("refresh", *run).error
    assert read_bundle(world.run.repository).seal == seal


KILLED = """
import os, sys
from triton_repo import {module} as module
{patch}
sys.argv = ["marquee", "refresh", "--run", {run!r}, "--withdrawn", {file!r}]
from workflow.cli import main
main()
"""
POINTS = {
    "before the manifest": ("refresh", "module.seal = lambda *_: os._exit(7)"),
    "before the swap": (
        "refresh",
        "import workflow.run as r\nr.swap_folder = lambda *_: os._exit(7) "
        "if _[1].name == 'model_repository' else os.rename(*_)",
    ),
}


@pytest.mark.parametrize("point", POINTS)
def test_killed_refreshes_leave_the_old_bundle(
    marquee: Any, world: World, point: str, leftovers: Any, tmp_path: Path
) -> None:
    run, seal = world.run, read_bundle(world.run.repository).seal
    victim = Catalogue.of(run).known[np.isin(Catalogue.of(run).known, world.gone, invert=True)][3]
    file = tmp_path / "gone"
    file.write_text(f"{victim}\n")
    module, patch = POINTS[point]
    code = KILLED.format(module=module, patch=patch, run=str(run.root), file=str(file))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    assert read_bundle(run.repository).seal == seal
    verify(read_bundle(run.repository))
    assert victim not in Catalogue.of(run).withdrawn
    result = marquee.json("refresh", "--run", run.root, "--withdrawn", file)
    assert result["withdrawn"] == 1 and leftovers(run.root) == []
    world.gone.append(int(victim))
    assert not any(victim in page for page in world.local_pages().values())


# --- other data -----------------------------------------------------------------------------------
def test_text_ids_and_an_ivf_index(marquee: Any, clip_run: Any, tmp_path: Path) -> None:
    """String ids of other lengths, found by retrieval; rows stay with their videos."""
    folder = tmp_path / "run"
    shutil.copytree(clip_run.folder, folder, ignore=shutil.ignore_patterns("logs"))
    marquee.json("index", "--run", folder, "--set", "index.kind=ivf")
    run = Run(folder)
    tags = [["a", "b"]] * 30
    ids = [f"{'a' * (n + 1)} né {n}" for n in range(30)]
    columns = {
        "clip": ids, "title": [f"New {n}" for n in range(30)],
        "since": ["2023-12-03T00:00:00"] * 30, "tags": tags,
        "length_s": pa.array([60.0] * 30, pa.float32()),
    }  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "clips.parquet")
    (tmp_path / "gone.csv").write_text("video_id\n" + "\n".join(f"clip {n}/é" for n in range(40)))
    result = marquee.json(
        "refresh", "--run", folder, "--videos", tmp_path / "clips.parquet", "--withdrawn",
        tmp_path / "gone.csv",
    )  # fmt: skip
    assert (result["added"], result["withdrawn"]) == (30, 40)
    assert result["index"]["kind"] == "ivf" and result["index"]["recall_vs_exact"] >= 0.99
    users = np.load(run.features / "users" / "user_id.npy").astype(object)[:100]
    stages = LocalPipeline(run)
    tensors = {"user_id": users[:, None], "top_k": np.full((len(users), 1), 1_000, np.int32)}
    shown = {one.decode() for one in stages.infer(tensors)["video_id"].ravel() if one}
    assert shown & set(ids) and not shown & {f"clip {n}/é" for n in range(40)}
    histories = stages.fused.query_tower.histories
    record = json.dumps(
        [[9, ids[3], None, None], [8, "clip 1/é", None, None], [9, "x", None, None]]
    )
    row, known = histories.parse(record).row, Catalogue.of(run).ids
    assert [known[one - 1].decode() for one in row] == [ids[3], "clip 1/é"]
