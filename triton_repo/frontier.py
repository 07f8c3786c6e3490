"""What serving can trade: configurations, which of them nothing beats, which one a budget buys."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from workflow.config import Config
from workflow.errors import ConfigError

INDEX_KINDS = ("flat", "ivf", "ivf_fp16", "hnsw")


@dataclass(frozen=True)
class Index:
    """A kind of index and the recall against exact search that it must reach (flat: 1)."""

    kind: str
    recall: float

    def __str__(self) -> str:
        return self.kind if self.kind == "flat" else f"{self.kind}@{self.recall:g}"


DEFAULT_INDEXES = (Index("flat", 1.0), Index("ivf", 0.9), Index("ivf_fp16", 0.99))


@dataclass(frozen=True)
class Configuration:
    """One way to serve a run.

    Attributes:
        num_candidates: how many candidates are ranked.
        ranker: fp32, int8 or none, as in `serving.ranker`.
        layers: hidden layers of the ranker's top perceptron; () are the run's own.
    """

    num_candidates: int
    index: Index
    ranker: str
    layers: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Short and unique in a sweep; also the name of its folder."""
        layers = "x".join(map(str, self.layers))
        ranker = f"{self.ranker}-{layers}" if layers else self.ranker
        return f"{self.num_candidates}-{self.index}-{ranker}"

    def words(self, present: Configuration) -> list[str]:
        """Values of --set that make this configuration of a run that is served as `present`."""
        words = []
        if self.num_candidates != present.num_candidates:
            words.append(f"serving.num_candidates={self.num_candidates}")
        if self.index != present.index:
            words.append(f"index.kind={self.index.kind}")
            if self.index.kind != "flat":
                words.append(f"index.target_recall={self.index.recall:g}")
        if self.ranker != present.ranker:
            words.append(f"serving.ranker={self.ranker}")
        if self.layers != present.layers:
            words.append(f"ranker.top_layers={json.dumps(list(self.layers))}")
        return words


def present_configuration(config: Config, index_kind: str) -> Configuration:
    """How the run is served now; `index_kind` is the kind that its index stage chose."""
    recall = 1.0 if index_kind == "flat" else config.index.target_recall
    return Configuration(
        config.serving.num_candidates, Index(index_kind, recall), config.serving.ranker
    )


def parse_index(text: str) -> Index:
    """ "flat", "ivf:0.95" or "hnsw" (recall 0.99 if none is given)."""
    kind, _, recall = text.partition(":")
    try:
        wanted = float(recall) if recall else 0.99
    except ValueError:
        wanted = 0.0
    if kind not in INDEX_KINDS or not 0 < wanted <= 1 or (kind == "flat" and recall):
        raise ConfigError(f"index {text!r}", expected="flat, ivf:0.95, hnsw:0.99, …")
    return Index(kind, 1.0 if kind == "flat" else wanted)


def parse_layers(text: str) -> tuple[int, ...]:
    """ "64,32" → (64, 32)."""
    try:
        layers = tuple(int(part) for part in text.split(","))
    except ValueError:
        layers = ()
    if not layers or min(layers) < 1:
        raise ConfigError(f"ranker size {text!r}", expected="hidden layers, such as 64,32")
    return layers


def grid(
    present: Configuration,
    num_candidates: Sequence[int],
    indexes: Sequence[Index],
    rankers: Sequence[str],
    layers: Sequence[tuple[int, ...]],
) -> list[Configuration]:
    """All combinations, the present configuration first, none twice.

    Without a ranker the list does not depend on the number of candidates or the layers: only the
    smallest number is taken.
    """
    found = [present]
    for count, index, ranker, size in product(num_candidates, indexes, rankers, layers):
        if ranker == "none" and (count != min(num_candidates) or size != layers[0]):
            continue
        one = Configuration(count, index, ranker, size)
        found.append(replace(one, layers=()) if ranker == "none" else one)
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Sweep:
    """What is tried and how it is measured.

    Attributes:
        num_candidates, indexes, rankers, layers: see Configuration; empty means the defaults.
        p99_budget_ms: the latency budget to answer for.
        concurrency: requests in flight while latency and CPU are measured.
        duration_s: measured seconds of each of the three measurements.
    """

    num_candidates: Sequence[int] = ()
    indexes: Sequence[Index] = ()
    rankers: Sequence[str] = ()
    layers: Sequence[tuple[int, ...]] = ()
    p99_budget_ms: float | None = None
    concurrency: int = 4
    duration_s: float = 2.0

    def configurations(
        self, present: Configuration, num_videos: int, top_k: int
    ) -> list[Configuration]:
        """The grid around the present configuration.

        By default a quarter to twice the present candidates (at least a page, at most half the
        catalogue), the present index beside exact search, a loose IVF and one in half precision,
        and the ranker as trained, in 8 bits, and left out.
        """
        scaled = [present.num_candidates * n // 4 for n in (1, 2, 4, 8)]
        most = max(min(num_videos // 2, 2_000), present.num_candidates)
        counts = [n for n in self.num_candidates or scaled if top_k <= n <= most]
        indexes = self.indexes or (present.index, *DEFAULT_INDEXES)
        rankers = self.rankers or ("fp32", "int8", "none")
        unknown = sorted(set(rankers) - {"fp32", "int8", "none"})
        if unknown:
            raise ConfigError(f"ranker {unknown[0]!r}", expected="fp32, int8 or none")
        if not counts:
            raise ConfigError(
                "no number of candidates to try",
                expected=f"{top_k} (a page) to {most} (half the catalogue)",
                found=", ".join(map(str, self.num_candidates or scaled)),
            )
        return grid(present, counts, indexes, rankers, ((), *self.layers))


# --- points --------------------------------------------------------------------------------------
Point = dict[str, Any]
Cost = Callable[[Point], float]


def p99_ms(point: Point) -> float:
    """The 99th percentile of the latency."""
    return float(point["load"]["p99_ms"])


def cpu_s(point: Point) -> float:
    """Server CPU seconds per 1,000 requests."""
    return float(point["load"]["cpu_s_per_1000"])


def ndcg(point: Point) -> float:
    """Mean NDCG@10 of the served list."""
    return float(point["quality"]["mean"])


def pareto(points: Sequence[Point], cost: Cost) -> list[Point]:
    """The points that no other one beats in quality at the same or a lower cost; cheapest first.

    Of points with the same quality and cost the first one stays.
    """
    best: list[Point] = []
    for point in sorted(points, key=lambda one: (cost(one), -ndcg(one))):
        if not best or ndcg(point) > ndcg(best[-1]):
            best.append(point)
    return best


def worth_measuring(points: Sequence[Point], slack: float = 1.25) -> list[Point]:
    """Points that might be on the frontier, judged by the CPU that their stages take in process.

    Left out are those that another one equals or beats in quality at less than 1/`slack` of the
    CPU: overheads that all share cannot turn that round.
    """
    return [
        one
        for one in points
        if not any(
            ndcg(other) >= ndcg(one) and other["stages_cpu_ms"] * slack < one["stages_cpu_ms"]
            for other in points
        )
    ]


def within_budget(points: Sequence[Point], budget_ms: float) -> Point | None:
    """The best quality with a p99 within the budget (the faster one of two as good), if any."""
    inside = [point for point in points if p99_ms(point) <= budget_ms]
    return max(inside, key=lambda one: (ndcg(one), -p99_ms(one)), default=None)
