"""What the log of a run looks like: what drift and calibration of the live bundle are read off."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from triton_repo.bench import sample_requests
from triton_repo.client import PAGE
from triton_repo.local import open_stage
from triton_repo.ui import drift
from triton_repo.ui.explain import page_view
from triton_repo.ui.seen import Seen
from workflow.errors import MarqueeError
from workflow.features.encoded import FeatureStore
from workflow.features.spec import FeatureSpec
from workflow.frames import read_frame
from workflow.run import Run
from workflow.staging import is_updated

if TYPE_CHECKING:
    from triton_repo.ui.source import LiveSource

NUM_PAGES = 60  # asked for the log's requests: their scores are what scores are compared with
MOST_EVENTS, MOST_FILES = 100_000, 4  # read of each part of the log
NUM_JUDGED = 4_000  # held-out events whose predictions are compared with what happened
LEAST_EVENTS = 200
CALIBRATION_BINS = 10
Frame = Any


def read_log(source: LiveSource) -> dict[str, Any]:
    """What the live bundle is compared with; takes seconds.

    Returns:
        {"log": drift of the log itself, "calibration", "requests": {column: raw values in
        training}, "said": {name: what the bundle says of videos on pages of the log's requests},
        "shown": ids on these, "pages": how many}; {"missing": why} or nothing without a log.
    """
    run = source.served.run
    if run is None:
        why = {"missing": "The log is in the run: marquee ui --run RUN"}
        nothing: dict[str, Any] = {"requests": {}, "said": {}, "shown": set(), "pages": 0}
        return {"log": why, "calibration": why, **nothing}
    parts = Log(run)
    return {
        "log": parts.drift(),
        "calibration": parts.calibration(source),
        "requests": parts.requests(source),
        **_pages(source, run),
    }


def _pages(source: LiveSource, run: Run) -> dict[str, Any]:
    """Pages of the log's own requests, from the live server."""
    seen = Seen()
    for row in sample_requests(run, source.client.inputs(PAGE), NUM_PAGES):
        values = {name: value for name, [value] in row.items()}
        user, at = str(values.pop("user_id")), int(values.pop("time"))
        page, ms = source.ask(user, time=at, context=values)
        seen.add(page_view(page, source.shelf(page.version)), at, values, ms)
    said = {name: seen.values(name) for name in ("score", "p_positive", "p_watched", "watch_s")}
    return {"said": said, "shown": seen.videos(), "pages": len(seen.pages)}


class Log:
    """Samples of a run's log: what training read, and the days after it."""

    def __init__(self, run: Run) -> None:
        self.run, self.store = run, FeatureStore(run)
        self.spec = FeatureSpec.load(self.store.root / "spec.json")
        self.train, self.recent = self._read("train"), self._read("test")

    def _read(self, part: str) -> Frame:
        import pandas as pd

        files = self.store.samples(part)
        if len(files) > MOST_FILES:
            files = [files[i] for i in np.linspace(0, len(files) - 1, MOST_FILES).astype(int)]
        each = -(-MOST_EVENTS // max(len(files), 1))
        frames = []
        for path in files:
            frame = read_frame(path)
            step = -(-len(frame) // each)
            frames.append(frame.iloc[:: max(step, 1)])
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    # --- drift -----------------------------------------------------------------------------------
    def drift(self) -> dict[str, Any]:
        """PSI of each feature: the days after training against training."""
        rows = []
        for feature in self.spec.of_group(
            "context", "user", "video", "user_state", "video_state", "cross"
        ):
            if feature.name.endswith("_index"):
                continue
            before, after = (self.values(part, feature) for part in (self.train, self.recent))
            numbers = feature.kind == "continuous"
            rows.append(drift.row(feature.name, before, after, LEAST_EVENTS, numbers=numbers))
        if self.spec.has_label:
            before, after = (part["label"].tolist() for part in (self.train, self.recent))
            rows.append(drift.row("label", before, after, LEAST_EVENTS, numbers=False))
        rows.sort(key=lambda row: -row["psi"])
        return {"rows": rows, "least": LEAST_EVENTS, "unit": "events", "train": len(self.train)}

    def values(self, frame: Frame, feature: Any) -> list[Any]:
        """A feature's encoded values at a sample of events; lists give each of their entries."""
        if feature.name in frame:
            found = frame[feature.name].to_numpy()
        elif feature.group == "user":
            found = np.asarray(self.store.user(feature.name))[frame["user_row"].to_numpy()]
        else:
            found = np.asarray(self.store.video(feature.name))[frame["video_row"].to_numpy()]
        values = found.ravel()
        values = values[values > 0] if feature.is_list else values
        result: list[Any] = values.tolist()
        return result

    def requests(self, source: LiveSource) -> dict[str, list[str]]:
        """Raw context values of the training log, as requests carry them; and the hour."""
        tower = open_stage(source.newest.folder / "query_tower" / str(source.newest.version), "")
        found = {}
        for name, known in tower.settings["vocabulary"].items():
            if name not in self.train:
                continue
            text = dict(zip(known["index"], map(str, known["values"]), strict=True))
            found[name] = [text.get(code, "") for code in self.train[name].tolist()]
        found.pop("weekday", None)
        return found

    # --- calibration -----------------------------------------------------------------------------
    def calibration(self, source: LiveSource) -> dict[str, Any]:
        """What the served ranker says of held-out events, and what happened."""
        if not self.spec.has_label:
            return {"missing": "The log has no label to compare with"}
        if is_updated(self.run, "train_ranker"):
            return {"missing": "No held-out events: marquee update trains on the whole log"}
        count = min(len(self.recent), NUM_JUDGED)
        if count < LEAST_EVENTS:
            return {"missing": f"Too few held-out events: {count} of {LEAST_EVENTS}"}
        frame = self.recent.sample(count, random_state=7)
        try:
            p = self._predicted(source, frame)
        except MarqueeError as error:
            return {"missing": str(error)}
        if p is None:
            return {"missing": "The ranker of this bundle has no head for the label"}
        return calibration(p, frame["label"].to_numpy(np.float64))

    def _predicted(self, source: LiveSource, frame: Frame) -> npt.NDArray[np.float64] | None:
        """P(positive) of events by the exported stages; float64 [n]."""
        folder, version = source.newest.folder, str(source.newest.version)
        tower = open_stage(folder / "query_tower" / version, "")
        ranker = open_stage(folder / "ranker" / version)
        users = np.concatenate([source.newest.user_id[:1], source.newest.user_id])
        user = users[frame["user_row"].to_numpy()]
        inputs: dict[str, Any] = {
            "user_id": (user.astype(object) if user.dtype.kind == "S" else user)[:, None],
            "time": frame["timestamp"].to_numpy(np.int64)[:, None],
        }
        for name, known in tower.settings["vocabulary"].items():
            if name in frame and name not in ("hour", "weekday"):
                inputs[name] = _raw(frame[name].to_numpy(), known)
        rows, said = frame["video_row"].to_numpy(np.int32)[:, None], []
        for start in range(0, len(frame), 256):
            part = slice(start, start + 256)
            known = tower.run({name: values[part] for name, values in inputs.items()})
            said.append(ranker.explain(known, rows[part]).get("p_positive"))
        if not said or said[0] is None:
            return None
        result: npt.NDArray[np.float64] = np.concatenate(said)[:, 0].astype(np.float64)
        return result


def _raw(codes: npt.NDArray[Any], known: dict[str, Any]) -> npt.NDArray[Any]:
    """Encoded context as requests carry it; [n, 1]."""
    values = known["values"]
    if values and isinstance(values[0], int):
        numbers = dict(zip(known["index"], values, strict=True))
        return np.array([[numbers.get(code, -1)] for code in codes], np.int64)
    texts = {code: text.encode() for code, text in zip(known["index"], values, strict=True)}
    result = np.empty((len(codes), 1), object)
    result[:, 0] = [texts.get(code, b"") for code in codes]
    return result


def calibration(p: npt.NDArray[np.float64], label: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Reliability over equally filled bins.

    Returns:
        {"bins": [{"predicted", "observed", "count"}], "error": mean absolute gap, "count"}.
    """
    order = np.argsort(p, kind="stable")
    bins = [
        {
            "predicted": round(float(p[part].mean()), 4),
            "observed": round(float(label[part].mean()), 4),
            "count": len(part),
        }
        for part in np.array_split(order, CALIBRATION_BINS)
        if len(part)
    ]
    gaps = [abs(one["predicted"] - one["observed"]) * one["count"] for one in bins]
    return {"bins": bins, "error": round(sum(gaps) / len(p), 4), "count": len(p)}
