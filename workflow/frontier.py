"""Carries out a frontier: makes each configuration, judges its lists, measures the promising ones.

Every configuration is a run folder of its own under `frontier/`, made by the same stages as the
run itself from links to its data and models. What is current is not done again.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from models.evaluation import bootstrap
from models.metrics import Float64
from triton_repo.bench import bench, machine
from triton_repo.frontier import (
    Configuration,
    Point,
    Sweep,
    cpu_s,
    ndcg,
    p99_ms,
    pareto,
    present_configuration,
    within_budget,
    worth_measuring,
)
from triton_repo.frontier_page import write_page
from triton_repo.frontier_quality import Judge
from workflow.config import changed_config
from workflow.console import Output, Report
from workflow.job import Job, locked_folder
from workflow.pipeline import link_stages, run_stages
from workflow.run import Run, read_json, write_bytes, write_json
from workflow.staging import check_held_out

MEASURE_ALL = 12  # configurations; of more, only those that might be on the frontier are measured
BEFORE_RANKER = ("validate", "features", "train_retriever")
ROUNDS = 3  # measurements of each, whose median counts


@dataclass
class Frontier:
    """One sweep of one run."""

    job: Job
    sweep: Sweep
    output: Output
    force: bool = False
    per_user: dict[str, Float64] = field(default_factory=dict)

    def carry_out(self) -> dict[str, Any]:
        """Make, judge and measure; writes frontier.json and frontier.html.

        Returns:
            The content of frontier.json.
        """
        run, config = self.job.run, self.job.config
        run.require(run.repository, "model repository", "marquee export")
        check_held_out(run)
        index = read_json(run.index / "report.json")
        present = present_configuration(config, index["kind"])
        tried = self.sweep.configurations(
            present, index["num_videos"], config.serving.default_top_k
        )
        with locked_folder(run.frontier, "--run"):
            self._train(tried)
            with self.output.stage(f"Judge {len(tried)} configurations") as report:
                points = self._judge(tried, present, report)
            chosen = points if len(points) <= MEASURE_ALL else worth_measuring(points)
            chosen = [points[0], *(point for point in chosen if point is not points[0])]
            with self.output.stage(f"Measure {len(chosen)} of them") as report:
                self._measure(chosen, report)
            result = self._result(points, index["num_videos"])
            write_json(run.frontier / "frontier.json", result)
            write_page(result, run.frontier / "frontier.html")
        return result

    # --- making ----------------------------------------------------------------------------------
    def _train(self, tried: Sequence[Configuration]) -> None:
        """Rankers of other sizes, once each."""
        for layers in dict.fromkeys(one.layers for one in tried if one.layers):
            run_stages(self._ranked(layers), self.output, ("train_ranker",))

    def _ranked(self, layers: tuple[int, ...]) -> Job:
        """Whose ranker has these layers: ours, or one trained for the sweep."""
        if not layers:
            return self.job
        folder = Path("rankers") / "x".join(map(str, layers))
        return self._part(folder, [f"ranker.top_layers={list(layers)}"], *BEFORE_RANKER)

    def _make(self, one: Configuration, present: Configuration) -> Job:
        """The configuration as a run of its own, exported."""
        quiet = Output(as_json=True)
        quiet.words.quiet = True
        words = one.words(present)
        index = [word for word in words if word.startswith(("index.", "serving.num_candidates"))]
        indexed = self.job
        if index:
            folder = Path("indexes") / f"{one.num_candidates}-{one.index}"
            indexed = self._part(folder, index, *BEFORE_RANKER)
            run_stages(indexed, quiet, ("index",))
        job = self._part(Path("points") / one.name, words, *BEFORE_RANKER)
        link_stages(job, indexed, "index")
        link_stages(job, self._ranked(one.layers), "train_ranker")
        run_stages(job, quiet, ("export",))
        return job

    def _part(self, folder: Path, words: list[str], *linked: str) -> Job:
        """A run below the frontier's folder with other settings and links to our results."""
        run = Run(self.job.run.frontier / folder)
        job = Job(run, changed_config(self.job.config, None, words))
        job.loaded["contract"] = self.job.contract
        link_stages(job, self.job, *linked)
        return job

    # --- quality ---------------------------------------------------------------------------------
    def _judge(
        self, tried: Sequence[Configuration], present: Configuration, report: Report
    ) -> list[Point]:
        points = []
        judge: Judge | None = None
        for done, one in enumerate(tried):
            report(done, len(tried), one.name)
            made = self._make(one, present)
            known = self._known(made.run, "quality")
            if known is None:
                judge = judge or Judge(self.job.run, self.job.config, self.job.contract)
                values, cpu_ms = judge.judge(made.run)
                known = {"stages_cpu_ms": round(cpu_ms, 4), **bootstrap.interval(values)}
                _save_values(made.run, values)
                self._remember(made.run, "quality", known)
            self.per_user[one.name] = _load_values(made.run)
            points.append(self._point(one, present, made, known))
        return points

    def _point(
        self, one: Configuration, present: Configuration, made: Job, known: dict[str, Any]
    ) -> Point:
        index = read_json(made.run.index / "report.json")
        quality = {name: known[name] for name in ("mean", "low", "high")}
        return {
            "name": one.name,
            "present": one == present,
            "words": one.words(present),
            "num_candidates": one.num_candidates,
            "index": {name: index[name] for name in ("kind", "effort", "recall_vs_exact")},
            "ranker": one.ranker,
            "layers": list(one.layers),
            "quality": quality,
            "difference": bootstrap.paired_interval(
                self.per_user[one.name], self.per_user[present.name]
            ),
            "stages_cpu_ms": known["stages_cpu_ms"],
            "load": None,
        }

    # --- latency and CPU -------------------------------------------------------------------------
    def _measure(self, points: Sequence[Point], report: Report) -> None:
        """Rounds in which every configuration has its turn, so that what else the machine does
        meets all of them; what an interrupted call has measured counts.
        """
        names = [point["name"] for point in points]
        rounds = {name: self._measured(name) for name in names}
        for turn in range(ROUNDS):
            for place, name in enumerate(names):
                done, total = turn * len(names) + place, ROUNDS * len(names)
                report(done, total, f"round {turn + 1} of {ROUNDS}: {name}")
                if len(rounds[name]) <= turn:
                    rounds[name].append(self._load(self._point_run(name)))
                    load = {**self._how(), "rounds": rounds[name]}
                    self._remember(self._point_run(name), "load", load)
        for point in points:
            measured = rounds[point["name"]]
            point["load"] = {key: median(one[key] for one in measured) for key in measured[0]}

    def _how(self) -> dict[str, float]:
        return {"concurrency": self.sweep.concurrency, "duration_s": self.sweep.duration_s}

    def _measured(self, name: str) -> list[dict[str, float]]:
        """Rounds that were measured in the same way before."""
        known = self._known(self._point_run(name), "load") or {}
        same = all(known.get(key) == value for key, value in self._how().items())
        rounds: list[dict[str, float]] = known["rounds"] if same and not self.force else []
        return rounds

    def _load(self, run: Run) -> dict[str, float]:
        """One measurement of a configuration under a real server."""
        measured = bench(
            run, concurrencies=(self.sweep.concurrency,), duration_s=self.sweep.duration_s
        )
        [one] = measured["results"]
        return {
            **{name: one[name] for name in ("p50_ms", "p99_ms", "requests_per_s")},
            "cpu_s_per_1000": one["server_cpu_ms_per_request"],
        }

    def _point_run(self, name: str) -> Run:
        return Run(self.job.run.frontier / "points" / name)

    # --- what is known ---------------------------------------------------------------------------
    def _known(self, run: Run, what: str) -> dict[str, Any] | None:
        """What was found out about this very export, if it was."""
        file = run.root / f"{what}.json"
        found = read_json(file) if file.exists() else {}
        same = found.get("export") == _export_key(run)
        return {k: v for k, v in found.items() if k != "export"} if same else None

    def _remember(self, run: Run, what: str, found: dict[str, Any]) -> None:
        write_json(run.root / f"{what}.json", {"export": _export_key(run), **found})

    # --- the result ------------------------------------------------------------------------------
    def _result(self, points: list[Point], num_videos: int) -> dict[str, Any]:
        measured = [point for point in points if point["load"]]
        by_latency, by_cpu = pareto(measured, p99_ms), pareto(measured, cpu_s)
        for point in points:
            point["best_for_latency"] = point in by_latency
            point["best_for_cpu"] = point in by_cpu
        budget = self.sweep.p99_budget_ms
        bought = None if budget is None else within_budget(measured, budget)
        return {
            "dataset": self.job.config.dataset,
            "num_videos": num_videos,
            "users": len(self.per_user[points[0]["name"]]),
            "concurrency": self.sweep.concurrency,
            "points": points,
            "budget": None
            if budget is None
            else {
                "p99_ms": budget,
                "configuration": bought["name"] if bought else None,
                "as_good_for_less": self._as_good_for_less(measured, bought, budget),
                "fastest_ms": min(map(p99_ms, measured)),
            },
            "machine": machine(),
        }

    def _as_good_for_less(
        self, measured: Sequence[Point], bought: Point | None, budget_ms: float
    ) -> str | None:
        """The cheapest configuration in the budget whose loss of quality cannot be told from 0."""
        if bought is None:
            return None
        ours = self.per_user[bought["name"]]
        good = [
            one
            for one in measured
            if p99_ms(one) <= budget_ms
            and cpu_s(one) < cpu_s(bought)
            and bootstrap.paired_interval(self.per_user[one["name"]], ours)["high"] >= 0
        ]
        cheapest = min(good, key=lambda one: (cpu_s(one), -ndcg(one)), default=None)
        return cheapest["name"] if cheapest else None


def _export_key(run: Run) -> str:
    return str((run.recorded("export") or {}).get("key"))


def _save_values(run: Run, values: Float64) -> None:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    write_bytes(run.root / "ndcg.npy", buffer.getvalue())


def _load_values(run: Run) -> Float64:
    values: Float64 = np.load(run.root / "ndcg.npy", allow_pickle=False)
    return values
