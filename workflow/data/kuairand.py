"""KuaiRand as Parquet files: Kuaishou logs with randomly exposed videos; see KUAI.md.

Chongming Gao et al., "KuaiRand: An Unbiased Sequential Recommendation Dataset with Randomly
Exposed Videos", CIKM 2022. CC BY-SA 4.0, https://kuairand.com.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from workflow.config import KuaiRandConfig
from workflow.console import Report, no_report
from workflow.data.kuaishou import (
    beijing_midnight,
    category,
    column,
    duration_s,
    seconds,
    write_users,
)
from workflow.data.published import Archive, published_files, read_csv, write_table

_URL = "https://zenodo.org/records/10439422/files/"
# Names and checksums as https://kuairand.com lists them.
_FILES = {
    "pure": ("KuaiRand-Pure.tar.gz", "0820331067a3784d9691136f772b35a7"),
    "1k": ("KuaiRand-1K.tar.gz", "6b0b9c8222d67fcd4c676218edca3f1f"),
    "27k": ("KuaiRand-27K.tar.gz", "3e3c799a24e2d23a4d2c757fbf9adf59"),
}
# A random exposure shows one of this many videos, each with the same probability; all variants
# hold exposures of the same experiment.
POOL_VIDEOS = 7_583

_SIGNALS = (
    "is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "long_view",
)  # fmt: skip
_LOG = (
    column("user_id", "user_id", "int64"),
    column("video_id", "video_id", "int64"),
    column("timestamp", "timestamp", "int64", source="time_ms", unit="ms"),
    *(category(name, "context") for name in _SIGNALS),
    column("watch_s", "watch_s", "float32", source="play_time_ms"),
    category("tab", "context"),
    category("is_rand", "context"),
)
_VIDEO_TEXTS = ("video_type", "upload_type")
_VIDEO_CODES = ("author_id", "music_id", "music_type")
_VIDEOS = (
    column("video_id", "video_id", "int64"),
    column("publish_time", "publish_time", "string", source="upload_dt", unit="iso"),
    *(category(name, "video_feature", "string") for name in _VIDEO_TEXTS),
    *(category(name, "video_feature") for name in _VIDEO_CODES),
    column("duration_s", "video_feature", "float32", kind="continuous", source="video_duration"),
    column("tag", "video_feature", "int64", kind="multi_hot", separator=","),
)


def archive(settings: KuaiRandConfig) -> Archive:
    """The archive of a variant and those of its files that are read."""
    variant = settings.variant
    name, md5 = _FILES[variant]
    members = (
        *_logs(variant), f"user_features_{variant}.csv", f"video_features_basic_{variant}.csv",
    )  # fmt: skip
    return Archive("KuaiRand", _URL + name, md5, members, max_member_bytes=10**10)


def load_kuairand(
    settings: KuaiRandConfig,
    target: Path,
    source: Path | None = None,
    report: Report = no_report,
    published: Archive | None = None,
) -> None:
    """Write events.parquet, users.parquet and videos.parquet into `target` (an existing folder).

    `propensity` is 1 / POOL_VIDEOS for random exposures and null for all others, whose
    probability is not published.

    Args:
        source: a folder with the unpacked files; None downloads them.
        published: where from, in place of `archive(settings)`.
    Raises:
        DataError: the download failed or is corrupt, or a file is missing or damaged.
    """
    variant = settings.variant
    with published_files(published or archive(settings), source, target, report) as folder:
        log = _read_logs(folder, variant, report)
        write_table(map(_events, log), target / "events.parquet")
        write_users(folder, f"user_features_{variant}.csv", target / "users.parquet", report)
        file = f"video_features_basic_{variant}.csv"
        videos = read_csv(folder, file, _VIDEOS, "videos", report)
        write_table(map(_videos, videos), target / "videos.parquet")


def _logs(variant: str) -> tuple[str, ...]:
    parts = ("_part1", "_part2") if variant == "27k" else ("",)
    standard = (
        f"log_standard_{days}_{variant}{part}.csv"
        for days in ("4_08_to_4_21", "4_22_to_5_08")
        for part in parts
    )
    return (*standard, f"log_random_4_22_to_5_08_{variant}.csv")


def _read_logs(folder: Path, variant: str, report: Report) -> Iterator[pa.Table]:
    for file in _logs(variant):
        yield from read_csv(folder, file, _LOG, "events", report)


def _events(log: pa.Table) -> pa.Table:
    chance = pa.scalar(1 / POOL_VIDEOS, pa.float32())
    unknown = pa.scalar(None, pa.float32())
    propensity = pc.if_else(pc.equal(log["is_rand"], 1), chance, unknown)
    place = log.column_names.index("watch_s")
    log = log.set_column(place, "watch_s", seconds(log["watch_s"]))
    return log.append_column("propensity", propensity)


def _videos(videos: pa.Table) -> pa.Table:
    for name, made in (("publish_time", beijing_midnight), ("duration_s", duration_s)):
        place = videos.column_names.index(name)
        videos = videos.set_column(place, name, made(videos[name]))
    return videos
