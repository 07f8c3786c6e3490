"""Batches: rows, files of users, parts, and what --resume goes on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.fixtures import make_contract
from triton_repo import batch as module
from triton_repo.batch import MANIFEST, Plan, batch
from triton_repo.batch_part import Answering, PartDone, as_rows
from triton_repo.batch_users import users_of_file
from workflow.errors import ConfigError, DataError
from workflow.job import locked_folder
from workflow.run import Run, read_json, write_bytes, write_json


# --- rows --------------------------------------------------------------------------------------
def test_rows_of_numbers() -> None:
    scores = np.array([[3, 2, 1], [5, -np.inf, -np.inf], [-np.inf] * 3], np.float32)
    video_ids = np.array([[7, 8, 9], [4, -1, -1], [-1, -1, -1]])
    table, owner = as_rows(np.array([10, 20, 30]), video_ids, scores, np.array([0, 3, 3]))
    assert owner.tolist() == [0, 0, 0, 1, 2]
    assert table.to_pydict() == {
        "user_id": [10, 10, 10, 20, 30],
        "rank": [1, 2, 3, 1, None],
        "video_id": [7, 8, 9, 4, None],
        "score": [3, 2, 1, 5, None],
        "status": ["ok", "ok", "ok", "fewer_than_top_k", "fewer_than_top_k"],
    }
    kinds = {field.name: str(field.type) for field in table.schema}
    assert kinds == {
        "user_id": "int64", "rank": "int32", "video_id": "int64", "score": "float",
        "status": "string",
    }  # fmt: skip


def test_rows_of_text() -> None:
    users = np.array(["vü".encode(), b"w"], object)
    video_ids = np.array([["é".encode(), b"b"], [b"c", b""]], object)
    scores = np.array([[1, 0], [1, -np.inf]], np.float32)
    table, _ = as_rows(users, video_ids, scores, np.array([1, 2]))
    assert table.column("user_id").to_pylist() == ["vü", "vü", "w"]
    assert table.column("video_id").to_pylist() == ["é", "b", "c"]
    assert table.column("status").to_pylist() == ["unknown_user"] * 2 + ["empty_history"]


@pytest.mark.parametrize("dtype", [np.int64, object])
def test_nobody_has_any_video(dtype: Any) -> None:
    nothing = np.zeros((2, 0), dtype)
    table, _ = as_rows(np.array([1, 2]), nothing, np.zeros((2, 0), np.float32), np.array([3, 3]))
    assert table.column("user_id").to_pylist() == [1, 2]
    assert all(table.column(name).null_count == 2 for name in ("rank", "video_id", "score"))


# --- users -------------------------------------------------------------------------------------
def test_users_of_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "users.txt"
    path.write_text("\ufeffuser_id\n7\n\n 5 \n7\n-1\n")
    assert users_of_file(path, make_contract()).tolist() == [7, 5, -1]


def test_users_of_a_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "users.parquet"
    pq.write_table(pa.table({"other": [1, 2], "user_id": [8, None]}), path)
    assert users_of_file(path, make_contract()).tolist() == [8]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "names no user"), (b"7\nseven\n", "'seven'"), (b"9" * 30, "number"), (b"\xff", "text")],
)
def test_bad_files_of_users(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "users.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words):
        users_of_file(path, make_contract())


def test_bad_parquet_of_users(tmp_path: Path) -> None:
    path = tmp_path / "users.parquet"
    with pytest.raises(DataError, match="no file"):
        users_of_file(path, make_contract())
    pq.write_table(pa.table({"a": [1], "b": [2]}), path)
    with pytest.raises(DataError, match="no column user_id"):
        users_of_file(path, make_contract())
    path.write_bytes(b"not Parquet")
    with pytest.raises(DataError, match="not Parquet"):
        users_of_file(path, make_contract())


# --- parts and resume --------------------------------------------------------------------------
class Answers:
    """Stands for the stages: writes the ids it is asked for; stops as if killed when told."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.stop_after = 10**6

    def __call__(self, run: Run, answering: Answering) -> Answers:
        return self

    def answer_part(self, path: Path, user_ids: Any) -> PartDone:
        if len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        self.asked.append(path.name)
        write_bytes(path, user_ids.tobytes())
        return PartDone(len(user_ids), len(user_ids), {"ok": len(user_ids)}, 0.5)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    made = Answers()
    monkeypatch.setattr(module, "Worker", made)
    return made


def plan(users: int = 2_000, **changes: Any) -> Plan:
    return Plan(np.arange(users), Answering(**{"bundle": "one", "at": 5, "top_k": 3, **changes}))


def go(plan: Plan, output: Path, **options: Any) -> dict[str, Any]:
    return batch(Run(output.parent), plan, output, workers=1, **options)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("part-*")}


def test_parts_cover_the_users_once_and_do_not_grow_in_number() -> None:
    for users in (1, 511, 512, 513, 100_000, 10_000_000):
        parts = list(plan(users).parts())
        assert np.concatenate([ids for _, ids in parts]).tolist() == list(range(users))
        assert len(parts) <= 200
        assert [name for name, _ in parts] == sorted({name for name, _ in parts})


def test_stopped_and_resumed(answers: Answers, tmp_path: Path) -> None:
    whole = go(plan(), tmp_path / "whole")
    assert (whole["num_users"], whole["num_parts"], whole["parts_kept"]) == (2_000, 4, 0)
    answers.asked, answers.stop_after = [], 2
    with pytest.raises(KeyboardInterrupt):
        go(plan(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    answers.asked, answers.stop_after = [], 100
    result = go(plan(), tmp_path / "out", resume=True)
    assert result["parts_kept"] == 2 and result["status"] == {"ok": 2_000}
    assert answers.asked == ["part-00002.parquet", "part-00003.parquet"]
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    left = {path.name for path in tmp_path.iterdir()} | {
        path.name for path in (tmp_path / "out").iterdir()
    }
    assert left == {"out", "whole", MANIFEST, *files(tmp_path / "out")}


def test_a_finished_batch_is_kept_by_resume_only(answers: Answers, tmp_path: Path) -> None:
    go(plan(), tmp_path / "out")
    answers.asked = []
    assert go(plan(), tmp_path / "out", resume=True)["parts_kept"] == 4
    assert answers.asked == []
    go(plan(top_k=4), tmp_path / "out", resume=True)  # nothing of it is unfinished
    assert len(answers.asked) == 4
    go(plan(top_k=4), tmp_path / "out")
    assert len(answers.asked) == 8


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (plan(bundle="two"), "exported bundle"),
        (plan(at=6), "another at. Expected: at 5. Found: 6"),
        (plan(top_k=9), "top_k"),
        (plan(1_999), "number of users"),
        (Plan(np.arange(2_000) + 1, plan().answering), "list of users"),
    ],
)
def test_resume_refuses_another_batch(
    other: Plan, words: str, answers: Answers, tmp_path: Path
) -> None:
    answers.stop_after = 1
    with pytest.raises(KeyboardInterrupt):
        go(plan(), tmp_path / "out")
    before = files(tmp_path / "out.unfinished")
    answers.stop_after = 100
    with pytest.raises(ConfigError, match=words):
        go(other, tmp_path / "out", resume=True)
    assert files(tmp_path / "out.unfinished") == before and len(before) == 1
    assert go(other, tmp_path / "out")["parts_kept"] == 0  # starts over


def test_a_part_without_its_file_is_made_again(answers: Answers, tmp_path: Path) -> None:
    answers.stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        go(plan(), tmp_path / "out")
    (tmp_path / "out.unfinished" / "part-00000.parquet").unlink()
    answers.asked, answers.stop_after = [], 100
    go(plan(), tmp_path / "out", resume=True)
    assert answers.asked == ["part-00000.parquet", "part-00002.parquet", "part-00003.parquet"]


def test_only_a_batch_is_replaced(answers: Answers, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_json(tmp_path / "out" / "precious.json", 1)
    with pytest.raises(ConfigError, match="not the result of a batch"):
        go(plan(), tmp_path / "out")
    assert read_json(tmp_path / "out" / "precious.json") == 1


def test_one_at_a_time(answers: Answers, tmp_path: Path) -> None:
    with (
        locked_folder(tmp_path / "out.unfinished", "--output"),
        pytest.raises(ConfigError, match="being changed by process"),
    ):
        go(plan(), tmp_path / "out")
