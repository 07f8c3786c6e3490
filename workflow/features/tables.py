"""NVTabular workflows built from the contract: one per table, saved with the run.

"ids" encodes users and videos by how often they occur; "users" and "videos" encode their static
features; "events" encodes the request context and the point-in-time numbers. All use built-in
operators only, so a saved workflow needs no code of ours.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from workflow.config import FeatureConfig
from workflow.cudf_compat import mend_cudf
from workflow.errors import DataError
from workflow.features.daily import RECENT_DAYS
from workflow.frames import read_frame
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
        "video_state": ("video_event_count", *RECENT_DAYS)
        + (("video_label_rate",) if rate else ()),
        "cross": ("video_age_days",) if contract.has_publish_time else (),
    }


def event_columns(contract: Contract) -> tuple[list[str], list[str], list[str]]:
    """(context, counts and ages, rates) that the events workflow encodes, in this order."""
    context = [column.name for column in contract.features("context")] + list(TIME_CONTEXT)
    state = [name for names in state_columns(contract).values() for name in names]
    rates = [name for name in state if name.endswith("_rate")]
    return context, [name for name in state if name not in rates], rates


def on_gpu() -> bool:
    """Whether NVTabular computes with cuDF in this process."""
    from merlin.core.compat import HAS_GPU, cudf

    return bool(HAS_GPU and cudf)


def build_feature_workflow(
    contract: Contract, config: FeatureConfig, name: WorkflowName, out_path: Path
) -> nvt.Workflow:
    """The unfitted NVTabular workflow of one table.

    Args:
        out_path: folder for the vocabulary files that Categorify writes while fitting.
    """
    mend_cudf()
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

    context, counted, rates = event_columns(contract)
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
    """Fit on a frame or, out of core, on Parquet files (on a CPU, one Dask partition per file).

    Raises:
        DataError: a column has no value at all.
    """
    workflow.executor.transform = _without_sample(workflow)
    _construct_schema(workflow, data)
    dataset = _dataset(data, workflow._input_columns())
    try:
        workflow.fit(dataset)
    except FileNotFoundError:  # Categorify looks for the vocabulary of a column without values
        _finish_fit(workflow)
        raise
    finally:
        del workflow.executor.transform
    _finish_fit(workflow)
    return workflow


def _finish_fit(workflow: nvt.Workflow) -> None:
    """Refuse columns without any value; round medians to float32.

    A median that float32 cannot hold would turn partitions with nulls into float64.
    """
    from merlin.dag import postorder_iter_nodes

    for node in postorder_iter_nodes(workflow.output_node):
        for name, path in getattr(node.op, "categories", {}).items():
            _check_fitted(name, Path(path).exists())
        medians = getattr(node.op, "medians", {})
        for name, median in medians.items():
            _check_fitted(name, not np.isnan(median))
            medians[name] = float(np.float32(median))


def _without_sample(workflow: nvt.Workflow) -> Any:
    """The executor's `transform` without the sample that Workflow.fit asks for at its end.

    The sample, of the whole workflow, is there to learn output dtypes, which all our operators
    know; it fails where a column is null throughout the first partition. What fitting transforms
    for an operator in the middle are that operator's parents: their values are needed, or
    Normalize would take the mean of values that are not logged yet.
    """
    transform = workflow.executor.transform

    def transform_parents(frame: Any, nodes: Any, *more: Any, **named: Any) -> Any:
        if nodes is workflow.output_node:
            return frame._meta  # an empty frame: nothing is read
        return transform(frame, nodes, *more, **named)

    return transform_parents


def _check_fitted(name: str, has_value: bool) -> None:
    if not has_value:
        raise DataError(
            f"column {name} has no value",
            expected="at least one value that is not null",
            next_step=f'give {name} the role "ignore" in the contract',
        )


def transform(workflow: nvt.Workflow, data: pd.DataFrame | list[Path]) -> list[pd.DataFrame]:
    """The transformed frame, or the transformed partitions of Parquet files, one at a time."""
    from merlin.core.compat import HAS_GPU, cudf
    from merlin.core.dispatch import convert_data

    if not workflow.graph.output_schema:  # restored
        _construct_schema(workflow, data)
    columns = workflow._input_columns()
    if not isinstance(data, list):
        return [_transformed(workflow, convert_data(data[columns], cpu=not (HAS_GPU and cudf)))]
    partitions = _dataset(data, columns).to_ddf().partitions
    return [_transformed(workflow, part.compute(scheduler="synchronous")) for part in partitions]


def _transformed(workflow: nvt.Workflow, frame: Any) -> pd.DataFrame:
    from merlin.dag.executors import LocalExecutor

    encoded = LocalExecutor().transform(
        _with_values(frame), workflow.output_node, workflow.output_dtypes
    )
    return _to_pandas(encoded[:-1])


def _with_values(frame: Any) -> Any:
    """One more row without nulls: Categorify fails on a partition whose column has no value."""
    from merlin.core.dispatch import concat

    last = frame[-1:].copy()
    for name in [name for name in last.columns if last[name].isna().any()]:
        last[name] = last[name].fillna("" if last[name].dtype.kind == "O" else 0)
    return concat([frame, last], ignore_index=True)


def _to_pandas(frame: Any) -> pd.DataFrame:
    """cuDF frames come back to the host; pandas frames stay as they are."""
    result: pd.DataFrame = frame.to_pandas() if hasattr(frame, "to_pandas") else frame
    return result


def _construct_schema(workflow: nvt.Workflow, data: pd.DataFrame | list[Path]) -> None:
    """From column names alone: our operators need no dtypes."""
    import pyarrow.parquet as pq

    names = pq.read_schema(data[0]).names if isinstance(data, list) else list(data.columns)
    workflow.graph.construct_schema(_schema(names))


def _schema(names: list[str]) -> Any:
    from merlin.schema import ColumnSchema, Schema

    return Schema([ColumnSchema(name) for name in names])


def _dataset(data: pd.DataFrame | list[Path], columns: list[str]) -> Any:
    """What NVTabular reads `columns` from.

    On a CPU a file is read by a task of its own, once for all operators that are fitted together.
    Given paths, every operator would read it again, and Dataset a row group to learn its size.
    """
    mend_cudf()
    import nvtabular as nvt

    if not isinstance(data, list):
        return nvt.Dataset(data[columns])
    if on_gpu():
        dataset = nvt.Dataset([str(path) for path in data], engine="parquet")
        dataset.to_ddf = partial(dataset.to_ddf, columns=columns)
        return dataset
    import dask
    import dask.dataframe as dd
    import pyarrow.parquet as pq

    empty = pq.read_schema(data[0]).empty_table().select(columns).to_pandas()
    frames = [dask.delayed(read_frame)(path, columns) for path in data]
    frame = dd.from_delayed(frames, meta=empty, verify_meta=False)
    return nvt.Dataset(frame, cpu=True, schema=_schema(columns))
