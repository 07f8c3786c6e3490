"""Time and memory against rows: simulate, validate and transform logs larger than memory.

    PYTHONPATH=. .venv/bin/python tests/bench/scale.py FOLDER --rows 1000000 10000000

FOLDER must not exist yet. Each size gets a run folder below it, which is removed afterwards unless
--keep is given: a user for every 100 events, 100,000 videos, 60 days. Each stage is a process.
Printed are its processor seconds, in all and per million rows, and the most that all its processes
held resident at once, sampled five times a second: all pages, and anonymous ones, since mapped
files count among all while they are read. On the log of --train rows the retriever is trained too:
one epoch streamed from disk, one objective, without the final training.

Exit status 1 when more than 8 GB are resident in a stage, or when the largest log is transformed at
less than 80% of the rows a processor second of the one before.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MOST_RESIDENT_MB, LEAST_RATIO = 8_000, 0.8
VIDEOS, EVENTS_PER_USER = 100_000, 100
SIMULATE = """
from pathlib import Path; import sys
from workflow.config import load_config
from workflow.data.sources import prepare_source
from workflow.run import Run
config = load_config("sim", None, sys.argv[2:])
Path(sys.argv[1]).mkdir(parents=True)
prepare_source(Run(Path(sys.argv[1])), config, source=None, contract_file=None)
"""
TRAIN = ("retriever.max_epochs=1", 'retriever.objectives=["next"]', "retriever.refit=false")
CLI = "import sys; from workflow.cli import main; sys.exit(main())"


def settings(rows: int) -> list[str]:
    users = max(2_000, rows // EVENTS_PER_USER)
    return [f"sim.num_events={rows}", f"sim.num_users={users}", f"sim.num_videos={VIDEOS}"]


def resident_mb(group: int) -> tuple[float, float]:
    """(all pages, anonymous ones) of the processes of a group, MB."""
    total = anonymous = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            if os.getpgid(int(status.parent.name)) != group:
                continue
            sizes = dict(re.findall(r"^(\w+):\s+(\d+) kB", status.read_text(), re.M))
        except (OSError, ValueError):  # it ended meanwhile
            continue
        total += int(sizes.get("VmRSS", 0))
        anonymous += int(sizes.get("RssAnon", 0))
    return total / 1000, anonymous / 1000


def measured(name: str, rows: int, arguments: list[str]) -> dict[str, Any]:
    """Run a process; its seconds and memory."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started, most, most_anonymous = time.perf_counter(), 0.0, 0.0
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(
            [sys.executable, *arguments], env=environment, cwd=ROOT, process_group=0,
            stdout=log, stderr=log,
        )  # fmt: skip
        while True:
            pid, status, usage = os.wait4(child.pid, os.WNOHANG)
            if pid:
                break
            resident, anonymous = resident_mb(child.pid)
            most, most_anonymous = max(most, resident), max(most_anonymous, anonymous)
            time.sleep(0.2)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            log.seek(0)
            sys.exit(f"{log.read().decode()}\n{name} ended with status {child.returncode}")
    cpu, wall = usage.ru_utime + usage.ru_stime, time.perf_counter() - started
    most = max(most, usage.ru_maxrss / 1000)
    print(
        f"{rows:>11,} rows  {name:9} {cpu:8.1f} s of processor ({cpu / rows * 1e6:6.2f} a "
        f"million), {wall:7.1f} s, {most:6.0f} MB resident, {most_anonymous:6.0f} MB anonymous",
        flush=True,
    )  # fmt: skip
    return {"cpu": cpu, "resident_mb": most}


def size(run: Path, rows: int, *, train: bool) -> dict[str, dict[str, Any]]:
    """Every stage at one size."""
    at, options = str(run), [part for one in settings(rows) for part in ("--set", one)]
    result = {"simulate": measured("simulate", rows, ["-c", SIMULATE, at, *settings(rows)])}
    verb = ["-c", CLI, "validate", "--dataset", "sim", "--run", at, *options]
    result["validate"] = measured("validate", rows, verb)
    result["features"] = measured("features", rows, ["-c", CLI, "features", "--run", at])
    if train:
        options = [part for one in TRAIN for part in ("--set", one)]
        verb = ["-c", CLI, "train", "--model", "retriever", "--run", at, *options]
        result["train"] = measured("train", rows, verb)
    used = {name: disk_gb(run / name) for name in ("source", "data", "features")}
    print("on disk, GB:", ", ".join(f"{name} {gb:.2f}" for name, gb in used.items()), flush=True)
    return result


def disk_gb(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--train", type=int, default=0)
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    results: dict[int, dict[str, dict[str, Any]]] = {}
    try:
        for rows in sorted(options.rows):
            run = (options.folder / f"rows-{rows}").absolute()
            results[rows] = size(run, rows, train=rows == options.train)
            if not options.keep:
                shutil.rmtree(run)
    finally:
        if not options.keep:
            shutil.rmtree(options.folder)
    return judged(results)


def rate(rows: int, stages: dict[str, dict[str, Any]]) -> float:
    """Rows simulated and transformed a processor second."""
    return rows / sum(stages[name]["cpu"] for name in ("simulate", "validate", "features"))


def judged(results: dict[int, dict[str, dict[str, Any]]]) -> int:
    most = max(stage["resident_mb"] for stages in results.values() for stage in stages.values())
    print(f"most resident: {most:.0f} MB (bar {MOST_RESIDENT_MB})")
    met = most <= MOST_RESIDENT_MB
    if len(results) > 1:
        before, last = sorted(results)[-2:]
        ratio = rate(last, results[last]) / rate(before, results[before])
        print(f"rows a processor second, {last:,} over {before:,}: {ratio:.2f} (bar {LEAST_RATIO})")
        met &= ratio >= LEAST_RATIO
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
