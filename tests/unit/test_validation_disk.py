"""A full disk while tables are written: one clear line, and earlier data stays."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workflow.config import parse_config
from workflow.data.validate import validate
from workflow.errors import StorageError
from workflow.run import Run
from workflow.schema import Contract

CONTRACT = Contract.model_validate(
    {
        "name": "disk",
        "watched": "all",
        "events": {
            "path": "events.parquet",
            "columns": [
                {"name": "user_id", "role": "user_id", "dtype": "int64"},
                {"name": "video_id", "role": "video_id", "dtype": "int64"},
                {"name": "timestamp", "role": "timestamp", "dtype": "int64", "unit": "s"},
            ],
        },
    }
)


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path | None]:
    """A 1 MB file system, or None where mounting is not permitted."""
    libc = ctypes.CDLL(None, use_errno=True)
    target = tmp_path / "small"
    target.mkdir()
    if libc.mount(b"none", os.fsencode(target), b"tmpfs", 0, b"size=1m") != 0:
        yield None
        return
    yield target
    libc.umount2(os.fsencode(target), 2)


def write_events(folder: Path, rows: int) -> Path:
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(2)
    table = {
        "user_id": random.integers(0, 2**60, rows),
        "video_id": random.integers(0, 2**60, rows),
        "timestamp": 1_600_000_000 + random.integers(0, 10**8, rows),
    }
    pq.write_table(pa.table(table), folder / "events.parquet")
    return folder


def test_full_disk(tmp_path: Path, tmpfs: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
    config = parse_config({"dataset": "custom"})
    run = Run((tmpfs or tmp_path) / "run")
    source = write_events(tmp_path / "source", 100)
    validate(run, config, CONTRACT, source)
    before = (run.data / "report.json").read_bytes()
    write_events(source, 200_000)
    if tmpfs is None:

        def full(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr("workflow.data.parts.pq.write_table", full)
    with pytest.raises(StorageError, match="No space left on device") as caught:
        validate(run, config, CONTRACT, source)
    assert "--run" in str(caught.value) and "\n" not in str(caught.value)
    assert (run.data / "report.json").read_bytes() == before
    assert [path.name for path in run.root.iterdir()] == ["data"]
