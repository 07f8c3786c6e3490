"""Look at an unknown file: its format, separator, header, encoding, and a sample of its rows."""

from __future__ import annotations

import codecs
import gzip
import re
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from workflow.data.reading import reading
from workflow.data.text import read_text_batches, text_names
from workflow.schema import Table

SAMPLE_ROWS = 200_000
_TEXT = {".csv", ".tsv", ".txt", ".dat", ".inter", ".user", ".item"}
_RECBOLE_HEADER = re.compile(r"^[^:\s]+:(token|token_seq|float|float_seq)$")
_SEPARATORS = ("::", "\t", ",", ";", "|")


@dataclass(frozen=True)
class Sample:
    """One table's files and its first rows, as text or in Parquet's own types.

    `table` has no columns: it only says how to read the files.
    """

    path: str  # as a contract would say it
    stem: str
    suffix: str
    table: Table
    rows: pa.Table
    is_recbole: bool = False

    @property
    def is_text(self) -> bool:
        return self.table.format == "csv"


def sniff_folder(folder: Path) -> list[Sample]:
    """A sample of every readable table; the Parquet files of a subfolder are one table."""
    samples = []
    for path in sorted(entry for entry in folder.iterdir() if entry.name[0] not in "._"):
        if path.is_dir():
            parts = sorted(path.rglob("*.parquet"))
            if parts:
                samples.append(_parquet(parts[0], path.name, path.name))
        elif path.suffix == ".parquet":
            samples.append(_parquet(path, path.name, path.stem))
        elif _suffix(path) in _TEXT and path.stat().st_size:
            samples.append(_text(path))
    return samples


def _suffix(path: Path) -> str:
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    return suffixes[-1].lower() if suffixes else ""


def _parquet(file: Path, path: str, stem: str) -> Sample:
    with reading(file.name):
        parquet = pq.ParquetFile(file)
        batches = parquet.iter_batches(batch_size=SAMPLE_ROWS)
        first = next(batches, None)
        rows = (
            parquet.schema_arrow.empty_table() if first is None else pa.Table.from_batches([first])
        )
    return Sample(path, stem, ".parquet", Table(path=path, columns=()), rows)


def _text(file: Path) -> Sample:
    encoding = _encoding(file)
    lines = _first_lines(file, encoding)
    separator = _separator(lines, _suffix(file))
    fields = lines[0].split(separator)
    is_recbole = all(_RECBOLE_HEADER.match(field) for field in fields)
    quoted = separator in ",;" or f'"{separator}' in "".join(lines)
    table = Table(
        path=file.name,
        format="csv",
        separator=separator,
        encoding=encoding,
        header=is_recbole or _looks_like_header(fields),
        quote='"' if quoted and not is_recbole else "",
        columns=(),
    )
    with reading(file.name):
        names = text_names(file, table)
        first = next(read_text_batches(file, table, names, SAMPLE_ROWS), None)
    rows = first[0] if first else pa.table({name: pa.array([], pa.string()) for name in names})
    stem = file.name.split(".")[0]
    return Sample(file.name, stem, _suffix(file), table, rows, is_recbole)


def _encoding(file: Path) -> str:
    decoder = codecs.getincrementaldecoder("utf-8")()
    with _opened(file) as stream:
        try:
            while block := stream.read(1 << 20):
                decoder.decode(block)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return "iso-8859-1"
    return "utf-8"


def _opened(file: Path) -> gzip.GzipFile:
    return gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb")  # type: ignore[return-value]


def _first_lines(file: Path, encoding: str) -> list[str]:
    with _opened(file) as stream:
        text = stream.read(1 << 16).decode(encoding, errors="replace")
    lines = text.removeprefix("\ufeff").splitlines()
    return [line for line in lines[:51] if line.strip()][:50] or [""]


def _separator(lines: list[str], suffix: str) -> str:
    """The candidate that divides most lines into the same number of fields."""
    if suffix in (".inter", ".user", ".item"):
        return "\t"
    lines = lines[:-1] or lines  # the last one may be cut

    def agreement(separator: str) -> float:
        wanted = lines[0].count(separator)
        return sum(line.count(separator) == wanted for line in lines) if wanted else 0

    return max(_SEPARATORS, key=agreement)


def _looks_like_header(fields: list[str]) -> bool:
    names = [field.strip().strip('"') for field in fields]
    return len(set(names)) == len(names) and not any(_is_number(name) or not name for name in names)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
