"""The command `marquee`: verbs only. Everything heavy is imported inside the verbs."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from workflow.config import changed_config, load_config
from workflow.console import CtrlC, Output
from workflow.errors import ConfigError, MarqueeError
from workflow.job import Job
from workflow.remote import as_folder
from workflow.run import Run
from workflow.workers import read_workers

app = typer.Typer(
    name="marquee",
    help="Two-stage video recommendations: raw watch logs in, a served recommender out.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

RunOption = Annotated[
    Path | None, typer.Option("--run", metavar="PATH", help="Run folder (default runs/<dataset>).")
]
DatasetOption = Annotated[
    str | None,
    typer.Option("--dataset", help="sim, movielens-1m, kuairand, kuairec, or custom (own files)."),
]
SourceOption = Annotated[
    str | None,
    typer.Option(
        "--source", metavar="FOLDER", help="Folder or URL (s3://…) of raw files, no download."
    ),
]
ContractOption = Annotated[
    Path | None,
    typer.Option("--contract", metavar="FILE", help="Contract TOML of your own data."),
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="TOML file with settings.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="One setting, e.g. sim.num_users=20000."),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="One JSON object on standard output, progress on error.")
]
DeploymentOption = Annotated[
    Path | None,
    typer.Option("--deployment", metavar="DIR", help="Deployment folder (runs/deployment)."),
]
DeviceOption = Annotated[
    Literal["auto", "cpu", "gpu"],
    typer.Option("--device", help="Where to compute (auto: a GPU that can be used, else the CPU)."),
]
DaskOption = Annotated[
    str | None,
    typer.Option(
        "--dask-scheduler",
        metavar="ADDRESS",
        help="Make features on the workers of this Dask scheduler, e.g. tcp://127.0.0.1:8786.",
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Do it even if nothing changed.")]
UserOption = Annotated[str | None, typer.Option("--user", metavar="ID", help="Raw user id.")]
TopKOption = Annotated[int, typer.Option("--top-k", help="How many videos to return.")]
AtOption = Annotated[
    str | None,
    typer.Option(
        "--at",
        metavar="TIME",
        help='Time: "now", unix seconds or ISO (default: after the last event there is).',
    ),
]
StateOption = Annotated[
    str | None,
    typer.Option(
        "--state",
        metavar="WHERE",
        help="What users watch is kept here: a file, or redis://host:port/0 (default: the run).",
    ),
]


STOPPED = "Stopped. What is finished is kept: the same command goes on with --resume.\n"


def main() -> None:
    """Entry point: an error is one line and exit status 1, Ctrl-C is 130."""
    ctrl_c = CtrlC()
    try:
        app(standalone_mode=True)
    except MarqueeError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        raise SystemExit(1) from None
    except SystemExit as end:
        if end.code == 130:  # Typer's answer to Ctrl-C, silent by itself
            sys.stderr.write(STOPPED)
        raise
    except Exception as error:
        if ctrl_c.came:
            sys.stderr.write(STOPPED)
            raise SystemExit(130) from None
        if os.environ.get("MARQUEE_TRACEBACK"):
            raise
        sys.stderr.write(f"{_unexpected(error)}\n")
        raise SystemExit(1) from None


def _unexpected(error: Exception) -> MarqueeError:
    """What nobody foresaw: mostly a damaged file of the run."""
    message = " ".join(str(error).split())[:300]
    return MarqueeError(
        f"{type(error).__name__}: {message}",
        next_step="if a file of the run is damaged, make it again with --force; "
        "MARQUEE_TRACEBACK=1 shows where it happened",
    )


def _job(
    run: Path | None,
    dataset: str | None = None,
    config_file: Path | None = None,
    overrides: list[str] | None = None,
    source: str | None = None,
    contract: Path | None = None,
    create: bool = False,
) -> Job:
    """The settings of an existing run, or of a new one.

    A new run needs a dataset or a contract; with `create`, none means sim.
    """
    from workflow.schema import load_contract

    fresh = dataset is not None or contract is not None
    if not fresh and run is not None and Run(run).config_file.exists():
        return _changed(Job.load(Run(run)), config_file, overrides, source)
    if not fresh and run is not None and not create:
        raise ConfigError(
            f"no run in {run}",
            expected="a folder made by marquee run, or --dataset or --contract for a new one",
            next_step=f"marquee run --run {run} --dataset sim",
        )
    name = dataset or ("custom" if contract is not None else "sim")
    config = load_config(name, config_file, overrides)
    folder = run or Path("runs") / (load_contract(contract).name if contract else name)
    return Job(Run(folder), config, None if source is None else as_folder(source), contract)


def _changed(
    job: Job, config_file: Path | None, overrides: list[str] | None, source: str | None
) -> Job:
    """A run's settings with this call's changes on top."""
    if config_file is None and not overrides and source is None:
        return job
    return Job(
        job.run,
        changed_config(job.config, config_file, overrides),
        job.source if source is None else as_folder(source),
        job.contract_file,
    )


def _existing(run: Path | None, dataset: str | None = None) -> Job:
    """A run that has been made before."""
    return Job.load(Run(run or Path("runs") / (dataset or "sim")))


@app.command()
def run(
    run: RunOption = None,
    dataset: DatasetOption = None,
    source: SourceOption = None,
    contract: ContractOption = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    user: UserOption = None,
    top_k: TopKOption = 10,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted run where it stopped.")
    ] = False,
    device: DeviceOption = "auto",
    force: ForceOption = False,
    dask_scheduler: DaskOption = None,
    json: JsonOption = False,
) -> None:
    """Do everything: validate, features, train, index, export, serve, recommend."""
    from workflow.verbs import finish_run

    job = _job(run, dataset, config, set_, source, contract, create=not resume)
    job = replace(job, dask_scheduler=dask_scheduler)
    finish_run(job, _on(device, Output(json)), user=user, top_k=top_k, force=force, resume=resume)


def _on(device: str, output: Output) -> Output:
    """Settle on a device and say so, before anything looks for a GPU by itself."""
    from workflow.device import choose_device

    chosen = choose_device(device)
    output.say(f"• Device: {chosen.kind} ({chosen.found})")
    return output


def _stages(
    names: tuple[str, ...],
    job: Job,
    output: Output,
    *,
    force: bool,
    next_verb: str,
) -> None:
    """Carry out stages and print what they recorded."""
    from workflow.pipeline import run_stages
    from workflow.verbs import report_stages

    entries = run_stages(job, output, names, force=force)
    report_stages(job, output, entries, f"marquee {next_verb} --run {job.run}")


@app.command()
def validate(
    run: RunOption = None,
    dataset: DatasetOption = None,
    source: SourceOption = None,
    contract: ContractOption = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    force: ForceOption = False,
    json: JsonOption = False,
) -> None:
    """Check the raw files against the contract: PASS or FAIL per column, with examples."""
    from workflow.verbs import report_validation

    job = _job(run, dataset, config, set_, source, contract)
    report_validation(job, Output(json), force=force)


@app.command()
def features(
    run: RunOption = None,
    set_: SetOption = None,
    device: DeviceOption = "auto",
    force: ForceOption = False,
    dask_scheduler: DaskOption = None,
    json: JsonOption = False,
) -> None:
    """Build features with NVTabular: encoded tables, histories, train/valid/test samples."""
    job = replace(_changed(_existing(run), None, set_, None), dask_scheduler=dask_scheduler)
    _stages(("features",), job, _on(device, Output(json)), force=force, next_verb="train")


@app.command()
def train(
    run: RunOption = None,
    set_: SetOption = None,
    model: Annotated[str, typer.Option("--model", help="retriever, ranker or both.")] = "both",
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the last checkpoint.")
    ] = False,
    device: DeviceOption = "auto",
    force: ForceOption = False,
    json: JsonOption = False,
) -> None:
    """Train the two-tower retriever and the DLRM ranker; by several processes with TF_CONFIG."""
    from workflow.verbs import train_run

    chosen = {
        "retriever": ("train_retriever",),
        "ranker": ("train_ranker",),
        "both": ("train_retriever", "train_ranker"),
    }
    if model not in chosen:
        raise ConfigError(f"no model {model!r}", expected="retriever, ranker or both")
    job = replace(_changed(_existing(run), None, set_, None), workers=read_workers(os.environ))
    output = _on(device, Output(json))
    train_run(job, output, chosen[model], force=force, resume=resume)


@app.command()
def index(
    run: RunOption = None,
    set_: SetOption = None,
    force: ForceOption = False,
    json: JsonOption = False,
) -> None:
    """Build the FAISS index and choose its search effort by measured recall."""
    job = _changed(_existing(run), None, set_, None)
    _stages(("index",), job, Output(json), force=force, next_verb="export")


@app.command()
def init(
    folder: Annotated[
        Path,
        typer.Option("--from", metavar="FOLDER", help="Folder with your CSV or Parquet files."),
    ],
    to: Annotated[
        Path, typer.Option("--to", metavar="FILE", help="Where to write the contract.")
    ] = Path("contract.toml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    json: JsonOption = False,
) -> None:
    """Write a first contract for your own data, to be looked over and edited."""
    from workflow.verbs import write_draft

    write_draft(folder, to, Output(json), force=force)


from workflow import (  # noqa: E402  (they add their verbs to `app`)
    cli_batch,  # noqa: F401
    cli_deploy,  # noqa: F401
    cli_export,  # noqa: F401
    cli_measure,  # noqa: F401
    cli_refresh,  # noqa: F401
    cli_serving,  # noqa: F401
    cli_ui,  # noqa: F401
    cli_update,  # noqa: F401
    cli_user,  # noqa: F401
)
