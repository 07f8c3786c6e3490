"""New raw events into a copy of a run's validated tables.

Ids keep ascending order, so rows may move where new ids come in between; they are numbers within
one state of a run. What models know an id by is its index in the vocabulary (features/extend.py),
which stays. Events are merged into the parts of their users, which is what every reader relies on.
"""

from __future__ import annotations

import shutil
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from workflow.config import Config
from workflow.console import Report, no_report
from workflow.data.entities import canonical_videos, complete
from workflow.data.events import Spool
from workflow.data.ids import IdTable
from workflow.data.parts import PartStats, Rows, part_ends, write_parts
from workflow.data.reading import TableFiles
from workflow.data.tables import event_files
from workflow.data.validate import Validation
from workflow.errors import ContractError, DataError
from workflow.run import Run, read_json, write_json
from workflow.schema import Contract, Table

Array = np.ndarray[Any, Any]
_IDS = {"users": "user_id", "videos": "video_id"}
_ROWS_PER_GROUP = 500_000


def append_events(
    run: Run,
    target: Run,
    config: Config,
    contract: Contract,
    files: dict[str, Path],
    report: Report = no_report,
    *,
    refreshed: pa.Table | None = None,
) -> dict[str, Any]:
    """Write `target.data`: the tables of `run` with new events, users and videos.

    The rules of `marquee validate` hold (VALIDATION.md). Besides, every event must be later than
    all that the run has. Users and videos of `files` that the run knows take their new values.

    Args:
        files: "events" (a file, or a folder of them) and perhaps "users" and "videos" (a file
            each), raw and as the contract declares them.
        refreshed: canonical rows of videos that the run's bundle has and its tables do not.
    Returns:
        {"events", "users", "videos"}: how many came; "watched", "dropped" {reason: rows},
        "first_timestamp", "last_timestamp", "columns" as of validation.
    Raises:
        ContractError, DataError: as validation; or events that are not later.
    """
    data = run.require(run.data, "validated data", "marquee validate")
    shutil.rmtree(target.data, ignore_errors=True)
    target.data.mkdir(parents=True)
    declared = {name: _declared(name, path, contract) for name, path in files.items()}
    appending = _Appending(config, contract, declared, target.data, report)
    appending.continues(run, contract, files, refreshed)
    summary = appending.run()
    write_json(target.data / "report.json", _totals(read_json(data / "report.json"), summary))
    return summary


def _declared(name: str, path: Path, contract: Contract) -> Table:
    """The contract's table, read from this file or folder."""
    table = {str(one): table for one, table in contract.tables().items()}.get(name)
    if table is None:
        raise ContractError(
            f"the contract declares no {name} table",
            expected=f"no --{name}: {name} come from the events",
        )
    if not path.exists():
        raise DataError(f"no file {path}", next_step=f"correct --{name}")
    changes: dict[str, Any] = {"path": path.name}
    if path.is_file():
        changes["format"] = "parquet" if path.suffix == ".parquet" else "csv"
    return table.model_copy(update=changes)


class _Appending(Validation):
    """A validation of new files whose ids continue those of a run."""

    def __init__(
        self,
        config: Config,
        contract: Contract,
        declared: dict[str, Table],
        folder: Path,
        report: Report,
    ) -> None:
        always = {  # a contract without the table takes all ids from events
            f"unknown_{name}": "keep"
            for name in ("user", "video")
            if f"{name}s" not in contract.tables()
        }
        rules = config.validation.model_copy(update=always)
        tables = {name: declared.get(name) for name in ("events", "users", "videos")}
        super().__init__(
            config.model_copy(update={"validation": rules}), contract.model_copy(update=tables),
            folder, folder, report,
        )  # fmt: skip

    def continues(
        self, run: Run, contract: Contract, files: dict[str, Path], refreshed: pa.Table | None
    ) -> None:
        """What the new files go on from, and where they are."""
        self.whole, self.files = contract, files
        self.parts = event_files(run)
        self.before = {name: pq.read_table(run.data / f"{name}.parquet") for name in _IDS}
        self.num_before = {name: table.num_rows for name, table in self.before.items()}
        if refreshed is not None:
            self._also_known(refreshed)
        self.last_timestamp = read_json(run.data / "report.json")["last_timestamp"]

    def _also_known(self, refreshed: pa.Table) -> None:
        """Videos after the last row: events may name them, which none has done yet."""
        videos = self.before["videos"]
        known = pc.is_in(refreshed["video_id"], value_set=videos["video_id"].combine_chunks())
        more = _like(refreshed.filter(pc.invert(known)), videos.schema)
        self.before["videos"] = pa.concat_tables([videos, more]).combine_chunks()

    def _table_files(self, name: str, table: Table) -> TableFiles:
        return TableFiles(self.files[name].absolute().parent, table, name)

    def _id_table(self, name: str, entities: pa.Table | None) -> IdTable:
        known = self.before[name][_IDS[name]].combine_chunks()
        if entities is not None:
            ids = entities[_IDS[name]].combine_chunks()
            new = ids.filter(pc.invert(pc.is_in(ids, value_set=known)))
            known = pa.concat_arrays([known, new])
        return IdTable(known)

    def _write(
        self, entities: dict[str, pa.Table | None], ids: dict[str, IdTable], spool: Spool
    ) -> PartStats:
        orders = {name: table.order() for name, table in ids.items()}
        rows = Rows(
            Rows.of_codes(orders["users"], len(ids["users"].ids)),
            Rows.of_codes(orders["videos"], len(ids["videos"].ids)),
            ids["users"].counts[orders["users"]],
        )
        stats = write_parts(
            spool.path, rows, self.work / "new", self.contract.watched == "all",
            self.rules.rows_per_partition, self.report,
        )  # fmt: skip
        self._check_watches(stats, spool)
        new = pq.read_table(self.work / "new").combine_chunks()
        self._check_later(new)
        moved = {}
        for name in _IDS:
            table = self._entities(name, entities[name], ids[name])
            pq.write_table(table, self.folder / f"{name}.parquet")
            old, now = (t[_IDS[name]].combine_chunks() for t in (self.before[name], table))
            moved[name] = np.append(np.int32(0), 1 + pc.index_in(old, value_set=now).to_numpy())
        self._merge(new, moved, len(orders["users"]))
        return stats

    def _check_later(self, new: pa.Table) -> None:
        times = new["timestamp"].to_numpy()
        early = int((times <= self.last_timestamp).sum())
        if early:
            known = early == len(times)
            raise DataError(
                f"{early:,} of {len(times):,} events are not later than those of the run",
                expected=f"events after {_day(self.last_timestamp)}, the run's last",
                found=f"events from {_day(times.min())} to {_day(times.max())}",
                next_step="nothing, if they were appended before; else marquee run on all raw files"
                if known
                else "leave those out, or marquee run on all raw files",
            )

    def _entities(self, name: str, given: pa.Table | None, ids: IdTable) -> pa.Table:
        """Known rows, new rows and rows with new values, by ascending id."""
        role, before = _IDS[name], self.before[name]
        known = before[role].combine_chunks()
        named = known.slice(0, 0) if given is None else given[role].combine_chunks()
        of_events = ids.ids.take(pa.array(ids.kept[ids.kept >= ids.num_known]))
        fresh = IdTable(named)
        fresh.count(fresh.find_or_add(of_events))
        table = complete(given, fresh, role)
        if name == "videos":
            table = canonical_videos(table, self.whole if given is not None else self.contract)
        table = _like(table, before.schema)
        stays = pc.invert(pc.is_in(known, value_set=table[role].combine_chunks()))
        table = pa.concat_tables([before.filter(stays), table]).combine_chunks()
        return table.take(pc.sort_indices(table[role]))

    def _merge(self, new: pa.Table, moved: dict[str, Array], num_users: int) -> None:
        """The run's parts with the new events of their users, each sorted by user and time."""
        (self.folder / "events").mkdir()
        new_user, first, number = new["user_row"].to_numpy(), 0, 0
        for at, path in enumerate(self.parts):
            part = pq.read_table(path)
            for place, name in enumerate(("user_row", "video_row")):
                values = moved[f"{name.removesuffix('_row')}s"][part[name].to_numpy()]
                part = part.set_column(place, name, pa.array(values.astype(np.int32)))
            last = num_users if at + 1 == len(self.parts) else part["user_row"][-1].as_py()
            stop = int(np.searchsorted(new_user, last, side="right"))
            joined = pa.concat_tables([part, new.slice(first, stop - first).cast(part.schema)])
            order = np.lexsort((joined["timestamp"].to_numpy(), joined["user_row"].to_numpy()))
            number = self._write_part(joined.take(pa.array(order)), number)
            first = stop
            self.report(at + 1, len(self.parts), "merging events")

    def _write_part(self, part: pa.Table, number: int) -> int:
        """One file; several where it has outgrown twice the size of a part."""
        user, limit = part["user_row"].to_numpy(), self.rules.rows_per_partition
        stops = [len(user)]
        if len(user) > 2 * limit:
            stops = np.searchsorted(user, part_ends(np.bincount(user)[1:], limit), "right").tolist()
        for first, stop in zip([0, *stops], stops, strict=False):
            path = self.folder / "events" / f"part-{number:05d}.parquet"
            pq.write_table(part.slice(first, stop - first), path, row_group_size=_ROWS_PER_GROUP)
            number += 1
        return number

    def _summary(self, ids: dict[str, IdTable], spool: Spool, stats: PartStats) -> dict[str, Any]:
        found = super()._summary(ids, spool, stats)
        return {
            "events": found["num_events"],
            "watched": found["num_watched"],
            "repeated": found["num_repeated"],
            **{name: found[f"num_{name}"] - self.num_before[name] for name in _IDS},
            "num_users": found["num_users"],
            "num_videos": found["num_videos"],
            "num_parts": len(list((self.folder / "events").glob("*.parquet"))),
            **{name: found[name] for name in ("first_timestamp", "last_timestamp", "dropped")},
            "columns": found["columns"],
        }


def _like(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of `schema`; those that are not there are null, lists are empty."""
    columns = []
    for field in schema:
        if field.name in table.column_names:
            columns.append(table[field.name].cast(field.type))
        elif pa.types.is_list(field.type):
            columns.append(pa.array([[]] * table.num_rows, field.type))
        else:
            columns.append(pa.nulls(table.num_rows, field.type))
    return pa.table(columns, schema=schema)


def _day(timestamp: int) -> str:
    moment = datetime.fromtimestamp(int(timestamp), timezone.utc)
    return moment.isoformat(sep=" ", timespec="seconds")


def _totals(before: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The validation report of everything."""
    dropped = dict(before["dropped"])
    for reason, rows in new["dropped"].items():
        dropped[reason] = dropped.get(reason, 0) + rows
    return before | {
        "num_events": before["num_events"] + new["events"],
        "num_watched": before["num_watched"] + new["watched"],
        "num_repeated": before["num_repeated"] + new["repeated"],
        "last_timestamp": new["last_timestamp"],
        "dropped": dropped,
        **{name: new[name] for name in ("num_users", "num_videos", "num_parts")},
    }
