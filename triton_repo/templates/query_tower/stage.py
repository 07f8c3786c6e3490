"""Query tower: raw user id and request context in, query vector and packed features out.

Files: stage.json, tower.onnx, user_id.npy (sorted raw ids), user_index.npy and user_value.npy
(encoded user features by row; row 0 is the unknown user), user_utc_offset_s.npy (where hours are
local: seconds ahead of UTC, by user row), and those of past.py. Events since the
export are read from the store that the environment variable MARQUEE_STATE names, if any.
"""

import importlib.util
import json
import os
import time

import numpy as np

OK, UNKNOWN_USER, EMPTY_HISTORY, STATE_UNAVAILABLE = 0, 1, 2, 4
STATE_TIMEOUT_S = 0.05
ALWAYS = np.iinfo(np.int64).max


def open_session(path):
    """An ONNX Runtime session on one thread that does not spin while idle."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def load(path):
    """The module in a file next to this one."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def positions(parts, begin):
    """All columns of these parts, each of which begins at `part[begin]`; int64 [columns]."""
    ranges = [range(part[begin], part[begin] + part["length"]) for part in parts]
    return np.array([column for one in ranges for column in one], np.int64)


class Stage:
    """Encodes requests and runs the query tower.

    Args:
        folder: where the files are.
        state: where the events since the export are, "" for nowhere; None: as the environment says.
    """

    runs_graph = True  # False where something else runs it on what `features` gives

    def __init__(self, folder, state=None):
        self.settings = json.loads((folder / "stage.json").read_text())
        self.session = open_session(folder / "tower.onnx") if self.runs_graph else None
        past, store = load(folder / "past.py"), load(folder / "store.py")
        for name in ("user_id", "user_index", "user_value"):
            setattr(self, name, past.open_array(folder / f"{name}.npy"))
        self.utc_offset_s, self.user_utc_offset_s = self.settings["utc_offset_s"], None
        if self.utc_offset_s:
            self.user_utc_offset_s = past.open_array(folder / "user_utc_offset_s.npy")
        self.layout = self.settings["query_index"]  # [{"name", "from", "at", "length"}]
        self.width = sum(part["length"] for part in self.layout)
        users = [part for part in self.layout if part["from"] == "user"]
        self.user_at, self.user_column = positions(users, "at"), positions(users, "column")
        [self.session_part] = (
            slice(part["at"], part["at"] + part["length"])
            for part in self.layout
            if part["name"] == "session_history"
        )
        self.keep = self.settings["longest_history"]
        graded = any(part["name"] == "long_history_label" for part in self.layout)
        self.histories = past.Histories(folder, self.keep, graded)
        self.rows_of = past.rows_of
        self.vocabulary = {
            name: dict(zip(table["values"], table["index"], strict=True))
            for name, table in self.settings["vocabulary"].items()
        }
        where = os.environ.get("MARQUEE_STATE", "") if state is None else state
        self.profiles = None
        if where:
            guarded = store.Guarded(store.open_store(where, self.keep, STATE_TIMEOUT_S))
            self.profiles = store.Profiles(guarded, self.histories.parse)

    def check(self, inputs, sizes):
        """Reasons to refuse requests, by position; every id and context has a defined answer."""
        return {}

    def run(self, inputs):
        encoded = self.features(inputs)
        features = {name: encoded[name] for name in ("query_index", "query_value")}
        [vector] = self.session.run(None, features)
        return {"query_vector": vector, **encoded}

    def features(self, inputs):
        """Everything but the vector."""
        users = inputs["user_id"][:, 0]
        row = self.rows_of(self.user_id, users)
        moment = self.moments(inputs.get("time"), len(users))
        until = self.histories.until(row, moment)
        pasts, is_current = self.pasts(users, row, until, inputs.get("time"))
        clock = self.clock(inputs, row, moment)
        index = np.zeros((len(users), self.width), np.int32)
        index[:, self.user_at] = self.user_index[row][:, self.user_column]
        for part in self.layout:
            columns = slice(part["at"], part["at"] + part["length"])
            if part["from"] == "history":
                self.recent(index[:, columns], part, pasts, moment)
            elif part["from"] != "user":
                index[:, columns] = self.context(part["name"], inputs, clock)
        return {
            "query_index": index,
            "query_value": np.asarray(self.user_value[row], np.float32),
            "user_row": row[:, None],
            "watched_until": until[:, None],
            "online_row": self.online(pasts, "online_row", np.int32, 0),
            "online_watch_s": self.online(pasts, "online_watch_s", np.float32, np.nan),
            "request_time": moment[:, None],
            "query_status": self.status(row, pasts, is_current)[:, None],
        }

    def with_session_size(self, answer):
        """For pages: also how many watches the open session has, which the tower has as a list."""
        size = np.count_nonzero(answer["query_index"][:, self.session_part], axis=1)
        return answer | {"session_size": size.astype(np.int32)[:, None]}

    def finish(self, answer):
        return answer

    def moments(self, given, count):
        """Unix seconds of each request; absent or negative means now."""
        now = int(time.time())
        if given is None:
            return np.full(count, now, np.int64)
        return np.array([now if at < 0 else at for at in given[:, 0].tolist()], np.int64)

    def pasts(self, users, row, until, given):
        """(the Past of each user, whether the store has told its part).

        A request for now comes after all events that were stored before it, those of this very
        second included; one for a given time sees the earlier seconds only.
        """
        online, is_current = [None] * len(users), [True] * len(users)
        if self.profiles is not None:
            keys = [user if isinstance(user, bytes) else b"%d" % user for user in users.tolist()]
            online, is_current = self.profiles.read(keys)
        online_until = [ALWAYS] * len(users)
        if given is not None:
            online_until = [ALWAYS if at < 0 else at for at in given[:, 0].tolist()]
        pasts = map(self.histories.before, row, until, online, online_until)
        return list(pasts), is_current

    def online(self, pasts, name, dtype, empty):
        """Rows of what was watched since the export, or the seconds; [n, keep], oldest first."""
        result = np.full((len(pasts), self.keep), empty, dtype)
        for i, past in enumerate(pasts):
            values = getattr(past, name)
            result[i, : len(values)] = values
        return result

    def status(self, row, pasts, is_current):
        """A user with watches, baked or online, is ok whether or not the bundle knows the id."""
        status = np.full(len(row), OK, np.int32)
        for i, past in enumerate(pasts):
            if not is_current[i]:
                status[i] = STATE_UNAVAILABLE
            elif len(past.time) == 0:
                status[i] = UNKNOWN_USER if row[i] == 0 else EMPTY_HISTORY
        return status

    def clock(self, inputs, row, moment):
        """Local time of each request as if it were UTC: where it comes from, or the user lives."""
        if self.user_utc_offset_s is None:
            return moment
        offset_s = self.user_utc_offset_s[row].astype(np.int64)
        given = inputs.get(self.settings["country"])
        if given is not None:
            for i, country in enumerate(given[:, 0].tolist()):
                name = country.decode("utf-8", "replace") if isinstance(country, bytes) else country
                offset_s[i] = self.utc_offset_s.get(str(name), offset_s[i])
        return moment + offset_s

    def context(self, name, inputs, clock):
        """Vocabulary indices [n, 1] of a feature that comes with the request."""
        if name == "hour":
            return self.look_up(name, [at % 86400 // 3600 for at in clock.tolist()])
        if name == "weekday":
            return self.look_up(name, [(at // 86400 + 3) % 7 for at in clock.tolist()])
        given = inputs.get(name)
        return self.look_up(name, None if given is None else given[:, 0].tolist(), len(clock))

    def look_up(self, name, values, count=0):
        """Vocabulary indices [n, 1]: 1 for null (absent or empty), 2 for unknown values."""
        if values is None:
            return np.full((count, 1), 1, np.int32)
        table = self.vocabulary[name]
        return np.array([self.one(table, value) for value in values], np.int32)[:, None]

    def one(self, table, value):
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
            if not value:
                return 1
        return table.get(value, 2)

    def recent(self, result, part, pasts, moment):
        """Fill `result` [n, length] with the last watches, newest last, 0-padded in front."""
        length = part["length"]
        for i, past in enumerate(pasts):
            values = past.label if part["name"] == "long_history_label" else past.video
            values = values[-length:]
            if part["name"] == "session_history":
                values = values[self.session_first(past.time[-length:], moment[i]) :]
            if len(values):
                result[i, -len(values) :] = values

    def session_first(self, times, moment):
        """Where the still open session begins within `times`; their end when none is open."""
        first, later, gap = len(times), moment, self.settings["session_gap_s"]
        for earlier in reversed(times.tolist()):
            if later - earlier > gap:
                break
            first, later = first - 1, earlier
        return first
