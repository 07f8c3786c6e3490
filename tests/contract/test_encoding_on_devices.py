"""What a GPU encodes by NVTabular a CPU encodes by the compiled workflow: the same files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import workflow.environment  # noqa: F401

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.fixtures import make_config, make_contract, make_tables, write_run
from workflow.features import tables
from workflow.features.build import build_features
from workflow.run import Run

CONTRACT = make_contract(propensity=True)


def made(folder: Path, *, by_nvtabular: bool, num_partitions: int) -> Run:
    """Features of a log with nulls, unknown values and empty lists."""
    data = make_tables(num_users=30, num_videos=20, num_events=700, seed=5)
    data.events.loc[::7, ["device", "slot"]] = None
    late = data.events["timestamp"] > np.quantile(data.events["timestamp"], 0.93)
    data.events.loc[late & (data.events["device"] == "tv"), "device"] = "watch"  # test part only
    data.videos.at[3, "genres"] = []
    data.videos.loc[4, ["language", "duration", "publish_time"]] = None
    run = write_run(folder, CONTRACT, replace(data), num_partitions=num_partitions)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "on_gpu", lambda: by_nvtabular)
        build_features(run, make_config(), CONTRACT)
    return run


@pytest.mark.parametrize("num_partitions", [1, 3])
def test_same_files(tmp_path: Path, num_partitions: int) -> None:
    cpu, gpu = (
        made(tmp_path / str(way), by_nvtabular=way, num_partitions=num_partitions).features
        for way in (False, True)
    )
    names = sorted(path.relative_to(cpu) for path in cpu.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(gpu) for path in gpu.rglob("*") if path.is_file())
    assert {name.suffix for name in names} == {".json", ".npy", ".parquet"}
    for name in names:
        if name.suffix == ".parquet":
            ours, theirs = pq.read_table(cpu / name), pq.read_table(gpu / name)
            assert ours.schema.equals(theirs.schema), name
            assert ours.equals(theirs), name  # no value here is NaN
        else:
            assert (cpu / name).read_bytes() == (gpu / name).read_bytes(), name
    test = pq.read_table(next(iter((cpu / "test").glob("*"))), columns=["device", "slot"])
    assert {1, 2} < set(test["device"].to_pylist()) and 1 in test["slot"].to_pylist()
