"""The offline pipeline: the answer that serving must give, computed the slow and direct way.

NVTabular encodes the request, TensorFlow runs the towers and the DLRM, FAISS searches. Nothing
here uses the exported repository, so agreement with it proves that nothing is skewed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import models.compat  # noqa: F401

import numpy as np
import numpy.typing as npt
import pandas as pd

from models.dlrm import Outputs
from models.index_kinds import read_index
from models.inputs import FeatureTables, sample_columns
from models.metrics import Int64
from models.ranker import load_ranker
from models.ranker_predict import Predictor, combined
from models.retriever import load_two_tower
from models.two_tower import query_vectors
from workflow.config import Config
from workflow.features import tables as workflows
from workflow.features.encoded import FeatureStore
from workflow.features.fitted import restore_workflow
from workflow.features.history import session_pointer
from workflow.features.local_time import request_offset_s
from workflow.features.samples import time_context, video_age_days
from workflow.features.spec import FeatureSpec
from workflow.run import Run, read_json
from workflow.schema import Contract

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Recommendations:
    """Lists of n requests, best first.

    Attributes:
        video_ids: per request, raw ids [at most top_k].
        scores: per request, float32 [at most top_k].
    """

    video_ids: list[Array]
    scores: list[Array]


class OfflineRecommender:
    """Scores requests with the trained models of a run."""

    def __init__(self, run: Run, config: Config, contract: Contract) -> None:
        self.config, self.contract = config, contract
        self.store = FeatureStore(run)
        self.spec = FeatureSpec.load(self.store.root / "spec.json")
        self.tables = FeatureTables(self.store, self.spec)
        self.two_tower = load_two_tower(run, config, self.tables)
        self.ranker = load_ranker(run, config, self.tables)
        self.predictor = Predictor(self.ranker, self.tables, self.store)
        self.histories = self.store.histories()
        self.events = restore_workflow(
            contract, config.features, "events", self.store.root / "workflows" / "events"
        )
        report = read_json(run.index / "report.json")
        self.num_candidates = report["num_candidates"]
        path = str(run.index / "index.faiss")
        self.index = read_index(path, report["kind"], report["effort"])

    def recommend(
        self, user_ids: Array, times: Array, context: dict[str, Array], top_k: int
    ) -> Recommendations:
        """Answer requests.

        Args:
            user_ids: raw ids [n]; unknown ones are answered from the unknown user's row.
            times: int64 [n], unix seconds.
            context: raw values [n] per context column; None where not known.
        """
        samples = self._requests(user_ids, times, context)
        columns = sample_columns(self.spec, ranker=False)
        vectors = query_vectors(self.two_tower, self.tables, {n: samples[n] for n in columns})
        ids, scores = [], []
        for row in range(len(user_ids)):
            rows, retrieval = self._candidates(vectors[row : row + 1], samples, row)
            score = self._score(samples, row, rows, retrieval, times[row])
            order = np.argsort(-score, kind="stable")[:top_k]
            ids.append(self.store.video("video_id")[rows[order] - 1])
            scores.append(score[order])
        return Recommendations(ids, scores)

    def _requests(
        self, user_ids: Array, times: Array, context: dict[str, Array]
    ) -> dict[str, Array]:
        """Sample columns of each request, encoded by the NVTabular workflow."""
        known = np.asarray(self.store.user("user_id"))
        at = np.minimum(np.searchsorted(known, user_ids), len(known) - 1)
        user_row = np.where(known[at] == user_ids, at + 1, 0)
        start, stop = self.histories.start[user_row], self.histories.start[user_row + 1]
        end = np.array(
            [
                a + np.searchsorted(self.histories.time[a:b], t)
                for a, b, t in zip(start, stop, times, strict=True)
            ],
            np.int64,
        )
        gap_s = self.spec.session_gap_s
        samples: dict[str, Array] = {
            "user_row": user_row.astype(np.int32),
            "video_row": np.zeros(len(times), np.int32),
            "history_end": end,
            "session_start": session_pointer(end, start, times, self.histories, gap_s),
        }
        local: Int64 = np.add(times, self._utc_offset_s(user_row, context))
        clock = time_context(local)
        frame = self._transform({**context, **clock}, np.zeros(len(times), np.float32))
        encoded = {f.name: frame[f.name].to_numpy(np.int32) for f in self.spec.of_group("context")}
        state = {
            f.name: self.store.user(f.name)[user_row] for f in self.spec.of_group("user_state")
        }
        return samples | encoded | state

    def _utc_offset_s(self, user_row: Array, context: dict[str, Array]) -> Array:
        """Seconds that the clocks of requests are ahead of UTC."""
        if not self.contract.utc_offsets:
            return np.zeros(len(user_row), np.int32)
        column = self.contract.tagged("events", "country")
        asked = None if column is None else context.get(column.name)
        return request_offset_s(self.contract, asked, self.store.user("utc_offset_s")[user_row])

    def _transform(self, columns: dict[str, Array], age_days: Array) -> pd.DataFrame:
        """The events workflow on raw columns; numbers it also expects are filled with 0."""
        frame = pd.DataFrame(columns)
        for names in workflows.state_columns(self.contract).values():
            for name in names:
                frame[name] = age_days if name == "video_age_days" else np.float32(0)
        # Categorify fails on a column that is null throughout: one more row has no nulls.
        context = self.contract.features("context")
        filled = {c.name: "" if c.dtype == "string" else 0 for c in context}
        frame = pd.concat([frame, frame[-1:].assign(**filled)], ignore_index=True)
        return workflows.transform(self.events, frame)[0].iloc[:-1].reset_index(drop=True)

    def _candidates(
        self, vector: Array, samples: dict[str, Array], row: int
    ) -> tuple[Array, Array]:
        """(rows, scores) of the best unwatched candidates; [at most num_candidates]."""
        first = self.histories.start[samples["user_row"][row]]
        watched = self.histories.video_row[first : samples["history_end"][row]]
        if not self.config.serving.exclude_watched:
            watched = watched[:0]
        wanted = min(self.num_candidates + len(watched), self.index.ntotal)
        scores, found = self.index.search(vector, wanted)
        keep = (found[0] >= 0) & ~np.isin(found[0] + 1, watched)
        return found[0][keep][: self.num_candidates] + 1, scores[0][keep][: self.num_candidates]

    def _score(
        self, samples: dict[str, Array], row: int, rows: Array, retrieval: Array, time: int
    ) -> Array:
        request = {name: values[row : row + 1] for name, values in samples.items()}
        state = self.spec.of_group("video_state")
        numbers = {feature.name: self.store.video(feature.name)[rows] for feature in state}
        if self.contract.has_publish_time:
            published = self.store.video("publish_time")[rows]
            age = video_age_days(published, np.full(len(rows), time))
            empty = {c.name: np.full(len(rows), None) for c in self.contract.features("context")}
            hours = time_context(np.full(len(rows), time))
            encoded = self._transform({**empty, **hours}, age)["video_age_days"]
            numbers["video_age_days"] = encoded.to_numpy(np.float32)
        numbers = {name: values[None] for name, values in numbers.items()}
        out = self.predictor.candidates(request, rows[None].astype(np.int32), numbers)
        score, _ = combined(self.ranker, Outputs(**out), retrieval[None])
        result: Array = score[0]
        return result
