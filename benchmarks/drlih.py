"""DRLIH's table: mAP of the agents and their rivals at several code lengths, over seeds.

    python -m benchmarks.drlih --features DIR --bits 12 24 32 48 --methods lsh itq noseq drlih --seeds 3 --out DIR

Every run has a process of its own, so that its training time and peak memory are its own, and adds a row to
``results.csv`` when it is finished. Called again, the benchmark takes up what is missing. Seeds change the methods'
random numbers, never the split. Queries are only measured: nothing is chosen on them.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from numpy.typing import NDArray
from rich.console import Console

import hashgym
import hashgym.data
import hashgym.hashers
from benchmarks.cells import data_digest, features_name, run_cells, unfinished
from benchmarks.results import Results, describe, peak_mb, revision, table
from hashgym.data import HashingDataset
from hashgym.retrieval import RetrievalResult, evaluate

__all__ = ["Args", "Cell", "fit", "group_bits", "main", "measure", "row", "run"]

Codes = NDArray[np.bool_]
Encoder = Callable[[NDArray[np.float32]], Codes]

# Methods that are agents, with the arguments that make them (agents/drlih.py); every other name is a hasher's.
# They learn from all training images, as the hashers do. The paper's cell runs bit by bit, at many times the cost of an
# update: its batches and updates are fewer, so that a run stays near two minutes. What differs from the agent's own
# defaults was chosen on held-out training images.
_ALL: Mapping[str, Any] = {"holdout": 0.0}
_CELL: Mapping[str, Any] = {"holdout": 0.0, "lanes": 64, "updates": 1200}
_PAPER = {**_CELL, "input_dropout": 0.0, "dropout": 0.0}
_RELEASED = {**_CELL, "input_dropout": 0.2}
AGENTS: Mapping[str, Mapping[str, Any]] = {
    "drlih": {"variant": "hashgym", **_ALL},
    "drlih-norec": {"variant": "norec", **_ALL},
    "drlih-paper": {"variant": "paper", **_PAPER},
    "drlih-released": {"variant": "released", **_RELEASED},
    # REINFORCE with a learned baseline, learnt from one call of a recurrent cell over all groups.
    "drlih-gru": {"variant": "gru", **_ALL},
    "drlih-lstm": {"variant": "lstm", **_ALL},
    "ng": {"variant": "hashgym", "group_bits": 1, **_ALL},  # Table II's Baseline_ng: no action groups
}


@dataclass(frozen=True)
class Args:
    """What to run."""

    out: Path
    """Folder of results.csv."""
    features: str = "digits"
    """An embedded dataset's name, or a folder that `hashgym features` wrote."""
    bits: tuple[int, ...] = (12, 24, 32, 48)
    """Code lengths."""
    methods: tuple[str, ...] = ("lsh", "itq", "noseq", "drlih", "drlih-norec")
    """Hashers (`hashgym hashers`), and the agents drlih, drlih-{norec,gru,lstm,paper,released} and ng."""
    seeds: int = 3
    """Runs of each cell, with the seeds 0, 1, ..."""
    jobs: int = 1
    """Runs at a time; cores are shared out among them."""
    replace: bool = False
    """Run again what was run with another configuration, instead of stopping."""


@dataclass(frozen=True)
class Cell:
    """One run."""

    features: str
    method: str
    bits: int
    seed: int

    def __str__(self) -> str:
        return f"{self.method} {self.bits} bits seed {self.seed}"


def settings(cell: Cell) -> Any:
    """The method, configured and not trained yet: a hasher, or an agent's ``Args``.

    Raises:
        ValueError: for an unknown method or a number of bits that it refuses.
    """
    if cell.method in AGENTS:
        agent = importlib.import_module("agents.drlih")
        changes = AGENTS[cell.method]
        return dataclasses.replace(agent.PRESETS[changes["variant"]], bits=cell.bits, seed=cell.seed, **changes)
    if cell.method not in hashgym.hashers.available():
        known = ", ".join([*hashgym.hashers.available(), *AGENTS])
        raise ValueError(f"there is no method {cell.method!r}: choose from {known}")
    return hashgym.hashers.make(cell.method, bits=cell.bits, seed=cell.seed)


def _config(cell: Cell, dataset: HashingDataset) -> dict[str, Any]:
    """What decides a run's outcome besides its name: the method's settings, and a digest of data and splits."""
    configured = settings(cell)
    values = dataclasses.asdict(configured)
    for name in ("bits", "seed", "dataset", "out"):
        values.pop(name, None)
    if values.get("variant") not in ("gru", "lstm"):  # of no meaning to the others
        for name in ("value_weight", "entropy_weight"):
            values.pop(name, None)
    return {**values, "data": data_digest(dataset)}


def fit(
    cell: Cell, dataset: HashingDataset, *, out: Path | None = None, progress: bool = False
) -> tuple[Encoder, float]:
    """Train a method on the training split of a standardised dataset.

    Args:
        cell: which method, code length and seed.
        dataset: see :meth:`HashingDataset.standardized`.
        out: where an agent writes its checkpoint and TensorBoard files.
        progress: whether to show a progress bar, for methods that take long.

    Returns:
        A function from features (n, D) to codes, bool (n, bits), and the seconds that training took (no imports).
    """
    configured = settings(cell)
    start = time.perf_counter()
    if cell.method in AGENTS:
        policy = importlib.import_module("agents.drlih").train(dataset, configured, out=out, progress=progress)
        encode = functools.partial(hashgym.encode, policy, bits=cell.bits, group_bits=configured.group_bits)
    else:
        if hasattr(configured, "verbose"):
            configured.verbose = progress
        encode = configured.fit(dataset.features[dataset.train], dataset.labels[dataset.train]).encode
    return encode, time.perf_counter() - start


def measure(encode: Encoder, dataset: HashingDataset) -> tuple[tuple[Codes, Codes], RetrievalResult]:
    """Search the database for every query: the codes of queries and database, and how well they did."""
    query, database = dataset.query, dataset.database
    codes = encode(np.asarray(dataset.features[query])), encode(np.asarray(dataset.features[database]))
    return codes, evaluate(codes[0], dataset.labels[query], codes[1], dataset.labels[database])


def group_bits(cell: Cell) -> int | None:
    """How many bits an agent emits at a time; None for a hasher."""
    return settings(cell).group_bits if cell.method in AGENTS else None


def _names(cell: Cell, dataset: HashingDataset) -> dict[str, Any]:
    """The columns of a row that are known before the run."""
    return {
        "dataset": dataset.name,
        "features": features_name(dataset),
        "method": cell.method,
        "bits": cell.bits,
        "seed": cell.seed,
        "config": describe(_config(cell, dataset)),
    }


def row(cell: Cell, dataset: HashingDataset, result: RetrievalResult, train_seconds: float) -> dict[str, Any]:
    """A finished run as a row of ``results.csv``."""
    return {
        **_names(cell, dataset),
        "map": result.map,
        "map_optimistic": result.map_optimistic,
        "map_pessimistic": result.map_pessimistic,
        "precision_radius2": result.precision_within,
        "recall_radius2": result.recall_within,
        "train_seconds": round(train_seconds, 3),
        "peak_mb": round(peak_mb(), 1),
        "version": hashgym.__version__,
        "revision": revision(),
    }


def run(cell: Cell) -> dict[str, Any]:
    """Load, train and measure, in this process; gives the row."""
    dataset = hashgym.data.load(cell.features).standardized()
    encode, seconds = fit(cell, dataset)
    return row(cell, dataset, measure(encode, dataset)[1], seconds)


def main(args: Args, console: Console | None = None) -> int:
    """Run what is missing, then print the table; the number of runs that failed.

    Raises:
        ValueError: for arguments that cannot be run, before any run starts.
    """
    console = console or Console()
    if args.seeds < 1 or args.jobs < 1 or not args.bits or not args.methods:
        raise ValueError("at least one seed, one job, one code length and one method are needed")
    dataset = hashgym.data.load(args.features)
    cells = [Cell(args.features, m, b, s) for m in args.methods for b in args.bits for s in range(args.seeds)]
    names = {cell: _names(cell, dataset) for cell in cells}
    results = Results(args.out)

    def done(cell: Cell) -> bool:
        return results.done(names[cell], replace=args.replace)

    def finish(finished: dict[str, Any]) -> str:
        results.append(finished)
        return f"mAP {finished['map']:.4f}, trained in {finished['train_seconds']:.1f} s"

    waiting = unfinished(cells, done, results.path, console)
    failed = run_cells(waiting, run, finish, jobs=args.jobs, console=console)
    wanted = {tuple(str(names[cell][column]) for column in results.key) for cell in cells}
    rows = [r for r in results.rows() if tuple(r[column] for column in results.key) in wanted]
    if rows:
        console.print(table(rows, title=f"{rows[0]['dataset']}, {rows[0]['features']}"))
    if len(revisions := {r["revision"] for r in rows}) > 1:
        console.print(f"the rows come from {len(revisions)} revisions of the code: {', '.join(sorted(revisions))}")
    return failed


if __name__ == "__main__":
    try:
        sys.exit(min(main(tyro.cli(Args)), 1))
    except ValueError as error:
        sys.exit(f"error: {error}")
