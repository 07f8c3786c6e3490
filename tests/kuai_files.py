"""Small files in the exact format in which KuaiRand and KuaiRec are published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

LOG = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,"
    "is_hate,long_view,play_time_ms,duration_ms,profile_stay_time,comment_stay_time,"
    "is_profile_enter,is_rand,tab"
).split(",")
USERS = (
    "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,"
    "follow_user_num,follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num,"
    "friend_user_num_range,register_days,register_days_range,"
    + ",".join(f"onehot_feat{number}" for number in range(18))
).split(",")
VIDEOS = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,"
    "server_width,server_height,music_id,music_type,tag"
).split(",")
MATRIX = ("user_id,video_id,play_duration,video_duration,time,date,timestamp,watch_ratio").split(
    ","
)
DAILY = (
    "video_id,date,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,"
    "video_width,video_height,music_id,video_tag_id,video_tag_name,show_cnt,play_progress,"
    "collect_cnt"
).split(",")
LOG_DAYS = {"standard": ("4_08_to_4_21", "4_22_to_5_08"), "random": ("4_22_to_5_08",)}
APRIL_9_MS = 1_649_433_600_000  # 2022-04-09 00:00 in China
JULY_5_S = 1_593_878_400  # 2020-07-05 00:00 in China


def write_csv(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    """As pandas wrote the published files: no index, nothing for NaN, quotes where needed."""
    pd.DataFrame(rows, columns=columns).to_csv(path, index=False)


def user(user_id: int, **values: Any) -> dict[str, Any]:
    return dict.fromkeys(USERS, 0) | {
        "user_id": user_id, "user_active_degree": "full_active", "follow_user_num": 5,
        "follow_user_num_range": "(0,10]", "fans_user_num": 312, "fans_user_num_range": "[100,1k)",
        "friend_user_num_range": "0", "register_days": 3624, "register_days_range": "730+",
        "onehot_feat3": 1153, **values,
    }  # fmt: skip


def play(user_id: int, video_id: int, time_ms: int, **values: Any) -> dict[str, Any]:
    """A row of a KuaiRand log."""
    return dict.fromkeys(LOG, 0) | {
        "user_id": user_id, "video_id": video_id, "date": 20220409, "hourmin": 400,
        "time_ms": time_ms, "duration_ms": 104_400, "tab": 1, **values,
    }  # fmt: skip


def video(video_id: int, **values: Any) -> dict[str, Any]:
    return {
        "video_id": video_id, "author_id": 441, "video_type": "NORMAL", "upload_dt": "2022-04-01",
        "upload_type": "ShortImport", "visible_status": 0.0, "video_duration": 17_200.0,
        "server_width": 720.0, "server_height": 1280.0, "music_id": 9_155_697_141,
        "music_type": 9.0, "tag": "39", **values,
    }  # fmt: skip


def view(user_id: int, video_id: int, timestamp: float, **values: Any) -> dict[str, Any]:
    """A row of a KuaiRec matrix; the ratio follows from the two durations."""
    row = {
        "user_id": user_id, "video_id": video_id, "play_duration": 13_838,
        "video_duration": 10_867, "time": "2020-07-05 00:08:23.438", "date": 20200705,
        "timestamp": timestamp, **values,
    }  # fmt: skip
    return row | {"watch_ratio": row["play_duration"] / row["video_duration"]}


def day(video_id: int, date: int, **values: Any) -> dict[str, Any]:
    """A row of KuaiRec's daily table."""
    return {
        "video_id": video_id, "date": date, "author_id": 441, "video_type": "NORMAL",
        "upload_dt": "2020-03-30", "upload_type": "ShortImport", "visible_status": "public",
        "video_duration": 17_200.0, "video_width": 720, "video_height": 1280,
        "music_id": 989_206_467, "video_tag_id": 2522, "video_tag_name": "祝福", "show_cnt": 7716,
        "play_progress": 0.579695, "collect_cnt": np.nan, **values,
    }  # fmt: skip


def write_kuairand(
    folder: Path,
    logs: dict[str, list[dict[str, Any]]],
    users: list[dict[str, Any]],
    videos: list[dict[str, Any]],
    variant: str = "pure",
) -> Path:
    """`logs` by file name without its variant and suffix; the files lie in `folder`/data."""
    data = folder / "data"
    data.mkdir(parents=True)
    for name, rows in logs.items():
        stem, part, number = name.partition("_part")
        write_csv(data / f"{stem}_{variant}{part}{number}.csv", LOG, rows)
    write_csv(data / f"user_features_{variant}.csv", USERS, users)
    write_csv(data / f"video_features_basic_{variant}.csv", VIDEOS, videos)
    (data / f"video_features_statistic_{variant}.csv").write_text("video_id,counts\n0,66\n")
    return folder


def write_kuairec(
    folder: Path,
    views: list[dict[str, Any]],
    users: list[dict[str, Any]],
    tags: dict[int, str],
    days: list[dict[str, Any]],
    matrix: str = "big",
) -> Path:
    data = folder / "data"
    data.mkdir(parents=True)
    write_csv(data / f"{matrix}_matrix.csv", MATRIX, views)
    write_csv(data / "user_features.csv", USERS, users)
    rows = [{"video_id": number, "feat": text} for number, text in tags.items()]
    write_csv(data / "item_categories.csv", ["video_id", "feat"], rows)
    write_csv(data / "item_daily_features.csv", DAILY, days)
    (data / "social_network.csv").write_text('user_id,friend_list\n3371,"[2975]"\n')
    return folder
