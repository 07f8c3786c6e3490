"""Geometry of the report's plots: numbers in, coordinates out; the templates draw them as SVG.

All lengths are SVG user units. Plots are 360 wide, so that a phone shows their text at full size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

WIDTH = 360
ROW = 28


@dataclass(frozen=True)
class Axis:
    """A linear scale from values to coordinates, with its ticks at round numbers."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Coordinate of a value, to a tenth."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    @property
    def ticks(self) -> list[dict[str, Any]]:
        """Three to six round values inside the scale: {"at", "text"}."""
        step = _round_step((self.high - self.low) / 4)
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [
            {"at": self.at(n * step), "text": f"{n * step:.{digits}f}".replace("-", "−")}
            for n in range(first, last + 1)
        ]


def _round_step(rough: float) -> float:
    """The smallest of 1, 2, 5 × 10^k that is at least `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))


def axis(values: list[float], start: float, end: float) -> Axis:
    """A scale that holds all finite values, with some room at both ends."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    room = 0.06 * (high - low) or max(abs(high), 1e-3) * 0.5
    return Axis(low - room, high + room, start, end)


def forest(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Differences with intervals around a line at zero.

    Args:
        rows: {"label", "difference", "low", "high", "verdict"} each.
    """
    scale = axis([0.0, *(row[k] for row in rows for k in ("difference", "low", "high"))], 128, 348)
    bars = [
        {
            "label": row["label"], "verdict": row["verdict"], "y": ROW * place + ROW / 2,
            "mean": scale.at(row["difference"]),
            "low": scale.at(row["low"]), "high": scale.at(row["high"]),
        }
        for place, row in enumerate(rows)
    ]  # fmt: skip
    bottom = ROW * len(rows)
    return {
        "width": WIDTH, "height": bottom + 26, "bottom": bottom, "zero": scale.at(0),
        "bars": bars, "ticks": scale.ticks,
    }  # fmt: skip


def reliability(bins: list[dict[str, float]]) -> dict[str, Any]:
    """Observed over predicted rates, the diagonal being perfect calibration.

    Args:
        bins: {"predicted", "observed", "count"} each.
    """
    used = [b for b in bins if b["count"]]
    top = max([0.1, *(max(b["predicted"], b["observed"]) for b in used)])
    x, y = Axis(0, top * 1.05, 44, 340), Axis(0, top * 1.05, 290, 12)
    most = max([1.0, *(b["count"] for b in used)])
    return {
        "width": WIDTH, "height": 330, "left": x.start, "right": x.end, "top": y.end,
        "bottom": y.start, "x_ticks": x.ticks, "y_ticks": y.ticks,
        "dots": [
            {
                "x": x.at(b["predicted"]), "y": y.at(b["observed"]),
                "r": round(2.5 + 3 * math.sqrt(b["count"] / most), 1),
            }
            for b in used
        ],
    }  # fmt: skip


def waterfall(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Totals and the steps between them, left to right.

    Args:
        steps: {"label", "value", "total"} each; a total stands on zero, a step on what was
            reached before it.
    """
    reached, spans = 0.0, []
    for step in steps:
        base = 0.0 if step["total"] else reached
        reached = base + step["value"]
        spans.append((base, reached))
    edges = [edge for span in spans for edge in span]
    scale = Axis(min(0.0, *edges), max(0.0, *edges) * 1.18 or 1.0, 216, 8)
    wide = (WIDTH - 16) / len(steps)
    bars = []
    for place, (step, (base, end)) in enumerate(zip(steps, spans, strict=True)):
        top, bottom = scale.at(max(base, end)), scale.at(min(base, end))
        kind = "total" if step["total"] else "gain" if end >= base else "loss"
        bars.append({
            **step, "kind": kind, "x": round(8 + place * wide + 0.16 * wide, 1),
            "middle": round(8 + (place + 0.5) * wide, 1), "wide": round(0.68 * wide, 1),
            "y": top, "tall": max(1.5, round(bottom - top, 1)), "level": scale.at(end),
        })  # fmt: skip
    return {"width": WIDTH, "height": 262, "zero": scale.at(0), "bars": bars}
