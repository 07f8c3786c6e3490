"""Where raw files come from, and when they are made again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from workflow.config import CONFIG_FOLDER, Config, SimConfig, parse_config
from workflow.console import Report
from workflow.data.sources import prepare_source, source_key
from workflow.data.validate import validate
from workflow.errors import ConfigError, ContractError, DataError
from workflow.run import Run

EXAMPLE = CONFIG_FOLDER / "examples" / "ml-100k.toml"


def config(dataset: str, **values: Any) -> Config:
    return parse_config({"dataset": dataset, **values})


def prepare(run: Run, settings: Config, source: Path | None = None) -> Path:
    return prepare_source(run, settings, source=source, contract_file=None)[1]


def test_sim_is_made_once_per_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def fake(sim: SimConfig, folder: Path, report: Report) -> None:
        made.append(sim.seed)
        (folder / "users.parquet").write_text(str(sim.seed))

    monkeypatch.setattr("workflow.data.simulator.simulate", fake)
    run = Run(tmp_path / "run")
    prepare(run, config("sim"))
    assert prepare(run, config("sim")) == run.source
    prepare(run, config("sim", sim={"seed": 8}))
    assert made == [7, 8] and (run.source / "users.parquet").read_text() == "8"
    (run.source / "key.json").write_text("{")  # damaged: made again
    prepare(run, config("sim", sim={"seed": 8}))
    assert made == [7, 8, 8]


def test_a_failed_source_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "run")
    run.source.mkdir(parents=True)
    (run.source / "old").write_text("")

    def fails(*_: Any) -> None:
        raise DataError("no network")

    monkeypatch.setattr("workflow.data.movielens.load_movielens", fails)
    with pytest.raises(DataError):
        prepare(run, config("movielens-1m"))
    assert [path.name for path in run.root.rglob("*")] == ["source", "old"]


def test_own_files_are_read_in_place(tmp_path: Path) -> None:
    source = tmp_path / "files"
    source.mkdir()
    head = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    (source / "ml-100k.inter").write_text(head + "7\t242\t3\t881250949\n7\t5\t5\t881250950\n")
    (source / "ml-100k.user").write_text(
        "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
        "7\t24\tM\ttechnician\tT8H1N\n"
    )
    (source / "ml-100k.item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        '242\tKolya\t1996\tComedy\n5\t"Copycat\tV\tCrime Drama\n'
    )
    run, settings = Run(tmp_path / "run"), config("custom")
    contract, folder = prepare_source(run, settings, source=source, contract_file=EXAMPLE)
    assert folder == source and not run.root.exists()
    assert validate(run, settings, contract, folder)["num_events"] == 2
    before = source_key(settings, source, EXAMPLE)
    assert source_key(settings, source, EXAMPLE) == before
    (source / "notes.txt").write_text("not part of the data")
    assert source_key(settings, source, EXAMPLE) == before
    with (source / "ml-100k.item").open("a") as file:
        file.write("6\tShanghai Triad\t1995\tDrama\n")
    assert source_key(settings, source, EXAMPLE) != before


def test_key_follows_settings_and_files(tmp_path: Path) -> None:
    assert source_key(config("sim"), None, None) != source_key(
        config("sim", sim={"seed": 8}), None, None
    )
    online = source_key(config("movielens-1m"), None, None)
    (tmp_path / "ratings.dat").write_text("1")
    local = source_key(config("movielens-1m"), tmp_path, None)
    copy = shutil.copytree(tmp_path, tmp_path.with_name("copy"))
    (copy / "ratings.dat").write_text("12")
    assert len({online, local, source_key(config("movielens-1m"), copy, None)}) == 3


def test_key_of_a_published_dataset_follows_what_is_read(tmp_path: Path) -> None:
    keys = [
        source_key(config("kuairand"), None, None),
        source_key(config("kuairand", kuairand={"variant": "1k"}), None, None),
        source_key(config("kuairand", kuairand={"variant": "27k"}), None, None),
        source_key(config("kuairec"), None, None),
        source_key(config("kuairec", kuairec={"matrix": "small"}), None, None),
        source_key(config("kuairec"), tmp_path, None),
    ]
    data = tmp_path / "data"  # where the archives have their files
    data.mkdir()
    (data / "social_network.csv").write_text("not read")
    assert source_key(config("kuairec"), tmp_path, None) == keys[-1]
    (data / "big_matrix.csv").write_text("1")
    keys.append(source_key(config("kuairec"), tmp_path, None))
    assert source_key(config("kuairec"), data, None) == keys[-1]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("dataset", "source", "contract", "error", "message"),
    [
        ("custom", None, EXAMPLE, ConfigError, "needs --source FOLDER"),
        ("custom", ".", None, ConfigError, "needs --contract FILE"),
        ("custom", "absent", EXAMPLE, DataError, "no source folder"),
        ("custom", ".", Path("absent.toml"), ContractError, "no contract file"),
        ("sim", ".", None, ConfigError, "--source does not go with dataset sim"),
        ("movielens-1m", None, EXAMPLE, ConfigError, "--contract does not go with"),
        ("movielens-1m", "absent", None, DataError, "no source folder"),
        ("kuairand", "absent", None, DataError, "no source folder"),
        ("kuairec", None, EXAMPLE, ConfigError, "--contract does not go with"),
    ],
)
def test_options_that_do_not_fit(
    tmp_path: Path,
    dataset: str,
    source: str | None,
    contract: Path | None,
    error: type[Exception],
    message: str,
) -> None:
    folder = tmp_path / source if source else None
    for call in (
        lambda: source_key(config(dataset), folder, contract),
        lambda: prepare_source(
            Run(tmp_path / "run"), config(dataset), source=folder, contract_file=contract
        ),
    ):
        with pytest.raises(error, match=message):
            call()
