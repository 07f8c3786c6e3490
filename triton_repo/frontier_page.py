"""The page of `marquee frontier`: two plots, what a budget buys, and every configuration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.evaluation.figures import Axis, axis
from models.evaluation.report import json_link, render
from triton_repo.frontier import Cost, Point, cpu_s, ndcg, p99_ms
from workflow.run import write_bytes

WIDTH, HEIGHT = 560, 380
LEFT, RIGHT, TOP, BOTTOM = 52, 546, 14, 332
LABEL_WIDTH, LABEL_HEIGHT = 6.3, 14  # of one letter, of one line
RANKERS = {
    "fp32": "ranker as trained",
    "int8": "ranker in 8 bits",
    "none": "order of retrieval",
    "other": "ranker of another size",
}
SHAPES = {"flat": "circle", "ivf": "square", "ivf_fp16": "diamond", "hnsw": "triangle"}
KINDS = {
    "flat": "exact search", "ivf": "IVF", "ivf_fp16": "IVF in half precision", "hnsw": "HNSW",
}  # fmt: skip


def write_page(result: dict[str, Any], path: Path) -> Path:
    """Write the page of a frontier's result (the content of frontier.json); returns `path`."""
    write_bytes(path, render_page(result).encode())
    return path


def render_page(result: dict[str, Any]) -> str:
    """The page as text; it needs no other file and no network."""
    points = result["points"]
    measured = [point for point in points if point["load"]]
    budget = result["budget"]
    return render(
        "frontier.html.jinja",
        result=result,
        headline=headline(result),
        lines=lines(result),
        latency=plot(measured, p99_ms, "best_for_latency", budget),
        cpu=plot(measured, cpu_s, "best_for_cpu", budget, line=False),
        rows=sorted(points, key=lambda one: -ndcg(one)),
        title=title,
        kinds=[(SHAPES[k], KINDS[k]) for k in KINDS if k in {p["index"]["kind"] for p in measured}],
        rankers=[(k, RANKERS[k]) for k in RANKERS if k in {colour(p) for p in measured}],
        not_measured=len(points) - len(measured),
        json_link=json_link(result),
    )


# --- words ---------------------------------------------------------------------------------------
def named(result: dict[str, Any], name: str | None) -> Point | None:
    """The point with that name."""
    return next((point for point in result["points"] if point["name"] == name), None)


def title(point: Point) -> str:
    """A configuration in words: "100 candidates, exact search, ranker as trained"."""
    index = KINDS[point["index"]["kind"]]
    if point["index"]["kind"] != "flat":
        index += f" (recall {point['index']['recall_vs_exact']:.2f})"
    ranker = RANKERS[point["ranker"]]
    if point["layers"]:
        ranker += " with layers " + "-".join(map(str, point["layers"]))
    return f"{point['num_candidates']} candidates, {index}, {ranker}"


def numbers(point: Point) -> str:
    """Quality and costs of a measured configuration."""
    return (
        f"NDCG@10 {ndcg(point):.4f}, p99 {p99_ms(point):.1f} ms, "
        f"{cpu_s(point):.2f} CPU seconds per 1,000 requests"
    )


def headline(result: dict[str, Any]) -> str:
    """What the budget buys, or without one what the best is."""
    budget = result["budget"]
    if budget is None:
        best = max((p for p in result["points"] if p["load"]), key=ndcg)
        return f"The best lists: {title(best)}."
    bought = named(result, budget["configuration"])
    if bought is None:
        return (
            f"Nothing stays within a p99 of {budget['p99_ms']:g} ms; "
            f"the fastest has {budget['fastest_ms']:.1f} ms."
        )
    return f"A p99 of {budget['p99_ms']:g} ms buys: {title(bought)}."


def lines(result: dict[str, Any]) -> list[str]:
    """Sentences below the headline."""
    present = result["points"][0]
    found = [f"Present: {title(present)}: {numbers(present)}."]
    budget = result["budget"] or {}
    bought = named(result, budget.get("configuration"))
    if bought is not None and not bought["present"]:
        change = bought["difference"]
        found.append(
            f"Bought: {numbers(bought)}; NDCG@10 against the present {change['difference']:+.4f} "
            f"({change['low']:+.4f} to {change['high']:+.4f})."
        )
    cheaper = named(result, budget.get("as_good_for_less"))
    if bought is not None and cheaper is not None:
        share = cpu_s(cheaper) / cpu_s(bought)
        found.append(
            f"Not measurably worse with {share:.0%} of its CPU: {title(cheaper)}: "
            f"{numbers(cheaper)}."
        )
    return found


def colour(point: Point) -> str:
    """Which of RANKERS a point counts as."""
    return "other" if point["layers"] else str(point["ranker"])


# --- geometry ------------------------------------------------------------------------------------
def plot(
    points: Sequence[Point],
    cost: Cost,
    best: str,
    budget: dict[str, Any] | None,
    line: bool = True,
) -> dict[str, Any]:
    """Quality over one cost, as coordinates.

    Args:
        best: the key that says whether a point is on this plot's frontier.
        budget: the result's budget; its line is drawn if `line`.
    """
    limit = budget["p99_ms"] if budget and line else None
    costs = [cost(point) for point in points]
    shown = limit is not None and min(costs) / 3 <= limit <= 3 * max(costs)
    x = Ratios.of([*costs, limit] if limit is not None and shown else costs)
    y = axis([value for p in points for value in _heights(p, best)], BOTTOM, TOP)
    dots = [_dot(point, cost, best, x, y) for point in points]
    chosen = budget["configuration"] if budget else None
    on_frontier = sorted((dot for dot in dots if dot["best"]), key=lambda dot: dot["x"])
    for dot in dots:
        dot["bought"] = dot["name"] == chosen
    return {
        "width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP,
        "bottom": BOTTOM, "x_ticks": x.ticks, "y_ticks": y.ticks,
        "dots": sorted(dots, key=lambda dot: (dot["best"], dot["present"])),
        "steps": _steps(on_frontier), "labels": _labels(on_frontier, dots),
        "limit": x.at(limit) if limit is not None and shown else None,
        "limit_text": f"budget {limit:g} ms" if limit is not None else "",
    }  # fmt: skip


@dataclass(frozen=True)
class Ratios:
    """A logarithmic scale of costs: equal distances are equal ratios."""

    low: float
    high: float

    @classmethod
    def of(cls, costs: Sequence[float]) -> Ratios:
        """A scale that holds all costs, with some room at both ends."""
        low, high = math.log(min(costs)), math.log(max(costs))
        room = max(0.06 * (high - low), 0.05)
        return cls(math.exp(low - room), math.exp(high + room))

    def at(self, cost: float) -> float:
        """Coordinate of a cost, to a tenth."""
        share = math.log(cost / self.low) / math.log(self.high / self.low)
        return round(LEFT + share * (RIGHT - LEFT), 1)

    @property
    def ticks(self) -> list[dict[str, Any]]:
        """Round costs: the finest of some steps that makes at most ten."""
        steps = (
            range(10, 100), range(10, 100, 2), range(10, 100, 5), (10, 15, 20, 30, 50, 70),
            (10, 20, 50), (10,),
        )  # fmt: skip
        found = next(v for step in steps if len(v := self._round(step)) <= 10 or step == (10,))
        return [{"at": self.at(value), "text": f"{value:g}"} for value in found]

    def _round(self, digits: Sequence[int]) -> list[float]:
        first, last = math.floor(math.log10(self.low)), math.floor(math.log10(self.high))
        values = [round(d * 10.0 ** (n - 1), 9) for n in range(first, last + 1) for d in digits]
        return [value for value in values if self.low <= value <= self.high]


def _heights(point: Point, best: str) -> tuple[float, ...]:
    """The heights that a point takes: with its interval if that is drawn."""
    return ndcg(point), *(_interval(point) if point[best] else ())


def _interval(point: Point) -> tuple[float, float]:
    """The difference to the present configuration, drawn around the point."""
    change = point["difference"]
    here = ndcg(point) - change["difference"]
    return here + change["low"], here + change["high"]


def _dot(point: Point, cost: Cost, best: str, x: Ratios, y: Axis) -> dict[str, Any]:
    low, high = _interval(point)
    return {
        "name": point["name"], "present": point["present"], "best": point[best],
        "x": x.at(cost(point)), "y": y.at(ndcg(point)),
        "low": y.at(low) if point[best] and low < high else None, "high": y.at(high),
        "colour": colour(point), "shape": SHAPES[point["index"]["kind"]],
        "text": f"{title(point)}: {numbers(point)}", "label": _label(point),
    }  # fmt: skip


def _label(point: Point) -> str:
    kind = point["index"]["kind"].replace("_", " ")
    index = "" if kind == "flat" else f" {kind}"
    size = " " + "-".join(map(str, point["layers"])) if point["layers"] else ""
    ranker = {"fp32": "", "int8": " int8", "none": " no ranker"}[point["ranker"]]
    return f"{point['num_candidates']}{index}{ranker}{size}"


def _steps(dots: Sequence[dict[str, Any]]) -> str:
    """The frontier as a path: what a cost buys holds until the next point."""
    path = ""
    for dot in dots:
        path += f"M{dot['x']} {dot['y']}" if not path else f"H{dot['x']}V{dot['y']}"
    return f"{path}H{RIGHT}" if path else ""


def _labels(
    wanted: Sequence[dict[str, Any]], dots: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """A place for each label where it covers neither a dot nor another label, if there is one."""
    taken = [(dot["x"] - 6, dot["y"] - 6, dot["x"] + 6, dot["y"] + 6) for dot in dots]
    found = []
    marked = [dot for dot in dots if (dot["present"] or dot["bought"]) and not dot["best"]]
    for dot in [*wanted, *marked]:
        width = LABEL_WIDTH * len(dot["label"])
        places = [
            (dot["x"] + dx, dot["y"] + dy)
            for dy in (-9, 18, 32, -23, 46, -37, 60)
            for dx in (9, -9 - width)
            if dot["x"] + dx >= LEFT and dot["x"] + dx + width <= RIGHT
            and TOP + LABEL_HEIGHT <= dot["y"] + dy <= BOTTOM
        ]  # fmt: skip
        boxes = [(x, y - LABEL_HEIGHT + 3, x + width, y + 3) for x, y in places]
        free = [n for n, box in enumerate(boxes) if not any(_overlap(box, one) for one in taken)]
        if free:
            taken.append(boxes[free[0]])
            x, y = places[free[0]]
            found.append({"x": round(x, 1), "y": round(y, 1), "text": dot["label"], "of": dot})
    return found


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
