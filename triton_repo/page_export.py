"""The export of the page stage: its tables and settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.co_watch import co_watch_vectors
from models.neighbours import neighbours
from models.watches import Watches
from triton_repo import page_tables
from triton_repo.page_tables import SECONDS_PER_DAY, Tables
from triton_repo.page_tensors import context_inputs
from workflow.config import Config
from workflow.features.encoded import FeatureStore, save_array
from workflow.features.spec import FeatureSpec
from workflow.run import Run, write_json
from workflow.schema import Contract

NEIGHBOURS = 60  # kept per video: rules and what was watched take some of them


def num_fetched(config: Config) -> int:
    """How many candidates retrieval fetches for a page: rules take some of them."""
    return config.page.quotas.total * 3 // 2


def export_page(
    run: Run, config: Config, contract: Contract, store: FeatureStore, target: Path
) -> None:
    """Write what the page stage reads into `target`."""
    tables = Tables.read(contract, run.data)
    spec = FeatureSpec.load(store.root / "spec.json")
    arrays, settings = rules(tables, config)
    names = page_tables.groups(tables, config.page.min_row_videos)
    arrays["group"] = page_tables.places_of(tables, names)
    arrays["title_text"], arrays["title_start"] = page_tables.titles(tables)
    arrays |= pasts(tables, store, settings["countries"], config)
    arrays |= page_tables.newest(tables)
    arrays |= likeness(run, config, store, spec, arrays["group"])
    ids = np.asarray(store.video("video_id"))
    arrays["video_id"] = np.concatenate([np.zeros(1, ids.dtype), ids])
    for name, values in arrays.items():
        save_array(target / f"{name}.npy", values)
    page = config.page
    settings |= {
        "groups": names,
        "context": context_inputs(contract),
        "exclude_watched": config.serving.exclude_watched,
        "num_fetched": num_fetched(config),
        **page.model_dump(mode="json", exclude={"unknown_maturity", "trending_half_life_days"}),
    }
    write_json(target / "stage.json", settings)


def rules(tables: Tables, config: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    """(arrays, settings) of templates/page/rules.py."""
    countries, ratings = page_tables.country_names(tables), page_tables.ratings_of(tables)
    arrays = {
        "maturity": page_tables.video_ratings(tables, ratings),
        "countries": page_tables.country_bits(tables, countries),
        "window": page_tables.windows(tables),
        "user_country": page_tables.user_countries(tables, countries),
        "user_limit": page_tables.user_limits(tables, ratings),
    }
    everything = max(len(ratings), 1)
    unknown = 1 if config.page.unknown_maturity == "mildest" else everything
    settings = {"countries": countries, "ratings": ratings, "unknown_limit": unknown}
    return arrays, settings


def pasts(
    tables: Tables, store: FeatureStore, countries: list[str], config: Config
) -> dict[str, npt.NDArray[Any]]:
    """Users' watches, and what they make popular."""
    histories = store.histories()
    where = page_tables.watch_countries(tables, histories, countries)
    half_life_s = config.page.trending_half_life_days * SECONDS_PER_DAY
    counted = page_tables.popularity(histories, where, len(tables.videos), half_life_s)
    table_of = np.zeros(len(countries) + 1, np.int16)
    table_of[: len(counted["country_table"])] = counted["country_table"]
    return {
        "watched_row": histories.video_row,
        "watched_start": histories.start,
        "watched_flag": page_tables.watch_flags(tables, histories, store.duration_s()),
        "duration_s": store.duration_s(),
        **counted,
        "country_table": table_of,
    }


def likeness(
    run: Run, config: Config, store: FeatureStore, spec: FeatureSpec, groups: npt.NDArray[Any]
) -> dict[str, npt.NDArray[Any]]:
    """Candidate vectors, neighbours, and short vectors that diversity is measured in."""
    vectors = np.load(run.retriever / "candidate_vectors.npy", allow_pickle=False)
    learned = vectors[:, : config.retriever.embedding_dim]
    watches = Watches.read(store, spec, "train", "valid", "test")
    co_watch = co_watch_vectors(watches, config.retriever.co_watch_dim)
    axes = page_tables.diversity_axes(learned)
    return {
        "candidate_vector": vectors,
        "neighbour": neighbours(learned, co_watch, watches.counts, groups, NEIGHBOURS),
        "diversity_vector": page_tables.short_vectors(learned, axes),
        "diversity_axis": axes,  # for marquee refresh
    }
