"""Draft a contract from a folder of files, for a person to edit."""

from __future__ import annotations

import json
import re
from pathlib import Path

from pydantic import ValidationError

from workflow import toml
from workflow.data.guess import (
    USER_IDS,
    VIDEO_IDS,
    ColumnView,
    Guess,
    base_name,
    free_name,
    guess_event_column,
    guess_feature_column,
    id_column,
    is_one_of,
)
from workflow.data.sniff import Sample, sniff_folder
from workflow.errors import DataError
from workflow.schema import Contract, first_problem

_STEMS = {
    "events": r"event|rating|interaction|log|watch|view|click|history|play",
    "users": r"user|customer|member",
    "videos": r"video|movie|item|film|content|catalog",
}
_SUFFIXES = {".inter": "events", ".user": "users", ".item": "videos"}
_ID_ROLES = {"users": ["user_id"], "videos": ["video_id"], "events": ["user_id", "video_id"]}

Draft = dict[str, tuple[Sample, list[Guess]]]


def draft_contract(folder: Path) -> str:
    """TOML text of a first contract; every guess has a comment, doubtful ones begin with TODO.

    Raises:
        DataError: the folder has no readable table of events.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {folder}", next_step="marquee init --from FOLDER")
    samples = sniff_folder(folder)
    chosen = _choose(samples)
    if "events" not in chosen:
        raise DataError(
            f"no file in {folder} looks like watch events",
            expected="a CSV, TSV, Parquet or RecBole file with a user id, a video id and a time",
            found=", ".join(s.path for s in samples) or "no readable file",
            next_step="see workflow/configs/examples for a contract to start from",
        )
    draft = _guess_all(chosen)
    others = [s.path for s in samples if s not in chosen.values()]
    return _checked(_toml(_name_of(folder), draft, others))


def _choose(samples: list[Sample]) -> dict[str, Sample]:
    """The largest sample that fits each table; what a table is for shows in name or columns."""
    chosen: dict[str, Sample] = {}
    for sample in sorted(samples, key=lambda sample: -sample.rows.num_rows):
        table = _table_of(sample)
        if table and table not in chosen:
            chosen[table] = sample
    return chosen


def _table_of(sample: Sample) -> str | None:
    if sample.suffix in _SUFFIXES:
        return _SUFFIXES[sample.suffix]
    has_user = any(is_one_of(name, USER_IDS) for name in sample.rows.column_names)
    has_video = any(is_one_of(name, VIDEO_IDS) for name in sample.rows.column_names)
    if has_user and has_video:
        return "events"
    if has_user or has_video:
        return "users" if has_user else "videos"
    if sample.is_text and not sample.table.header:  # only the file's name can tell
        for table, pattern in _STEMS.items():
            if re.search(pattern, sample.stem.lower()):
                return table
    return None


def _guess_all(chosen: dict[str, Sample]) -> Draft:
    draft: Draft = {}
    used: set[str] = set()
    for table in ("events", "users", "videos"):
        if table in chosen:
            draft[table] = (chosen[table], _guess_table(table, chosen[table], used))
    for role in ("user_id", "video_id"):
        ids = [g for _, guesses in draft.values() for g in guesses if g.role == role]
        if len({guess.values["dtype"] for guess in ids}) > 1:
            for guess in ids:
                guess.values["dtype"] = "string"
                guess.comment, guess.is_todo = "some of these ids are not numbers", True
    return draft


def _guess_table(table: str, sample: Sample, used: set[str]) -> list[Guess]:
    ids = _find_ids(table, sample)
    guesses: list[Guess] = []
    taken = set(ids.values())
    for source in sample.rows.column_names:
        view = ColumnView(sample, source)
        guess = Guess(base_name(source), source)
        if source in ids:
            id_column(view, guess, ids[source])
            if not sample.table.header:
                guess.comment, guess.is_todo = "guessed from the position", True
        elif table == "events":
            _name_position(sample, guess_event_column(view, guess, taken))
        else:
            role = "user_feature" if table == "users" else "video_feature"
            guess_feature_column(view, guess, role, taken)
        taken.add(guess.role)
        if guess.role not in ("user_id", "video_id", "ignore"):
            free_name(guess, table.rstrip("s"), used)
        guesses.append(guess)
    return guesses


def _find_ids(table: str, sample: Sample) -> dict[str, str]:
    """Source column -> user_id or video_id; without a header the first columns."""
    found: dict[str, str] = {}
    for position, role in enumerate(_ID_ROLES[table]):
        names = USER_IDS if role == "user_id" else VIDEO_IDS
        matches = [name for name in sample.rows.column_names if is_one_of(name, names)]
        matches.sort(key=lambda name: names.split().index(base_name(name)))
        if matches:
            found[matches[0]] = role
        elif not sample.table.header and position < sample.rows.num_columns:
            found[sample.rows.column_names[position]] = role
    return found


def _name_position(sample: Sample, guess: Guess) -> None:
    """A nameless third column of a ratings file is the rating."""
    if sample.table.header or guess.role != "ignore" or not re.search("rating", sample.stem):
        return
    if guess.source == "c3":
        guess.name = "rating"
        guess.become(
            "label", "guessed from the position: a rating; what counts as liked?", True,
            dtype="float32", positive_at_least=4,
        )  # fmt: skip


def _name_of(folder: Path) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("-._") or "my-data"


def _toml(name: str, draft: Draft, others: list[str]) -> str:
    label = next((g for g in draft["events"][1] if g.role == "label"), None)
    by_label = label is not None and "positive_at_least" not in label.values
    lines = [
        "# A first contract, drafted from the files. Check every line, above all those with TODO,",
        "# then try it: marquee validate --dataset custom --source FOLDER --contract THIS_FILE",
        "# Roles, kinds and dtypes are explained in workflow/schema.py.",
        "",
        f"name = {_text(name)}",
        f"watched = {_text('label' if by_label else 'all')}"
        + ("  # TODO a watch is an event with a positive label" if by_label else "")
        + ("" if by_label else "  # every event is a watch"),
    ]
    if others:
        lines.append(f"# Files that no table uses: {', '.join(others)}")
    for table, (sample, guesses) in draft.items():
        lines += ["", f"[{table}]", *_file_lines(sample), "columns = ["]
        lines += [_column_line(guess) for guess in guesses] + ["]"]
    return "\n".join(lines) + "\n"


def _file_lines(sample: Sample) -> list[str]:
    lines = [f"path = {_text(sample.path)}"]
    if not sample.is_text:
        return lines
    table = sample.table
    lines += ['format = "csv"', f"separator = {_text(table.separator)}"]
    lines += [f"encoding = {_text(table.encoding)}"] if table.encoding != "utf-8" else []
    lines += ["header = false  # columns are called c1, c2, ..."] if not table.header else []
    return lines + (['quote = ""'] if not table.quote else [])


def _column_line(guess: Guess) -> str:
    values = {"name": guess.name, "source": guess.source, **guess.values}
    if guess.name == guess.source:
        del values["source"]
    order = ("name", "source", "role", "kind", "dtype")
    keys = [key for key in order if key in values] + [k for k in values if k not in order]
    inside = ", ".join(f"{key} = {_text(values[key])}" for key in keys)
    comment = f"  # {'TODO ' if guess.is_todo else ''}{guess.comment}" if guess.comment else ""
    return f"  {{ {inside} }},{comment}"


def _text(value: object) -> str:
    """A TOML value; its basic strings and booleans are JSON's."""
    return json.dumps(value, ensure_ascii=False)


def _checked(text: str) -> str:
    """`text`, headed by what still has to be done before it loads."""
    try:
        Contract.model_validate(toml.loads(text))
    except ValidationError as error:
        return f"# TODO this draft does not load yet: {first_problem(error)}\n{text}"
    return text
