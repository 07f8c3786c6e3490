"""Settings: where they come from, which wins, and one clear line for what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from workflow.config import CONFIG_FOLDER, Config, changed_config, load_config, parse_config
from workflow.errors import ConfigError

BUILTIN = sorted(p.stem for p in CONFIG_FOLDER.glob("*.toml") if ".contract" not in p.name)


@pytest.mark.parametrize("name", BUILTIN)
def test_built_in_settings_load(name: str) -> None:
    config = load_config(name)
    assert config.dataset == name
    assert parse_config(config.model_dump(mode="json")) == config


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("seed = 1\n[ranker]\nbatch_size = 64\nmax_epochs = 3\n")
    config = load_config("sim", file, ["ranker.max_epochs=5", "index.kind=hnsw"])
    assert (config.seed, config.ranker.batch_size, config.ranker.max_epochs) == (1, 64, 5)
    assert config.index.kind == "hnsw"
    assert config.sim == load_config("sim").sim


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("retriever.tower_layers=[32, 16]", (32, 16)),
        ("retriever.logq_correction=false", False),
        (" retriever.id_dropout = 0.25", 0.25),
        ("retriever.learning_rate=1e-2", 0.01),
    ],
)
def test_override_values(override: str, value: object) -> None:
    name = override.partition("=")[0].strip().removeprefix("retriever.")
    assert getattr(load_config("sim", None, [override]).retriever, name) == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ranker.batchsize=3", r"ranker\.batchsize"),
        ("ranker.batch_size=1", r"ranker\.batch_size"),
        ("ranker.batch_size=many", r"ranker\.batch_size"),
        ("index.kind=lsh", r"index\.kind"),
        ("split.test_fraction=0.5", r"split\.test_fraction"),
        ("ranker=5", "ranker"),
        ("no-equals-sign", r"'no-equals-sign'\. Expected: section\.key=value"),
        ("=3", r"Expected: section\.key=value"),
        ("sim.num_users=10", r"sim\.num_users"),
    ],
)
def test_wrong_overrides(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config("sim", None, [override])
    assert "\n" not in str(caught.value)


def test_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no configuration file"):
        load_config("sim", tmp_path / "missing.toml")
    (tmp_path / "bad.toml").write_text("seed = = 1")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_config("sim", tmp_path / "bad.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_config("sim", tmp_path / "binary.toml")
    with pytest.raises(ConfigError, match="dataset"):
        load_config("no-such-dataset")


def test_changed_config() -> None:
    before = load_config("sim", None, ["seed=3", "ranker.max_epochs=5"])
    after = changed_config(before, None, ["ranker.batch_size=64"])
    assert (after.seed, after.ranker.max_epochs, after.ranker.batch_size) == (3, 5, 64)
    assert before.ranker.batch_size != 64


def test_settings_are_frozen() -> None:
    config = load_config("sim")
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 3  # type: ignore[misc]
    assert isinstance(config, Config)
