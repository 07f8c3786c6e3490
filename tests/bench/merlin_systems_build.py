"""Build and export Merlin Systems' multi-stage ensemble; runs in the environment that has it.

    ENVIRONMENT/bin/python merlin_systems_build.py FOLDER

FOLDER holds what merlin_systems_carry.py wrote; the Triton repository is made in
FOLDER/repository. The graph is that of Merlin's example "Deploying a multi-stage RecSys with
Merlin Systems", operator by operator. The only change to what `Ensemble.export` writes: the
embedded Triton has no TensorFlow backend, so each SavedModel is served by a Python model.
"""

from __future__ import annotations

import json
import os
import re
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("DASK_DATAFRAME__QUERY_PLANNING", "False")
os.environ.setdefault("DASK_DATAFRAME__CONVERT_STRING", "False")  # or lists become text

import numpy as np
import nvtabular as nvt
import pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.types import Array, Float32, Int32
from merlin.dag import postorder_iter_nodes
from merlin.schema import ColumnSchema, Schema
from merlin.systems.dag.ensemble import Ensemble
from merlin.systems.dag.ops.faiss import QueryFaiss, setup_faiss
from merlin.systems.dag.ops.feast import QueryFeast
from merlin.systems.dag.ops.softmax_sampling import SoftmaxSampling
from merlin.systems.dag.ops.tensorflow import PredictTensorflow
from merlin.systems.dag.ops.unroll_features import UnrollFeatures
from merlin.systems.dag.ops.workflow import TransformWorkflow
from nvtabular import ops

TEMPERATURE = 0.00000001  # as in the example
STORE = """project: marquee
registry: data/registry.db
provider: local
online_store:
  type: sqlite
  path: data/online_store.db
entity_key_serialization_version: 2
"""
SAVED_MODEL = '''"""Serves the SavedModel beside it; Triton's TensorFlow backend does the same."""

import json
from pathlib import Path

import numpy as np
import tensorflow as tf
import triton_python_backend_utils as pb_utils

tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)


class TritonPythonModel:
    def initialize(self, args):
        folder = Path(args["model_repository"]) / args["model_version"] / "model.savedmodel"
        self.model = tf.saved_model.load(str(folder))
        self.function = self.model.signatures["serving_default"]
        self.names = [one["name"] for one in json.loads(args["model_config"])["output"]]

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        given = {one.name(): tf.constant(one.as_numpy()) for one in request.inputs()}
        found = self.function(**given)
        tensors = [pb_utils.Tensor(name, np.asarray(found[name])) for name in self.names]
        return pb_utils.InferenceResponse(tensors)
'''


class Builder:
    """The steps share the folder, its facts and the feature store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts = json.loads((folder / "facts.json").read_text())
        self.frames = {name: pd.read_parquet(folder / f"{name}.parquet") for name in TABLES}

    # --- feature store ---------------------------------------------------------------------------
    def fill_store(self) -> None:
        """Register both views and load them into the online store, as the example does."""
        root = self.folder / "feature_repo"
        (root / "data").mkdir(parents=True)
        (root / "feature_store.yaml").write_text(STORE)
        now = datetime.now()
        self.store = FeatureStore(str(root))
        for name, key in TABLES.items():
            file = root / "data" / f"{name}.parquet"
            self.frames[name].assign(datetime=now, created=now).to_parquet(file)
            self.store.apply(self._view(name, key, file))
        self.store.materialize(datetime(1995, 1, 1), datetime.now())

    def _view(self, name: str, key: str, file: Path) -> list[Any]:
        frame = self.frames[name]
        wide = frame[key].dtype == np.int64
        entity = Entity(
            name=key, value_type=ValueType.INT64 if wide else ValueType.INT32, join_keys=[key]
        )
        source = FileSource(
            path=str(file), timestamp_field="datetime", created_timestamp_column="created"
        )
        fields = [
            Field(name=column, dtype=_feast_type(frame[column]))
            for column in frame
            if column != key
        ]
        view = FeatureView(name=name, entities=[entity], schema=fields, online=True, source=source)
        return [entity, view]

    # --- workflows -------------------------------------------------------------------------------
    def user_workflow(self) -> Any:
        frame = self.frames["users"].assign(**dict.fromkeys(self.facts["context"], np.int32(3)))
        index = ["user_id"] >> ops.Rename(name="user_index")
        nodes = [self._encoded(index, "user_index")]
        nodes += [self._column(name) for name in frame if name != "user_id"]
        return self._fitted(_sum([["user_id"], *nodes]), frame)

    def item_workflow(self) -> Any:
        index = ["item_id"] >> ops.Rename(name="item_video_index")
        nodes = [self._encoded(index, "item_video_index")]
        nodes += [self._column(name) for name in self.frames["videos"] if name != "item_id"]
        return self._fitted(_sum([["item_id"], *nodes]), self.frames["videos"])

    def _column(self, name: str) -> Any:
        if name not in self.facts["moments"]:
            return self._encoded([name], name)
        logged = self.facts["moments"][name][2]
        return ([name] >> ops.LogOp() if logged else [name]) >> ops.Normalize(out_dtype=np.float32)

    def _encoded(self, node: Any, name: str) -> Any:
        values = pd.Series(np.load(self.folder / "vocabularies" / f"{name}.npy"))
        out_path = self.folder / "categories" / name
        return node >> ops.Categorify(dtype="int32", vocabs={name: values}, out_path=str(out_path))

    def _fitted(self, nodes: Any, frame: pd.DataFrame) -> Any:
        """Fitted on a part of the table, then given the run's own means and deviations."""
        workflow = nvt.Workflow(nodes)
        workflow.fit(nvt.Dataset(frame[:1000]))
        for node in postorder_iter_nodes(workflow.output_node):
            if isinstance(node.op, ops.Normalize):
                for name in node.op.means:
                    mean, std, _ = self.facts["moments"][name]
                    node.op.means[name], node.op.stds[name] = mean, std
        return workflow

    # --- ensemble --------------------------------------------------------------------------------
    def ensemble(self) -> Ensemble:
        context, count = self.facts["context"], self.facts["num_candidates"]
        user_workflow, item_workflow = self.user_workflow(), self.item_workflow()
        user_attributes = ["user_id"] >> QueryFeast.from_feature_view(
            store=self.store, view="users", column="user_id", include_id=True
        )
        user_features = (user_attributes + context) >> TransformWorkflow(user_workflow)
        retrieval = (
            user_features
            >> PredictTensorflow(str(self.folder / "query_tower"))
            >> QueryFaiss(str(self.index()), topk=count)
        )
        item_attributes = retrieval["candidate_ids"] >> QueryFeast.from_feature_view(
            store=self.store,
            view="videos",
            column="candidate_ids",
            output_prefix="item",
            include_id=True,
        )
        item_features = item_attributes >> TransformWorkflow(item_workflow)
        unrolled = user_workflow.output_schema.column_names
        combined = item_features >> UnrollFeatures("item_id", user_features[unrolled])
        ranking = combined >> PredictTensorflow(str(self.folder / "ranker"))
        ordering = combined["item_id"] >> SoftmaxSampling(
            relevance_col=ranking["score"], topk=self.facts["top_k"], temperature=TEMPERATURE
        )
        columns = [ColumnSchema(name, dtype=np.int32) for name in context]
        return Ensemble(ordering, Schema([ColumnSchema("user_id", dtype=np.int64), *columns]))

    def index(self) -> Path:
        """Merlin's own index of the run's candidate vectors; ids are video rows, from 1."""
        path, vectors = self.folder / "index.faiss", np.load(self.folder / "vectors.npy")
        rows = np.arange(1, len(vectors) + 1)
        setup_faiss(pd.DataFrame({"item_id": rows, "embedding": list(vectors)}), str(path))
        return path


TABLES = {"users": "user_id", "videos": "item_id"}


def _feast_type(column: pd.Series) -> Any:
    if column.dtype == object:
        return Array(Int32)
    return Int32 if column.dtype.kind == "i" else Float32


def _sum(nodes: list[Any]) -> Any:
    total = nodes[0]
    for node in nodes[1:]:
        total = total + node
    return total


def serve_in_python(repository: Path) -> None:
    """Give every exported TensorFlow model the Python backend."""
    for file in repository.glob("*/config.pbtxt"):
        text = file.read_text()
        if 'backend: "tensorflow"' in text:
            text = re.sub(r"platform: .*\n", "", text).replace('"tensorflow"', '"python"')
            file.write_text(text)
            (file.parent / "1" / "model.py").write_text(SAVED_MODEL)


def main(folder: Path) -> None:
    """Fill the store, export, adapt."""
    builder = Builder(folder)
    builder.fill_store()
    builder.ensemble().export(str(folder / "repository"))
    serve_in_python(folder / "repository")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
