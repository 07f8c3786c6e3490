"""A window of the pages that the gateway saw: what drift, coverage and latency are read off."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

WINDOW = 500  # pages


@dataclass(frozen=True)
class SeenPage:
    """What is kept of one page.

    Attributes:
        said: name -> what was said of each video that has it: score, p_positive, ...
    """

    at: int
    context: dict[str, str]
    version: int
    answer_ms: float
    stage_us: dict[str, int]
    video_ids: tuple[str, ...]
    said: dict[str, list[float]]


@dataclass
class Seen:
    """The latest pages, oldest first. Not for several threads."""

    pages: deque[SeenPage] = field(default_factory=lambda: deque(maxlen=WINDOW))

    def add(self, view: dict[str, Any], at: int, context: dict[str, str], ms: float) -> None:
        """Keep what the health tab needs of a page (explain.page_view)."""
        videos = [video for row in view["rows"] for video in row["videos"]]
        said = {
            name: [video[name] for video in videos if video[name] is not None]
            for name in ("score", "p_positive", "p_watched", "watch_s")
        }
        ids = tuple(video["id"] for video in videos)
        known = dict(context)
        self.pages.append(
            SeenPage(at, known, view["version"], ms, view["stage_us"] or {}, ids, said)
        )

    def values(self, name: str) -> list[float]:
        """Everything that was said under a name."""
        return [value for page in self.pages for value in page.said.get(name, [])]

    def context(self, name: str) -> list[str]:
        """A context column's values; "" where a request had none."""
        return [page.context.get(name, "") for page in self.pages]

    def hours(self) -> list[str]:
        """Hour of the day of each request, UTC."""
        return [str(time.gmtime(page.at).tm_hour) for page in self.pages]

    def videos(self) -> set[str]:
        return {video for page in self.pages for video in page.video_ids}

    def versions(self) -> dict[str, int]:
        """Pages by the bundle that answered."""
        return {str(version): n for version, n in Counter(p.version for p in self.pages).items()}

    def latencies(self) -> dict[str, list[float]]:
        """Milliseconds by stage, and "answer", as the gateway waited for it."""
        found: dict[str, list[float]] = {"answer": [page.answer_ms for page in self.pages]}
        for page in self.pages:
            for stage, us in page.stage_us.items():
                found.setdefault(stage, []).append(us / 1000)
        return found
