"""Page: ranked candidates in, titled rows of videos out.

`gather` comes between retrieval and ranker and adds candidates of other sources; `run` makes the
page of what the ranker scored. Files: stage.json, diversity_vector.npy (unit vectors by video
row), group.npy (genres and the like by video row, 1-based into the settings' "groups"),
video_id.npy (raw ids by row), title_text.npy and title_start.npy (UTF-8 titles), and those of
rules.py, history.py and sources.py.
"""

import importlib.util
import json
from typing import Any, NamedTuple

import numpy as np

OK, FEWER_ROWS, NO_VIDEOS, CURSOR_EXPIRED = 0, 3, 5, 6
MODULES = (
    "rules", "history", "sources", "diversity", "rows", "explore", "cursor", "record", "draft",
)  # fmt: skip


def load(path):
    """The module in a file next to this one."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Request(NamedTuple):
    """All that one page is made from, besides the bundle; a log record keeps it."""

    user: bytes  # raw id as text
    user_row: int
    watched_until: int
    online_row: Any  # int32 [any]
    online_watch_s: Any  # float32 [the same]
    session_size: int
    moment: int  # unix seconds
    query_status: int
    device: str | None
    country: str | None
    maturity: str | None
    cursor: str | None
    candidate_row: Any  # int32 [n]
    candidate_source: Any  # int32 [n]
    ranker_score: Any  # float32 [n]


class Page(NamedTuple):
    """The answer: rows, and their videos one row after the other."""

    status: int
    kinds: Any  # lists, one entry a row: bytes, bytes, int
    titles: Any
    sizes: Any
    rows: Any  # int32 [videos], rows of the bundle's catalogue
    scores: Any  # float32 [videos], of the ranker; NaN where it was not asked
    sources: Any  # int32 [videos]
    propensities: Any  # float32 [videos]
    seed: int
    cursor: bytes

    def plain(self):
        """As JSON has it; what is compared when a page is made again."""
        plain = self._asdict()
        for name in ("kinds", "titles"):
            plain[name] = [text.decode() for text in getattr(self, name)]
        for name in ("rows", "sources"):
            plain[name] = getattr(self, name).tolist()
        for name in ("scores", "propensities"):  # NaN is no JSON
            values = getattr(self, name).tolist()
            plain[name] = [None if value != value else value for value in values]  # noqa: PLR0124
        plain["cursor"] = self.cursor.decode()
        return plain


class Stage:
    """Makes pages."""

    def __init__(self, folder):
        self.version = int(folder.name) if folder.name.isdigit() else 0
        self.settings = settings = json.loads((folder / "stage.json").read_text())
        for name in MODULES:
            setattr(self, f"{name}_module", load(folder / f"{name}.py"))
        open_array = self.rules_module.open_array
        for name in ("diversity_vector", "group", "video_id", "title_text", "title_start"):
            setattr(self, name, open_array(folder / f"{name}.npy"))
        self.rules = self.rules_module.Rules(folder, settings)
        self.history = self.history_module.History(folder, open_array, settings["because_rows"])
        self.sources = self.sources_module.Sources(folder, open_array, self.rules, settings)
        self.diversify = self.diversity_module.METHODS[settings["diversity"]]
        self.group_titles = [name.encode() for name in settings["groups"]]
        self.context = settings["context"]  # device, country, maturity -> name of the input
        self.no_id = b"" if self.video_id.dtype.kind == "S" else -1

    # --- between retrieval and ranker ------------------------------------------------------------
    def gather(self, inputs):
        """Candidates of all sources: candidate_row, _score and _source, [n, total].

        And `looked`, by request, which spares `run` to look all up again. Takes query_vector,
        candidate_row and candidate_score of a retrieval that fetched more than its quota, and of
        the request what `run` takes.
        """
        parts, looked = [], []
        for i in range(len(inputs["user_row"])):
            request = self.request(inputs, i, ranked=False)
            looked.append((request, self.look(request)))
            viewer, past, shown, _ = looked[-1][1]
            with self.hiding(self._unseen(past), shown):
                found = request.candidate_row
                score = inputs["candidate_score"][i]
                parts.append(
                    self.sources.gather(inputs["query_vector"][i], found, score, viewer, past)
                )
        names = ("candidate_row", "candidate_score", "candidate_source")
        found = dict(zip(names, map(np.stack, zip(*parts, strict=True)), strict=True))
        return found | {"looked": looked}

    # --- after the ranker ------------------------------------------------------------------------
    def check(self, inputs, sizes):
        """Reasons to refuse requests, by position: rows that do not exist, a foreign cursor."""
        return self.refused(inputs, sizes, self.problem, self._blank)

    def refused(self, inputs, sizes, problem, blank):
        """The first problem of each request that has one, by position; `blank` makes it harmless.

        Args:
            problem: what is wrong with a row of the inputs, or None.
            blank: takes the inputs and a request's rows.
        """
        refused, start = {}, 0
        for position, size in enumerate(sizes):
            problems = (problem(inputs, row) for row in range(start, start + size))
            found = next((one for one in problems if one), None)
            if found:
                refused[position] = found
                blank(inputs, slice(start, start + size))
            start += size
        return refused

    def problem(self, inputs, i):
        """What is wrong with a request, or None."""
        starts, last = self.history.watched_start, len(self.video_id)
        user, until = int(inputs["user_row"][i, 0]), int(inputs["watched_until"][i, 0])
        if not (0 <= user < len(starts) - 1 and starts[user] <= until <= starts[user + 1]):
            return "user_row or watched_until is outside the bundle's tables"
        for name in ("online_row", "candidate_row"):
            rows = inputs[name][i]
            if ((rows < 0) | (rows >= last)).any():
                return f"{name} is outside the bundle's catalogue"
        return self.cursor_problem(inputs, i)

    def check_cursors(self, inputs, sizes):
        """Of `check` the part about cursors, before there are candidates."""
        if inputs.get("cursor") is None:
            return {}
        return self.refused(inputs, sizes, self.cursor_problem, self._blank_cursor)

    def _blank_cursor(self, inputs, rows):
        inputs["cursor"][rows] = b""

    def cursor_problem(self, inputs, i):
        """What is wrong with a request's cursor, or None."""
        cursor = text_of(inputs, "cursor", i)
        try:
            if cursor is not None:
                self.cursor_module.decode(cursor)
        except ValueError as error:
            return str(error)
        return None

    def shown(self, inputs):
        """Rows that earlier answers showed; int32 [n, most of one request], 0-padded."""
        rows = [self.seen(text_of(inputs, "cursor", i))[0] for i in range(len(inputs["user_id"]))]
        return padded(rows, np.int32, 0)

    def without_shown(self, inputs):
        """For retrieval: what earlier answers showed is left out as what was watched is."""
        shown = self.shown(inputs)
        if shown.shape[1] == 0:
            return inputs
        return inputs | {"online_row": np.concatenate([inputs["online_row"], shown], axis=1)}

    def _blank(self, inputs, mine):
        """Nothing that could go wrong instead of a refused request."""
        for name in ("user_row", "online_row", "candidate_row"):
            inputs[name][mine] = 0
        inputs["watched_until"][mine] = self.history.watched_start[0]
        if inputs.get("cursor") is not None:
            inputs["cursor"][mine] = b""

    def run(self, inputs):
        wanted = inputs.get("want_record")
        count = len(inputs["user_row"])
        pages, records = np.empty((count, 1), object), np.full((count, 1), b"", object)
        for i in range(count):
            request, look = self.ranked(inputs, i)
            pages[i, 0] = page = self.build(request, look)
            if wanted is not None and wanted[i, 0] > 0:
                records[i, 0] = self.record_module.encode(self.version, request, page)
        return {"page": pages, "record": records}

    def finish(self, answer):
        """One request's pages as tensors."""
        return {**self.tensors(answer["page"][:, 0]), "record": answer["record"]}

    def tensors(self, pages):
        """Pages as tensors; all get the size of the largest one."""
        return {
            "row_kind": padded([page.kinds for page in pages], object, b""),
            "row_title": padded([page.titles for page in pages], object, b""),
            "row_size": padded([page.sizes for page in pages], np.int32, 0),
            "video_id": self._ids([page.rows for page in pages]),
            "score": padded([page.scores for page in pages], np.float32, np.nan),
            "source": padded([page.sources for page in pages], np.int32, 0),
            "propensity": padded([page.propensities for page in pages], np.float32, 0),
            "status": np.array([[page.status] for page in pages], np.int32),
            "next_cursor": np.array([[page.cursor] for page in pages], object),
        }

    def _ids(self, rows):
        ids = padded([self.video_id[one] for one in rows], self.video_id.dtype, self.no_id)
        return ids.astype(object) if ids.dtype.kind == "S" else ids

    def request(self, inputs, i, ranked=True):
        """The Request in row `i` of the inputs; `ranked`: the ranker has scored it."""
        user = inputs["user_id"][i, 0]
        online = inputs["online_row"][i]
        empty = inputs["candidate_row"][i, :0]
        return Request(
            user=user if isinstance(user, bytes) else b"%d" % user,
            user_row=int(inputs["user_row"][i, 0]),
            watched_until=int(inputs["watched_until"][i, 0]),
            online_row=online[online > 0],
            online_watch_s=inputs["online_watch_s"][i][online > 0],
            session_size=int(inputs["session_size"][i, 0]),
            moment=int(inputs["request_time"][i, 0]),
            query_status=int(inputs["query_status"][i, 0]),
            **{what: text_of(inputs, name, i) for what, name in self.context.items()},
            cursor=text_of(inputs, "cursor", i),
            candidate_row=inputs["candidate_row"][i],
            candidate_source=inputs["candidate_source"][i] if ranked else empty,
            ranker_score=inputs["ranker_score"][i] if ranked else empty,
        )

    def ranked(self, inputs, i):
        """(the Request in row `i`, what `look` says of it); `gather` may have made both."""
        if "looked" not in inputs:
            request = self.request(inputs, i)
            return request, self.look(request)
        request, look = inputs["looked"][i]
        names = ("candidate_row", "candidate_source", "ranker_score")
        return request._replace(**{name: inputs[name][i] for name in names}), look

    def look(self, request):
        """(Viewer, Past, rows shown on earlier answers, number of this answer or -1).

        -1: the cursor is of another bundle; the page begins anew.
        """
        viewer = self.rules.viewer(
            request.user_row, request.moment, request.country, request.maturity
        )
        past = self.history.past(
            request.user_row, request.watched_until, request.online_row, request.online_watch_s,
            request.session_size,
        )  # fmt: skip
        return viewer, past, *self.seen(request.cursor)

    def seen(self, cursor):
        """(rows shown on earlier answers, number of this answer or -1), as for `look`."""
        if cursor is None:
            return self.cursor_module.NO_ROWS, 0
        version, number, shown = self.cursor_module.decode(cursor)
        if version != self.version or shown.max(initial=0) >= len(self.video_id):
            return self.cursor_module.NO_ROWS, -1
        return shown, number

    def _unseen(self, past):
        return past.watched if self.settings["exclude_watched"] else past.watched[:0]

    def hiding(self, *rows):
        return self.rules_module.Hiding(self.rules.hidden, rows)

    def build(self, request, look):
        """The Page of a Request and what `look` says of it; the same one whenever it is made."""
        viewer, past, shown, number = look
        draft = self.draft_module.Draft(self, request, viewer, past, max(number, 0))
        with self.hiding(shown):
            draft.go_on_watching()
        with self.hiding(self._unseen(past), shown, draft.rows_so_far()):
            draft.recommend()
            draft.fall_back()
        return self._finished(draft, shown, is_expired=number < 0)

    def replay(self, request):
        """The Page of a log record's request, {field: value}."""
        request = Request(**request)
        return self.build(request, self.look(request))

    def _finished(self, draft, shown, is_expired):
        """The Page of a draft; it has a cursor as long as pages are full."""
        is_full = len(draft.sizes) == draft.wanted
        status = draft.request.query_status
        if not draft.sizes:
            status = NO_VIDEOS
        elif is_expired:
            status = CURSOR_EXPIRED
        elif status == OK and not is_full:
            status = FEWER_ROWS
        columns = draft.columns_so_far()
        cursor = b""
        if is_full:
            every = np.concatenate([shown, columns[0]])
            cursor = self.cursor_module.encode(self.version, draft.number, every)
        return Page(
            status, draft.kinds, draft.titles, draft.sizes, *columns, draft.chance.seed, cursor
        )

    def title(self, row):
        """A video's title, or its id."""
        start, end = self.title_start[row], self.title_start[row + 1]
        if end > start:
            return self.title_text[start:end].tobytes()
        video = self.video_id[row]
        return bytes(video) if isinstance(video, bytes) else b"%d" % video


def text_of(inputs, name, i):
    """An optional input as text; None where it is absent or empty."""
    values = inputs.get(name)
    if values is None:
        return None
    value = values[i, 0]
    return (value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)) or None


def padded(values, dtype, empty):
    """Lists of different lengths as one array [n, longest]."""
    if len(values) == 1:
        return np.asarray(values[0], dtype)[None]
    width = max(map(len, values))
    result = np.full((len(values), width), empty, dtype)
    for row, one in zip(result, values, strict=True):
        row[: len(one)] = one
    return result
