"""NVTabular workflows built from the contract: one per table, saved with the run.

"ids" encodes users and videos by how often they occur; "users" and "videos" encode their static
features; "events" encodes the request context and the point-in-time numbers. All use built-in
operators only, so a saved workflow needs no code of ours.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from workflow.config import FeatureConfig
from workflow.schema import Column, Contract

if TYPE_CHECKING:
    import nvtabular as nvt
    import pandas as pd

WorkflowName = Literal["ids", "users", "videos", "events"]
TIME_CONTEXT = ("hour", "weekday")


def state_columns(contract: Contract) -> dict[str, tuple[str, ...]]:
    """Derived point-in-time numbers by feature group; rates exist only where there are labels."""
    rate = contract.has_label
    return {
        "user_state": ("user_event_count",) + (("user_label_rate",) if rate else ()),
        "video_state": ("video_event_count",) + (("video_label_rate",) if rate else ()),
        "cross": ("video_age_days",) if contract.has_publish_time else (),
    }


def build_feature_workflow(
    contract: Contract, config: FeatureConfig, name: WorkflowName, out_path: Path
) -> nvt.Workflow:
    """The unfitted NVTabular workflow of one table.

    Args:
        out_path: folder for the vocabulary files that Categorify writes while fitting.
    """
    import nvtabular as nvt

    if name == "ids":
        nodes = _ids(config, out_path)
    elif name == "events":
        nodes = _events(contract, out_path)
    else:
        role = "user_feature" if name == "users" else "video_feature"
        nodes = [_column(column, out_path) for column in contract.features(role)]
    return nvt.Workflow(_sum(nodes)) if nodes else nvt.Workflow(["row"])


def _ids(config: FeatureConfig, out_path: Path) -> list[Any]:
    from nvtabular import ops

    thresholds = (("user_row", config.min_user_events), ("video_row", config.min_video_events))
    return [
        [name] >> ops.Categorify(freq_threshold=minimum, out_path=str(out_path / name))
        for name, minimum in thresholds
    ]


def _events(contract: Contract, out_path: Path) -> list[Any]:
    from nvtabular import ops

    context = [column.name for column in contract.features("context")] + list(TIME_CONTEXT)
    state = [name for names in state_columns(contract).values() for name in names]
    counted = [name for name in state if not name.endswith("_rate")]
    rates = [name for name in state if name.endswith("_rate")]
    nodes: list[Any] = [context >> ops.Categorify(out_path=str(out_path))]
    nodes.append(
        counted >> ops.FillMissing(0) >> ops.LogOp() >> ops.Normalize(out_dtype=np.float32)
    )
    if rates:
        nodes.append(rates >> ops.Normalize(out_dtype=np.float32))
    return nodes


def _column(column: Column, out_path: Path) -> Any:
    from nvtabular import ops

    if column.kind != "continuous":
        return [column.name] >> ops.Categorify(out_path=str(out_path))
    filled = [column.name] >> ops.FillMedian()
    logged = filled >> ops.LogOp() if column.log else filled
    return logged >> ops.Normalize(out_dtype=np.float32)


def _sum(nodes: list[Any]) -> Any:
    total = nodes[0]
    for node in nodes[1:]:
        total = total + node
    return total


def fit(workflow: nvt.Workflow, data: pd.DataFrame | list[Path]) -> nvt.Workflow:
    """Fit on a frame or, out of core, on Parquet files (one Dask partition per row group)."""
    return workflow.fit(_dataset(data))


def transform(workflow: nvt.Workflow, data: pd.DataFrame | list[Path]) -> list[pd.DataFrame]:
    """Transformed partitions, computed one at a time by the caller's iteration order."""
    frame = workflow.transform(_dataset(data)).to_ddf()
    return [_to_pandas(part.compute(scheduler="synchronous")) for part in frame.partitions]


def _to_pandas(frame: Any) -> pd.DataFrame:
    """cuDF frames come back to the host; pandas frames stay as they are."""
    result: pd.DataFrame = frame.to_pandas() if hasattr(frame, "to_pandas") else frame
    return result


def _dataset(data: pd.DataFrame | list[Path]) -> Any:
    import nvtabular as nvt

    if isinstance(data, list):
        return nvt.Dataset([str(path) for path in data], engine="parquet")
    return nvt.Dataset(data)
