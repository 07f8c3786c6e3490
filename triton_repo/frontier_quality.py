"""How good the lists of an exported repository are: NDCG@10 on the test part, in process."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from models.evaluation.evaluate import held_out
from models.evaluation.learned import Trained
from models.evaluation.retrieval import Bench
from models.metrics import Float64, Int64
from models.watches import Catalogue, Watches
from triton_repo.local import LocalPipeline
from workflow.config import Config
from workflow.errors import DataError
from workflow.features.encoded import FeatureStore
from workflow.features.fitted import CompiledTable
from workflow.features.spec import NULL
from workflow.features.state import VideoState
from workflow.run import Run
from workflow.schema import Column, Contract

TOP_K = 10
_BATCH = 64
_TIMED = 200  # requests, one at a time


class Judge:
    """Asks the test part's first requests of exported repositories and judges the lists.

    The repository's own code answers raw requests. Only its tables of numbers are turned back to
    what was known then: an export knows counts up to the end of the log, the test part included.

    Args:
        run: the run whose test part is used; repositories must be made from the same features.
    Raises:
        DataError: the test part has nothing to judge by.
    """

    def __init__(self, run: Run, config: Config, contract: Contract) -> None:
        trained = Trained(run, config)
        self.store, self.spec = trained.store, trained.spec
        self.state = [f.name for f in self.spec.of_group("user_state")]
        context = contract.features("context")
        columns = ["timestamp", *self.state, *(column.name for column in context)]
        queries = held_out(trained, columns)
        if not queries.has_history.any():
            raise DataError(
                "the test part has nothing to judge lists by",
                expected="users with a history who watch something new",
                next_step="use more data, or raise split.test_fraction",
            )
        watches = Watches.read(self.store, self.spec, "train", "valid")
        self.bench = Bench(queries, Catalogue(watches.counts))
        self.requests = _requests(self.store, queries.samples, queries.user_row, context)
        self.rows = _RowOfVideo(np.asarray(self.store.video("video_id")))

    def judge(self, run: Run) -> tuple[Float64, float]:
        """(NDCG@10 per user with a history, CPU milliseconds of the stages per request)."""
        pipeline = LocalPipeline(run)
        self._turn_back(pipeline)
        lists = np.zeros((len(self.bench.queries), TOP_K), np.int64)
        for at, tensors in self._batches(_BATCH):
            ids = pipeline.infer(tensors)["video_id"][:, :TOP_K]
            lists[at, : ids.shape[1]] = self.rows(ids)
        single = [tensors for _, tensors in self._batches(1, _TIMED)]
        started = time.process_time()
        for tensors in single:
            pipeline.infer(tensors)
        cpu_ms = 1000 * (time.process_time() - started) / max(len(single), 1)
        return self.bench.judge_lists(lists).values["ndcg@10"], cpu_ms

    def _batches(self, size: int, limit: int | None = None) -> Iterator[tuple[Int64, Any]]:
        """(positions of the queries, input tensors) of at most `size` requests each."""
        for positions in self._alike():
            for start in range(0, len(positions[:limit]), size):
                at = positions[start : start + size]
                given = {
                    name: values[at][:, None]
                    for name, values in self.requests.items()
                    if values[at[0]] is not None
                }
                yield at, {name: _typed(values) for name, values in given.items()}

    def _alike(self) -> list[Int64]:
        """Positions of queries that leave out the same context columns."""
        absent = [[one is None for one in values] for values in self.requests.values()]
        _, group = np.unique(np.array(absent), axis=1, return_inverse=True)
        return [np.flatnonzero(group.ravel() == one) for one in range(int(group.max()) + 1)]

    def _turn_back(self, pipeline: LocalPipeline) -> None:
        """Numbers of users as of their request, numbers of videos as of the test part's start."""
        query_tower, ranker = pipeline.fused.query_tower, pipeline.fused.ranker
        queries = self.bench.queries
        users = np.array(query_tower.user_value)
        for name in self.state:
            column = query_tower.settings["user_values"].index(name)
            users[queries.user_row, column] = queries.samples[name]
        query_tower.user_value = users
        if ranker.ranks:
            moment = self.spec.test_from or int(np.median(queries.samples["timestamp"]))
            rows = np.arange(self.spec.num_videos + 1)
            known = VideoState(self.store, self.spec).at(rows, np.array(moment))
            names = ranker.settings["video_values"]
            videos = np.array(ranker.video_value)
            for column, name in enumerate(names, start=videos.shape[1] - len(names)):
                videos[:, column] = known.get(name, videos[:, column])
            ranker.video_value = videos


class _RowOfVideo:
    """Video rows of raw ids; 0 for what is no video."""

    def __init__(self, ids: npt.NDArray[Any]) -> None:
        self.order = np.argsort(ids, kind="stable")
        self.ids = ids[self.order]

    def __call__(self, ids: npt.NDArray[Any]) -> Int64:
        wanted = ids.astype(self.ids.dtype)
        at = np.minimum(np.searchsorted(self.ids, wanted), len(self.ids) - 1)
        rows: Int64 = np.where(self.ids[at] == wanted, self.order[at] + 1, 0)
        return rows


def _requests(
    store: FeatureStore,
    samples: dict[str, npt.NDArray[Any]],
    user_row: Int64,
    context: Sequence[Column],
) -> dict[str, npt.NDArray[Any]]:
    """The queries as raw values by input name; object [n], None where the log has null."""
    users = np.asarray(store.user("user_id"))[user_row - 1]
    requests: dict[str, npt.NDArray[Any]] = {
        "user_id": users.astype(object),
        "time": samples["timestamp"].astype(np.int64).astype(object),
    }
    vocabulary = CompiledTable.load(store.root / "workflows" / "events")
    for column in context:
        known = vocabulary[column.name]
        assert known.values is not None and known.index is not None
        unseen: Any = b"\xff" if column.dtype == "string" else np.iinfo(np.int64).min
        values = [one.encode() if isinstance(one, str) else int(one) for one in known.values]
        raw = dict(zip(known.index.tolist(), values, strict=True)) | {NULL: None}
        encoded = samples[column.name].tolist()
        requests[column.name] = np.array([raw.get(one, unseen) for one in encoded], object)
    return requests


def _typed(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Objects as the stages take them: numbers as int64, text as bytes objects."""
    return values if isinstance(values[0, 0], bytes) else values.astype(np.int64)
