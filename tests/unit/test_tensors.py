"""Served tensors derive from the contract; configs name the steps and connect every tensor."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures import make_config, make_contract, make_tables, write_run
from triton_repo.tensors import (
    ENSEMBLE,
    EVENTS,
    FUSED,
    STAGES,
    TIMINGS,
    Tensor,
    ensemble_body,
    fused_body,
    id_dtype,
    model_tensors,
    render_config,
    stage_body,
)
from workflow.features.build import build_features
from workflow.features.spec import FeatureSpec


@pytest.fixture(scope="module", params=[True, False], ids=["context", "no context"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    contract = make_contract(context=request.param)
    folder: Path = tmp_path_factory.mktemp("tensors")
    run = write_run(folder / "run", contract, make_tables(num_events=200))
    build_features(run, make_config(), contract)
    spec = FeatureSpec.load(run.features / "spec.json")
    return contract, spec, model_tensors(contract, spec, num_candidates=50, dim=8)


def by_name(tensors: tuple[Tensor, ...]) -> dict[str, tuple[str, tuple[int, ...], bool]]:
    return {t.name: (t.dtype, t.dims, t.optional) for t in tensors}


def test_the_ensemble_takes_raw_values(case: Any) -> None:
    contract, _, tensors = case
    inputs = by_name(tensors[ENSEMBLE].inputs)
    assert next(iter(inputs)) == "user_id"  # scripts depend on it
    expected = {
        "user_id": ("INT64", (1,), False),
        "top_k": ("INT32", (1,), True),
        "time": ("INT64", (1,), True),
    }
    if contract.features("context"):
        expected |= {"device": ("STRING", (1,), True), "slot": ("INT64", (1,), True)}
    assert inputs == expected
    assert by_name(tensors[ENSEMBLE].outputs) == {
        "video_id": ("STRING", (-1,), False),
        "score": ("FP32", (-1,), False),
        "status": ("INT32", (1,), False),
        **dict.fromkeys(TIMINGS, ("INT32", (1,), False)),
    }
    assert (id_dtype(contract, "user_id"), id_dtype(contract, "video_id")) == ("INT64", "STRING")


def test_widths_follow_the_fitted_schema(case: Any) -> None:
    contract, spec, tensors = case
    outputs = by_name(tensors["query_tower"].outputs)
    names = ("history", "session_history", "long_history", "likes")
    lists = sum(spec[name].length for name in names)
    scalars = 2 + 2 + (2 if contract.features("context") else 0)  # ids, country, hour, weekday
    assert outputs["query_index"][1] == (lists + scalars,)
    assert outputs["query_value"][1] == (3,)  # age, count, rate
    assert outputs["query_vector"][1] == (8,)
    assert by_name(tensors["retrieval"].outputs)["candidate_row"][1] == (50,)
    longest = max(spec[name].length for name in names[:3])
    assert outputs["online_row"] == ("INT32", (longest,), False)


def test_events_take_what_the_data_has(case: Any) -> None:
    """Only the user is required: without a video nothing is stored."""
    _, _, tensors = case
    ids = {"user_id": ("INT64", (1,), False), "video_id": ("STRING", (1,), True)}
    known = {"label": ("INT32", (1,), True), "watch_s": ("FP32", (1,), True)}
    assert by_name(tensors[EVENTS].inputs) == ids | {"time": ("INT64", (1,), True)} | known
    bare = make_contract(label=False, watch_time=False)
    inputs = model_tensors(bare, case[1], num_candidates=5, dim=8)[EVENTS].inputs
    assert [t.name for t in inputs] == ["user_id", "video_id", "time"]
    assert EVENTS not in STAGES


def test_stages_are_connected_in_order(case: Any) -> None:
    _, _, tensors = case
    known = {t.name: t for t in tensors[ENSEMBLE].inputs}
    for stage in STAGES:
        for tensor in tensors[stage].inputs:
            assert replace(known[tensor.name], optional=tensor.optional) == tensor
        known |= {t.name: t for t in tensors[stage].outputs}
    for tensor in tensors[ENSEMBLE].outputs:
        assert known[tensor.name] == tensor


def test_ensemble_config(case: Any) -> None:
    """One step, which takes and gives just what the ensemble does."""
    _, _, tensors = case
    assert tensors[FUSED] == tensors[ENSEMBLE]
    body = ensemble_body(tensors[ENSEMBLE], FUSED, 3)
    text = render_config(ENSEMBLE, tensors[ENSEMBLE], 32, 3, body)
    assert text.startswith('name: "marquee"\nmax_batch_size: 32\n')
    assert re.findall(r'model_name: "(\w+)"', text) == [FUSED]
    assert text.count("model_version: 3") == 1  # never "latest"
    assert "version_policy: { specific: { versions: [ 3 ] } }" in text
    for kind, io in (("input", tensors[FUSED].inputs), ("output", tensors[FUSED].outputs)):
        pairs = re.findall(kind + r'_map \{ key: "(\w+)" value: "(\w+)"', text)
        assert pairs == [(t.name, t.name) for t in io]
    assert text.count("{") == text.count("}") and text.count("[") == text.count("]")


def test_fused_config(case: Any) -> None:
    """It takes all that waits as one batch, and says how much of it is answered."""
    _, _, tensors = case
    body = fused_body(tensors[FUSED], 32, max_waiting=7)
    assert 'parameters { key: "max_waiting" value: { string_value: "7" } }' in body
    assert re.findall(r"batch_size: (\d+)\n", body) == ["1", "32"]
    assert "max_queue_size" not in body  # Triton 2.51 then misses wake-ups


@pytest.mark.parametrize(("size", "warmups"), [(1, [1]), (32, [1, 32])])
def test_stage_config(case: Any, size: int, warmups: list[int]) -> None:
    _, _, tensors = case
    io = tensors["ranker"]
    text = render_config("ranker", io, size, 3, stage_body(io, size))
    assert 'backend: "python"' in text and "max_queue_delay_microseconds: 0" in text
    assert [
        int(n) for n in re.findall(r"batch_size: (\d+)\n", text.split("model_warmup", 1)[1])
    ] == warmups
    warm = text.split("model_warmup", 1)[1]
    assert 'key: "top_k"' not in warm  # optional: warmed without it
    for tensor in io.inputs:
        assert ("optional: true" in tensor.render()) == tensor.optional
        assert f"  {tensor.render()}" in text


def test_render() -> None:
    assert Tensor("time", "INT64", (1,), optional=True).render() == (
        '{ name: "time" data_type: TYPE_INT64 dims: [ 1 ] optional: true }'
    )
    assert (
        Tensor("x", "FP32", (-1, 3)).render()
        == '{ name: "x" data_type: TYPE_FP32 dims: [ -1, 3 ] }'
    )
