"""What the page needs of a dataset: tags and windows in the contract, in the data, in `sim`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.fixtures import make_config
from workflow.config import CONFIG_FOLDER, SimConfig
from workflow.data.simulator_world import LOG_END, make_world, visible_videos
from workflow.data.validate import validate
from workflow.errors import ContractError
from workflow.run import Run
from workflow.schema import Contract, load_contract

CONTRACT = """
name = "tiny"
watched = "all"
ratings = ["all", "18+"]
[events]
path = "events.parquet"
columns = [
  { name = "user_id", role = "user_id", dtype = "int64" },
  { name = "video_id", role = "video_id", dtype = "int64" },
  { name = "when", role = "timestamp", dtype = "int64", unit = "s" },
  { name = "screen", role = "context", kind = "categorical", dtype = "string", tags = ["device"] },
]
[users]
path = "users.parquet"
columns = [
  { name = "user_id", role = "user_id", dtype = "int64" },
  { name = "limit", role = "page", kind = "categorical", dtype = "string", tags = ["maturity"] },
]
[videos]
path = "videos.parquet"
columns = [
  { name = "video_id", role = "video_id", dtype = "int64" },
  { name = "rated", role = "page", kind = "categorical", dtype = "string", tags = ["maturity"] },
  { name = "where", role = "page", kind = "multi_hot", dtype = "string", tags = ["country"] },
  { name = "from", role = "available_from", dtype = "int64", unit = "s" },
  { name = "until", role = "available_until", dtype = "int64", unit = "ms" },
  { name = "gone", role = "withdrawn", dtype = "int64" },
]
"""


def loaded(folder: Path, text: str = CONTRACT) -> Contract:
    path = folder / "contract.toml"
    path.write_text(text)
    return load_contract(path)


def test_page_columns_are_no_features(tmp_path: Path) -> None:
    contract = loaded(tmp_path)
    assert not contract.features("user_feature") and not contract.features("video_feature")
    found = {
        (table, tag): column.name
        for table in ("events", "users", "videos")
        for tag in ("device", "maturity", "country", "row")
        if (column := contract.tagged(table, tag))  # type: ignore[arg-type]
    }
    assert found == {
        ("events", "device"): "screen", ("users", "maturity"): "limit",
        ("videos", "maturity"): "rated", ("videos", "country"): "where",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('ratings = ["all", "18+"]', "", "list each text rating"),
        ('["all", "18+"]', '["all", "all"]', "list each text rating"),
        ('string", tags = ["maturity"] },\n]', 'int64", tags = ["maturity"] },\n]',
         "ratings are all int64 or all string"),
        ('tags = ["device"]', 'tags = ["row"]', "no tag row here"),
        ('tags = ["country"]', 'tags = ["nation"]', "tags.0: Input should be"),
        ('tags = ["country"]', "tags = []", "the page needs a tag"),
        ('kind = "multi_hot", dtype = "string", tags = ["country"]',
         'kind = "continuous", dtype = "float32", tags = ["country"]', "categorical or multi-hot"),
        ('role = "withdrawn", dtype = "int64"', 'role = "withdrawn", dtype = "string"', "0 or 1"),
        ('dtype = "int64", unit = "ms"', 'dtype = "int64"', "say its unit"),
        ('role = "page", kind = "multi_hot"', 'role = "page"', "a page needs a kind"),
        ('tags = ["country"] }', 'tags = ["country", "maturity"] }', "a rating is categorical"),
        ('name = "rated", role = "page"', 'name = "withdrawn", role = "video_feature"',
         "taken by the role withdrawn"),
    ],
)  # fmt: skip
def test_inconsistent_tags(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in CONTRACT
    with pytest.raises(ContractError) as caught:
        loaded(tmp_path, CONTRACT.replace(old, new, 1))
    assert message in str(caught.value)


def write_source(folder: Path, until: int) -> None:
    pq.write_table(
        pa.table({"user_id": [1], "video_id": [5], "when": [1_700_000_000], "screen": ["tv"]}),
        folder / "events.parquet",
    )
    pq.write_table(pa.table({"user_id": [1], "limit": ["18+"]}), folder / "users.parquet")
    videos: dict[str, Any] = {
        "video_id": [6, 5], "rated": ["all", None], "where": [["DE", "US"], []],
        "from": [None, 1_600_000_000], "until": [until, None], "gone": [0, 1],
    }  # fmt: skip
    pq.write_table(pa.table(videos), folder / "videos.parquet")


def test_page_columns_are_in_the_validated_tables(tmp_path: Path) -> None:
    write_source(tmp_path, 4_000_000_000_000)  # a window may close in the future
    run = Run(tmp_path / "run")
    config = make_config(validation={"max_bad_fraction": 0.0})
    validate(run, config, loaded(tmp_path), tmp_path)
    videos = pq.read_table(run.data / "videos.parquet").to_pydict()
    assert videos == {
        "video_id": [5, 6], "title": [None, None], "available_from": [1_600_000_000, None],
        "available_until": [None, 4_000_000_000], "withdrawn": [1, 0], "rated": [None, "all"],
        "where": [[], ["DE", "US"]],
    }  # fmt: skip
    assert pq.read_table(run.data / "users.parquet")["limit"].to_pylist() == ["18+"]


def test_sim_says_what_leaves_after_the_log() -> None:
    contract = load_contract(CONFIG_FOLDER / "sim.contract.toml")
    assert contract.videos is not None
    table = visible_videos(make_world(SimConfig()).videos, 7)
    assert {c.source_name for c in contract.videos.columns} == set(table.column_names)
    until = table["available_until"].to_pandas()
    share = until.notna().mean()
    assert 0.08 < share < 0.12 and until.min() > LOG_END
    since = table["available_from"].to_pandas()
    assert (since.notna() == until.notna()).all() and since.max() <= LOG_END
    assert 0.01 < np.mean(table["withdrawn"].to_numpy()) < 0.03
