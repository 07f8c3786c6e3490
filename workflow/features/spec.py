"""The fitted schema: every model feature with its vocabulary size, in the order models see it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from workflow.run import read_json, write_json

# Where a feature's value comes from when a request is answered.
Group = Literal[
    "user",  # one row per user, fixed between exports
    "user_state",  # counts of a user's own past, as of the last export
    "context",  # from the request: device, hour, ...
    "video",  # one row per video, fixed between exports
    "video_state",  # counts of a video's past, as of the last export
    "cross",  # from the request and the video together: the video's age
    "history",  # list of the user's watched videos, newest last
]
Kind = Literal["categorical", "multi_hot", "continuous"]

PADDING, NULL, OUT_OF_VOCABULARY, FIRST_VALUE = 0, 1, 2, 3  # Merlin's index convention
QUERY_GROUPS: tuple[Group, ...] = ("user", "user_state", "context", "history")


class Feature(BaseModel):
    """One feature.

    Attributes:
        cardinality: rows of its embedding table (index 0 padding, 1 null, 2 out of vocabulary);
            0 for continuous features.
        length: width of the padded list; 1 for scalars.
        domain: features with the same domain share one vocabulary.
        retriever: whether the two towers use it; the ranker uses every feature.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    group: Group
    kind: Kind
    cardinality: int = 0
    length: int = 1
    domain: str = ""
    retriever: bool = False

    @property
    def is_list(self) -> bool:
        return self.kind == "multi_hot"


class FeatureSpec(BaseModel):
    """All features of a run, with the numbers that the stages after it need."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    features: tuple[Feature, ...]
    num_users: int
    num_videos: int
    has_watch_time: bool
    history_length: int
    session_length: int
    session_gap_s: int
    valid_from: int  # timestamp of the first validation second (temporal split), else 0
    test_from: int
    last_event: int  # timestamp of the last event of the log
    has_label: bool = True
    label_prior: float = 0.5  # positive share before the test part; smooths rates

    def of_group(self, *groups: Group) -> tuple[Feature, ...]:
        return tuple(f for f in self.features if f.group in groups)

    def query(self) -> tuple[Feature, ...]:
        """Inputs of the query tower."""
        return tuple(f for f in self.of_group(*QUERY_GROUPS) if f.retriever)

    def candidate(self) -> tuple[Feature, ...]:
        """Inputs of the candidate tower."""
        return tuple(f for f in self.of_group("video") if f.retriever)

    def __getitem__(self, name: str) -> Feature:
        return next(f for f in self.features if f.name == name)

    def save(self, path: Path) -> None:
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def load(cls, path: Path) -> FeatureSpec:
        return cls.model_validate(read_json(path))
