"""How good codes are without labels: hashers that need none, and hashers and agents that learn from neighbours.

    python -m benchmarks.unsupervised --features features/cifar10 features/mirflickr --jobs 2 --out DIR

Labels are used for measuring alone. Methods of :data:`NEIGHBOURS` learn which training images are neighbours in feature
space (:meth:`hashgym.data.HashingDataset.with_similarity`), all others from the features themselves. ``map_1000`` is
mAP@1000, the sum divided by min(R, 1,000). ``float cosine`` ranks by the features that all codes are made of, without
bits. ``neighbours.csv`` says how often neighbours share a label. Called again, the benchmark runs only what is missing.
Settings are the methods' defaults; those of agents are :data:`benchmarks.common.methods.AGENTS`'s.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.arguments import TableArgs, check_not_empty
from benchmarks.common.cells import CONTINUES, data_digest, features_name
from benchmarks.common.methods import Cell, config, encode_both, fit
from benchmarks.common.results import KEY, Estimate, Results, Row, costs, describe, estimate, scores
from benchmarks.common.runs import by_features, run_missing
from benchmarks.limits import BOUNDS, cosines, ranking_map
from hashgym.console import Console, Table
from hashgym.data import HashingDataset
from hashgym.data.similarity import NEIGHBOURS as K
from hashgym.data.similarity import shared_labels
from hashgym.retrieval import evaluate
from hashgym.terminal import command_line, parse

__all__ = ["METHODS", "NEIGHBOURS", "PUBLISHED", "Args", "judge_neighbours", "main", "run"]

FLOAT, FIRST = "float cosine", 1_000
NEIGHBOURS = ("noseq", "hashnet", "drlih-nca")
METHODS = (FLOAT, "lsh", "pca", "sh", "itq", "cibhash", *NEIGHBOURS)
# Published for CIFAR-10, mAP of the first 1,000 images by code length; VGG-16 trained from pixels, another split.
PUBLISHED: Mapping[str, Mapping[int, float]] = {"CIBHash, VGG-16 (the paper)": {16: 0.59, 32: 0.62, 64: 0.64}}
COLUMNS = (
    *KEY,
    *("map", "map_optimistic", "map_pessimistic", "map_1000"),
    *("train_seconds", "peak_mb", "version", "revision", "config"),
)
JUDGED = ("dataset", "features", "precision", "recall", "chance", "version", "revision", "config")


@dataclass(frozen=True, kw_only=True)
class Args(TableArgs):
    """mAP of codes that were learnt without labels."""

    features: tuple[str, ...] = ("digits",)
    """embedded datasets by name, or folders that `hashgym features` wrote, with labels"""
    methods: tuple[str, ...] = METHODS
    """methods to compare"""
    bits: tuple[int, ...] = (16, 32, 64)
    """code lengths"""
    seeds: int = 3
    """runs of each cell, with the seeds 0, 1, ..."""
    out: Path = Path("runs/unsupervised")
    """folder of results.csv"""


def run(cell: Cell) -> list[dict[str, Any]]:
    """Load, train without labels and measure with them, in this process; return the row."""
    whole = cell.load()
    dataset = whole.standardized()
    query, database = dataset.labels[dataset.query], dataset.labels[dataset.database]
    if cell.method == FLOAT:
        found = _ranked_by_cosine(dataset)
        return [{**_names(cell, whole), **found, **costs(0.0)}]
    learning = dataset.with_similarity("neighbours") if cell.method in NEIGHBOURS else dataset
    encode, seconds = fit(cell, learning)
    codes = encode_both(encode, dataset)
    first = evaluate(codes[0], query, codes[1], database, topk=min(FIRST, len(database)))
    whole_ranking = scores(evaluate(codes[0], query, codes[1], database))
    return [{**_names(cell, whole), **whole_ranking, "map_1000": first.map, **costs(seconds)}]


def _ranked_by_cosine(dataset: HashingDataset) -> dict[str, float]:
    """Return the scores of rankings by the cosine of features."""
    score = cosines(dataset)
    relevant = shared_labels(dataset.label_words[dataset.query], dataset.label_words[dataset.database])
    every = dict.fromkeys(BOUNDS, ranking_map(score, relevant))
    return {**every, "map_1000": ranking_map(score, relevant, FIRST)}


def judge_neighbours(dataset: HashingDataset) -> dict[str, float]:
    """Compare the pairs of training images that count as similar by their features with those that share a label.

    Returns:
        ``precision``, the share of the former that share a label; ``recall``, the share of the latter that count as
        similar; and ``chance``, the share of all pairs that share a label.
    """
    every = ~np.eye(len(dataset.train), dtype=bool)
    similar, relevant = (
        shared_labels(words, words)[every]
        for words in (each.label_words[each.train] for each in (dataset.with_similarity("neighbours"), dataset))
    )
    both = np.count_nonzero(similar & relevant)
    return {
        "precision": both / np.count_nonzero(similar),
        "recall": both / np.count_nonzero(relevant),
        "chance": float(relevant.mean()),
    }


def _judged(dataset: HashingDataset, results: Results, *, replace: bool) -> str:
    """Return how good the neighbours of a dataset are, in words; it is measured where there is no row yet."""
    which = {"dataset": dataset.name, "features": features_name(dataset)}
    row = {**which, "config": describe({"similarity": f"{K} neighbours", "data": data_digest(dataset)})}
    if not results.done(row, replace=replace):
        provenance = {key: value for key, value in costs(0.0).items() if key in JUDGED}
        results.append({**row, **judge_neighbours(dataset.standardized()), **provenance})
    (found,) = [old for old in results.rows() if all(old[key] == which[key] for key in which)]
    share, recall, chance = (f"{100 * float(found[key]):.1f}%" for key in ("precision", "recall", "chance"))
    return (
        f"of the pairs that count as similar {share} share a label, of all pairs {chance}; of those that share one, "
        f"{recall} count as similar"
    )


def _names(cell: Cell, dataset: HashingDataset) -> dict[str, Any]:
    """The columns that are known before the run."""
    which = (dataset.name, features_name(dataset), cell.method, cell.bits, cell.seed)
    settings = {"data": data_digest(dataset)} if cell.method == FLOAT else config(cell, dataset)
    learnt = {"similarity": f"{K} neighbours"} if cell.method in NEIGHBOURS else {}
    return {**dict(zip(KEY, which, strict=True)), "config": describe({**settings, **learnt})}


def main(args: Args, console: Console | None = None) -> int:
    """Run what is missing, then print the tables; returns the number of runs that failed.

    Raises:
        ValueError: for arguments that cannot be run, before any run starts.
    """
    console = console or Console()
    check_not_empty(args, "jobs", "features", "methods", "bits", "seeds")
    datasets = {features: Cell(features, FLOAT, 0, 0).load() for features in args.features}
    runs = [
        Cell(features, method, bits, seed)
        for seed in range(args.seeds)
        for features in args.features
        for method in args.methods
        for bits in (args.bits if method != FLOAT else (0,))
        if method != FLOAT or seed == 0
    ]
    cells = {cell: [_names(cell, datasets[cell.features])] for cell in runs}
    results = Results(args.out, COLUMNS)

    def says(rows: Sequence[Row]) -> str:
        return f"mAP {rows[0]['map']:.4f}, of the first {FIRST:,} {rows[0]['map_1000']:.4f}"

    failed = run_missing(cells, run, results, args, console, says=says)
    for title, rows in by_features(results.rows()):
        console.print(_table(rows, title))
    if set(args.methods) & set(NEIGHBOURS):
        neighbours = Results(args.out, JUDGED, JUDGED[:2], "neighbours.csv")
        for dataset in datasets.values():
            judged = _judged(dataset, neighbours, replace=args.replace)
            console.print(f"{dataset.name}, {features_name(dataset)}: {judged}")
    return failed


def _table(rows: list[dict[str, str]], title: str) -> Table:
    """The methods by code length: mAP of the whole ranking and of the first images, means over seeds."""
    lengths = sorted({int(row["bits"]) for row in rows} - {0})
    shown = Table(title=title)
    for heading in ("method", "learns from", *(f"{bits} bits" for bits in lengths), "train s"):
        shown.add_column(heading, justify="right" if heading not in ("method", "learns from") else "left")
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        texts = []
        for bits in lengths if method != FLOAT else [0] * len(lengths):
            if not (here := [row for row in own if int(row["bits"]) == bits]):
                texts.append("-")
                continue
            values = [estimate([[float(row[key]) for row in here]]) for key in ("map", "map_1000")]
            texts.append(" / ".join(_text(value) for value in values))
        seconds = np.mean([float(row["train_seconds"]) for row in own])
        shown.add_row(method, "neighbours" if method in NEIGHBOURS else "features", *texts, f"{seconds:.0f}")
    return shown


def _text(value: Estimate) -> str:
    """A mean with its interval, which one run does not have."""
    return f"{value.mean:.3f}" + (f" [{value.low:.3f}, {value.high:.3f}]" if value.low == value.low else "")


if __name__ == "__main__":
    with command_line(CONTINUES):
        sys.exit(min(main(parse(Args, "benchmarks.unsupervised")), 1))
