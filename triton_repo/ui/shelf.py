"""What a bundle knows of its videos, viewers and rules, in words and numbers for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from triton_repo.local import open_stage
from triton_repo.page_tensors import FUSED_PAGE, PAGE_STAGE
from workflow.errors import BundleError
from workflow.run import read_json

NUM_EXAMPLES = 8  # users that the page proposes
_ALWAYS = np.iinfo(np.int64).max


class Shelf:
    """Reads the files of one bundle; nothing is copied into memory.

    Args:
        folder: a bundle, in the layout of a model repository.
        version: of the bundle.
    Raises:
        BundleError: the bundle is gone, or from before it could say how a page came about.
    """

    def __init__(self, folder: Path, version: int) -> None:
        self.version = version
        self.folder = folder
        if not (self._path(FUSED_PAGE) / "meter.py").exists():
            raise BundleError(
                f"bundle {version} in {folder} cannot explain its pages",
                expected="a bundle exported by this version of Marquee",
                next_step="marquee export --force --run RUN, then start the server again",
            )
        self.page = open_stage(self._path(PAGE_STAGE))
        self.settings: dict[str, Any] = self.page.settings
        self.video_id = self.page.video_id
        self.user_id = self._array("query_tower", "user_id")
        self.published = self._array("ranker", "publish_time")
        self.duration_s = self._array("ranker", "duration_s")

    # --- videos ----------------------------------------------------------------------------------
    @property
    def num_videos(self) -> int:
        return len(self.video_id) - 1

    def id_of(self, row: int) -> str:
        """A video's raw id as text: JSON has no 64-bit numbers."""
        raw = self.video_id[row]
        return raw.decode() if isinstance(raw, bytes) else str(raw)

    def row_of(self, video_id: str) -> int | None:
        """The row of a raw id, None where the bundle does not have it."""
        ids, rows = (self._array("query_tower", name) for name in ("video_id", "video_row"))
        if ids.dtype.kind == "S":
            wanted: bytes | int = video_id.encode()
        elif video_id.removeprefix("-").isdecimal() and abs(int(video_id)) < _ALWAYS:
            wanted = int(video_id)
        else:
            return None
        at = int(np.searchsorted(ids, wanted))
        return int(rows[at + 1]) if at < len(ids) and ids[at] == wanted else None

    def title(self, row: int) -> str:
        """A video's title, or its id."""
        text: bytes = self.page.title(row)
        return text.decode("utf-8", "replace")

    def video(self, row: int) -> dict[str, Any]:
        """{"id", "title", "groups", "duration_s", "published", "maturity"}; None: not known."""
        groups, ratings = self.settings["groups"], self.settings["ratings"]
        place = int(self.page.rules.maturity[row])
        return {
            "id": self.id_of(row),
            "title": self.title(row),
            "groups": [groups[group - 1] for group in self.page.group[row].tolist() if group > 0],
            "duration_s": _known(self.duration_s, row),
            "published": _known(self.published, row) or None,
            "maturity": str(ratings[place]) if place < len(ratings) else None,
        }

    def details(self, row: int) -> dict[str, Any]:
        """`video` and where and when it may be shown."""
        rules, names = self.page.rules, self.settings["countries"]
        bits = rules.countries[:, row]
        allowed = [bool(bits[code >> 3] & 1 << (code & 7)) for code in range(len(names) + 1)]
        since, until = (int(one) for one in rules.window[:, row])
        return {
            **self.video(row),
            "everywhere": allowed[0],
            "countries": [name for name, ok in zip(names, allowed[1:], strict=True) if ok],
            "available_from": since or None,
            "available_until": None if until == _ALWAYS else until,
        }

    # --- viewers ---------------------------------------------------------------------------------
    def last_watch(self) -> int:
        """Unix seconds of the last watch that the bundle has; 0 where it has none."""
        return int(self._array("query_tower", "watched_time").max(initial=0))

    def viewer(self, user_row: int) -> dict[str, Any]:
        """{"id", "watches", "country", "maturity"} of a user of the bundle."""
        start = self.page.history.watched_start
        raw = self.user_id[user_row - 1]
        country, limit = (int(a[user_row]) for a in self._viewer_tables())
        names, ratings = self.settings["countries"], self.settings["ratings"]
        return {
            "id": raw.decode() if isinstance(raw, bytes) else str(raw),
            "watches": int(start[user_row + 1] - start[user_row]),
            "country": names[country - 1] if country else None,
            "maturity": str(ratings[limit - 1]) if 0 < limit <= len(ratings) else None,
        }

    def _viewer_tables(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        return self.page.rules.user_country, self.page.rules.user_limit

    def users(self, count: int = NUM_EXAMPLES) -> list[dict[str, Any]]:
        """Examples: users with many, some, few and no watches."""
        counts = np.diff(self.page.history.watched_start)[1 : len(self.user_id) + 1]
        if len(counts) == 0:
            return []
        order = np.argsort(-counts, kind="stable")
        places = np.linspace(0, 1, count) ** 2 * (len(order) - 1)
        rows = dict.fromkeys(order[places.astype(int)] + 1)
        return [self.viewer(int(row)) for row in rows]

    def controls(self) -> dict[str, Any]:
        """What a viewer may choose: inputs of the request, with their values."""
        names: dict[str, str] = self.settings["context"]
        tower = read_json(self._path("query_tower") / "stage.json")
        values = {
            names["device"]: list(self.settings["layouts"]),
            names["country"]: self.settings["countries"],
            names["maturity"]: [str(one) for one in self.settings["ratings"]],
        }
        derived = ("hour", "weekday")  # of the time
        for name, known in tower["vocabulary"].items():
            if name not in values and name not in derived:
                values[name] = [str(value) for value in known["values"]][:200]
        return {
            "context": [
                {"name": name, "values": choice} for name, choice in values.items() if choice
            ],
            "device": names["device"],
            "default_device": self.settings["default_device"],
            "layouts": self.settings["layouts"],
        }

    # --- files -----------------------------------------------------------------------------------
    def _path(self, model: str) -> Path:
        return self.folder / model / str(self.version)

    def _array(self, model: str, name: str) -> npt.NDArray[Any]:
        """A memory-mapped array; an empty one where the data has none."""
        path = self._path(model) / f"{name}.npy"
        if not path.exists():
            return np.zeros(0, np.float32)
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        return array


def _known(values: npt.NDArray[Any], row: int) -> float | int | None:
    if len(values) == 0 or not np.isfinite(values[row]):
        return None
    value: float | int = values[row].item()
    return round(value, 1) if isinstance(value, float) else value
