"""End to end: agents and hashers that train the last blocks of a network together with their codes.

    hashgym features --dataset cifar10 --root DIR --backbone efficientnet_lite2 --size 160 --cut 16 --views 8 --out CUT
    python -m benchmarks.end_to_end --features CUT --jobs 2 --out DIR

Every method trains the same blocks from the same ImageNet weights, sees the same number of training images, each in a
random one of its views, and has the same head and batch size. The methods differ in their objective, in whether they
normalise their codes (OrthoHash) or logits (agents), and, among the agents, in what a group of bits is computed from.
The head is trained first, on features of the network as it is. ``--tune`` tries learning rates on held-out training
images, as ``benchmarks.tune`` does, from which that of each method is chosen; the queries are never used for that. Rows
have the columns of ``benchmarks.drlih``'s; called again, the benchmark runs only what is missing.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import drlih, tune
from benchmarks.common.arguments import TableArgs, check_not_empty
from benchmarks.common.cells import CONTINUES, features_name
from benchmarks.common.methods import AGENTS, Cell, fit, load, settings
from benchmarks.common.results import KEY, Results, Row, costs, describe, table
from benchmarks.common.runs import by_features, run_missing
from hashgym.codes import CodeSets
from hashgym.console import Console, styled
from hashgym.data import HashingDataset
from hashgym.storage.errors import DataError
from hashgym.terminal import command_line, parse

__all__ = ["CHOSEN", "METHODS", "PUBLISHED", "Args", "budget", "main", "published", "rows_of", "run_held_out"]

METHODS = (
    *("noseq", "hashnet", "dch", "adsh", "orthohash", "csq"),
    *("drlih-paper", "drlih-released", "drlih", "drlih-norec"),
)

# Published for CIFAR-10, by code length; with other networks and protocols, some at the best epoch on the queries.
PUBLISHED: Mapping[str, Mapping[int, float]] = {
    "DRLIH, VGG-19 (the paper)": {12: 0.816, 24: 0.843, 32: 0.855, 48: 0.853},
    "HashNet, AlexNet (DeepHash-pytorch, best epoch on the queries)": {48: 0.782},
    "DSH, AlexNet (DeepHash-pytorch, best epoch on the queries)": {48: 0.800},
    "DTSH, AlexNet (DeepHash-pytorch, best epoch on the queries)": {48: 0.800},
    "GreedyHash, AlexNet (DeepHash-pytorch, best epoch on the queries)": {48: 0.817},
    "OrthoHash, AlexNet (the paper)": {48: 0.824},
}

BATCH_SIZE, HEAD_UPDATES = 64, 2000
# The head reads normalised features of a network that learns, so it needs less regularisation than on frozen ones.
HEAD: Mapping[str, Any] = {"input_dropout": 0.2, "dropout": 0.2}
# Agents that learn from the credit of each bit, where images have one label each. On frozen features the average
# precision is enough; a network that is trained soon ranks its training images perfectly, and by then its bits are
# settled. Of images with several labels it never does, and there the average precision is better by far: .769 against
# .730 on held-out images of MIRFLICKR, 48 bits.
CREDIT: Mapping[str, Any] = {"reward": "nca", "logit_scale": 3.0}
CHOSEN = Path(__file__).parent / "results" / "end-to-end"
HELD_OUT = (*KEY, "settings", "map", "train_seconds", "peak_mb", "version", "revision", "config")


@dataclass(frozen=True, kw_only=True)
class Args(TableArgs):
    """mAP of agents and hashers that train a network, by code length."""

    features: tuple[str, ...]
    """folders of activations or pixels (`hashgym features --cut`), or embedded datasets of pixels"""
    out: Path = Path("runs/end_to_end")
    """folder of end_to_end.csv"""
    methods: tuple[str, ...] = METHODS
    """hashers that train a network, and agents"""
    bits: tuple[int, ...] = (12, 24, 32, 48)
    """code lengths"""
    seeds: int = 3
    """runs of each cell, with the seeds 0, 1, ..."""
    epochs: float = 8
    """how many times each training image is seen, the budget of every method"""
    learning_rate: float = 1e-3
    """of the head"""
    backbone_learning_rate: float = 4e-3
    """of the network, with methods for which none was chosen with this network"""
    tuned: Path = CHOSEN
    """folder of the tuning.csv by which it is chosen"""
    tune: bool = False
    """try learning rates of the network at 48 bits on held-out training images (tuning.csv), instead of the table"""
    rates: tuple[float, ...] = (1e-3, 2e-3, 4e-3, 8e-3)
    """learning rates that `tune` tries"""


def budget(dataset: HashingDataset, method: str, args: Args) -> dict[str, Any]:
    """Return the settings that all methods share, by the names that a method has for them, and those of agents."""
    updates = max(1, round(args.epochs * len(dataset.train) / BATCH_SIZE))
    batch = "num_envs" if method in AGENTS else "batch_size"
    rates = {"learning_rate": args.learning_rate, "backbone_learning_rate": args.backbone_learning_rate}
    one_label = int(dataset.labels.sum(axis=1).max()) == 1
    own = CREDIT if one_label and AGENTS.get(method, {}).get("variant") in ("hashgym", "norec") else {}
    return {"updates": updates, "head_updates": HEAD_UPDATES, batch: BATCH_SIZE, **HEAD, **rates, **own}


def main(args: Args, console: Console | None = None) -> int:
    """Run what is missing, then print the table; returns the number of runs that failed.

    Raises:
        ValueError: for arguments that cannot be run, before any run starts.
    """
    console = console or Console()
    cells = _cells(args)
    results = rows_of(args)

    def says(rows: Sequence[Row]) -> str:
        return f"mAP {rows[0]['map']:.4f}, trained in {rows[0]['train_seconds']:.0f} s"

    failed = run_missing(cells, run_held_out if args.tune else run, results, args, console, says=says)
    rows = results.rows_of(itertools.chain(*cells.values()))
    if args.tune:
        for row in sorted(rows, key=lambda row: -float(row["map"])):
            console.print(f"{row['method']} {row['settings']}: held-out mAP {float(row['map']):.4f}")
        return failed
    for title, own in by_features(rows):
        console.print(table(own, title=title))
        if own[0]["dataset"] == "cifar10":
            console.print(styled("\n".join(published(args.bits)), "dim"))
    return failed


def rows_of(args: Args) -> Results:
    """Return the rows of the table, or with ``tune`` of the learning rates that were tried."""
    if args.tune:
        return _tuning(args.out)
    return Results(args.out, name="end_to_end.csv")


def published(bits: Sequence[int]) -> list[str]:
    """Return a line for each method of :data:`PUBLISHED` with its mAP at these code lengths."""
    known = {
        name: ", ".join(f"{scores[length]:.3f} at {length} bits" for length in bits if length in scores)
        for name, scores in PUBLISHED.items()
    }
    return [f"published, other network and protocol: {name}: {scores}" for name, scores in known.items() if scores]


def run(cell: Cell) -> list[dict[str, Any]]:
    """Train and measure, in this process; return the row."""
    return drlih.run(cell).rows


def run_held_out(cell: Cell) -> list[dict[str, Any]]:
    """Train on four fifths of the training images, and measure how well the others find each other; return the row."""
    from agents.training import retrieval_among  # imports torch, which the process that starts the runs does not need

    whole = load(cell.features)
    dataset, held_out = tune.held_out(whole)
    encode, seconds = fit(cell, dataset.standardized())
    found = retrieval_among(CodeSets.of(encode(dataset.features[held_out])), dataset.labels[held_out])
    return [{**_names(cell, whole), "map": found["retrieval/held_out_map"], **costs(seconds)}]


def _cells(args: Args) -> dict[Cell, list[dict[str, Any]]]:
    """Return all runs, each with the columns of its row that are known before it."""
    check_not_empty(args, "jobs", "features", "methods", "bits", "seeds", "rates")
    if not args.epochs > 0:
        raise ValueError(f"epochs must be above 0, got {args.epochs}")
    bits = (48,) if args.tune else args.bits
    grid = [{"backbone_learning_rate": rate} for rate in args.rates]
    tuned = [] if args.tune else tune.rows_in(_tuning(args.tuned), CHOSEN)
    found: dict[Cell, list[dict[str, Any]]] = {}
    for features, dataset in {features: load(features) for features in args.features}.items():
        if not dataset.has_maps:
            raise DataError(
                f"{features} holds features of a whole network, which cannot be trained: extract it with --cut"
            )
        # A rate that is right for one network is not for another: AlexNet has no batch normalisation.
        chosen = tune.best(row for row in tuned if row["features"] == features_name(dataset))
        for seed, length, method in itertools.product(range(args.seeds), bits, args.methods):
            for rates in grid if args.tune else [chosen.get((dataset.name, method), {})]:
                changes = {**budget(dataset, method, args), **rates}
                cell = Cell(features, method, length, seed, tuple(changes.items()))
                settings(cell)  # raises for a method that has no such settings
                found[cell] = [_names(cell, dataset)] if args.tune else drlih.names(cell, dataset)
    return found


def _tuning(folder: Path) -> Results:
    """Return the rows of learning rates that were tried."""
    return Results(folder, HELD_OUT, (*KEY, "settings"), "tuning.csv")


def _names(cell: Cell, dataset: HashingDataset) -> dict[str, Any]:
    rate = {"backbone_learning_rate": dict(cell.changes)["backbone_learning_rate"]}
    (names,) = drlih.names(cell, dataset)
    return {**names, "settings": describe(rate)}


if __name__ == "__main__":
    with command_line(CONTINUES):
        sys.exit(min(main(parse(Args, "benchmarks.end_to_end")), 1))
