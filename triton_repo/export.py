"""The export stage: trained models, index and features as one Triton model repository.

What is written runs alone: no import of ours, no absolute path, no pickle.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.inputs import FeatureTables
from models.ranker import load_ranker
from models.retriever import load_two_tower
from models.two_tower import output_dim
from models.weights import fold_videos, query_weights, ranker_weights
from triton_repo.bundle import next_version, seal
from triton_repo.catalogue import Catalogue, prune
from triton_repo.catalogue_files import CatalogueFiles
from triton_repo.graph import Slot, save_graph, save_parts
from triton_repo.page_export import export_page
from triton_repo.page_tensors import FUSED_PAGE, PAGE, PAGE_STAGE, context_inputs, page_tensors
from triton_repo.quantise import quantised
from triton_repo.query_graph import query_tower_graph
from triton_repo.ranker_graph import RankerLayout, ranker_graph
from triton_repo.tensors import (
    ALL_THAT_WAIT,
    ENSEMBLE,
    EVENTS,
    FUSED,
    STAGES,
    USES_STATE,
    ModelIO,
    ensemble_body,
    fused_body,
    longest_history,
    model_tensors,
    python_body,
    render_config,
    stage_body,
)
from workflow.config import Config
from workflow.console import Report, no_report
from workflow.features.encoded import FeatureStore
from workflow.features.fitted import CompiledTable
from workflow.features.local_time import HOUR_S
from workflow.features.spec import FIRST_VALUE, QUERY_GROUPS, Feature, FeatureSpec
from workflow.run import Run, read_json, replaced_folder, write_json
from workflow.schema import Contract

TEMPLATES = Path(__file__).parent / "templates"


def export_repository(
    run: Run, config: Config, contract: Contract, report: Report = no_report
) -> dict[str, Any]:
    """Write the model repository; the one that was there before stays until this one is whole.

    Videos that `marquee refresh` added or withdrew stay so.

    Returns:
        {"version", "models", "num_files", "megabytes"}.
    """
    run.require(run.index / "index.faiss", "index", "marquee index")
    version = next_version(run.repository)
    untouched = Catalogue.untouched(run)
    catalogue = Catalogue.of(run).on(untouched)
    with replaced_folder(run.repository) as folder:
        exporter = _Exporter(run, config, contract, folder, version)
        steps = (
            exporter.query_tower, exporter.retrieval, exporter.ranker, exporter.fused,
            exporter.events_model, exporter.page, exporter.configs,
        )  # fmt: skip
        for done, step in enumerate(steps):
            report(done, len(steps), step.__name__.replace("_", " "))
            step()
        if not catalogue.is_untouched:
            files = CatalogueFiles(run, config, contract, folder, version, untouched)
            catalogue, index = files.change_to(catalogue)
            catalogue.save(run, version, {"index": index})
        seal(folder, version, exporter.schema)
    prune(run)
    sizes = [path.stat().st_size for path in run.repository.rglob("*") if path.is_file()]
    return {
        "version": version,
        "models": [ENSEMBLE, FUSED, *STAGES, EVENTS, PAGE, FUSED_PAGE, PAGE_STAGE],
        "num_files": len(sizes),
        "megabytes": round(sum(sizes) / 1e6, 1),
    }


class _Exporter:
    """What the stages' folders are made from."""

    def __init__(
        self, run: Run, config: Config, contract: Contract, folder: Path, version: int
    ) -> None:
        self.run, self.config, self.contract = run, config, contract
        self.folder, self.version = folder, version
        self.store = FeatureStore(run)
        self.spec = FeatureSpec.load(self.store.root / "spec.json")
        self.tables = FeatureTables(self.store, self.spec)
        self.events = CompiledTable.load(self.store.root / "workflows" / "events")
        self.index_report = read_json(run.index / "report.json")
        query = self.spec.of_group(*QUERY_GROUPS)
        self.query_features = tuple(f for f in query if f.kind != "continuous")
        self.query_values = tuple(f.name for f in query if f.kind == "continuous")
        self.video_features = self.spec.of_group("video", "video_state")
        self.slots = _slots(self.query_features)

    # --- query tower -----------------------------------------------------------------------------
    def query_tower(self) -> None:
        target = self._stage("query_tower")
        model = load_two_tower(self.run, self.config, self.tables)
        self.dim = output_dim(self.config.retriever)
        weights = query_weights(model, self.spec)
        graph = query_tower_graph(weights, self.slots, self.query_values)
        save_graph(graph, target / "tower.onnx")
        self.query_tables(target)

    def query_tables(self, target: Path) -> None:
        """Everything of the query tower but its graph."""
        users = [f for f in self.query_features if f.group == "user"]
        self._save(target, "user_id", self.store.user("user_id"))
        self._save(
            target, "user_index", _columns([self.store.user(f.name) for f in users], np.int32)
        )
        values = [self.store.user(name) for name in self.query_values]
        self._save(target, "user_value", _columns(values, np.float32))
        histories = self.store.histories()
        self._save(target, "video_id", self.store.video("video_id"))
        rows = np.arange(self.spec.num_videos + 1, dtype=np.int32)
        self._save(target, "video_row", rows)  # marquee refresh adds ids in between
        self._save(target, "video_index", self.store.video("video_index"))
        self._save(target, "watched_row", histories.video_row)
        if histories.label is not None:
            self._save(target, "watched_label", FIRST_VALUE + histories.label.astype(np.int32))
        self._save(target, "watched_time", histories.time)
        self._save(target, "watched_start", histories.start)
        if self.contract.utc_offsets:
            self._save(target, "user_utc_offset_s", self.store.user("utc_offset_s"))
        write_json(target / "stage.json", self._query_settings(users))

    def _query_settings(self, users: list[Feature]) -> dict[str, Any]:
        column, parts = 0, []
        for feature, slot in zip(self.query_features, self.slots, strict=True):
            part: dict[str, Any] = {
                "name": feature.name, "from": feature.group, "at": slot.at, "length": slot.length,
            }  # fmt: skip
            if feature in users:
                part["column"], column = column, column + slot.length
            parts.append(part)
        names = [f.name for f in self.query_features if f.group == "context"]
        return {
            "query_index": parts,
            "user_values": list(self.query_values),  # columns of user_value.npy
            "longest_history": longest_history(self.spec),
            "session_gap_s": self.spec.session_gap_s,
            "vocabulary": {name: self._vocabulary(name) for name in names},
            "country": context_inputs(self.contract)["country"],
            "utc_offset_s": {
                name: round(hours * HOUR_S) for name, hours in self.contract.utc_offsets.items()
            },
        }

    def _vocabulary(self, name: str) -> dict[str, list[Any]]:
        column = self.events[name]
        assert column.values is not None and column.index is not None
        whole = column.values.dtype.kind in "iuf"
        values = [int(value) if whole else str(value) for value in column.values]
        return {"values": values, "index": column.index.tolist()}

    # --- retrieval -------------------------------------------------------------------------------
    def retrieval(self) -> None:
        target = self._stage("retrieval")
        shutil.copyfile(self.run.index / "index.faiss", target / "index.faiss")
        histories = self.store.histories()
        self._save(target, "watched_row", histories.video_row)
        self._save(target, "watched_start", histories.start)
        settings = {
            "num_candidates": self.index_report["num_candidates"],
            "num_videos": self.spec.num_videos,
            "kind": self.index_report["kind"],
            "effort": self.index_report["effort"],
            "exclude_watched": self.config.serving.exclude_watched,
        }
        write_json(target / "stage.json", settings)

    # --- ranker ----------------------------------------------------------------------------------
    def ranker(self) -> None:
        target = self._stage("ranker")
        model = load_ranker(self.run, self.config, self.tables)
        weights = ranker_weights(model)
        fields = [f.name for f in self.video_features if f.kind != "continuous"]
        values = [f.name for f in self.video_features if f.kind == "continuous"]
        cross = [f.name for f in self.spec.of_group("cross")]
        layout = RankerLayout(self.slots, self.query_values, tuple(fields), (*values, *cross))
        if self.config.serving.ranker != "none":
            graph = ranker_graph(weights, layout)
            reduced = self.config.serving.ranker == "int8"
            tasks = tuple(one.name for one in graph.graph.output)[1:]
            parts = {"ranker": ("score",), "tasks": tasks}
            save_parts(quantised(graph) if reduced else graph, target, parts)
        encoded, numbers = (
            {name: np.asarray(self.store.video(name)) for name in names}
            for names in (fields, values)
        )
        vectors, video_value = fold_videos(weights, encoded, numbers)
        self._save(target, "video_vector", vectors)
        self._save(target, "video_value", video_value)
        self._save(target, "video_id", self._video_ids())
        if cross:
            self._save(target, "publish_time", self.store.video("publish_time"))
        if model.watch_time is not None:
            groups = model.watch_time.groups
            self._save(target, "watch_edges", groups.edges)
            self._save(target, "watch_tables", groups.tables)
            self._save(target, "duration_s", self.store.duration_s())
        age = self.events["video_age_days"] if cross else None
        settings = {
            "ranks": self.config.serving.ranker != "none",
            "video_values": values,  # the last columns of video_value.npy
            "default_top_k": self.config.serving.default_top_k,
            "video_age_days": {"fill": age.fill, "mean": age.mean, "std": age.std} if age else None,
        }
        write_json(target / "stage.json", settings)

    def _video_ids(self) -> npt.NDArray[Any]:
        """Raw ids by video row; row 0 has none."""
        ids = np.asarray(self.store.video("video_id"))
        return np.concatenate([np.zeros(1, ids.dtype), ids])

    # --- fused -----------------------------------------------------------------------------------
    def fused(self) -> None:
        """Code alone: it reads the files of the stages."""
        self._stage(FUSED)

    # --- events ----------------------------------------------------------------------------------
    def events_model(self) -> None:
        settings = {
            "longest_history": longest_history(self.spec),
            "only_positive": self.contract.watched == "label",
        }
        write_json(self._stage(EVENTS) / "stage.json", settings)

    # --- page ------------------------------------------------------------------------------------
    def page(self) -> None:
        target = self._stage(PAGE_STAGE, template="page")
        export_page(self.run, self.config, self.contract, self.store, target)
        self._stage(FUSED_PAGE)

    # --- configs ---------------------------------------------------------------------------------
    def configs(self) -> None:
        serving = self.config.serving
        batch = serving.max_batch_size
        num_candidates = self.index_report["num_candidates"]
        tensors = model_tensors(self.contract, self.spec, num_candidates, self.dim)
        for name in STAGES:
            self._config(name, tensors[name], batch, stage_body(tensors[name], batch))
        body = fused_body(tensors[FUSED], batch, serving.max_waiting)
        self._config(FUSED, tensors[FUSED], ALL_THAT_WAIT, body)
        self._config(EVENTS, tensors[EVENTS], batch, python_body())
        self._ensemble(ENSEMBLE, FUSED, tensors[ENSEMBLE])
        self.schema = tensors[ENSEMBLE].schema(batch)
        tensors = page_tensors(self.contract, self.spec, self.config.page.quotas.total)
        self._config(PAGE_STAGE, tensors[PAGE_STAGE], batch, stage_body(tensors[PAGE_STAGE], batch))
        body = fused_body(tensors[FUSED_PAGE], batch, serving.max_waiting)
        self._config(FUSED_PAGE, tensors[FUSED_PAGE], ALL_THAT_WAIT, body)
        self._ensemble(PAGE, FUSED_PAGE, tensors[PAGE])

    def _ensemble(self, name: str, step: str, io: ModelIO) -> None:
        folder = self.folder / name / str(self.version)
        folder.mkdir(parents=True)
        # Triton needs the version folder; git and some copy tools drop empty ones.
        (folder / "README").write_text("The ensemble has no files.\n")
        batch = self.config.serving.max_batch_size
        self._config(name, io, batch, ensemble_body(io, step, self.version))

    def _config(self, name: str, io: ModelIO, max_batch_size: int, body: str) -> None:
        text = render_config(name, io, max_batch_size, self.version, body)
        (self.folder / name / "config.pbtxt").write_text(text)

    def _stage(self, name: str, template: str = "") -> Path:
        target = self.folder / name / str(self.version)
        target.mkdir(parents=True)
        own = (TEMPLATES / (template or name)).glob("*.py")
        code = [TEMPLATES / "common" / "model.py", *sorted(own)]
        if name in USES_STATE and name != FUSED:
            code.append(TEMPLATES / "common" / "store.py")
        if name == FUSED_PAGE:
            code.append(TEMPLATES / FUSED / "meter.py")
        for path in code:
            shutil.copyfile(path, target / path.name)
        return target

    @staticmethod
    def _save(folder: Path, name: str, values: npt.NDArray[Any]) -> None:
        np.save(folder / f"{name}.npy", np.ascontiguousarray(values), allow_pickle=False)


def _slots(features: tuple[Feature, ...]) -> tuple[Slot, ...]:
    """Positions of the packed query features, in schema order."""
    ends = np.cumsum([f.length for f in features])
    return tuple(
        Slot(f.name, int(end) - f.length, f.length, f.is_list)
        for f, end in zip(features, ends, strict=True)
    )


def _columns(arrays: list[npt.NDArray[Any]], dtype: Any) -> npt.NDArray[Any]:
    """[rows] and [rows, length] arrays side by side."""
    joined: npt.NDArray[Any] = np.concatenate(
        [np.asarray(a).reshape(len(a), -1) for a in arrays], axis=1
    ).astype(dtype)
    return joined
