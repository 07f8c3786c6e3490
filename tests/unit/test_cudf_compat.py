"""What Merlin misses in cuDF 24.12, on a stand-in that has that release's names and arguments."""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

import pytest

from workflow.cudf_compat import mend_cudf


class CategoricalDtype:
    def __init__(self, categories: Any = None, ordered: bool = False) -> None:
        self.categories, self.ordered = categories, ordered


class CategoricalColumn:
    """cudf 24.12, core/column/categorical.py: no data, the codes are the one child."""

    def __init__(
        self,
        data: None,
        size: int | None,
        dtype: CategoricalDtype,
        mask: Any = None,
        offset: int = 0,
        null_count: int | None = None,
        children: tuple[Any, ...] = (),
    ) -> None:
        assert data is None and isinstance(dtype, CategoricalDtype) and len(children) == 1
        self.size, self.dtype, self.offset, self.children = size, dtype, offset, children


@pytest.fixture
def cudf(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Modules of cuDF 24.12 and dask-cudf by name."""
    modules: dict[str, Any] = {
        name: types.ModuleType(name)
        for name in ("cudf", "cudf.core", "cudf.core.column", "dask_cudf")
    }
    modules["cudf"].core = modules["cudf.core"]
    modules["cudf.core"].column = modules["cudf.core.column"]
    modules["cudf"].CategoricalDtype = CategoricalDtype
    modules["cudf"].__version__ = "24.12.00"
    modules["cudf.core.column"].CategoricalColumn = CategoricalColumn
    modules["cudf.core.column"].as_column = lambda values, **_: values
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return modules


def test_merlin_imports_and_builds_a_categorical_column(
    cudf: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The import that fails on cuDF 24.12, from Merlin's own file."""
    name = "merlin.io.fsspec_utils"
    importlib.import_module(name)
    monkeypatch.setattr("merlin.core.compat.cudf", cudf["cudf"])
    monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match="build_categorical_column"):
        importlib.import_module(name)
    mend_cudf()
    merlin = importlib.import_module(name)
    column = merlin.build_categorical_column(
        categories=["a", "b"], codes=[0, 1, 1], size=3, offset=0, ordered=False
    )
    assert (column.size, column.offset, column.children) == (3, 0, ([0, 1, 1],))
    assert (column.dtype.categories, column.dtype.ordered) == (["a", "b"], False)


def test_a_dask_collection_moves_to_the_gpu(cudf: dict[str, Any]) -> None:
    class Collection:
        def to_backend(self, name: str) -> str:
            return f"on {name}"

    mend_cudf()
    assert cudf["dask_cudf"].from_dask_dataframe(Collection()) == "on cudf"


def test_names_that_exist_stay(cudf: dict[str, Any]) -> None:
    """As in the Merlin container, whose cuDF is 23."""
    own = object()
    cudf["cudf.core.column"].build_categorical_column = own
    cudf["dask_cudf"].from_dask_dataframe = own
    mend_cudf()
    assert cudf["cudf.core.column"].build_categorical_column is own
    assert cudf["dask_cudf"].from_dask_dataframe is own


def test_without_cudf_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cudf", None)
    mend_cudf()
    assert sys.modules["cudf"] is None
