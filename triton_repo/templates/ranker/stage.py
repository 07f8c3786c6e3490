"""Ranker: scored candidates and packed request features in, raw video ids, sorted scores out.

Files: stage.json, ranker.onnx, video_id.npy (raw ids by row), video_vector.npy and
video_value.npy (what the ranker needs of each video, by row), publish_time.npy (0 = not known).
For `explain`: tasks.onnx, duration_s.npy (by row, NaN = not known), watch_edges.npy and
watch_tables.npy (seconds watched by duration and quantile, models/watch_groups.py).
"""

import json

import numpy as np

FEWER_THAN_TOP_K = 3


def open_session(path):
    """An ONNX Runtime session on one thread that does not spin while idle."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def open_array(path):
    """A memory-mapped array; as a plain ndarray it is cheaper to index than a memmap."""
    return np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)


class Stage:
    """Scores candidates with the DLRM and the retrieval score, and sorts them."""

    runs_graph = True  # False where something else runs it on what `videos` gives

    def __init__(self, folder):
        self.settings = json.loads((folder / "stage.json").read_text())
        self.ranks = self.settings["ranks"]  # else candidates stay in the order of retrieval
        is_needed = self.ranks and self.runs_graph
        self.session = open_session(folder / "ranker.onnx") if is_needed else None
        self.folder, self.tasks = folder, None
        for name in ("video_id", "video_vector", "video_value"):
            setattr(self, name, open_array(folder / f"{name}.npy"))
        self.age = self.settings["video_age_days"]  # None, or how to encode a video's age
        if self.age:
            self.publish_time = open_array(folder / "publish_time.npy")
        self.no_id = b"" if self.video_id.dtype.kind == "S" else -1

    def check(self, inputs, sizes):
        """Reasons to refuse requests, by position: a top_k below 1, rows that do not exist."""
        rows = inputs["candidate_row"]
        outside = (rows < 0) | (rows >= len(self.video_id))
        refused, start = {}, 0
        for position, size in enumerate(sizes):
            if outside[start : start + size].any():
                refused[position] = "candidate_row is outside the bundle's catalogue"
            start += size
        rows[outside] = 0
        return refused | self.check_top_k(inputs["top_k"], sizes)

    def check_top_k(self, top_k, sizes):
        """The first part of `check`, for candidates that come from the stage before."""
        if top_k is None or top_k.min() >= 1:
            return {}
        refused, start = {}, 0
        for position, size in enumerate(sizes):
            least = top_k[start : start + size].min()
            if least < 1:
                refused[position] = f"top_k must be at least 1, received {least}"
            start += size
        return refused

    def run(self, inputs):
        return self.sort(inputs, self.score(inputs) if self.ranks else inputs["candidate_score"])

    def sort(self, inputs, scores):
        """Candidates by their scores, high to low; what `finish` makes the answer from."""
        rows = inputs["candidate_row"]
        scores = np.where(rows == 0, np.float32(-np.inf), scores)
        order = np.argsort(-scores, axis=1, kind="stable")
        order += np.arange(len(rows))[:, None] * rows.shape[1]  # positions in the flat arrays
        wanted = inputs["top_k"]
        if wanted is None:
            wanted = np.full((len(rows), 1), self.settings["default_top_k"], np.int32)
        return {
            "rows": rows.take(order),
            "scores": scores.take(order),
            "wanted": wanted,
            "status": inputs["query_status"],
        }

    def score(self, inputs):
        rows, candidate_score = inputs["candidate_row"], inputs["candidate_score"]
        return self.ask(self.session, inputs, rows, candidate_score)[0]

    def explain(self, inputs, rows):
        """What each head says of videos, {name: float32 [n, k]}; nothing without a ranker.

        p_positive (where there are labels) and p_watched are calibrated; watch_s is in seconds, if
        the video is watched. Made for who asks: the graph is opened at the first call.
        """
        if not self.ranks or rows.size == 0:  # the graph takes at least one video
            return {}
        if self.tasks is None:
            self.tasks = open_session(self.folder / "tasks.onnx")
        names = [one.name for one in self.tasks.get_outputs()]
        unused = np.zeros(rows.shape, np.float32)
        said = dict(zip(names, self.ask(self.tasks, inputs, rows, unused), strict=True))
        if "watch_quantile" in said:
            said["watch_s"] = self.watch_s(said.pop("watch_quantile"), rows)
        return said

    def watch_s(self, quantile, rows):
        """Seconds at a quantile of the watches of videos as long; models/watch_time.py."""
        edges, tables, duration = (
            open_array(self.folder / f"{name}.npy")
            for name in ("watch_edges", "watch_tables", "duration_s")
        )
        duration_s, last = duration.take(rows), len(tables) - 1
        group = np.minimum(np.searchsorted(edges, duration_s, side="right"), last)
        group = np.where(duration_s > 0, group, last)  # NaN is not > 0
        parts = tables.take(group, axis=0)
        bins = parts.shape[-1] - 1
        passed = quantile[..., None] * bins - np.arange(bins, dtype=np.float32)
        seconds = parts[..., 0] + (np.diff(parts, axis=-1) * np.clip(passed, 0, 1)).sum(axis=-1)
        return seconds * np.where(group < last, duration_s, np.float32(1))

    def ask(self, session, inputs, rows, candidate_score):
        """All outputs of a graph for videos int [n, k] of n requests."""
        asked = {name: inputs[name] for name in ("query_index", "query_value")}
        videos = self.videos(rows, inputs["request_time"])
        return session.run(None, {**asked, **videos, "candidate_score": candidate_score})

    def videos(self, rows, moment):
        """What the graph needs of the candidates."""
        value = self.video_value.take(rows, axis=0)
        if self.age:
            age = self.video_age(rows, moment)
            value = np.concatenate([value, age[..., None]], axis=2)
        return {"video_vector": self.video_vector.take(rows, axis=0), "video_value": value}

    def video_age(self, rows, moment):
        """Encoded age [n, k]: days as float32, then fill, log(x + 1), (x - mean) / std."""
        published = self.publish_time[rows]
        days = (np.maximum(moment - published, 0) / np.float64(86400)).astype(np.float32)
        days[published == 0] = self.age["fill"]
        logged = np.log(days + np.float32(1)) - np.float32(self.age["mean"])
        return logged / np.float32(self.age["std"]) if self.age["std"] > 0 else logged

    def finish(self, answer):
        """The first `top_k` videos of each row of one request.

        A request for several users gets the longest list's width; what is missing has no id
        (-1 or empty) and a score of -inf.
        """
        rows, status, wanted = answer["rows"], answer["status"][:, 0], answer["wanted"][:, 0]
        counts = np.minimum(np.count_nonzero(rows, axis=1), wanted)
        width = int(counts.max(initial=0))
        ids, scores = self.video_id.take(rows[:, :width]), answer["scores"][:, :width]
        if counts.min(initial=width) < width:
            missing = np.arange(width) >= counts[:, None]
            ids[missing], scores[missing] = self.no_id, -np.inf
        if (counts < wanted).any():
            status = np.where((status == 0) & (counts < wanted), FEWER_THAN_TOP_K, status)
        if ids.dtype.kind == "S":
            ids = ids.astype(object)
        return {"video_id": ids, "score": scores, "status": status[:, None]}
