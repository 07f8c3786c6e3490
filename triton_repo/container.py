"""The container target: an exported bundle laid out for a stock Triton with ONNX Runtime.

The same files under other configs. The graphs of query tower and ranker are models of the ONNX
Runtime backend, on a GPU where there is one; what comes before, between and after them is Python:

    marquee  encode → query_tower → candidates → ranker → answer
    page     encode → query_tower → page_candidates → ranker → page_stage

The embedded Triton has no ONNX Runtime backend, and a step costs more there than a graph on a CPU:
hence its one step `fused`. Both run the code of the same stages.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from triton_repo.bundle import Bundle, bundle_file, read_bundle, seal, verify
from triton_repo.container_config import (
    ANSWER,
    CANDIDATES,
    ENCODE,
    PAGE_CANDIDATES,
    RANKER_SCORE,
    GraphModel,
    Step,
    graph_io,
    python_models,
    steps_body,
)
from triton_repo.page_tensors import PAGE, PAGE_STAGE, page_tensors
from triton_repo.tensors import (
    ENSEMBLE,
    EVENTS,
    ModelIO,
    model_tensors,
    render_config,
    stage_body,
)
from workflow.config import Config
from workflow.features.spec import FeatureSpec
from workflow.run import Run, read_json, replaced_folder, write_json
from workflow.schema import Contract

TEMPLATES = Path(__file__).parent / "templates"
# Stages of the bundle whose graph becomes a model, and which model has the rest of their files.
GRAPHS = {"query_tower": "tower", "ranker": "ranker"}
MOVED = {"query_tower": ENCODE, "retrieval": CANDIDATES, "ranker": ANSWER}
KEPT = (EVENTS, PAGE_STAGE)
REQUESTS = "requests.json"  # what perf_analyzer may ask: --input-data


def export_container(
    run: Run, config: Config, contract: Contract, *, device: str = "auto", tensorrt: bool = False
) -> dict[str, Any]:
    """Write the run's bundle as a repository for containers; needs `marquee export` before.

    Args:
        device: where the graphs run: gpu, cpu, or auto, which is a GPU where Triton finds one.
        tensorrt: let TensorRT run them in FP16: faster, and scores differ in the third digit.
    Returns:
        {"version", "folder", "models", "megabytes"}.
    """
    bundle = read_bundle(run.require(run.repository, "model repository", "marquee export"))
    verify(bundle)
    with replaced_folder(run.container_repository) as folder:
        layout = _Layout(bundle, folder, config, device, tensorrt)
        hashes = layout.files()
        layout.configs(contract, FeatureSpec.load(run.features / "spec.json"))
        _write_requests(run, layout.schema, folder / REQUESTS)
        seal(folder, bundle.version, layout.schema, hashes)
    made = read_bundle(run.container_repository)
    size = sum(bundle_file(made, name).stat().st_size for name in made.sha256)
    return {
        "version": made.version,
        "folder": str(run.container_repository),
        "models": made.models,
        "megabytes": round(size / 1e6, 1),
    }


def place(name: str, version: int) -> str | None:
    """Where a file of the embedded bundle belongs; None where it has no use."""
    model, _, rest = name.partition("/")
    file = rest.removeprefix(f"{version}/")
    if model in KEPT:
        return name
    if model not in MOVED or file in ("config.pbtxt", "model.py"):
        return None
    if Path(file).suffix in (".onnx", ".weights"):
        return name
    return f"{MOVED[model]}/{version}/{model}/{file}"


class _Layout:
    """Fills a folder from a bundle."""

    def __init__(
        self, bundle: Bundle, folder: Path, config: Config, device: str, tensorrt: bool
    ) -> None:
        self.bundle, self.folder, self.config = bundle, folder, config
        self.device, self.tensorrt = device, tensorrt
        self.version = str(bundle.version)
        self.schema: dict[str, Any] = {}

    def files(self) -> dict[str, str]:
        """Link what the bundle has, add the code of the steps; the digests that are known."""
        hashes = {}
        for name, digest in self.bundle.sha256.items():
            target = place(name, self.bundle.version)
            if target is not None:
                hashes[target] = digest
                _link(bundle_file(self.bundle, name), self.folder / target)
        for model in (ENCODE, CANDIDATES, ANSWER, PAGE_CANDIDATES):
            code = [TEMPLATES / "common" / "model.py", TEMPLATES / "container" / model / "stage.py"]
            for source in code:
                target_file = self.folder / model / self.version / source.name
                target_file.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target_file)
        return hashes

    # --- configs ---------------------------------------------------------------------------------
    def configs(self, contract: Contract, spec: FeatureSpec) -> None:
        found = read_json(self._of(CANDIDATES) / "retrieval" / "stage.json")["num_candidates"]
        total = self.config.page.quotas.total
        graphs = self._graphs((found, total))
        [dim] = graphs["query_tower"].io.outputs[0].dims
        tensors = model_tensors(contract, spec, found, dim)
        page = page_tensors(contract, spec, total)
        ranker = graphs["ranker"].io if "ranker" in graphs else None
        python = python_models(tensors, page[PAGE_STAGE], graphs["query_tower"].io, ranker)
        batch = self.config.serving.max_batch_size
        for name, graph in graphs.items():
            self._config(name, graph.io, graph.body(batch))
        for name, io in python.items():
            self._config(name, io, stage_body(io, batch))
        inputs, outputs = tensors[ENSEMBLE].inputs, python[ANSWER].outputs
        python[PAGE_STAGE] = page[PAGE_STAGE]  # its config comes with its files
        steps = _steps(python, graphs, CANDIDATES, ANSWER)
        self._ensemble(ENSEMBLE, ModelIO(inputs, outputs), steps)
        whole = ModelIO(page[PAGE].inputs, page[PAGE_STAGE].outputs)  # without the times of stages
        self._ensemble(PAGE, whole, _steps(python, graphs, PAGE_CANDIDATES, PAGE_STAGE))
        self.schema = ModelIO(inputs, outputs).schema(batch)

    def _graphs(self, widths: tuple[int, ...]) -> dict[str, GraphModel]:
        import onnx

        models = {}
        for name, stem in GRAPHS.items():
            file = self._of(name) / f"{stem}.onnx"
            if file.exists():
                graph = onnx.load(str(file), load_external_data=False).graph
                wide = widths if name == "ranker" else (1,)
                models[name] = GraphModel(
                    file.name, graph_io(graph), self.device, self.tensorrt, wide
                )
        return models

    def _ensemble(self, name: str, io: ModelIO, steps: list[Step]) -> None:
        self._of(name).mkdir(parents=True)
        (self._of(name) / "README").write_text("The ensemble has no files.\n")
        self._config(name, io, steps_body(io, steps, self.bundle.version))

    def _config(self, name: str, io: ModelIO, body: str) -> None:
        batch = self.config.serving.max_batch_size
        text = render_config(name, io, batch, self.bundle.version, body)
        (self.folder / name / "config.pbtxt").write_text(text)

    def _of(self, model: str) -> Path:
        return self.folder / model / self.version


def _steps(
    python: dict[str, ModelIO], graphs: dict[str, GraphModel], candidates: str, last: str
) -> list[Step]:
    """Without a ranker the scores of retrieval are those of the answer."""
    steps = [
        Step(ENCODE, python[ENCODE], {}),
        Step("query_tower", graphs["query_tower"].io, {}),
        Step(candidates, python[candidates], {}),
    ]
    if "ranker" not in graphs:
        return [*steps, Step(last, python[last], {RANKER_SCORE: "candidate_score"})]
    steps.append(Step("ranker", graphs["ranker"].io, {"score": RANKER_SCORE}))
    return [*steps, Step(last, python[last], {})]


def _write_requests(run: Run, schema: dict[str, Any], file: Path) -> None:
    from triton_repo.bench import sample_requests
    from triton_repo.client import Input

    inputs = {
        name: Input(one["dtype"].replace("STRING", "BYTES"), one["optional"])
        for name, one in schema["inputs"].items()
    }
    write_json(file, {"data": sample_requests(run, inputs)})


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)
