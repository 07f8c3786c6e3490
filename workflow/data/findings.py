"""What validation finds out about each column, and the errors that stop it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from workflow.errors import MarqueeError
from workflow.roles import TIME_ROLES
from workflow.schema import Column, Contract

WHOLE_TABLE = "*"
_NUM_EXAMPLES = 3


@dataclass
class ColumnReport:
    """One line of `marquee validate`."""

    table: str
    column: str
    role: str
    dtype: str
    rows: int = 0
    nulls: int = 0
    low: float | None = None
    high: float | None = None
    examples: list[str] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)  # reason -> rows
    dropped_at: list[str] = field(default_factory=list)
    warning: str = ""
    error: MarqueeError | None = None

    def see(self, values: pa.Array) -> None:
        """Take in the converted values of one chunk."""
        self.rows += len(values)
        self.nulls += values.null_count
        if len(self.examples) < _NUM_EXAMPLES:
            for value in pc.drop_null(values[:100]).unique() if _is_plain(values) else values[:5]:
                if len(self.examples) < _NUM_EXAMPLES:
                    self.examples.append(self._shown(value.as_py()))
        if pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
            ends = pc.min_max(values).as_py()
            if ends["min"] is not None:
                self.low = ends["min"] if self.low is None else min(self.low, ends["min"])
                self.high = ends["max"] if self.high is None else max(self.high, ends["max"])

    @property
    def result(self) -> str:
        if self.error:
            return "FAIL"
        unsure = self.warning or self.dropped or not self.rows
        return "WARN" if unsure else "PASS"

    def as_dict(self) -> dict[str, Any]:
        return {
            "table": self.table,
            "column": self.column,
            "role": self.role,
            "result": self.result,
            "detail": self._detail(),
            "examples": self.dropped_at or self.examples,
        }

    def _detail(self) -> str:
        if self.error:
            return self.error.what
        if not self.rows:
            return "not checked"
        parts = [self.dtype]
        if self.low is not None and self.high is not None:
            parts.append(f"{self._shown(self.low)} to {self._shown(self.high)}")
        if self.nulls:
            parts.append(f"{self.nulls:,} of {self.rows:,} null")
        parts += [f"{count:,} rows dropped: {reason}" for reason, count in self.dropped.items()]
        return "; ".join(parts + ([self.warning] if self.warning else []))

    def _shown(self, value: Any) -> str:
        if self.role in TIME_ROLES and value is not None:
            return str(np.datetime64(int(value), "us").astype("datetime64[s]")).replace("T", " ")
        if isinstance(value, list):
            return " | ".join(str(element) for element in value)
        return f"{value:g}" if isinstance(value, float) else str(value)


class Findings:
    """The reports of all columns of a contract."""

    def __init__(self, contract: Contract) -> None:
        self._reports: dict[tuple[str, str], ColumnReport] = {
            (table, column.name): ColumnReport(table, column.name, column.role, _type_name(column))
            for table, declared in contract.tables().items()
            for column in declared.columns
            if column.role != "ignore"
        }
        self._failed: list[ColumnReport] = []
        self.dropped: dict[str, int] = {}

    @property
    def failed(self) -> bool:
        return bool(self._failed)

    def column(self, table: str, column: str) -> ColumnReport:
        """The report of a column, or (column "*") of a whole table."""
        return self._reports.setdefault((table, column), ColumnReport(table, column, "table", ""))

    def fail(self, table: str, column: str, error: MarqueeError) -> None:
        """Note an error; the first one of a column counts."""
        self._fail(self.column(table, column), error)

    def fail_undeclared(self, table: str, source: str, error: MarqueeError) -> None:
        """Note a file's column that the contract does not declare."""
        report = ColumnReport(table, source, "undeclared", "")
        self._reports[table, f"undeclared {source}"] = report  # no contract name has a space
        self._fail(report, error)

    def _fail(self, report: ColumnReport, error: MarqueeError) -> None:
        if report.error is None:
            report.error = error
            self._failed.append(report)

    def drop(self, table: str, column: str, reason: str, places: Iterable[str], rows: int) -> None:
        """Note that `rows` rows are left out, and where the first ones are."""
        report = self.column(table, column)
        report.dropped[reason] = report.dropped.get(reason, 0) + rows
        for place in places:
            if len(report.dropped_at) < _NUM_EXAMPLES:
                report.dropped_at.append(place)
        self.dropped[reason] = self.dropped.get(reason, 0) + rows

    def of_table(self, table: str) -> list[ColumnReport]:
        return [report for report in self._reports.values() if report.table == table]

    def dropped_share(self, table: str) -> float:
        """The share of a table's rows that are left out."""
        reports = self.of_table(table)
        rows = max(report.rows for report in reports)
        return sum(sum(report.dropped.values()) for report in reports) / max(rows, 1)

    def worst(self, table: str) -> ColumnReport:
        """The column that cost a table the most rows."""
        return max(self.of_table(table), key=lambda report: sum(report.dropped.values()))

    def as_list(self) -> list[dict[str, Any]]:
        return [report.as_dict() for report in self._reports.values()]

    def raise_first(self) -> None:
        """Raise the first error, with the number of the others, if there is one.

        The error carries all column reports: see `columns_of`.
        """
        if not self._failed:
            return
        first = self._failed[0].error
        assert first is not None
        others = len(self._failed) - 1
        more = f" (and {others} more column{'s' * (others > 1)} failed)" if others else ""
        error = type(first)(
            first.what.rstrip(".") + more,
            expected=first.expected,
            found=first.found,
            next_step=first.next_step,
        )
        error.columns = self.as_list()  # type: ignore[attr-defined]
        raise error from first


def columns_of(error: MarqueeError) -> list[dict[str, Any]]:
    """The column reports that a failed `validate` put on its error; empty for other errors."""
    columns: list[dict[str, Any]] = getattr(error, "columns", [])
    return columns


def _type_name(column: Column) -> str:
    return f"list of {column.dtype}" if column.kind == "multi_hot" else column.dtype


def _is_plain(values: pa.Array) -> bool:
    return not pa.types.is_list(values.type)
