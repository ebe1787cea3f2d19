"""What the query's margins add to a ranking: Hamming distance against the asymmetric distance.

    python -m benchmarks.rerank --features digits --out DIR

Hashers are fitted to the training images; the database has codes, and every query ranks all of it by

* ``Hamming``: the number of bits that differ;
* ``margins``: the sum of the query's absolute margins over these bits, as ``hashgym search --rerank margins`` does;
* ``margins / deviation``: the same, each bit's margins divided by their standard deviation over the training images.

mAP is the mean over all orders of images that tie, for all three: by margins, images with equal codes tie. Rows have
the columns of ``benchmarks.drlih``'s. Called again, the benchmark runs only what is missing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import hashgym.hashers
from benchmarks.common.arguments import SplitArgs, check_not_empty
from benchmarks.common.cells import CONTINUES, data_digest, features_name
from benchmarks.common.machine import import_optimizers
from benchmarks.common.methods import DataCell, settings_of
from benchmarks.common.results import Results, Row, costs, describe, scores, table
from benchmarks.common.runs import by_features, run_missing
from hashgym.codes import pack
from hashgym.console import Console
from hashgym.data import HashingDataset
from hashgym.data.similarity import shared_labels
from hashgym.retrieval import evaluate
from hashgym.retrieval.kernels import Ties, average_precision
from hashgym.terminal import command_line, parse

__all__ = ["RANKINGS", "Args", "Cell", "asymmetric_scores", "main", "run"]

RANKINGS = ("Hamming", "margins", "margins / deviation")
TIES: dict[str, Ties] = {"map": "average", "map_optimistic": "best", "map_pessimistic": "worst"}
_QUERIES = 64  # ranked at once


@dataclass(frozen=True, kw_only=True)
class Args(SplitArgs):
    """mAP by Hamming and by asymmetric distance."""

    features: tuple[str, ...] = ("digits",)
    """embedded datasets by name, or folders that `hashgym features` wrote"""
    hashers: tuple[str, ...] = ("itq", "noseq", "orthohash")
    """names that `hashgym hashers` lists"""
    bits: tuple[int, ...] = (12, 24, 48)
    """code lengths"""
    seeds: int = 5
    """runs of each cell, with the seeds 0, 1, ..."""
    out: Path = Path("runs/rerank")
    """folder of results.csv"""


@dataclass(frozen=True)
class Cell(DataCell):
    """One run: a hasher, and the three rankings."""

    hasher: str
    bits: int
    seed: int

    def make(self) -> Any:
        """Its hasher, not fitted."""
        return hashgym.hashers.make(self.hasher, bits=self.bits, seed=self.seed)

    def __str__(self) -> str:
        return f"{Path(self.features).name} {self.hasher} {self.bits} bits seed {self.seed}"


def asymmetric_scores(
    margins: NDArray[np.float64], codes: NDArray[np.bool_], relevant: NDArray[np.bool_]
) -> dict[str, float]:
    """Return the mAP of queries that rank a database by asymmetric distance, and its bounds over orders of ties.

    The sum of |m_b| over the bits in which a code differs from the signs of m is the sum of the positive m_b, less the
    sum of m_b over the ones of the code.

    Args:
        margins: float64 (n, q), of the queries.
        codes: bool (N, q), of the database; images with equal codes tie.
        relevant: bool (n, N). Queries without a relevant image are left out.
    """
    words, which = np.unique(pack(codes), axis=0, return_inverse=True)
    order = np.argsort(which.ravel(), kind="stable")
    total = np.bincount(which.ravel(), minlength=len(words))
    starts = np.cumsum(total) - total
    distinct = codes[order[starts]].astype(np.float64)
    found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in TIES}
    for start in range(0, len(margins), _QUERIES):
        rows = slice(start, start + _QUERIES)
        ranking = np.argsort(-margins[rows] @ distinct.T, axis=1, kind="stable")
        hits = np.add.reduceat(relevant[rows][:, order], starts, axis=1, dtype=np.int64)
        hits, counts = np.take_along_axis(hits, ranking, axis=1), total[ranking]
        for name, ties in TIES.items():
            found[name].append(average_precision(hits, counts, ties=ties))
    return {name: float(np.nanmean(np.concatenate(parts))) for name, parts in found.items()}


def run(cell: Cell) -> list[dict[str, Any]]:
    """Load, fit and measure, in this process; return a row for every ranking."""
    whole = cell.load()
    dataset = whole.standardized()
    labels, query, database = dataset.labels, dataset.query, dataset.database
    unfitted = cell.make()
    if hasattr(unfitted, "updates"):
        import_optimizers()
    start = time.perf_counter()
    hasher = hashgym.hashers.fitted(unfitted, dataset)
    seconds = time.perf_counter() - start
    features = np.asarray(dataset.features)
    margins = np.asarray(hasher.transform(features[query]), np.float64)
    codes = hasher.encode(features[database])
    deviation = np.asarray(hasher.transform(features[dataset.train]), np.float64).std(axis=0)
    relevant = shared_labels(dataset.label_words[query], dataset.label_words[database])
    hamming = evaluate(margins > 0, labels[query], codes, labels[database])
    found = (
        scores(hamming),
        asymmetric_scores(margins, codes, relevant),
        asymmetric_scores(margins / np.where(deviation > 0, deviation, 1), codes, relevant),
    )
    within = {"precision_radius2": np.nan, "recall_radius2": np.nan}  # the radius is one of Hamming distance
    return [{**name, **one, **within, **costs(seconds)} for name, one in zip(_names(cell, whole), found, strict=True)]


def _names(cell: Cell, dataset: HashingDataset) -> list[dict[str, Any]]:
    """The columns that are known before the run, of every ranking's row."""
    known = {"dataset": dataset.name, "features": features_name(dataset), "bits": cell.bits, "seed": cell.seed}
    settings = {key: value for key, value in settings_of(cell.make(), dataset).items() if key not in ("bits", "seed")}
    config = describe({**settings, "data": data_digest(dataset)})
    return [{**known, "method": f"{cell.hasher}, {ranking}", "config": config} for ranking in RANKINGS]


def main(args: Args, console: Console | None = None) -> int:
    """Run what is missing, then print the tables; returns the number of runs that failed.

    Raises:
        ValueError: for arguments that cannot be run, before any run starts.
    """
    console = console or Console()
    check_not_empty(args, "seeds", "jobs", "features", "hashers", "bits")
    runs = [
        Cell(features, hasher, bits, seed, **args.data)
        for features in args.features
        for hasher in args.hashers
        for bits in args.bits
        for seed in range(args.seeds)
    ]
    datasets = {run.features: run.load() for run in {run.features: run for run in runs}.values()}
    cells, results = {cell: _names(cell, datasets[cell.features]) for cell in runs}, Results(args.out)

    def says(rows: Sequence[Row]) -> str:
        return ", ".join(f"{ranking} {row['map']:.4f}" for ranking, row in zip(RANKINGS, rows, strict=True))

    failed = run_missing(cells, run, results, args, console, says=says)
    for title, rows in by_features(results.rows()):
        console.print(table(rows, title=title))
    return failed


if __name__ == "__main__":
    with command_line(CONTINUES):
        sys.exit(min(main(parse(Args, "benchmarks.rerank")), 1))
