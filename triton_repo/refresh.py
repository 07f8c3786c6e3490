"""`marquee refresh`: videos enter and leave an exported bundle; nothing is trained or fitted.

Only what is new is encoded and embedded, the index is changed rather than built, and files that
stay the same are linked, with the hashes that the manifest has of them.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from triton_repo.bundle import Bundle, bundle_file, next_version, read_bundle, seal
from triton_repo.catalogue import Catalogue, Ids, id_array, prune
from triton_repo.catalogue_files import CatalogueFiles
from workflow.config import Config
from workflow.console import Report, no_report
from workflow.data.id_files import ids_of_file
from workflow.data.new_videos import read_new_videos
from workflow.errors import DataError
from workflow.run import Run, replaced_folder
from workflow.schema import Contract

_SHOWN = 5


def refresh_repository(
    run: Run,
    config: Config,
    contract: Contract,
    *,
    videos: Path | None,
    withdrawn: Path | None,
    report: Report = no_report,
) -> dict[str, Any]:
    """Write a bundle with the videos of one file added and those of another withdrawn.

    The bundle that was there stays until the new one is whole; if nothing is to change, it stays.

    Args:
        videos: table as the contract declares it; unknown ones are added, withdrawn ones return,
            others are left as they are.
        withdrawn: raw ids; they keep their rows, for histories, and are never returned.
    Returns:
        {"version", "previous", "added", "returned", "known", "withdrawn", "withdrawn_before",
        "num_videos", "index"}; see CatalogueFiles.change_to for "index", None when nothing was
        to change.
    Raises:
        DataError: ids in `withdrawn` that the run does not know, or ids in both files.
        ContractError: the videos are not as the contract declares them.
    """
    bundle = read_bundle(run.require(run.repository, "model repository", "marquee export"))
    before = Catalogue.of(run)
    report(0, 3, "reading")
    after, summary = planned(before, config, contract, videos=videos, withdrawn=withdrawn)
    index, version = None, bundle.version
    if summary["added"] or summary["returned"] or summary["withdrawn"]:
        version = next_version(run.repository)
        with replaced_folder(run.repository) as folder:
            hashes = link_bundle(bundle, folder, version)
            files = CatalogueFiles(run, config, contract, folder, version, before)
            after, index = files.change_to(after, report)
            report(3, 3, "sealing")
            kept = {name: digest for name, digest in hashes.items() if name not in files.changed}
            seal(folder, version, bundle.schema, kept)
            after.save(run, version, summary | {"index": index})  # counts once the bundle does
        prune(run)
    left = len(after.ids) - int(after.is_withdrawn.sum())
    return summary | {
        "version": version, "previous": bundle.version, "num_videos": left, "index": index,
    }  # fmt: skip


def planned(
    before: Catalogue,
    config: Config,
    contract: Contract,
    *,
    videos: Path | None,
    withdrawn: Path | None,
) -> tuple[Catalogue, dict[str, int]]:
    """The catalogue that is asked for, and what has to be done for it in numbers."""
    after, offered = before, before.known[:0]
    if videos is not None:
        table = read_new_videos(videos, contract, config.validation)
        offered = id_array(table["video_id"])
        after = after.with_videos(table)
    gone = before.known[:0]
    if withdrawn is not None:
        ids = ids_of_file(withdrawn, "video_id", contract)
        gone = ids.astype(np.bytes_) if ids.dtype == object else ids
        _check_withdrawn(gone, offered, before.ids, withdrawn)
        after = after.without(gone)
    added = after.num_added - before.num_added
    returned = int(np.isin(offered, before.withdrawn).sum())
    fresh = int((~np.isin(gone, before.withdrawn)).sum())
    return after, {
        "added": added,
        "returned": returned,
        "known": len(offered) - added - returned,
        "withdrawn": fresh,
        "withdrawn_before": len(gone) - fresh,
    }


def _check_withdrawn(gone: Ids, offered: Ids, known: Ids, path: Path) -> None:
    both = gone[np.isin(gone, offered)]
    if len(both):
        raise DataError(
            f"{_named(both)} in both files",
            expected="a video is added or withdrawn",
            next_step=f"remove it from {path} or from --videos",
        )
    unknown = gone[~np.isin(gone, known)]
    if len(unknown):
        raise DataError(
            f"{path} names {_named(unknown)} that the run does not know",
            expected="raw ids of videos in the data, or added since",
            next_step=f"remove them from {path}",
        )


def _named(ids: Ids) -> str:
    shown = [one.decode() if isinstance(one, bytes) else str(one) for one in ids[:_SHOWN].tolist()]
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return f"video{'s' * (len(ids) > 1)} {', '.join(shown)}{more}"


def link_bundle(bundle: Bundle, folder: Path, version: int) -> dict[str, str]:
    """The same files under another version; returns the digests of those that did not change.

    Files are linked where the disk allows it, so they must be replaced, never written into.
    """
    hashes = {}
    old, new = str(bundle.version), str(version)
    for name, digest in bundle.sha256.items():
        source = bundle_file(bundle, name)
        renamed = "/".join(new if part == old else part for part in name.split("/"))
        target = folder / renamed
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.name == "config.pbtxt":
            text = source.read_text(encoding="utf-8")
            target.write_text(re.sub(rf"\b{old}\b", new, text), encoding="utf-8")
            continue
        hashes[renamed] = digest
        try:
            target.hardlink_to(source)
        except OSError:  # a file system without hard links
            shutil.copyfile(source, target)
    return hashes
