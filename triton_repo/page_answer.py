"""A page as clients get it: rows with titles, and per video its sources and its propensity."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any, NamedTuple

from triton_repo.page_tensors import PAGE_TIMINGS

# Bits of a video's `source`, as templates/page/sources.py sets them.
SOURCES = ("two_tower", "neighbour", "trending", "fresh", "popular", "continue", "explore")
OUTPUTS = (
    "row_kind", "row_title", "row_size", "video_id", "score", "source", "propensity", "status",
    "next_cursor",
)  # fmt: skip


class PageStatus(IntEnum):
    """How a page came about; with every status but `no_videos` there is one."""

    ok = 0
    unknown_user = 1
    empty_history = 2
    fewer_rows = 3  # than the layout has
    state_unavailable = 4
    no_videos = 5  # that the rules allow, or that were not shown before
    cursor_expired = 6  # it was of another bundle: the page begins anew


class PageVideo(NamedTuple):
    """A video on a page.

    Args:
        score: of the ranker; None where the row has another order.
        sources: where the candidate came from, of SOURCES.
        propensity: chance that this place showed this video, given those before it.
    """

    video_id: int | str
    score: float | None
    sources: tuple[str, ...]
    propensity: float


class PageRow(NamedTuple):
    """A titled row; `kind` is continue, top, because, trending, new, genre, more or popular."""

    kind: str
    title: str
    videos: tuple[PageVideo, ...]


class Page(NamedTuple):
    """A page.

    Args:
        cursor: what to ask the next rows with; empty when there are none.
        record: the log record, where it was asked for.
        version: of the bundle that answered.
        stage_us: microseconds that each stage took for the batch that the request was in, where
            that was asked for.
    """

    rows: tuple[PageRow, ...]
    status: PageStatus
    cursor: str
    version: int
    record: bytes = b""
    stage_us: dict[str, int] | None = None

    @property
    def video_ids(self) -> list[int | str]:
        """Of all videos, row after row."""
        return [video.video_id for row in self.rows for video in row.videos]

    def plain(self) -> dict[str, Any]:
        """As JSON has it, without the record."""
        rows = [
            {**row._asdict(), "videos": [video._asdict() for video in row.videos]}
            for row in self.rows
        ]
        return {"status": self.status.name, "rows": rows, "cursor": self.cursor}


def page_of(tensors: Mapping[str, Any], version: int) -> Page:
    """The Page in the output tensors of a request for one user."""
    videos = [
        PageVideo(
            video.decode() if isinstance(video, bytes) else video,
            None if score != score else score,  # noqa: PLR0124  (NaN)
            tuple(name for bit, name in enumerate(SOURCES) if source >> bit & 1),
            propensity,
        )
        for video, score, source, propensity in zip(
            *(tensors[name][0].tolist() for name in ("video_id", "score", "source", "propensity")),
            strict=True,
        )
    ]
    rows, start = [], 0
    for kind, title, size in zip(
        *(tensors[name][0].tolist() for name in ("row_kind", "row_title", "row_size")), strict=True
    ):
        rows.append(PageRow(kind.decode(), title.decode(), tuple(videos[start : start + size])))
        start += size
    record = tensors.get("record")
    return Page(
        tuple(rows),
        PageStatus(int(tensors["status"][0, 0])),
        tensors["next_cursor"][0, 0].decode(),
        version,
        b"" if record is None else record[0, 0],
        _stage_us(tensors),
    )


def _stage_us(tensors: Mapping[str, Any]) -> dict[str, int] | None:
    if PAGE_TIMINGS[0] not in tensors:
        return None
    return {name.removesuffix("_us"): int(tensors[name][0, 0]) for name in PAGE_TIMINGS}
