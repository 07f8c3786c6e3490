"""The report of `marquee evaluate`: one HTML page that needs nothing else, from metrics.json."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import jinja2

from models.evaluation import names, off_policy_view, views
from workflow.run import write_bytes

TEMPLATES = Path(__file__).parent / "templates"


def write_report(result: dict[str, Any], path: Path) -> Path:
    """Write the page of an evaluation's result (the content of metrics.json); returns `path`."""
    write_bytes(path, render_report(result).encode())
    return path


def render_report(result: dict[str, Any]) -> str:
    """The page as text; the same result gives the same bytes."""
    retrieval = [
        views.retrieval(name, result["retrieval"][name])
        for name in names.in_order(result["retrieval"], names.PROTOCOLS)
    ]
    ranker = views.ranker(result["ranker"]) if result.get("ranker") else None
    end_to_end = views.end_to_end(result["end_to_end"]) if result.get("end_to_end") else None
    off_policy = off_policy_view.view(result["off_policy"]) if result.get("off_policy") else None
    parts = [ranker, end_to_end]
    shown = {
        name for part in (*retrieval, *filter(None, parts)) for name in part["table"]["metrics"]
    }
    return render(
        "report.html.jinja",
        result=result,
        headline=_headline(result, [*retrieval[:1], *filter(None, parts)]),
        cards=_cards(result),
        retrieval=retrieval,
        ranker=ranker,
        end_to_end=end_to_end,
        off_policy=off_policy,
        segments_used=_segments(result),
        metrics_used=names.in_order(shown, names.METRICS),
        json_link=json_link(result),
    )


def _headline(result: dict[str, Any], parts: list[dict[str, Any]]) -> list[str]:
    """The verdict of the headline protocol, then of the ranker and the served list."""
    return [part["sentence"] for part in parts] or [
        f"Nothing was evaluated on {result['dataset']}."
    ]


def _cards(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The numbers that people ask for first."""
    cards: list[tuple[str, str, dict[str, Any]]] = []
    for name in names.in_order(result["retrieval"], names.PROTOCOLS):
        own = result["retrieval"][name]["models"].get("two_tower", {})
        for metric in ("recall@100", "ndcg@10") if not cards else ("recall@100",):
            cards.append(
                (f"{names.metric(metric).title}, {names.protocol(name).lower()}", metric, own)
            )
    dlrm = ((result.get("ranker") or {}).get("models") or {}).get("dlrm", {})
    cards += [(names.metric(metric).title, metric, dlrm) for metric in ("auc", "ece")]
    served = ((result.get("end_to_end") or {}).get("metrics") or {}).get("served", {})
    cards.append(("Served NDCG@10", "ndcg@10", served))
    return [
        {"title": title, "metric": metric, "value": values[metric]}
        for title, metric, values in cards
        if values.get(metric)
    ]


def _segments(result: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, meaning) of the segments that any model has."""
    present = {
        name
        for part in result["retrieval"].values()
        for model in part["models"].values()
        for name in model.get("segments", {})
    }
    return [names.SEGMENTS[name] for name in names.SEGMENTS if name in present]


def json_link(value: Any) -> str:
    """A data: address that holds `value` as JSON."""
    text = json.dumps(value, indent=1, sort_keys=True)
    return "data:application/json;base64," + base64.b64encode(text.encode()).decode()


def render(template: str, **values: Any) -> str:
    """Fill a template of this package; everything is escaped, unknown names are errors."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["exact"] = json.dumps
    environment.globals |= {
        "shown": names.shown,
        "metric": names.metric,
        "model": names.model,
        "segment": names.segment,
    }
    return environment.get_template(template).render(**values)
