"""Why a page looks as it does, read off its log record: ranks, sources, rules, chance."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from triton_repo.page_answer import Page
from triton_repo.ui.shelf import Shelf

_SEED = 8  # from this bit of a source on: which of the last watches a video is like
Rows = npt.NDArray[np.int32]


def page_view(page: Page, shelf: Shelf) -> dict[str, Any]:
    """A page as the web page shows it.

    Args:
        page: one that was asked for with `explain` and `timing`.
        shelf: of the bundle that answered.
    Returns:
        {"status", "version", "cursor", "rows": [{"kind", "title", "reason", "videos": [{"id",
        "place", "rank", "ranked_place", "score", "sources", "like", "propensity", "p_positive",
        "p_watched", "watch_s"}]}], "videos": {id: Shelf.video}, "rules", "candidates", "watched",
        "stage_us"}.
    """
    record = json.loads(page.record)
    _, asked, _ = shelf.page.record_module.decode(page.record)
    request = SimpleNamespace(**asked)
    viewer, past, shown, _ = shelf.page.look(request)
    seeds = [int(row) for row in past.seeds]
    rows = record["page"]["rows"]
    told = _told(record, rows, ranks(request.candidate_row, request.ranker_score), seeds)
    videos = iter(zip(told, [one for row in page.rows for one in row.videos], strict=True))
    view_rows = []
    for row in page.rows:
        view_rows.append(
            {
                "kind": row.kind,
                "title": row.title,
                "reason": reason(row.kind, shelf.settings, row.videos),
                "videos": [_video(*next(videos), shelf, seeds) for _ in row.videos],
            }
        )
    return {
        "status": page.status.name,
        "version": page.version,
        "cursor": page.cursor,
        "rows": view_rows,
        "videos": {shelf.id_of(row): shelf.video(row) for row in rows},
        "rules": rules_removed(record, request, shelf, viewer, past, shown),
        "candidates": int(np.count_nonzero(request.candidate_row)),
        "watched": len(past.watched) if shelf.settings["exclude_watched"] else 0,
        "stage_us": page.stage_us,
    }


def ranks(candidate_row: Rows, score: npt.NDArray[np.float32]) -> dict[int, int]:
    """Row -> its place (from 1) in the order of the ranker's scores alone."""
    order = np.argsort(-score, kind="stable")
    kept = [int(row) for row in candidate_row[order][np.isfinite(score[order])] if row > 0]
    return {row: place for place, row in enumerate(dict.fromkeys(kept), start=1)}


def _told(
    record: dict[str, Any], rows: list[int], rank: dict[int, int], seeds: list[int]
) -> list[dict[str, Any]]:
    """What the record says of each video on the page, in order."""
    explained = record.get("explained", {})
    bits = record["page"]["sources"]
    told: list[dict[str, Any]] = []
    num_ranked = 0
    for place, row in enumerate(rows):
        num_ranked += row in rank
        like = [seed for i, seed in enumerate(seeds) if bits[place] >> (_SEED + i) & 1]
        said = {
            name: explained[name][place] if name in explained else None
            for name in ("p_positive", "p_watched", "watch_s")
        }
        told.append({"row": row, "place": place + 1, "rank": rank.get(row), "like": like, **said})
        told[-1]["ranked_place"] = num_ranked  # its place among those that the ranker ordered
    return told


def _video(told: dict[str, Any], video: Any, shelf: Shelf, seeds: list[int]) -> dict[str, Any]:
    row = told.pop("row")
    return {
        **told,
        "id": shelf.id_of(row),
        "like": [shelf.title(seed) for seed in told["like"]],
        "score": video.score,
        "sources": list(video.sources),
        "propensity": video.propensity,
    }


def reason(kind: str, settings: dict[str, Any], videos: Any) -> str:
    """Why a row is there, in a sentence."""
    drawn = sum("explore" in video.sources for video in videos)
    new = f"Published in the last {settings['fresh_days']} days"
    if drawn:
        new += f"; {drawn} of these drawn by chance, so that new videos get seen"
    return {
        "continue": "Begun and not finished, newest first",
        "top": "The ranker's best, in an order with variety",
        "because": "Videos like one that was watched lately",
        "trending": "Watched most of late",
        "new": new,
        "genre": "The best candidates of this kind",
        "more": "What else the ranker likes",
        "popular": "Fills the page: watched most over the whole log",
    }.get(kind, "")


# --- rules ---------------------------------------------------------------------------------------
def rules_removed(
    record: dict[str, Any], request: Any, shelf: Shelf, viewer: Any, past: Any, shown: Rows
) -> dict[str, Any]:
    """How many of the videos that the sources proposed each rule took, the first that applies.

    Returns:
        {"considered", "removed": [{"rule", "count"}], "left"}.
    """
    rows = _proposed(record, shelf, viewer, past)
    rules, left = shelf.page.rules, np.ones(len(rows), bool)
    hidden = [("watched before", past.watched if shelf.settings["exclude_watched"] else shown[:0])]
    hidden.append(("shown further up", shown))
    since, until = rules.window[0].take(rows), rules.window[1].take(rows)
    bits = rules.countries[viewer.country >> 3].take(rows)
    broken = [
        ("withdrawn", until == 0),
        ("not out yet", since > viewer.moment),
        ("no longer available", until <= viewer.moment),
        ("not for this country", (bits & (1 << (viewer.country & 7))) == 0),
        ("above the viewer's maturity limit", rules.maturity.take(rows) >= viewer.limit),
        *((name, np.isin(rows, some)) for name, some in hidden),
    ]
    removed = []
    for name, breaks in broken:
        count = int((breaks & left).sum())
        left &= ~breaks
        if count:
            removed.append({"rule": name, "count": count})
    return {"considered": len(rows), "removed": removed, "left": int(left.sum())}


def _proposed(record: dict[str, Any], shelf: Shelf, viewer: Any, past: Any) -> Rows:
    """Every video that a source proposed, before rules and quotas."""
    sources = shelf.page.sources
    pools = [np.array(record.get("explained", {}).get("retrieved_row", []), np.int32)]
    pools += [sources.neighbour[row] for row in past.seeds]
    pools.append(sources.trending_row[sources.table(viewer.country)])
    pools.append(sources.fresh(viewer.moment))
    rows: Rows = np.unique(np.concatenate(pools))
    return rows[rows > 0]
