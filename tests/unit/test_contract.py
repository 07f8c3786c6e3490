"""Contract files: what loads, and one clear line for what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomllib

from workflow.config import CONFIG_FOLDER
from workflow.errors import ContractError
from workflow.schema import Contract, load_contract

MINIMAL = """
name = "tiny"
watched = "all"
[events]
path = "events.parquet"
columns = [
  { name = "user_id", role = "user_id", dtype = "int64" },
  { name = "video_id", source = "item", role = "video_id", dtype = "string" },
  { name = "when", role = "timestamp", dtype = "int64", unit = "s" },
]
"""
USERS = """
[users]
path = "users.parquet"
columns = [
  { name = "user_id", role = "user_id", dtype = "int64" },
  %s
]
"""


def write(folder: Path, text: str) -> Path:
    (folder / "contract.toml").write_text(text)
    return folder / "contract.toml"


@pytest.mark.parametrize(
    "path", sorted(CONFIG_FOLDER.rglob("*contract.toml")) + sorted(CONFIG_FOLDER.glob("examples/*"))
)
def test_shipped_contracts_load(path: Path) -> None:
    contract = load_contract(path)
    assert contract.users is not None and contract.videos is not None
    assert Contract.model_validate(contract.model_dump(mode="json")) == contract


def test_minimal_contract(tmp_path: Path) -> None:
    contract = load_contract(write(tmp_path, MINIMAL))
    assert list(contract.tables()) == ["events"]
    assert contract.id_column("video_id").source_name == "item"
    assert not (contract.has_label or contract.has_watch_time or contract.has_publish_time)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('watched = "all"', "", 'watched = "label" needs an events column with the role label'),
        ('watched = "all"', 'watched = "some"', "watched: Input should be 'all' or 'label'"),
        ('name = "tiny"', 'name = "../up"', "name: String should match"),
        ('path = "events.parquet"', 'path = "/etc/events"', "relative to the source folder"),
        ('path = "events.parquet"', 'path = "e"\nseperator = ";"', "events.seperator: Extra"),
        ('name = "user_id"', 'name = "uid"', 'name it "user_id" (use source for the file)'),
        ('"user_id", dtype = "int64"', '"user_id", dtype = "float32"', "an id is int64 or string"),
        (', unit = "s"', "", "say its unit"),
        (', unit = "s"', ', unit = "iso"', "with unit iso its dtype is string"),
        ('role = "timestamp", dtype = "int64", unit = "s"',
         'role = "context", kind = "categorical", dtype = "int64"',
         "exactly one column must have the role timestamp"),
        ('role = "timestamp"', 'role = "label"', "exactly one column must have the role timestamp"),
    ],
)  # fmt: skip
def test_inconsistent_contracts(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in MINIMAL
    path = write(tmp_path, MINIMAL.replace(old, new))
    with pytest.raises(ContractError) as caught:
        load_contract(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({"name": "a", "role": "user_feature", "dtype": "int64"}, "needs a kind"),
        ({"name": "a", "role": "ignore", "dtype": "int64", "kind": "categorical"}, "only features"),
        ({"name": "a", "role": "user_feature", "dtype": "string", "kind": "continuous"},
         "a continuous column cannot be a string"),
        ({"name": "a", "role": "user_feature", "dtype": "float32", "kind": "multi_hot"},
         "a multi-hot column is int64 or string"),
        ({"name": "hour", "role": "user_feature", "dtype": "int64", "kind": "categorical"},
         "taken by a derived feature"),
        ({"name": "label", "role": "user_feature", "dtype": "int64", "kind": "categorical"},
         "taken by the role label"),
        ({"name": "a/b", "role": "user_feature", "dtype": "int64", "kind": "categorical"},
         "letters, digits and _ only"),
        ({"name": "a", "role": "context", "dtype": "int64", "kind": "categorical"},
         "no role context here"),
        ({"name": "when", "role": "user_feature", "dtype": "int64", "kind": "categorical"},
         "declared twice"),
    ],
)  # fmt: skip
def test_inconsistent_columns(tmp_path: Path, column: dict[str, Any], message: str) -> None:
    inside = ", ".join(f'{key} = "{value}"' for key, value in column.items())
    path = write(tmp_path, MINIMAL + USERS % f"{{ {inside} }},")
    with pytest.raises(ContractError, match=message):
        load_contract(path)


VIDEOS = """
[videos]
path = "videos.parquet"
columns = [
  { name = "video_id", role = "video_id", dtype = "string" },
  { name = "genre", role = "video_feature", kind = "categorical", dtype = "string" },
  { name = "length", role = "duration_s", kind = "continuous", dtype = "float32" },
  { name = "duration_s", role = "video_feature", kind = "continuous", dtype = "float32" },
]
"""


def test_a_duration_is_a_video_feature_of_any_name(tmp_path: Path) -> None:
    contract = load_contract(write(tmp_path, MINIMAL + VIDEOS))
    names = [column.name for column in contract.features("video_feature")]
    assert names == ["genre", "length", "duration_s"]
    assert contract.duration is not None and contract.duration.name == "length"
    assert load_contract(write(tmp_path, MINIMAL)).duration is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('duration_s", role = "video_feature"', 'other", role = "duration_s"', "at most one"),
        ('duration_s", kind = "continuous"', 'duration_s", kind = "categorical"',
         "a duration is continuous"),
        ('duration_s", kind = "continuous"', 'duration_s"', "needs a kind"),
        ('name = "length"', 'name = "raw_duration_s"', "taken by a derived feature"),
    ],
)  # fmt: skip
def test_inconsistent_durations(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in VIDEOS
    with pytest.raises(ContractError, match=message):
        load_contract(write(tmp_path, MINIMAL + VIDEOS.replace(old, new, 1)))


def test_ids_have_one_dtype_everywhere(tmp_path: Path) -> None:
    text = MINIMAL + (USERS % "").replace("int64", "string")
    with pytest.raises(ContractError, match="user_id is int64 in events but string"):
        load_contract(write(tmp_path, text))


def test_unreadable_contracts(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"no contract file .* Next: marquee init"):
        load_contract(tmp_path / "absent.toml")
    with pytest.raises(ContractError, match="is not TOML"):
        load_contract(write(tmp_path, "name = "))


def test_ignored_columns_may_have_any_name() -> None:
    ignored = '  { name = "a:b c", role = "ignore", dtype = "string" },'
    text = MINIMAL.replace("\n]\n", f"\n{ignored}\n]\n")
    Contract.model_validate(tomllib.loads(text))
