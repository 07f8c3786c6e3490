"""Source files to validated tables: the rules are in VALIDATION.md, next to this file."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from workflow.config import Config
from workflow.console import Report, no_report
from workflow.data.entities import canonical_videos, complete, id_type, load_entities
from workflow.data.events import Spool
from workflow.data.findings import WHOLE_TABLE, ColumnReport, Findings
from workflow.data.ids import IdTable
from workflow.data.parts import PartStats, Rows, write_parts
from workflow.data.reading import ROWS_PER_CHUNK, TableFiles
from workflow.errors import DataError, MarqueeError
from workflow.remote import Folder
from workflow.run import Run, replaced_folder, write_json
from workflow.schema import Contract, Table

_ENTITIES = {"users": "user_id", "videos": "video_id"}
_ENTITY_SHARE, _READ_SHARE = 0.05, 0.8  # of the progress bar


def validate(
    run: Run, config: Config, contract: Contract, source: Folder, report: Report = no_report
) -> dict[str, Any]:
    """Check `source` against `contract` and write `run.data`; memory is bounded by a partition.

    Unusable events (no id, time or label, a negative watch time, an unknown user or video under
    the rule "drop") are counted and left out; everything else that is wrong stops validation,
    and so does a share of left-out rows above `validation.max_bad_fraction`. VALIDATION.md has
    every rule. When validation stops, `run.data` keeps what it had.

    Returns:
        num_events, num_users, num_videos, num_watched, num_repeated, first_timestamp,
        last_timestamp, dropped {reason: rows}, added {"users", "videos"} (known from events
        only) and columns [{table, column, role, result, detail, examples}]; also in report.json.
    Raises:
        ContractError, DataError: the first problem; `findings.columns_of(error)` has them all.
        StorageError: the disk is full.
    """
    with replaced_folder(run.data) as folder:
        summary = Validation(config, contract, source, folder, report).run()
        write_json(folder / "report.json", summary)
    return summary


class Validation:
    """One validation: read tables, spool events, write what `run.data` will hold."""

    def __init__(
        self, config: Config, contract: Contract, source: Folder, folder: Path, report: Report
    ) -> None:
        self.rules = config.validation
        self.contract = contract
        self.source = source
        self.folder = folder
        self.report = report
        self.findings = Findings(contract)
        self.work = folder / ".work"

    def run(self) -> dict[str, Any]:
        files = self._open_tables()
        entities = {name: self._load(name, files) for name in _ENTITIES}
        ids = {name: self._id_table(name, entities[name]) for name in _ENTITIES}
        self.work.mkdir()
        spool = Spool(
            self.work / "events.arrow", self.contract.events, ids["users"], ids["videos"],
            self.rules, self.findings,
        )  # fmt: skip
        self._read_events(files.get("events"), spool)
        self.findings.raise_first()
        self._check_dropped()
        stats = self._write(entities, ids, spool)
        shutil.rmtree(self.work)
        return self._summary(ids, spool, stats)

    def _open_tables(self) -> dict[str, TableFiles]:
        """Every table whose files exist and have the contract's columns."""
        opened: dict[str, TableFiles] = {}
        for name, table in self.contract.tables().items():
            try:
                files = self._table_files(name, table)
                problems = files.problems()
            except MarqueeError as error:
                self.findings.fail(name, WHOLE_TABLE, error)
                continue
            for problem in problems:
                fail = self.findings.fail if problem.is_declared else self.findings.fail_undeclared
                fail(name, problem.column, problem.error)
            if not problems:
                opened[name] = files
        return opened

    def _table_files(self, name: str, table: Table) -> TableFiles:
        return TableFiles(self.source, table, name)

    def _load(self, name: str, files: dict[str, TableFiles]) -> pa.Table | None:
        if name not in files:
            return None
        self.report(0, 1, f"reading {name}")
        try:
            return load_entities(files[name], _ENTITIES[name], self.findings)
        except MarqueeError as error:
            self.findings.fail(name, WHOLE_TABLE, error)
            return None

    def _id_table(self, name: str, entities: pa.Table | None) -> IdTable:
        role = _ENTITIES[name]
        if entities is not None:
            return IdTable(entities[role].combine_chunks())
        column = self.contract.events.one(role)
        assert column is not None
        return IdTable(pa.array([], id_type(column)))

    def _read_events(self, files: TableFiles | None, spool: Spool) -> None:
        """Spool all events; after any failure the chunk at hand is the last one."""
        if files is None:
            return
        size = min(ROWS_PER_CHUNK, self.rules.rows_per_partition)
        try:
            for chunk in files.chunks(size):
                spool.add(chunk)
                done = _ENTITY_SHARE + chunk.done * (_READ_SHARE - _ENTITY_SHARE)
                self.report(done, 1, f"{spool.num_read:,} events read")
                if self.findings.failed:
                    break
        except MarqueeError as error:
            self.findings.fail("events", WHOLE_TABLE, error)
        finally:
            spool.close()

    def _check_dropped(self) -> None:
        """Stop when too much of a table was left out."""
        for table in self.contract.tables():
            share = self.findings.dropped_share(table)
            if share > self.rules.max_bad_fraction or share == 1:
                worst = self.findings.worst(table)
                self.findings.fail(table, worst.column, self._too_many(table, share, worst))
        self.findings.raise_first()

    def _too_many(self, table: str, share: float, worst: ColumnReport) -> DataError:
        limit = self.rules.max_bad_fraction
        reasons = (f"{rows:,} rows with {why}" for why, rows in worst.dropped.items())
        return DataError(
            f"{share:.1%} of the {table} rows cannot be used",
            expected=f"at most {limit:.1%} (validation.max_bad_fraction)",
            found=f"{', '.join(reasons)}; first: {', '.join(worst.dropped_at)}",
            next_step="correct the files, or raise --set validation.max_bad_fraction",
        )

    def _write(
        self, entities: dict[str, pa.Table | None], ids: dict[str, IdTable], spool: Spool
    ) -> PartStats:
        orders = {name: table.order() for name, table in ids.items()}
        users = complete(entities["users"], ids["users"], "user_id")
        pq.write_table(users, self.folder / "users.parquet")
        videos = complete(entities["videos"], ids["videos"], "video_id")
        pq.write_table(canonical_videos(videos, self.contract), self.folder / "videos.parquet")
        rows = Rows(
            Rows.of_codes(orders["users"], len(ids["users"].ids)),
            Rows.of_codes(orders["videos"], len(ids["videos"].ids)),
            ids["users"].counts[orders["users"]],
        )

        def report(done: float, total: float, note: str) -> None:
            self.report(_READ_SHARE + done / total * (1 - _READ_SHARE), 1, note)

        stats = write_parts(
            spool.path, rows, self.folder / "events", self.contract.watched == "all",
            self.rules.rows_per_partition, report,
        )  # fmt: skip
        self._check_watches(stats, spool)
        return stats

    def _check_watches(self, stats: PartStats, spool: Spool) -> None:
        label = self.contract.events.one("label")
        if stats.num_watched == 0:
            assert label is not None  # with watched = "all" every event counts
            error = DataError(
                "no event counts as a watch: no label is positive",
                next_step=f"check positive_at_least of {label.name} in the contract",
            )
            self.findings.fail("events", label.name, error)
            self.findings.raise_first()
        if label is not None and spool.label_sum in (0, spool.num_events):
            same = "negative" if spool.label_sum == 0 else "positive"
            self.findings.column("events", label.name).warning = f"every label is {same}"
        if stats.num_repeated:
            self.findings.column(
                "events", self._time_name()
            ).warning = f"{stats.num_repeated:,} events repeat a user, video and second (kept)"

    def _time_name(self) -> str:
        column = self.contract.events.one("timestamp")
        assert column is not None
        return column.name

    def _summary(self, ids: dict[str, IdTable], spool: Spool, stats: PartStats) -> dict[str, Any]:
        return {
            "num_events": spool.num_events,
            "num_users": len(ids["users"].kept),
            "num_videos": len(ids["videos"].kept),
            "num_watched": stats.num_watched,
            "num_repeated": stats.num_repeated,
            "num_parts": stats.num_parts,
            "first_timestamp": stats.first_timestamp,
            "last_timestamp": stats.last_timestamp,
            "dropped": self.findings.dropped,
            "added": {name: len(table.kept) - table.num_known for name, table in ids.items()},
            "columns": self.findings.as_list(),
        }
