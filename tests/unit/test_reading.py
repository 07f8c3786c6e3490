"""Text and Parquet files in chunks: separators, encodings, nulls, and errors with a place."""

from __future__ import annotations

import datetime
import gzip
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workflow.data.reading import TableFiles, read_chunks
from workflow.data.times import iso_times, iso_times_by_pattern
from workflow.errors import ContractError, DataError, MarqueeError
from workflow.schema import Column, Table


def column(name: str, dtype: str, role: str = "video_feature", **more: Any) -> Column:
    if role.endswith("feature"):
        more.setdefault("kind", "categorical")
    return Column.model_validate({"name": name, "dtype": dtype, "role": role, **more})


def text_table(path: str, *columns: Column, **more: Any) -> Table:
    return Table(path=path, format="csv", columns=columns, **more)


def read(folder: Path, table: Table, rows: int = 1_000) -> dict[str, list[Any]]:
    whole = pa.concat_tables(read_chunks(folder, table, "videos", rows))
    return dict(whole.to_pydict())


ID = column("video_id", "int64", "video_id")
NAME = column("name", "string", "title")


def test_csv_with_quotes_newlines_and_nulls(tmp_path: Path) -> None:
    (tmp_path / "v.csv").write_text('\ufeffvideo_id,name,n,x\n1,"a, ""b""\nc",5,1.5\n2,,NA, NaN \n')
    table = text_table(
        "v.csv", ID, NAME, column("n", "int64"), column("x", "float32", kind="continuous")
    )
    assert read(tmp_path, table) == {
        "video_id": [1, 2],
        "name": ['a, "b"\nc', None],
        "n": [5, None],
        "x": [1.5, None],
    }


@pytest.mark.parametrize("separator", ["\t", "::", "|~|", ";"])
def test_separators_across_block_borders(
    tmp_path: Path, separator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workflow.data.text._BLOCK_BYTES", 64)  # separators fall onto borders
    rows = [(number, f"title: {number % 7}" + "é:" * (number % 5)) for number in range(2_000)]
    text = "".join(f"{number}{separator}{name} \n" for number, name in rows)
    (tmp_path / "v.dat").write_text(text, encoding="iso-8859-1")
    table = text_table(
        "v.dat",
        column("video_id", "int64", "video_id", source="c1"),
        column("name", "string", "title", source="c2"),
        separator=separator, header=False, quote="", encoding="iso-8859-1",
    )  # fmt: skip
    found = read(tmp_path, table, 100)
    assert found == {"video_id": [n for n, _ in rows], "name": [f"{name} " for _, name in rows]}


def test_chunks_know_their_first_row_and_progress(tmp_path: Path) -> None:
    for file in ("a.csv", "b.csv"):
        (tmp_path / file).write_text("video_id\n" + "7\n" * 25)
    chunks = list(TableFiles(tmp_path, text_table("*.csv", ID), "videos").chunks(10))
    expected = [(f, start, size) for f in "ab" for start, size in ((0, 10), (10, 10), (20, 5))]
    assert [(c.file[0], c.first_row, c.num_rows) for c in chunks] == expected
    assert [c.done for c in chunks] == sorted(c.done for c in chunks) and chunks[-1].done == 1.0


def test_gzip(tmp_path: Path) -> None:
    (tmp_path / "v.csv.gz").write_bytes(gzip.compress(b"video_id,name\n1,a\n"))
    assert read(tmp_path, text_table("v.csv.gz", ID, NAME))["name"] == ["a"]


def test_multi_hot_text_is_split(tmp_path: Path) -> None:
    (tmp_path / "v.csv").write_text("video_id,g,n\n1,a| b||,3|4\n2,,\n")
    table = text_table(
        "v.csv", ID,
        column("g", "string", kind="multi_hot", separator="|"),
        column("n", "int64", kind="multi_hot", separator="|"),
    )  # fmt: skip
    found = read(tmp_path, table)
    assert found["g"] == [["a", "b"], []] and found["n"] == [[3, 4], []]
    (tmp_path / "v.csv").write_text("video_id,g,n\n1,a,1\n2,b,3|x\n")
    with pytest.raises(DataError, match=r"v\.csv row 2, column n: 'x' is not a number"):
        read(tmp_path, table)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("abc", "'abc' is not a number"), ("1.5", "1.5 is not a whole number"), ("inf", "inf")],
)
def test_bad_text_names_file_row_column_and_value(
    tmp_path: Path, value: str, expected: str
) -> None:
    (tmp_path / "v.csv").write_text("video_id\n" + "1\n" * 1_500 + f"{value}\n")
    with pytest.raises(DataError) as caught:
        read(tmp_path, text_table("v.csv", ID), 400)
    assert "v.csv row 1501, column video_id: " + expected in str(caught.value)


def test_integral_floats_are_integers(tmp_path: Path) -> None:
    (tmp_path / "v.csv").write_text("video_id\n1.0\n2e3\n-3\n")
    assert read(tmp_path, text_table("v.csv", ID))["video_id"] == [1, 2000, -3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"video_id,name\n1,a,b\n", "Expected 2 columns, got 3"),
        (b"video_id,name\n1,\xff\n", "invalid UTF8"),
        (b"", "is empty"),
        (b"video_id,name\n", "is empty"),
        (b"video_id,video_id\n1,2\n", "more than once"),
        (b"video_id,nam\n1,a\n", 'source = "nam"'),
        (b"video_id,name,more\n1,a,b\n", "'more' that the contract does not declare"),
    ],
)
def test_damaged_text(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "v.csv").write_bytes(content)
    with pytest.raises(MarqueeError) as caught:
        read(tmp_path, text_table("v.csv", ID, NAME))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_encoding(tmp_path: Path) -> None:
    (tmp_path / "v.csv").write_text("video_id\n1\n")
    with pytest.raises(DataError, match="utf-9"):
        read(tmp_path, text_table("v.csv", ID, encoding="utf-9"))


def test_iso_times(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text("t\n2021-03-04T05:06:07.25+01:00\n2021-03-04\n\n")
    time = column("t", "string", "timestamp", unit="iso")
    table = text_table("e.csv", time, quote="")
    first, second = (
        datetime.datetime(2021, 3, 4, 4, 6, 7, 250_000, datetime.UTC),
        datetime.datetime(2021, 3, 4, tzinfo=datetime.UTC),
    )
    assert read(tmp_path, table)["t"] == [first.timestamp() * 1e6, second.timestamp() * 1e6]
    (tmp_path / "e.csv").write_text("t\n2021-03-04\nyesterday\n")
    with pytest.raises(DataError, match="row 2, column t: 'yesterday' is not a time"):
        read(tmp_path, table)


@pytest.mark.parametrize(
    "text",
    [
        "2021-03-04T05:06:07", "2021-03-04 05:06:07.25", "2021-03-04T05:06:07.123456Z",
        "2021-03-04T05:06+01:00", "2021-03-04T05:06:07-0330", "2021-03-04T05+01", "2021-03-04",
        "2021-03", "20210304", "20210304T050607Z",
        "yesterday", "March 4, 2021", "04/03/2021", "2021-13-04", "2021-03-04T25:00", "", "x2021",
        "2021-03-04T05:06:07 and more", "12:30", None,
    ],
)  # fmt: skip
def test_old_pandas_reads_the_same_times(text: str | None) -> None:
    texts = pd.Series([text], dtype=object)
    pd.testing.assert_series_equal(iso_times_by_pattern(texts), iso_times(texts), check_dtype=False)


def test_parquet_types_that_mean_the_same(tmp_path: Path) -> None:
    when = datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC)
    pq.write_table(
        pa.table(
            {
                "video_id": pa.array([1, 2], pa.uint16()),
                "name": pa.array(["a", None], pa.large_string()).dictionary_encode(),
                "when": pa.array([when, None], pa.timestamp("ms", "UTC")),
                "day": pa.array([when.date(), None], pa.date32()),
                "flag": [True, None],
                "codes": pa.array([[1, 2], None], pa.large_list(pa.int32())),
                "price": pa.array([2, 3], pa.int64()),
            }
        ),
        tmp_path / "v.parquet",
    )
    table = Table(
        path="v.parquet",
        columns=(
            ID, NAME,
            column("when", "int64", "publish_time", unit="s"),
            column("day", "int64", "timestamp", unit="s"),
            column("flag", "int64"),
            column("codes", "int64", kind="multi_hot"),
            column("price", "float32", kind="continuous"),
        ),
    )  # fmt: skip
    micros = int(when.timestamp()) * 10**6
    assert read(tmp_path, table) == {
        "video_id": [1, 2], "name": ["a", None], "when": [micros, None], "day": [micros, None],
        "flag": [1, None], "codes": [[1, 2], []], "price": [2.0, 3.0],
    }  # fmt: skip


def test_ids_beyond_int64_and_text_that_is_not_utf8(tmp_path: Path) -> None:
    pq.write_table(pa.table({"video_id": pa.array([2**63], pa.uint64())}), tmp_path / "v.parquet")
    with pytest.raises(DataError, match="is not an int64"):
        read(tmp_path, Table(path="v.parquet", columns=(ID,)))
    offsets = pa.py_buffer(b"\0\0\0\0\1\0\0\0")
    broken = pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(b"\xff")])
    pq.write_table(pa.table({"name": broken}), tmp_path / "n.parquet")
    with pytest.raises(DataError, match=r"cannot read n\.parquet"):
        read(tmp_path, Table(path="n.parquet", columns=(NAME,)))


def test_lists_need_a_separator_or_a_list_type(tmp_path: Path) -> None:
    pq.write_table(pa.table({"g": ["a|b"], "n": [1]}), tmp_path / "v.parquet")
    split = column("g", "string", kind="multi_hot", separator="|")
    number = column("n", "int64", role="ignore", kind=None)
    assert read(tmp_path, Table(path="v.parquet", columns=(split, number)))["g"] == [["a", "b"]]
    for bad in (
        (column("g", "string", kind="multi_hot"), number),
        (column("g", "string"), column("n", "int64", kind="multi_hot")),
    ):
        with pytest.raises(ContractError):
            read(tmp_path, Table(path="v.parquet", columns=bad))


def test_missing_folder_and_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no source folder"):
        read(tmp_path / "nowhere", text_table("v.csv", ID))
    (tmp_path / "other.txt").write_text("")
    with pytest.raises(DataError, match=r"other\.txt"):
        read(tmp_path, Table(path="*.parquet", columns=(ID,)))
