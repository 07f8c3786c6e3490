"""Sample files: raw ones, and their encoding by the fitted events workflow, a file at a time.

On a GPU NVTabular encodes; on a CPU the compiled workflow does, the same arithmetic as in serving.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from workflow.config import FeatureConfig
from workflow.features import tables
from workflow.features.cluster import current_client
from workflow.features.compiled import indices, numbers
from workflow.features.fitted import CompiledTable, restore_workflow
from workflow.features.samples import POINTERS
from workflow.schema import Contract

if TYPE_CHECKING:
    import pandas as pd


NULLABLE = ("watch_s", "propensity", "log_watch", "video_age_days")  # besides raw context


def write_raw(
    samples: pd.DataFrame, rows: npt.NDArray[np.int64], context: tuple[str, ...], path: Path
) -> None:
    """Write some raw samples, which are read twice and then removed: quickly rather than small.

    Args:
        context: the columns that users declared, which may have nulls.
    """
    nullable = (*NULLABLE, *context)
    columns = {
        name: pa.array(samples[name].to_numpy()[rows], from_pandas=name in nullable)
        for name in samples.columns
    }
    whole = [name for name, values in columns.items() if pa.types.is_integer(values.type)]
    pq.write_table(
        _table(columns, nullable), path, row_group_size=len(rows), use_dictionary=False,
        write_statistics=False, compression={n: "lz4" if n in whole else "none" for n in columns},
    )  # fmt: skip


def _table(columns: dict[str, Any], nullable: tuple[str, ...]) -> pa.Table:
    """Columns that are known to have no null are quicker to write and to read."""
    fields = [pa.field(n, v.type, nullable=n in nullable) for n, v in columns.items()]
    return pa.table(list(columns.values()), schema=pa.schema(fields))


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
        raw = pq.read_table(path)
        columns = {name: raw[name] for name in (*POINTERS, "watched", "label")}
        columns |= self.by_nvtabular(raw) if tables.on_gpu() else self.by_compiled(raw)
        if self.contract.has_propensity:
            columns["propensity"] = raw["propensity"]
        if self.contract.has_watch_time:
            log_watch = np.log1p(raw["watch_s"].to_numpy())
            columns["log_watch"] = pa.array(log_watch, from_pandas=True)
        temporary = path.with_suffix(f".tmp-{os.getpid()}")
        pq.write_table(_table(columns, NULLABLE[:3]), temporary, use_dictionary=self._repeated())
        temporary.replace(target)
        return len(columns["label"])

    def by_compiled(self, raw: pa.Table) -> dict[str, pa.Array]:
        """The encoded columns, as NVTabular would encode them, bit for bit."""
        compiled = CompiledTable.load(self.folder)
        context, counted, rates = tables.event_columns(self.contract)
        result: dict[str, npt.NDArray[Any]] = {
            name: indices(raw[name].combine_chunks(), compiled[name]) for name in context
        }
        result |= {n: numbers(raw[n].combine_chunks(), compiled[n]) for n in counted + rates}
        return {name: pa.array(values) for name, values in result.items()}

    def by_nvtabular(self, raw: pa.Table) -> dict[str, pa.Array]:
        """The encoded columns by the restored workflow, on whatever NVTabular computes with."""
        workflow = restore_workflow(self.contract, self.config, "events", self.folder)
        (encoded,) = tables.transform(workflow, raw.to_pandas())
        context = tables.event_columns(self.contract)[0]
        return {
            name: pa.array(encoded[name].astype(np.int32 if name in context else np.float32))
            for name in encoded.columns
        }

    def _repeated(self) -> list[str]:
        """Columns of few values, which a dictionary makes smaller."""
        context = tables.event_columns(self.contract)[0]
        return ["user_row", "video_row", "watched", "label", *context]
