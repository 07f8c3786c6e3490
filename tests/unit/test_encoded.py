"""Encoded tables: row 0, padded lists, raw ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from workflow.errors import MissingArtifactError
from workflow.features.encoded import (
    MAX_LIST_LENGTH,
    FeatureStore,
    encode_column,
    pad_lists,
    with_row_0,
)
from workflow.features.fitted import CompiledColumn
from workflow.features.fitted_features import raw_ids
from workflow.run import Run


def test_row_0() -> None:
    number = with_row_0(encode_column(pd.Series([1.5, -2.0]), "continuous"), "continuous")
    assert number.dtype == np.float32 and number.tolist() == [0.0, 1.5, -2.0]
    index = with_row_0(
        encode_column(pd.Series([3, 2], dtype="int64"), "categorical"), "categorical"
    )
    assert index.dtype == np.int32 and index.tolist() == [1, 3, 2]
    lists = with_row_0(encode_column(pd.Series([[3, 4], []]), "multi_hot"), "multi_hot")
    assert lists.dtype == np.int32 and lists.tolist() == [[0, 0], [3, 4], [0, 0]]


def test_pad_lists() -> None:
    long = list(range(3, 3 + MAX_LIST_LENGTH + 8))
    got = pad_lists(pd.Series([long, [7]]))
    assert got.shape == (2, MAX_LIST_LENGTH)
    assert got[0].tolist() == long[:MAX_LIST_LENGTH]
    assert got[1].tolist() == [7] + [0] * (MAX_LIST_LENGTH - 1)
    assert pad_lists(pd.Series([[], []])).tolist() == [[0]] * 2
    assert pad_lists(pd.Series([], dtype=object)).shape == (0, 1)


def test_raw_ids() -> None:
    assert raw_ids(pd.Series([5, 9])).dtype == np.int64
    text = raw_ids(pd.Series(["a", "zoë"]))
    assert text.dtype.kind == "S" and [t.decode() for t in text] == ["a", "zoë"]


def test_compiled_column() -> None:
    empty = CompiledColumn(np.array([], np.int64), np.array([], np.int32))
    assert empty.encode(np.array([1, 2]), np.array([False, True])).tolist() == [2, 1]
    assert empty.cardinality == 3
    words = CompiledColumn(np.array(["a", "c"]), np.array([4, 3], np.int32))
    raw = np.array([["a", "b"], ["c", ""]])
    assert words.encode(raw, np.zeros((2, 2), bool)).tolist() == [[4, 2], [3, 2]]
    constant = CompiledColumn(mean=3.0, std=0.0, fill=3.0)
    assert constant.normalise(np.array([3, np.nan, 5], np.float32)).tolist() == [0.0, 0.0, 2.0]


def test_a_store_without_features(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(MissingArtifactError, match="marquee features"):
        FeatureStore(Run(tmp_path / "run"))
