"""How near codes come to what the features can give: rankings by real numbers, and by predicted classes.

    python -m benchmarks.limits --features DIR --seeds 3 --out DIR

A classifier with the head that hashers have (one hidden layer, the same dropout, batches and updates) is trained on the
training images. Then every query ranks the database

* ``class probabilities``: by the probability that they share a label, from the probabilities of both: what labels can
  give a ranking without a code of bits;
* ``predicted class``: by whether the likeliest class is the same (with several labels, the predicted ones as a code);
* ``float cosine``: by the cosine of their standardised features, without learning.

Rows have the columns of ``benchmarks.drlih``'s, with 0 bits. Called again, the benchmark runs only what is missing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.common.arguments import SplitArgs, check_not_empty
from benchmarks.common.cells import CONTINUES, data_digest, features_name
from benchmarks.common.methods import DataCell
from benchmarks.common.results import Results, Row, costs, describe, scores, table
from benchmarks.common.runs import by_features, run_missing
from hashgym.console import Console
from hashgym.data import HashingDataset
from hashgym.data.similarity import shared_labels
from hashgym.retrieval import evaluate
from hashgym.terminal import command_line, parse

__all__ = ["METHODS", "Args", "Cell", "cosines", "main", "ranking_map", "run", "train_classifier"]

METHODS = ("class probabilities", "predicted class", "float cosine")
SETTINGS = {
    **{"hidden": 512, "dropout": 0.5, "updates": 1500, "batch_size": 128},
    **{"learning_rate": 1e-3, "weight_decay": 1e-4},
}
BOUNDS = ("map", "map_optimistic", "map_pessimistic")  # equal where no images tie
_QUERIES = 64  # ranked at once

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Args(SplitArgs):
    """mAP of rankings without bits."""

    features: tuple[str, ...] = ("digits",)
    """embedded datasets by name, or folders that `hashgym features` wrote"""
    seeds: int = 3
    """runs of each cell, with the seeds 0, 1, ..."""
    out: Path = Path("runs/limits")
    """folder of results.csv"""


@dataclass(frozen=True)
class Cell(DataCell):
    """One run: a classifier, and the three rankings."""

    seed: int

    def __str__(self) -> str:
        return f"{Path(self.features).name} seed {self.seed}"


def train_classifier(
    features: Floats, labels: NDArray[np.uint8], seed: int, *, single: bool
) -> Callable[[Floats], Floats]:
    """Train a network with one hidden layer; return a function from features (n, D) to probabilities (n, L).

    Args:
        features: (n, D).
        labels: multi-hot (n, L).
        seed: of the weights and batches.
        single: whether every image has one label, so that probabilities add up to 1; else each label has its own.
    """
    torch.manual_seed(seed)
    x, y = torch.from_numpy(np.ascontiguousarray(features)), torch.from_numpy(labels.astype(np.float32))
    head = nn.Sequential(
        nn.Dropout(SETTINGS["dropout"]),
        nn.Linear(x.shape[1], int(SETTINGS["hidden"])),
        nn.ReLU(),
        nn.Dropout(SETTINGS["dropout"]),
        nn.Linear(int(SETTINGS["hidden"]), y.shape[1]),
    )
    loss: nn.Module = nn.CrossEntropyLoss() if single else nn.BCEWithLogitsLoss()
    optimizer = torch.optim.AdamW(head.parameters(), SETTINGS["learning_rate"], weight_decay=SETTINGS["weight_decay"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, int(SETTINGS["updates"]))
    for _ in range(int(SETTINGS["updates"])):
        batch = torch.randint(len(x), (int(SETTINGS["batch_size"]),))
        optimizer.zero_grad()
        loss(head(x[batch]), y[batch]).backward()
        optimizer.step()
        schedule.step()
    head.eval()

    def probabilities(rows: Floats) -> Floats:
        with torch.inference_mode():
            logits = head(torch.from_numpy(np.ascontiguousarray(rows)))
            return (logits.softmax(1) if single else logits.sigmoid()).numpy()

    return probabilities


def cosines(dataset: HashingDataset) -> Callable[[slice], Floats]:
    """Return a function that gives the cosines (m, N) of some queries' features with those of the database."""
    queries, database = (
        x / np.linalg.norm(x, axis=1, keepdims=True)
        for x in (dataset.features[dataset.query], dataset.features[dataset.database])
    )
    return lambda rows: queries[rows] @ database.T


def ranking_map(score: Callable[[slice], Floats], relevant: NDArray[np.bool_], topk: int | None = None) -> float:
    """Return the mAP of queries that rank a database by real numbers, the greatest first.

    Args:
        score: returns the numbers (m, N) of some queries.
        relevant: bool (n, N). Queries without a relevant image are left out. Equal numbers keep the database's order.
        topk: number of images of a ranking that count, so that the sum is divided by at most as many; None for all.
    """
    found = []
    for start in range(0, len(relevant), _QUERIES):
        rows = slice(start, start + _QUERIES)
        order = np.argsort(-score(rows), axis=1, kind="stable")[:, :topk]
        total = relevant[rows].sum(axis=1)
        hits = np.take_along_axis(relevant[rows], order, axis=1)[total > 0]
        precision = hits.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1)
        found.append((precision * hits).sum(axis=1) / np.minimum(total[total > 0], hits.shape[1]))
    return float(np.concatenate(found).mean())


def run(cell: Cell) -> list[dict[str, Any]]:
    """Load, train and measure, in this process; return a row for every method."""
    whole = cell.load()
    dataset = whole.standardized()
    labels, query, database = dataset.labels, dataset.query, dataset.database
    relevant = shared_labels(dataset.label_words[query], dataset.label_words[database])
    start = time.perf_counter()
    single = bool((labels.sum(axis=1) == 1).all())
    classify = train_classifier(dataset.features[dataset.train], labels[dataset.train], cell.seed, single=single)
    seconds = time.perf_counter() - start
    p, q = classify(dataset.features[query]), classify(dataset.features[database])

    def shared(rows: slice) -> Floats:
        """P(a label is shared): the sum over classes of p q, or 1 - the product of 1 - p q over labels."""
        if single:
            return p[rows] @ q.T
        none = np.ones((len(p[rows]), len(q)), np.float32)
        for one, other in zip(p[rows].T, q.T, strict=True):
            none *= 1 - np.outer(one, other)
        return 1 - none

    predicted = [_predicted(x, single) for x in (p, q)]
    found = {
        "class probabilities": dict.fromkeys(BOUNDS, ranking_map(shared, relevant)),
        "predicted class": scores(evaluate(predicted[0], labels[query], predicted[1], labels[database])),
        "float cosine": dict.fromkeys(BOUNDS, ranking_map(cosines(dataset), relevant)),
    }
    within = {"precision_radius2": np.nan, "recall_radius2": np.nan}  # there is no radius
    return [
        {**name, **found[name["method"]], **within, **costs(0.0 if name["method"] == "float cosine" else seconds)}
        for name in _names(cell, whole)
    ]


def _predicted(probabilities: Floats, single: bool) -> NDArray[np.bool_]:
    """Return the predicted labels as codes, bool (n, L)."""
    if not single:
        return probabilities > 0.5
    return probabilities == probabilities.max(axis=1, keepdims=True)


def _names(cell: Cell, dataset: HashingDataset) -> list[dict[str, Any]]:
    """The columns that are known before the run, of every method's row."""
    known = {"dataset": dataset.name, "features": features_name(dataset), "bits": 0, "seed": cell.seed}
    config = describe({**SETTINGS, "data": data_digest(dataset)})
    return [{**known, "method": method, "config": config} for method in METHODS]


def main(args: Args, console: Console | None = None) -> int:
    """Run what is missing, then print the tables; returns the number of runs that failed.

    Raises:
        ValueError: for arguments that cannot be run, before any run starts.
    """
    console = console or Console()
    check_not_empty(args, "seeds", "jobs", "features")
    runs = [Cell(features, seed, **args.data) for features in args.features for seed in range(args.seeds)]
    datasets = {features: Cell(features, 0, **args.data).load() for features in args.features}
    cells, results = {cell: _names(cell, datasets[cell.features]) for cell in runs}, Results(args.out)

    def says(rows: Sequence[Row]) -> str:
        return ", ".join(f"{row['method']} {row['map']:.4f}" for row in rows)

    failed = run_missing(cells, run, results, args, console, says=says)
    for title, rows in by_features(results.rows()):
        console.print(table(rows, title=title))
    return failed


if __name__ == "__main__":
    with command_line(CONTINUES):
        sys.exit(min(main(parse(Args, "benchmarks.limits")), 1))
