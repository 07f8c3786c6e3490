"""Sample files: raw ones, and their encoding by the events workflow, a file at a time."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from workflow.config import FeatureConfig
from workflow.features import tables
from workflow.features.cluster import current_client
from workflow.features.fitted import restore_workflow
from workflow.features.samples import POINTERS
from workflow.frames import read_frame
from workflow.schema import Contract

if TYPE_CHECKING:
    import pandas as pd


def write_raw(samples: pd.DataFrame, path: Path) -> None:
    """Write raw samples, which are read twice and then removed: quickly rather than small."""
    samples.to_parquet(path, index=False, compression="lz4", use_dictionary=False)


@dataclass(frozen=True)
class SampleEncoder:
    """Encodes raw sample files.

    Args:
        folder: the fitted events workflow; `state.json` says what it learned.
    """

    contract: Contract
    config: FeatureConfig
    folder: Path

    def encode(self, files: dict[Path, Path]) -> int:
        """Write each raw file, encoded, to its target; returns the rows of all.

        With a Dask cluster each file is a task; one whose worker dies is done by another.
        """
        client = current_client()
        if client is None:
            return sum(self.encode_file(raw, target) for raw, target in files.items())
        tasks = client.map(self.encode_file, list(files), list(files.values()), pure=False)
        return sum(client.gather(tasks))

    def encode_file(self, path: Path, target: Path) -> int:
        """Write one file; returns its rows."""
        raw = read_frame(path)
        workflow = restore_workflow(self.contract, self.config, "events", self.folder)
        (encoded,) = tables.transform(workflow, raw)
        temporary = path.with_suffix(f".tmp-{os.getpid()}")
        self._sample_frame(raw, encoded).to_parquet(temporary, index=False)
        temporary.replace(target)
        return len(raw)

    def _sample_frame(self, raw: pd.DataFrame, encoded: pd.DataFrame) -> pd.DataFrame:
        result = raw[[*POINTERS, "watched", "label"]].copy()
        for name in encoded.columns:
            column = encoded[name].to_numpy()
            result[name] = column.astype(np.float32 if column.dtype.kind == "f" else np.int32)
        if self.contract.has_propensity:
            result["propensity"] = raw["propensity"].to_numpy(np.float32)
        if self.contract.has_watch_time:
            result["log_watch"] = np.log1p(raw["watch_s"].to_numpy(np.float32))
        return result
