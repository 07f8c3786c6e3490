"""`marquee compare`: two evaluated runs of the same data and split, side by side, tested in pairs.

Per metric the test is a paired bootstrap over the users that both runs have: each user's values
are averaged over a run's seeds first, so that what is compared is the expected run of each kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.evaluation import names, views
from models.evaluation.bootstrap import interval, paired_interval
from models.evaluation.ranker_metrics import Events, Predictions, ranker_values
from models.evaluation.report import json_link, render
from models.metrics import Float64, Int64
from workflow.errors import ConfigError, MissingArtifactError
from workflow.job import Job
from workflow.run import Run, read_json, write_bytes

Json = dict[str, Any]
FORMAT = 2
OWN_MODELS = (
    "two_tower",
    "dlrm",
    "served",
)  # what a run trained itself; baselines are not compared
COVERAGE = "coverage@10"  # of all users' lists together: it has no value for a part of the users
# What tells apart data and splits of the same contract, in spec.json and summary.json.
SIZES = ("num_users", "num_videos", "valid_from", "test_from", "last_event")
COUNTS = ("num_train", "num_valid", "num_test")


@dataclass(frozen=True)
class Evaluated:
    """What `marquee evaluate` left in a run: its metrics.json, and values per user."""

    run: Run
    result: Json
    per_user: dict[str, Float64]

    @classmethod
    def load(cls, run: Run) -> Evaluated:
        """Raises MissingArtifactError: the run was not evaluated, or by another version."""
        path = run.require(run.evaluation / "metrics.json", "evaluation", "marquee evaluate")
        values = run.require(run.evaluation / "per_user.npz", "values per user", "marquee evaluate")
        result = read_json(path)
        if result.get("format") != FORMAT:
            raise MissingArtifactError(
                f"the evaluation of run {run} is of another version",
                expected=f"format {FORMAT}",
                found=f"format {result.get('format')}",
                next_step=f"marquee evaluate --run {run}",
            )
        with np.load(values, allow_pickle=False) as arrays:
            return cls(run, result, _with_ranker({name: arrays[name] for name in arrays.files}))

    def users(self, group: str) -> Int64:
        """Rows of the users that a protocol was evaluated on; int64 [users]."""
        return self.per_user[f"{group}/user_row"].astype(np.int64)

    def values(self, group: str, model: str, metric: str) -> Float64 | None:
        """Mean over seeds of each user's value; float64 [users], None where there is none."""
        values = self.per_user.get(f"{group}/{model}/{metric}")
        return None if values is None else np.atleast_2d(values).astype(np.float64).mean(axis=0)


def _with_ranker(arrays: dict[str, Any]) -> dict[str, Any]:
    """Predictions per event become values per user, like all others."""
    predicted, label = arrays.get("ranker/dlrm/p"), arrays.get("ranker/label")
    if predicted is None or label is None:
        return arrays
    user = arrays["ranker/user_row"]
    events = Events(user, label, np.full(len(label), np.nan, np.float32))
    by_seed = [ranker_values(events, Predictions(p)) for p in np.atleast_2d(predicted)]
    values = {f"ranker/dlrm/{m}": np.stack([one[m] for one in by_seed]) for m in by_seed[0]}
    kept = {name: value for name, value in arrays.items() if not name.startswith("ranker/")}
    return {**kept, **values, "ranker/user_row": np.unique(user)}


def compare_runs(first: Job, second: Job) -> Json:
    """Both runs' metrics and the paired differences, second minus first.

    Returns:
        {"runs": [first, second], "dataset", "seeds": [first, second], "groups": {group: {"users",
        "metrics": {metric: {"first", "second": {"mean", "low", "high"}, "difference", "low",
        "high", "verdict"}}}}}.
        The verdict is "better", "worse" or "none" of the second run, or null where neither more
        nor less is better.
    Raises:
        MissingArtifactError: a run was not evaluated.
        ConfigError: the runs are of different data or splits, or share no user.
    """
    _check_same_data(first, second)
    a, b = Evaluated.load(first.run), Evaluated.load(second.run)
    groups = {name: _compare(a, b, name) for name in _groups(a, b)}
    if not groups:
        raise ConfigError(
            f"runs {first.run} and {second.run} have no protocol in common",
            next_step="evaluate both with the same command",
        )
    return {
        "runs": _titles(first.run, second.run),
        "dataset": a.result["dataset"],
        "seeds": [a.result["seeds"], b.result["seeds"]],
        "groups": groups,
    }


def _titles(first: Run, second: Run) -> list[str]:
    """Folder names where they tell the runs apart: a page may leave this machine."""
    short = [run.root.name for run in (first, second)]
    return short if short[0] != short[1] else [str(first), str(second)]


def _check_same_data(first: Job, second: Job) -> None:
    """Same contract, split settings, split points and ids in the same rows."""
    if first.contract != second.contract:
        _refuse(first, second, "contracts", first.contract.name, second.contract.name)
    if first.config.split != second.config.split:
        splits = [str(job.config.split) for job in (first, second)]
        _refuse(first, second, "split settings", *splits)
    sizes = [_sizes(job.run) for job in (first, second)]
    for name in (*SIZES, *COUNTS):
        if sizes[0][name] != sizes[1][name]:
            _refuse(first, second, "data", *(f"{name} {values[name]:,}" for values in sizes))
    for table in ("users/user_id", "videos/video_id"):
        ids = [np.load(job.run.features / f"{table}.npy", mmap_mode="r") for job in (first, second)]
        if not np.array_equal(*ids):
            _refuse(first, second, table.partition("/")[0], f"ids of {first.run}", "other ids")


def _sizes(run: Run) -> Json:
    path = run.require(run.features / "spec.json", "features", "marquee features")
    sizes: Json = {**read_json(path), **read_json(run.features / "summary.json")}
    return sizes


def _refuse(first: Job, second: Job, what: str, a: str, b: str) -> None:
    raise ConfigError(
        f"runs {first.run} and {second.run} cannot be compared: they have different {what}",
        expected="two runs of the same data and split",
        found=f"{a} and {b}",
        next_step="make both with the same --dataset, --source, --contract and split settings",
    )


def _groups(a: Evaluated, b: Evaluated) -> list[str]:
    """Protocols, "ranker" and "end_to_end", where both runs have values."""
    present = [
        {name.partition("/")[0] for name in run.per_user if name.endswith("/user_row")}
        for run in (a, b)
    ]
    return [
        group
        for group in names.in_order(
            present[0] & present[1], [*names.PROTOCOLS, "ranker", "end_to_end"]
        )
        if _metrics(a, group).keys() & _metrics(b, group).keys()
    ]


def _metrics(run: Evaluated, group: str) -> dict[str, str]:
    """metric -> model, of the run's own model in a group."""
    found = {}
    for name in run.per_user:
        owner, _, rest = name.partition("/")
        model, _, metric = rest.partition("/")
        if owner == group and model in OWN_MODELS:
            found[metric] = model
    return found


def _compare(a: Evaluated, b: Evaluated, group: str) -> Json:
    common, rows_a, rows_b = np.intersect1d(a.users(group), b.users(group), return_indices=True)
    if not len(common):
        raise ConfigError(
            f"runs {a.run} and {b.run} have no {group} user in common",
            next_step="evaluate two runs of the same data",
        )
    models = _metrics(a, group)
    shown = models.keys() & _metrics(b, group).keys()
    if not len(common) == len(a.users(group)) == len(b.users(group)):
        shown -= {COVERAGE}
    metrics = {}
    for name in names.in_order(shown, names.METRICS):
        ours, theirs = (run.values(group, models[name], name) for run in (a, b))
        assert ours is not None and theirs is not None
        metrics[name] = _tested(name, ours[rows_a], theirs[rows_b])
    return {"users": len(common), "metrics": metrics}


def _tested(name: str, first: Float64, second: Float64) -> Json:
    difference = paired_interval(second, first)
    verdict = names.verdict(name, difference["low"], difference["high"])
    return {
        "first": interval(first),
        "second": interval(second),
        **difference,
        "verdict": verdict if names.metric(name).better else None,
    }


def write_comparison(comparison: Json, path: Path) -> Path:
    """The comparison as one HTML page; returns `path`."""
    write_bytes(path, render_comparison(comparison).encode())
    return path


def render_comparison(comparison: Json) -> str:
    """The page as text."""
    groups = [views.comparison(name, part) for name, part in comparison["groups"].items()]
    return render(
        "compare.html.jinja",
        comparison=comparison,
        headline=headline(comparison),
        lines=summary(comparison),
        groups=groups,
        json_link=json_link(comparison),
    )


def headline(comparison: Json) -> str:
    """In how many metrics the second run is better and worse."""
    verdicts = [
        values["verdict"]
        for part in comparison["groups"].values()
        for values in part["metrics"].values()
        if values["verdict"] is not None
    ]
    better, worse = verdicts.count("better"), verdicts.count("worse")
    if not better and not worse:
        return f"No difference is shown in any of {len(verdicts)} metrics."
    return (
        f"Of {len(verdicts)} metrics, the second run is better in {better or 'none'} "
        f"and worse in {worse or 'none'}."
    )


def summary(comparison: Json) -> list[str]:
    """One line per group on the metrics in which the second run is better or worse."""
    lines = []
    for name, part in comparison["groups"].items():
        words = []
        for kind in ("better", "worse"):
            found = [m for m, values in part["metrics"].items() if values["verdict"] == kind]
            if found:
                words.append(f"{kind} in {names.listed([names.metric(m).title for m in found])}")
        lines.append(f"{names.protocol(name)}: {', '.join(words) or 'no difference shown'}.")
    return lines
