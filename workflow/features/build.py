"""The features stage: validated tables in, encoded tables, histories and samples out."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from workflow.config import Config
from workflow.console import Report, no_report
from workflow.features import encoded, tables
from workflow.features.cluster import require_shared
from workflow.features.daily import DailyCounter
from workflow.features.entity_tables import encode_entities
from workflow.features.fitted import CompiledTable, save_fitted
from workflow.features.fitted_features import fitted_features, raw_ids
from workflow.features.history import SECONDS_PER_DAY, smoothed_rate
from workflow.features.history_files import HistoryWriter, load_histories
from workflow.features.local_time import user_offset_s
from workflow.features.sample_files import SampleEncoder, write_raw
from workflow.features.samples import Cuts, Known, build_samples, split_of
from workflow.features.spec import FeatureSpec
from workflow.features.split import NAMES, TEST, temporal_cuts
from workflow.frames import read_frame
from workflow.run import Run, replaced_folder, write_json
from workflow.schema import Contract

if TYPE_CHECKING:
    import pandas as pd


def build_features(
    run: Run, config: Config, contract: Contract, report: Report = no_report
) -> dict[str, Any]:
    """Make everything that models read; returns counts for the summary.

    Vocabularies and statistics are fitted without the test part. Each partition of events is
    in memory once at a time.
    """
    data = run.require(run.data, "validated data", "marquee validate")
    files = sorted((data / "events").glob("*.parquet"))
    with replaced_folder(run.features) as folder:
        require_shared(folder.absolute())
        builder = Builder(folder.absolute(), config, contract, data.absolute(), files)
        return builder.build(report)


class Builder:
    """Keeps what the steps of one features stage share."""

    def __init__(
        self, folder: Path, config: Config, contract: Contract, data: Path, files: list[Path]
    ) -> None:

        self.folder, self.config, self.contract = folder, config, contract
        self.data, self.files = data, files
        self.users = read_frame(data / "users.parquet", _user_columns(contract))
        self.videos = read_frame(data / "videos.parquet", _video_columns(contract))

    def build(self, report: Report) -> dict[str, Any]:
        """All passes; returns counts for the summary."""
        report(0, 5, "histories")
        self.scan()
        report(1, 5, "point-in-time samples")
        self.write_raw_samples()
        report(2, 5, "fitting workflows")
        self.fit_workflows()
        report(3, 5, "encoding samples")
        counts = self.encode_samples()
        report(4, 5, "encoding users and videos")
        self.encode_tables()
        spec = self.spec()
        spec.save(self.folder / "spec.json")
        summary = {**counts, "num_features": len(spec.features)}
        write_json(self.folder / "summary.json", summary)
        return summary

    # --- pass 1: split points, histories, daily counts -----------------------------------------
    def scan(self) -> None:
        temporal = self.config.split.protocol == "temporal"
        self.cuts = Cuts(0, 0)
        if temporal:
            self.cuts = Cuts(*temporal_cuts(self._times, self.config.split))
        daily = DailyCounter()
        self.totals = _Totals(len(self.users))
        with HistoryWriter(
            self.folder / "history", len(self.users), self.config.features.session_gap_s,
            graded=self.contract.has_graded_history,
        ) as histories:  # fmt: skip
            for events in self._partitions(*self._event_columns()):
                self._scan_partition(events, daily, histories)
        self.known = Known(
            load_histories(self.folder / "history"), daily.finish(), self._publish_time(),
            self._label_prior(), self._utc_offset_s(),
        )  # fmt: skip
        for field in fields(self.known.daily):
            self._save("daily", field.name, getattr(self.known.daily, field.name))

    def _label_prior(self) -> float:
        return self.totals.label_prior if self.contract.has_label else 0.5

    def _scan_partition(
        self, events: pd.DataFrame, daily: DailyCounter, histories: HistoryWriter
    ) -> None:
        user, time = events["user_row"].to_numpy(), events["timestamp"].to_numpy()
        video, watched = events["video_row"].to_numpy(), events["watched"].to_numpy()
        label = events["label"].to_numpy(np.float64) if "label" in events else watched * 1.0
        daily.add(video, time, label)
        histories.add(user[watched], video[watched], time[watched], label[watched])
        self.totals.add(user, time, label, split_of(events, self.config, self.cuts) != TEST)

    def _event_columns(self) -> list[str]:
        label = ["label"] if self.contract.has_label else []
        return ["user_row", "video_row", "timestamp", "watched", *label]

    def _partitions(self, *columns: str) -> Iterator[pd.DataFrame]:
        """Each partition, with all columns where none is named."""
        for path in self.files:
            yield read_frame(path, list(columns) or None)

    def _times(self) -> Iterator[npt.NDArray[np.int64]]:
        return (events["timestamp"].to_numpy() for events in self._partitions("timestamp"))

    def _publish_time(self) -> npt.NDArray[np.int64] | None:
        if not self.contract.has_publish_time:
            return None
        known = self.videos["publish_time"].fillna(0).to_numpy(np.int64)
        return np.append(np.int64(0), known)

    def _utc_offset_s(self) -> npt.NDArray[np.int32] | None:
        return user_offset_s(self.contract, self.users) if self.contract.utc_offsets else None

    # --- pass 2: samples -------------------------------------------------------------------------
    def write_raw_samples(self) -> None:
        for name in NAMES:
            (self.folder / "raw" / name).mkdir(parents=True)
        context = tuple(column.name for column in self.contract.features("context"))
        for number, events in enumerate(self._partitions()):
            part = split_of(events, self.config, self.cuts)
            samples = build_samples(events, part, self.contract, self.config, self.known)
            part = samples.pop("part").to_numpy()
            for value, name in enumerate(NAMES):
                rows = np.flatnonzero(part == value)
                if len(rows):
                    path = self.folder / "raw" / name / f"part-{number:05d}.parquet"
                    write_raw(samples, rows, context, path)

    def _raw(self, *parts: str) -> list[Path]:
        return [p for part in parts for p in sorted((self.folder / "raw" / part).glob("*.parquet"))]

    def fit_workflows(self) -> None:
        seen = self._raw("train", "valid")
        sources: dict[tables.WorkflowName, list[Path]] = {
            "ids": seen,
            "events": seen,
            "users": [self.data / "users.parquet"],
            "videos": [self.data / "videos.parquet"],
        }
        self.workflows: dict[str, Any] = {}
        self.compiled: dict[str, CompiledTable] = {}
        for name, files in sources.items():
            if not self._inputs(name):
                continue
            out_path = self.folder / "workflows" / name
            out_path.mkdir(parents=True, exist_ok=True)
            built = tables.build_feature_workflow(
                self.contract, self.config.features, name, out_path
            )
            self.workflows[name] = tables.fit(built, files)
            save_fitted(self.workflows[name], out_path)
            self.compiled[name] = CompiledTable.load(out_path)

    def _inputs(self, name: tables.WorkflowName) -> bool:
        """Whether the table has any feature to encode."""
        role = {"users": "user_feature", "videos": "video_feature"}.get(name)
        return role is None or bool(self.contract.features(role))

    def encode_samples(self) -> dict[str, int]:
        """Run the events workflow over every raw sample file; the raw files are then removed."""
        fitted = self.folder / "workflows" / "events"
        encoder = SampleEncoder(self.contract, self.config.features, fitted)
        counts = {}
        for part in NAMES:
            (self.folder / part).mkdir()
            files = {path: self.folder / part / path.name for path in self._raw(part)}
            counts[f"num_{part}"] = encoder.encode(files)
        shutil.rmtree(self.folder / "raw")
        return counts

    # --- tables ----------------------------------------------------------------------------------
    def encode_tables(self) -> None:
        self._encode_ids()
        for name, role in (("users", "user_feature"), ("videos", "video_feature")):
            columns = self.contract.features(role)
            if columns:
                path, fitted = self.data / f"{name}.parquet", self.compiled[name]
                for column, values in encode_entities(path, columns, self.workflows[name], fitted):
                    self._save(name, column, values)
        self._encode_state()
        if self.known.publish_time is not None:
            self._save("videos", "publish_time", self.known.publish_time)
        if self.known.utc_offset_s is not None:
            self._save("users", "utc_offset_s", self.known.utc_offset_s)
        self._save("videos", "raw_duration_s", self._durations())
        self._save("users", "user_id", raw_ids(self.users["user_id"]))
        self._save("videos", "video_id", raw_ids(self.videos["video_id"]))

    def _durations(self) -> npt.NDArray[np.float32]:
        """Seconds by video row; NaN where not known, which a duration of 0 means too."""
        column = self.contract.duration
        if column is None:
            return np.full(len(self.videos) + 1, np.nan, np.float32)
        seconds = self.videos[column.name].to_numpy(np.float32, na_value=np.nan)
        return np.append(np.float32(np.nan), np.where(seconds > 0, seconds, np.float32(np.nan)))

    def _encode_ids(self) -> None:
        ids = self.compiled["ids"]
        for folder, column, count, row_0 in (
            ("users", "user_row", len(self.users), encoded.USER_ROW_0),
            ("videos", "video_row", len(self.videos), encoded.VIDEO_ROW_0),
        ):
            rows = np.arange(1, count + 1)
            index = ids[column].encode(rows, np.zeros(count, bool))
            name = column.replace("_row", "_index")
            self._save(folder, name, np.r_[np.int32(row_0), index])

    def _encode_state(self) -> None:
        """Counts as of the last event, as a request after the export would see them."""
        compiled = self.compiled["events"]
        prior = self.known.label_prior if self.contract.has_label else None
        rows = np.arange(len(self.videos) + 1)
        tomorrow = np.int64(self.totals.last_event + SECONDS_PER_DAY)
        for name, values in self.known.daily.numbers(rows, tomorrow, label_prior=prior).items():
            self._save("videos", name, compiled[name].normalise(values))
        counts, positive = self.totals.events, self.totals.labels
        users = {"user_event_count": counts.astype(np.float32)}
        if prior is not None:
            users["user_label_rate"] = smoothed_rate(positive, counts, prior)
        for name, values in users.items():
            self._save("users", name, compiled[name].normalise(values))

    def _save(self, folder: str, name: str, values: npt.NDArray[Any]) -> None:
        encoded.save_array(self.folder / folder / f"{name}.npy", values)

    # --- fitted schema ---------------------------------------------------------------------------
    def spec(self) -> FeatureSpec:
        config = self.config.features
        return FeatureSpec(
            features=tuple(fitted_features(self.contract, self.compiled, self.folder, config)),
            num_users=len(self.users),
            num_videos=len(self.videos),
            has_watch_time=self.contract.has_watch_time,
            history_length=config.history_length,
            session_length=config.session_length,
            session_gap_s=config.session_gap_s,
            valid_from=self.cuts.valid_from,
            test_from=self.cuts.test_from,
            last_event=self.totals.last_event,
            has_label=self.contract.has_label,
            label_prior=self.known.label_prior,
        )


def _user_columns(contract: Contract) -> list[str]:
    """What the stage itself reads of users; their features are NVTabular's."""
    country = contract.tagged("users", "country") if contract.utc_offsets else None
    return ["user_id", *([country.name] if country is not None else [])]


def _video_columns(contract: Contract) -> list[str]:
    """What the stage itself reads of videos; their features are NVTabular's."""
    duration = [contract.duration.name] if contract.duration is not None else []
    return ["video_id", *(["publish_time"] if contract.has_publish_time else []), *duration]


class _Totals:
    """What is summed over all events: users' events and labels, the share of positives, the end."""

    def __init__(self, num_users: int) -> None:
        self.last_event = 0
        self.events, self.labels = np.zeros(num_users + 1), np.zeros(num_users + 1)
        self._seen = self._positive = 0.0

    def add(
        self,
        user_row: npt.NDArray[Any],
        timestamp: npt.NDArray[np.int64],
        label: npt.NDArray[np.float64],
        seen: npt.NDArray[np.bool_],
    ) -> None:
        self.last_event = max(self.last_event, int(timestamp.max()))
        self.events += np.bincount(user_row, minlength=len(self.events))
        self.labels += np.bincount(user_row, label, len(self.labels))
        self._seen += int(seen.sum())
        self._positive += float(label[seen].sum())

    @property
    def label_prior(self) -> float:
        """Positive share before the test period; it smooths rates of users and videos."""
        return self._positive / max(self._seen, 1.0)
