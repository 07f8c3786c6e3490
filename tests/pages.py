"""Page stages over made-up catalogues, and requests to them."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from workflow.config import PageConfig

TEMPLATES = Path(__file__).resolve().parents[1] / "triton_repo" / "templates"
DAY = 86_400
NOW = 20_000 * DAY
COUNTRIES = ("DE", "JP", "US", "BR", "IN", "FR", "MX", "GB", "KE")
RATINGS = ("all", "13+", "18+")
ALWAYS = np.iinfo(np.int64).max
VERSION = 17


def load(name: str) -> Any:
    """A module of the page stage, as it is exported."""
    path = TEMPLATES / "page" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"page_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def unit(vectors: Any) -> Any:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(norms, 1e-9)).astype(np.float32)


@dataclass
class Catalogue:
    """A made-up bundle: plain arrays that a test may change before `stage` is asked for.

    By video row (row 0 is padding): genres (lists of 0-based groups), rating (place in RATINGS),
    allowed (bool [n + 1, countries]), since, until, published. By user: country (0 = not known),
    limit (0 = not known), watches (lists of (row, flag), oldest first).
    """

    num_videos: int = 60
    num_users: int = 4
    num_groups: int = 3
    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng, n = np.random.default_rng(self.seed), self.num_videos + 1
        self.rng = rng
        self.candidate_vector = rng.normal(size=(n, 12)).astype(np.float32)
        self.diversity_vector = unit(rng.normal(size=(n, 16)))
        self.group = np.zeros((n, 2), np.int16)
        self.rating = np.zeros(n, np.int8)
        self.allowed = np.ones((n, len(COUNTRIES)), bool)
        self.since, self.until = np.zeros(n, np.int64), np.full(n, ALWAYS)
        self.published = np.full(n, NOW - 400 * DAY)
        self.duration_s = np.full(n, 1_000, np.float32)
        self.country = np.zeros(self.num_users + 1, np.int16)
        self.limit = np.full(self.num_users + 1, len(RATINGS), np.int16)
        self.watches: list[list[tuple[int, int]]] = [[] for _ in range(self.num_users + 1)]
        self.neighbour = np.zeros((n, 5), np.int32)
        self.trending = np.zeros((1, 20), np.int32)
        self.popular = np.arange(1, n, dtype=np.int32)[None]
        self.country_table = np.zeros(len(COUNTRIES) + 1, np.int16)

    @classmethod
    def random(cls, seed: int, num_videos: int, num_users: int = 20, **settings: Any) -> Catalogue:
        """All rules in use, for everybody something else."""
        made = cls(num_videos, num_users, int(seed % 19) + 1, seed, settings)
        rng, n = made.rng, num_videos + 1
        made.group = rng.integers(0, made.num_groups + 1, (n, 3)).astype(np.int16)
        made.rating = rng.integers(0, 3, n).astype(np.int8)
        made.allowed = rng.random((n, len(COUNTRIES))) < rng.uniform(0.2, 1)
        made.allowed |= rng.random((n, 1)) < 0.5  # these are everywhere
        made.since = NOW - rng.integers(-20, 100, n) * DAY
        made.until = NOW + rng.integers(-20, 200, n) * DAY
        made.published = NOW - rng.integers(0, 100, n) * DAY
        made.country = rng.integers(0, len(COUNTRIES) + 1, num_users + 1).astype(np.int16)
        made.limit = rng.integers(0, 4, num_users + 1).astype(np.int16)
        for user in range(1, num_users + 1):
            count = int(rng.integers(0, min(80, num_videos)))
            rows, flags = rng.integers(1, n, count), rng.integers(0, 4, count)
            made.watches[user] = list(zip(rows.tolist(), flags.tolist(), strict=True))
        made.neighbour = rng.integers(0, n, (n, 30)).astype(np.int32)
        made.neighbour[:, 1:][np.diff(np.sort(made.neighbour)) == 0] = 0
        for row in made.neighbour:  # each video once
            row[:] = np.pad(np.unique(row)[::-1], (0, 30))[:30]
        lists = [rng.permutation(np.arange(1, n, dtype=np.int32)) for _ in range(8)]
        made.trending = np.stack([one[:200] for one in lists[:4]])
        made.popular = np.stack(lists[4:])
        made.country_table = rng.integers(0, 4, len(COUNTRIES) + 1).astype(np.int16)
        made.country_table[0] = 0
        return made

    def stage(self, folder: Path) -> Any:
        """Write the bundle's page and load it."""
        folder = folder / str(VERSION)
        folder.mkdir(parents=True, exist_ok=True)
        for path in (TEMPLATES / "page").glob("*.py"):
            (folder / path.name).write_text(path.read_text())
        for name, values in self._arrays().items():
            np.save(folder / f"{name}.npy", np.ascontiguousarray(values))
        (folder / "stage.json").write_text(json.dumps(self._settings()))
        spec = importlib.util.spec_from_file_location("page_stage", folder / "stage.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.Stage(folder)

    def _settings(self) -> dict[str, Any]:
        defaults: dict[str, Any] = {
            "countries": list(COUNTRIES), "ratings": list(RATINGS), "unknown_limit": 1,
            "quotas": {"two_tower": 30, "neighbours": 10, "trending": 6, "fresh": 4},
            "fresh_days": 30, "because_rows": 2, "layouts": {"tv": [6, 5], "web": [4, 4]},
            "default_device": "web", "min_row_videos": 2, "diversity": "mmr",
            "diversity_strength": 0.3, "diversity_depth": 150, "session_strength": 0.1,
            "explore_slots": 0,
            "row_worth": PageConfig().row_worth.model_dump(),
            "exclude_watched": True, "groups": [f"Genre {g}" for g in range(self.num_groups)],
            "context": {"device": "device", "country": "country", "maturity": "maturity"},
        }  # fmt: skip
        return defaults | self.settings

    def _arrays(self) -> dict[str, Any]:
        n = self.num_videos + 1
        everywhere = self.allowed.all(axis=1, keepdims=True)
        bits = np.packbits(np.hstack([everywhere, self.allowed]), axis=1, bitorder="little").T
        window = np.stack([np.maximum(self.since, self.published), self.until])
        window[:, 0] = 0
        newest = np.argsort(-self.published[1:], kind="stable") + 1
        watched = [watch for user in self.watches for watch in user]
        titles = [b"", *(b"Video %d" % row for row in range(1, n))]
        return {
            "maturity": self.rating, "countries": bits, "window": window,
            "user_country": self.country, "user_limit": self.limit,
            "watched_row": np.array([row for row, _ in watched], np.int32),
            "watched_flag": np.array([flag for _, flag in watched], np.uint8),
            "watched_start": np.cumsum([0, *map(len, self.watches)]).astype(np.int64),
            "candidate_vector": self.candidate_vector, "neighbour": self.neighbour,
            "trending_row": self.trending, "popular_row": self.popular,
            "country_table": self.country_table, "fresh_row": newest.astype(np.int32),
            "fresh_time": self.published[newest], "diversity_vector": self.diversity_vector,
            "duration_s": self.duration_s, "group": self.group,
            "video_id": np.r_[-1, 1000 + np.arange(1, n)],
            "title_text": np.frombuffer(b"".join(titles), np.uint8),
            "title_start": np.cumsum([0, *map(len, titles)]).astype(np.int64),
        }  # fmt: skip

    def inputs(self, user: int = 0, rows: Any = (), **more: Any) -> dict[str, Any]:
        """A request for one user with scored candidates, best first unless `score` is given.

        Args:
            more: device, country, maturity, cursor (text), source, score, time, online, watch_s,
                session, status.
        """
        rows = np.asarray(rows, np.int32)
        score = more.get("score", np.linspace(1, 0, max(len(rows), 1))[: len(rows)])
        start = np.cumsum([0, *map(len, self.watches)])
        online = np.zeros(20, np.int32)
        online[: len(more.get("online", ()))] = more.get("online", ())
        seconds = np.full(20, np.nan, np.float32)
        seconds[: len(more.get("watch_s", ()))] = more.get("watch_s", ())
        given = {
            "user_id": np.array([[user * 7 + 1]], np.int64),
            "user_row": np.array([[user]], np.int32),
            "watched_until": np.array([[start[user + 1]]], np.int64),
            "online_row": online[None],
            "online_watch_s": seconds[None],
            "session_size": np.array([[more.get("session", 0)]], np.int32),
            "request_time": np.array([[more.get("time", NOW)]], np.int64),
            "query_status": np.array([[more.get("status", 0)]], np.int32),
            "candidate_row": rows[None],
            "candidate_source": np.array([more.get("source", np.ones(len(rows)))], np.int32),
            "ranker_score": np.asarray(score, np.float32)[None],
        }
        for name in ("device", "country", "maturity", "cursor"):
            value = more.get(name)
            given[name] = None if value is None else np.array([[value.encode()]], object)
        return given

    def is_allowed(self, rows: Any, user: int, moment: int, country: str | None, limit: str | None):
        """The rules again, the plain way; bool by video."""
        code = int(self.country[user])
        if country is not None:
            code = COUNTRIES.index(country) + 1 if country in COUNTRIES else 0
        limits = [int(self.limit[user])] if self.limit[user] else []
        if limit is not None:
            limits.append(RATINGS.index(limit) + 1 if limit in RATINGS else 1)
        highest = min(limits) if limits else 1
        return np.array(
            [
                row > 0
                and bool(self.allowed[row].all() if code == 0 else self.allowed[row, code - 1])
                and self.rating[row] < highest
                and max(self.since[row], self.published[row]) <= moment < self.until[row]
                for row in np.asarray(rows).tolist()
            ],
            bool,
        )


def random_request(catalogue: Catalogue, rng: Any, cursor: str | None = None) -> dict[str, Any]:
    """Candidates with repeats, padding and odd scores; any device, country and limit."""
    n, user = catalogue.num_videos, int(rng.integers(0, catalogue.num_users + 1))
    count = int(rng.integers(0, 120))
    score = rng.normal(size=count).astype(np.float32)
    score[rng.random(count) < 0.02] = rng.choice([np.nan, -np.inf, np.inf])
    some = {
        "device": rng.choice(["tv", "web", "car", None]),
        "country": rng.choice([*COUNTRIES, "??", None, None, None]),
        "maturity": rng.choice([*RATINGS, "?", None, None, None, None]),
    }
    return catalogue.inputs(
        user,
        rng.integers(0, n + 1, count),
        score=score,
        source=rng.choice([1, 2 | 256, 4, 8, 9, 2 | 512], count),
        time=NOW + int(rng.integers(-10, 10)) * DAY,
        online=rng.integers(1, n + 1, int(rng.integers(0, 8))),
        session=int(rng.integers(0, 4)),
        cursor=cursor,
        **{name: value for name, value in some.items() if value is not None},
    )


def problems(
    catalogue: Catalogue, stage: Any, inputs: dict[str, Any], shown: set[int]
) -> list[str]:
    """What is wrong with the page for a request, by the plain definition of every rule.

    Args:
        shown: rows that earlier answers had; those of this one are added.
    """
    page = stage.run(inputs)["page"][0, 0]
    rows = page.rows.tolist()
    request = stage.request(inputs, 0)
    ok = catalogue.is_allowed(
        rows, request.user_row, request.moment, request.country, request.maturity
    )
    watched = {row for row, _ in catalogue.watches[request.user_row]}
    watched |= set(request.online_row.tolist())
    resumed = page.sizes[0] if page.kinds[:1] == [b"continue"] else 0
    layouts = stage.settings["layouts"]
    height, width = layouts.get(request.device) or layouts[stage.settings["default_device"]]
    found = {
        "a video twice": len(set(rows)) < len(rows),
        "a video again": bool(shown & set(rows)),
        "not allowed": not ok.all(),
        "watched before": bool(watched & set(rows[resumed:])),
        "not watched before": not set(rows[:resumed]) <= watched,
        "too many rows": len(page.sizes) > height,
        "a row too long": max(page.sizes, default=0) > width,
        "sizes do not add up": sum(page.sizes) != len(rows),
        "names missing": not len(page.kinds) == len(page.titles) == len(page.sizes),
        "a propensity is no probability": bool(
            ((page.propensities <= 0) | (page.propensities > 1)).any()
        ),
        "status": (page.status == 5) != (len(rows) == 0),
        "changes when asked again": page.plain() != stage.run(inputs)["page"][0, 0].plain(),
        "something stays hidden": bool(stage.rules.hidden.any()),
    }
    shown |= set(rows)
    return [name for name, is_so in found.items() if is_so]


def check_pages(folder: Path, seed: int, count: int) -> tuple[int, list[str]]:
    """`count` random pages of one random catalogue, some of them scrolled: (videos, problems)."""
    rng = np.random.default_rng(seed)
    num_videos = int(rng.choice([1, 5, 40, 150, 600, 1_500]))
    methods = ["mmr", "dpp", "spectrum", "none"]
    catalogue = Catalogue.random(
        seed, num_videos, diversity=methods[seed % 4], explore_slots=int(rng.integers(0, 4)),
        min_row_videos=int(rng.integers(1, 5)),
    )  # fmt: skip
    stage = catalogue.stage(folder)
    videos, found, cursor, shown = 0, [], None, set[int]()
    inputs: dict[str, Any] = {}
    for number in range(count):
        if cursor is None:
            inputs, shown = random_request(catalogue, rng), set()
        else:
            inputs["cursor"] = np.array([[cursor]], object)
        before = len(shown)
        found += [f"catalogue {seed}, page {number}: {p}" for p in
                  problems(catalogue, stage, inputs, shown)]  # fmt: skip
        videos += len(shown) - before
        page = stage.run(inputs)["page"][0, 0]
        cursor = page.cursor if page.cursor and rng.random() < 0.7 else None
    return videos, found


def page_of(stage: Any, inputs: dict[str, Any]) -> Any:
    return stage.run(inputs)["page"][0, 0]


def rows_of(page: Any) -> dict[str, list[int]]:
    """Title -> rows of its videos; rows of one title one after the other."""
    rows: dict[str, list[int]] = {}
    start = 0
    for title, size in zip(page.titles, page.sizes, strict=True):
        rows.setdefault(title.decode(), []).extend(page.rows[start : start + size].tolist())
        start += size
    return rows
