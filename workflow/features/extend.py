"""Features of a log that went on, in the terms that a trained model knows.

Statistics stay those of the earlier features. So does every index of their vocabularies: values
that are new get indices after the last one, the most frequent first. Histories, counts and
samples are those of the longer log.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from workflow.config import Config, FeatureConfig
from workflow.console import Report, no_report
from workflow.data.tables import event_files
from workflow.features.build import Builder
from workflow.features.daily import STRIDE
from workflow.features.encoded import FeatureStore
from workflow.features.fitted import CompiledTable, restore_workflow
from workflow.features.fitted_features import raw_ids
from workflow.features.spec import FeatureSpec
from workflow.features.tables import TIME_CONTEXT
from workflow.frames import read_frame
from workflow.run import Run, read_json, replaced_folder
from workflow.schema import Contract

Counts = Any  # pd.Series: how often a value comes, by value


def extend_features(
    parent: Run,
    target: Run,
    config: Config,
    contract: Contract,
    report: Report = no_report,
    *,
    grows: bool = True,
) -> dict[str, Any]:
    """Write `target.features` from `target.data`, continuing those of `parent`.

    The split is the one that the settings ask for, of the longer log.

    Args:
        grows: whether new values get indices; otherwise they are out of vocabulary.
    Returns:
        Counts as `build_features` gives them.
    """
    with replaced_folder(target.features) as folder:
        extender = _Extender(folder.absolute(), config, contract, target, parent, grows=grows)
        return extender.build(report)


class _Extender(Builder):
    """A Builder that fits nothing."""

    def __init__(
        self, folder: Path, config: Config, contract: Contract, target: Run, parent: Run,
        *, grows: bool,
    ) -> None:  # fmt: skip
        super().__init__(folder, config, contract, target.data.absolute(), event_files(target))
        self.parent, self.grows = FeatureStore(parent), grows
        self.before = FeatureSpec.load(self.parent.root / "spec.json")

    def _label_prior(self) -> float:
        return self.before.label_prior

    def fit_workflows(self) -> None:
        """The parent's workflows, with vocabularies that know the new values."""
        shutil.copytree(self.parent.root / "workflows", self.folder / "workflows")
        self._renumber("user_row", self.parent.user("user_id"), self.users["user_id"])
        self._renumber("video_row", self.parent.video("video_id"), self.videos["video_id"])
        self.workflows, self.compiled = {}, {}
        for folder in sorted((self.folder / "workflows").iterdir()):
            name: Any = folder.name
            if self.grows:
                extend_vocabularies(folder, self._values(name), self.config.features)
            self.workflows[name] = restore_workflow(
                self.contract, self.config.features, name, folder
            )
            self.compiled[name] = CompiledTable.load(folder)

    def _renumber(self, column: str, old_ids: npt.NDArray[Any], ids: pd.Series[Any]) -> None:
        """New ids moved the rows by which the vocabulary of ids knows them."""
        row = np.append(0, 1 + np.searchsorted(raw_ids(ids), old_ids))
        path = _vocabulary_file(self.folder / "workflows" / "ids", column)
        frame = read_frame(path)
        is_known = frame[column].notna()
        rows = row[frame.loc[is_known, column].to_numpy(np.int64)]
        frame.loc[is_known, column] = rows.astype(frame[column].dtype)
        frame.to_parquet(path)

    def _values(self, workflow: str) -> dict[str, Counts]:
        """How often each value of each categorical column comes."""
        if workflow == "ids":
            daily = self.known.daily
            videos = np.bincount(daily.key // STRIDE, np.diff(daily.events), len(self.videos) + 1)
            counts = {"user_row": self.totals.events, "video_row": videos}
            return {name: pd.Series(values.astype(np.int64)) for name, values in counts.items()}
        if workflow == "events":
            names = [c.name for c in self.contract.features("context")] + list(TIME_CONTEXT)
            frames = [read_frame(path, names) for path in self._raw("train", "valid", "test")]
            return {n: pd.concat([f[n] for f in frames]).value_counts() for n in names}
        role = "user_feature" if workflow == "users" else "video_feature"
        columns = [c for c in self.contract.features(role) if c.kind != "continuous"]
        frame = read_frame(self.data / f"{workflow}.parquet", [c.name for c in columns])
        return {c.name: frame[c.name].explode().value_counts() for c in columns}


def extend_vocabularies(folder: Path, counts: dict[str, Counts], config: FeatureConfig) -> None:
    """Give values that Categorify has not seen the next indices, in its own files.

    Args:
        folder: a fitted workflow, of which state.json names the vocabulary files.
        counts: how often each value of a column comes; ids that come less often than the settings
            ask for stay out of vocabulary.
    """
    least = {"user_row": config.min_user_events, "video_row": config.min_video_events}
    for column, found in counts.items():
        path = _vocabulary_file(folder, column)
        frame = read_frame(path)
        enough = found[found >= least.get(column, 1)]
        new = enough[~enough.index.isin(frame[column].dropna())]
        if new.empty:
            continue
        new = new.sort_index(kind="stable").sort_values(ascending=False, kind="stable")
        more = pd.DataFrame({column: new.index, f"{column}_size": new.to_numpy()})
        more = more.astype({name: frame[name].dtype for name in more.columns})
        longer = pd.concat([frame, more], ignore_index=True)
        longer.index = pd.RangeIndex(frame.index[0], frame.index[0] + len(longer))
        longer.to_parquet(path)
        _note_size(path.with_name(f"meta.{column}.parquet"), len(longer))


def _vocabulary_file(folder: Path, column: str) -> Path:
    path: str = read_json(folder / "state.json")["categories"][column]
    return folder / path


def _note_size(path: Path, size: int) -> None:
    """What Categorify says of the vocabulary, kept true."""
    meta = read_frame(path)
    meta.loc[meta["kind"] == "unique", "num_indices"] = size
    meta.to_parquet(path)
