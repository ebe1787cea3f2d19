"""DRLIH's tables: mAP of the agents and their rivals at several code lengths, over seeds.

    python -m benchmarks.drlih --features DIR --jobs 2 --out DIR     # every method of Tables I and II
    python -m benchmarks.drlih --preset smoke                        # the same on digits, in minutes

Every run has a process of its own, so that its training time and peak memory are its own, and adds a row to
``results.csv`` when it is finished; at the greatest code length also one to ``curves.csv`` (precision at K, precision
and recall by radius) and, for seed 0, to ``examples.csv`` (what some queries find). Called again, the benchmark takes
up what is missing. Seeds change the methods' random numbers, never the split. Settings are those that
``benchmarks.tune`` chose on held-out training images, where it did. Queries are only measured.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import hashgym
from benchmarks import tune
from benchmarks.cells import CONTINUES, Executor, features_name, run_cells, unfinished
from benchmarks.methods import AGENTS, Cell, Codes, config, fit, load, measure, settings
from benchmarks.results import KEY, Results, describe, peak_mb, revision, table
from hashgym import codes
from hashgym.console import Console
from hashgym.data import HashingDataset
from hashgym.retrieval import RetrievalResult
from hashgym.terminal import command_line, parse

__all__ = ["CURVES", "EXAMPLES", "METHODS", "PRESETS", "Args", "Preset", "main", "names", "row", "run"]

NETWORKS = ("noseq", "hashnet", "dsh", "ninh", "cnnh", "adsh", "dch", "mmhh", "csq", "orthohash")
METHODS = ("lsh", "sh", "itq", "ksh", "sdh", *NETWORKS, *AGENTS)

CURVES = (*KEY, "ranks", "precision_at", "precision_by_radius", "recall_by_radius")
EXAMPLES = (*KEY, "queries", "found", "distances", "right")
RANKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000)  # of precision at K
SHOWN, ASKED = 10, 10  # results that an example keeps, and queries


@dataclass(frozen=True)
class Preset:
    """What is run unless arguments say otherwise."""

    methods: tuple[str, ...] = METHODS
    bits: tuple[int, ...] = (12, 24, 32, 48)
    seeds: int = 3
    effort: float = 1.0


PRESETS: Mapping[str, Preset] = {"tables": Preset(), "smoke": Preset(bits=(24,), seeds=1, effort=0.2)}


@dataclass(frozen=True)
class Args:
    """What to run."""

    out: Path = Path("runs/drlih")
    """Folder of results.csv, curves.csv and examples.csv."""
    features: tuple[str, ...] = ("digits",)
    """Embedded datasets by name, or folders that `hashgym features` wrote."""
    preset: Literal["tables", "smoke"] = "tables"
    """What is run unless the next four say otherwise: the papers' tables, or a quick look at every method."""
    methods: tuple[str, ...] | None = None
    """Hashers (`hashgym hashers`), and the agents drlih, drlih-{norec,gru,lstm,paper,released} and ng."""
    bits: tuple[int, ...] | None = None
    """Code lengths."""
    seeds: int | None = None
    """Runs of each cell, with the seeds 0, 1, ..."""
    effort: float | None = None
    """Gradient steps, as a share of every method's own number."""
    hidden: int | None = None
    """Width of the hidden layer of every network among the hashers, 0 for linear heads, instead of their own."""
    tuned: Path = tune.CHOSEN
    """Folder of what `benchmarks.tune` tried; datasets and methods that are not in it have the defaults."""
    jobs: int = 1
    """Runs at a time; cores are shared out among them."""
    executor: Executor = "processes"
    """Where runs happen: processes of this machine, or a Ray cluster (RAY_ADDRESS, or one of `jobs` processes here)."""
    replace: bool = False
    """Run again what was run with another configuration, instead of stopping."""


@dataclass(frozen=True)
class Outcome:
    """What a run leaves: rows of the three files."""

    row: dict[str, Any]
    curve: dict[str, Any] | None = None
    example: dict[str, Any] | None = None


def names(cell: Cell, dataset: HashingDataset) -> dict[str, Any]:
    """The columns of a row that are known before the run."""
    return {**_key(cell, dataset), "config": describe(config(cell, dataset))}


def row(cell: Cell, dataset: HashingDataset, result: RetrievalResult, train_seconds: float) -> dict[str, Any]:
    """A finished run as a row of ``results.csv``."""
    return {
        **names(cell, dataset),
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


def run(cell: Cell) -> Outcome:
    """Load, train and measure, in this process."""
    dataset = load(cell.features).standardized()
    encode, seconds = fit(cell, dataset)
    ranks = [k for k in RANKS if k <= len(dataset.database)] if cell.curves else []
    found, result = measure(encode, dataset, ranks)
    finished = row(cell, dataset, result, seconds)
    if not cell.curves:
        return Outcome(finished)
    curve = {
        **_key(cell, dataset),
        "ranks": json.dumps(ranks),
        "precision_at": _short(np.array(list(result.precision_at.values()))),
        "precision_by_radius": _short(result.precision_by_radius),
        "recall_by_radius": _short(result.recall_by_radius),
    }
    return Outcome(finished, curve, _example(cell, dataset, *found) if cell.seed == 0 else None)


def main(args: Args, console: Console | None = None) -> int:
    """Run what is missing, then print the tables; the number of runs that failed.

    Raises:
        ValueError: for arguments that cannot be run, before any run starts.
    """
    console = console or Console()
    given: dict[str, Any] = {"methods": args.methods, "bits": args.bits, "seeds": args.seeds, "effort": args.effort}
    what = dataclasses.replace(
        PRESETS[args.preset], **{name: value for name, value in given.items() if value is not None}
    )
    if what.seeds < 1 or args.jobs < 1 or not what.bits or not what.methods or not args.features:
        raise ValueError("at least one seed, one job, one code length, one method and one dataset are needed")
    if not what.effort > 0:
        raise ValueError(f"effort is a share of the gradient steps, above 0, got {what.effort}")
    datasets = {features: load(features) for features in args.features}
    chosen = tune.chosen(args.tuned)
    named: dict[Cell, dict[str, Any]] = {}
    for features, dataset in datasets.items():
        for method in what.methods:
            changes = chosen.get((dataset.name, method), {})
            for bits, seed in ((b, s) for b in what.bits for s in range(what.seeds)):
                cell = Cell(features, method, bits, seed, tuple(changes.items()), curves=bits == max(what.bits))
                cell = _changed(cell, what.effort, args.hidden)
                named[cell] = names(cell, dataset)
    results, curves = Results(args.out), Results(args.out, CURVES, KEY, "curves.csv")
    examples = Results(args.out, EXAMPLES, KEY, "examples.csv")

    def done(cell: Cell) -> bool:
        drawn = not cell.curves or (named[cell] in curves and (cell.seed > 0 or named[cell] in examples))
        return results.done(named[cell], replace=args.replace) and drawn

    def finish(outcome: Outcome) -> str:
        if outcome.curve:
            curves.append(outcome.curve)
        if outcome.example:
            examples.append(outcome.example)
        results.append(outcome.row)  # last: a run whose row is here is finished
        return f"mAP {outcome.row['map']:.4f}, trained in {outcome.row['train_seconds']:.1f} s"

    waiting = unfinished(list(named), done, results.path, console)
    failed = run_cells(waiting, run, finish, jobs=args.jobs, executor=args.executor, console=console)
    wanted = {tuple(str(name[column]) for column in KEY) for name in named.values()}
    rows = [r for r in results.rows() if tuple(r[column] for column in KEY) in wanted]
    for which in dict.fromkeys((r["dataset"], r["features"]) for r in rows):
        console.print(table([r for r in rows if (r["dataset"], r["features"]) == which], title=", ".join(which)))
    if len(revisions := {r["revision"] for r in rows}) > 1:
        console.print(f"the rows come from {len(revisions)} revisions of the code: {', '.join(sorted(revisions))}")
    return failed


def _key(cell: Cell, dataset: HashingDataset) -> dict[str, Any]:
    which = (dataset.name, features_name(dataset), cell.method, cell.bits, cell.seed)
    return dict(zip(KEY, which, strict=True))


def _changed(cell: Cell, effort: float, hidden: int | None) -> Cell:
    """The cell with a share of its gradient steps and another head; methods without them stay as they are."""
    changes, usual = dict(cell.changes), settings(cell)
    if effort != 1 and hasattr(usual, "updates"):
        changes["updates"] = max(1, round(effort * usual.updates))
    if hidden is not None and hasattr(usual, "hidden") and cell.method not in AGENTS:
        changes["hidden"] = hidden
    return dataclasses.replace(cell, changes=tuple(changes.items()))


def _example(cell: Cell, dataset: HashingDataset, query_codes: Codes, database_codes: Codes) -> dict[str, Any]:
    """What the first query of each of some labels finds; images at one distance in the database's order."""
    firsts = dict.fromkeys(int(column.argmax()) for column in dataset.labels[dataset.query].T if column.any())
    asked = list(firsts)[:ASKED]
    distances = codes.hamming(codes.pack(query_codes)[asked][:, None], codes.pack(database_codes)[None])
    nearest = distances.argsort(axis=1, kind="stable")[:, :SHOWN]
    queries, found = dataset.query[asked], dataset.database[nearest]
    return {
        **_key(cell, dataset),
        "queries": json.dumps(queries.tolist()),
        "found": json.dumps(found.tolist()),
        "distances": json.dumps(np.take_along_axis(distances, nearest, 1).tolist()),
        "right": json.dumps(dataset.similar(queries[:, None], found).astype(int).tolist()),
    }


def _short(values: NDArray[np.float64]) -> str:
    return json.dumps([float(f"{value:.4g}") for value in values])


if __name__ == "__main__":
    with command_line(CONTINUES):
        sys.exit(min(main(parse(Args, "benchmarks.drlih")), 1))
