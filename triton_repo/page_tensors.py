"""Tensors of the models that make a page."""

from __future__ import annotations

from triton_repo.tensors import ModelIO, Tensor, id_dtype, longest_history
from workflow.features.spec import FeatureSpec
from workflow.schema import Contract

PAGE = "page"  # the ensemble that clients ask
FUSED_PAGE = "fused_page"  # its one step
PAGE_STAGE = "page_stage"
STEPS = ("query_tower", "retrieval", "sources", "ranker", "page")  # of FUSED_PAGE
PAGE_TIMINGS = tuple(f"{step}_us" for step in STEPS)
CONTEXT = ("device", "country", "maturity")


def context_inputs(contract: Contract) -> dict[str, str]:
    """What the page wants to know of a request -> the name of the input that says it."""
    tagged = {what: contract.tagged("events", what) for what in CONTEXT}  # type: ignore[arg-type]
    return {what: column.name if column else what for what, column in tagged.items()}


def page_tensors(contract: Contract, spec: FeatureSpec, num_candidates: int) -> dict[str, ModelIO]:
    """Inputs and outputs of the page's models.

    Args:
        num_candidates: of all sources together.
    """
    user = Tensor("user_id", id_dtype(contract, "user_id"), (1,))
    columns = {column.name: column for column in contract.features("context")}
    names = dict.fromkeys((*columns, *context_inputs(contract).values()))
    whole = {name for name, column in columns.items() if column.dtype == "int64"}
    context = {
        name: Tensor(name, "INT64" if name in whole else "STRING", (1,), optional=True)
        for name in names
    }
    asked = (
        Tensor("cursor", "STRING", (1,), optional=True),
        Tensor("want_record", "INT32", (1,), optional=True),
    )
    answer = (
        Tensor("row_kind", "STRING", (-1,)),
        Tensor("row_title", "STRING", (-1,)),
        Tensor("row_size", "INT32", (-1,)),
        Tensor("video_id", id_dtype(contract, "video_id"), (-1,)),
        Tensor("score", "FP32", (-1,)),
        Tensor("source", "INT32", (-1,)),
        Tensor("propensity", "FP32", (-1,)),
        Tensor("status", "INT32", (1,)),
        Tensor("next_cursor", "STRING", (1,)),
        Tensor("record", "STRING", (1,)),
    )
    known = (
        Tensor("user_row", "INT32", (1,)),
        Tensor("watched_until", "INT64", (1,)),
        Tensor("online_row", "INT32", (longest_history(spec),)),
        Tensor("online_watch_s", "FP32", (longest_history(spec),)),
        Tensor("session_size", "INT32", (1,)),
        Tensor("request_time", "INT64", (1,)),
        Tensor("query_status", "INT32", (1,)),
        Tensor("candidate_row", "INT32", (num_candidates,)),
        Tensor("candidate_source", "INT32", (num_candidates,)),
        Tensor("ranker_score", "FP32", (num_candidates,)),
    )
    viewer = tuple(context[name] for name in context_inputs(contract).values())
    time = Tensor("time", "INT64", (1,), optional=True)
    # Made only for requests that ask for them: microseconds of the batch that a request was in.
    timings = tuple(Tensor(name, "INT32", (1,)) for name in PAGE_TIMINGS)
    whole_page = ModelIO((user, time, *context.values(), *asked), (*answer, *timings))
    return {
        PAGE_STAGE: ModelIO((user, *known, *viewer, *asked), answer),
        FUSED_PAGE: whole_page,
        PAGE: whole_page,
    }
