"""Bar of `marquee refresh`: seconds for 1,000 new and 1,000 withdrawn videos of 100,000.

    .venv/bin/python tests/bench/refresh.py [RUN [ROUNDS]]

RUN is made as tests/bench/serving_100k.py makes it, unless it is there; it is not changed: a copy
of links is. New videos have the contents of random old ones under new ids. Each round is the whole
command, from its start to its end, on the bundle of the round before; then come rounds that only
withdraw. CPU seconds are told too: what else the machine does does not change them. Exit status 1
when a bar is missed.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.bench.serving_100k import MARQUEE, make
from triton_repo.catalogue import Catalogue
from workflow.run import Run

CHANGED = 1_000
BAR_S, BAR_RECALL = 30.0, 0.99


def write_files(run: Run, source: Any, folder: Path, seed: int) -> tuple[Path, Path]:
    """(new videos, withdrawn ids) that fit what the bundle has now."""
    random = np.random.default_rng(seed)
    catalogue = Catalogue.of(run)
    left = catalogue.ids[~catalogue.is_withdrawn]
    gone = random.permutation(left)[:CHANGED]
    drawn = np.unique(random.integers(left.min(), left.max(), 50 * CHANGED))
    ids = random.permutation(np.setdiff1d(drawn, catalogue.ids))[:CHANGED]
    rows = random.permutation(source.num_rows)[:CHANGED]
    place = source.column_names.index("video_id")
    new = source.take(pa.array(rows)).set_column(place, "video_id", pa.array(ids))
    pq.write_table(new, folder / "new.parquet")
    (folder / "gone.txt").write_text("\n".join(map(str, gone)) + "\n")
    return folder / "new.parquet", folder / "gone.txt"


def timed(run: Run, *words: Any) -> dict[str, Any]:
    """One command: wall and CPU seconds of its whole process, and what it said of the index."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [MARQUEE, "refresh", "--run", str(run), "--json", *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    wall_s, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    result = json.loads(done.stdout)
    index = result["index"]
    return {
        "wall_s": round(wall_s, 2), "cpu_s": round(cpu_s, 2), "added": result["added"],
        "withdrawn": result["withdrawn"], "num_videos": result["num_videos"],
        **{name: index[name] for name in ("kind", "effort", "recall_vs_exact")},
    }  # fmt: skip


def main(folder: str, num_rounds: int = 5) -> int:
    make(folder)
    source = pq.read_table(Path(folder) / "source" / "videos.parquet")
    rounds: dict[str, list[dict[str, Any]]] = {"both": [], "withdrawn only": []}
    with tempfile.TemporaryDirectory(dir=Path(folder).parent) as temporary:
        shutil.copytree(folder, Path(temporary) / "run", copy_function=os.link)
        run = Run(Path(temporary) / "run")
        # The first call may have an export to make again, if the code has changed since.
        subprocess.run([MARQUEE, "index", "--run", str(run), "--json"], check=True)
        subprocess.run([MARQUEE, "export", "--run", str(run), "--json"], check=True)
        for seed in range(2 * num_rounds):
            new, gone = write_files(run, source, Path(temporary), seed)
            name = "both" if seed < num_rounds else "withdrawn only"
            words = ("--withdrawn", gone, *(("--videos", new) if name == "both" else ()))
            rounds[name].append(timed(run, *words))
            print(name, rounds[name][-1], flush=True)
    missed = False
    for name, made in rounds.items():
        for key, bar in (("wall_s", BAR_S), ("cpu_s", None)):
            values = sorted(one[key] for one in made)
            middle = round(statistics.median(values), 2)
            is_over = bar is not None and middle > bar
            missed |= is_over
            word = "FAIL" if is_over else "PASS" if bar else "    "
            limit = f"; at most {bar}" if bar else ""
            print(f"{word} {name}, {key}: {middle} ({values[0]} to {values[-1]}{limit})")
        recall = min(one["recall_vs_exact"] for one in made)
        missed |= recall < BAR_RECALL
        word = "FAIL" if recall < BAR_RECALL else "PASS"
        print(f"{word} {name}, least recall: {recall} (at least {BAR_RECALL})")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2] or ["runs/sim-100k"], *map(int, sys.argv[2:3])))
