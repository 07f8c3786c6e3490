"""Every setting of a run: frozen models, unknown keys refused, read from TOML.

Built-in configurations live in `workflow/configs/<dataset>.toml`; `--config FILE` and
`--set section.key=value` override them. Times end in `_s`, sizes say what they count.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from workflow.errors import ConfigError
from workflow.overrides import overridden
from workflow.schema import first_problem

CONFIG_FOLDER = Path(__file__).parent / "configs"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SplitConfig(_Strict):
    """How events are divided into train, valid and test.

    temporal: by two global points in time. leave_last_out: each user's last watch is the test,
    the one before it the validation event; there, as in the published comparisons, a history
    holds what the log lists before an event, also within the same second.
    """

    protocol: Literal["temporal", "leave_last_out"] = "temporal"
    valid_fraction: float = Field(0.1, gt=0, lt=0.5)
    test_fraction: float = Field(0.1, gt=0, lt=0.5)

    @property
    def by_order(self) -> bool:
        """Whether an event knows what the log lists before it in the same second."""
        return self.protocol == "leave_last_out"


class ValidationConfig(_Strict):
    """What to do with imperfect rows.

    Events whose user or video is not in its table: "drop" counts and drops them, "keep" adds
    the entity with null features, "error" stops. More than `max_bad_fraction` of bad rows stops
    the run in any case.
    """

    unknown_user: Literal["drop", "keep", "error"] = "keep"
    unknown_video: Literal["drop", "keep", "error"] = "drop"
    max_bad_fraction: float = Field(0.05, ge=0, le=1)
    rows_per_partition: int = Field(2_000_000, ge=1_000)


class FeatureConfig(_Strict):
    """Vocabulary thresholds and how much of a user's past is a feature."""

    min_user_events: int = Field(1, ge=1)  # rarer users share the out-of-vocabulary index
    min_video_events: int = Field(1, ge=1)
    history_length: int = Field(50, ge=1, le=1000)
    long_history_length: int = Field(200, ge=1, le=1000)  # what the ranker attends to
    session_length: int = Field(10, ge=1, le=200)
    session_gap_s: int = Field(1800, ge=1)


class TrainConfig(_Strict):
    """What both models' training shares."""

    batch_size: int = Field(4096, ge=2)
    max_epochs: int = Field(10, ge=1)
    patience: int = Field(1, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    refit: bool = True  # train again on train + validation for the chosen number of epochs


class RetrieverConfig(TrainConfig):
    """The two towers; `tower_layers` are the hidden layers of the query tower.

    `objectives` are tried one after another on the training part; the one with the best validation
    recall is kept: "next" learns the next watch, "future" what is watched within the next 1,000.
    """

    batch_size: int = Field(1024, ge=2)
    learning_rate: float = Field(2e-3, gt=0)
    max_epochs: int = Field(6, ge=1)
    max_rows_per_epoch: int = Field(400_000, ge=1_000)
    objectives: tuple[Literal["future", "next"], ...] = Field(("future", "next"), min_length=1)
    embedding_dim: int = Field(64, ge=2)
    tower_layers: tuple[int, ...] = (128,)
    id_dropout: float = Field(0.1, ge=0, lt=1)  # of candidates' own ids
    logq_correction: bool = True
    co_watch_dim: int = Field(64, ge=1)
    co_watch_weight: float = Field(0.15, ge=0)  # of the co-watch score, for more various lists
    blend: bool = True  # add co-watch vectors and, as validation says, trend and popularity
    cold_share: float = Field(0.08, ge=0, le=1)  # of candidates: videos nobody watched yet
    max_valid_users: int = Field(5_000, ge=1)


class ScoreWeights(_Strict):
    """score = the sum of weight * term, over what retrieval and the ranker say of a candidate.

    The terms: the retrieval score, log p(watched), log p(positive | shown), and the expected
    quantile of the watch time among videos as long (0 to 1).
    """

    retrieval: float = Field(0.0, ge=0)
    watch: float = Field(0.0, ge=0)
    label: float = Field(0.0, ge=0)
    watch_time: float = Field(0.0, ge=0)


class RankerConfig(TrainConfig):
    """The DLRM, what it trains on, and how its outputs become one score.

    A watch in a list is worth 1, a positive label `label_gain` more, and a unit of
    log(1 + seconds) watched `watch_time_gain` more: learned score weights maximise that.
    """

    max_epochs: int = Field(5, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    embedding_dim: int = Field(32, ge=2)
    bottom_layers: tuple[int, ...] = (64, 32)
    top_layers: tuple[int, ...] = (128, 64)
    id_dropout: float = Field(0.05, ge=0, lt=1)
    dropout: float = Field(0.2, ge=0, lt=1)
    attention_heads: int = Field(1, ge=1)
    history_dropout: float = Field(0.4, ge=0, lt=1)
    list_queries: int = Field(30_000, ge=1)  # training requests whose retrieved lists are used
    list_retrieved: int = Field(12, ge=1)  # candidates drawn per list and epoch
    list_uniform: int = Field(4, ge=0)  # and videos drawn from the whole catalogue
    list_horizon: int = Field(50, ge=1)  # a candidate counts as watched within so many watches
    list_loss_weight: float = Field(0.5, ge=0)
    watch_time_loss_weight: float = Field(0.2, ge=0)
    label_gain: float = Field(0.0, ge=0)
    watch_time_gain: float = Field(0.0, ge=0)
    score_weights: Literal["learned"] | ScoreWeights = "learned"


class IndexConfig(_Strict):
    """Kind of FAISS index and the recall it must reach against exact search.

    auto: exact search up to `flat_up_to_videos`; above, whichever of flat, ivf and ivf_fp16 (half
    precision) reaches the target with the least CPU time. `sample_queries` measure that, twice as
    many shape the lists.
    """

    kind: Literal["auto", "flat", "ivf", "ivf_fp16", "hnsw"] = "auto"
    flat_up_to_videos: int = Field(10_000, ge=1)
    target_recall: float = Field(0.99, gt=0, le=1)
    sample_queries: int = Field(2_000, ge=10)


class ServingConfig(_Strict):
    """What the exported repository does per request.

    `ranker`: how the trained ranker is served, as trained or with 8-bit integers in its layers;
    none keeps the order of retrieval.
    `max_waiting`: users whose requests are answered together when more comes than can be answered;
    older ones are refused. What a measured capacity asks for: tests/bench/overload.py.
    """

    num_candidates: int = Field(100, ge=1, le=2_000)
    ranker: Literal["fp32", "int8", "none"] = "fp32"
    default_top_k: int = Field(20, ge=1)
    max_batch_size: int = Field(32, ge=1)
    max_waiting: int = Field(32, ge=1)
    exclude_watched: bool = True


_Size = Annotated[int, Field(ge=1, le=200)]
LAYOUTS: dict[str, tuple[int, int]] = {"tv": (40, 20), "web": (20, 12), "phone": (15, 10)}


class Quotas(_Strict):
    """Candidates of each source before ranking; what a source lacks, the two towers fill up."""

    two_tower: int = Field(300, ge=1, le=2_000)
    neighbours: int = Field(100, ge=0, le=1_000)
    trending: int = Field(60, ge=0, le=1_000)
    fresh: int = Field(40, ge=0, le=1_000)

    @property
    def total(self) -> int:
        return self.two_tower + self.neighbours + self.trending + self.fresh


class RowWorth(_Strict):
    """How much a row counts by its kind, where rows compete for the next place on a page."""

    because: float = Field(2.0, gt=0)
    trending: float = Field(0.25, gt=0)
    new: float = Field(0.25, gt=0)
    genre: float = Field(1.0, gt=0)


class PageConfig(_Strict):
    """The homepage: titled rows instead of one list.

    `layouts` by device: rows and columns of one answer (scrolling asks for the next one). Those
    given are added to LAYOUTS; a device without one gets that of `default_device`.
    `diversity` orders the best `diversity_depth` videos: a strength of 0 is relevance alone.
    `session_strength`: how much what is like the videos of the open session gains, in parts of
    the range of scores.
    `explore_slots`: places of New releases that a new video gets by chance.
    `unknown_maturity`: what a viewer sees whose limit nobody knows.
    """

    layouts: dict[str, tuple[_Size, _Size]] = LAYOUTS
    default_device: str = "web"
    quotas: Quotas = Quotas()
    because_rows: int = Field(3, ge=0, le=10)
    min_row_videos: int = Field(4, ge=1)
    row_worth: RowWorth = RowWorth()
    diversity: Literal["mmr", "spectrum", "dpp", "none"] = "mmr"
    diversity_strength: float = Field(0.1, ge=0, lt=1)
    diversity_depth: int = Field(150, ge=1, le=2_000)
    session_strength: float = Field(0.2, ge=0, lt=1)
    explore_slots: int = Field(2, ge=0, le=10)
    fresh_days: int = Field(30, ge=1)
    trending_half_life_days: float = Field(3.0, gt=0)
    unknown_maturity: Literal["mildest", "any"] = "mildest"

    @field_validator("layouts", mode="before")
    @classmethod
    def _with_defaults(cls, given: dict[str, Any]) -> dict[str, Any]:
        return {**LAYOUTS, **given}

    @model_validator(mode="after")
    def _has_default(self) -> PageConfig:
        if self.default_device not in self.layouts:
            raise ValueError(f"default_device {self.default_device}: it has no layout")
        return self


class EvaluationConfig(_Strict):
    """How thoroughly `marquee evaluate` measures."""

    seeds: int = Field(1, ge=1, le=20)  # trainings in all; seeds follow the run's own
    max_queries: int = Field(20_000, ge=100)  # per protocol; more are sampled
    rolling_per_user: int = Field(10, ge=1)  # requests of one user while the history advances


class SimConfig(_Strict):
    """Size and seed of the simulated video service (dataset = "sim")."""

    num_users: int = Field(4_000, ge=2_000, le=1_000_000)
    num_videos: int = Field(4_000, ge=500, le=1_000_000)
    num_events: int = Field(400_000, ge=10_000, le=100_000_000)
    num_days: int = Field(60, ge=7, le=3_650)
    seed: int = Field(7, ge=0)


class KuaiRandConfig(_Strict):
    """Which KuaiRand (dataset = "kuairand").

    pure: only the videos of the random pool, 2.6 M events. 1k: 1,000 users with everything they
    saw, 11.8 M events. 27k: all 27,285 users, 323 M events.
    """

    variant: Literal["pure", "1k", "27k"] = "pure"


class KuaiRecConfig(_Strict):
    """Which log of KuaiRec (dataset = "kuairec").

    big: what the app recommended to 7,176 users. small: the fully observed matrix of 1,411 users
    and 3,327 videos.
    """

    matrix: Literal["big", "small"] = "big"


class Config(_Strict):
    """One run. `dataset` is a built-in one or "custom" (with `contract`)."""

    dataset: Literal["sim", "movielens-1m", "kuairand", "kuairec", "custom"]
    seed: int = 7
    split: SplitConfig = SplitConfig()
    validation: ValidationConfig = ValidationConfig()
    features: FeatureConfig = FeatureConfig()
    retriever: RetrieverConfig = RetrieverConfig()
    ranker: RankerConfig = RankerConfig()
    index: IndexConfig = IndexConfig()
    serving: ServingConfig = ServingConfig()
    page: PageConfig = PageConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    sim: SimConfig = SimConfig()
    kuairand: KuaiRandConfig = KuaiRandConfig()
    kuairec: KuaiRecConfig = KuaiRecConfig()


def load_config(
    dataset: str, file: Path | None = None, overrides: list[str] | None = None
) -> Config:
    """The built-in settings of a dataset, then those of `file`, then `section.key=value` overrides.

    Raises:
        ConfigError: an unknown dataset, key or value, or a file that is not TOML.
    """
    builtin = CONFIG_FOLDER / f"{dataset}.toml"
    values = overridden({"dataset": dataset}, builtin if builtin.exists() else None, [])
    return parse_config(overridden(values, file, overrides or []))


def changed_config(config: Config, file: Path | None, overrides: list[str] | None) -> Config:
    """`config` with the values of `file` and the overrides on top."""
    return parse_config(overridden(config.model_dump(mode="json"), file, overrides or []))


def parse_config(values: dict[str, Any]) -> Config:
    """Build a Config from plain values; ConfigError names the first bad key."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(
            f"configuration: {first_problem(error)}",
            found=repr(error.errors()[0]["input"])[:100],
            next_step="correct the option, --set or the --config file",
        ) from error
