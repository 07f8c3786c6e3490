"""The data contract: every column of a dataset, declared once.

A contract is a TOML file with three tables (events, users, videos). Validation, NVTabular
selectors, model inputs, Triton tensors and the client all derive from it.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePath
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from workflow import toml
from workflow.errors import ContractError
from workflow.roles import (
    FEATURE_ROLES,
    FIXED_NAME_ROLES,
    REQUIRED_ROLES,
    RESERVED_NAMES,
    TABLE_ROLES,
    TAG_TABLES,
    TIME_ROLES,
    Dtype,
    Kind,
    Role,
    TableName,
    Tag,
    TimeUnit,
)


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Column(_Strict):
    """One column: its name here, where it is read from, what it means.

    `source` is the column's name in the file (default: `name`). A continuous column may be
    logged (`log = true`); a multi-hot column in a CSV file is split at `separator`; a timestamp
    has a `unit`; a numeric label becomes yes/no with `positive_at_least`. `tags` say what the page
    does with the column.
    """

    name: str = Field(min_length=1)
    role: Role
    dtype: Dtype
    kind: Kind | None = None
    source: str | None = None
    log: bool = False
    separator: str | None = None
    unit: TimeUnit | None = None
    positive_at_least: float | None = None
    tags: tuple[Tag, ...] = ()

    @property
    def source_name(self) -> str:
        return self.source or self.name

    @property
    def is_feature(self) -> bool:
        return self.role in FEATURE_ROLES

    @model_validator(mode="after")
    def _consistent(self) -> Column:
        rules = (self._kind_rules, self._dtype_rules, self._name_rules, self._tag_rules)
        for is_wrong, problem in (found for rule in rules for found in rule()):
            if is_wrong:
                raise ValueError(f"column {self.name}: {problem}")
        return self

    def _kind_rules(self) -> list[tuple[bool, str]]:
        is_time, has_kind = self.role in TIME_ROLES, self.is_feature or self.role == "page"
        return [
            (has_kind and self.kind is None, f"a {self.role} needs a kind"),
            (not has_kind and self.kind is not None, "only features have a kind"),
            (
                self.role == "context" and self.kind != "categorical",
                "context columns are categorical",
            ),
            (self.role == "duration_s" and self.kind != "continuous", "a duration is continuous"),
            (is_time and self.unit is None, "say its unit (s, ms, us, ns or iso)"),
        ]

    def _dtype_rules(self) -> list[tuple[bool, str]]:
        is_time = self.role in TIME_ROLES
        time_dtype = "string" if self.unit == "iso" else "int64"
        is_number = self.role in ("label", "watch_s", "propensity")
        is_string, is_float = self.dtype == "string", self.dtype == "float32"
        return [
            (self.kind == "continuous" and is_string, "a continuous column cannot be a string"),
            (self.kind == "multi_hot" and is_float, "a multi-hot column is int64 or string"),
            (self.role in ("user_id", "video_id") and is_float, "an id is int64 or string"),
            (is_number and is_string, f"a {self.role} is int64 or float32"),
            (self.role == "withdrawn" and self.dtype != "int64", "withdrawn is int64, 0 or 1"),
            (
                is_time and self.dtype != time_dtype,
                f"with unit {self.unit} its dtype is {time_dtype}",
            ),
        ]

    def _name_rules(self) -> list[tuple[bool, str]]:
        is_id = self.role in ("user_id", "video_id")
        rules = [
            (self.name in RESERVED_NAMES, "this name is taken by a derived feature"),
            (
                self.is_feature and self.name in FIXED_NAME_ROLES,
                f"this name is taken by the role {self.name}",
            ),
            (is_id and self.name != self.role, f'name it "{self.role}" (use source for the file)'),
            # It becomes part of file names and the name of a Triton tensor.
            (
                re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.name) is None,
                "a name has letters, digits and _ only (use source for the file)",
            ),
        ]
        return rules if self.role != "ignore" else []

    def _tag_rules(self) -> list[tuple[bool, str]]:
        kinds = ("categorical", "multi_hot")
        return [
            (self.role == "page" and not self.tags, "the page needs a tag to know what it is for"),
            (bool(self.tags) and self.role not in (*FEATURE_ROLES, "page"), "only features and"
             " columns of the role page have tags"),
            (bool(self.tags) and self.kind not in kinds, "a tagged column is categorical or"
             " multi-hot"),
            ("maturity" in self.tags and self.kind != "categorical", "a rating is categorical"),
        ]  # fmt: skip


class Table(_Strict):
    """One table: its files (a file, a folder or a glob, relative to the source folder).

    The rest is for text files (format = "csv"). `separator` may be several characters long.
    Without a `header` the columns are called c1, c2, ... `quote` is empty where quotes mean
    nothing.
    """

    path: str = Field(min_length=1)
    format: Literal["parquet", "csv"] = "parquet"
    separator: str = Field(",", min_length=1)
    encoding: str = "utf-8"
    header: bool = True
    quote: str = Field('"', max_length=1)
    columns: tuple[Column, ...]

    @field_validator("path")
    @classmethod
    def _relative(cls, path: str) -> str:
        if PurePath(path).is_absolute():
            raise ValueError(f"path {path}: give it relative to the source folder")
        return path

    def of_role(self, role: str) -> tuple[Column, ...]:
        return tuple(column for column in self.columns if column.role == role)

    def one(self, role: str) -> Column | None:
        found = self.of_role(role)
        return found[0] if found else None

    def tagged(self, tag: Tag) -> tuple[Column, ...]:
        return tuple(column for column in self.columns if tag in column.tags)


class Contract(_Strict):
    """A whole dataset.

    `watched` says which events count as watches (retrieval targets and history): "all" events,
    or those whose "label" is positive. `ratings` lists maturity ratings that are text, mildest
    first; those that are numbers order themselves. `utc_offsets`: hours that clocks are ahead of
    UTC, by value of the columns tagged country; hour and weekday are then local.
    """

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    title: str = ""
    watched: Literal["all", "label"] = "label"
    ratings: tuple[str, ...] = ()
    utc_offsets: dict[str, Annotated[float, Field(ge=-12, le=14)]] = {}
    events: Table
    users: Table | None = None
    videos: Table | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Contract:
        for name, table in self.tables().items():
            _check_table(name, table)
            _check_tags(name, table)
        if self.watched == "label" and self.events.one("label") is None:
            raise ValueError('watched = "label" needs an events column with the role label')
        _check_names([c for table in self.tables().values() for c in table.columns])
        _check_id_dtypes(self.events, "user_id", self.users)
        _check_id_dtypes(self.events, "video_id", self.videos)
        _check_ratings(self.tables(), self.ratings)
        if self.utc_offsets and not (
            self.tagged("users", "country") or self.tagged("events", "country")
        ):
            raise ValueError("utc_offsets: no column of users or events has the tag country")
        return self

    def tables(self) -> dict[TableName, Table]:
        every: dict[TableName, Table | None] = {
            "events": self.events, "users": self.users, "videos": self.videos,
        }  # fmt: skip
        return {name: table for name, table in every.items() if table is not None}

    def id_column(self, role: Literal["user_id", "video_id"]) -> Column:
        column = self.events.one(role)
        assert column is not None  # guaranteed by _check_table
        return column

    def features(self, role: str) -> tuple[Column, ...]:
        """All feature columns of a role: context, user_feature or video_feature.

        A video's duration is one of its features.
        """
        roles = (role, "duration_s") if role == "video_feature" else (role,)
        columns = (c for table in self.tables().values() for c in table.columns)
        return tuple(column for column in columns if column.role in roles)

    def tagged(self, table: TableName, tag: Tag) -> Column | None:
        """The column of a table that the page knows by `tag` (of several rows, the first)."""
        found = self.tables()[table].tagged(tag) if table in self.tables() else ()
        return found[0] if found else None

    @property
    def duration(self) -> Column | None:
        """The column with the seconds that a video lasts; its name is free."""
        return self.videos.one("duration_s") if self.videos else None

    @property
    def has_watch_time(self) -> bool:
        return self.events.one("watch_s") is not None

    @property
    def has_label(self) -> bool:
        return self.events.one("label") is not None

    @property
    def has_graded_history(self) -> bool:
        """Whether a watch may be positive or negative, so that histories carry labels."""
        return self.has_label and self.watched == "all"

    @property
    def has_propensity(self) -> bool:
        return self.events.one("propensity") is not None

    @property
    def has_publish_time(self) -> bool:
        return self.videos is not None and self.videos.one("publish_time") is not None


def _check_table(name: TableName, table: Table) -> None:
    for role in REQUIRED_ROLES[name]:
        if len(table.of_role(role)) != 1:
            raise ValueError(f"table {name}: exactly one column must have the role {role}")
    for role in sorted((FIXED_NAME_ROLES - {"user_id", "video_id", "timestamp"}) | {"duration_s"}):
        if len(table.of_role(role)) > 1:
            raise ValueError(f"table {name}: at most one column may have the role {role}")
    for column in table.columns:
        if column.role not in TABLE_ROLES[name]:
            raise ValueError(f"table {name}, column {column.name}: no role {column.role} here")


def _check_tags(name: TableName, table: Table) -> None:
    for tag, tables in TAG_TABLES.items():
        found = [column for column in table.columns if tag in column.tags]
        if found and name not in tables:
            raise ValueError(f"table {name}, column {found[0].name}: no tag {tag} here")
        if len(found) > 1 and tag != "row":
            raise ValueError(f"table {name}: at most one column may have the tag {tag}")
        if found and tag == "country" and name == "users" and found[0].kind == "multi_hot":
            raise ValueError(f"table users, column {found[0].name}: a user is in one country")


def _check_ratings(tables: dict[TableName, Table], ratings: tuple[str, ...]) -> None:
    """All maturity columns on one scale."""
    columns = [column for table in tables.values() for column in table.tagged("maturity")]
    for column in columns:
        if column.dtype == "float32" or column.dtype != columns[0].dtype:
            raise ValueError(f"column {column.name}: ratings are all int64 or all string")
    is_text = any(column.dtype == "string" for column in columns)
    if is_text != bool(ratings) or len(set(ratings)) != len(ratings):
        raise ValueError(
            "ratings: list each text rating of the maturity columns once, and no other"
        )


def _check_names(columns: list[Column]) -> None:
    seen: set[str] = set()
    for column in columns:
        if column.role in ("user_id", "video_id", "ignore"):
            continue
        if column.name in seen:
            raise ValueError(f"column {column.name} is declared twice; rename one (use source)")
        seen.add(column.name)


def _check_id_dtypes(events: Table, role: str, other: Table | None) -> None:
    """Ids are matched by value, so a table of strings would never meet events of integers."""
    ours, theirs = events.one(role), other.one(role) if other else None
    if ours and theirs and ours.dtype != theirs.dtype:
        raise ValueError(
            f"{role} is {ours.dtype} in events but {theirs.dtype} in its own table; make them equal"
        )


def load_contract(path: Path) -> Contract:
    """Read and check a contract file.

    Raises:
        ContractError: the file is missing, is not TOML, or declares something inconsistent.
    """
    try:
        return Contract.model_validate(toml.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ContractError(
            f"no contract file {path}", next_step="marquee init --from FOLDER"
        ) from None
    except (toml.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ContractError(f"contract {path} is not TOML", found=str(error)) from error
    except ValidationError as error:
        raise ContractError(f"contract {path}: {first_problem(error)}") from error


def first_problem(error: ValidationError) -> str:
    """The first problem of a pydantic error as one short phrase."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message
