"""What the report's templates show, from the plain numbers of metrics.json."""

from __future__ import annotations

import math
from typing import Any

from models.evaluation import figures, names

Json = dict[str, Any]
HEADLINE_METRICS = ("recall@100", "ndcg@10")
USER_SEGMENTS = ("new", "light", "heavy")


def retrieval(name: str, part: Json) -> Json:
    """One protocol: its table, paired differences, segments and single seeds."""
    title, meaning = names.PROTOCOLS.get(name, (names.protocol(name), ""))
    return {
        "name": name,
        "anchor": name.replace("_", "-"),
        "title": title,
        "meaning": meaning,
        "users": part["users"],
        "skipped": {names.model(k): v for k, v in (part.get("skipped") or {}).items()},
        "settings": {names.model(k): v for k, v in (part.get("settings") or {}).items()},
        "sentence": compared(
            "the two-tower retriever", part.get("paired", {}), "recall@100", f"{title.lower()} "
        ),
        "table": model_table(part, "two_tower"),
        "forests": forests(part.get("paired", {}), HEADLINE_METRICS),
        "paired": paired_table(part.get("paired", {})),
        "segments": segments(part["models"]),
        "per_seed": per_seed(part),
    }


def compared(subject: str, paired: Json, metric: str, where: str = "") -> str:
    """The verdict over all baselines in one metric (of one protocol)."""
    verdicts = {
        names.model(other): verdict_of(paired[other][metric], metric)
        for other in names.in_order(paired, names.MODELS)
        if paired[other].get(metric)
    }
    return names.sentence(f"On {where}{names.metric(metric).title}, {subject}", verdicts)


def verdict_of(difference: Json, metric: str) -> names.Verdict:
    """What the interval of a difference in `metric` says."""
    return names.verdict(metric, difference["low"], difference["high"])


def metric_names(models: Json) -> list[str]:
    """Metrics that any model has, in the order of names.METRICS."""
    present = {name for values in models.values() for name in values if name != "segments"}
    return names.in_order(present, names.METRICS)


def model_table(part: Json, own: str) -> Json:
    """Models down, metrics across: values, the best of each column, verdicts from `paired`."""
    models, paired = part["models"], part.get("paired") or {}
    shown = metric_names(models)
    best = {name: _best(models, name) for name in shown}
    return {
        "metrics": shown,
        "rows": [
            {
                "title": names.model(model),
                "own": model == own,
                "cells": [
                    {
                        "metric": name,
                        "value": models[model].get(name),
                        "best": model in best[name],
                        "verdict": _verdict(paired.get(model, {}).get(name), name),
                    }
                    for name in shown
                ],
            }
            for model in names.in_order(models, [own, *names.MODELS])
        ],
    }


def _verdict(difference: Json | None, metric: str) -> str:
    return verdict_of(difference, metric) if difference else "none"


def _best(models: Json, metric: str) -> set[str]:
    """The models with the best value; none where neither more nor less is better."""
    sign = names.metric(metric).better
    values = {m: v[metric]["mean"] * sign for m, v in models.items() if v.get(metric)}
    finite = [value for value in values.values() if math.isfinite(value)]
    if sign == 0 or len(finite) < 2:
        return set()
    return {model for model, value in values.items() if value == max(finite)}


def forests(paired: Json, metrics: tuple[str, ...]) -> list[Json]:
    """One forest plot per metric that has differences."""
    plots = []
    for name in metrics:
        rows = [
            {"label": names.model(other), "verdict": verdict_of(paired[other][name], name)}
            | paired[other][name]
            for other in names.in_order(paired, names.MODELS)
            if paired[other].get(name)
        ]
        if rows:
            plots.append({"title": _forest_title(name), "geometry": figures.forest(rows)})
    return plots


def _forest_title(metric: str) -> str:
    less = ", less is better" if names.metric(metric).better < 0 else ""
    return names.metric(metric).title + less


def paired_table(paired: Json) -> Json:
    """Baselines down, metrics across: differences with intervals."""
    shown = metric_names(paired)
    return {
        "metrics": shown,
        "rows": [
            {
                "title": names.model(other),
                "cells": [
                    {
                        "metric": name,
                        "value": paired[other].get(name),
                        "verdict": _verdict(paired[other].get(name), name),
                    }
                    for name in shown
                ],
            }
            for other in names.in_order(paired, names.MODELS)
        ],
    }


def segments(models: Json) -> list[Json]:
    """By kind of user and by kind of video: the first headline metric of every model."""
    present = {name for model in models.values() for name in model.get("segments", {})}
    users = [name for name in names.in_order(present, names.SEGMENTS) if name in USER_SEGMENTS]
    videos = [name for name in names.in_order(present, names.SEGMENTS) if name not in users]
    tables = []
    for title, chosen in (("By kind of user", users), ("By kind of video", videos)):
        metric = _segment_metric(models, chosen)
        if metric:
            tables.append(_segment_table(models, title, chosen, metric))
    return tables


def _segment_metric(models: Json, chosen: list[str]) -> str | None:
    has = {
        name
        for model in models.values()
        for segment in chosen
        for name in model.get("segments", {}).get(segment, {})
    }
    return next((name for name in (*HEADLINE_METRICS, *names.METRICS) if name in has), None)


def _segment_table(models: Json, title: str, chosen: list[str], metric: str) -> Json:
    shown = [m for m in names.in_order(models, names.MODELS) if models[m].get("segments")]
    rows, counted = [], "users"
    for name in chosen:
        found = [models[model]["segments"].get(name, {}) for model in shown]
        some = next(values for values in found if values)
        counted = "users" if "users" in some else "events"
        values = [entry.get(metric) for entry in found]
        finite = [v for v in values if v is not None and math.isfinite(v)]
        top = max(finite, default=None)
        cells = [{"value": v, "best": len(finite) > 1 and v == top} for v in values]
        rows.append({"name": name, "count": some[counted], "cells": cells})
    return {
        "title": title,
        "caption": names.metric(metric).title,
        "metric": metric,
        "models": shown,
        "counted": counted.capitalize(),
        "rows": rows,
    }


def per_seed(part: Json) -> list[Json]:
    """One row per model and seed, for models that depend on the seed."""
    models, rows = part["models"], []
    shown = metric_names(models)
    for model in names.in_order(models, names.MODELS):
        values = {name: (models[model].get(name) or {}).get("per_seed", []) for name in shown}
        for seed in range(max((len(v) for v in values.values()), default=0)):
            cells = [
                {"metric": name, "number": values[name][seed] if seed < len(values[name]) else None}
                for name in shown
            ]
            rows.append({"title": names.model(model), "seed": seed + 1, "cells": cells})
    return rows


def ranker(part: Json) -> Json:
    """The ranker's table, differences and reliability plots."""
    curves = part.get("reliability") or {}
    return {
        "events": part["events"],
        "sentence": compared("the ranker", part.get("paired", {}), "auc"),
        "table": model_table(part, "dlrm"),
        "forests": forests(part.get("paired", {}), ("auc", "per_user_auc", "log_loss")),
        "reliability": [
            {"title": names.model(name), "geometry": figures.reliability(curves[name])}
            for name in names.in_order(curves, names.MODELS)
        ],
    }


def end_to_end(part: Json) -> Json:
    """What each stage adds to the served list, or takes from it."""
    parts = [
        ("recall_ceiling", "recall@100", "Recall ceiling", False,
         "share of the relevant videos that is among the candidates: no ranker can exceed it"),
        ("ranker_lift", "ndcg@10", "Ranker's lift, NDCG@10", True,
         "the served order minus the retriever's own order of the same candidates"),
        ("approximate_loss", "recall@100", "Loss from approximate search, recall", True,
         "recall of the candidates by exact search minus by the served index"),
    ]  # fmt: skip
    return {
        "users": part["users"],
        "num_candidates": part["num_candidates"],
        "sentence": compared("the served list", part.get("paired") or {}, "ndcg@10"),
        "table": model_table(
            {"models": part["metrics"], "paired": part.get("paired")}, "served"
        ),
        "parts": [
            {
                "title": title, "metric": metric, "signed": signed, "meaning": meaning,
                "value": part[name],
            }
            for name, metric, title, signed, meaning in parts
        ],
        "waterfalls": _waterfalls(part),
    }  # fmt: skip


def _waterfalls(part: Json) -> list[Json]:
    """Where relevant videos get lost, and what the ranker adds."""
    plots = [{"title": "NDCG@10: what the ranker adds", "geometry": _ndcg_waterfall(part)}]
    if "recall@10" in part["metrics"]["served"]:  # not with fewer candidates
        title = "Recall: what is lost on the way to the first 10"
        plots.insert(0, {"title": title, "geometry": _recall_waterfall(part)})
    return plots


def _recall_waterfall(part: Json) -> Json:
    """Exact candidates → − approximate search → ceiling → − below the first 10 → served."""
    ceiling, loss = part["recall_ceiling"]["mean"], part["approximate_loss"]["mean"]
    served = part["metrics"]["served"]["recall@10"]["mean"]
    return _waterfall(
        [
            (["Exact", "candidates"], ceiling + loss, True),
            (["Approximate", "search"], -loss, False),
            (["Recall", "ceiling"], ceiling, True),
            (["Below the", "first 10"], served - ceiling, False),
            (["Served", "first 10"], served, True),
        ]
    )


def _ndcg_waterfall(part: Json) -> Json:
    """The retriever's order → + ranker's lift → served."""
    first, last = (part["metrics"][name]["ndcg@10"]["mean"] for name in ("retriever", "served"))
    lift = part["ranker_lift"]["mean"]
    return _waterfall(
        [
            (["Retriever's", "order"], first, True),
            (["Ranker"], lift, False),
            (["Served"], last, True),
        ]
    )


def _waterfall(steps: list[tuple[list[str], float, bool]]) -> Json:
    return figures.waterfall(
        [
            {
                "label": label,
                "value": value,
                "total": total,
                "text": names.decimals(value, 4, signed=not total),
            }
            for label, value, total in steps
        ]
    )


def comparison(name: str, part: Json) -> Json:
    """One protocol of two runs: rows of metrics, and a forest plot of those in [0, 1]."""
    title, meaning = names.PROTOCOLS.get(name, (names.protocol(name), ""))
    rows = [
        {"name": metric, "words": names.VERDICTS.get(values["verdict"], "")} | values
        for metric, values in part["metrics"].items()
    ]
    shares = [
        {"label": names.metric(row["name"]).title, **row, "verdict": row["verdict"] or "none"}
        for row in rows
        if names.metric(row["name"]).better > 0
    ]
    return {
        "anchor": name.replace("_", "-"),
        "title": title,
        "meaning": meaning,
        "users": part["users"],
        "rows": rows,
        "forest": figures.forest(shares) if shares else None,
    }
