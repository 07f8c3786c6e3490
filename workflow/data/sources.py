"""Where a run's raw files come from: simulated, published, or the user's own in place."""

from __future__ import annotations

from pathlib import Path

from workflow.config import CONFIG_FOLDER, Config
from workflow.console import Report, no_report
from workflow.data import kuairand, kuairec, movielens
from workflow.data.published import Archive, local_files
from workflow.data.reading import TableFiles
from workflow.errors import ConfigError
from workflow.remote import Folder, check_folder, content_mark
from workflow.run import Run, content_key, read_json, replaced_folder, write_json
from workflow.schema import Contract, load_contract

_FORMAT = 1  # raise it when the files that this module writes change


def prepare_source(
    run: Run,
    config: Config,
    *,
    source: Folder | None,
    contract_file: Path | None,
    report: Report = no_report,
) -> tuple[Contract, Folder]:
    """The contract and the folder of raw files that it describes.

    Built-in datasets are written into `run.source` once and kept while their settings and files
    stay; own data is read where it lies, on a disk or in object storage.

    Raises:
        ConfigError: the options do not fit the dataset.
        ContractError, DataError: the contract or the files are unusable.
    """
    _check_options(config, source, contract_file)
    if config.dataset == "custom":
        assert source is not None and contract_file is not None
        return load_contract(contract_file), source
    contract = load_contract(CONFIG_FOLDER / f"{config.dataset}.contract.toml")
    key = source_key(config, source, contract_file)
    if not _is_current(run.source, key):
        with replaced_folder(run.source) as folder:
            _make(config, source, folder, report)
            write_json(folder / "key.json", {"key": key})
    return contract, run.source


def source_key(config: Config, source: Folder | None, contract_file: Path | None) -> str:
    """Changes exactly when the raw files or the contract change (files by size and
    mtime, objects by size and ETag).

    Raises:
        ConfigError, ContractError, DataError: as `prepare_source`.
    """
    _check_options(config, source, contract_file)
    if config.dataset == "sim":
        return content_key(_FORMAT, config.dataset, config.sim, _builtin(config.dataset))
    if config.dataset != "custom":
        archive = _archive(config)
        files = local_files(archive, source) if isinstance(source, Path) else []
        return content_key(
            _FORMAT, config.dataset, archive.members, files, _builtin(config.dataset)
        )
    assert source is not None and contract_file is not None
    contract = load_contract(contract_file)
    tables = [TableFiles(source, table, name) for name, table in contract.tables().items()]
    marks = [[content_mark(file, one.short(file)) for file in one.files] for one in tables]
    return content_key(_FORMAT, contract, marks)


def _builtin(dataset: str) -> Contract:
    return load_contract(CONFIG_FOLDER / f"{dataset}.contract.toml")


def _archive(config: Config) -> Archive:
    if config.dataset == "kuairand":
        return kuairand.archive(config.kuairand)
    if config.dataset == "kuairec":
        return kuairec.archive(config.kuairec)
    return movielens.ARCHIVE


def _check_options(config: Config, source: Folder | None, contract_file: Path | None) -> None:
    if config.dataset == "custom":
        if source is None or contract_file is None:
            missing = "--source FOLDER" if source is None else "--contract FILE"
            raise ConfigError(
                f"your own data needs {missing}",
                next_step="marquee init --from FOLDER writes a first contract",
            )
    elif contract_file is not None:
        raise ConfigError(
            f"--contract does not go with dataset {config.dataset}, which has its own",
            next_step="use --dataset custom for your own files",
        )
    elif config.dataset == "sim" and source is not None:
        raise ConfigError(
            "--source does not go with dataset sim, which makes its own files",
            next_step="use --dataset custom for your own files",
        )
    if config.dataset != "custom" and source is not None and not isinstance(source, Path):
        raise ConfigError(
            f"the files of {config.dataset} are read from a disk",
            expected="--source FOLDER",
            found=str(source),
        )
    if source is not None:
        check_folder(source)


def _is_current(folder: Path, key: str) -> bool:
    try:
        return bool(read_json(folder / "key.json")["key"] == key)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _make(config: Config, source: Folder | None, folder: Path, report: Report) -> None:
    assert source is None or isinstance(source, Path)
    if config.dataset == "sim":
        from workflow.data.simulator import simulate

        simulate(config.sim, folder, report)
    elif config.dataset == "kuairand":
        kuairand.load_kuairand(config.kuairand, folder, source, report)
    elif config.dataset == "kuairec":
        kuairec.load_kuairec(config.kuairec, folder, source, report)
    else:
        movielens.load_movielens(folder, source, report)
