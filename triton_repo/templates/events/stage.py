"""Events: a watch of a user in, an acknowledgement out once the watch is kept.

Without a video_id nothing is stored; the answer says what is known of the user. Files:
stage.json. The store is the one that the environment variable MARQUEE_STATE names.
"""

import importlib.util
import json
import math
import os
import time

import numpy as np

TIMEOUT_S = 1.0
LATEST_S = 86_400  # how far ahead another machine's clock may be
LONGEST_ID = 1_024  # bytes


def load(path):
    """The module in a file next to this one."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Stage:
    """Checks events and stores them.

    Args:
        folder: where the files are.
        state: where to store, "" for nowhere; None: as the environment says.
    """

    def __init__(self, folder, state=None):
        settings = json.loads((folder / "stage.json").read_text())
        self.only_positive = settings["only_positive"]
        module = load(folder / "store.py")
        self.unavailable = module.UnavailableError
        where = os.environ.get("MARQUEE_STATE", "") if state is None else state
        self.store = None
        if where:
            store = module.open_store(where, settings["longest_history"], TIMEOUT_S)
            self.store = module.Guarded(store)

    def check(self, inputs, sizes):
        """Reasons to refuse requests, by position; nothing of a refused request is stored."""
        refused, start = {}, 0
        inputs["is_refused"] = np.zeros(sum(sizes), bool)
        for position, size in enumerate(sizes):
            problems = (self.problem(inputs, row) for row in range(start, start + size))
            problem = next((one for one in problems if one), None)
            if problem:
                refused[position] = problem
                inputs["is_refused"][start : start + size] = True
            start += size
        return refused

    def problem(self, inputs, row):
        """What is wrong with an event, or None."""
        if inputs["video_id"] is None:
            return None
        if self.store is None:
            return "this server keeps no online state: start it with MARQUEE_STATE set"
        problem = None
        for name in ("user_id", "video_id"):
            problem = problem or id_problem(name, inputs[name][row, 0])
        moment, label, watch_s = (value(inputs, name, row) for name in ("time", "label", "watch_s"))
        latest = int(time.time()) + LATEST_S
        if moment is not None and moment > latest:
            problem = f"time is in unix seconds, at most a day ahead ({latest}), received {moment}"
        elif label is not None and label > 1:
            problem = f"label is 0 or 1 (negative: not known), received {label}"
        elif label == 0 and self.only_positive:
            problem = "an event with label 0 is no watch in this data"
        elif watch_s is not None and not 0 <= watch_s < math.inf:
            problem = f"watch_s is a number of seconds, at least 0, received {watch_s}"
        return problem

    def run(self, inputs):
        users = inputs["user_id"][:, 0].tolist()
        keys = [user if isinstance(user, bytes) else b"%d" % user for user in users]
        new = {}
        if inputs["video_id"] is not None:
            for row in np.flatnonzero(~inputs["is_refused"]):
                new.setdefault(keys[row], []).append(self.event(inputs, row))
        known = [json.loads(record) if record else [] for record in self.records(keys, new)]
        last = [events[-1][0] if events else 0 for events in known]
        return {
            "stored": np.full((len(users), 1), inputs["video_id"] is not None, np.int32),
            "num_events": np.array([[len(events)] for events in known], np.int32),
            "last_time": np.array(last, np.int64)[:, None],
        }

    def finish(self, answer):
        return answer

    def records(self, keys, new):
        """The users' records after `new` was stored.

        Raises:
            OSError: the store does not answer.
        """
        if self.store is None:
            return [None] * len(keys)
        try:
            records = self.store.add(new) if new else {}
            others = [key for key in dict.fromkeys(keys) if key not in records]
            if others:
                records |= dict(zip(others, self.store.read(others), strict=True))
        except self.unavailable as error:
            raise OSError(f"the online state is unavailable: {error}") from None
        return [records[key] for key in keys]

    def event(self, inputs, row):
        """[time, video, label, seconds watched] as the store keeps it."""
        video = inputs["video_id"][row, 0]
        video = video.decode() if isinstance(video, bytes) else int(video)
        moment, label, watch_s = (value(inputs, name, row) for name in ("time", "label", "watch_s"))
        return [int(time.time()) if moment is None else moment, video, label, watch_s]


def value(inputs, name, row):
    """An optional number; None where it is absent, or (in a batch) negative or NaN."""
    if inputs.get(name) is None:
        return None
    number = inputs[name][row, 0].item()
    unknown = math.isnan(number) if name == "watch_s" else number < 0
    return None if unknown else number


def id_problem(name, given):
    """What is wrong with a raw id, or None; every number is an id."""
    if not isinstance(given, bytes):
        return None
    if not 0 < len(given) <= LONGEST_ID:
        return f"{name} has 1 to {LONGEST_ID} bytes, received {len(given)}"
    try:
        given.decode()
    except UnicodeDecodeError:
        return f"{name} is not UTF-8"
    return None
