"""The notebooks run on small simulated and MovieLens runs; what is committed is whole.

Committed outputs come from the default sim run. To renew them after a change:
`make demo`, then `jupyter execute --inplace notebooks/*.ipynb`, and look at the plots.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pyarrow.parquet as pq
import pytest
from nbclient import NotebookClient

from tests.runs import Made
from workflow.config import load_config
from workflow.console import Output
from workflow.data.movielens import load_movielens
from workflow.job import Job
from workflow.pipeline import run_all
from workflow.run import Run

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MOVIELENS = ROOT.parent / "shared" / "data" / "ml-1m"
SHORT = ["retriever.max_epochs=1", "ranker.max_epochs=1",
         "retriever.refit=false", "ranker.refit=false"]  # fmt: skip
# What a notebook must have found out, on any data.
FINDINGS = {
    "01_features": ["0 values differ", "\n0 of "],
    "02_retrieval": ["objective: ", "blend: {", "recall@", "This run serves: flat"],
    "03_ranking": ["log loss", "candidates each", "weights: retrieval", "NDCG@10 of the served"],
    "04_serving": ["equals the ensemble: True", "server gone: True"],
    "05_homepage": [
        "rule violations: 0",
        "videos twice on the page: 0",
        "identical: True",
        "offered again: False",
        "repeated: 0",
    ],
}
Executed = dict[str, Future[Any]]  # notebook's name -> itself with outputs, or its error
MACHINE_PATH = re.compile(
    r"(?<![\w.])/(home|root|work|tmp|usr|opt|var|mnt|Users|private)/|[A-Z]:\\\\"
)


# --- runs ----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def sim_folder(sim_run: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that nobody serves, without what other tests told of watches."""
    folder = tmp_path_factory.mktemp("notebooks") / "sim"
    shutil.copytree(sim_run.folder, folder, ignore=shutil.ignore_patterns("logs", "state"))
    return folder


@pytest.fixture(scope="module")
def movielens_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("notebooks")
    (folder / "source").mkdir()
    write_movielens(folder / "source")
    config = load_config("movielens-1m", overrides=SHORT)
    run_all(Job(Run(folder / "ml"), config, source=folder / "source"), Output(as_json=True))
    return folder / "ml"


def write_movielens(target: Path) -> None:
    """A few hundred users in MovieLens-1M's files: real ones where the data is, else made up."""
    if (MOVIELENS / "ratings.dat").exists():
        sample_movielens(target)
    else:
        generate_movielens(target)


def sample_movielens(target: Path, every: int = 30) -> None:
    """Each 30th user with all their ratings, and all films."""
    for name in ("users.dat", "ratings.dat"):
        lines = (MOVIELENS / name).read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if int(line.partition(b"::")[0]) % every == 0]
        (target / name).write_bytes(b"".join(kept))
    (target / "movies.dat").write_bytes((MOVIELENS / "movies.dat").read_bytes())


def generate_movielens(target: Path, users: int = 250, films: int = 600) -> None:
    """Tastes by genre and popular films, in the format that MovieLens-1M's README describes."""
    rng = np.random.default_rng(7)
    genres = ["Action", "Comedy", "Drama", "Film-Noir", "Sci-Fi", "War"]
    of_film = rng.random((films, len(genres))) < 0.25
    of_film[~of_film.any(axis=1), 2] = True
    names = ["|".join(np.array(genres)[row]) for row in of_film]
    years = rng.integers(1950, 2001, films)
    movies = [f"{i + 1}::Café {i + 1} ({years[i]})::{names[i]}" for i in range(films)]
    people = [
        f"{i + 1}::{rng.choice(['F', 'M'])}::{rng.choice([1, 18, 25, 35, 45, 50, 56])}"
        f"::{rng.integers(0, 21)}::{rng.integers(10_000, 99_999)}"
        for i in range(users)
    ]
    ratings = []
    fame = 1 / np.arange(1, films + 1) ** 0.8
    joined = rng.integers(956_700_000, 1_046_000_000, users)
    for user in range(users):
        taste = rng.normal(0, 1, len(genres)) @ of_film.T
        weight = fame * np.exp(taste)
        count = int(rng.integers(20, 200))
        seen = rng.choice(films, count, replace=False, p=weight / weight.sum())
        stars = np.clip(np.round(3.4 + 0.6 * taste[seen] + rng.normal(0, 0.8, count)), 1, 5)
        when = joined[user] + np.cumsum(rng.integers(5, 20_000, count))
        ratings += [
            f"{user + 1}::{f + 1}::{s:.0f}::{t}" for f, s, t in zip(seen, stars, when, strict=True)
        ]
    for name, lines in (("movies", movies), ("users", people), ("ratings", ratings)):
        (target / f"{name}.dat").write_bytes("\n".join([*lines, ""]).encode("iso-8859-1"))


# --- execution -----------------------------------------------------------------------------------
def execute(path: Path, run: Path, folder: Path) -> Any:
    """The notebook with its outputs; the file stays as it is."""
    notebook = nbformat.read(path, as_version=4)
    environment = {**os.environ, "MARQUEE_RUN": str(run), "IPYTHONDIR": str(folder / "ipython")}
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env=environment)
    return notebook


@pytest.fixture(scope="module")
def on_sim(sim_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Executed:
    return execute_all(sim_folder, tmp_path_factory.mktemp("jupyter"))


@pytest.fixture(scope="module")
def on_movielens(movielens_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Executed:
    return execute_all(movielens_run, tmp_path_factory.mktemp("jupyter"))


def execute_all(run: Path, folder: Path) -> Executed:
    """Every notebook on one run, two at a time: a kernel's imports alone take seconds."""
    before = [path.read_bytes() for path in NOTEBOOKS]
    with ThreadPoolExecutor(max_workers=2) as pool:
        done = {path.stem: pool.submit(execute, path, run, folder) for path in NOTEBOOKS}
    assert before == [path.read_bytes() for path in NOTEBOOKS]
    return done


def check_executed(notebook: Any, findings: list[str]) -> None:
    text = "\n" + "\n".join(printed(notebook))
    for finding in findings:
        assert finding in text
    plots = [cell for cell in notebook.cells if "plt.show()" in cell.source]
    without = [cell for cell in plots if not any(figures_of(cell))]
    # A cell may say instead why the data has no such plot.
    assert all("This data" in cell.outputs[0]["text"] for cell in without)


@pytest.mark.parametrize("name", FINDINGS)
def test_runs_on_simulated_data(name: str, on_sim: Executed) -> None:
    notebook = on_sim[name].result()
    check_executed(notebook, FINDINGS[name])
    assert "This data" not in "".join(printed(notebook))  # sim has everything


@pytest.mark.parametrize("name", FINDINGS)
def test_runs_on_movielens(name: str, on_movielens: Executed) -> None:
    check_executed(on_movielens[name].result(), FINDINGS[name])


def test_generated_files_are_in_movielens_format(tmp_path: Path) -> None:
    generate_movielens(tmp_path)
    (tmp_path / "out").mkdir()
    load_movielens(tmp_path / "out", tmp_path)
    assert pq.read_table(tmp_path / "out" / "users.parquet").num_rows == 250
    videos = pq.read_table(tmp_path / "out" / "videos.parquet")
    assert videos["title"][0].as_py() == "Café 1" and 1950 <= videos["year"][0].as_py() <= 2000


# --- what is committed ---------------------------------------------------------------------------
def outputs(notebook: Any) -> Iterator[Any]:
    for cell in notebook.cells:
        yield from cell.get("outputs", [])


def printed(notebook: Any) -> list[str]:
    return [o["text"] for o in outputs(notebook) if o.output_type == "stream"]


def figures_of(cell: Any) -> list[Any]:
    return [o for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]


def test_five_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == list(FINDINGS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebook_is_whole(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert {o.output_type for o in outputs(notebook)} <= {
        "stream",
        "display_data",
        "execute_result",
    }
    assert all(o.get("name") != "stderr" for o in outputs(notebook))
    assert sum(len(figures_of(cell)) for cell in code) >= 3
    assert len("".join(printed(notebook))) > 100
    assert path.stat().st_size < 700_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebook_names_no_machine(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    texts = [cell.source for cell in notebook.cells] + printed(notebook)
    for output in outputs(notebook):
        data = output.get("data", {})
        texts += [value for kind, value in data.items() if kind.startswith("text/")]
    assert [text for text in texts if MACHINE_PATH.search(text)] == []
