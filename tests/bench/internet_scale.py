"""What a service of a billion users and 100 million videos would take, from measured unit costs.

    PYTHONPATH=. .venv/bin/python tests/bench/internet_scale.py [--users N] [--page-ms MS] ...

Every unit cost is an argument; the defaults are figures of BENCHMARKS.md (measured on 2 cores of an
AMD EPYC) or, where the help says "assumed", suppositions about the service and its machines. Each
line of the answer states its formula. Nothing here is a measurement of that size.
"""

from __future__ import annotations

import argparse
import math

DAY_S, HOUR_S = 86_400, 3_600

ARGUMENTS: tuple[tuple[str, float, str], ...] = (
    ("users", 1e9, "assumed"),
    ("videos", 1e8, "assumed"),
    ("pages-per-user-day", 3, "assumed"),
    ("events-per-page", 20, "assumed: exposures logged"),
    ("watches-per-user", 200, "assumed: kept history, features.long_history_length"),
    ("peak", 2.5, "assumed: peak over mean traffic"),
    ("utilisation", 0.6, "assumed: of a core at the peak"),
    ("machine-gb", 256, "assumed: usable memory of a serving machine"),
    ("machine-cores", 64, "assumed"),
    ("core-hour-usd", 0.04, "assumed: price"),
    ("gpu-hour-usd", 3.0, "assumed: price"),
    ("list-ms", 0.81, "measured: server CPU of a list of 100 candidates, 100,000 videos"),
    ("page-ratio", 2.98, "measured: a homepage over a list, in process"),
    ("search-ms", 0.611, "measured: one search among ten million videos, recall 0.994"),
    ("index-bytes", 298, "measured: file of ivf_fp16, bytes a video of 129 numbers"),
    ("row-bytes", 743, "measured: resident less the index, a million videos, as bytes a video"),
    ("page-bytes", 890, "measured: files of the page stage, 100,000 videos, as bytes a video"),
    ("watch-bytes", 13, "measured: history arrays that serving reads, bytes a watch"),
    ("user-bytes", 64, "measured: encoded arrays, bytes a user, rounded up"),
    ("etl-s", 2.9, "measured: validate and features, processor seconds a million events"),
    ("train-rows-s", 2_600, "measured: ranker, rows a second on 2 busy cores"),
    ("ranker-mflop", 12, "counted: the ranker, 100 candidates"),
    ("gpu-tflops", 20, "assumed, not measured: reached by the ranker's small matrices"),
    ("gpu-gb-s", 1_000, "assumed, not measured: memory bandwidth reached by exact search"),
    ("gpu-batch", 64, "assumed: queries that share one pass of exact search"),
)


def answer(a: argparse.Namespace) -> list[tuple[str, str, str]]:
    """(what, how much, formula) from top to bottom."""
    qps = a.users * a.pages_per_user_day / DAY_S * a.peak
    search_ms = a.search_ms * math.sqrt(a.videos / 1e7)
    page_ms = a.list_ms * a.page_ratio + search_ms
    cores = qps * page_ms / 1000 / a.utilisation
    index_gb = a.videos * a.index_bytes / 1e9
    rows_gb = a.videos * (a.row_bytes + a.page_bytes) / 1e9
    video_shards = math.ceil((index_gb + rows_gb) / a.machine_gb)
    state_gb = a.users * (a.user_bytes + a.watches_per_user * a.watch_bytes) / 1e9
    state_shards = math.ceil(state_gb / a.machine_gb)
    machines = max(math.ceil(cores / a.machine_cores), video_shards)
    million_usd = page_ms * 1e6 / 1000 / HOUR_S / a.utilisation * a.core_hour_usd
    events = a.users * a.pages_per_user_day * a.events_per_page
    etl_cores = events / 1e6 * a.etl_s / DAY_S
    train_cores = 2 * events / a.train_rows_s / DAY_S
    scan_s = index_gb / a.gpu_gb_s / a.gpu_batch
    rank_s = 5 * a.ranker_mflop / a.gpu_tflops / 1e6
    gpu_qps = 1 / (scan_s / video_shards + rank_s)
    gpu_usd = 1e6 / gpu_qps / HOUR_S / a.utilisation * a.gpu_hour_usd * video_shards
    return [
        ("pages a second at the peak", f"{qps:,.0f}", "users x pages / day x peak"),
        ("search", f"{search_ms:.2f} ms", "measured at 10M x sqrt(videos / 10M): lists grow so"),
        ("a page", f"{page_ms:.2f} ms of CPU", "list (its search included) x page ratio + search"),
        ("pages a second and core", f"{1000 / page_ms:,.0f}", "1000 / page"),
        ("cores", f"{cores:,.0f}", "pages a second x page / utilisation"),
        ("vectors", f"{index_gb:,.0f} GB", "videos x index bytes"),
        ("video rows", f"{rows_gb:,.0f} GB", "videos x (row bytes + page bytes)"),
        ("shards of videos", f"{video_shards}", "(vectors + rows) / memory of a machine"),
        ("users and histories", f"{state_gb:,.0f} GB", "users x (row + watches x bytes)"),
        ("shards of users", f"{state_shards}", "users and histories / memory of a machine"),
        ("serving machines", f"{machines:,}", "max(cores / cores of a machine, shards of videos)"),
        ("a million pages", f"${million_usd:.3f}", "page / utilisation x price of a core hour"),
        ("events a day", f"{events / 1e9:,.0f} G", "users x pages x events"),
        ("cores for features", f"{etl_cores:,.1f}", "events a day x ETL seconds / day"),
        ("cores for one pass of training", f"{train_cores:,.0f}", "2 x events / rows a s / day"),
        ("pages a second and GPU", f"{gpu_qps:,.0f}", "1 / (scan of a shard + 500 candidates)"),
        ("a million pages on GPUs", f"${gpu_usd:.3f}", "shards x price / pages a second and GPU"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    for name, default, described in ARGUMENTS:
        parser.add_argument(f"--{name}", type=float, default=default, help=described)
    for what, amount, formula in answer(parser.parse_args()):
        print(f"{what:32} {amount:>18}   {formula}")


if __name__ == "__main__":
    main()
