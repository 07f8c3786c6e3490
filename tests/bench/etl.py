"""The features stage against the same features written directly in pandas, in alternation.

    PYTHONPATH=. .venv/bin/python tests/bench/etl.py RUN [--rounds N]

RUN is a run folder of the simulated service with validated data. Both sides read the same files and
write the same tables (tests/bench/pandas_features.py); that they are equal is checked first.
Printed per round are processor and wall seconds, then where the stage's time goes: by step, and by
the package whose code ran. NVTabular's own overhead is the processor time of all its calls, their
files read included, less that of the same encoding in pandas, over that of the stage.

Exit status 1 when the median ratio of processor times (pandas to ours) is below 1 or the overhead
is above 30%.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import workflow.environment  # noqa: F401

import numpy as np
import numpy.typing as npt
import nvtabular  # noqa: F401  (its import is not part of a round)
import pandas as pd

from tests.bench.pandas_features import NUMBERS, SAMPLE, Seconds, pandas_features
from workflow.features import tables
from workflow.features.build import build_features
from workflow.job import Job
from workflow.run import Run

BAR, MOST_OVERHEAD = 1.0, 0.30


def stage(job: Job, folder: Path) -> Seconds:
    """One run of our stage; processor seconds by step, and of all calls of NVTabular."""
    run = Run(folder)
    folder.mkdir()
    run.data.symlink_to(job.run.data.resolve())
    took: Seconds = {}
    last = [time.process_time(), ""]

    def report(done: float, total: float, note: str) -> None:
        now = time.process_time()
        if last[1]:
            took[str(last[1])] = now - float(last[0])
        last[:] = [now, note]

    with (
        patch.object(tables, "fit", _timed(took, tables.fit)),
        patch.object(tables, "transform", _timed(took, tables.transform)),
    ):
        build_features(run, job.config, job.contract, report)
    report(1, 1, "")
    return took


def _timed(took: Seconds, function: Callable[..., Any]) -> Callable[..., Any]:
    def timed(*arguments: Any) -> Any:
        started = time.process_time()
        try:
            return function(*arguments)
        finally:
            took["NVTabular"] = took.get("NVTabular", 0.0) + time.process_time() - started

    return timed


def check_equal(ours: Path, theirs: Path) -> None:
    """Both sides made the same; indices of equally frequent values may differ."""
    for part in ("train", "valid", "test"):
        a, b = (
            pd.concat([pd.read_parquet(path) for path in sorted((side / part).glob("*"))])
            for side in (ours, theirs)
        )
        for name in [*SAMPLE, "hour", "weekday", "device", *NUMBERS, "propensity", "log_watch"]:
            np.testing.assert_allclose(a[name], b[name], rtol=2e-4, atol=2e-4, err_msg=name)
    for path in sorted(ours.rglob("*.npy")):
        name = path.relative_to(ours)
        if name.parts[0] in ("history", "users", "videos") and not name.stem.endswith("_index"):
            a, b = (np.load(side / name, allow_pickle=False) for side in (ours, theirs))
            if a.dtype == np.int32 and name.parts[0] != "history":
                a = _renamed(a, b)
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4, err_msg=str(name))


def _renamed(ours: npt.NDArray[Any], theirs: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Our indices as theirs, if one name replaces another throughout; else as they are."""
    pairs = np.unique(np.stack([ours.ravel(), theirs.ravel()]), axis=1)
    if len(np.unique(pairs[0])) < pairs.shape[1] or len(np.unique(pairs[1])) < pairs.shape[1]:
        return ours
    return pairs[1][np.searchsorted(pairs[0], ours)]


def round_of(job: Job, folder: Path) -> dict[str, Any]:
    """Both sides once; seconds of each."""
    result: dict[str, Any] = {}
    sides: dict[str, Callable[[Path], Seconds]] = {
        "marquee": lambda to: stage(job, to),
        "pandas": lambda to: pandas_features(job.run.data, to, job.config),
    }
    for name, work in sides.items():
        cpu, wall = time.process_time(), time.perf_counter()
        steps = work(folder / name)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        result[name] = {"cpu": cpu, "wall": wall, "steps": steps}
        print(f"{name:8} {cpu:6.2f} s of processor, {wall:6.2f} s", flush=True)
    return result


def by_package(profile: cProfile.Profile) -> Counter[str]:
    """Self time by package; what built-in functions take is their callers'."""
    total: Counter[str] = Counter()
    functions: Any = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    for (file, _, _), (_, _, own, _, callers) in functions.items():
        if file != "~" or not callers:
            total[_package(file)] += own
            continue
        for (caller, _, _), (_, _, share, _) in callers.items():
            total[_package(caller)] += share
    return total


def _package(file: str) -> str:
    found = re.search(r"site-packages/(\w+)", file)
    if found:
        return {"merlin": "nvtabular"}.get(found[1], found[1])
    return "marquee" if "/workflow/" in file else "python"


def overhead(rounds: list[dict[str, Any]]) -> float:
    shares = [
        (r["marquee"]["steps"]["NVTabular"] - r["pandas"]["steps"]["encode"]) / r["marquee"]["cpu"]
        for r in rounds
    ]
    return statistics.median(shares)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    job = Job.load(Run(options.run))
    rounds = []
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            rounds.append(round_of(job, Path(folder)))
            if number == 0:
                check_equal(Path(folder) / "marquee" / "features", Path(folder) / "pandas")
    for side in ("marquee", "pandas"):
        steps = ", ".join(f"{n} {s:.2f}" for n, s in rounds[-1][side]["steps"].items())
        print(f"{side}, processor seconds by step: {steps}")
    profile = cProfile.Profile(time.process_time)
    with tempfile.TemporaryDirectory() as folder:
        profile.runcall(stage, job, Path(folder) / "marquee")
    packages = by_package(profile)
    whole = sum(packages.values())
    top = ", ".join(f"{n} {s / whole:.0%}" for n, s in packages.most_common(6))
    print(f"self time by package: {top}")
    for clock in ("cpu", "wall"):
        ratios = sorted(r["pandas"][clock] / r["marquee"][clock] for r in rounds)
        print(f"pandas / marquee, {clock}: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")
    ratio = statistics.median(r["pandas"]["cpu"] / r["marquee"]["cpu"] for r in rounds)
    share = overhead(rounds)
    print(f"median ratio {ratio:.2f} (bar {BAR}); NVTabular's overhead {share:.0%} (bar 30%)")
    return 0 if ratio >= BAR and share <= MOST_OVERHEAD else 1


if __name__ == "__main__":
    sys.exit(main())
