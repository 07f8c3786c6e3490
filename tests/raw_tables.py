"""Three small raw tables and their contract, for tests of validation to spoil."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workflow.config import Config, parse_config
from workflow.data.tables import event_files
from workflow.data.validate import validate
from workflow.errors import MarqueeError
from workflow.run import Run
from workflow.schema import Contract

NOON = 1_700_000_000  # a time in seconds
EVENTS = {
    "user_id": [3, 1, 1, 2],
    "video_id": [10, 20, 10, 20],
    "timestamp": [NOON + 5, NOON + 9, NOON, NOON + 1],
    "clicked": [1, 0, 1, 1],
    "watch_s": [5.0, None, 7.5, 0.0],
    "device": ["tv", "phone", None, "tv"],
}
USERS = {"user_id": [2, 1, 3], "age": [30.0, None, 50.0], "plan": [7, None, 8]}
VIDEOS = {
    "video_id": [20, 10],
    "name": ["B", None],
    "published": [NOON * 1000 - 500, None],
    "genres": [["x", None, "y"], None],
}
CONTRACT: dict[str, Any] = {
    "name": "small",
    "events": {
        "path": "events.parquet",
        "columns": [
            {"name": "user_id", "role": "user_id", "dtype": "int64"},
            {"name": "video_id", "role": "video_id", "dtype": "int64"},
            {"name": "timestamp", "role": "timestamp", "dtype": "int64", "unit": "s"},
            {"name": "clicked", "role": "label", "dtype": "int64"},
            {"name": "watch_s", "role": "watch_s", "dtype": "float32"},
            {"name": "device", "role": "context", "kind": "categorical", "dtype": "string"},
        ],
    },
    "users": {
        "path": "users.parquet",
        "columns": [
            {"name": "user_id", "role": "user_id", "dtype": "int64"},
            {"name": "age", "role": "user_feature", "kind": "continuous", "dtype": "float32"},
            {"name": "plan", "role": "user_feature", "kind": "categorical", "dtype": "int64"},
        ],
    },
    "videos": {
        "path": "videos.parquet",
        "columns": [
            {"name": "video_id", "role": "video_id", "dtype": "int64"},
            {"name": "name", "role": "title", "dtype": "string"},
            {"name": "published", "role": "publish_time", "dtype": "int64", "unit": "ms"},
            {"name": "genres", "role": "video_feature", "kind": "multi_hot", "dtype": "string"},
        ],
    },
}


class Dataset:
    """Three small Parquet tables and their contract, to be spoilt by a test."""

    def __init__(self, folder: Path) -> None:
        self.source = folder / "source"
        self.source.mkdir()
        self.run = Run(folder / "run")
        self.contract = json.loads(json.dumps(CONTRACT))
        for name, table in (("events", EVENTS), ("users", USERS), ("videos", VIDEOS)):
            self.write(name, table)

    def write(self, name: str, table: dict[str, Any] | pa.Table, **changes: Any) -> None:
        columns = table if isinstance(table, pa.Table) else pa.table({**table, **changes})
        pq.write_table(columns, self.source / f"{name}.parquet")

    def column(self, table: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(
            c for c in self.contract[table]["columns"] if c["name"] == name
        )
        return found

    def validate(self, **settings: Any) -> dict[str, Any]:
        config = configuration(**settings)
        contract = Contract.model_validate(self.contract)
        return validate(self.run, config, contract, self.source)

    def refuses(self, kind: type[MarqueeError], **settings: Any) -> str:
        with pytest.raises(kind) as caught:
            self.validate(**settings)
        assert "\n" not in str(caught.value)
        assert not list(self.run.root.glob(".*")), "temporary files are left behind"
        return str(caught.value)

    def events(self) -> pd.DataFrame:
        return pd.concat([pd.read_parquet(path) for path in event_files(self.run)])


def configuration(**settings: Any) -> Config:
    return parse_config({"dataset": "custom", "validation": settings})
