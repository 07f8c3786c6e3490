"""One user's page, and a page made again from its log record, as people and scripts read them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from triton_repo.client import Client
from triton_repo.local import LocalPage, LocalPipeline, as_tensors, load_stage
from triton_repo.page_answer import Page, page_of
from triton_repo.page_tensors import PAGE_STAGE, context_inputs
from triton_repo.recommend import cast_value, titles_of, typed_id
from triton_repo.server import running_server
from triton_repo.state import state_of
from triton_repo.watch import next_second
from workflow.errors import DataError, ServingError
from workflow.run import Run, write_bytes
from workflow.schema import Contract


class _Asked(NamedTuple):
    user: str
    at: int | None
    context: dict[str, str]
    cursor: str
    record: bool


def page(
    run: Run,
    contract: Contract,
    user_id: str,
    *,
    at: int | None,
    context: dict[str, str],
    cursor: str = "",
    record: Path | None = None,
    in_process: bool = False,
) -> dict[str, Any]:
    """Ask the run's server (a live one, else one started for this answer) for a page.

    Args:
        user_id: raw id as text.
        at: unix seconds of the request; None: as `next_second` says.
        context: raw values by name, see Client.page.
        record: file to write the log record to.
        in_process: run the exported stages here, without a server.
    Returns:
        {"user_id", "at", "version", "status", "rows": [{"kind", "title", "videos": [{"video_id",
        "title", "score", "sources", "propensity"}]}], "cursor"}.
    Raises:
        ServingError: an unknown name, a value of the wrong type, or a refused request.
    """
    _check_names(contract, context)
    ask = _in_process if in_process else _from_server
    made, at = ask(run, contract, _Asked(user_id, at, context, cursor, record is not None))
    if record is not None:
        write_bytes(record, made.record)
    user = typed_id(contract, "user_id", user_id)
    answer = {"user_id": user, "at": at, "version": made.version, **made.plain()}
    return _with_titles(run, contract, answer)


def replay(run: Run, contract: Contract, record: Path) -> dict[str, Any]:
    """Make a page again from its log record, with the run's bundle.

    Returns:
        as `page`, and "identical": whether it is the page in the record, down to every score and
        propensity; "different": names of what differs.
    Raises:
        DataError: the file is no log record, or it is of another bundle.
    """
    stage = load_stage(run, PAGE_STAGE)
    try:
        version, request, logged = stage.record_module.decode(record.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot read the log record {record}",
            found=str(error),
            next_step="marquee page --record FILE writes one",
        ) from None
    if version != stage.version:
        raise DataError(
            f"the log record {record} is of bundle {version}",
            found=f"bundle {stage.version} in {run}",
            next_step="replay it with the run or deployment that has this bundle",
        )
    made = stage.replay(request)
    plain = made.plain()
    different = [name for name in plain if plain[name] != logged.get(name)]
    shown = page_of(stage.tensors([made]), version).plain()
    user = typed_id(contract, "user_id", request["user"].decode())
    answer = {"user_id": user, "at": request["moment"], "version": version, **shown}
    checked = {"identical": not different, "different": different}
    return {**_with_titles(run, contract, answer), **checked}


def _from_server(run: Run, contract: Contract, asked: _Asked) -> tuple[Page, int]:
    with (
        running_server(run) as server,
        Client(server.grpc_url, credentials=server.credentials) as client,
    ):
        at = asked.at
        if at is None:
            at = next_second(run, partial(client.user_events, asked.user))
        made = client.page(
            asked.user, time=at, context=dict(asked.context), cursor=asked.cursor,
            record=asked.record,
        )  # fmt: skip
    return made, at


def _in_process(run: Run, contract: Contract, asked: _Asked) -> tuple[Page, int]:
    dtypes = {column.name: column.dtype for column in contract.features("context")}
    values: dict[str, int | bytes] = {
        name: cast_value(value, dtypes.get(name, "string"), name)
        for name, value in asked.context.items()
    }
    if asked.cursor:
        values["cursor"] = asked.cursor.encode()
    if asked.record:
        values["want_record"] = 1
    user, at = cast_value(asked.user, contract.id_column("user_id").dtype, "user_id"), asked.at
    if at is None:
        at = next_second(run, partial(LocalPipeline(run, state_of(run)).user_events, user))
    try:
        return LocalPage(run, state_of(run)).page(as_tensors(user, time=at, context=values)), at
    except ValueError as error:
        raise ServingError(f"the request was refused: {error}") from None


def _check_names(contract: Contract, context: dict[str, str]) -> None:
    known = [column.name for column in contract.features("context")]
    known += [name for name in context_inputs(contract).values() if name not in known]
    for name in context:
        if name not in known:
            raise ServingError(f"a page knows no {name!r}", expected="one of " + ", ".join(known))


def _with_titles(run: Run, contract: Contract, answer: dict[str, Any]) -> dict[str, Any]:
    videos = [video for row in answer["rows"] for video in row["videos"]]
    titles = titles_of(run, contract, [video["video_id"] for video in videos])
    for video in videos:
        video["title"] = titles.get(video["video_id"], "")
    return answer
