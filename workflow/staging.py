"""How an update takes its place in a run: whole or not at all, and never silently undone.

`marquee update` makes the new data, features and models in `<run>/update`. Once everything is on
disk, the file `commit.json` says so; from then on the update counts, and whoever next opens the
run finishes moving it into place. Without that file, what is there is the rest of a killed try.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from workflow.errors import ConfigError
from workflow.run import Run, read_json, swap_folder, sync_tree, write_json

STAGES = ("validate", "features", "train_retriever", "train_ranker", "index", "export")
CHANGED = STAGES[:4]  # by an update; the others are done again after it


def commit(run: Run, manifest: dict[str, Any]) -> None:
    """Let what is staged become the run, with `manifest` as its manifest."""
    sync_tree(run.staged)
    write_json(_commit_file(run), manifest)
    finish(run)


def is_pending(run: Run) -> bool:
    """Whether an update was committed and is not in its place yet."""
    return _commit_file(run).exists()


def finish(run: Run) -> None:
    """Move a committed update into place; throw an uncommitted one away. Needs the run's lock."""
    if is_pending(run):
        staged = Run(run.staged)
        for new, target in zip(_folders(staged), _folders(run), strict=True):
            if new.exists():  # else it was moved before the process was killed
                swap_folder(new, target)
        write_json(run.manifest_file, read_json(_commit_file(run)))
        _commit_file(run).unlink()
    shutil.rmtree(run.staged, ignore_errors=True)


def _folders(run: Run) -> tuple[Path, ...]:
    return run.data, run.features, run.retriever, run.ranker


def _commit_file(run: Run) -> Path:
    return run.staged / "commit.json"


def updated_manifest(
    run: Run, update: dict[str, Any], summaries: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """The manifest after an update: its stages count as current, index and export as undone.

    Args:
        update: what is remembered of the update.
        summaries: what changed in the summary of each stage of CHANGED.
    """
    manifest = run.manifest()
    stages = {name: dict(manifest["stages"][name]) for name in CHANGED}
    for name, entry in stages.items():
        entry["summary"] = entry["summary"] | summaries[name]
        entry["updated"] = True
    return manifest | {"stages": stages, "updates": [*run.updates(), update]}


def is_updated(run: Run, stage: str) -> bool:
    """Whether the stage's result is the work of `marquee update`."""
    return bool((run.recorded(stage) or {}).get("updated"))


def check_redo(run: Run, stage: str, *, force: bool) -> None:
    """Refuse what would lose appended days unnoticed, or mix models that do not fit.

    Raises:
        ConfigError: raw files would be read again, which need not hold the appended days; or the
            ranker would be trained alone on a retriever that has seen its validation part.
    """
    days = len(run.updates())
    if stage == "validate" and days and not force:
        raise ConfigError(
            f"the raw files or settings of run {run} changed, and validating them again would"
            f" leave out what marquee update appended ({days} times)",
            next_step=f"marquee features --run {run} --force to train anew on everything appended;"
            " or --force, if the raw files hold it all",
        )
    if stage == "train_ranker" and is_updated(run, "train_retriever"):
        raise ConfigError(
            f"the retriever of run {run} was updated since, so the ranker cannot be trained alone",
            next_step=f"marquee train --run {run} --force trains both anew",
        )


def check_held_out(run: Run) -> None:
    """Refuse to judge models by events that they have seen.

    Raises:
        ConfigError: an update has trained them on the whole log.
    """
    if is_updated(run, "train_retriever"):
        raise ConfigError(
            f"run {run} cannot be evaluated: marquee update has trained on its whole log",
            expected="models that have not seen the test part",
            next_step=f"marquee train --run {run} --force trains anew without it",
        )


def forget_later(run: Run, stage: str) -> None:
    """A stage that replaces an update's result makes the later ones out of date."""
    if not is_updated(run, stage):
        return
    manifest = run.manifest()
    kept = STAGES[: STAGES.index(stage) + 1]
    manifest["stages"] = {n: entry for n, entry in manifest["stages"].items() if n in kept}
    if stage == "validate":
        manifest["updates"] = []
    write_json(run.manifest_file, manifest)
