"""The container target: same answers as the embedded one, configs that Triton reads.

ONNX Runtime stands in for Triton's backend of that name, once in this process and once in a Python
model of the embedded Triton, whose own scheduler then runs the ensembles.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from tritonclient.grpc import model_config_pb2

from tests.containers import Dataflow, parsed, with_stand_ins
from tests.scores import assert_same_scores
from triton_repo.bundle import read_bundle, verify
from triton_repo.client import Client
from triton_repo.local import LocalPage, LocalPipeline, as_tensors
from triton_repo.ports import free_ports
from triton_repo.process import TritonServer
from workflow.run import Run

GRAPHS = ("query_tower", "ranker")


@pytest.fixture(scope="module")
def exported(marquee: Any, sim_run: Any) -> Path:
    """The simulated run's container repository."""
    result = marquee.json("export", "--run", sim_run.folder, "--target", "container")
    assert result["container"]["version"] == read_bundle(Run(sim_run.folder).repository).version
    return Run(sim_run.folder).container_repository


@pytest.fixture(scope="module")
def clips_exported(marquee: Any, clip_run: Any) -> Path:
    marquee.json("export", "--run", clip_run.folder, "--target", "container")
    return Run(clip_run.folder).container_repository


def users_of(folder: Path) -> list[Any]:
    """Some known users, unknown ones, all as raw ids."""
    ids = pq.read_table(Run(folder).data / "users.parquet").column("user_id").to_pylist()
    chosen = ids[:: max(1, len(ids) // 60)]
    return (
        [one.encode() for one in [*chosen, "nobody"]] if isinstance(ids[0], str) else [*chosen, 0]
    )


def moments(folder: Path) -> list[int]:
    last = int(json.loads((Run(folder).features / "spec.json").read_text())["last_event"])
    return [last + 60, last - 10 * 86_400, last - 400 * 86_400]


def requests(folder: Path, contexts: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    times = moments(folder)
    for position, user in enumerate(users_of(folder)):
        context = contexts[position % len(contexts)]
        yield as_tensors(user, time=times[position % 3], context=context)


SIM_CONTEXTS: list[dict[str, Any]] = [{"device": b"tv"}, {}, {"device": b"a device of tomorrow"}]
CLIP_CONTEXTS: list[dict[str, Any]] = [{"app": b"web", "slot": 3}, {}, {"slot": -5}]


def assert_same_lists(flow: Dataflow, pipeline: LocalPipeline, inputs: dict[str, Any]) -> None:
    expected, found = pipeline.infer(inputs), flow.infer("marquee", inputs)
    np.testing.assert_array_equal(found["video_id"], expected["video_id"])
    assert_same_scores(found["score"], expected["score"])
    np.testing.assert_array_equal(found["status"], expected["status"])


# --- lists ---------------------------------------------------------------------------------------
def test_lists_are_those_of_the_embedded_target(exported: Path, sim_run: Any) -> None:
    flow, pipeline = Dataflow(exported), LocalPipeline(Run(sim_run.folder))
    for count, inputs in enumerate(requests(sim_run.folder, SIM_CONTEXTS)):
        if count % 2:
            inputs["top_k"] = np.array([[1 + count]], np.int32)
        assert_same_lists(flow, pipeline, inputs)
    assert count > 50


def test_lists_of_string_ids(clips_exported: Path, clip_run: Any) -> None:
    flow, pipeline = Dataflow(clips_exported), LocalPipeline(Run(clip_run.folder))
    for inputs in requests(clip_run.folder, CLIP_CONTEXTS):
        assert_same_lists(flow, pipeline, inputs)


def test_a_full_batch(exported: Path, sim_run: Any) -> None:
    users = np.array(users_of(sim_run.folder)[:32], np.int64)[:, None]
    inputs = {
        "user_id": users,
        "time": np.full_like(users, moments(sim_run.folder)[0]),
        "top_k": np.arange(1, 33, dtype=np.int32)[:, None],
    }
    assert_same_lists(Dataflow(exported), LocalPipeline(Run(sim_run.folder)), inputs)


def test_it_refuses_what_the_embedded_target_refuses(exported: Path, sim_run: Any) -> None:
    inputs = as_tensors(0, top_k=0)
    with pytest.raises(ValueError, match="top_k must be at least 1, received 0") as embedded:
        LocalPipeline(Run(sim_run.folder)).infer(inputs)
    with pytest.raises(ValueError, match="top_k") as container:
        Dataflow(exported).infer("marquee", inputs)
    assert str(container.value) == str(embedded.value)


# --- pages ---------------------------------------------------------------------------------------
def test_pages_are_those_of_the_embedded_target(exported: Path, sim_run: Any) -> None:
    flow, local = Dataflow(exported), LocalPage(Run(sim_run.folder))
    videos = 0
    for inputs in list(requests(sim_run.folder, SIM_CONTEXTS))[::4]:
        for _ in range(2):
            expected, found = local.infer(inputs), flow.infer("page", inputs)
            for name in ("score", "propensity"):
                assert_same_scores(found.pop(name), expected.pop(name))
            assert expected.pop("record") == found.pop("record") == b""
            for name, values in found.items():
                np.testing.assert_array_equal(values, expected[name], name)
            videos += found["video_id"].size
            inputs["cursor"] = found["next_cursor"].astype(object)  # and scroll on
    assert videos > 1000


def test_a_foreign_cursor_is_refused(exported: Path) -> None:
    inputs = as_tensors(0) | {"cursor": np.array([[b"nonsense"]], object)}
    with pytest.raises(ValueError, match="cursor is not one of this server"):
        Dataflow(exported).infer("page", inputs)


# --- files and configs ---------------------------------------------------------------------------
def test_the_graphs_are_the_same_bytes(exported: Path, sim_run: Any) -> None:
    made, source = read_bundle(exported), read_bundle(Run(sim_run.folder).repository)
    verify(made)
    for name in ("query_tower/{}/tower.onnx", "ranker/{}/ranker.onnx", "ranker/{}/ranker.weights"):
        file = name.format(made.version)
        assert made.sha256[file] == source.sha256[file]


def test_requests_for_perf_analyzer_are_answered(exported: Path, sim_run: Any) -> None:
    rows = json.loads((exported / "requests.json").read_text())["data"]
    flow = Dataflow(exported)
    for row in rows[:20]:
        context = {name: value[0].encode() for name, value in row.items() if name == "device"}
        inputs = as_tensors(row["user_id"][0], time=row["time"][0], context=dict(context))
        assert row.keys() == inputs.keys()
        assert flow.infer("marquee", inputs)["video_id"].size
    assert len(rows) == 1_000


def test_configs(exported: Path) -> None:
    kinds = model_config_pb2.ModelInstanceGroup
    for path in exported.glob("*/config.pbtxt"):
        config = parsed(exported, path.parent.name)
        assert config.name == path.parent.name
        if config.name in GRAPHS:
            assert config.platform == "onnxruntime_onnx" and not config.HasField("optimization")
            assert [one.kind for one in config.instance_group] == [kinds.KIND_AUTO]
            version_folder = path.parent / str(config.version_policy.specific.versions[0])
            assert (version_folder / config.default_model_filename).exists()
        if not config.ensemble_scheduling.step and config.name != "events":
            assert config.HasField("dynamic_batching")
            assert {1, config.max_batch_size} == {one.batch_size for one in config.model_warmup}


def test_every_tensor_of_an_ensemble_is_made_and_fits(exported: Path) -> None:
    """What Triton checks when it loads an ensemble: types and shapes along each map."""
    for ensemble in ("marquee", "page"):
        whole = parsed(exported, ensemble)
        known = {one.name: (one.data_type, list(one.dims)) for one in whole.input}
        for step in whole.ensemble_scheduling.step:
            model = parsed(exported, step.model_name)
            for tensors, places in ((model.input, step.input_map), (model.output, step.output_map)):
                declared = {one.name: (one.data_type, list(one.dims)) for one in tensors}
                for mine, theirs in places.items():
                    kind, dims = known.setdefault(theirs, declared[mine])
                    assert kind == declared[mine][0] and len(dims) == len(declared[mine][1])
                    pairs = zip(dims, declared[mine][1], strict=True)
                    assert all(a == b or -1 in (a, b) for a, b in pairs), (ensemble, theirs)
        for one in whole.output:
            assert known[one.name] == (one.data_type, list(one.dims))


@pytest.mark.parametrize(("device", "kind"), [("gpu", "KIND_GPU"), ("cpu", "KIND_CPU")])
def test_device_and_tensorrt(marquee: Any, copied: Path, device: str, kind: str) -> None:
    words = ["--target", "container", "--device", device]
    words += ["--tensorrt"] if device == "gpu" else []
    marquee.json("export", "--run", copied, *words)
    for name in GRAPHS:
        config = parsed(Run(copied).container_repository, name)
        assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.Kind.Value(kind)
        accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
        assert [one.name for one in accelerators] == (["tensorrt"] if device == "gpu" else [])
        if device == "gpu":
            settings = dict(accelerators[0].parameters)
            assert settings["precision_mode"] == "FP16"
            inputs = {one.name for one in config.input}
            for end, batch in (("min", 1), ("max", config.max_batch_size)):
                shapes = settings[f"trt_profile_{end}_shapes"].split(",")
                assert {one.split(":")[0] for one in shapes} == inputs
                assert all(one.split(":")[1].startswith(f"{batch}x") for one in shapes)


def test_tensorrt_needs_a_gpu(marquee: Any, sim_run: Any) -> None:
    words = ("--target", "container", "--device", "cpu", "--tensorrt")
    assert "--device gpu" in marquee("export", "--run", sim_run.folder, *words).error


def test_options_of_the_container_target_alone(marquee: Any, sim_run: Any) -> None:
    error = marquee("export", "--run", sim_run.folder, "--tensorrt").error
    assert "--target container" in error


# --- the embedded Triton's scheduler -------------------------------------------------------------
@pytest.fixture(scope="module")
def stand_in_server(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("container")
    grpc_port, http_port, metrics_port = free_ports(3)
    with TritonServer(
        with_stand_ins(exported, folder / "repository"),
        log_file=folder / "triton.log",
        grpc_port=grpc_port,
        http_port=http_port,
        metrics_port=metrics_port,
    ) as server:
        yield server


def test_triton_runs_the_ensembles(stand_in_server: Any, sim_run: Any) -> None:
    """Python models, ensembles, optional inputs and warm-up by Triton itself."""
    pipeline, local = LocalPipeline(Run(sim_run.folder)), LocalPage(Run(sim_run.folder))
    moment = moments(sim_run.folder)[0]
    with Client(stand_in_server.grpc_url) as client:
        for user in users_of(sim_run.folder)[:12]:
            for context in ({"device": "tv"}, {}):
                raw = {name: value.encode() for name, value in context.items()}
                inputs = as_tensors(user, top_k=10, time=moment, context=dict(raw))
                expected = pipeline.infer(inputs)
                found = client.recommend(user, top_k=10, time=moment, context=context)
                assert list(found.video_ids) == expected["video_id"][0].tolist()
                assert_same_scores(found.scores, expected["score"][0])
                page = client.page(user, time=moment, context=context)
                inputs.pop("top_k")
                assert page.video_ids == local.page(inputs).video_ids
        refused: Callable[..., Any] = client.recommend
        with pytest.raises(Exception, match="top_k must be at least 1"):
            refused(users_of(sim_run.folder)[0], top_k=0)
