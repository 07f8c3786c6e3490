"""The words of a contract: what a column may be, and where."""

from __future__ import annotations

from typing import Literal

Role = Literal[
    "user_id",  # raw id of the user
    "video_id",  # raw id of the video
    "timestamp",  # when the event happened
    "label",  # the ranker's yes/no target: click, like, rating above a threshold
    "watch_s",  # seconds watched, the ranker's second target
    "propensity",  # probability with which the logging policy showed the video
    "context",  # known at request time: device, country, ...
    "user_feature",
    "video_feature",
    "duration_s",  # seconds a video lasts: a video feature that watch times are compared by
    "title",  # shown to people, never a model input
    "publish_time",  # when the video appeared; gives the video's age at request time
    "available_from",  # the page shows a video from this moment on
    "available_until",  # and before this one
    "withdrawn",  # 1: the page never shows this video
    "page",  # read for the page only (see `Tag`), never a model input
    "ignore",  # kept in the contract, not read
]
# What the page does with a column, whatever models do with it.
Tag = Literal[
    "row",  # of videos: rows of the page by its values, such as genres
    "maturity",  # of videos: the rating; of users or the request: the strictest one allowed
    "country",  # of videos: where it may be shown; of users or the request: where the viewer is
    "device",  # of the request: which layout the page has
]
Kind = Literal["categorical", "continuous", "multi_hot"]
Dtype = Literal["int64", "float32", "string"]
TableName = Literal["events", "users", "videos"]
TimeUnit = Literal["s", "ms", "us", "ns", "iso"]

TABLE_ROLES: dict[TableName, set[str]] = {
    "events": {
        "user_id", "video_id", "timestamp", "label", "watch_s", "propensity", "context", "ignore",
    },
    "users": {"user_id", "user_feature", "page", "ignore"},
    "videos": {
        "video_id", "video_feature", "duration_s", "title", "publish_time", "available_from",
        "available_until", "withdrawn", "page", "ignore",
    },
}  # fmt: skip
REQUIRED_ROLES: dict[TableName, tuple[str, ...]] = {
    "events": ("user_id", "video_id", "timestamp"),
    "users": ("user_id",),
    "videos": ("video_id",),
}
FEATURE_ROLES = ("context", "user_feature", "video_feature", "duration_s")
TIME_ROLES = ("timestamp", "publish_time", "available_from", "available_until")
# What an event may carry of it as a request, a user, or a video.
TAG_TABLES: dict[str, set[TableName]] = {
    "row": {"videos"}, "device": {"events"},
    "maturity": {"events", "users", "videos"}, "country": {"events", "users", "videos"},
}  # fmt: skip
# Roles that have a fixed column name in the validated tables; no other column may take it.
FIXED_NAME_ROLES = {
    "user_id", "video_id", "timestamp", "label", "watch_s", "propensity", "title", "publish_time",
    "available_from", "available_until", "withdrawn",
}  # fmt: skip
# Columns that Marquee derives; a contract column may not take these names.
RESERVED_NAMES = {
    "user_row", "video_row", "user_index", "video_index", "history", "session_history",
    "long_history", "long_history_label", "video_lift_7d", "video_lift_30d", "hour",
    "weekday", "video_age_days", "user_event_count", "user_label_rate", "video_event_count",
    "video_label_rate", "history_end", "session_start", "watched", "split", "top_k", "status",
    "score", "time", "raw_duration_s", "cursor", "want_record",
}  # fmt: skip
