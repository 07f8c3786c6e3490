"""Artefacts are whole or absent: failures, kills and full disks leave what was there before."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from workflow.errors import MissingArtifactError, StorageError
from workflow.run import Run, content_key, replaced_folder, storage_errors, write_bytes, write_json


def filled(target: Path, text: str) -> None:
    with replaced_folder(target) as folder:
        (folder / "a").write_text(text)
        (folder / "sub").mkdir()
        (folder / "sub" / "b").write_text(text)


def content(target: Path) -> dict[str, str]:
    files = [path for path in target.rglob("*") if path.is_file()]
    return {str(path.relative_to(target)): path.read_text() for path in files}


def test_replaced(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "models"
    filled(target, "old")
    with replaced_folder(target) as folder:
        (folder / "a").write_text("new")
        assert content(target) == {"a": "old", "sub/b": "old"}  # readers see the old one until then
    assert content(target) == {"a": "new"}
    assert [path.name for path in target.parent.iterdir()] == ["models"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_the_old_target_stays_when_the_body_raises(
    tmp_path: Path, error: type[BaseException]
) -> None:
    target = tmp_path / "models"
    filled(target, "old")

    def half() -> None:
        with replaced_folder(target) as folder:
            (folder / "a").write_text("half")
            raise error

    with pytest.raises(error):
        half()
    assert content(target) == {"a": "old", "sub/b": "old"}
    assert list(tmp_path.iterdir()) == [target]


def test_the_old_target_stays_when_the_last_rename_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "models"
    filled(target, "old")
    rename = Path.rename

    def failing(self: Path, other: Path) -> Path:
        if ".tmp-" in self.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(StorageError), replaced_folder(target) as folder:
        (folder / "a").write_text("new")
    assert content(target) == {"a": "old", "sub/b": "old"}


KILLED = """
import os, signal, sys
from pathlib import Path
from workflow.run import replaced_folder
moment, target = sys.argv[1], Path(sys.argv[2])
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
rename = Path.rename
def last_rename(self, other):
    return die() if ".tmp-" in self.name else rename(self, other)
if moment == "between the renames":
    Path.rename = last_rename
with replaced_folder(target) as folder:
    (folder / "a").write_text("half")
    if moment == "in the body":
        die()
"""


@pytest.mark.parametrize("moment", ["in the body", "between the renames"])
def test_leftovers_of_a_killed_process(tmp_path: Path, moment: str) -> None:
    target = tmp_path / "models"
    filled(target, "old")
    killed = subprocess.run([sys.executable, "-c", KILLED, moment, str(target)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".models.*"))) >= 1
    with pytest.raises(ValueError, match="stop"), replaced_folder(target):
        raise ValueError("stop")  # the next try fails too, and brings the old one back
    assert content(target) == {"a": "old", "sub/b": "old"}
    filled(target, "new")
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES], ids=errno.errorcode.get
)
def test_a_full_disk_is_one_line(tmp_path: Path, number: int) -> None:
    target = tmp_path / "models"
    filled(target, "old")
    with pytest.raises(StorageError) as caught, replaced_folder(target):
        raise OSError(number, "from the system")
    line = str(caught.value)
    assert line.startswith(f"cannot write {target}: {os.strerror(number)}. Found: ")
    assert "MB free" in line and "--run" in line and "\n" not in line
    assert content(target) == {"a": "old", "sub/b": "old"}
    assert list(tmp_path.iterdir()) == [target]


def test_other_system_errors_are_not_about_storage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), storage_errors(tmp_path / "not" / "there"):
        (tmp_path / "not" / "there").read_text()


def test_write_bytes_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x" / "state.json"
    write_json(path, {"b": 1, "a": [1.5]})
    assert json.loads(path.read_text()) == {"a": [1.5], "b": 1}

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"state\.json"):
        write_bytes(path, b"half")
    assert json.loads(path.read_text()) == {"a": [1.5], "b": 1}
    assert [entry.name for entry in path.parent.iterdir()] == ["state.json"]


def test_manifest(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    assert run.manifest() == {} and run.recorded("index") is None
    run.record("index", "k1", 1.23456, {"kind": "flat"})
    run.record("export", "k2", 2, {})
    entry = run.recorded("index") or {}
    assert (entry["key"], entry["seconds"], entry["summary"]) == ("k1", 1.235, {"kind": "flat"})
    for damaged in ("{", '{"format": 99, "stages": {}}', ""):
        run.manifest_file.write_text(damaged)
        assert run.manifest() == {}


def test_require(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with pytest.raises(MissingArtifactError, match=r"no run folder .*run\. Next: marquee run"):
        run.require(run.ranker, "ranker", "marquee train")
    run.record("validate", "k", 1, {})
    with pytest.raises(MissingArtifactError) as caught:
        run.require(run.ranker, "ranker", "marquee train")
    assert str(caught.value) == (
        f"no ranker in run {run}. Expected: models/ranker. "
        f"Found: finished stages: validate. Next: marquee train --run {run}."
    )
    run.ranker.mkdir(parents=True)
    assert run.require(run.ranker, "ranker", "marquee train") == run.ranker


def test_every_path_is_in_the_run_folder(tmp_path: Path) -> None:
    run = Run(tmp_path)
    names = [name for name, value in vars(Run).items() if isinstance(value, property)]
    paths: list[Any] = [getattr(run, name) for name in names]
    assert len(set(paths)) == len(paths) > 10
    assert all(path.parent == tmp_path or tmp_path in path.parents for path in paths)


def test_content_key(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one")
    key = content_key("stage", {"b": 1, "a": 2}, [file, tmp_path])
    assert key == content_key("stage", {"a": 2, "b": 1}, (file, tmp_path))
    assert content_key("stage", {"a": 2}) != content_key("stage", {"a": 3})
    assert content_key([1], [2]) != content_key([1, 2])
    file.write_text("other")
    changed = content_key("stage", {"b": 1, "a": 2}, [file, tmp_path])
    assert changed != key
    (tmp_path / "more.txt").write_text("x")
    assert content_key("stage", {"b": 1, "a": 2}, [file, tmp_path]) != changed
    assert content_key(tmp_path / "missing") == content_key(tmp_path / "missing")
