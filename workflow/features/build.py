"""The features stage: validated tables in, encoded tables, histories and samples out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from workflow.config import Config
from workflow.console import Report, no_report
from workflow.features import encoded, tables
from workflow.features.daily import DailyCounter
from workflow.features.fitted import CompiledTable, save_fitted
from workflow.features.fitted_features import fitted_features, raw_ids
from workflow.features.history import (
    SECONDS_PER_DAY,
    Histories,
    session_starts,
    smoothed_rate,
)
from workflow.features.local_time import user_offset_s
from workflow.features.samples import POINTERS, Cuts, Known, build_samples, split_of
from workflow.features.spec import Feature, FeatureSpec
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
        builder = _Builder(folder, config, contract, data, files)
        report(0, 5, "histories")
        builder.scan()
        report(1, 5, "point-in-time samples")
        builder.write_raw_samples()
        report(2, 5, "fitting workflows")
        builder.fit_workflows()
        report(3, 5, "encoding samples")
        counts = builder.encode_samples()
        report(4, 5, "encoding users and videos")
        builder.encode_tables()
        spec = builder.spec()
        spec.save(folder / "spec.json")
        summary = {**counts, "num_features": len(spec.features)}
        write_json(folder / "summary.json", summary)
    return summary


class _Builder:
    """Keeps what the steps of one features stage share."""

    def __init__(
        self, folder: Path, config: Config, contract: Contract, data: Path, files: list[Path]
    ) -> None:

        self.folder, self.config, self.contract = folder, config, contract
        self.data, self.files = data, files
        self.users = read_frame(data / "users.parquet")
        self.videos = read_frame(data / "videos.parquet")
        self.features: list[Feature] = []

    # --- pass 1: histories, daily counts, split points -----------------------------------------
    def scan(self) -> None:
        daily = DailyCounter()
        watches: list[tuple[npt.NDArray[Any], ...]] = []
        times = []
        for events in self._partitions():
            user, time = events["user_row"].to_numpy(), events["timestamp"].to_numpy()
            watched = events["watched"].to_numpy()
            video = events["video_row"].to_numpy()
            label = events["label"].to_numpy(np.float64) if "label" in events else watched * 1.0
            daily.add(video, time, label)
            columns = (user, video.astype(np.int32), time, label.astype(np.int8))
            watches.append(tuple(column[watched] for column in columns))
            times.append(time)
        user, video, time, liked = (np.concatenate(column) for column in zip(*watches, strict=True))
        start = np.searchsorted(user, np.arange(len(self.users) + 2)).astype(np.int64)
        sessions = session_starts(user, time, self.config.features.session_gap_s)
        graded = self.contract.has_graded_history
        histories = Histories(video, time, start, sessions, liked if graded else None)
        every_time = np.concatenate(times)
        self.last_event = int(every_time.max())
        temporal = self.config.split.protocol == "temporal"
        self.cuts = Cuts(*temporal_cuts(every_time, self.config.split)) if temporal else Cuts(0, 0)
        self.known = Known(
            histories, daily.finish(), self._publish_time(), 0.5, self._utc_offset_s()
        )
        self.known = replace(self.known, label_prior=self._label_prior())
        for folder, part in (("history", histories), ("daily", self.known.daily)):
            for field in fields(part):
                if (values := getattr(part, field.name)) is not None:
                    self._save(folder, field.name, values)

    def _partitions(self) -> Iterator[pd.DataFrame]:

        for path in self.files:
            yield read_frame(path)

    def _publish_time(self) -> npt.NDArray[np.int64] | None:
        if not self.contract.has_publish_time:
            return None
        known = self.videos["publish_time"].fillna(0).to_numpy(np.int64)
        return np.append(np.int64(0), known)

    def _utc_offset_s(self) -> npt.NDArray[np.int32] | None:
        return user_offset_s(self.contract, self.users) if self.contract.utc_offsets else None

    def _label_prior(self) -> float:
        """Positive share before the test period; it smooths rates of users and videos."""
        if not self.contract.has_label:
            return 0.5
        total = positive = 0.0
        for events in self._partitions():
            seen = split_of(events, self.config, self.cuts) != TEST
            total += seen.sum()
            positive += float(events["label"].to_numpy()[seen].sum())
        return positive / max(total, 1.0)

    # --- pass 2: samples -------------------------------------------------------------------------
    def write_raw_samples(self) -> None:
        for number, events in enumerate(self._partitions()):
            part = split_of(events, self.config, self.cuts)
            samples = build_samples(events, part, self.contract, self.config, self.known)
            for value, name in enumerate(NAMES):
                chosen = samples[samples["part"] == value].drop(columns="part")
                path = self.folder / "raw" / name / f"part-{number:05d}.parquet"
                path.parent.mkdir(parents=True, exist_ok=True)
                if len(chosen):
                    chosen.to_parquet(path, index=False)

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

        counts = {}
        for part in NAMES:
            total = 0
            (self.folder / part).mkdir()
            for path in self._raw(part):
                raw = read_frame(path)
                frame = _joined(tables.transform(self.workflows["events"], [path]))
                total += len(raw)
                self._sample_frame(raw, frame).to_parquet(
                    self.folder / part / path.name, index=False
                )
                path.unlink()
            counts[f"num_{part}"] = total
        return counts

    def _sample_frame(self, raw: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
        kept = [*POINTERS, "watched", "label"]
        result = raw[kept].copy()
        for name in frame.columns:
            column = frame[name].to_numpy()
            result[name] = column.astype(np.float32 if column.dtype.kind == "f" else np.int32)
        if self.contract.has_propensity:
            result["propensity"] = raw["propensity"].to_numpy(np.float32)
        if self.contract.has_watch_time:
            result["log_watch"] = np.log1p(raw["watch_s"].to_numpy(np.float32))
        return result

    # --- tables ----------------------------------------------------------------------------------
    def encode_tables(self) -> None:
        self._encode_ids()
        for name, role, frame in (
            ("users", "user_feature", self.users),
            ("videos", "video_feature", self.videos),
        ):
            self._encode_table(name, role, frame)
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

    def _encode_table(self, name: Any, role: str, frame: pd.DataFrame) -> None:
        columns = self.contract.features(role)
        if not columns:
            return
        path = self.data / f"{name}.parquet"
        result = _joined(tables.transform(self.workflows[name], [path]))
        assert len(result) == len(frame)
        for column in columns:
            self._save(name, column.name, encoded.encode_column(result[column.name], column))

    def _encode_state(self) -> None:
        """Counts as of the last event, as a request after the export would see them."""
        compiled = self.compiled["events"]
        prior = self.known.label_prior if self.contract.has_label else None
        rows = np.arange(len(self.videos) + 1)
        tomorrow = np.int64(self.last_event + SECONDS_PER_DAY)
        for name, values in self.known.daily.numbers(rows, tomorrow, label_prior=prior).items():
            self._save("videos", name, compiled[name].normalise(values))
        counts, positive = self._user_totals()
        users = {"user_event_count": counts.astype(np.float32)}
        if prior is not None:
            users["user_label_rate"] = smoothed_rate(positive, counts, prior)
        for name, values in users.items():
            self._save("users", name, compiled[name].normalise(values))

    def _user_totals(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        size = len(self.users) + 1
        events, labels = np.zeros(size), np.zeros(size)
        for frame in self._partitions():
            user = frame["user_row"].to_numpy()
            events += np.bincount(user, minlength=size)
            if "label" in frame:
                labels += np.bincount(user, frame["label"].to_numpy(np.float64), minlength=size)
        return events, labels

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
            last_event=self.last_event,
            has_label=self.contract.has_label,
            label_prior=self.known.label_prior,
        )


def _joined(partitions: list[pd.DataFrame]) -> pd.DataFrame:
    """One frame; a file of many row groups is transformed in several partitions."""
    import pandas as pd

    return pd.concat(partitions, ignore_index=True)
