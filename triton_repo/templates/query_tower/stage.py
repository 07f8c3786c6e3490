"""Query tower: raw user id and request context in, query vector and packed features out.

Files: stage.json, tower.onnx, user_id.npy (sorted raw ids), user_index.npy and user_value.npy
(encoded user features by row; row 0 is the unknown user), watched_index.npy and watched_time.npy
(all users' watches), watched_start.npy (where each user's begin), watched_label.npy (encoded
labels of the watches, where they differ).
"""

import json
import time

import numpy as np
import onnxruntime

OK, UNKNOWN_USER, EMPTY_HISTORY = 0, 1, 2


def open_session(path):
    """An ONNX Runtime session on one thread that does not spin while idle."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def open_array(path):
    """A memory-mapped array; as a plain ndarray it is cheaper to index than a memmap."""
    return np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)


class Stage:
    """Encodes requests and runs the query tower."""

    def __init__(self, folder):
        self.settings = json.loads((folder / "stage.json").read_text())
        self.session = open_session(folder / "tower.onnx")
        for name in (
            "user_id", "user_index", "user_value", "watched_index", "watched_time", "watched_start",
        ):  # fmt: skip
            setattr(self, name, open_array(folder / f"{name}.npy"))
        self.layout = self.settings["query_index"]  # [{"name", "from", "at", "length"}]
        if any(part["name"] == "long_history_label" for part in self.layout):
            self.watched_label = open_array(folder / "watched_label.npy")
        self.width = sum(part["length"] for part in self.layout)
        self.vocabulary = {
            name: dict(zip(table["values"], table["index"], strict=True))
            for name, table in self.settings["vocabulary"].items()
        }

    def check(self, inputs, sizes):
        """Reasons to refuse requests, by position; every id and context has a defined answer."""
        return {}

    def run(self, inputs):
        users = inputs["user_id"][:, 0]
        row = self.user_rows(users)
        moment = self.moments(inputs.get("time"), len(users))
        until = self.watched_until(row, moment)
        index = np.zeros((len(users), self.width), np.int32)
        for part in self.layout:
            columns = slice(part["at"], part["at"] + part["length"])
            index[:, columns] = self.encode(part, inputs, row, moment, until)
        value = np.asarray(self.user_value[row], np.float32)
        [vector] = self.session.run(None, {"query_index": index, "query_value": value})
        status = np.where(until > self.watched_start[row], OK, EMPTY_HISTORY)
        return {
            "query_vector": vector,
            "query_index": index,
            "query_value": value,
            "user_row": row[:, None],
            "watched_until": until[:, None],
            "request_time": moment[:, None],
            "query_status": np.where(row == 0, UNKNOWN_USER, status)[:, None],
        }

    def finish(self, answer):
        return answer

    def user_rows(self, users):
        """Row of each raw id, 0 when it is not known."""
        fits = True
        if self.user_id.dtype.kind == "S":
            # In the table's own dtype; otherwise numpy would copy the whole table to compare.
            width = self.user_id.dtype.itemsize
            fits = np.array([len(one) <= width and one[-1:] != b"\0" for one in users])
            users = np.where(fits, users, b"").astype(self.user_id.dtype)
        at = np.minimum(np.searchsorted(self.user_id, users), len(self.user_id) - 1)
        return np.where(fits & (self.user_id[at] == users), at + 1, 0).astype(np.int32)

    def moments(self, given, count):
        """Unix seconds of each request; absent or negative means now."""
        now = int(time.time())
        if given is None:
            return np.full(count, now, np.int64)
        return np.where(given[:, 0] < 0, now, given[:, 0]).astype(np.int64)

    def watched_until(self, row, moment):
        """End of what each user had watched before the request."""
        until = np.empty(len(row), np.int64)
        for i, user in enumerate(row):
            start, end = self.watched_start[user], self.watched_start[user + 1]
            until[i] = start + np.searchsorted(self.watched_time[start:end], moment[i])
        return until

    def encode(self, part, inputs, row, moment, until):
        name = part["name"]
        if part["from"] == "user":
            return self.user_index[row, part["column"] : part["column"] + part["length"]]
        if part["from"] == "history":
            values = self.watched_label if name == "long_history_label" else self.watched_index
            in_session = name == "session_history"
            return self.recent(values, row, moment, until, part["length"], in_session)
        if name == "hour":
            return self.look_up(name, moment % 86400 // 3600)
        if name == "weekday":
            return self.look_up(name, (moment // 86400 + 3) % 7)
        given = inputs.get(name)
        return self.look_up(name, None if given is None else given[:, 0], len(row))

    def look_up(self, name, values, count=0):
        """Vocabulary indices [n, 1]: 1 for null (absent or empty), 2 for unknown values."""
        if values is None:
            return np.full((count, 1), 1, np.int32)
        table = self.vocabulary[name]
        index = [self.one(table, value) for value in values.tolist()]
        return np.array(index, np.int32)[:, None]

    def one(self, table, value):
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
            if not value:
                return 1
        return table.get(value, 2)

    def recent(self, values, row, moment, until, length, in_session):
        """`values` of the last watches [n, length], newest last, 0-padded in front."""
        result = np.zeros((len(row), length), np.int32)
        for i, user in enumerate(row):
            end = until[i]
            first = max(self.watched_start[user], end - length)
            if in_session:
                first = self.session_first(first, end, moment[i])
            if end > first:
                result[i, length - (end - first) :] = values[first:end]
        return result

    def session_first(self, first, end, moment):
        """Where the still open session begins within [first, end); `end` when none is open."""
        if end == first:
            return end
        gap = self.settings["session_gap_s"]
        times = np.append(self.watched_time[first:end], moment)
        breaks = np.flatnonzero(np.diff(times) > gap)
        return first + breaks[-1] + 1 if len(breaks) else first
