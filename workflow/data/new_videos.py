"""A file of videos that come after training, checked as validation checks the videos table."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from workflow.config import ValidationConfig
from workflow.data.entities import canonical_videos, load_entities
from workflow.data.findings import Findings
from workflow.data.reading import TableFiles
from workflow.errors import DataError
from workflow.schema import Contract, Table


def read_new_videos(path: Path, contract: Contract, rules: ValidationConfig) -> pa.Table:
    """The videos of a raw file: canonical columns (entities.canonical_videos), sorted by id.

    Args:
        path: Parquet where its name ends in .parquet, else text, with the columns that the
            contract declares for videos; the id alone where it has no videos table.
    Raises:
        ContractError, DataError: as validation raises them.
    """
    if not path.is_file():
        raise DataError(f"no file of videos {path}", next_step="correct --videos")
    declared = _declared(path, contract)
    checked = contract.model_copy(update={"videos": declared})
    findings = Findings(checked)
    videos = load_entities(TableFiles(path.parent, declared, "videos"), "video_id", findings)
    findings.raise_first()
    assert videos is not None
    dropped = findings.dropped_share("videos")
    if dropped > rules.max_bad_fraction or dropped == 1:
        worst = findings.worst("videos")
        raise DataError(
            f"{dropped:.1%} of the videos rows cannot be used",
            expected=f"at most {rules.max_bad_fraction:.1%} (validation.max_bad_fraction)",
            found=f"{', '.join(worst.dropped)}; first: {', '.join(worst.dropped_at)}",
            next_step=f"correct {path.name}",
        )
    return canonical_videos(videos, checked)


def _declared(path: Path, contract: Contract) -> Table:
    """The contract's videos table, read from this file."""
    changes = {"path": path.name, "format": "parquet" if path.suffix == ".parquet" else "csv"}
    if contract.videos is not None:
        return contract.videos.model_copy(update=changes)
    return Table.model_validate(changes | {"columns": (contract.id_column("video_id"),)})
